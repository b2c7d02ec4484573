"""A small server under load, ill-treated and ended: what it refuses, keeps serving, and leaves behind."""

import asyncio
import json
import signal
import socket
import threading
import urllib.error
import urllib.request

import openai
import pytest

KEY = "correct horse battery staple"
MEGABYTE = 2**20
LONG = 60_000
"""Tokens of a request that lasts until its test lets go of it: minutes, on any machine."""


@pytest.fixture(scope="module")
def long_dir(tmp_path_factory, demo_folder_writer, demo_tokenizer_dir):
    """Return a model folder whose context holds LONG tokens."""
    directory = tmp_path_factory.mktemp("load") / "tiny"
    return demo_folder_writer(
        directory, demo_tokenizer_dir, hidden_size=32, max_position_embeddings=LONG + 100
    )


def arguments(long_dir, port=0):
    return (
        "-m", "qwen3_infer", "serve", "--pretrained-model-dir", str(long_dir), "--port", str(port),
        "--quiet", "--max-requests", "3", "--max-tokens-in-cache", str(2 * LONG + 500), "--max-queue", "200",
        "--queue-timeout", "300", "--send-timeout", "2", "--api-key", KEY,
    )  # fmt: skip


@pytest.fixture(scope="module")
def server(start_server, long_dir):
    return start_server(*arguments(long_dir))


@pytest.fixture
def keep_busy(server, wait_until):
    """Return a function that sends requests which last until their connections are closed."""
    wires = []

    def keep(count, max_tokens=LONG):
        for _ in range(count):
            wires.append(Wire(server))
            wires[-1].send(max_tokens=max_tokens, ignore_eos=True)
        wait_until(lambda: value(server, "qwen3_requests_running") == count)
        return wires

    yield keep
    for wire in wires:
        wire.socket.close()
    wait_until(lambda: is_idle(server))


@pytest.fixture(scope="module")
def client(server):
    with connect(server) as client:
        yield client


def connect(server, client=openai.OpenAI):
    # The client's own limit to get a connection is 5 s, which 200 at once may take on a busy machine.
    return client(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=300)


def complete(client, prompt="Hello", **fields):
    return client.completions.create(**{"model": "tiny", "prompt": prompt, "max_tokens": 2} | fields)


def value(server, name):
    return server.metrics(KEY)[name]


def is_idle(server):
    found = server.metrics(KEY)
    return found["qwen3_cache_tokens_used"] == found["qwen3_requests_running"] == 0


class Wire:
    """A connection by hand."""

    def __init__(self, server, receive_bytes=None):
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(60)
        self.socket.connect(("127.0.0.1", server.port))

    def send_head(self, length, path="/v1/completions"):
        lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}",
                 "Content-Type: application/json", length, "", ""]  # fmt: skip
        self.socket.sendall("\r\n".join(lines).encode())

    def send(self, **fields):
        body = json.dumps({"model": "tiny", "prompt": "Hello", **fields}).encode()
        self.send_head(f"Content-Length: {len(body)}")
        self.socket.sendall(body)

    def read(self, until):
        found = b""
        while until not in found:
            part = self.socket.recv(65536)
            if not part:
                break
            found += part
        return found


def test_two_hundred_connections_at_once_are_all_answered(server):
    async def ask():
        async with connect(server, openai.AsyncOpenAI) as many:
            made = [
                many.completions.create(model="tiny", prompt=f"Request {n}", max_tokens=2 + n % 5)
                for n in range(200)
            ]
            return await asyncio.gather(*made)

    answers = asyncio.run(ask())
    assert [answer.usage.completion_tokens for answer in answers] == [2 + n % 5 for n in range(200)]


def test_more_than_the_queue_holds_are_told_when_to_come_again(server, keep_busy):
    running = keep_busy(3, max_tokens=LONG // 2)

    async def ask():
        async with connect(server, openai.AsyncOpenAI) as many:
            made = [many.completions.create(model="tiny", prompt="Hello", max_tokens=2) for _ in range(210)]
            asked = [asyncio.ensure_future(each) for each in made]
            while sum(each.done() for each in asked) < 10:
                await asyncio.sleep(0.01)
            for wire in running:
                wire.socket.close()
            return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(ask())
    refused = [each for each in answers if isinstance(each, Exception)]
    assert len(refused) == 10
    for error in refused:
        assert isinstance(error, openai.RateLimitError)
        assert 1 <= int(error.response.headers["retry-after"]) <= 60
    assert all(each.usage.completion_tokens == 2 for each in answers if each not in refused)


def test_a_request_that_does_not_fit_the_cache_now_waits_for_its_turn(server, client, keep_busy, wait_until):
    running = keep_busy(2)
    assert value(server, "qwen3_cache_tokens_used") > 2 * LONG
    found = []
    waiting = threading.Thread(target=lambda: found.append(complete(client, max_tokens=600)))
    waiting.start()
    wait_until(lambda: value(server, "qwen3_requests_waiting") == 1)
    assert not found
    for wire in running:
        wire.socket.close()
    waiting.join(60)
    assert found[0].usage.completion_tokens == 600


def test_the_slot_of_a_client_that_leaves_is_free_at_once(server, wait_until):
    gone, before = value(server, "qwen3_disconnects_total"), len(departures(server))
    wire = Wire(server)
    wire.send(max_tokens=LONG, ignore_eos=True, stream=True)
    assert b"200 OK" in wire.read(b"data: ")
    assert not is_idle(server)
    wire.socket.close()
    wait_until(lambda: is_idle(server))
    wait_until(lambda: value(server, "qwen3_disconnects_total") == gone + 1)
    wait_until(lambda: len(departures(server)) == before + 1)
    record = departures(server)[-1]
    assert record["completion_tokens"] < LONG
    assert record["finish"] == "unfinished"


def test_a_client_that_leaves_before_an_answer_that_does_not_stream_frees_its_slot_too(server, wait_until):
    before = len(departures(server))
    wire = Wire(server)
    wire.send(max_tokens=LONG, ignore_eos=True)
    wait_until(lambda: not is_idle(server))
    wire.socket.close()
    wait_until(lambda: is_idle(server))
    wait_until(lambda: len(departures(server)) == before + 1)
    assert departures(server)[-1]["completion_tokens"] < LONG


def departures(server):
    return [record for record in server.records() if record.get("client_gone")]


def test_a_client_that_does_not_read_holds_nobody_up_and_is_given_up(server, client, wait_until):
    gone = value(server, "qwen3_disconnects_total")
    wire = Wire(server, receive_bytes=4096)
    wire.send(max_tokens=LONG, ignore_eos=True, stream=True, logprobs=20, n=2)
    wait_until(lambda: not is_idle(server))
    assert complete(client).usage.completion_tokens == 2
    wait_until(lambda: value(server, "qwen3_disconnects_total") == gone + 1, limit_s=60)
    wait_until(lambda: is_idle(server))
    wire.socket.close()


@pytest.mark.parametrize("length", ["Content-Length: 104857600", "Transfer-Encoding: chunked"])
def test_a_body_of_100_megabytes_is_refused_without_being_kept(server, client, length, wait_until):
    before, before_lines = server.resident_bytes(), len(server.records())
    wire = Wire(server)
    wire.send_head(length)
    chunk = b" " * MEGABYTE
    if "chunked" in length:
        chunk = b"100000\r\n" + chunk + b"\r\n"
    try:
        for _ in range(100):
            wire.socket.sendall(chunk)
    except OSError:
        pass  # the server has hung up
    else:
        pytest.fail("the server took it all")
    assert server.resident_bytes() - before < 32 * MEGABYTE
    assert complete(client).usage.completion_tokens == 2
    wait_until(lambda: any(record["status"] == 413 for record in server.records()[before_lines:]))


def test_a_large_body_is_answered_with_the_limit_before_it_is_sent(server):
    wire = Wire(server)
    wire.send_head("Content-Length: 104857600")
    found = wire.read(b"bytes")
    assert b"413" in found.splitlines()[0]
    assert b"larger than 4194304 bytes" in found


def test_a_body_that_never_comes_is_given_up(server):
    wire = Wire(server)
    wire.send_head("Content-Length: 100")
    assert b"408" in wire.read(b"\r\n")


def test_a_line_that_is_no_http_is_refused(server, client):
    wire = Wire(server)
    wire.socket.sendall(b"\x16\x03\x01 hello\r\n\r\n")
    assert b"400" in wire.read(b"\r\n")
    assert complete(client).usage.completion_tokens == 2


@pytest.mark.parametrize("key", ["", "wrong", KEY[:-1], KEY + "x", "\u00fc" * 10])
def test_a_wrong_key_is_refused(server, key):
    for path in ("/v1/models", "/v1/completions", "/metrics", "/v1/nothing"):
        request = urllib.request.Request(server.url + path, headers={"Authorization": f"Bearer {key}"})
        with pytest.raises(urllib.error.HTTPError) as found:
            urllib.request.urlopen(request)
        assert found.value.code == 401
        assert found.value.headers["www-authenticate"] == "Bearer"
    with urllib.request.urlopen(f"{server.url}/health") as answer:
        assert json.loads(answer.read()) == {"status": "ok"}


def test_a_thousand_requests_leave_no_memory_behind(server, client, record_property):
    resident = {}

    def ask(numbers):
        for number in numbers:
            complete(client, f"Request number {number}", logprobs=1)

    for first, last in ((0, 100), (100, 1000)):
        threads = [threading.Thread(target=ask, args=(range(first + start, last, 4),)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        resident[last] = server.resident_bytes()
    record_property("resident_bytes", resident)
    assert resident[1000] - resident[100] < 8 * MEGABYTE
    assert is_idle(server)


def test_a_killed_server_starts_again_at_its_address_and_the_same(server, client, start_server, serve_dir):
    before = complete(client, max_tokens=20).choices[0].text
    assert server.end(signal.SIGKILL) == -signal.SIGKILL
    again = start_server(*arguments(serve_dir, server.port))
    assert again.port == server.port
    with connect(again) as client:
        assert complete(client, max_tokens=20).choices[0].text == before
        _ends_when_told(again, client)


def _ends_when_told(server, client):
    """Check that what runs is finished after SIGTERM, nobody new gets in, and the process exits with 0."""
    stream = complete(client, max_tokens=600, stream=True)
    next(stream)
    server.process.send_signal(signal.SIGTERM)
    num_tokens = 1 + sum(1 for _ in stream)
    assert num_tokens >= 500  # a few tokens have no text of their own
    assert server.process.wait(60) == 0
    with pytest.raises(openai.APIConnectionError):
        complete(client)
    server.close()
    assert server.lines[-1] == "stopped\n"
