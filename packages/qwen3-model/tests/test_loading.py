"""Weights from files and seeds into a model."""

import dataclasses
import json
import mmap
import os

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from qwen3_model.checkpoints.fresh_weights import init_weights
from qwen3_model.checkpoints.hf_folder import open_hf_folder, write_hf_weights
from qwen3_model.checkpoints.safetensors_file import (
    TensorPlan,
    from_float32,
    open_safetensors,
    to_float32,
    write_safetensors,
)
from qwen3_model.checkpoints.tensors import whole_tensors
from qwen3_model.checkpoints.weight_values import LARGE_PAGE
from qwen3_model.config import SIZES
from qwen3_model.errors import FormatError, WeightError
from qwen3_model.network.loading import fill, fill_weights, init_model, load_hf, own_part
from qwen3_model.network.model import Qwen3ForCausalLM

TINY = dataclasses.replace(
    SIZES["0.6B"], vocab_size=600, hidden_size=512, intermediate_size=8, num_layers=1, num_heads=2,
    num_kv_heads=1, head_dim=4,
)  # fmt: skip
STORED = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def write_folder(path, dtype="BF16", *, config=TINY, max_shard_bytes=10**9, drop=(), add=()):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config.to_hf()), encoding="utf-8")
    values = {name: value for name, value in init_weights(config, 0) if name not in drop} | dict(add)
    stored = {name: from_float32(value, dtype) for name, value in values.items()}
    write_hf_weights(
        path,
        [(TensorPlan(name, dtype, value.shape), [value]) for name, value in stored.items()],
        max_shard_bytes,
    )
    return {name: to_float32(value, dtype) for name, value in stored.items()}


@pytest.mark.parametrize(
    ("dtype", "max_shard_bytes"), [("BF16", 10**9), ("BF16", 50_000), ("F16", 10**9), ("F32", 10**9)]
)
def test_every_weight_arrives_exactly_from_one_file_or_many(tmp_path, dtype, max_shard_bytes):
    wanted = write_folder(tmp_path / "m", dtype, max_shard_bytes=max_shard_bytes)
    model = Qwen3ForCausalLM(TINY)
    load_hf(model, tmp_path / "m")
    for name, parameter in model.parameters_and_names():
        np.testing.assert_array_equal(parameter.asnumpy(), wanted[name], err_msg=name)


def test_a_model_in_bfloat16_gets_the_files_own_bits(tmp_path):
    wanted = write_folder(tmp_path / "m")
    model = Qwen3ForCausalLM(TINY, param_dtype=ms.bfloat16)
    load_hf(model, tmp_path / "m")
    for name, parameter in model.parameters_and_names():
        assert parameter.dtype == ms.bfloat16
        np.testing.assert_array_equal(parameter.astype(ms.float32).asnumpy(), wanted[name], err_msg=name)


@pytest.mark.parametrize("num_rows", [1024, 1023, 1500])
def test_a_large_weight_in_bfloat16_lies_on_large_pages(num_rows):
    bits = np.random.default_rng(0).integers(0, 1 << 14, (num_rows, 1024)).astype(np.uint16)
    parameter = ms.Parameter(ms.Tensor(np.zeros(bits.shape, np.float32)).astype(ms.bfloat16))
    fill(parameter, "BF16", bits)
    np.testing.assert_array_equal(parameter.view(ms.int16).asnumpy().view(np.uint16), bits)
    if hasattr(mmap, "MADV_HUGEPAGE") and bits.nbytes >= LARGE_PAGE:
        assert parameter.data_ptr() % LARGE_PAGE == 0


@pytest.mark.parametrize("dtype", [ms.float32, ms.bfloat16])
def test_a_file_that_is_cut_while_it_is_loaded_is_a_sentence(tmp_path, dtype):
    write_folder(tmp_path / "m")
    model = Qwen3ForCausalLM(TINY, param_dtype=dtype)
    tensors = open_hf_folder(tmp_path / "m").tensors
    weights = own_part(model, {name: tensors.part(name) for name in tensors.names()})
    path = tmp_path / "m" / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(FormatError, match=r"model\.safetensors has become shorter while it was read"):
        fill_weights(model, weights, "here")


def test_a_part_of_a_part_is_that_of_an_array(tmp_path):
    values = np.arange(6 * 5 * 4, dtype=np.float32).reshape(6, 5, 4)
    write_safetensors(tmp_path / "x", [(TensorPlan("a", "F32", values.shape), [values])], {})
    part = whole_tensors([open_safetensors(tmp_path / "x")]).part("a")[1]
    for cut in (
        slice(1, 5),
        slice(None),
        (slice(2, 6), slice(1, 4)),
        (slice(0, 2), slice(3, 5), slice(1, 3)),
    ):
        np.testing.assert_array_equal(np.asarray(part[cut]), values[cut])
        assert part[cut].shape == values[cut].shape
        assert part[cut].nbytes == values[cut].nbytes
        np.testing.assert_array_equal(np.asarray(part[cut][1:3]), values[cut][1:3])


def test_all_shards_together_read_a_weight_once(tmp_path, monkeypatch):
    """Whichever dimension is cut: columns are read row by row, and nothing beside them."""
    values = np.arange(64 * 2048, dtype=np.float32).reshape(64, 2048)
    write_safetensors(tmp_path / "x", [(TensorPlan("a", "F32", values.shape), [values])], {})
    file, read = open_safetensors(tmp_path / "x"), []
    whole = file.read
    monkeypatch.setattr(
        type(file),
        "read",
        lambda self, name, first, last: read.append(last - first) or whole(name, first, last),
    )
    part = whole_tensors([file]).part("a")[1]
    for shard in range(8):
        for cut in (
            (slice(shard * 8, shard * 8 + 8), slice(0, 2048)),
            (slice(0, 64), slice(shard * 256, shard * 256 + 256)),
        ):
            np.testing.assert_array_equal(np.asarray(part[cut]), values[cut])
    assert sum(read) == 2 * values.nbytes


def test_weights_are_missing_left_over_or_misshapen_all_at_once(tmp_path):
    model = Qwen3ForCausalLM(TINY)
    weights = {name: ("F32", value) for name, value in init_weights(TINY, 0)}
    del weights["model.norm.weight"]
    weights["model.extra.weight"] = ("F32", np.ones(2, np.float32))
    weights["model.layers.0.mlp.up_proj.weight"] = ("F32", np.ones((8, 511), np.float32))
    weights["model.embed_tokens.weight"] = ("I32", np.ones((600, 512), np.int32))
    with pytest.raises(WeightError) as caught:
        fill_weights(model, weights, "here")
    for part in (
        "missing model.norm.weight",
        "unexpected model.extra.weight",
        "(8, 511)",
        "is I32",
        "of here",
    ):
        assert part in str(caught.value)
    assert not model.model.embed_tokens.weight.asnumpy().any(), "nothing was loaded"


def test_a_folder_that_does_not_fit_its_own_config_or_the_model_is_refused(tmp_path):
    write_folder(tmp_path / "short", drop=["model.norm.weight"])
    with pytest.raises(WeightError, match=r"model\.norm\.weight is missing"):
        load_hf(Qwen3ForCausalLM(TINY), tmp_path / "short")
    write_folder(tmp_path / "other", config=dataclasses.replace(TINY, intermediate_size=16))
    with pytest.raises(WeightError, match=r"has shape \(16, 512\), the model wants \(8, 512\)"):
        load_hf(Qwen3ForCausalLM(TINY), tmp_path / "other")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text(json.dumps(TINY.to_hf()), encoding="utf-8")
    with pytest.raises(FormatError, match="neither"):
        load_hf(Qwen3ForCausalLM(TINY), tmp_path / "empty")


def test_a_compiled_model_sees_weights_that_are_loaded_later():
    model = Qwen3ForCausalLM(TINY)
    compiled, ids_BL = ms.jit(model.construct), Tensor(np.arange(6, dtype=np.int32)[None])
    assert not compiled(ids_BL).asnumpy().any(), "zeros before loading"
    for seed in (1, 2):
        init_model(model, seed)
        after = compiled(ids_BL).asnumpy()
        assert np.abs(after).max() > 1e-3
        np.testing.assert_allclose(after, model(ids_BL).asnumpy(), atol=1e-6)
    for name, value in init_weights(TINY, 2):
        np.testing.assert_array_equal(model.parameters_dict()[name].asnumpy(), value)
