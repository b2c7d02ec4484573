"""Messages as clients send them back from other servers."""

import pytest

from qwen3_infer.text.messages import MessageError, read_messages, read_tools

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    "extra",
    [
        {"reasoning_details": [{"type": "x"}], "provider_specific_fields": {"a": 1}, "id": "msg_1"},
        {"refusal": None, "audio": None, "function_call": None, "anything": None, "prefix": False},
        {"annotations": [], "images": [], "thinking_blocks": [{}], "model": "other"},
    ],
)
def test_fields_that_change_nothing_pass(extra):
    (read,) = read_messages([{"role": "assistant", "content": "Yes", **extra}])
    assert read == {"role": "assistant", "content": "Yes"}


def test_a_thought_has_two_names():
    for name in ("reasoning", "reasoning_content"):
        (read,) = read_messages([{"role": "assistant", "content": "Yes", name: "Hm"}])
        assert read["reasoning_content"] == "Hm"


@pytest.mark.parametrize("role", ["assistant", "tool"])
def test_null_is_an_empty_content_of_answers_and_results(role):
    assert read_messages([{"role": role, "content": None}]) == [{"role": role, "content": ""}]


@pytest.mark.parametrize(
    ("given", "read"), [({}, {}), ({"arguments": None}, {}), ({"arguments": "{}"}, "{}")]
)
def test_a_call_may_have_no_arguments(given, read):
    (message,) = read_messages(
        [{"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", **given}}]}]
    )
    assert message["tool_calls"][0]["function"]["arguments"] == read


@pytest.mark.parametrize(
    ("message", "where", "words"),
    [
        ({"role": "user", "content": None}, "messages[0].content", "not null"),
        ({"role": "assistant"}, "messages[0].content", "is missing"),
        ({"role": "user", "content": "a", "weight": 2}, "messages[0]", "not understood here: weight"),
        ({"role": "assistant", "content": "", "function_call": {"a": 1}}, "messages[0]", "function_call"),
        ({"role": "assistant", "content": "", "audio": {"id": "a"}}, "messages[0]", "audio"),
        (
            {"role": "assistant", "tool_calls": [CALL, {"function": {"name": "f", "arguments": [1]}}]},
            "messages[0].tool_calls[1].function.arguments", "the text of a JSON object",
        ),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[0].tool_calls[0]", "that has a name"),
    ],
)  # fmt: skip
def test_what_would_change_something_is_named(message, where, words):
    with pytest.raises(MessageError, match=words) as found:
        read_messages([message])
    assert found.value.where == where


@pytest.mark.parametrize(
    ("tool", "where"),
    [
        (3, "tools[0]"),
        ({"type": "web_search"}, "tools[0]"),
        ({"type": "function", "function": {"name": ""}}, "tools[0]"),
        (
            {"type": "function", "function": {"name": "f", "parameters": ["a"]}},
            "tools[0].function.parameters",
        ),
        ({"type": "function", "function": {"name": "f", "parameters": "a"}}, "tools[0].function.parameters"),
    ],
)
def test_what_is_no_tool_is_refused_by_its_place(tool, where):
    with pytest.raises(MessageError) as caught:
        read_tools([tool])
    assert caught.value.where == where


def test_a_tool_needs_no_parameters():
    tools = [
        {"type": "function", "function": {"name": "f"} | given, "strict": True}
        for given in ({}, {"parameters": None}, {"parameters": {}})
    ]
    assert read_tools(tools) == tuple(tools)
