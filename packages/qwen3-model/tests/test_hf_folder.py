import dataclasses
import json

import numpy as np
import pytest

from qwen3_model.checkpoints.hf_folder import open_hf_folder, write_hf_weights
from qwen3_model.checkpoints.safetensors_file import TensorPlan
from qwen3_model.config import SIZES
from qwen3_model.errors import FormatError, WeightError

TINY = dataclasses.replace(
    SIZES["0.6B"], vocab_size=10, hidden_size=6, intermediate_size=8, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=4, dtype="float32",
)  # fmt: skip


def write_folder(path, config=TINY, *, drop=(), add=(), reshape=None, max_shard_bytes=10**9):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config.to_hf()), encoding="utf-8")
    shapes = {name: shape for name, shape in config.weight_shapes().items() if name not in drop}
    shapes |= dict(add) | (reshape or {})
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    plans = [(TensorPlan(name, "F32", tuple(value.shape)), [value]) for name, value in values.items()]
    write_hf_weights(path, plans, max_shard_bytes)
    return values


@pytest.mark.parametrize(("max_shard_bytes", "files"), [(10**9, 1), (500, 11)])
def test_tensors_come_back_from_one_or_many_files(tmp_path, max_shard_bytes, files):
    values = write_folder(tmp_path / "m", max_shard_bytes=max_shard_bytes)
    assert len(list((tmp_path / "m").glob("*.safetensors"))) == files
    folder = open_hf_folder(tmp_path / "m")
    assert set(folder.tensors.names()) == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(folder.raw(name), value)


def test_all_disagreements_with_the_config_are_named(tmp_path):
    write_folder(
        tmp_path / "m", drop=["model.norm.weight"], add=[("extra.weight", (1,))],
        reshape={"model.layers.1.mlp.up_proj.weight": (8, 7)},
    )  # fmt: skip
    with pytest.raises(WeightError) as caught:
        open_hf_folder(tmp_path / "m")
    assert str(caught.value) == (
        f"{tmp_path / 'm'}: model.norm.weight is missing, of shape (6,); "
        "model.layers.1.mlp.up_proj.weight in model.safetensors has shape (8, 7), config.json says (8, 6); "
        "extra.weight in model.safetensors is no weight of this model"
    )


def test_a_tied_head_may_repeat_the_embedding_but_not_differ(tmp_path):
    untied = dataclasses.replace(TINY, tie_word_embeddings=False)
    write_folder(tmp_path / "m", untied)
    config_path = tmp_path / "m" / "config.json"
    config_path.write_text(json.dumps(TINY.to_hf()), encoding="utf-8")
    with pytest.raises(WeightError, match="but lm_head"):
        open_hf_folder(tmp_path / "m")
    values = write_folder(tmp_path / "n")
    plans = {name: (TensorPlan(name, "F32", value.shape), [value]) for name, value in values.items()}
    head = values["model.embed_tokens.weight"]
    write_hf_weights(
        tmp_path / "n", [*plans.values(), (TensorPlan("lm_head.weight", "F32", head.shape), [head])]
    )
    assert "lm_head.weight" not in open_hf_folder(tmp_path / "n").tensors


def test_an_index_that_names_an_absent_file_or_tensor_is_refused(tmp_path):
    write_folder(tmp_path / "m", max_shard_bytes=500)
    index_path = tmp_path / "m" / "model.safetensors.index.json"
    index = json.loads(index_path.read_text(encoding="utf-8"))
    first = index["weight_map"]["model.embed_tokens.weight"]

    def rewrite(**changes):
        index_path.write_text(json.dumps({"weight_map": index["weight_map"] | changes}), encoding="utf-8")

    rewrite(**{"model.norm.weight": "gone.safetensors"})
    with pytest.raises(FormatError, match=r"files that are not there: gone\.safetensors"):
        open_hf_folder(tmp_path / "m")
    rewrite(ghost=first)
    with pytest.raises(FormatError, match="files that lack them: ghost"):
        open_hf_folder(tmp_path / "m")
    rewrite(**{"model.norm.weight": "../m/x.safetensors"})
    with pytest.raises(FormatError, match="outside of its folder"):
        open_hf_folder(tmp_path / "m")
    del index["weight_map"]["model.norm.weight"]
    rewrite()
    with pytest.raises(FormatError, match=r"does not list, or lists elsewhere: model\.norm\.weight"):
        open_hf_folder(tmp_path / "m")


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps(TINY.to_hf()), encoding="utf-8")
    with pytest.raises(FormatError, match="has neither"):
        open_hf_folder(tmp_path / "m")
