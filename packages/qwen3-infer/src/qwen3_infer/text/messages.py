"""OpenAI's messages and tools as the chat template takes them."""

from collections.abc import Mapping, Sequence

from qwen3_model.errors import FormatError

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
READ_KEYS = {"role", "content", "tool_calls", "reasoning_content", "reasoning"}
# What clients send back of other servers' answers, and who speaks; Qwen3's template reads none of it.
IGNORED_KEYS = {
    "name", "tool_call_id", "refusal", "annotations", "id", "object", "created", "model", "status", "index",
    "finish_reason", "stop_reason", "logprobs", "usage", "provider", "provider_specific_fields",
    "reasoning_details", "reasoning_signature", "reasoning_opaque", "thinking_blocks", "thought_signature",
    "cache_control", "metadata", "citations", "timestamp", "tool_name", "is_error", "additional_kwargs",
}  # fmt: skip


class MessageError(FormatError):
    """A message or a tool that cannot be used."""

    def __init__(self, where: str, rule: str) -> None:
        super().__init__(f"{where}: {rule}")
        self.where, self.rule = where, rule


def read_messages(messages: Sequence[object]) -> list[dict[str, object]]:
    """Return the messages with texts as contents.

    Raises:
        MessageError: One is no message, or has parts that are no text.
    """
    return [_read_message(message, f"messages[{number}]") for number, message in enumerate(messages)]


def _read_message(message: object, where: str) -> dict[str, object]:
    if not isinstance(message, dict):
        raise MessageError(where, "must be an object with role and content")
    named = message.get("role")
    if not isinstance(named, str) or named not in ROLES:
        raise MessageError(f"{where}.role", f"must be one of {', '.join(ROLES)}")
    given = {key for key, value in message.items() if value is not None and value not in ("", [], {}, False)}
    if unknown := sorted(given - READ_KEYS - IGNORED_KEYS):
        raise MessageError(
            where, f"has fields that are not understood here: {', '.join(unknown)}; leave them out"
        )
    role = ROLES[named]
    content = _read_content(message.get("content"), f"{where}.content")
    calls = message.get("tool_calls") or []
    # OpenAI's own objects have null there.
    if content is None and not ("content" in message or calls or message.get("reasoning_content")):
        raise MessageError(f"{where}.content", "is missing")
    if content is None and role not in ("assistant", "tool"):
        raise MessageError(f"{where}.content", "must be a text or a list of parts, not null")
    read: dict[str, object] = {"role": role, "content": content or ""}
    if calls:
        read["tool_calls"] = _read_calls(calls, f"{where}.tool_calls")
    thought = message.get("reasoning_content")
    thought = message.get("reasoning") if thought is None else thought
    if thought is not None:
        if not isinstance(thought, str):
            raise MessageError(f"{where}.reasoning_content", "must be a text")
        read["reasoning_content"] = thought
    return read


def _read_content(content: object, where: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise MessageError(where, "must be a text or a list of parts")
    texts = []
    for part in content:
        is_text = isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        if not is_text:
            raise MessageError(
                where, 'has a part that is no {"type": "text", "text": ...}; this model reads text'
            )
        texts.append(part["text"])
    return "".join(texts)


def _read_calls(calls: object, where: str) -> list[Mapping[str, object]]:
    if not isinstance(calls, list):
        raise MessageError(where, "must be a list")
    return [_read_call(call, f"{where}[{number}]") for number, call in enumerate(calls)]


def _read_call(call: object, where: str) -> Mapping[str, object]:
    fields = call if isinstance(call, dict) else {}
    function = fields.get("function")
    if not (isinstance(function, dict) and isinstance(function.get("name"), str)):
        raise MessageError(where, "must be an object with a function that has a name")
    arguments = function.get("arguments")
    if not isinstance(arguments, str | dict | None):
        raise MessageError(f"{where}.function.arguments", "must be the text of a JSON object")
    return {**fields, "function": {**function, "arguments": arguments or {}}}


def read_tools(tools: Sequence[object]) -> tuple[Mapping[str, object], ...]:
    """Return the functions that the model may call.

    Raises:
        MessageError: One is no function with a name, or its parameters are no object.
    """
    return tuple(_read_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools))


def _read_tool(tool: object, where: str) -> Mapping[str, object]:
    fields = tool if isinstance(tool, dict) else {}
    function = fields.get("function") if fields.get("type") == "function" else None
    if not (isinstance(function, dict) and isinstance(function.get("name"), str) and function["name"]):
        raise MessageError(where, "must be of type function, with a function that has a name")
    if not isinstance(function.get("parameters") or {}, dict):
        raise MessageError(f"{where}.function.parameters", "must be an object, a JSON schema")
    return fields
