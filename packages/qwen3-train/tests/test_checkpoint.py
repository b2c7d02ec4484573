import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qwen3_model.checkpoint_files import Place, checkpoints_of, choose_checkpoint
from qwen3_model.errors import ConfigError, FormatError
from qwen3_model.safetensors_file import open_safetensors
from qwen3_train.checkpoint import (
    FloatTensor,
    TrainState,
    read_state,
    save_checkpoint,
)
from qwen3_train.run_folder import replaced_run, restore_replaced


def save(folder, step, *, epoch=1, rank=0, keep_max=2, value=1.0):
    array = np.full((3, 2), value, np.float32)
    tensors = [FloatTensor("model.norm.weight", (3, 2), lambda: array)]
    rank_dir = folder / "checkpoint" / f"rank_{rank}"
    stem = f"qwen3_rank_{rank}"
    return save_checkpoint(rank_dir, stem, Place(epoch, step), TrainState(step, "abc"), tensors, keep_max)


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


def test_nothing_to_resume_from_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"no whole checkpoint of 1 rank\(s\) to resume from"):
        choose_checkpoint(tmp_path, 1, None)
    save(tmp_path, 1)
    with pytest.raises(ConfigError, match="no checkpoint qwen3_rank_0-4_4 to resume from"):
        choose_checkpoint(tmp_path, 1, "qwen3_rank_0-4_4")


def test_weights_alone_are_no_training_checkpoint(tmp_path):
    file = open_safetensors(save(tmp_path, 1))
    del file.tensors["global_step"]
    with pytest.raises(FormatError, match="no training checkpoint"):
        read_state(file)


KILLED = """
import sys, time
import numpy as np
from pathlib import Path
from qwen3_model.checkpoint_files import Place
from qwen3_train.checkpoint import FloatTensor, TrainState, save_checkpoint

def slowly():
    print("writing", flush=True)
    time.sleep(60)
    return np.ones((2,), np.float32)

big = FloatTensor("a", (500_000,), lambda: np.ones(500_000, np.float32))
folder = Path(sys.argv[1])
save_checkpoint(folder, "qwen3_rank_0", Place(1, 2), TrainState(2, ""), [big, FloatTensor("b", (2,), slowly)],
1)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_kill_while_writing_leaves_the_last_good_checkpoint(tmp_path, number):
    good = save(tmp_path, 1, keep_max=1)
    before = good.read_bytes()
    command = [sys.executable, "-c", KILLED, str(good.parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ)
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(number)
    process.wait()
    process.stdout.close()
    files, _ = choose_checkpoint(tmp_path, 1, None)
    assert files == {0: good}
    assert good.read_bytes() == before
    assert json.loads((good.parent / "meta.json").read_text())["last_step"] == 1
    # The next save removes what the killed one left.
    save(tmp_path, 2, keep_max=1)
    assert re.fullmatch("meta.json qwen3_rank_0-1_2.safetensors", " ".join(sorted(_names(good.parent))))


def _names(folder: Path):
    return [path.name for path in folder.iterdir()]


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    good = save(tmp_path, 1, keep_max=1)

    def full():
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        save_checkpoint(
            good.parent, "qwen3_rank_0", Place(1, 2), TrainState(2, ""), [FloatTensor("a", (1,), full)], 1
        )
    assert sorted(_names(good.parent)) == ["meta.json", "qwen3_rank_0-1_1.safetensors"]


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
