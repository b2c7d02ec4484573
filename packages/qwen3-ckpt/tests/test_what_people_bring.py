"""Folders as people have them: put right, or answered with what was found and what to do."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from ckpt_samples import TIED, TINY, Spec, make_checkpoint
from click.testing import CliRunner

from qwen3_ckpt.cli import main
from qwen3_model.checkpoints.hf_folder import write_hf_weights
from qwen3_model.checkpoints.safetensors_file import (
    NUMPY_DTYPES,
    TensorPlan,
    open_safetensors,
    write_safetensors,
)

RNG = np.random.default_rng(3)
WEIGHTS = {
    name: RNG.standard_normal(shape).astype(np.float32) for name, shape in TINY.weight_shapes().items()
}
UP, Q, EMBEDDING = (
    "model.layers.1.mlp.up_proj.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.embed_tokens.weight",
)


def run(*words: object):
    return CliRunner().invoke(main, [str(word) for word in words])


def write(folder: Path, weights, *, dtypes=None, config=TINY, extra=None, shard=10**9) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_hf() | (extra or {})), encoding="utf-8")
    dtypes = dtypes or {}
    entries = []
    for name, values in weights.items():
        dtype = dtypes.get(name, "F32")
        stored = np.zeros(values.shape, NUMPY_DTYPES[dtype]) if dtype != "F32" else values
        entries.append((TensorPlan(name, dtype, values.shape), [stored]))
    write_hf_weights(folder, entries, shard)
    return folder


def assert_whole(folder: Path, expected=WEIGHTS) -> None:
    file = open_safetensors(folder / "model.safetensors")
    assert list(file.tensors) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(file.raw(name), values, err_msg=name)


# Types


@pytest.mark.parametrize("dtype", ["F64", "F8_E4M3", "F8_E5M2", "I8", "BOOL", "I32"])
@pytest.mark.parametrize("flags", [[], ["--dtype", "bf16"], ["--to", "mindformers"]], ids=str)
@pytest.mark.parametrize("name", [EMBEDDING, UP])
def test_weights_of_no_float_type_are_refused_by_name(tmp_path, dtype, flags, name):
    source = write(tmp_path / "hf", WEIGHTS, dtypes={name: dtype})
    result = run("convert", source, tmp_path / "out", *flags)
    assert result.exit_code == 1
    assert f"{name} in model.safetensors has dtype {dtype}, expected one of BF16, F16, F32" in result.output
    assert not (tmp_path / "out").exists()
    assert run("verify", source).exit_code == 1


@pytest.mark.parametrize(("name", "dtype"), [(UP, "F16"), (UP, "BF16"), (Q, "F16"), (Q, "BF16")])
@pytest.mark.parametrize("mlp", ["interleaved", "contiguous"])
@pytest.mark.parametrize("qkv", ["grouped", "contiguous"])
def test_types_are_never_joined_raw(tmp_path, name, dtype, mlp, qkv):
    """Two-byte types have one size, so their bits would pass for each other."""
    others = dict.fromkeys(WEIGHTS, "F16" if dtype == "BF16" else "BF16")
    source = write(tmp_path / "hf", WEIGHTS, dtypes=others | {name: dtype})
    flags = ("--to", "mindformers", "--target-qkv", qkv, "--target-mlp", mlp)
    result = run("convert", source, tmp_path / "out", *flags)
    assert result.exit_code == 1
    assert name in result.output
    assert "give them one type with --dtype" in result.output
    assert not (tmp_path / "out").exists()
    assert run("convert", source, tmp_path / "out", *flags, "--dtype", "fp32").exit_code == 0


# Starts of a run


@pytest.mark.parametrize("words", [
    ("merge", "--mindspore-ckpt-dir", "{0}/checkpoint", "--output-dir", "{1}"),
    ("merge", "--mindspore-ckpt-dir", "{0}/checkpoint", "--output-dir", "{1}", "--check-replicas"),
    ("reshard", "{0}", "{1}"), ("convert", "{0}", "{1}"), ("verify", "{0}"), ("inspect", "{0}"),
    ("diff", "{0}", "{0}"),
])  # fmt: skip
def test_ranks_of_different_starts_are_not_joined(tmp_path, words):
    made = make_checkpoint(tmp_path / "run", Spec(pp=2))
    for rank in (0, 1):
        (path,) = (made.checkpoint_dir / f"rank_{rank}").glob("*.safetensors")
        file = open_safetensors(path)
        entries = [(TensorPlan(n, i.dtype, i.shape), [file.raw(n).copy()]) for n, i in file.tensors.items()]
        write_safetensors(
            path, entries, file.metadata | {"qwen3_train": json.dumps({"course": f"start {rank}"})}
        )
    result = run(*(word.format(tmp_path / "run", tmp_path / "out") for word in words))
    assert result.exit_code == 1
    assert "step 1_5 was written by ranks of different starts of the run" in result.output
    assert not (tmp_path / "out").exists()


# Names


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "_fsdp_wrapped_module.", "model._orig_mod.layers"]
)
def test_prefixes_of_wrappers_are_taken_off(tmp_path, prefix):
    named = {
        name.replace("model.layers", prefix) if prefix.startswith("model.") else prefix + name: values
        for name, values in WEIGHTS.items()
    }
    result = run("convert", write(tmp_path / "hf", named), tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert_whole(tmp_path / "out")


def test_a_name_with_and_without_a_prefix_is_refused(tmp_path):
    source = write(tmp_path / "hf", WEIGHTS | {f"_orig_mod.{UP}": WEIGHTS[UP]})
    result = run("convert", source, tmp_path / "out")
    assert result.exit_code == 1
    assert "mean the same weight; keep one of them" in result.output


def test_rotary_buffers_are_left_out(tmp_path):
    buffers = {
        f"model.{place}rotary_emb.inv_freq": np.ones(2, np.float32) for place in ("", "layers.0.self_attn.")
    }
    source = write(tmp_path / "hf", WEIGHTS | buffers)
    assert run("verify", source).exit_code == 0
    assert run("convert", source, tmp_path / "out").exit_code == 0
    assert_whole(tmp_path / "out")


def test_names_without_model_are_put_right_and_a_missing_head_is_explained(tmp_path):
    headless = {
        name.removeprefix("model."): values for name, values in WEIGHTS.items() if name != "lm_head.weight"
    }
    result = run("convert", write(tmp_path / "tied", headless, config=TIED), tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert_whole(tmp_path / "out", {name: v for name, v in WEIGHTS.items() if name != "lm_head.weight"})
    result = run("convert", write(tmp_path / "untied", headless), tmp_path / "out2")
    assert result.exit_code == 1
    assert "lm_head.weight is missing, as in models of embeddings without a head" in result.output


# Files


def test_a_single_file_beside_an_index_must_be_the_same_model(tmp_path):
    source = write(tmp_path / "hf", WEIGHTS, shard=10_000)
    single = write(tmp_path / "one", WEIGHTS) / "model.safetensors"
    shutil.copyfile(single, source / "model.safetensors")
    assert run("convert", source, tmp_path / "same").exit_code == 0
    assert_whole(tmp_path / "same")
    for number, change in enumerate([{UP: WEIGHTS[UP] + 1}, {"extra.weight": WEIGHTS[UP]}]):
        other = write(tmp_path / f"other{number}", WEIGHTS | change) / "model.safetensors"
        shutil.copyfile(other, source / "model.safetensors")
        for words in (("convert", source, tmp_path / "out"), ("verify", source), ("inspect", source)):
            result = run(*words)
            assert result.exit_code == 1
            assert "hold different weights, such as" in result.output
    assert not (tmp_path / "out").exists()


def test_an_index_may_name_the_single_file(tmp_path):
    source = write(tmp_path / "hf", WEIGHTS)
    index = {"metadata": {}, "weight_map": dict.fromkeys(WEIGHTS, "model.safetensors")}
    (source / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert run("convert", source, tmp_path / "out").exit_code == 0


def test_a_folder_without_tensors_is_not_sound(tmp_path):
    source = write(tmp_path / "hf", {})
    write_safetensors(source / "model.safetensors", [], {})
    for words in (("verify", source), ("convert", source, tmp_path / "out"), ("inspect", source)):
        result = run(*words)
        assert result.exit_code == 1
        assert "without a tensor" in result.output


def _lfs(folder: Path) -> None:
    write(folder, WEIGHTS)
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 123\n"
    (folder / "model.safetensors").write_text(text)


def _hub_cache(folder: Path) -> None:
    write(folder / "snapshots" / "abc", WEIGHTS)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")


def _no_index(folder: Path) -> None:
    write(folder, WEIGHTS, shard=10_000)
    (folder / "model.safetensors.index.json").unlink()


def _files(*names: str):
    def make(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()

    return make


def _adapters(folder: Path) -> None:
    for name in "ab":
        (folder / name).mkdir(parents=True)
        write_safetensors(folder / name / "adapter_model.safetensors", [], {})


STRANGERS = {
    "Git LFS": (_lfs, "is a Git LFS pointer, not the weights; run `git lfs pull`"),
    "hub cache": (
        _hub_cache,
        "a cache folder of the Hugging Face hub; give the snapshot in it, such as .*/abc",
    ),
    "no index": (_no_index, "no model.safetensors.index.json that lists it"),
    "pickle": (_files("pytorch_model.bin"), "pytorch_model.bin, weights as PyTorch's pickle, which can run"),
    "adapter pickle": (_files("adapter_model.bin"), "adapter_model.bin, an adapter as PyTorch's pickle"),
    "adapters": (_adapters, "adapters in folders of their own: .*/a, .*/b"),
    "GGUF": (_files("m.gguf"), "m.gguf, a GGUF file, which is read by llama.cpp alone"),
    "runs": (_files("x/checkpoint/rank_0/y"), "holds runs: .*/x; give one of them"),
}


@pytest.mark.parametrize("kind", STRANGERS)
@pytest.mark.parametrize("command", ["convert", "reshard", "inspect", "verify"])
def test_what_is_no_model_here_is_named_with_the_remedy(tmp_path, kind, command):
    make, sentence = STRANGERS[kind]
    make(tmp_path / "source")
    words = (tmp_path / "out",) if command in ("convert", "reshard") else ()
    result = run(command, tmp_path / "source", *words)
    assert result.exit_code == 1
    assert re.search(sentence, result.output), result.output
    assert not (tmp_path / "out").exists()


def test_a_rank_file_stands_for_its_step(tmp_path):
    made = make_checkpoint(tmp_path / "run", Spec(tp=2))
    (path,) = (made.checkpoint_dir / "rank_1").glob("*.safetensors")
    assert run("convert", path, tmp_path / "out").exit_code == 0
    assert_whole(tmp_path / "out", made.whole)


# Companions


def test_small_files_come_along_and_links_out_of_the_folder_do_not(tmp_path):
    source = write(tmp_path / "hf", WEIGHTS)
    for name in ("LICENSE", "README.md", "additional_chat_templates/tool.jinja"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(name, encoding="utf-8")
    assert run("convert", source, tmp_path / "out").exit_code == 0
    for name in ("LICENSE", "README.md", "additional_chat_templates/tool.jinja"):
        assert (tmp_path / "out" / name).read_text(encoding="utf-8") == name
    (tmp_path / "private").write_text("secret", encoding="utf-8")
    (source / "vocab.json").symlink_to(tmp_path / "private")
    result = run("convert", source, tmp_path / "leak")
    assert result.exit_code == 1
    assert "vocab.json is a link out of its folder" in result.output
    assert not (tmp_path / "leak").exists()


def test_links_of_the_hubs_cache_are_followed(tmp_path):
    snapshot = write(tmp_path / "models--me--m" / "snapshots" / "abc", WEIGHTS)
    (tmp_path / "models--me--m" / "blobs").mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(tmp_path / "models--me--m" / "blobs" / str(number))
        path.symlink_to(f"../../blobs/{number}")
    assert run("convert", snapshot, tmp_path / "out").exit_code == 0
    assert_whole(tmp_path / "out")


def test_names_of_strangers_do_not_reach_the_terminal_raw(tmp_path):
    name = "\x1b]0;owned\x07model.x\nfine"
    write_safetensors(
        tmp_path / "a.safetensors", [(TensorPlan(name, "F32", (1,)), [np.ones(1, np.float32)])], {}
    )
    for words in (
        ("inspect", tmp_path / "a.safetensors"),
        ("diff", tmp_path / "a.safetensors", tmp_path / "a.safetensors"),
    ):
        assert "\x1b" not in run(*words).output
        assert "\x07" not in run(*words).output
