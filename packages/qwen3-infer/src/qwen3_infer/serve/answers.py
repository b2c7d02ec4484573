"""Tokens as OpenAI's objects: whole answers and the chunks of streams."""

import codecs
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from qwen3_infer.schedule.jobs import Event
from qwen3_infer.serve.errors import ApiError
from qwen3_infer.serve.requests import ApiRequest
from qwen3_infer.text.output import ChatOutput, Part
from qwen3_model.text.tokenizer import Qwen3Tokenizer


@dataclass(eq=False, slots=True)
class Choice:
    """One completion on its way."""

    output: ChatOutput
    reasoning: str = ""
    text: str = ""
    calls: list[dict[str, object]] = field(default_factory=list)
    logprobs: list[dict[str, object]] = field(default_factory=list)
    legacy_logprobs: list[dict[str, list[object]]] = field(default_factory=list)
    """The same as the older endpoint has them: each a list for each key."""
    finish_reason: str | None = None
    num_tokens: int = 0
    num_thought: int = 0
    """Tokens of the thought, its tags among them."""
    num_unsure: int = 0
    """Tokens at the beginning that may be a tag's."""
    offset: int = 0
    """Characters of the tokens so far, for the offsets of legacy log-probabilities."""
    characters: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )
    """Counts those whose bytes are spread over several tokens once."""


def take_apart(choice: Choice, event: Event) -> list[Part]:
    """Return the parts that a token makes certain, and count the token where it belongs to a thought."""
    was_thinking = choice.output.is_thinking
    parts = choice.output.push(event.piece, is_last=event.completion is not None)
    if was_thinking or choice.output.is_thinking:
        choice.num_thought += 1 + choice.num_unsure
    choice.num_unsure = 0 if choice.output.has_begun else choice.num_unsure + 1
    return parts


class Answer:
    """What a request gets, built up event by event."""

    def __init__(self, request: ApiRequest, model: str, tokenizer: Qwen3Tokenizer) -> None:
        self._request, self._tokenizer = request, tokenizer
        self._num_samples = 1 + max(each.sample for each in request.requests)
        self.id = ("chatcmpl-" if request.is_chat else "cmpl-") + uuid.uuid4().hex
        kind = "chat.completion" if request.is_chat else "text_completion"
        self._head = {"id": self.id, "object": kind, "created": int(time.time()), "model": model}
        self.choices = [
            Choice(ChatOutput(has_tools=request.has_tools, starts_in_thought=request.starts_in_thought))
            for _ in request.requests
        ]
        self.num_shared = 0
        """Prompt tokens that were in the cache already."""

    @property
    def is_done(self) -> bool:
        """Whether every choice is whole."""
        return all(choice.finish_reason for choice in self.choices)

    @property
    def num_tokens(self) -> int:
        """Tokens generated so far."""
        return sum(choice.num_tokens for choice in self.choices)

    @property
    def finish_reasons(self) -> list[str | None]:
        """Why each choice ended, None while it has not."""
        return [choice.finish_reason for choice in self.choices]

    def first_chunks(self) -> Iterator[dict[str, object]]:
        """Yield what a stream begins with."""
        if self._request.is_chat:
            for index in range(len(self.choices)):
                yield self._chunk(index, {"delta": {"role": "assistant", "content": ""}, "logprobs": None})

    def add(self, event: Event) -> Iterator[dict[str, object]]:
        """Take in a token and yield the chunks that it makes certain."""
        index = event.job.request.index * self._num_samples + event.job.request.sample
        choice = self.choices[index]
        if self._request.echo and choice.num_tokens == 0:
            yield self._echo(index, choice, event)
            if self._request.is_prompt_alone:
                return
        choice.num_tokens += 1
        done = event.completion
        if done and event.job.request.sample == 0:
            self.num_shared += done.num_shared
        if self._request.is_chat:
            yield from self._add_chat(index, choice, event)
        else:
            choice.text += event.piece
            logprobs = self._legacy_logprobs(choice, event)
            choice.finish_reason = done.finish_reason if done else None
            if event.piece or done or logprobs:
                yield self._chunk(index, {"text": event.piece, "logprobs": logprobs})

    def _echo(self, index: int, choice: Choice, event: Event) -> dict[str, object]:
        """Return the chunk with the prompt."""
        prompt_ids = event.job.request.prompt_ids
        choice.text = self._tokenizer.decode(prompt_ids, skip_special=False)
        logprobs = None
        if event.job.request.decoding.prompt_logprobs is not None:
            first = self._legacy_entry(choice, prompt_ids[0], None, ())
            entries = [first] + [
                self._legacy_entry(choice, token, logprob, likeliest)
                for token, (logprob, likeliest) in zip(prompt_ids[1:], event.job.prompt_logprobs, strict=True)
            ]
            logprobs = _join_entries(entries)
            choice.legacy_logprobs.append(logprobs)
        if self._request.is_prompt_alone:
            choice.finish_reason = "length"
        return self._chunk(index, {"text": choice.text, "logprobs": logprobs})

    def _add_chat(self, index: int, choice: Choice, event: Event) -> Iterator[dict[str, object]]:
        logprobs = self._chat_logprobs(choice, event)
        deltas = [self._delta(choice, part) for part in take_apart(choice, event)]
        if logprobs and not deltas:
            deltas = [{}]
        for number, delta in enumerate(deltas):
            yield self._chunk(index, {"delta": delta, "logprobs": None if number else logprobs})
        if event.completion:
            reason = event.completion.finish_reason
            choice.finish_reason = "tool_calls" if choice.calls and reason == "stop" else reason
            yield self._chunk(index, {"delta": {}, "logprobs": None})

    def _delta(self, choice: Choice, part: Part) -> dict[str, object]:
        if part.kind == "reasoning":
            choice.reasoning += part.text
            return {"reasoning_content": part.text}
        if part.kind == "content":
            choice.text += part.text
            return {"content": part.text}
        call: dict[str, object] = {
            "id": f"call_{uuid.uuid4().hex}",
            "type": "function",
            "function": {"name": part.name, "arguments": part.text},
        }
        choice.calls.append(call)
        return {"tool_calls": [{"index": len(choice.calls) - 1, **call}]}

    def _chunk(self, index: int, choice: dict[str, object]) -> dict[str, object]:
        head = self._head | ({"object": "chat.completion.chunk"} if self._request.is_chat else {})
        chunk = head | {
            "choices": [{"index": index, **choice, "finish_reason": self.choices[index].finish_reason}]
        }
        if not self._request.include_usage:
            return chunk
        return chunk | {"usage": self.usage() if self._request.continuous_usage else None}

    def last_chunks(self) -> Iterator[dict[str, object]]:
        """Yield what a stream ends with: the counts, when its client asked for them."""
        if self._request.include_usage:
            head = self._head | ({"object": "chat.completion.chunk"} if self._request.is_chat else {})
            yield head | {"choices": [], "usage": self.usage()}

    def error_chunk(self, error: ApiError) -> dict[str, object]:
        """Return how a stream says what went wrong."""
        return error.body()

    def frame(self, chunk: dict[str, object]) -> str:
        """Return a chunk as an event of a stream."""
        return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"

    end = "data: [DONE]\n\n"
    """What tells the client that the stream is whole."""

    def whole(self) -> dict[str, object]:
        """Return the answer of a request that does not stream."""
        choices = [self._whole_choice(index, choice) for index, choice in enumerate(self.choices)]
        return self._head | {"choices": choices, "usage": self.usage()}

    def _whole_choice(self, index: int, choice: Choice) -> dict[str, object]:
        tail = {"finish_reason": choice.finish_reason}
        if not self._request.is_chat:
            joined = _join_entries(choice.legacy_logprobs) if choice.legacy_logprobs else None
            return {"index": index, "text": choice.text, "logprobs": joined} | tail
        content = None if choice.calls and not choice.text else choice.text
        message: dict[str, object] = {"role": "assistant", "content": content, "refusal": None}
        if choice.reasoning:
            message["reasoning_content"] = choice.reasoning
        if choice.calls:
            message["tool_calls"] = choice.calls
        logprobs = {"content": choice.logprobs, "refusal": None} if choice.logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs} | tail

    def usage(self) -> dict[str, object]:
        """Return the counts: each prompt once, every generated token."""
        num_prompt = self._request.num_prompt_tokens
        counted: dict[str, object] = {
            "prompt_tokens": num_prompt,
            "completion_tokens": self.num_tokens,
            "total_tokens": num_prompt + self.num_tokens,
            "prompt_tokens_details": {"cached_tokens": self.num_shared},
        }
        if self._request.is_chat:
            num_thought = sum(choice.num_thought for choice in self.choices)
            counted["completion_tokens_details"] = {"reasoning_tokens": num_thought}
        return counted

    def _chat_logprobs(self, choice: Choice, event: Event) -> dict[str, object] | None:
        if event.logprob is None:
            return None
        entry = self._entry(event.token, event.logprob)
        entry["top_logprobs"] = [self._entry(token, logprob) for token, logprob in event.top_logprobs]
        choice.logprobs.append(entry)
        return {"content": [entry], "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, object]:
        raw = self._tokenizer.token_bytes(token)
        return {
            "token": self._tokenizer.token_text(token),
            "logprob": logprob,
            "bytes": None if raw is None else list(raw),
        }

    def _legacy_logprobs(self, choice: Choice, event: Event) -> dict[str, list[object]] | None:
        if event.logprob is None:
            return None
        entry = self._legacy_entry(choice, event.token, event.logprob, event.top_logprobs)
        choice.legacy_logprobs.append(entry)
        return entry

    def _legacy_entry(
        self, choice: Choice, token: int, logprob: float | None, likeliest: Sequence[tuple[int, float]]
    ) -> dict[str, list[object]]:
        """Return what the older endpoint says of one token; the first of a prompt has no probability."""
        tops = None if logprob is None else {self._legacy_text(other): value for other, value in likeliest}
        entry: dict[str, list[object]] = {
            "tokens": [self._legacy_text(token)],
            "token_logprobs": [logprob],
            "top_logprobs": [tops],
            "text_offset": [choice.offset],
        }
        raw = self._tokenizer.token_bytes(token)
        text = self._tokenizer.token_text(token) if raw is None else choice.characters.decode(raw)
        choice.offset += len(text)
        return entry

    def _legacy_text(self, token: int) -> str:
        r"""Return the same as the older endpoint has it: `bytes:\xf0\x9f` for such parts."""
        raw = self._tokenizer.token_bytes(token)
        try:
            if raw is not None:
                raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw or b"")
        return self._tokenizer.token_text(token)


def _join_entries(entries: Sequence[dict[str, list[object]]]) -> dict[str, list[object]]:
    return {key: [value for entry in entries for value in entry[key]] for key in entries[0]}
