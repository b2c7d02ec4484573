"""An answer taken apart: thought, text, calls; the same however it is cut into pieces."""

import json

import pytest

from qwen3_infer.text.output import ChatOutput, split_answer

THOUGHT = "<think>\nIs 2 < 3?\n\nYes.\n</think>\n\nIt is."
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "K\u00f6ln"}}\n</tool_call>'


def take_apart(text, size=None, **options):
    output = ChatOutput(has_tools=options.pop("has_tools", False), **options)
    pieces = [text[at : at + size] for at in range(0, len(text), size)] if size else [text]
    parts = [part for piece in pieces for part in output.push(piece)] + output.push("", is_last=True)
    joined = {"reasoning": "", "content": ""}
    calls = []
    for part in parts:
        if part.kind == "call":
            calls.append((part.name, json.loads(part.text)))
        else:
            joined[part.kind] += part.text
    return joined["reasoning"], joined["content"], calls


@pytest.mark.parametrize("size", [1, 2, 3, 7, None])
class TestAnyPieces:
    def test_a_thought_stands_before_the_answer(self, size):
        assert take_apart(THOUGHT, size) == ("Is 2 < 3?\n\nYes.", "It is.", [])

    def test_a_thought_that_the_prompt_began_has_no_opening(self, size):
        text = THOUGHT.removeprefix("<think>\n")
        assert take_apart(text, size, starts_in_thought=True) == ("Is 2 < 3?\n\nYes.", "It is.", [])

    def test_a_thought_that_never_ends_is_all_there_is(self, size):
        assert take_apart("<think>\nOn and on </th", size) == ("On and on </th", "", [])

    def test_text_without_a_thought_is_the_answer_as_it_stands(self, size):
        text = "  1 <think> 2 </think>\n <thin"
        assert take_apart(text, size) == ("", text, [])

    def test_an_empty_thought_is_none(self, size):
        assert take_apart("<think>\n\n</think>\n\nYes", size) == ("", "Yes", [])

    def test_calls_are_taken_out_when_there_are_tools(self, size):
        call = ("weather", {"city": "K\u00f6ln"})
        assert take_apart(f"Wait.\n{CALL}\n{CALL}", size, has_tools=True) == ("", "Wait.", [call, call])
        assert take_apart(CALL, size) == ("", CALL, [])

    def test_a_call_that_is_none_stays_text(self, size):
        broken = "<tool_call>\n{not json}\n</tool_call>"
        assert take_apart(broken, size, has_tools=True) == ("", broken, [])
        cut = '<tool_call>\n{"name": "weath'
        assert take_apart(cut, size, has_tools=True) == ("", cut, [])

    def test_a_thought_then_a_call(self, size):
        text = f"<think>\nLook it up.\n</think>\n\n{CALL}"
        assert take_apart(text, size, has_tools=True) == (
            "Look it up.", "", [("weather", {"city": "K\u00f6ln"})],
        )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", ("", "plain")),
        ("<think>\nhm\n</think>\n\nyes", ("hm", "yes")),
        ("hm\n</think>\nyes", ("", "hm\n</think>\nyes")),
        ("<think>a</think>b</think>c", ("a", "b</think>c")),
        ("<think>\nnever ends", ("never ends", "")),
    ],
)
def test_a_whole_text_is_divided_as_a_stream(text, expected):
    assert split_answer(text, starts_in_thought=False) == (*expected, [])


def test_what_is_certain_comes_at_once():
    output = ChatOutput(has_tools=True)
    assert [part.text for part in output.push("Hello <tool")] == ["Hello"]
    assert [part.text for part in output.push("box>")] == [" <toolbox>"]
