"""Tokens as OpenAI's Responses objects: a whole response, and the events of a stream."""

import uuid
from collections.abc import Iterator

from qwen3_infer.schedule.jobs import Event
from qwen3_infer.serve.answers import Answer, take_apart
from qwen3_infer.serve.errors import ApiError
from qwen3_infer.serve.requests import ApiRequest
from qwen3_infer.text.output import Part
from qwen3_model.text.tokenizer import Qwen3Tokenizer

FORMS = {
    # Kind of a part: type of the item, of its content, and name of the events.
    "reasoning": ("reasoning", "reasoning_text", "reasoning_text"),
    "content": ("message", "output_text", "output_text"),
}


class ResponsesAnswer(Answer):
    """One response: its items are thoughts, messages and calls, in the order in which they come."""

    def __init__(self, request: ApiRequest, model: str, tokenizer: Qwen3Tokenizer) -> None:
        super().__init__(request, model, tokenizer)
        self.id = f"resp_{uuid.uuid4().hex}"
        self._items: list[dict[str, object]] = []
        self._open: str | None = None
        """Kind of the parts of which the last item is made."""
        self._content: dict[str, object] = {}
        """What they become, the only content of that item; its text so far is `_text`."""
        self._text = ""
        self._num_events = 0

    def first_chunks(self) -> Iterator[dict[str, object]]:
        """Yield what a stream begins with."""
        for name in ("created", "in_progress"):
            yield self._event(f"response.{name}", response=self._response("in_progress"))

    def add(self, event: Event) -> Iterator[dict[str, object]]:
        """Take in a token and yield the events that it makes certain."""
        (choice,) = self.choices
        choice.num_tokens += 1
        if event.completion:
            self.num_shared += event.completion.num_shared
        for part in take_apart(choice, event):
            yield from self._add_part(part)
        if event.completion:
            yield from self._close()
            choice.finish_reason = event.completion.finish_reason

    def _add_part(self, part: Part) -> Iterator[dict[str, object]]:
        if part.kind == "call":
            yield from self._close()
            yield from self._call(part)
            return
        kind, content_type, name = FORMS[part.kind]
        if self._open != part.kind:
            yield from self._close()
            yield from self._begin(part.kind, kind, content_type)
        self._text += part.text
        extra: dict[str, object] = {"logprobs": []} if kind == "message" else {}
        yield self._part_event(f"response.{name}.delta", delta=part.text, **extra)

    def _begin(self, part_kind: str, kind: str, content_type: str) -> Iterator[dict[str, object]]:
        prefix = "rs" if kind == "reasoning" else "msg"
        item: dict[str, object] = {
            "id": f"{prefix}_{uuid.uuid4().hex}",
            "type": kind,
            "status": "in_progress",
        }
        own: dict[str, object] = {"summary": []} if kind == "reasoning" else {"role": "assistant"}
        self._items.append({**item, **own, "content": []})
        yield self._item_event("response.output_item.added")
        self._content, self._text = {"type": content_type, "text": ""}, ""
        if kind == "message":
            self._content |= {"annotations": [], "logprobs": []}
        self._items[-1]["content"] = [self._content]
        self._open = part_kind
        yield self._part_event("response.content_part.added", part=dict(self._content))

    def _call(self, part: Part) -> Iterator[dict[str, object]]:
        identity = uuid.uuid4().hex
        item: dict[str, object] = {
            "id": f"fc_{identity}", "type": "function_call", "status": "in_progress",
            "call_id": f"call_{identity}", "name": part.name, "arguments": "",
        }  # fmt: skip
        self._items.append(item)
        yield self._item_event("response.output_item.added")
        where: dict[str, object] = {"item_id": item["id"], "output_index": len(self._items) - 1}
        yield self._event("response.function_call_arguments.delta", delta=part.text, **where)
        item |= {"arguments": part.text, "status": "completed"}
        yield self._event(
            "response.function_call_arguments.done", name=part.name, arguments=part.text, **where
        )
        yield self._item_event("response.output_item.done")

    def _close(self) -> Iterator[dict[str, object]]:
        """End the item that is made of parts, if there is one."""
        if self._open is None:
            return
        name = FORMS[self._open][2]
        item = self._items[-1]
        self._content["text"] = self._text
        extra: dict[str, object] = {"logprobs": []} if item["type"] == "message" else {}
        yield self._part_event(f"response.{name}.done", text=self._text, **extra)
        yield self._part_event("response.content_part.done", part=dict(self._content))
        item["status"] = "completed"
        self._open = None
        yield self._item_event("response.output_item.done")

    def last_chunks(self) -> Iterator[dict[str, object]]:
        """Yield what a stream ends with."""
        response = self.whole()
        yield self._event(f"response.{response['status']}", response=response)

    def whole(self) -> dict[str, object]:
        """Return the whole response."""
        return self._response("incomplete" if self.choices[0].finish_reason == "length" else "completed")

    def error_chunk(self, error: ApiError) -> dict[str, object]:
        """Return the event of an error."""
        return self._event("error", code=error.code, message=error.message, param=error.param)

    def frame(self, chunk: dict[str, object]) -> str:
        """Return an event as it is sent."""
        return f"event: {chunk['type']}\n{super().frame(chunk)}"

    end = ""
    """What comes last; these events name themselves."""

    def usage(self) -> dict[str, object]:
        """Return the counts by their names here."""
        counted = super().usage()
        return {
            "input_tokens": counted["prompt_tokens"],
            "input_tokens_details": counted["prompt_tokens_details"],
            "output_tokens": counted["completion_tokens"],
            "output_tokens_details": counted["completion_tokens_details"],
            "total_tokens": counted["total_tokens"],
        }

    def _response(self, status: str) -> dict[str, object]:
        ended = status == "incomplete"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._head["created"],
            "status": status,
            "model": self._head["model"],
            "output": [dict(item) for item in self._items],
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if ended else None,
            "instructions": None,
            "metadata": {},
            "parallel_tool_calls": True,
            "temperature": None,
            "tool_choice": "auto",
            "tools": [],
            "top_p": None,
            "usage": None if status == "in_progress" else self.usage(),
        }

    def _event(self, kind: str, **fields: object) -> dict[str, object]:
        self._num_events += 1
        return {"type": kind, "sequence_number": self._num_events - 1, **fields}

    def _item_event(self, kind: str) -> dict[str, object]:
        return self._event(kind, output_index=len(self._items) - 1, item=dict(self._items[-1]))

    def _part_event(self, kind: str, **fields: object) -> dict[str, object]:
        last = len(self._items) - 1
        where = {"item_id": self._items[-1]["id"], "output_index": last, "content_index": 0}
        return self._event(kind, **where, **fields)
