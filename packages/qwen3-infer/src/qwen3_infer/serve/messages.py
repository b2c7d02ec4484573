"""OpenAI's messages and tools as the chat template takes them."""

from collections.abc import Mapping, Sequence
from typing import Any

from qwen3_infer.serve.errors import invalid

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
MESSAGE_KEYS = {
    "role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "refusal", "audio",
    "annotations", "function_call",
}  # fmt: skip


def read_messages(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the messages with texts as contents.

    Raises:
        ApiError: One is no message, or has parts that are no text.
    """
    return [_read_message(message, f"messages[{number}]") for number, message in enumerate(messages)]


def _read_message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise invalid(where, "must be an object with role and content")
    if message.get("role") not in ROLES:
        raise invalid(f"{where}.role", f"must be one of {', '.join(ROLES)}")
    if unknown := sorted(message.keys() - MESSAGE_KEYS):
        raise invalid(where, f"has unknown fields {', '.join(unknown)}")
    role = ROLES[message["role"]]
    content = _read_content(message.get("content"), f"{where}.content")
    calls = message.get("tool_calls") or []
    if content is None and not (role == "assistant" and (calls or message.get("reasoning_content"))):
        raise invalid(f"{where}.content", "is missing")
    read: dict[str, Any] = {"role": role, "content": content or ""}
    if calls:
        read["tool_calls"] = _read_calls(calls, f"{where}.tool_calls")
    thought = message.get("reasoning_content")
    if thought is not None:
        if not isinstance(thought, str):
            raise invalid(f"{where}.reasoning_content", "must be a text")
        read["reasoning_content"] = thought
    return read


def _read_content(content: Any, where: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(where, "must be a text or a list of parts")
    texts = []
    for part in content:
        is_text = isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        if not is_text:
            raise invalid(where, 'has a part that is no {"type": "text", "text": ...}; this model reads text')
        texts.append(part["text"])
    return "".join(texts)


def _read_calls(calls: Any, where: str) -> list[Mapping[str, Any]]:
    if not isinstance(calls, list):
        raise invalid(where, "must be a list")
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not (isinstance(function, dict) and isinstance(function.get("name"), str)):
            raise invalid(where, "must be objects with a function that has a name")
    return calls


def read_tools(tools: Sequence[Any]) -> tuple[Mapping[str, Any], ...]:
    """Return the functions that the model may call.

    Raises:
        ApiError: One is no function with a name.
    """
    for number, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not (
            tool and tool.get("type") == "function" and isinstance(function, dict) and function.get("name")
        ):
            raise invalid(f"tools[{number}]", "must be of type function, with a function that has a name")
    return tuple(tools)
