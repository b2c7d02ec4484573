"""OpenAI's Responses requests as chat requests: text, thoughts and functions, nothing that is kept."""

from collections.abc import Mapping
from typing import NotRequired, TypedDict

from qwen3_infer.serve.errors import ApiError, invalid
from qwen3_infer.serve.fields import RESPONSES, SAMPLING, check_fields
from qwen3_infer.serve.requests import ApiRequest, read_chat
from qwen3_infer.serve.service import Service
from qwen3_model.command.narrow import as_list, as_section, as_text

SAME_NAMES = (
    *SAMPLING, "model", "stream", "seed", "parallel_tool_calls", "enable_thinking", "chat_template_kwargs",
)  # fmt: skip
TEXT_TYPES = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


class _Message(TypedDict):
    """A message as a chat request has it; its role is not checked yet."""

    role: object
    content: str | None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, object]]]
    tool_call_id: NotRequired[object]


def read_response(body: object, service: Service) -> ApiRequest:
    """Understand a request for a response.

    Raises:
        ApiError: Something in it is wrong or not implemented.
    """
    given = check_fields(body, RESPONSES)
    if "input" not in given:
        raise invalid("input", "is missing")
    chat: dict[str, object] = {name: given[name] for name in SAME_NAMES if name in given}
    chat["messages"] = _messages(given)
    if "max_output_tokens" in given:
        chat["max_completion_tokens"] = given["max_output_tokens"]
    effort = as_section(given.get("reasoning", {})).get("effort")
    if effort is not None:
        chat["reasoning_effort"] = effort
    if "tools" in given:
        chat["tools"] = [_tool(tool, number) for number, tool in enumerate(as_list(given["tools"]))]
    choice = given.get("tool_choice")
    if choice is not None:
        chat["tool_choice"] = choice
    form = as_section(given.get("text", {})).get("format")
    if form is not None:
        chat["response_format"] = form
    return read_chat(chat, service)


def _messages(given: Mapping[str, object]) -> list[_Message]:
    messages: list[_Message] = []
    if given.get("instructions"):
        messages.append({"role": "system", "content": as_text(given["instructions"])})
    asked = given["input"]
    if isinstance(asked, str):
        return [*messages, {"role": "user", "content": asked}]
    items = as_list(asked)
    for number, item in enumerate(items):
        _add_item(messages, item, f"input[{number}]")
    if not items:
        raise invalid("input", "must be a text or a list of at least one item")
    return messages


def _add_item(messages: list[_Message], given: object, where: str) -> None:
    """Add an item; a thought and the calls that follow it belong to the message of the assistant."""
    item = given if isinstance(given, dict) else {"type": None}
    kind = item.get("type", "message")
    if kind == "message":
        content = item.get("content")
        texts = content if isinstance(content, str) else _texts(content, f"{where}.content")
        if item.get("role") == "assistant":
            last = _assistant(messages)
            last["content"] = (last["content"] or "") + texts
        else:
            messages.append({"role": item.get("role"), "content": texts})
    elif kind == "reasoning":
        thought = _texts(item.get("content") or item.get("summary") or [], f"{where}.content")
        _assistant(messages)["reasoning_content"] = thought
    elif kind == "function_call":
        call = {"name": item.get("name"), "arguments": item.get("arguments")}
        calls = _assistant(messages).setdefault("tool_calls", [])
        calls.append({"id": item.get("call_id"), "type": "function", "function": call})
    elif kind == "function_call_output":
        output = item.get("output")
        texts = output if isinstance(output, str) else _texts(output, f"{where}.output")
        messages.append({"role": "tool", "content": texts, "tool_call_id": item.get("call_id")})
    else:
        raise invalid(where, "must be a message, reasoning, a function_call or a function_call_output")


def _assistant(messages: list[_Message]) -> _Message:
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    return messages[-1]


def _texts(parts: object, where: str) -> str:
    texts = []
    for part in parts if isinstance(parts, list) else [parts]:
        fields = part if isinstance(part, dict) else {}
        text = fields.get("text")
        if fields.get("type") not in TEXT_TYPES or not isinstance(text, str):
            raise invalid(where, "must be a text or a list of texts; this model reads text")
        texts.append(text)
    return "".join(texts)


def _tool(tool: object, number: int) -> dict[str, object]:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise ApiError(
            400, f"tools[{number}]: must be of type function; this server runs no tools", param="tools"
        )
    named = ("name", "description", "parameters")
    return {"type": "function", "function": {key: tool[key] for key in named if tool.get(key) is not None}}
