"""Completions as files: mindformers' text_generation_result.txt and a record a line for programs."""

from collections.abc import Sequence
from pathlib import Path

from qwen3_infer.schedule.jobs import Completion
from qwen3_infer.text.output import Part, split_answer
from qwen3_infer.text.prompt import ends_in_thought
from qwen3_infer.text.utf8 import to_json
from qwen3_model.command.files import write_text_atomically
from qwen3_model.text.tokenizer import Qwen3Tokenizer

RESULT_BEGIN = b"[{'text_generation_text': ["


def make_record(completion: Completion, tokenizer: Qwen3Tokenizer, *, chat: bool) -> dict[str, object]:
    """Return one line of the results file; `chat` takes thought and calls out of the completion."""
    request = completion.request
    record: dict[str, object] = {"index": request.index}
    if request.decoding.num_sequences > 1:
        record["sample"] = request.sample
    if request.prompt.id is not None:
        record["id"] = request.prompt.id
    if request.prompt.text is not None:
        record["prompt"] = request.prompt.text
    else:
        record["messages"] = list(request.prompt.messages)
    reasoning, answer, calls = (
        answer_of(completion, tokenizer, has_tools=bool(request.prompt.tools))
        if chat
        else ("", completion.text, [])
    )
    record["completion"] = answer
    if reasoning:
        record["reasoning"] = reasoning
    if calls:
        named = ({"name": call.name, "arguments": call.text} for call in calls)
        record["tool_calls"] = [{"type": "function", "function": function} for function in named]
    reason = completion.finish_reason
    record |= {
        "finish_reason": "tool_calls" if calls and reason == "stop" else reason,
        "prompt_tokens": len(request.prompt_ids),
        "completion_tokens": len(completion.ids),
    }
    if request.decoding.logprobs:
        record |= {"completion_ids": list(completion.ids), "logprobs": list(completion.logprobs)}
    return record


def answer_of(
    completion: Completion, tokenizer: Qwen3Tokenizer, *, has_tools: bool = False
) -> tuple[str, str, list[Part]]:
    """Return the thought, "" if there is none, the answer and the calls of a completion in a chat."""
    starts_in_thought = ends_in_thought(tokenizer, completion.request.prompt_ids)
    return split_answer(completion.text, starts_in_thought=starts_in_thought, has_tools=has_tools)


def write_records(
    path: Path, completions: Sequence[Completion], tokenizer: Qwen3Tokenizer, *, chat: bool
) -> None:
    """Write JSON lines in the order of the input."""
    records = (make_record(each, tokenizer, chat=chat) for each in completions)
    lines = [to_json(record) for record in records]
    write_text_atomically(path, "".join(line + "\n" for line in lines))


def full_text(completion: Completion, tokenizer: Qwen3Tokenizer) -> str:
    """Return prompt and completion as one text, without special tokens."""
    return tokenizer.decode(completion.request.prompt_ids) + completion.text


def is_own_result(path: Path) -> bool:
    """Return whether a file is such a text result, which another one may replace."""
    return path.is_file() and path.open("rb").read(len(RESULT_BEGIN)) == RESULT_BEGIN


def write_result_text(
    path: Path, completions: Sequence[Completion], tokenizer: Qwen3Tokenizer, batch_size: int
) -> None:
    """Write what mindformers writes: a Python list with a dict of prompts with completions for each batch."""
    texts = [full_text(completion, tokenizer) for completion in completions]
    batches = [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]
    write_text_atomically(path, str([{"text_generation_text": batch} for batch in batches]))
