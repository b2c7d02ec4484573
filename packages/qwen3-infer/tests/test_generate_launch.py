"""Several processes that share a model out generate what one does; what cannot be shared out is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from qwen3_infer.cli import main
from qwen3_infer.generate.shown import NAME, ShownReader, ShownWriter
from qwen3_model.checkpoints.safetensors_file import (
    TensorPlan,
    from_float32,
    open_safetensors,
    write_safetensors,
)
from qwen3_model.config import Qwen3Config
from qwen3_model.ranks.msrun.checks import LaunchSettings
from qwen3_model.ranks.msrun.cli_options import free_port
from qwen3_model.ranks.msrun.launcher import Job, launch_workers

HERE = Path(__file__).parent
LONGEST_S = 300
# Sums over shards round differently; log-probabilities of the random models are of the order of 1 to 10.
LOGPROB_ATOL = 1e-4
SHARABLE = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32,
            "max_position_embeddings": 512}  # fmt: skip
PROMPTS = ["Once upon a time", "The capital of France is", "A longer prompt, " * 12]
RUNS = {
    "greedy, 256 tokens": ["--no-do-sample", "--max-new-tokens", "256", "--logprobs"],
    "portable, sampled": ["--temperature", "0.8", "--top-p", "0.9", "--seed", "7",
                          "--num-return-sequences", "2", "--repetition-penalty", "1.2",
                          "--max-new-tokens", "24", "--kernels", "portable"],
    "untied, bfloat16, adapted": ["--no-do-sample", "--max-new-tokens", "16", "--logprobs"],
}  # fmt: skip


@pytest.fixture
def folder(make_demo_folder):
    """Return a model whose heads, vocabulary and feed-forward two processes can share."""
    return make_demo_folder(**SHARABLE)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments, command="generate"):
        return CliRunner().invoke(main, [command, *map(str, arguments)])

    return run


def arguments_of(kind, folder, prompts, out):
    return ["--pretrained-model-dir", str(folder), "--predict-data", str(prompts), "--quiet",
            "--predict-batch-size", "3", *RUNS[kind],
            "--output", f"{out}.jsonl", "--save-file", f"{out}.txt"]  # fmt: skip


def to_bfloat16(folder):
    file = open_safetensors(folder / "model.safetensors")
    tensors = [
        (TensorPlan(name, "BF16", info.shape), [from_float32(file.float32(name), "BF16").tobytes()])
        for name, info in file.tensors.items()
    ]
    write_safetensors(folder / "bfloat16.safetensors", tensors, {"format": "pt"})
    (folder / "bfloat16.safetensors").replace(folder / "model.safetensors")
    return folder


def write_adapter(adapter, folder):
    """Write PEFT's files for column- and row-parallel layers, the embedding and the head."""
    shapes, rng, tensors = Qwen3Config.from_dir(folder).weight_shapes(), np.random.default_rng(1), []
    for weight, shape in shapes.items():
        module = weight.removesuffix(".weight")
        if not module.endswith(
            ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj", "embed_tokens", "lm_head")
        ):
            continue
        is_embedding = module.endswith("embed_tokens")
        a, b = ((4, shape[0]), (shape[1], 4)) if is_embedding else ((4, shape[1]), (shape[0], 4))
        for half, size in (("A", a), ("B", b)):
            leaf = f"lora_embedding_{half}" if is_embedding else f"lora_{half}.weight"
            values = rng.standard_normal(size).astype(np.float32) / 4
            tensors.append((TensorPlan(f"base_model.model.{module}.{leaf}", "F32", size), [values.tobytes()]))
    adapter.mkdir()
    write_safetensors(adapter / "adapter_model.safetensors", tensors, {"format": "pt"})
    (adapter / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8, "r": 4}), "utf-8")
    return adapter


def records(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_two_processes_generate_the_tokens_of_one(run, folder, make_demo_folder, tmp_path):
    untied = make_demo_folder("untied", **SHARABLE, tie_word_embeddings=False)
    prompts, runs = tmp_path / "prompts.txt", []
    prompts.write_text("".join(f"{text}\n" for text in PROMPTS), "utf-8")
    adapter = write_adapter(tmp_path / "adapter", to_bfloat16(untied))
    for number, kind in enumerate(RUNS):
        is_adapted = "adapted" in kind
        model, extra = (untied, ["--adapter", str(adapter)]) if is_adapted else (folder, [])
        alone = run(*arguments_of(kind, model, prompts, tmp_path / f"one{number}"), *extra)
        assert alone.exit_code == 0, alone.stderr
        shared = arguments_of(kind, model, prompts, tmp_path / f"two{number}")
        without_compiler = {}
        if kind.startswith("portable"):
            # One process cannot have native kernels, so that all do without.
            shared.remove("--kernels")
            shared.remove("portable")
            without_compiler = {"PATH": "", "XDG_CACHE_HOME": str(tmp_path / "empty")}
        runs.append([[*shared, *extra, "--worker-num", "2"], without_compiler])
    (tmp_path / "runs.json").write_text(json.dumps(runs), "utf-8")
    job = Job(
        argv=[str(HERE / "many_generations_worker.py"), str(tmp_path / "runs.json")],
        environment=os.environ,
        quiet=True,
    )
    launch = LaunchSettings(
        worker_num=2, local_worker_num=2, master_port=free_port(), log_dir=tmp_path / "log"
    )
    launch_workers(job, launch)
    assert "another process has no native kernels" in (tmp_path / "log" / NAME).read_text("utf-8")
    for number, kind in enumerate(RUNS):
        one, two = records(tmp_path / f"one{number}.jsonl"), records(tmp_path / f"two{number}.jsonl")
        for wanted, found in zip(one, two, strict=True):
            if "logprobs" in wanted:
                difference = np.abs(np.subtract(wanted.pop("logprobs"), found.pop("logprobs"))).max()
                assert difference < LOGPROB_ATOL, (kind, difference)
            assert found == wanted, kind
        if kind == "greedy, 256 tokens":
            assert [record["completion_tokens"] for record in one] == [256] * len(PROMPTS)
        assert (tmp_path / f"two{number}.txt").read_bytes() == (tmp_path / f"one{number}.txt").read_bytes()


@pytest.fixture
def nodes():
    """Return what enters each of two network namespaces joined by a cable, and the first one's address.

    Where the system has none to give, one node with the loopback.
    """
    names = [f"qwen3i{os.getpid()}{letter}" for letter in "ab"]
    ends = [f"w{os.getpid()}{letter}" for letter in "ab"]
    commands = [f"netns add {name}" for name in names]
    commands.append(f"link add {ends[0]} netns {names[0]} type veth peer name {ends[1]} netns {names[1]}")
    for number, (name, end) in enumerate(zip(names, ends, strict=True), 1):
        commands += [f"-n {name} addr add 10.78.0.{number}/24 dev {end}"]
        commands += [f"-n {name} link set {device} up" for device in (end, "lo")]
    try:
        for command in commands:
            subprocess.run(["ip", *command.split()], check=True, capture_output=True)
        yield [["ip", "netns", "exec", name] for name in names], "10.78.0.1"
    except (OSError, subprocess.CalledProcessError):
        yield [[]], "127.0.0.1"
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.slow
def test_the_command_launches_its_workers_on_two_nodes_and_streams(run, folder, nodes, tmp_path):
    (enters, address), port = nodes, str(free_port())
    arguments = ["--pretrained-model-dir", str(folder), "--predict-data", "Once upon a time",
                 "--no-do-sample", "--max-new-tokens", "20"]  # fmt: skip
    alone = run(*arguments, "--stream", "--save-file", "one.txt")
    assert alone.exit_code == 0, alone.stderr
    started = []
    for node, enter in enumerate(enters):
        place = ["--worker-num", "2", "--local-worker-num", str(2 // len(enters)), "--node-rank", str(node),
                 "--master-addr", address, "--master-port", port, "--log-dir", f"log{node}",
                 "--cluster-time-out", "300"]  # fmt: skip
        command = [*enter, sys.executable, "-m", "qwen3_infer", "generate", *arguments, "--stream", *place]
        command += ["--use_parallel", "True", "--parallel_config.model_parallel", "2"]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=LONGEST_S) for process in started]
    assert [process.returncode for process in started] == [0] * len(enters), said
    assert said[0][0] == alone.stdout
    assert "20 tokens in " in said[0][1]
    assert all(out == "" and "tokens in" not in err for out, err in said[1:])
    result = tmp_path / "text_generation_result.txt"
    assert result.read_bytes() == (tmp_path / "one.txt").read_bytes()


@pytest.mark.parametrize(
    ("extra", "code", "sentence"),
    [
        (
            ["--worker-num", "3"],
            1,
            "num_attention_heads=4 does not divide by parallel_config.model_p",
        ),
        (
            ["--worker-num", "4"],
            1,
            "num_key_value_heads=2 does not divide by parallel_config.model_p",
        ),
        (["--worker-num", "0"], 2, "--worker-num 0 must be at least 1"),
        (["--worker-num", "2", "--local-worker-num", "3"], 1, "is no multiple of --local-worker-num 3"),
        (["--worker-num", "2", "--use_parallel", "False"], 2, "use_parallel is False but --worker-num is 2"),
        (["--use_parallel", "True", "--parallel_config.model_parallel", "2"], 2, "needs 2 processes, not 1"),
        (["--worker-num", "2", "--parallel_config.model_parallel", "4"], 2, "needs 4 processes, not 2"),
        (["--worker-num", "2", "--save-file", "mine.txt"], 1, "mine.txt already exists"),
        (["--worker-num", "2", "--master-port", "80"], 1, "--master-port 80 is not from 1024 to 65535"),
        (["--parallel_config.pipeline_stage", "2"], 2, "pipeline_stage=2 is none of 1"),
        (["--parallel_config.data_parallel", "2"], 2, "data_parallel=2 is none of 1"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_before_anything_starts(
    run, folder, tmp_path, extra, code, sentence
):
    (tmp_path / "mine.txt").write_text("mine", "utf-8")
    found = run("--pretrained-model-dir", folder, "--predict-data", "hi", *extra)
    assert (found.exit_code, sentence in found.stderr) == (code, True), found.stderr
    assert not list(tmp_path.rglob("worker_*.log"))


def test_a_conversation_needs_as_many_processes_as_the_yaml_says(run, folder, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("use_parallel: True\nparallel_config: {model_parallel: 2}\n", "utf-8")
    found = run("--config", config, "--pretrained-model-dir", folder, command="chat")
    assert found.exit_code == 2
    assert "model_parallel=2 needs 2 processes, not 1; make it and --worker-num equal" in (found.stderr)


def test_what_rank_0_shows_comes_whole_and_in_order(tmp_path):
    (tmp_path / NAME).write_text('{"say": "of an earlier job"}\n', "utf-8")
    shown = []
    reader = ShownReader(tmp_path, shown.append, lambda text: shown.append(("note", text)))
    assert reader.status() == ""
    writer = ShownWriter(tmp_path)
    writer.say("one\ntwo")
    writer.note("three")
    assert reader.status() is None
    assert shown == []  # the launcher takes its line away first
    with (tmp_path / NAME).open("a", encoding="utf-8") as file:
        file.write('{"say": "fo')
    assert reader.status() is None
    assert shown == ["one\ntwo", ("note", "three")]
    with (tmp_path / NAME).open("a", encoding="utf-8") as file:
        file.write('ur"}\n')
    reader.hand_on()
    assert shown[2:] == ["four"]
    with (tmp_path / NAME).open("a", encoding="utf-8") as file:
        file.write('[3]\n{"say": 3}\nnone\n{"say": "five"}\n')
    reader.hand_on()
    sentence = f"{tmp_path / NAME} has a line of another program, which is left out"
    assert shown[3:] == [("note", sentence)] * 3 + ["five"]
