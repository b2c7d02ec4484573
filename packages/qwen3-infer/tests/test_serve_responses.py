"""/v1/responses, /tokenize and /detokenize as OpenAI's client and others use them, and OpenAPI's document."""

import json
import urllib.error
import urllib.request
from pathlib import Path

import openai
import pytest

from qwen3_infer.text.prompt import encode_conversation
from qwen3_model.text.tokenizer import Qwen3Tokenizer

TOOL = {
    "type": "function", "name": "weather", "strict": None,
    "parameters": {
        "type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"],
        "additionalProperties": False,
    },
}  # fmt: skip
CALL = (
    "<think>\nLook it up.\n</think>\n\n"
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
)
MODEL = "Qwen3-scripted"


@pytest.fixture(scope="module")
def server(start_server, serve_dir):
    return start_server(str(Path(__file__).with_name("scripted_server.py")), str(serve_dir))


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def ask(server, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]["message"]


def test_a_response_has_a_thought_and_a_message(client):
    response = client.responses.create(model=MODEL, instructions="Be brief.", input="Good morning")
    thought, message = response.output
    assert (thought.type, thought.content[0].text) == ("reasoning", "A greeting; I answer in kind.")
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert response.output_text == "Hello! I am Qwen3. What would you like to know?"
    assert response.status == "completed"
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens > 20


def test_tokens_of_the_thought_are_counted_by_every_endpoint(client, serve_dir):
    thought = "<think>\nA greeting; I answer in kind.\n</think>"
    number = len(Qwen3Tokenizer.from_dir(serve_dir).encode(thought))
    messages = [{"role": "user", "content": "Good morning"}]
    response = client.responses.create(model=MODEL, input="Good morning")
    assert response.usage.output_tokens_details.reasoning_tokens == number
    whole = client.chat.completions.create(model=MODEL, messages=messages)
    assert whole.usage.completion_tokens_details.reasoning_tokens == number
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(client.chat.completions.create(
        model=MODEL, messages=messages, stream=True, extra_body={"stream_options": options}
    ))  # fmt: skip
    assert chunks[-1].usage == whole.usage
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] <= 1
    assert len(set(counts)) > 10
    assert all(chunk.usage.completion_tokens_details.reasoning_tokens <= number for chunk in chunks)
    plain = client.responses.create(model=MODEL, input="Good morning", reasoning={"effort": "none"})
    assert plain.usage.output_tokens_details.reasoning_tokens in (0, number)


def test_a_stream_builds_the_response_that_ends_it(client):
    events = list(client.responses.create(model=MODEL, input="Good morning", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [events[0].type, events[1].type, events[-1].type] == [
        "response.created", "response.in_progress", "response.completed",
    ]  # fmt: skip
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    thought = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    final = events[-1].response
    assert text == final.output_text == "Hello! I am Qwen3. What would you like to know?"
    assert thought == final.output[0].content[0].text
    for kind in ("output_item", "content_part"):
        added, done = ([e for e in events if e.type == f"response.{kind}.{end}"] for end in ("added", "done"))
        assert len(added) == len(done) == 2


def test_the_clients_own_stream_takes_it(client):
    with client.responses.stream(model=MODEL, input="Good morning") as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text.startswith("Hello! I am Qwen3.")


@pytest.mark.parametrize("stream", [False, True])
def test_a_function_is_called_and_its_output_taken(client, stream):
    fields = {"model": MODEL, "input": f"Say exactly: {CALL}", "tools": [TOOL], "stream": stream}
    answer = client.responses.create(**fields)
    if stream:
        events = list(answer)
        response = events[-1].response
        delta = next(e for e in events if e.type == "response.function_call_arguments.delta")
        done = next(e for e in events if e.type == "response.function_call_arguments.done")
        assert json.loads(delta.delta) == json.loads(done.arguments) == {"city": "Oslo"}
    else:
        response = answer
    _, call = response.output
    assert (call.type, call.name, json.loads(call.arguments)) == (
        "function_call",
        "weather",
        {"city": "Oslo"},
    )
    items = [item.model_dump(exclude_none=True) for item in response.output]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain"}
    question = {"role": "user", "content": [{"type": "input_text", "text": "Good morning"}]}
    following = client.responses.create(model=MODEL, input=[question, *items, result], tools=[TOOL])
    assert following.output_text.startswith("Hello! I am Qwen3.")
    assert following.usage.input_tokens > response.usage.input_tokens - 60


def test_a_forced_call_a_schema_and_a_length(client):
    free = {"model": MODEL, "input": "Good morning", "extra_body": {"enable_thinking": False}}
    response = client.responses.create(
        **free, tools=[TOOL], tool_choice={"type": "function", "name": "weather"}
    )
    assert [json.loads(item.arguments) for item in response.output] == [{"city": "Oslo"}]
    form = {"type": "json_schema", "name": "city", "schema": TOOL["parameters"]}
    response = client.responses.create(**free, text={"format": form})
    assert json.loads(response.output_text) == {"city": "Oslo"}
    response = client.responses.create(**free, max_output_tokens=4)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"previous_response_id": "resp_1"}, "supplied: previous_response_id"),
        ({"background": True}, "background: only False is implemented"),
        ({"tools": [{"type": "web_search"}]}, "this server runs no tools"),
        (
            {"input": [{"type": "message", "role": "user", "content": [{"type": "input_image"}]}]},
            "reads text",
        ),
        ({"input": [{"type": "computer_call"}]}, r"input\[0\]: must be a message"),
        ({"input": []}, "at least one item"),
        ({"input": [7]}, r"input\[0\]"),
        ({"model": "other"}, "does not exist"),
    ],
)
def test_what_cannot_work_is_refused(client, fields, words):
    body = {"model": MODEL, "input": "Hi"} | fields
    with pytest.raises((openai.BadRequestError, openai.NotFoundError), match=words):
        client.post("/responses", body=body, cast_to=object)


def test_texts_and_messages_to_ids_and_back(server, serve_dir):
    tokenizer = Qwen3Tokenizer.from_dir(serve_dir)
    text = "Gr\u00fc\u00dfe \U0001f469 <|im_end|>"
    status, found = ask(server, "/tokenize", {"prompt": text, "return_token_strs": True})
    assert (status, found["tokens"]) == (200, tokenizer.encode(text))
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert found["max_model_len"] == 4096
    assert ask(server, "/detokenize", {"tokens": found["tokens"]}) == (200, {"prompt": text})
    messages = [{"role": "user", "content": "Hi"}]
    status, found = ask(server, "/tokenize", {"model": MODEL, "messages": messages})
    assert (status, found["tokens"]) == (200, encode_conversation(tokenizer, messages))
    for body, words in (
        ({}, "either prompt or messages"),
        ({"prompt": 5}, "prompt: must be a text"),
        ({"prompt": "a" * 900_000}, "at least"),
        ({"prompt": "a", "model": "other"}, "does not exist"),
    ):
        status, message = ask(server, "/tokenize", body)
        assert (status in (400, 404), words in message) == (True, True)
    assert ask(server, "/detokenize", {"tokens": [5000]})[0] == 400


def test_the_document_names_every_path_and_field(server):
    status, document = ask(server, "/openapi.json")
    assert (status, document["openapi"]) == (200, "3.1.0")
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    properties = body["content"]["application/json"]["schema"]["properties"]
    assert properties["top_p"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 1}
    with urllib.request.urlopen(f"{server.url}/docs") as answer:
        page = answer.read().decode()
    assert all(path in page for path in document["paths"])
    assert "response_format" in page
    assert ask(server, "/version/")[0] == ask(server, "/ping")[0] == ask(server, "/v1/models/")[0] == 200
