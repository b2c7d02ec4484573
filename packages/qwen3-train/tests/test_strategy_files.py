"""Strategy files say how each rank's tensors are cut, and guard a run's folder against another layout."""

import pytest
from train_inputs import tiny_run, write_yaml

from qwen3_model.checkpoints.rank_tensors import cut_of
from qwen3_model.checkpoints.strategy import read_strategy
from qwen3_model.command.run_config import load_run_config
from qwen3_model.errors import ConfigError
from qwen3_train.checkpoints.strategy_files import refuse_other_layout, write_strategies
from qwen3_train.settings.run import read_settings
from qwen3_train.settings.schema import TRAIN


def settings_of(tmp_path, dp, tp, pp, *, zero=False):
    parallel = {"data_parallel": dp, "model_parallel": tp, "pipeline_stage": pp, "micro_batch_num": pp}
    values = tiny_run(
        tmp_path / "out", "prefix", use_parallel=dp * tp * pp > 1, parallel_config=parallel,
        parallel={"enable_parallel_optimizer": zero},
    )  # fmt: skip
    config = load_run_config(write_yaml(tmp_path / "config.yaml", values), [], TRAIN)
    return read_settings(config, worker_num=dp * tp * pp)


def write_all(settings):
    for rank in range(settings.layout.num_ranks):
        write_strategies(
            settings.output_dir, settings.layout, settings.model, rank,
            offset=settings.offset, shares_moments=settings.parallel_optimizer,
        )  # fmt: skip


def test_a_rank_describes_its_stage_its_shard_and_its_share_of_the_moments(tmp_path):
    write_all(settings_of(tmp_path, 2, 2, 2, zero=True))
    # Rank 6 is stage 1, replica 1, shard 0: the third of four ranks there.
    stage, layouts = read_strategy(tmp_path / "out" / "strategy" / "ckpt_strategy_rank_6.ckpt")
    assert stage == 1
    name = "model.layers.1.self_attn.q_proj.weight"
    assert "model.layers.0.self_attn.q_proj.weight" not in layouts
    assert "model.embed_tokens.weight" in layouts  # the tied head's
    assert layouts[name].slice_of(2) == ((0, 0), 0)
    assert layouts[name].splits() == (2, 1)
    assert layouts[f"adam_m.{name}"].optimizer_pieces() == 2
    assert layouts[f"adam_m.{name}"].slice_of(2) == ((0, 0), 1)
    assert cut_of(layouts["adam_v.model.norm.weight"], 6) == ((2,), (1,))


@pytest.mark.parametrize(("grid", "zero"), [((1, 1, 1), False), ((2, 1, 1), True), ((1, 2, 2), False)])
def test_a_folder_takes_only_the_layout_that_it_has(tmp_path, grid, zero):
    settings = settings_of(tmp_path, *grid, zero=zero)
    refuse_other_layout(settings)  # an empty one takes any
    write_all(settings)
    refuse_other_layout(settings)
    others = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (1, 2, 2)]
    for other in others:
        if other != grid:
            with pytest.raises(ConfigError, match="holds a run of another layout"):
                refuse_other_layout(settings_of(tmp_path, *other))
    if zero:
        with pytest.raises(ConfigError, match="holds a run of another layout"):
            refuse_other_layout(settings_of(tmp_path, *grid, zero=False))
