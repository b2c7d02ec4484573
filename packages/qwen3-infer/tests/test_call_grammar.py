"""What a model may emit around calls of tools: one corpus, whole and in any pieces, beside two other parsers.

The rules of the others are written down here as functions, after vLLM's and SGLang's parsers for Hermes calls
(both of 2025): what they take for calls is compared, not how they cut streams.
"""

import itertools
import json
import random
import re
import sys

import pytest

from qwen3_infer.text.output import ChatOutput

A, Z = "<tool_call>", "</tool_call>"
WEATHER = '{"name": "weather", "arguments": {"city": "Oslo"}}'
OSLO = ("weather", {"city": "Oslo"})
NONE = ("clock", {})
STEEP = '{"name": "f", "arguments": ' + '{"a":' * 5000 + "1" + "}" * 5000 + "}"

# Name: what the model writes, then the content and the calls that come of it.
CORPUS = {
    "a call": (f"{A}\n{WEATHER}\n{Z}", "", [OSLO]),
    "text before it": (f"Let me look.\n{A}\n{WEATHER}\n{Z}", "Let me look.", [OSLO]),
    "text behind it": (f"{A}{WEATHER}{Z}\nDone.", "Done.", [OSLO]),
    "two calls": (f"{A}\n{WEATHER}\n{Z}\n{A}\n{WEATHER}\n{Z}", "", [OSLO, OSLO]),
    "no closing tag": (f"{A}\n{WEATHER}\n", "", [OSLO]),
    "no closing tag before the next call": (f"{A}\n{WEATHER}\n{A}\n{WEATHER}\n{Z}", "", [OSLO, OSLO]),
    "a bracket too many": (f"{A}\n{WEATHER}}}\n{Z}", "", [OSLO]),
    "a list of calls": (f"{A}[{WEATHER}, {WEATHER}]{Z}", "", [OSLO, OSLO]),
    "parameters": (f'{A}{{"name": "weather", "parameters": {{"city": "Oslo"}}}}{Z}', "", [OSLO]),
    "both": (
        f'{A}{{"name": "weather", "parameters": {{}}, "arguments": {{"city": "Oslo"}}}}{Z}', "", [OSLO],
    ),
    "keys in another order": (f'{A}{{"arguments": {{"city": "Oslo"}}, "name": "weather"}}{Z}', "", [OSLO]),
    "arguments as text": (
        f'{A}{{"name": "weather", "arguments": "{{\\"city\\": \\"Oslo\\"}}"}}{Z}', "", [OSLO],
    ),
    "no arguments": (f'{A}{{"name": "clock"}}{Z}', "", [NONE]),
    "null arguments": (f'{A}{{"name": "clock", "arguments": null}}{Z}', "", [NONE]),
    "empty text as arguments": (f'{A}{{"name": "clock", "arguments": ""}}{Z}', "", [NONE]),
    "empty arguments": (f'{A}{{"name": "clock", "arguments": {{}}}}{Z}', "", [NONE]),
    "a line break in a string": (
        f'{A}{{"name": "run", "arguments": {{"code": "a = 1\nb = 2\t"}}}}{Z}',
        "", [("run", {"code": "a = 1\nb = 2\t"})],
    ),
    "the closing tag in a string": (
        f'{A}{{"name": "run", "arguments": {{"code": "{Z}"}}}}{Z}', "", [("run", {"code": Z})],
    ),
    "the opening tag in a string": (
        f'{A}{{"name": "run", "arguments": {{"code": "{A}"}}}}{Z}', "", [("run", {"code": A})],
    ),
    "an escaped quote": (
        f'{A}{{"name": "run", "arguments": {{"code": "say \\"{{\\\\"}}}}{Z}',
        "", [("run", {"code": 'say "{\\'})],
    ),
    "half a character": (
        f'{A}{{"name": "weather", "arguments": {{"city": "\\ud83d"}}}}{Z}',
        "", [("weather", {"city": "\ud83d"})],
    ),
    "a whole character in halves": (
        f'{A}{{"name": "weather", "arguments": {{"city": "\\ud83d\\ude00"}}}}{Z}',
        "", [("weather", {"city": "\U0001f600"})],
    ),
    "a number beyond floats": (f'{A}{{"name": "f", "arguments": {{"x": 1e999}}}}{Z}', None, []),
    "NaN": (f'{A}{{"name": "f", "arguments": {{"x": NaN}}}}{Z}', None, []),
    "a number of many digits": (f'{A}{{"name": "f", "arguments": {{"x": {"9" * 5000}}}}}{Z}', None, []),
    "deep nesting": (f"{A}{STEEP}{Z}", None, []),
    "a deep text as arguments": (
        f'{A}{{"name": "f", "arguments": {json.dumps("[" * 9000)}}}{Z}', None, [],
    ),
    "half a character as the name": (f'{A}{{"name": "\\udfff", "arguments": {{}}}}{Z}', None, []),
    "no name": (f'{A}{{"arguments": {{"city": "Oslo"}}}}{Z}', None, []),
    "an empty name": (f'{A}{{"name": "", "arguments": {{}}}}{Z}', None, []),
    "a name that is no text": (f'{A}{{"name": 7, "arguments": {{}}}}{Z}', None, []),
    "arguments that are a list": (f'{A}{{"name": "f", "arguments": [1]}}{Z}', None, []),
    "arguments that are a number": (f'{A}{{"name": "f", "arguments": 1}}{Z}', None, []),
    "arguments that are other text": (f'{A}{{"name": "f", "arguments": "Oslo"}}{Z}', None, []),
    "a list with something else": (f"{A}[{WEATHER}, 1]{Z}", None, []),
    "an empty list": (f"{A}[]{Z}", None, []),
    "no JSON": (f"{A}\nweather(Oslo)\n{Z}", None, []),
    "nothing": (f"{A}{Z}", None, []),
    "single quotes": (f"{A}{{'name': 'weather', 'arguments': {{}}}}{Z}", None, []),
    "a comma too many": (f'{A}{{"name": "clock", "arguments": {{}},}}{Z}', None, []),
    "cut in the arguments": (f'{A}{{"name": "weather", "arguments": {{"city": "Os', None, []),
    "cut in the tag": ("Look: <tool_ca", None, []),
    "cut in the closing tag": (f"{A}\n{WEATHER}\n</tool_c", None, []),
    "a closing tag alone": (f"so {Z}", None, []),
    "a call that is only talked about": (f"Write {A}{WEATHER} and so on.", None, []),
    "a broken call, then a whole one": (
        f'{A}{{"name": "f}}{Z}\n{A}{WEATHER}{Z}', f'{A}{{"name": "f}}{Z}', [OSLO],
    ),
    "two opening tags": (f"{A}\n{A}\n{WEATHER}\n{Z}", A, [OSLO]),
    "no call at all": ("  It is 3 < 4.\n", None, []),
}  # fmt: skip

# Where the others take something for a call, and we do not, or read it differently.
DIFFERS = {
    ("vllm", "empty text as arguments"): "it passes the text on where the client expects an object",
    ("vllm", "arguments as text"): "it encodes the text twice",
    ("vllm", "null arguments"): "it passes null on where the client expects an object",
    ("vllm", "arguments that are a list"): "the client expects an object",
    ("vllm", "arguments that are a number"): "the client expects an object",
    ("vllm", "arguments that are other text"): "the client expects an object",
    ("vllm", "a deep text as arguments"): "the client expects an object",
    ("vllm", "an empty name"): "no function has it",
    ("vllm", "a name that is no text"): "it fails as a whole",
    ("vllm", "a number beyond floats"): "Infinity is not JSON",
    ("vllm", "NaN"): "NaN is not JSON",
    ("vllm", "half a character as the name"): "no function has it",
    ("sglang", "empty text as arguments"): "as vLLM",
    ("sglang", "arguments as text"): "as vLLM",
    ("sglang", "null arguments"): "as vLLM",
    ("sglang", "arguments that are a list"): "as vLLM",
    ("sglang", "arguments that are a number"): "as vLLM",
    ("sglang", "arguments that are other text"): "as vLLM",
    ("sglang", "a deep text as arguments"): "as vLLM",
    ("sglang", "a name that is no text"): "as vLLM",
    ("sglang", "a number beyond floats"): "as vLLM",
    ("sglang", "NaN"): "as vLLM",
    ("sglang", "half a character as the name"): "as vLLM",
    ("sglang", "a list with something else"): "it drops what is none",
    ("sglang", "cut in the closing tag"): "it drops what is behind the object; we show it, and call nothing",
    ("sglang", "a call that is only talked about"): "it drops what is behind the object",
}


def vllm(text):
    """Take what stands between the tags, or behind the last one, as JSON; all of them are calls, or none."""
    found = re.findall(r"<tool_call>(.*?)</tool_call>|<tool_call>(.*)", text, re.DOTALL)
    try:
        calls = [json.loads(closed or open_) for closed, open_ in found]
        return [(call["name"], call["arguments"]) for call in calls]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return []


def sglang(text):
    """Take a JSON value behind each opening tag, whatever follows it."""
    calls, at = [], 0
    try:
        while (start := text.find(A, at)) >= 0:
            value, at = json.JSONDecoder().raw_decode(text, _skip(text, start))
            for call in value if isinstance(value, list) else [value]:
                if call.get("name"):
                    calls.append((call["name"], call.get("parameters") or call.get("arguments", {})))
    except RecursionError:
        return []
    except (ValueError, AttributeError):
        pass
    return calls


def _skip(text, start):
    at = start + len(A)
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def take_apart(text, cuts=()):
    output = ChatOutput(has_tools=True)
    edges = [0, *cuts, len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(edges)]
    parts = [part for piece in pieces for part in output.push(piece)] + output.push("", is_last=True)
    calls = [(part.name, json.loads(part.text)) for part in parts if part.kind == "call"]
    for part in parts:
        part.text.encode("utf-8")
        part.name.encode("utf-8")
    assert output.num_calls == len(calls)
    return "".join(part.text for part in parts if part.kind == "content"), calls


@pytest.mark.parametrize("name", CORPUS)
def test_the_corpus_is_taken_apart_as_written_down_whole_and_in_any_pieces(name):
    text, content, calls = CORPUS[name]
    expected = (text if content is None else content), calls
    assert take_apart(text) == expected
    rng = random.Random(name)
    sizes = (1, 2, 7) if len(text) < 1000 else (997,)
    for size in sizes:
        assert take_apart(text, range(size, len(text), size)) == expected
    for _ in range(20):
        assert take_apart(text, sorted(rng.sample(range(len(text)), min(5, len(text) - 1)))) == expected


@pytest.fixture
def recursion_limit():
    """Give the other parsers Python's own limit, which parts of MindSpore raise for the whole process."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.usefixtures("recursion_limit")
@pytest.mark.parametrize("other", [vllm, sglang])
@pytest.mark.parametrize("name", CORPUS)
def test_what_another_parser_calls_is_called_here_unless_the_difference_is_written_down(other, name):
    text, _, calls = CORPUS[name]
    theirs = other(text)
    if theirs and theirs != calls:
        assert (other.__name__, name) in DIFFERS
    else:
        assert (other.__name__, name) not in DIFFERS


def test_no_text_raises_and_pieces_do_not_matter():
    fragments = [
        A, Z, "<think>", "</think>", "\n", " ", "{", "}", "[", "]", '"', "\\", "\\ud83d", '"name": "f"',
        '"arguments": ', "{}", ", ", ":", "null", "1e999", WEATHER, "x", "<", "\ud7ff", "\U0001f600",
    ]  # fmt: skip
    weights = [8 if fragment in (A, Z, WEATHER) else 1 for fragment in fragments]
    rng = random.Random(5)
    called = 0
    for _ in range(3000):
        text = "".join(rng.choices(fragments, weights, k=rng.randrange(2, 14)))
        whole = take_apart(text)
        assert take_apart(text, range(1, len(text))) == whole
        assert take_apart(text, sorted(rng.sample(range(len(text)), min(3, len(text) - 1)))) == whole
        called += len(whole[1])
    assert called > 50


def test_many_openings_take_time_in_proportion():
    text = (A + '{"a') * 20_000
    assert take_apart(text, range(4, len(text), 4)) == (text, [])


def test_a_second_opening_of_a_thought_that_the_prompt_began_is_dropped():
    output = ChatOutput(has_tools=False, starts_in_thought=True)
    parts = output.push("<think>\nHm.\n</think>\n\nYes", is_last=True)
    assert [(part.kind, part.text) for part in parts] == [("reasoning", "Hm."), ("content", "Yes")]
