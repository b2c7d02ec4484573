"""Answers that must be JSON or calls of tools, as grammars for llguidance in its form of Lark."""

import json
from collections.abc import Iterable, Mapping, Sequence

from qwen3_infer.text.messages import MessageError
from qwen3_infer.text.output import CALL, CALL_END
from qwen3_model.command.narrow import as_section
from qwen3_model.text.tokenizer import Qwen3Tokenizer

# JSON on one line, so that a model cannot go on with white space for ever.
FORM = {"whitespace_flexible": False, "item_separator": ",[ ]?", "key_separator": ":[ ]?"}


def read_tool_choice(
    choice: object, tools: Sequence[Mapping[str, object]]
) -> tuple[Mapping[str, object], ...]:
    """Return the tools of which one must be called, none when no call is asked for.

    Args:
        choice: "auto", "none", "required", or an object that names a function.
        tools: The request's.

    Raises:
        MessageError: It is something else, or names a tool that is not there.
    """
    if choice in (None, "auto", "none"):
        return ()
    if choice == "required":
        if not tools:
            raise MessageError("tool_choice", "required needs tools")
        return tuple(tools)
    fields = choice if isinstance(choice, dict) else {}
    function = fields.get("function", fields)
    if not isinstance(function, dict) or fields.get("type") != "function":
        raise MessageError(
            "tool_choice",
            'must be "auto", "none", "required" or {"type": "function", "function": {"name": ...}}',
        )
    named = tuple(tool for tool in tools if _function(tool)["name"] == function.get("name"))
    if not named:
        raise MessageError("tool_choice", f"names {function.get('name')!r}, which is none of the tools")
    return named[:1]


def read_response_format(given: object) -> dict[str, object] | None:
    """Return the JSON schema of the answer, None for any text.

    Raises:
        MessageError: It is none of OpenAI's three forms.
    """
    fields = given if isinstance(given, dict) else {}
    kind = fields.get("type")
    if given is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    described = fields.get("json_schema", fields) if kind == "json_schema" else None
    schema = described.get("schema") if isinstance(described, dict) else None
    if not isinstance(schema, dict):
        raise MessageError(
            "response_format",
            'must be {"type": "text"}, {"type": "json_object"} or '
            '{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}',
        )
    return schema


def write_grammar(
    tokenizer: Qwen3Tokenizer,
    *,
    schema: Mapping[str, object] | None,
    tools: Iterable[Mapping[str, object]],
    several: bool,
    follows_thought: bool,
) -> str:
    """Return the grammar of an answer.

    Args:
        tokenizer: The model's; its tags are tokens where it has them.
        schema: Schema of the answer's JSON; None when the answer must be a call.
        tools: That may be called.
        several: Whether more than one call may follow each other.
        follows_thought: Whether white space may come first.
    """
    rules, answers = [], []
    if schema is not None:
        answers.append("json")
        rules.append(f"json: %json {_schema(schema)}")
    calls = []
    for number, tool in enumerate(tools):
        calls.append(f"call_{number}")
        function = _function(tool)
        begin = _quote('\n{"name": ' + json.dumps(function["name"]) + ', "arguments": ')
        rules.append(
            f"call_{number}: {_tag(tokenizer, CALL)} {begin} arguments_{number} {_quote('}' + chr(10))} "
            f"{_tag(tokenizer, CALL_END)}"
        )
        arguments = as_section(function.get("parameters") or {})
        rules.append(f"arguments_{number}: %json {_schema({'type': 'object', **arguments})}")
    if calls:
        answers.append('call ("\\n" call)*' if several else "call")
        rules.append(f"call: {' | '.join(calls)}")
    space = "space " if follows_thought else ""
    if space:
        rules.append(r"space: /[ \n\r\t]{0,4}/")
    return "\n".join([f"start: {space}answer", f"answer: {' | '.join(answers)}", *rules])


def _function(tool: Mapping[str, object]) -> Mapping[str, object]:
    return as_section(tool["function"])


def _schema(schema: Mapping[str, object]) -> str:
    return json.dumps({**schema, "x-guidance": FORM})


def _quote(text: str) -> str:
    return json.dumps(text)


def _tag(tokenizer: Qwen3Tokenizer, tag: str) -> str:
    """Return a tag as its token, or as text where there is none."""
    return _quote(tag) if tokenizer.added_token_id(tag) is None else tag
