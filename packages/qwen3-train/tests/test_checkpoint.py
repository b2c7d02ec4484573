import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from qwen3_model.checkpoints.checkpoint_files import EpochStep, checkpoints_of, choose_checkpoint
from qwen3_model.checkpoints.safetensors_file import open_safetensors
from qwen3_model.errors import ConfigError, FormatError
from qwen3_train.checkpoints.checkpoint import (
    FloatTensor,
    TrainState,
    read_state,
    remove_old,
    save_checkpoint,
)
from qwen3_train.checkpoints.run_folder import replaced_run, restore_replaced
from qwen3_train.checkpoints.writer import CheckpointWriter


def save(folder, step, *, epoch=1, rank=0, keep_max=2, value=1.0, course=""):
    array = np.full((3, 2), value, np.float32)
    tensors = [FloatTensor("model.norm.weight", (3, 2), lambda: array)]
    rank_dir = folder / "checkpoint" / f"rank_{rank}"
    place = EpochStep(epoch, step)
    state = TrainState(step, "abc", course=course)
    path = save_checkpoint(rank_dir, f"qwen3_rank_{rank}", place, state, tensors)
    remove_old(rank_dir, place, keep_max)
    return path


def test_a_checkpoint_has_mindformers_names_scalars_and_meta(tmp_path):
    path = save(tmp_path, 7, epoch=2, value=3.0)
    assert path.relative_to(tmp_path).as_posix() == "checkpoint/rank_0/qwen3_rank_0-2_7.safetensors"
    file = open_safetensors(path)
    np.testing.assert_array_equal(file.raw("model.norm.weight"), np.full((3, 2), 3.0, np.float32))
    scalars = {
        name: file.raw(name).tolist() for name in ("epoch_num", "step_num", "global_step", "loss_scale")
    }
    assert scalars == {"epoch_num": [2], "step_num": [7], "global_step": [7], "loss_scale": [1.0]}
    assert read_state(file) == TrainState(7, "abc")
    meta = json.loads((path.parent / "meta.json").read_text())
    assert meta == {"last_epoch": 2, "last_step": 7, "last_ckpt_file": path.name}


def test_the_oldest_go_once_the_new_one_is_whole(tmp_path):
    for step in (8, 9, 10, 11):
        save(tmp_path, step)
    assert [place.step for place in checkpoints_of(tmp_path / "checkpoint" / "rank_0")] == [10, 11]


def test_epochs_come_before_steps_when_choosing(tmp_path):
    save(tmp_path, 9, epoch=1)
    save(tmp_path, 1, epoch=2)
    assert choose_checkpoint(tmp_path, 1, None)[0][0].name == "qwen3_rank_0-2_1.safetensors"
    assert choose_checkpoint(tmp_path, 1, "qwen3_rank_0-1_9.safetensors")[0][0].name.endswith(
        "1_9.safetensors"
    )


def test_a_truncated_checkpoint_is_passed_over_and_named(tmp_path):
    save(tmp_path, 1)
    last = save(tmp_path, 2)
    last.write_bytes(last.read_bytes()[:-3])
    files, passed_over = choose_checkpoint(tmp_path, 1, None)
    assert files[0].name == "qwen3_rank_0-1_1.safetensors"
    assert len(passed_over) == 1
    assert "1_2.safetensors is not whole" in passed_over[0]


def test_a_step_counts_only_where_every_rank_has_it(tmp_path):
    for rank in (0, 1):
        save(tmp_path, 1, rank=rank)
    save(tmp_path, 2, rank=0)
    files, passed_over = choose_checkpoint(tmp_path, 2, None)
    assert sorted(path.name for path in files.values()) == [f"qwen3_rank_{r}-1_1.safetensors" for r in (0, 1)]
    assert passed_over == ["step 1_2 is missing on rank 1"]


def test_files_that_two_starts_of_a_run_left_are_no_checkpoint(tmp_path):
    for rank in (0, 1):
        save(tmp_path, 1, rank=rank, course="a")
        save(tmp_path, 2, rank=rank, course="ab"[rank])
    files, passed_over = choose_checkpoint(tmp_path, 2, None)
    assert files[1].name == "qwen3_rank_1-1_1.safetensors"
    assert passed_over == ["step 1_2 was written by ranks of different starts of the run"]


def test_nothing_to_resume_from_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"no whole checkpoint of 1 rank to resume from"):
        choose_checkpoint(tmp_path, 1, None)
    save(tmp_path, 1)
    with pytest.raises(ConfigError, match="no checkpoint qwen3_rank_0-4_4 to resume from"):
        choose_checkpoint(tmp_path, 1, "qwen3_rank_0-4_4")


def test_weights_alone_are_no_training_checkpoint(tmp_path):
    file = open_safetensors(save(tmp_path, 1))
    del file.tensors["global_step"]
    with pytest.raises(FormatError, match="no training checkpoint"):
        read_state(file)


@pytest.mark.parametrize(
    ("stated", "fault"),
    [
        ("[1]", "[1] is not a section with keys"),
        ("{", "Expecting property name"),
        ('{"version": "2"}', "'2' is not a whole number"),
        ('{"start": {"steps": "a"}}', "'a' is not a whole number"),
        ('{"best": {"loss": 1.0, "step": 2}}', "None is not a whole number"),
        ('{"data": 1}', "1 is not a text"),
    ],
)
def test_a_damaged_statement_of_the_run_is_one_sentence(tmp_path, stated, fault):
    file = open_safetensors(save(tmp_path, 1))
    file.metadata["qwen3_train"] = stated
    with pytest.raises(FormatError, match=r"rank_0-.*what its metadata say of the run.*damaged: ") as caught:
        read_state(file)
    assert fault in str(caught.value)


def test_a_run_that_went_back_removes_what_it_gave_up_and_never_its_own(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, keep_max=9)
    save(tmp_path, 2, keep_max=1, value=5.0)
    assert _names(tmp_path / "checkpoint" / "rank_0") == ["meta.json", "qwen3_rank_0-1_2.safetensors"]


# A child for each moment saves step 2 over step 1 and ends itself with SIGKILL, or runs out of space, when
# it is about to make the n-th call that changes the disk; it prints how many calls there were.
FAULT = """
import errno, os, signal, sys
from pathlib import Path
import numpy as np
import qwen3_model.checkpoints.byte_writer as format, qwen3_model.command.files as files
from qwen3_model.checkpoints.checkpoint_files import EpochStep
from qwen3_train.checkpoints.checkpoint import FloatTensor, TrainState
from qwen3_train.checkpoints.writer import CheckpointWriter

kind, folder, in_thread = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "True"

def save(rank_dir, limit):
    calls = 0
    def counted(function):
        def call(*args, **named):
            nonlocal calls
            calls += 1
            if calls == limit and kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if calls == limit:
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*args, **named)
        return call
    for owner, name in ((format, "_write_all"), (files, "sync"), (Path, "replace"), (Path, "write_text"),
                        (Path, "unlink"), (Path, "open")):
        setattr(owner, name, counted(getattr(owner, name)))
    tensors = [FloatTensor(name, (3, 2), lambda: np.full((3, 2), 2, np.float32)) for name in "ab"]
    writer = CheckpointWriter(rank_dir, "qwen3_rank_0", 1, in_thread=in_thread,
                              wait_for_others=lambda: None, log=lambda text: None)
    try:
        writer.save(EpochStep(1, 2), TrainState(2, ""), tensors)
        writer.finish()
    except Exception as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\\n")
        os._exit(1)
    os._exit(0 if calls < limit else 3)

moment = 0
while True:
    moment += 1
    rank_dir = folder / f"moment_{moment}" / "checkpoint" / "rank_0"
    if not rank_dir.is_dir():
        sys.exit("not enough copies")
    child = os.fork()
    if child == 0:
        save(rank_dir, moment)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
        print(moment)
        break
    assert os.WIFSIGNALED(status) if kind == "kill" else os.WEXITSTATUS(status) == 1, status
"""


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("kind", ["kill", "full disk"])
def test_a_fault_at_any_moment_of_a_checkpoint_leaves_a_whole_one(tmp_path, kind, in_thread):
    for moment in range(1, 30):
        save(tmp_path / f"moment_{moment}", 1, keep_max=1)
    done = subprocess.run(
        [sys.executable, "-c", FAULT, kind, str(tmp_path), str(in_thread)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    num_moments = int(done.stdout)
    assert num_moments > 10
    steps = []
    for moment in range(1, num_moments + 1):
        run_dir = tmp_path / f"moment_{moment}"
        files, passed_over = choose_checkpoint(run_dir, 1, None)
        assert passed_over == []  # nothing half-written under a checkpoint's name
        file = open_safetensors(files[0])
        steps.append(read_state(file).global_step)
        name, value = ("model.norm.weight", 1) if steps[-1] == 1 else ("a", 2)
        np.testing.assert_array_equal(file.raw(name), np.full((3, 2), value, np.float32))
        # The next save finds nothing in its way and leaves nothing of the faulty one.
        save(run_dir, 2, keep_max=1)
        assert _names(files[0].parent) == ["meta.json", "qwen3_rank_0-1_2.safetensors"]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (1, 2)
    if kind == "full disk":
        lines = done.stderr.splitlines()
        assert len(lines) == num_moments - 1
        for line in lines:
            assert re.match(
                "Qwen3Error: a checkpoint in .* could not be written or removed .No space left", line
            )


def _names(folder: Path):
    return sorted(path.name for path in folder.iterdir())


def writer_of(rank_dir, *, wait_for_others=lambda: None, log=lambda text: None, keep_max=1):
    return CheckpointWriter(
        rank_dir, "qwen3_rank_0", keep_max, in_thread=True, wait_for_others=wait_for_others, log=log
    )


def test_a_checkpoint_in_a_thread_holds_the_values_of_its_moment(tmp_path):
    weight, go_on = np.ones(4, np.float32), threading.Event()
    reads = []

    def read():
        reads.append(threading.current_thread())
        return weight

    said = []
    writer = writer_of(tmp_path, log=lambda text: (go_on.wait(20), said.append(text)))
    writer.save(EpochStep(1, 1), TrainState(1, ""), [FloatTensor("a", (4,), read)])
    weight += 1  # the next step, while the thread is still at work
    assert reads == [threading.current_thread()]
    assert said == []
    go_on.set()
    writer.finish()
    assert said == [f"saved {tmp_path / 'qwen3_rank_0-1_1.safetensors'}"]
    file = open_safetensors(tmp_path / "qwen3_rank_0-1_1.safetensors")
    np.testing.assert_array_equal(file.raw("a"), np.ones(4, np.float32))


def test_a_checkpoint_in_a_thread_keeps_the_old_one_until_every_rank_has_the_new(tmp_path):
    seen = []

    def wait():
        seen.append(_names(tmp_path))

    writer = writer_of(tmp_path, wait_for_others=wait)
    tensor = FloatTensor("a", (1,), lambda: np.ones(1, np.float32))
    for step in (1, 2, 3):
        writer.save(EpochStep(1, step), TrainState(step, ""), [tensor])
    writer.finish()
    first, second, third = (f"qwen3_rank_0-1_{step}.safetensors" for step in (1, 2, 3))
    assert seen == [["meta.json", first], ["meta.json", first, second], ["meta.json", second, third]]
    assert _names(tmp_path) == ["meta.json", third]


def test_a_run_put_aside_by_a_killed_force_comes_back(tmp_path):
    good = save(tmp_path, 3)
    before = good.read_bytes()

    def interrupted():
        with replaced_run(tmp_path):
            assert not good.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert good.read_bytes() == before
    # A kill runs no `finally`: the run is still aside.
    (tmp_path / ".replaced").mkdir()
    (tmp_path / "checkpoint").rename(tmp_path / ".replaced" / "checkpoint")
    restore_replaced(tmp_path)
    assert good.read_bytes() == before
    with replaced_run(tmp_path):
        save(tmp_path, 1, value=2.0)
    assert [place.step for place in checkpoints_of(tmp_path / "checkpoint" / "rank_0")] == [1]
    assert not (tmp_path / ".replaced").exists()
