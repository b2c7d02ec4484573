"""Ranks that hold equal slices share out the writing, and every reader puts the tensors together again."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
from plan_inputs import make_settings

from qwen3_model.checkpoints.checkpoint_files import EpochStep, choose_checkpoint, files_of_step
from qwen3_model.checkpoints.rank_tensors import open_rank_tensors
from qwen3_model.checkpoints.safetensors_file import open_safetensors
from qwen3_model.config import SIZES
from qwen3_model.ranks.layout import Layout
from qwen3_train.checkpoints import own_slices
from qwen3_train.checkpoints.checkpoint import FloatTensor, TrainState
from qwen3_train.checkpoints.shared_writing import checkpoint_bytes, own_share, shares_of_stage
from qwen3_train.checkpoints.source import LateFiles, ResumeSource
from qwen3_train.checkpoints.strategy_files import stage_tensors, write_strategies
from qwen3_train.checkpoints.writer import CheckpointWriter
from qwen3_train.plan.memory import plan_memory
from qwen3_train.plan.totals import count_totals

TINY = dataclasses.replace(
    SIZES["0.6B"], vocab_size=64, hidden_size=16, intermediate_size=24, num_layers=4, num_heads=8,
    num_kv_heads=4, head_dim=4,
)  # fmt: skip


def whole_tensors(config):
    rng = np.random.default_rng(3)
    names = [f"{kind}{name}" for kind in ("", "adam_m.", "adam_v.") for name in config.weight_shapes()]
    shapes = config.weight_shapes()
    return {
        name: rng.standard_normal(shapes[name.removeprefix("adam_m.").removeprefix("adam_v.")], np.float32)
        for name in names
    }


def slice_of(value, cut, local):
    parts, piece = cut.slice_of(local)
    for dim, (part, count) in enumerate(zip(parts, cut.splits(), strict=True)):
        value = np.split(value, count, axis=dim)[part]
    return np.split(value, cut.optimizer_pieces())[piece]


def write_run(folder, layout, config, whole, *, shares_moments, shares_writing=True):
    """Write what every rank of a run would have written."""
    how = {"offset": (), "shares_moments": shares_moments, "lora": None}
    for rank in range(layout.num_ranks):
        write_strategies(folder, layout, config, rank, shares_moments=shares_moments)
        stage, local = divmod(rank, layout.dp * layout.tp)
        tensors = [
            FloatTensor(name, part.shape, lambda part=part: part)
            for name, (cut, _) in stage_tensors(layout, config, stage, **how).items()
            for part in [np.ascontiguousarray(slice_of(whole[name], cut, local))]
        ]
        share = own_share(layout, config, rank, **how) if shares_writing else None
        writer = CheckpointWriter(
            folder / "checkpoint" / f"rank_{rank}", f"qwen3_rank_{rank}", 1, in_thread=rank % 2 == 1,
            share=share, wait_for_others=lambda: None, log=lambda _: None,
        )  # fmt: skip
        (folder / "checkpoint" / f"rank_{rank}").mkdir(parents=True)
        writer.save(EpochStep(1, 5), TrainState(5, "data"), tensors)
        writer.finish()


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize(
    ("layout", "shares_moments"),
    [((4, 1, 1), False), ((4, 2, 1), True), ((3, 1, 2), True), ((2, 2, 2), False), ((1, 4, 2), False)],
)
def test_each_slice_is_written_once_and_all_come_back(tmp_path, layout, shares_moments, is_tied):
    config = dataclasses.replace(TINY, tie_word_embeddings=is_tied)
    layout = Layout(dp=layout[0], tp=layout[1], pp=layout[2])
    how = {"offset": (), "shares_moments": shares_moments, "lora": None}
    whole, written, num_seen = whole_tensors(config), [], {}
    write_run(tmp_path, layout, config, whole, shares_moments=shares_moments)
    for rank in range(layout.num_ranks):
        stage, local = divmod(rank, layout.dp * layout.tp)
        file = open_safetensors(next((tmp_path / "checkpoint" / f"rank_{rank}").glob("*.safetensors")))
        assert file.metadata["remove_redundancy"] == "True"
        held = [info for info in file.tensors.values() if "." in info.name]
        written.append(sum(info.size_bytes for info in held))
        for info in held:
            cut = stage_tensors(layout, config, stage, **how)[info.name][0]
            place = stage, info.name, cut.slice_of(local), local % layout.tp
            num_seen[place] = num_seen.get(place, 0) + 1
    assert set(num_seen.values()) == {1}
    assert sum(written) == checkpoint_bytes(layout, config, **how, shares_writing=True)
    shapes = config.weight_shapes()
    unique = 12 * sum(
        math.prod(shape) * (layout.tp if "norm" in name else 1) for name, shape in shapes.items()
    )
    twice = 12 * math.prod(shapes["model.embed_tokens.weight"])
    assert sum(written) == unique + (twice if is_tied and layout.pp > 1 else 0)
    files, _ = choose_checkpoint(tmp_path, layout.num_ranks, None)
    for own_rank in (None, layout.num_ranks - 1):
        found = open_rank_tensors(files, own_rank=own_rank)
        for name, value in whole.items():
            np.testing.assert_array_equal(found.read(name)[1], value, err_msg=name)


def test_without_sharing_each_replica_counts():
    how = {"offset": (), "shares_moments": False, "lora": None}
    one = checkpoint_bytes(Layout(), TINY, **how, shares_writing=False)
    assert one == 12 * TINY.num_parameters()
    assert checkpoint_bytes(Layout(dp=4), TINY, **how, shares_writing=False) == 4 * one
    assert checkpoint_bytes(Layout(dp=4), TINY, **how, shares_writing=True) == one


def test_32b_on_1024_devices_writes_what_there_is_and_each_rank_its_part():
    layout, config = Layout(dp=32, tp=8, pp=4), SIZES["32B"]
    how = {"offset": (), "shares_moments": True, "lora": None}
    total = checkpoint_bytes(layout, config, **how, shares_writing=True)
    assert total == pytest.approx(12 * config.num_parameters(), rel=2e-4)
    assert checkpoint_bytes(layout, config, **how, shares_writing=False) == pytest.approx(4.842e12, rel=1e-3)
    for stage in range(4):
        tensors = stage_tensors(layout, config, stage, **how)
        sizes = [sum(4 * tensors[name][1] for name in share) for share in shares_of_stage(tensors)]
        assert max(sizes) < 2 * sum(sizes) / len(sizes), "no rank has much more to write than others"


@pytest.mark.parametrize("shares_writing", [True, False])
@pytest.mark.parametrize("shares_moments", [True, False])
@pytest.mark.parametrize(("dp", "tp", "pp"), [(1, 1, 1), (32, 8, 4), (8, 4, 2), (64, 8, 2)])
def test_plan_counts_what_is_written_and_read(dp, tp, pp, shares_moments, shares_writing):
    layout, is_shared = Layout(dp=dp, tp=tp, pp=pp), shares_moments and dp > 1
    settings = make_settings(
        "8B", layout=layout, micro_batch_num=pp, parallel_optimizer=is_shared, shares_writing=shares_writing
    )
    totals = count_totals(settings, plan_memory(settings), [])
    how = {"offset": (), "shares_moments": is_shared, "lora": None, "shares_writing": shares_writing}
    assert totals.checkpoint_bytes == checkpoint_bytes(layout, SIZES["8B"], **how)
    copies = dp + (2 if is_shared else 2 * dp)
    assert totals.resume_bytes == pytest.approx(4 * copies * SIZES["8B"].num_parameters(), rel=1e-3)


@pytest.mark.parametrize("shares_writing", [True, False])
@pytest.mark.parametrize("shares_moments", [True, False])
def test_a_rank_reads_its_own_file_and_of_others_what_it_lacks(tmp_path, shares_moments, shares_writing):
    layout, whole = Layout(dp=3, tp=2, pp=2), whole_tensors(TINY)
    write_run(tmp_path, layout, TINY, whole, shares_moments=shares_moments, shares_writing=shares_writing)
    settings = SimpleNamespace(
        layout=layout, model=TINY, offset=(), parallel_optimizer=shares_moments, lora=None
    )
    paths = files_of_step(tmp_path, "qwen3_rank_0-1_5")
    how = {"offset": (), "shares_moments": shares_moments, "lora": None}
    for rank in range(layout.num_ranks):
        source = ResumeSource(files=LateFiles(paths), is_own=True, is_checked=True)
        found = own_slices.open_own_slices(source, settings, rank)
        stage, local = divmod(rank, layout.dp * layout.tp)
        tensors = stage_tensors(layout, TINY, stage, **how)
        assert found.keys() == tensors.keys()
        for name, (cut, _) in tensors.items():
            np.testing.assert_array_equal(found[name].read(), slice_of(whole[name], cut, local), err_msg=name)
        opened = source.files.opened
        # The first rank's file says where the run is.
        assert rank in opened
        assert len(opened.keys() - {0}) <= (layout.dp if shares_writing else 1)
    other = SimpleNamespace(
        layout=Layout(dp=3, tp=4), model=TINY, offset=(), parallel_optimizer=shares_moments, lora=None
    )
    assert own_slices.open_own_slices(source, other, 0) is None
