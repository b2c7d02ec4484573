"""Answers whose tokens are known, as OpenAI's client reads them: calls, log-probabilities."""

import json
from pathlib import Path

import openai
import pytest

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def server(start_server, serve_dir):
    return start_server(str(Path(__file__).with_name("scripted_server.py")), str(serve_dir))


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def chat(client, text, **fields):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="Qwen3-scripted", messages=messages, **fields)


def say(client, text, **fields):
    return chat(client, f"Say exactly: {text}", **fields)


def test_the_bytes_of_log_probabilities_join_to_the_content(client):
    choice = chat(client, "an emoji", logprobs=True, top_logprobs=2).choices[0]
    entries = choice.logprobs.content
    assert entries[-1].bytes is None  # the end of the turn
    text = b"".join(bytes(entry.bytes or []) for entry in entries).decode("utf-8")
    message = choice.message
    assert text == f"<think>\n{message.reasoning_content}\n</think>\n\n{message.content}"
    parts = [entry for entry in entries if entry.token.startswith("\\x")]
    assert parts
    assert all(byte >= 0x80 for entry in parts for byte in entry.bytes)


def test_parts_of_characters_have_names_and_offsets_of_their_own_at_the_older_endpoint(client):
    prompt = "user\nan emoji"
    choice = client.completions.create(
        model="Qwen3-scripted", prompt=prompt, max_tokens=100, logprobs=3
    ).choices[0]
    logprobs = choice.logprobs
    parts = [token for token in logprobs.tokens if token.startswith("bytes:\\x")]
    assert parts
    assert all(len(top) == 3 for top in logprobs.top_logprobs)
    raw = b"".join(
        bytes.fromhex(token[6:].replace("\\x", "")) if token.startswith("bytes:") else token.encode()
        for token in logprobs.tokens[:-1]
    )
    assert raw.decode("utf-8") == choice.text
    before = [raw_before.decode("utf-8", "ignore") for raw_before in _prefixes(logprobs.tokens[:-1])]
    assert logprobs.text_offset[:-1] == [len(text) for text in before]


def _prefixes(tokens):
    raw = b""
    for token in tokens:
        yield raw
        part = token.startswith("bytes:")
        raw += bytes.fromhex(token[6:].replace("\\x", "")) if part else token.encode()


@pytest.mark.parametrize("stream", [False, True])
def test_half_a_character_in_a_call_is_sent_as_it_was_written(client, stream):
    call = '<tool_call>{"name": "weather", "arguments": {"city": "\\ud83d"}}</tool_call>'
    answer = say(client, call, tools=TOOLS, stream=stream)
    if stream:
        chunks = [chunk.choices[0] for chunk in answer]
        calls = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
        reason = chunks[-1].finish_reason
    else:
        calls, reason = answer.choices[0].message.tool_calls, answer.choices[0].finish_reason
    assert reason == "tool_calls"
    assert [json.loads(call.function.arguments) for call in calls] == [{"city": "\ud83d"}]


def test_a_call_without_its_end_and_one_that_is_none(client):
    call = '<tool_call>\n{"name": "weather", "parameters": {"city": "Oslo"}}'
    choice = say(client, call, tools=TOOLS).choices[0]
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Oslo"}
    assert choice.message.content is None
    deep = '<tool_call>{"name": "weather", "arguments": ' + "[" * 1500
    choice = say(client, deep, tools=TOOLS).choices[0]
    assert (choice.message.tool_calls, choice.message.content, choice.finish_reason) == (None, deep, "stop")
