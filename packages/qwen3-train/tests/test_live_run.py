"""A folder in which a run is going on is left to it."""

import os
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner
from train_inputs import counting_documents, tiny_run, write_tokens, write_yaml

from qwen3_model.errors import OutputExistsError
from qwen3_train.checkpoints.run_folder import only_run, refuse_live_run
from qwen3_train.cli import main

HOLD = """
import os, sys, time
from pathlib import Path
from qwen3_train.checkpoints.run_folder import only_run
with only_run(Path(sys.argv[1])):
    if os.fork():
        os._exit(0)  # as `--join False` does
    print(os.getpid(), flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("arguments", [(), ("--force",), ("--resume_training", "True")])
def test_a_run_that_goes_on_is_neither_replaced_nor_resumed(tmp_path, arguments):
    prefix, out = (
        write_tokens(tmp_path / "tiny_text_document", counting_documents(60), eod_id=1),
        tmp_path / "out",
    )
    config = write_yaml(tmp_path / "config.yaml", tiny_run(out, prefix))
    with only_run(out):
        # As after the first seconds of the other run, which --force had put a former one aside for.
        (out / ".replaced").mkdir()
        (out / "metrics.jsonl").write_text("its own")
        result = CliRunner().invoke(main, ["launch", "--config", str(config), *arguments])
    assert result.exit_code == 1
    assert f"a run is going on in {out} (started by process {os.getpid()}); wait" in result.output
    assert sorted(path.name for path in out.iterdir()) == [".lock", ".replaced", "metrics.jsonl"]
    assert (out / "metrics.jsonl").read_text() == "its own"


def test_the_lock_goes_on_in_a_forked_child_and_ends_with_it(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    child = int(holder.stdout.readline())
    holder.wait()
    with pytest.raises(OutputExistsError, match="a run is going on"):
        refuse_live_run(tmp_path)
    os.kill(child, signal.SIGKILL)
    holder.stdout.read()  # until the child is gone
    refuse_live_run(tmp_path)
    with only_run(tmp_path):
        pass
