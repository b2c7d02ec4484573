"""Answers that must be JSON or calls: random weights follow every schema, whole, streamed and in batches."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

SHORT = {"type": "string", "maxLength": 6}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"$ref": "#/$defs/short"},
        "size": {"enum": ["small", "\u5927"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "size", "tags"],
    "additionalProperties": False,
    "$defs": {"short": SHORT},
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}
CITY = {
    "type": "object", "properties": {"city": {"enum": ["Oslo", "K\u00f6ln"]}}, "required": ["city"],
    "additionalProperties": False,
}  # fmt: skip
EMPTY = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "clo\"ck", "parameters": EMPTY}},
]  # fmt: skip
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def client(start_server, serve_dir):
    server = start_server(
        "-m", "qwen3_infer", "serve", "--pretrained-model-dir", str(serve_dir), "--port", "0", "--quiet",
        "--max-requests", "8",
    )  # fmt: skip
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def scripted(start_server, serve_dir):
    server = start_server(str(Path(__file__).with_name("scripted_server.py")), str(serve_dir))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def chat(client, thinking=False, **fields):
    extra = {"enable_thinking": thinking} | fields.pop("extra_body", {})
    fields = {"model": "tiny", "messages": HELLO, "max_tokens": 400, "extra_body": extra} | fields
    return client.chat.completions.create(**fields)


def say(client, text, **fields):
    messages = [{"role": "user", "content": f"Say exactly: {text}"}]
    return client.chat.completions.create(model="Qwen3-scripted", messages=messages, **fields)


def check_thing(text):
    thing = json.loads(text)
    assert thing.keys() == {"name", "size", "tags"}
    assert len(thing["name"]) <= 6
    assert thing["size"] in ("small", "\u5927")
    assert 1 <= len(thing["tags"]) <= 3
    assert all(isinstance(tag, bool) for tag in thing["tags"])


def test_random_weights_follow_a_schema_in_a_batch(client):
    answer = chat(client, response_format=FORMAT, n=16, temperature=1.5, seed=1)
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 16
    for choice in answer.choices:
        check_thing(choice.message.content)
    assert len({choice.message.content for choice in answer.choices}) > 8


def test_a_greedy_stream_is_the_whole_answer_beside_free_ones(client):
    with ThreadPoolExecutor(6) as pool:
        free = [pool.submit(chat, client, max_tokens=100, seed=number) for number in range(5)]
        chunks = list(chat(client, response_format=FORMAT, temperature=0, stream=True))
        assert all(len(each.result().choices[0].message.content) > 0 for each in free)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    check_thing(text)
    assert text == chat(client, response_format=FORMAT, temperature=0).choices[0].message.content


def test_any_object_on_one_line(client):
    answer = chat(client, response_format={"type": "json_object"}, temperature=1.0, seed=3, max_tokens=60)
    choice = answer.choices[0]
    assert choice.message.content.startswith("{")
    assert "\n" not in choice.message.content
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"weather", 'clo"ck'}),
        ({"type": "function", "function": {"name": "weather"}}, {"weather"}),
        ({"type": "function", "function": {"name": 'clo"ck'}}, {'clo"ck'}),
    ],
)
def test_random_weights_call_what_they_must(client, choice, names, stream):
    fields = {"tools": TOOLS, "tool_choice": choice, "temperature": 1.0, "seed": 5, "stream": stream}
    answer = chat(client, extra_body={"parallel_tool_calls": False}, **fields)
    if stream:
        chunks = [chunk.choices[0] for chunk in answer]
        calls = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
        assert not any(chunk.delta.content for chunk in chunks)
        assert chunks[-1].finish_reason == "tool_calls"
    else:
        calls = answer.choices[0].message.tool_calls
        assert answer.choices[0].message.content is None
    assert len(calls) == 1
    assert calls[0].function.name in names
    arguments = json.loads(calls[0].function.arguments)
    if calls[0].function.name == "weather":
        assert arguments["city"] in ("Oslo", "K\u00f6ln")
    else:
        assert arguments == {}


def test_a_thought_is_free_and_the_answer_behind_it_is_not(scripted):
    only = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    text = '<think>\n{"x": 1} or not\n</think>\n\n{"city": "Oslo"}'
    message = say(scripted, text, response_format=only).choices[0].message
    assert message.reasoning_content == '{"x": 1} or not'
    assert message.content == '{"city": "Oslo"}'
    # The model wants to say something else, and to end inside of its thought; without thinking, to think.
    answer = say(scripted, "<think>\nHm.\n</think>\n\nNo JSON for you", response_format=only, max_tokens=200)
    assert answer.choices[0].message.reasoning_content == "Hm."
    assert json.loads(answer.choices[0].message.content)["city"] in ("Oslo", "K\u00f6ln")
    answer = say(scripted, "<think>\nNever", response_format=only, max_tokens=60)
    assert answer.choices[0].finish_reason == "length"
    answer = say(
        scripted, "<think>\nHm.\n</think>", response_format=only, extra_body={"enable_thinking": False}
    )
    assert json.loads(answer.choices[0].message.content)["city"] in ("Oslo", "K\u00f6ln")
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    thought = "<think>\nHm.\n</think>\n\n"
    message = say(scripted, thought + call, tools=TOOLS, tool_choice="required").choices[0].message
    assert (message.reasoning_content, message.tool_calls[0].function.name) == ("Hm.", "weather")


def test_tools_that_may_be_called_leave_the_answer_in_json(scripted):
    only = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    for text, number in ((call, 1), ('{"city": "Oslo"}', 0)):
        message = say(scripted, text, tools=TOOLS, response_format=only).choices[0].message
        assert len(message.tool_calls or ()) == number


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "string", "minLength": 5, "maxLength": 2}, "Unsatisfiable schema: minLength"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "'a' is unsatisfiable"),
        ({"type": "array", "uniqueItems": True}, "Unimplemented keys"),
        ({"$ref": "#/nope"}, "does not exist"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "strin"}, "Invalid type: strin"),
    ],
)
def test_a_schema_that_cannot_be_done_is_refused_with_the_reason(client, schema, reason):
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match=reason) as found:
        chat(client, response_format=named)
    assert found.value.body["param"] == "response_format"
    assert "json:" not in found.value.message  # nothing of the grammar's own text
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"properties": {"a": schema}, "required": ["a"]}},
    }
    with pytest.raises(openai.BadRequestError, match="the JSON schema cannot be followed"):
        chat(client, tools=[tool], tool_choice="required")
    assert chat(client, tools=[tool], max_tokens=2).choices[0].finish_reason == "length"


def test_pydantic_models_come_back_parsed(client):
    from pydantic import BaseModel, Field

    class Thing(BaseModel):
        number: int = Field(ge=0, le=99)
        colour: str = Field(max_length=5)

    answer = client.chat.completions.parse(
        model="tiny", messages=HELLO, response_format=Thing, max_tokens=200, temperature=1.0, seed=2,
        extra_body={"enable_thinking": False},
    )  # fmt: skip
    assert 0 <= answer.choices[0].message.parsed.number <= 99


def test_lengths_penalties_and_biases(client):
    def complete(**fields):
        extra = fields.pop("extra_body", {})
        return client.completions.create(
            model="tiny", prompt="Once", extra_body=extra, **({"max_tokens": 40, "temperature": 0} | fields)
        )

    free = complete(logprobs=0).choices[0]
    assert (
        complete(logit_bias={"77": 100}, max_tokens=5, logprobs=0).choices[0].logprobs.tokens
        == [complete(logit_bias={"77": 100}, max_tokens=1, logprobs=0).choices[0].logprobs.tokens[0]] * 5
    )
    several = complete(frequency_penalty=2.0, logprobs=0).choices[0].logprobs.tokens
    assert len(set(several)) > len(set(free.logprobs.tokens)) or len(set(several)) == 40
    stop_id = {"stop_token_ids": [77]}
    biased = {"logit_bias": {"77": 100}}
    assert complete(extra_body=stop_id, **biased).usage.completion_tokens == 1
    assert complete(extra_body=stop_id | {"min_tokens": 7}, **biased).usage.completion_tokens == 8
    everything = complete(extra_body={"ignore_eos": True}, max_tokens=-1)
    assert everything.usage.total_tokens == 2048 or everything.choices[0].finish_reason == "length"
    assert complete(extra_body={"top_k": -1, "skip_special_tokens": True, "best_of": 1}, stop="").choices
    assert complete(top_p=0, temperature=1.0, seed=9).choices[0].text == free.text
