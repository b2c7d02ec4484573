"""A run on two nodes, each a launcher of its own, of which one is lost and stays away."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from run_faults import FAULT_SITE, LONGEST_S, curve_of, fault_of
from train_inputs import counting_documents, tiny_run, write_tokens, write_yaml

from qwen3_model.checkpoints.checkpoint_files import choose_checkpoint
from qwen3_model.ranks.msrun.cli_options import free_port

STEPS, LOST_NODE_WAIT_S = 8, 2
LAYOUT_RTOL = 2e-5
"""Gradients of two replicas are summed in another order than those of two passes."""
SEEN_S = 30
"""From the loss of a node to the next start; its time has whole seconds."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("nodes")


@pytest.fixture(scope="module")
def command(folder):
    prefix = write_tokens(folder / "tiny_text_document", counting_documents(100), eod_id=1)

    def words(out):
        values = tiny_run(
            folder / out, prefix, use_parallel=True, parallel_config={"data_parallel": 2}, do_eval=False,
            runner_config__batch_size=1, resume_training="auto",
        )  # fmt: skip
        values["train_dataset"]["data_loader"]["sizes"] = [2 * STEPS, 0, 0]
        config = write_yaml(folder / f"{out}.yaml", values)
        return [sys.executable, "-m", "qwen3_train", "launch", "--config", str(config), "--worker-num", "2"]

    return words


def start_node(command, node, port, *, fault):
    environment = os.environ | {"QWEN3_TEST_FAULT": json.dumps(fault), "PYTHONPATH": str(FAULT_SITE)}
    words = ["--local-worker-num", "1", "--node-rank", str(node), "--master-port", str(port),
             "--master-addr", "127.0.0.1", "--max-restarts", "2",
             "--lost-node-wait", str(LOST_NODE_WAIT_S)]  # fmt: skip
    return subprocess.Popen(
        [*command, *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def wait_for(is_so, process):
    deadline_s = time.monotonic() + LONGEST_S
    while not is_so():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


@pytest.mark.slow
def test_a_run_goes_on_without_a_node_that_stays_away(folder, command):
    out, fault = folder / "out", fault_of(folder, "wait", 1, 6)
    port = free_port()
    nodes = [start_node(command("out"), node, port, fault=fault) for node in (0, 1)]
    wait_for(lambda: Path(fault["marker"]).exists(), nodes[0])
    nodes[1].send_signal(signal.SIGKILL)
    killed_s = time.time()
    # The other node misses this one after twenty seconds: time for the run that loses none.
    whole = subprocess.run(command("whole"), check=False, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    _, error = nodes[0].communicate(timeout=LONGEST_S)
    nodes[1].communicate()
    assert nodes[0].returncode == 0, error
    said = (out / "msrun_log" / "launch.log").read_text(encoding="utf-8")
    assert "starting again, 1 of at most 2 times" in said
    assert "without node 1: --parallel_config.data_parallel 1" in said
    starts = [json.loads(line) for line in (out / "starts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [start["after_step"] for start in starts] == [0, 4]
    assert datetime.fromisoformat(starts[1]["time"]).timestamp() - killed_s < SEEN_S + LOST_NODE_WAIT_S

    got, wanted = np.array(curve_of(out)), np.array(curve_of(folder / "whole"))
    np.testing.assert_array_equal(got[:4], wanted[:4])
    np.testing.assert_allclose(got, wanted, rtol=LAYOUT_RTOL)
    assert len(got) == STEPS
    # Nothing of the layout before is left among the files of this one.
    assert not (out / "earlier_layout").exists()
    assert [path.name for path in choose_checkpoint(out, None, None)[0].values()] == [
        f"qwen3_rank_0-1_{STEPS}.safetensors"
    ]
