"""The job scripts of `examples/slurm` on two nodes: a lost rank or node, a signal, and the same losses."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from qwen3_model.ranks.msrun.cli_options import free_port

sys.path.insert(0, str(Path(__file__).parent))
from slurm_cluster import Cluster, missing_programs

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "examples" / "slurm"
LONGEST_S = 400
STEPS = 400
"""A step takes ten milliseconds, and ranks agree once a second to end: it must not end before that."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing_programs()), reason="slurmctld, slurmd and munge are not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd runs as root"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder.parent, folder.parent.parent):
        parent.chmod(0o755)  # munge asks for it
    made = Cluster(folder)
    made.environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    yield made
    made.stop()


@pytest.fixture(scope="module")
def tokens(cluster, tmp_path_factory, demo_tokenizer_dir):
    """Token files that two tasks have made and the script has joined."""
    folder = tmp_path_factory.mktemp("data")
    lines = [
        json.dumps({"text": f"Line {number} of a text that repeats itself. " * 8}) for number in range(900)
    ]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    job = cluster.submit(
        "--nodes", "2", "--ntasks", "2", str(SCRIPTS / "preprocess.sbatch"),
        "--input", str(folder / "text.jsonl"), "--tokenizer-dir", str(demo_tokenizer_dir),
        str(folder / "text"),
    )  # fmt: skip
    wait_for(lambda: cluster.job(job)["JobState"] in ("COMPLETED", "FAILED"), cluster, job)
    assert cluster.job(job)["JobState"] == "COMPLETED", log_of(cluster, job)
    return folder / "text_text_document"


def wait_for(is_so, cluster, job):
    deadline_s = time.monotonic() + LONGEST_S
    while not is_so():
        assert time.monotonic() < deadline_s, log_of(cluster, job)
        time.sleep(0.3)


def log_of(cluster, job):
    logs = [path.read_text(errors="replace") for path in cluster.folder.glob(f"*-{job}.log")]
    return "\n".join([str(cluster.job(job)), *logs])[-3000:]


def losses(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def starts(out):
    return [json.loads(line) for line in (out / "starts.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_tasks_of_a_job_make_the_bytes_of_one_process(tokens, tmp_path, demo_tokenizer_dir):
    command = [str(Path(sys.executable).parent / "qwen3-data"), "preprocess", "--input",
               str(tokens.with_name("text.jsonl")), "--tokenizer-dir", str(demo_tokenizer_dir),
               "--output-prefix", str(tmp_path / "one")]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    for ending in (".bin", ".idx"):
        wanted = (tmp_path / f"one_text_document{ending}").read_bytes()
        assert Path(f"{tokens}{ending}").read_bytes() == wanted


def test_a_run_outlives_a_lost_rank_a_lost_node_and_a_signal_and_equals_the_unbroken_one(
    cluster, tokens, tmp_path
):
    values = yaml.safe_load((ROOT / "configs" / "qwen3" / "demo.yaml").read_text(encoding="utf-8"))
    values |= {"use_parallel": True, "parallel_config": {"data_parallel": 2}, "do_eval": False}
    values["runner_config"]["batch_size"] = 1
    values["model"]["model_config"] |= {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16,
    }  # fmt: skip
    loader = values["train_dataset"]["data_loader"]
    loader["sizes"] = [2 * STEPS, 0, 0]
    loader["config"] |= {"seq_length": 32, "data_path": [str(tokens)]}
    values["callbacks"][1]["save_checkpoint_steps"] = 10
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    arguments = ["--config", str(config), "--worker-num", "2", "--output_dir"]
    out = tmp_path / "out"
    job = cluster.submit("--nodes", "2", str(SCRIPTS / "train.sbatch"), *arguments, str(out))

    def reached(step):
        return (out / "metrics.jsonl").exists() and len(losses(out)) >= step

    wait_for(lambda: reached(15), cluster, job)
    # The launchers of both nodes start again together, in the same job of Slurm.
    cluster.kill_ranks("n2")
    wait_for(lambda: len(starts(out)) == 2, cluster, job)
    resumed = starts(out)[1]["after_step"]
    assert resumed >= 10
    wait_for(lambda: reached(resumed + 15), cluster, job)
    assert cluster.job(job)["Restarts"] == "0"
    cluster.kill_node("n2")
    # Slurm takes twenty seconds to miss the node, with nothing to compute: time for the unbroken run.
    whole = subprocess.run(
        [sys.executable, "-m", "qwen3_train", "launch", *arguments, str(tmp_path / "whole"),
         "--master-port", str(free_port())],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert whole.returncode == 0, whole.stderr
    wait_for(lambda: cluster.job(job)["Restarts"] == "1", cluster, job)
    cluster.start_node("n2")
    before = len(losses(out))
    wait_for(lambda: reached(before + 15), cluster, job)
    cluster.run("scancel", "--signal=USR1", job)
    wait_for(lambda: cluster.job(job)["Restarts"] == "2", cluster, job)
    stopped = max(out.glob("checkpoint/rank_0/*.safetensors"), key=lambda path: path.stat().st_mtime)
    assert f"-1_{len(losses(out))}.safetensors" in stopped.name  # not a step is lost
    wait_for(lambda: cluster.job(job)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED"), cluster, job)
    assert cluster.job(job)["JobState"] == "COMPLETED", log_of(cluster, job)
    assert losses(out) == losses(tmp_path / "whole")
    assert len(losses(out)) == STEPS
