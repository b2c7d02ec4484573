"""Evaluations keep the best checkpoint and end a run that no longer improves, also over several starts."""

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner
from train_inputs import counting_documents, tiny_run, write_tokens, write_yaml

from qwen3_model.checkpoints.checkpoint_files import choose_checkpoint
from qwen3_model.checkpoints.safetensors_file import open_safetensors
from qwen3_model.command.run_config import load_run_config
from qwen3_model.errors import ConfigError
from qwen3_train.cli import main
from qwen3_train.reports.run_log import read_metrics
from qwen3_train.settings.run import read_settings
from qwen3_train.settings.schema import TRAIN
from qwen3_train.settings.validation import BestLoss

pytestmark = pytest.mark.usefixtures("share_graphs")


def test_the_lowest_loss_is_kept_and_waiting_counts_evaluations_since():
    best = BestLoss()
    told = [best.take(step, loss, 0.1) for step, loss in enumerate((3.0, 2.95, 2.5, math.nan, 2.45))]
    assert told == [True, False, True, False, False]
    assert (best.loss, best.step, best.waited) == (2.5, 2, 2)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"callbacks": [{"type": "EarlyStopping"}]}, "EarlyStopping compares evaluations; set do_eval: True"),
        ({"callbacks": [{"type": "CheckpointMonitor", "keep_best": True}], "do_eval": True}, "keep_best"),
        ({"callbacks": [{"type": "EarlyStopping", "patience": 0}], "do_eval": True, "eval_step_interval": 1},
         "patience=0 and min_delta=0.0; use at least 1 and 0"),
    ],
)  # fmt: skip
def test_what_has_nothing_to_compare_is_refused(tmp_path, changes, sentence):
    path = write_yaml(tmp_path / "x.yaml", tiny_run(tmp_path / "out", "prefix", **changes))
    with pytest.raises(ConfigError, match=sentence):
        read_settings(load_run_config(path, [], TRAIN))


def test_a_run_that_gets_worse_ends_keeps_its_best_and_stays_ended(tmp_path):
    prefix = write_tokens(tmp_path / "tiny_text_document", counting_documents(200), eod_id=1)
    callbacks = [
        {"type": "MFLossMonitor"},
        {"type": "CheckpointMonitor", "save_checkpoint_steps": 100, "keep_best": True},
        {"type": "EarlyStopping", "patience": 2},
    ]
    values = tiny_run(tmp_path / "out", prefix, callbacks=callbacks, do_eval=True, eval_step_interval=1,
                      resume_training="auto", seed=3)  # fmt: skip
    # The rate rises until the loss does, too.
    values["lr_schedule"] = {"type": "ConstantWarmUpLR", "learning_rate": 0.4, "warmup_steps": 20}
    values["runner_wrapper"] = {"use_clip_grad": True}
    values["train_dataset"]["data_loader"]["sizes"] = [80, 8, 0]
    config = write_yaml(tmp_path / "x.yaml", values)
    done = CliRunner().invoke(main, ["launch", "--config", str(config)])
    assert done.exit_code == 0, done.output
    held_out = {
        line["step"]: line["eval_loss"]
        for line in read_metrics(tmp_path / "out" / "metrics.jsonl")
        if "eval_loss" in line
    }
    best = min(held_out, key=held_out.get)
    assert max(held_out) == best + 2 < 20
    assert f"EarlyStopping: eval_loss was lowest at step {best} " in done.output
    assert f"the run ends after step {best + 2}" in done.output
    newest, kept = (
        open_safetensors(choose_checkpoint(folder, None, None)[0][0])
        for folder in (tmp_path / "out", tmp_path / "out" / "best")
    )
    assert [int(np.asarray(file.raw("global_step"))[0]) for file in (newest, kept)] == [best + 2, best]
    assert json.loads(newest.metadata["qwen3_train"])["best"] == {
        "loss": held_out[best], "step": best, "waited": 2,
    }  # fmt: skip
    assert (tmp_path / "out" / "best" / "config.json").is_file()
    again = CliRunner().invoke(main, ["launch", "--config", str(config)])
    assert again.exit_code == 0
    assert "is finished with" in again.stderr
    longer = CliRunner().invoke(main, ["launch", "--config", str(config), "--callbacks.2.patience", "3"])
    assert longer.exit_code == 0
    assert f"after step {best + 2}" in longer.output
