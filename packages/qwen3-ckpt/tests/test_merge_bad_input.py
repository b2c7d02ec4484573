import hashlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from ckpt_samples import TIED, TINY, Spec, make_checkpoint
from click.testing import CliRunner

from qwen3_ckpt.cli import main
from qwen3_model.checkpoints.safetensors_file import TensorPlan, open_safetensors, write_safetensors
from qwen3_model.checkpoints.strategy import TensorLayout, encode_strategy, read_strategy

NAME = "model.layers.0.mlp.up_proj.weight"


def merge(made, out, *more):
    arguments = [
        "merge", "--mindspore-ckpt-dir", made.checkpoint_dir, "--src-strategy-dirs", made.strategy_dir,
        "--output-dir", out, *more,
    ]  # fmt: skip
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(made, out, *more):
    """Run a merge that must fail with one sentence, leave the sources alone and write nothing."""
    before = digest(made)
    result = merge(made, out, *more)
    assert result.exit_code == 1, result.output
    assert result.output.startswith("Error: ") or "\nError: " in result.output
    assert "Traceback" not in result.output
    assert digest(made) == before
    assert not out.exists() or not list(out.iterdir())
    return result.output


def digest(made):
    paths = sorted(path for folder in (made.checkpoint_dir, made.strategy_dir) for path in folder.rglob("*"))
    return [(path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths if path.is_file()]


def rank_file(made, rank):
    (path,) = (made.checkpoint_dir / f"rank_{rank}").glob("*.safetensors")
    return path


def rewrite(path, change):
    """Write the file anew with `change` applied to {name: (dtype, array)}."""
    file = open_safetensors(path)
    tensors = {name: (info.dtype, np.array(file.raw(name))) for name, info in file.tensors.items()}
    change(tensors)
    entries = [(TensorPlan(name, dtype, value.shape), [value]) for name, (dtype, value) in tensors.items()]
    write_safetensors(path, entries, file.metadata)


@pytest.fixture
def made(tmp_path):
    return make_checkpoint(tmp_path / "run", Spec(dp=2, tp=2, pp=2))


def test_a_missing_rank_is_replaced_by_its_twin_and_named(made, tmp_path):
    shutil.rmtree(made.checkpoint_dir / "rank_0")
    result = merge(made, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "rank_0 missing; ranks with the same slices were used" in result.output


def test_a_slice_that_no_rank_has_is_named(made, tmp_path):
    for rank in (1, 3):
        shutil.rmtree(made.checkpoint_dir / f"rank_{rank}")
    assert f"{NAME}: the slice of rank_1 or rank_3 is missing" in refused(made, tmp_path / "out").replace(
        "\n", ""
    )


def test_a_truncated_file_is_named(made, tmp_path):
    path = rank_file(made, 2)
    path.write_bytes(path.read_bytes()[:-10])
    assert f"{path} is cut short" in refused(made, tmp_path / "out")


def test_an_empty_file_is_named(made, tmp_path):
    rank_file(made, 2).write_bytes(b"")
    assert f"{rank_file(made, 2)} is no safetensors file" in refused(made, tmp_path / "out")


def test_a_rank_of_another_dtype_is_named(made, tmp_path):
    rewrite(rank_file(made, 1), lambda t: t.update({NAME: ("F16", t[NAME][1].astype(np.float16))}))
    assert f"{NAME} is F32 (12, 16) in rank_0 but F16 (12, 16) in rank_1" in refused(made, tmp_path / "out")


def test_a_rank_of_another_shape_is_named(made, tmp_path):
    rewrite(rank_file(made, 1), lambda t: t.update({NAME: ("F32", t[NAME][1][:5])}))
    assert f"{NAME} is F32 (12, 16) in rank_0 but F32 (5, 16) in rank_1" in refused(made, tmp_path / "out")


def test_a_tensor_absent_everywhere_is_named(made, tmp_path):
    for rank in range(4):
        rewrite(rank_file(made, rank), lambda t: t.pop(NAME))
    assert f"{NAME} is in the strategy but in no rank's file" in refused(made, tmp_path / "out")


def test_a_tensor_that_the_strategy_does_not_know_is_named(made, tmp_path):
    rewrite(rank_file(made, 0), lambda t: t.update({"new-name": ("F32", np.ones((2, 2), np.float32))}))
    assert "new-name in rank_0 is not in the strategy of its stage" in refused(made, tmp_path / "out")


def test_replicas_that_disagree_are_found_on_request(made, tmp_path):
    rewrite(rank_file(made, 2), lambda t: t.update({NAME: ("F32", t[NAME][1] + 1)}))
    output = refused(made, tmp_path / "out", "--check-replicas")
    assert f"{NAME} differs between" in output
    assert merge(made, tmp_path / "out").exit_code == 0


def test_names_with_a_hyphen_survive_a_merged_strategy(tmp_path):
    made = make_checkpoint(tmp_path / "run", Spec())
    name = "my-adapter.0-1.lora_A"
    rewrite(rank_file(made, 0), lambda t: t.update({name: ("F32", np.ones((2, 3), np.float32))}))
    stage, layouts = read_strategy(made.strategy_dir / "ckpt_strategy_rank_0.ckpt")
    layouts[name] = TensorLayout(dev_matrix=(1, 1), tensor_map=(-1, -1))
    items = {f"{stage}-{key}": (stage, layout) for key, layout in layouts.items()}
    (made.strategy_dir / "ckpt_strategy_rank_0.ckpt").write_bytes(encode_strategy(0, items))
    result = merge(made, tmp_path / "out")
    assert result.exit_code == 0, result.output
    (part,) = (tmp_path / "out").rglob("part0.safetensors")
    assert open_safetensors(part).raw(name).shape == (2, 3)


def test_a_damaged_strategy_file_is_named(made, tmp_path):
    path = made.strategy_dir / "ckpt_strategy_rank_5.ckpt"
    path.write_bytes(path.read_bytes()[:-3])
    assert f"{path} is damaged or no strategy file" in refused(made, tmp_path / "out")
    path.write_bytes(b"")
    assert str(path) in refused(made, tmp_path / "out")


def test_a_rank_of_another_run_with_other_names_is_named(made, tmp_path):
    rewrite(rank_file(made, 7), lambda t: t.update({"decoder.layers.3.mlp.linear_fc2.weight": t.pop(
        "model.layers.3.mlp.down_proj.weight")}))  # fmt: skip
    output = refused(made, tmp_path / "out")
    assert "decoder.layers.3.mlp.linear_fc2.weight in rank_7 is not in the strategy of its stage" in output


def test_a_tied_embedding_that_differs_between_stages_is_found_on_request(tmp_path):
    made = make_checkpoint(tmp_path / "run", Spec(pp=2, config=TIED))
    name = "model.embed_tokens.weight"
    rewrite(rank_file(made, 1), lambda t: t.update({name: ("F32", t[name][1] + 1)}))
    output = refused(made, tmp_path / "out", "--check-replicas")
    assert f"{name} differs between the stages that hold it" in output


def test_a_stage_without_strategy_is_named(made, tmp_path):
    for rank in range(4):
        (made.strategy_dir / f"ckpt_strategy_rank_{rank}.ckpt").unlink()
    assert "the strategy lacks stage 0" in refused(made, tmp_path / "out")


def test_the_strategy_of_a_later_stage_missing_is_seen_from_the_ranks(made, tmp_path):
    for rank in range(4, 8):
        (made.strategy_dir / f"ckpt_strategy_rank_{rank}.ckpt").unlink()
    assert "the strategy is for 4 devices, but there is a rank_4" in refused(made, tmp_path / "out")


def test_a_strategy_of_another_layout_is_refused_by_shape(tmp_path):
    made = make_checkpoint(tmp_path / "run", Spec(dp=2, tp=2))
    other = make_checkpoint(tmp_path / "other", Spec(dp=4))
    shutil.rmtree(made.strategy_dir)
    shutil.copytree(other.strategy_dir, made.strategy_dir)
    assert "is of another run" in refused(made, tmp_path / "out")


def test_a_strategy_of_another_layout_is_seen_without_a_config_from_the_ranks_that_should_be_equal(tmp_path):
    made = make_checkpoint(tmp_path / "run", Spec(dp=2, tp=2))
    other = make_checkpoint(tmp_path / "other", Spec(dp=4))
    shutil.rmtree(made.strategy_dir)
    shutil.copytree(other.strategy_dir, made.strategy_dir)
    (tmp_path / "run" / "config.json").unlink()
    output = refused(made, tmp_path / "out")
    assert "hold the same slices, but" in output
    assert "the strategy is of another run or layout" in output


def test_a_merged_strategy_beside_the_rank_files_does_not_matter_unless_it_disagrees(made, tmp_path):
    items = {}
    for rank in (0, 4):
        stage, layouts = read_strategy(made.strategy_dir / f"ckpt_strategy_rank_{rank}.ckpt")
        items |= {f"{stage}-{name}": (stage, layout) for name, layout in layouts.items()}
    merged = made.strategy_dir / "merged_ckpt_strategy.ckpt"
    merged.write_bytes(encode_strategy(0, items))
    result = merge(made, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "was not needed" in result.output
    shutil.rmtree(tmp_path / "out")
    items.pop(f"0-{NAME}")
    merged.write_bytes(encode_strategy(0, items))
    assert "disagrees with the rank files beside it" in refused(made, tmp_path / "out")


def test_a_merged_strategy_file_alone_works(made, tmp_path):
    assert merge(made, tmp_path / "a").exit_code == 0
    merged = tmp_path / "a" / "1_5_ckpt_convert" / "merge_strategy" / "merge_strategy.ckpt"
    arguments = ["merge", "--mindspore-ckpt-dir", made.checkpoint_dir, "--src-strategy-dirs", merged,
                 "--output-dir", tmp_path / "b"]  # fmt: skip
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    for part in (tmp_path / "a" / "1_5_ckpt_convert" / "unified_safe").iterdir():
        assert (
            part.read_bytes()
            == (tmp_path / "b" / "1_5_ckpt_convert" / "unified_safe" / part.name).read_bytes()
        )


def test_ranks_at_different_steps_merge_at_the_newest_common_one(made, tmp_path):
    path = rank_file(made, 0)
    shutil.copy(path, path.with_name("qwen3_rank_0-1_9.safetensors"))
    result = merge(made, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "step 1_9 is not in every rank folder and was passed over" in result.output
    assert (tmp_path / "out" / "1_5_ckpt_convert").is_dir()


def add_step(made, suffix):
    for rank in range(8):
        path = rank_file(made, rank)
        shutil.copy(path, path.with_name(f"qwen3_rank_{rank}-{suffix}.safetensors"))


def test_the_newest_step_is_passed_over_when_a_file_of_it_is_cut_short(made, tmp_path):
    add_step(made, "2_1")
    cut = made.checkpoint_dir / "rank_3" / "qwen3_rank_3-2_1.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    result = merge(made, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert f"step 2_1 was passed over: {cut.name} is not whole ({cut} is cut short" in result.output
    assert (tmp_path / "out" / "1_5_ckpt_convert").is_dir()
    assert str(cut) in refused(made, tmp_path / "named", "--file-suffix", "2_1")


def test_two_files_of_one_step_are_named_not_chosen_from(made, tmp_path):
    path = rank_file(made, 0)
    shutil.copy(path, path.with_name("qwen3_1_rank_0-1_5.safetensors"))
    output = refused(made, tmp_path / "out")
    assert "several files of step 1_5: qwen3_1_rank_0-1_5.safetensors, qwen3_rank_0-1_5.safetensors" in output


def test_what_has_redundancy_says_is_checked_against_the_files(made, tmp_path):
    result = merge(made, tmp_path / "out", "--has_redundancy", "False")
    assert result.exit_code == 0
    assert "--has-redundancy False is not what the files say" in result.output
    result = merge(made, tmp_path / "other", "--has_redundancy", "True")
    assert "--has-redundancy" not in result.output


def test_files_of_one_name_from_different_steps_are_seen_by_their_counters(made, tmp_path):
    rewrite(rank_file(made, 6), lambda t: t.update({"global_step": ("I32", np.array(6, np.int32))}))
    output = refused(made, tmp_path / "out")
    assert "global_step in rank_6 is not that of the ranks before it; they are at different steps" in output


def test_an_unknown_step_lists_the_known_ones(made, tmp_path):
    assert "has no step 7_7; its steps are 1_5" in refused(made, tmp_path / "out", "--file-suffix", "7_7")


def test_a_header_that_lies_is_named(made, tmp_path):
    path = rank_file(made, 0)
    path.write_bytes(path.read_bytes().replace(b'"shape":[12,16]', b'"shape":[16,16]', 1))
    assert str(path) in refused(made, tmp_path / "out")


def test_an_optimizer_prefix_is_left_out_whole(tmp_path):
    made = make_checkpoint(tmp_path / "run", Spec(dp=2, with_moments=True, shard_moments=True))
    result = merge(made, tmp_path / "out", "--filter-out-param-prefix", "adam_")
    assert result.exit_code == 0, result.output
    names = set()
    for path in (tmp_path / "out").rglob("*.safetensors"):
        names |= open_safetensors(path).tensors.keys()
    assert names == TINY.weight_shapes().keys() | {"global_step"}


def test_a_dry_run_writes_nothing(made, tmp_path):
    result = merge(made, tmp_path / "out", "--dry-run")
    assert result.exit_code == 0
    assert result.stdout.startswith("would merge step 1_5: 47 tensors, ")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_refuses_what_the_merge_would_refuse(made, tmp_path):
    (tmp_path / "out" / "1_5_ckpt_convert").mkdir(parents=True)
    result = merge(made, tmp_path / "out", "--dry-run")
    assert result.exit_code == 1
    assert "already exists" in result.output


def test_an_existing_merge_survives_a_failed_one(made, tmp_path):
    assert merge(made, tmp_path / "out").exit_code == 0
    kept = tmp_path / "out" / "1_5_ckpt_convert" / "unified_safe" / "part0.safetensors"
    before = kept.read_bytes()
    assert "already exists" in merge(made, tmp_path / "out").output
    rank_file(made, 2).write_bytes(b"")
    assert merge(made, tmp_path / "out", "--force").exit_code == 1
    assert kept.read_bytes() == before


def test_a_kill_at_any_moment_leaves_the_output_absent_or_whole(tmp_path):
    made = make_checkpoint(tmp_path / "run", Spec(tp=2, with_moments=True))
    out = tmp_path / "out"
    command = [
        sys.executable, "-c", "from qwen3_ckpt.cli import main; main()", "merge", "--mindspore-ckpt-dir",
        made.checkpoint_dir, "--src-strategy-dirs", made.strategy_dir, "--output-dir", out,
    ]  # fmt: skip
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    whole_s = time.monotonic() - started
    shutil.rmtree(out)
    for tenth in range(4, 10):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(whole_s * tenth / 10)
        process.kill()
        process.wait()
        assert (
            not (out / "1_5_ckpt_convert").exists()
            or (out / "1_5_ckpt_convert" / "unified_safe" / "hyper_param.safetensors").exists()
        )
        shutil.rmtree(out / "1_5_ckpt_convert", ignore_errors=True)
    result = merge(made, out)
    assert result.exit_code == 0, result.output
    assert [path.name for path in out.iterdir()] == ["1_5_ckpt_convert"]
