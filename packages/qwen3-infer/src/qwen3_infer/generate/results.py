"""Completions as files: mindformers' text_generation_result.txt and a record a line for programs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen3_infer.engine.jobs import Completion
from qwen3_model.files import write_text_atomically
from qwen3_model.tokenizer import Qwen3Tokenizer

THOUGHT_END = "</think>"
THOUGHT_BEGIN = "<think>"


def split_reasoning(text: str) -> tuple[str | None, str]:
    """Return what the model thought, None if it did not, and what it answered.

    The last `</think>` divides them; a thought that never ended is all there is.
    """
    thought, end, answer = text.rpartition(THOUGHT_END)
    if end:
        return thought.replace(THOUGHT_BEGIN, "", 1).strip(), answer.lstrip("\n")
    if text.lstrip().startswith(THOUGHT_BEGIN):
        return text.replace(THOUGHT_BEGIN, "", 1).strip(), ""
    return None, text


def make_record(completion: Completion, *, chat: bool) -> dict[str, Any]:
    """Return one line of the results file."""
    request = completion.request
    record: dict[str, Any] = {"index": request.index}
    if request.decoding.num_sequences > 1:
        record["sample"] = request.sample
    if request.prompt.id is not None:
        record["id"] = request.prompt.id
    if request.prompt.text is not None:
        record["prompt"] = request.prompt.text
    else:
        record["messages"] = list(request.prompt.messages)
    reasoning, answer = split_reasoning(completion.text) if chat else (None, completion.text)
    record["completion"] = answer
    if reasoning is not None:
        record["reasoning"] = reasoning
    record |= {
        "finish_reason": completion.finish_reason,
        "prompt_tokens": len(request.prompt_ids),
        "completion_tokens": len(completion.ids),
    }
    if request.decoding.logprobs:
        record |= {"completion_ids": list(completion.ids), "logprobs": list(completion.logprobs)}
    return record


def write_records(path: Path, completions: Sequence[Completion], *, chat: bool) -> None:
    """Write JSON lines in the order of the input."""
    lines = [json.dumps(make_record(each, chat=chat), ensure_ascii=False) for each in completions]
    write_text_atomically(path, "".join(line + "\n" for line in lines))


def full_text(completion: Completion, tokenizer: Qwen3Tokenizer) -> str:
    """Return prompt and completion as one text, without special tokens."""
    return tokenizer.decode(completion.request.prompt_ids) + completion.text


def write_result_text(
    path: Path, completions: Sequence[Completion], tokenizer: Qwen3Tokenizer, batch_size: int
) -> None:
    """Write what mindformers writes: a Python list with a dict of prompts with completions for each batch."""
    texts = [full_text(completion, tokenizer) for completion in completions]
    batches = [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]
    write_text_atomically(path, str([{"text_generation_text": batch} for batch in batches]))
