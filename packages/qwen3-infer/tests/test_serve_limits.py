"""What ends a request that takes too long, and a model that fails; refusals of the command itself."""

import json
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import openai
import pytest
from click.testing import CliRunner

from qwen3_infer.cli import main

LIMITS = {
    "max_requests": 2, "max_queue": 2, "queue_timeout_s": 0.3, "send_timeout_s": 1, "drain_timeout_s": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def start(start_server, serve_dir):
    script = Path(__file__).with_name("scripted_server.py")
    return lambda **limits: start_server(str(script), str(serve_dir), json.dumps(LIMITS | limits))


@pytest.fixture(scope="module")
def server(start):
    return start()


@pytest.fixture(scope="module")
def client(server):
    with connect(server) as client:
        yield client


@pytest.fixture(scope="module")
def hasty_server(start):
    return start(request_timeout_s=2)


def connect(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def chat(client, text, **fields):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="Qwen3-scripted", messages=messages, **fields)


def test_an_answer_that_takes_too_long_is_ended(hasty_server, wait_until):
    with connect(hasty_server) as client:
        with pytest.raises(openai.InternalServerError, match="the answer took more than 2 s") as found:
            chat(client, "a long one")
        assert found.value.status_code == 504
    wait_until(lambda: hasty_server.metrics()["qwen3_requests_running"] == 0)


def test_a_stream_that_takes_too_long_ends_with_an_error(hasty_server):
    with connect(hasty_server) as client:
        chunks = chat(client, "a long one", stream=True)
        assert [next(chunks).choices[0].delta.content for _ in range(2)] == ["", "and"]
        with pytest.raises(openai.APIError, match="the answer took more than 2 s"):
            list(chunks)


def test_who_waits_too_long_for_room_is_told_when_to_come_again(client, server):
    streams = [chat(client, "a long one", stream=True) for _ in range(2)]
    for stream in streams:
        next(stream)
    with pytest.raises(openai.RateLimitError, match=r"there was no room within 0\.3 s") as found:
        chat(client, "Good morning")
    assert int(found.value.response.headers["retry-after"]) >= 1
    for stream in streams:
        stream.close()


def test_more_choices_than_can_ever_wait_are_refused(client):
    # To come again, as a full queue says, would not help.
    with pytest.raises(
        openai.BadRequestError, match="5 completions at once are more than the 4 that may wait"
    ):
        chat(client, "Good morning", n=5)


def test_tokens_are_counted_whoever_is_gone(client, server, wait_until):
    """What never got room was not read; what was made for a client that left was made."""
    before = server.metrics()
    streams = [chat(client, "a long one", stream=True) for _ in range(2)]
    for stream in streams:
        next(stream)
    with pytest.raises(openai.RateLimitError, match="no room within"):
        chat(client, "Good morning " * 50)
    for stream in streams:
        stream.close()
    wait_until(lambda: server.metrics()["qwen3_requests_running"] == 0)
    after = server.metrics()
    made = after["qwen3_completion_tokens_total"] - before["qwen3_completion_tokens_total"]
    read = after["qwen3_prompt_tokens_total"] - before["qwen3_prompt_tokens_total"]
    assert made > 2
    assert 0 < read < 50


def test_a_model_that_fails_is_an_error_for_those_who_ran_and_works_for_the_next(client, server, wait_until):
    other = chat(client, "a long one", stream=True)
    next(other)
    with pytest.raises(openai.InternalServerError, match="the model failed; the log says why"):
        chat(client, "crash")
    with pytest.raises(openai.APIError, match="the model failed"):
        list(other)
    wait_until(lambda: "the model failed: the device is gone\n" in server.lines)
    assert health(server) == (503, {"status": "failing"})
    answer = chat(client, "Good morning")
    assert answer.choices[0].message.content.startswith("Hello! I am Qwen3.")
    assert answer.choices[0].message.reasoning_content == "A greeting; I answer in kind."
    assert health(server) == (200, {"status": "ok"})
    assert server.metrics()["qwen3_cache_tokens_used"] == 0


def health(server):
    try:
        with urllib.request.urlopen(f"{server.url}/health") as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_nan_is_an_error_for_its_own_request_alone(client):
    other = chat(client, "Good morning", stream=True)
    next(other)
    with pytest.raises(openai.InternalServerError, match="the model computes NaN"):
        chat(client, "Please break")
    assert list(other)[-1].choices[0].finish_reason == "stop"


def test_a_client_that_sends_the_head_of_a_request_byte_by_byte_is_hung_up_on(server):
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.settimeout(30)
        started_s = time.monotonic()
        ended = False
        while not ended and time.monotonic() - started_s < 20:
            try:
                slow.sendall(b"G")
                slow.settimeout(0.2)
                ended = slow.recv(100) == b""
            except TimeoutError:
                pass
            except OSError:
                ended = True
        assert ended


def test_what_does_not_finish_in_time_is_cut_when_the_server_ends(client, server):
    stream = chat(client, "a long one", stream=True)
    next(stream)
    server.process.send_signal(signal.SIGTERM)
    with pytest.raises((openai.APIError, openai.APIConnectionError)):
        list(stream)
    assert server.process.wait(30) == 0


def serve(*arguments):
    before = "mindspore" in sys.modules
    found = CliRunner().invoke(main, ["serve", *map(str, arguments)])
    assert ("mindspore" in sys.modules) == before
    return found.exit_code, " ".join(found.output.split())


def test_other_machines_are_let_in_with_a_key_or_on_purpose(serve_dir):
    model = ("--pretrained-model-dir", serve_dir)
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        code, text = serve(*model, "--host", host)
        assert code == 2
        assert "there is no API key; give --api-key, or --insecure to let anyone in" in text
    # Goes on to bind, to an address that no machine has.
    code, text = serve(*model, "--host", "192.0.2.1", "--insecure")
    assert (code, "cannot be bound" in text) == (2, True)


def test_an_address_in_use_is_refused_before_the_model_is_loaded(serve_dir):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, text = serve("--pretrained-model-dir", serve_dir, "--port", taken.getsockname()[1])
    assert code == 2
    assert "cannot be bound: Address already in use; choose another" in text


def test_a_key_may_have_any_letters(start_server, serve_dir):
    script = Path(__file__).with_name("scripted_server.py")
    locked = start_server(str(script), str(serve_dir), json.dumps({"api_key": "S\u00e9same"}))
    request = urllib.request.Request(f"{locked.url}/v1/models")
    request.add_header("Authorization", "Bearer S\u00e9same".encode().decode("latin-1"))
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200


def test_an_empty_key_and_a_seed_of_the_server_are_refused(serve_dir, tmp_path):
    (tmp_path / "key").write_text("\n", "utf-8")
    code, text = serve("--pretrained-model-dir", serve_dir, "--api-key-file", tmp_path / "key")
    assert (code, "the API key is empty" in text) == (2, True)
    code, text = serve("--pretrained-model-dir", serve_dir, "--seed", 3)
    assert (code, "a request to the server has a seed of its own" in text) == (2, True)


def test_names_and_keys_that_no_client_could_send_are_refused(serve_dir, tmp_path):
    model = ("--pretrained-model-dir", serve_dir)
    for option, value, sentence in (
        ("--api-key", "two\nlines", "the API key is not one line of text"),
        ("--api-key", "\udcff", "the API key is not one line of text"),
        ("--model-name", "\udcff", "the model's name '\\udcff' is no UTF-8; give clients another one as"),
        ("--host", "ü..x", "is no address of this machine"),
    ):
        code, text = serve(*model, option, value, "--insecure")
        assert (code, sentence in text) == (2, True), text
    (tmp_path / "key").write_bytes(b"\xff")
    code, text = serve(*model, "--api-key-file", tmp_path / "key")
    assert (code, "byte 1 (0xff) is no UTF-8" in text) == (1, True)
