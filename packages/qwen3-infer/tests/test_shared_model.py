"""`serve`, `chat` and `score` over two processes give what one gives, and end with either."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import pytest
from click.testing import CliRunner

from qwen3_infer.cli import main
from qwen3_infer.processes import wire
from qwen3_infer.processes.remote import Ranks, RemoteModel
from qwen3_infer.sampling.logits import Likeliest
from qwen3_infer.sampling.sampling import Sampling
from qwen3_model.errors import Qwen3Error
from qwen3_model.ranks.msrun.cli_options import free_port

SHARABLE = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32,
            "max_position_embeddings": 1024}  # fmt: skip
LONG = "A longer prompt that is read in several pieces. " * 30
NUM_AT_ONCE = 50
LONGEST_S = 300


def two_processes(log_dir):
    return ["--worker-num", "2", "--master-port", str(free_port()), "--log-dir", str(log_dir)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, demo_tokenizer_dir, demo_folder_writer):
    return demo_folder_writer(tmp_path_factory.mktemp("shared") / "tiny", demo_tokenizer_dir, **SHARABLE)


def serve(folder):
    return ["-m", "qwen3_infer", "serve", "--pretrained-model-dir", str(folder), "--port", "0", "--quiet",
            "--max-requests", "4", "--max-tokens-in-cache", "4096"]  # fmt: skip


def connect(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=LONGEST_S)


def complete(client, prompt, **fields):
    wanted = {"model": "tiny", "prompt": prompt, "max_tokens": 24, "temperature": 0} | fields
    return client.completions.create(**wanted).choices[0]


def workers(log_dir):
    """The processes of the job that are left, which all know its folder."""
    mark = f"QWEN3_LOG_DIR={log_dir}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = path.read_bytes().split(b"\0")
        except OSError:
            continue
        found += [int(path.parent.name)] * (mark in variables)
    return found


@pytest.mark.slow
def test_a_server_of_two_processes_answers_as_one_does_and_ends_with_either(
    start_server, folder, tmp_path, wait_until
):
    log_dir = tmp_path / "logs"
    alone, shared = start_server(*serve(folder)), start_server(*serve(folder), *two_processes(log_dir))
    one, two = connect(alone), connect(shared)
    sampled = {"temperature": 0.8, "top_p": 0.9, "seed": 7}
    for prompt, fields in [
        ("Once upon a time", {"max_tokens": 200}), (LONG, {}), (LONG + "goes on", sampled),
        ("Hello", sampled | {"extra_body": {"repetition_penalty": 1.2, "top_k": 20}}),
    ]:  # fmt: skip
        assert complete(two, prompt, **fields).text == complete(one, prompt, **fields).text, fields
    scored = [
        complete(each, LONG, logprobs=1, max_tokens=1, extra_body={"echo": True}).logprobs.token_logprobs
        for each in (one, two)
    ]
    assert scored[0][0] is None
    assert scored[1][1:] == pytest.approx(scored[0][1:], abs=1e-4)
    expected, found = (complete(each, "Hello there", logprobs=2) for each in (one, two))
    assert found.text == expected.text
    np.testing.assert_allclose(found.logprobs.token_logprobs, expected.logprobs.token_logprobs, atol=1e-4)

    prompts = [f"{number} {LONG[: 7 * number]}" for number in range(NUM_AT_ONCE)]
    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        answers = list(pool.map(lambda prompt: complete(two, prompt).text, prompts))
    assert answers == [complete(one, prompt).text for prompt in prompts]

    caught = []

    def wait_for_much():
        try:
            complete(two, "Hello", max_tokens=1000, extra_body={"ignore_eos": True})
        except openai.APIError as error:
            caught.append(error)

    waiting = threading.Thread(target=wait_for_much)
    waiting.start()
    wait_until(lambda: shared.metrics()["qwen3_requests_running"] == 1)
    os.kill(json.loads((log_dir / ".worker_1.state.json").read_text("utf-8"))["pid"], signal.SIGKILL)
    assert shared.process.wait(60) == 1
    waiting.join(10)
    shared.close()
    assert isinstance(caught[0], openai.InternalServerError)
    assert "rank 1 was killed by SIGKILL" in str(caught[0])
    assert "worker_1.log" in shared.lines[-1]
    assert shared.lines[-1].startswith("Error: rank 1 was killed")
    assert not workers(log_dir)


@pytest.mark.slow
def test_a_server_over_two_nodes_ends_in_order(start_server, folder, tmp_path):
    job = ["--worker-num", "2", "--local-worker-num", "1", "--master-port", str(free_port())]
    logs = [tmp_path / "node0", tmp_path / "node1"]
    other = subprocess.Popen(
        [sys.executable, *serve(folder), *job, "--node-rank", "1", "--log-dir", str(logs[1])],
        stderr=subprocess.PIPE,
    )
    with other:
        server = start_server(*serve(folder), *job, "--log-dir", str(logs[0]))
        assert complete(connect(server), "Hello").text
        assert server.end(signal.SIGTERM) == 0
        assert server.lines[-1] == "stopped\n"
        assert other.wait(60) == 0
    assert not workers(logs[0]) + workers(logs[1])


@pytest.mark.slow
def test_a_conversation_over_two_processes_is_that_of_one(folder, tmp_path):
    command = [
        sys.executable, "-m", "qwen3_infer", "chat", "--pretrained-model-dir", str(folder), "--quiet",
        "--no-do-sample", "--max-new-tokens", "12",
    ]  # fmt: skip
    said = []
    for more in ([], two_processes(tmp_path / "logs")):
        done = subprocess.run(
            [*command, *more], input="Hello there\nAnd then?\n", capture_output=True, text=True,
            timeout=LONGEST_S, check=True, cwd=tmp_path,
        )  # fmt: skip
        said.append(done.stdout)
    assert said[0].strip()
    assert said[0] == said[1]
    assert not workers(tmp_path / "logs")


@pytest.mark.slow
def test_a_score_over_two_processes_is_that_of_one(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(LONG, "utf-8")
    totals = []
    for more in ([], two_processes(tmp_path / "logs")):
        arguments = ["score", "--pretrained-model-dir", str(folder), "--data", "text.txt", "--window", "100"]
        found = CliRunner().invoke(main, [*arguments, "--json", "--quiet", *more])
        assert found.exit_code == 0, found.output
        totals.append(json.loads(found.stdout))
    assert totals[0]["num_tokens"] == totals[1]["num_tokens"] > 100
    assert totals[1]["nll"] == pytest.approx(totals[0]["nll"], rel=1e-5)


@pytest.mark.parametrize("command", ["serve", "chat", "score", "eval"])
def test_what_cannot_be_shared_out_is_refused_before_a_process_starts(folder, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("Hello", "utf-8")
    own = {"serve": ["--port", "0"], "chat": [], "score": ["--data", "text.txt"], "eval": ["--tasks", "x"]}
    arguments = [command, "--pretrained-model-dir", str(folder), *own[command]]
    found = CliRunner().invoke(main, [*arguments, "--worker-num", "2", "--join", "False"])
    assert found.exit_code == 2
    assert f"--join False: {command} runs in the foreground" in found.stderr
    if command != "eval":  # which asks for lm_eval before
        found = CliRunner().invoke(main, [*arguments, "--worker-num", "3"])
        assert found.exit_code == 1
        assert "3" in found.stderr.splitlines()[-1]
        assert "num_attention_heads" in found.stderr
    assert not (tmp_path / "output").exists()


def test_messages_arrive_with_their_arrays():
    here, there = socket.socketpair()
    with here, there:
        arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((0,), np.int64), np.array(True)]
        sending = threading.Thread(target=wire.send, args=(here, {"do": "é", "with": [1, [2]]}, arrays))
        sending.start()
        message, found = wire.receive(there)
        sending.join()
        assert message == {"do": "é", "with": [1, [2]]}
        for one, other in zip(found, arrays, strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
        here.close()
        with pytest.raises(OSError, match="gone"):
            wire.receive(there)


@pytest.mark.parametrize(
    "head",
    [
        "nonsense", "[]", "[" * 5000, '{"message": {}}', '{"message": 1, "arrays": []}',
        '{"message": {}, "arrays": [["<f4"]]}', '{"message": {}, "arrays": [["O", [0]]]}',
        '{"message": {}, "arrays": [["<f4", [-1, -1]]]}', '{"message": {}, "arrays": [[4, [0]]]}',
    ],
)  # fmt: skip
def test_what_another_program_sends_is_no_message(head):
    here, there = socket.socketpair()
    with here, there:
        here.sendall(wire.LENGTH.pack(len(head)) + head.encode() + bytes(4))
        with pytest.raises(OSError, match="sends no message of this program"):
            wire.receive(there)


@pytest.fixture
def device_rank():
    """Return a model whose only process stands for one on a device: the likeliest first, all on demand."""
    ranks, asked = Ranks("127.0.0.1", 1), []
    logits = np.random.default_rng(0).normal(size=(2, 300)).astype(np.float32)
    order = np.argsort(-logits, axis=1)[:, :64]

    def work():
        stranger = socket.create_connection(("127.0.0.1", ranks.port))
        wire.send(stranger, {"rank": 0, "secret": 0})  # knows nothing, and is sent away
        link = socket.create_connection(("127.0.0.1", ranks.port))
        wire.send(link, {"rank": 0, "secret": ranks.secret})
        wire.send(link, {"notes": ["a note"]})
        while (message := wire.receive(link)[0])["do"] != "end":
            asked.append(message["do"])
            if message["do"] == "decode":
                wire.send(link, {}, [np.take_along_axis(logits, order, 1), order])
            elif message["do"] == "whole":
                wire.send(link, {}, [logits])
            elif message["do"] == "copy":
                link.close()  # dies
                return
            else:
                facts = {"num_rows": 2, "num_tokens": 512, "unit": 128, "longest": 512}
                wire.send(link, facts | {"pieces": [512, 128], "shares_beginnings": False})

    thread = threading.Thread(target=work)
    thread.start()
    yield ranks, asked, logits
    ranks.close()
    thread.join()


def test_a_devices_logits_come_over_only_when_they_are_asked_for(device_rank):
    ranks, asked, logits = device_rank
    assert ranks.meet() == ["a note"]
    engine = RemoteModel(ranks, "bfloat16").serve_engine(2, 512, 256)
    assert (engine.pieces, engine.unit) == ((512, 128), 128)
    places = [np.zeros(2, np.int32)] * 3
    rows = engine.decode(*places)
    assert all(isinstance(row, Likeliest) for row in rows)
    assert [row.choose(Sampling(temperature=0.0), None) for row in rows] == logits.argmax(1).tolist()
    assert asked == ["serve_engine", "decode"]
    np.testing.assert_array_equal(rows[1].whole(), logits[1])
    np.testing.assert_array_equal(rows[0].whole(), logits[0])
    assert asked == ["serve_engine", "decode", "whole"]


def test_a_process_of_another_node_that_ends_is_noticed_by_who_waits_and_by_who_does_not(monkeypatch):
    monkeypatch.setattr("qwen3_infer.processes.remote.VERDICT_S", 0.3)
    for waits in (True, False):
        ranks = Ranks("127.0.0.1", 2)
        links = [socket.create_connection(("127.0.0.1", ranks.port)) for _ in range(2)]
        for rank, link in enumerate(links):
            wire.send(link, {"rank": rank, "secret": ranks.secret})
        wire.send(links[0], {"notes": []})
        ranks.meet()
        ranks.check()
        assert not ranks.has_failed
        links[1].close()
        if waits:
            with pytest.raises(Qwen3Error, match=r"rank 1 has ended; worker_1\.log"):
                ranks.call({"do": "decode"})
        else:
            ranks.check()
            time.sleep(0.4)
            with pytest.raises(Qwen3Error, match="rank 1 has ended"):
                ranks.check()
        assert ranks.has_failed
        ranks.close()
        links[0].close()


def test_who_waits_for_a_process_that_died_gets_the_launchers_sentence(device_rank):
    ranks, _, _ = device_rank
    ranks.meet()
    engine = RemoteModel(ranks, "bfloat16").serve_engine(2, 512, 256)
    threading.Timer(0.3, ranks.fail, [Qwen3Error("rank 0 was killed; see its log")]).start()
    with pytest.raises(Qwen3Error, match="rank 0 was killed"):
        engine.copy(0, 128, 128)
    with pytest.raises(Qwen3Error, match="rank 0 was killed"):
        engine.decode(*[np.zeros(2, np.int32)] * 3)
