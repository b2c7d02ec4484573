"""A run that goes on with fewer nodes: which layout, and where the checkpoints of the other one are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from train_inputs import counting_documents, tiny_run, write_tokens, write_yaml

from qwen3_model.checkpoints.checkpoint_files import EpochStep
from qwen3_model.command.run_config import load_run_config
from qwen3_model.errors import ConfigError, Qwen3Error
from qwen3_train.checkpoints.checkpoint import FloatTensor, TrainState, save_checkpoint
from qwen3_train.checkpoints.other_layout import forget_earlier
from qwen3_train.checkpoints.resume import run_facts
from qwen3_train.checkpoints.strategy_files import MOMENTS, write_strategies
from qwen3_train.launch.run_arguments import pinned
from qwen3_train.launch.smaller_layout import smaller_layout
from qwen3_train.layout.stages import stage_weights
from qwen3_train.prepare.prepare import prepare_run
from qwen3_train.settings.run import read_settings
from qwen3_train.settings.schema import TRAIN


@pytest.fixture
def settings_of(tmp_path):
    prefix = write_tokens(tmp_path / "tiny_text_document", counting_documents(60), eod_id=1)

    def settings(dp, *, accumulation=1, tp=1, **changes):
        values = tiny_run(
            tmp_path / "out", prefix, use_parallel=True, resume_training="auto",
            parallel_config={"data_parallel": dp, "model_parallel": tp},
            runner_config__batch_size=1, runner_config__gradient_accumulation_steps=accumulation, **changes,
        )  # fmt: skip
        config = load_run_config(write_yaml(tmp_path / "config.yaml", values), [], TRAIN)
        return read_settings(config, worker_num=dp * tp)

    return settings


def leave_run(run, step, ranks=None):
    """Write what the ranks of a run leave after a step: strategies and checkpoints."""
    settings = run.settings
    layout, out = settings.layout, settings.output_dir
    for rank in range(layout.num_ranks):
        write_strategies(out, layout, settings.model, rank)
        if ranks is not None and rank not in ranks:
            continue
        shapes = stage_weights(settings.model, layout, (), 0)
        tensors = [
            FloatTensor(prefix + name, shape, lambda shape=shape: np.zeros(shape, np.float32))
            for prefix in ("", *MOMENTS)
            for name, shape in shapes.items()
        ]
        state = TrainState(step, run.fingerprint, global_batch=2, settings=run_facts(settings))
        place, stem = EpochStep(*run.plan.epoch_and_step(step)), f"qwen3_rank_{rank}"
        save_checkpoint(out / "checkpoint" / f"rank_{rank}", stem, place, state, tensors)
    (out / "run.yaml").write_text("seed: 7\n", encoding="utf-8")


def steps_of(run):
    path = run.source.first
    return path.parent.parent.parent.name, path.stem[-1]


def test_the_batch_is_kept_by_more_passes_of_fewer_replicas(settings_of):
    arguments = ["--parallel_config.data_parallel", "2", "--runner_config.gradient_accumulation_steps", "2"]
    assert smaller_layout(settings_of(4), 2, 4, 1) == (2, arguments)
    # Three replicas would not share four passes out evenly: one node is left over.
    assert smaller_layout(settings_of(4), 3, 4, 1) == (2, arguments)
    assert smaller_layout(settings_of(4, accumulation=3), 3, 4, 1)[1][1::2] == ["3", "4"]
    # Two processes a node, two shards a replica.
    assert smaller_layout(settings_of(4, tp=2), 3, 4, 2) == (2, arguments)


def test_what_no_smaller_layout_fits_is_said(settings_of):
    with pytest.raises(Qwen3Error, match=r"1 of 2 nodes are left, 1 processes, .* model_parallel 2 .*= 2"):
        smaller_layout(settings_of(1, tp=2), 1, 2, 1)


def prepare(settings):
    return prepare_run(settings, force=False, takes_other_layout=True)


def test_a_run_changes_its_layout_there_and_back_and_loses_no_checkpoint(settings_of, tmp_path):
    out, aside = tmp_path / "out", tmp_path / "out" / "earlier_layout"
    leave_run(prepare(settings_of(2)), 2)

    smaller = settings_of(1, accumulation=2)
    with pytest.raises(ConfigError, match="holds a run of another layout"):
        prepare_run(smaller, force=False)  # not unless it is asked for
    run = prepare(smaller)
    assert steps_of(run) == ("earlier_layout", "2")
    assert pinned(run)[1].startswith(str(aside))
    # The first checkpoint of the new layout is not whole yet when it fails, too.
    leave_run(run, 4, ranks=[])
    assert steps_of(prepare(smaller)) == ("earlier_layout", "2")
    # Nor when both nodes are there again: they go on from their own files, where these are.
    both = prepare(settings_of(2))
    assert steps_of(both) == ("earlier_layout", "2")
    assert not (out / "checkpoint").exists()
    leave_run(both, 4, ranks=[0])
    run = prepare(smaller)
    leave_run(run, 4)
    assert steps_of(prepare(smaller)) == ("out", "4")
    assert not aside.exists()
    assert steps_of(prepare(settings_of(2))) == ("earlier_layout", "4")
    assert sorted(path.name for path in (aside / "strategy").iterdir()) == ["ckpt_strategy_rank_0.ckpt"]


def test_a_start_without_a_checkpoint_leaves_no_strategies_of_another_layout(settings_of, tmp_path):
    leave_run(prepare(settings_of(2)), 2, ranks=[0])
    run = prepare(settings_of(1, accumulation=2))
    assert run.source is None
    assert not (tmp_path / "out" / "strategy").exists()


def test_the_best_step_is_kept_until_there_is_another_one(settings_of, tmp_path):
    out, aside = tmp_path / "out", tmp_path / "out" / "earlier_layout"
    both = prepare(settings_of(2))
    for folder in (out, out / "best"):
        leave_run(replace(both, settings=replace(both.settings, output_dir=folder)), 2)
    run = prepare(settings_of(1, accumulation=2))
    leave_run(run, 4)
    forget_earlier(out)
    assert [path.name for path in aside.iterdir()] == ["best"]
    assert len(list(aside.glob("best/checkpoint/rank_*/*.safetensors"))) == 2
    leave_run(replace(run, settings=replace(run.settings, output_dir=out / "best")), 4)
    forget_earlier(out)
    assert not aside.exists()


def test_a_start_that_is_killed_while_it_puts_a_checkpoint_aside_loses_nothing(
    settings_of, tmp_path, monkeypatch
):
    leave_run(prepare(settings_of(2)), 2)
    smaller, rename = settings_of(1, accumulation=2), Path.rename

    def killed(path, target):
        rename(path, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(smaller)
    monkeypatch.undo()
    run = prepare(smaller)
    assert steps_of(run) == ("earlier_layout", "2")
    assert len(list((tmp_path / "out/earlier_layout/strategy").iterdir())) == 2
