"""PEFT's folders in all their forms, fused and compared with the sum written out in numpy."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from ckpt_samples import TIED, TINY
from click.testing import CliRunner

from qwen3_ckpt.cli import main
from qwen3_model.checkpoints.adapters import base_fingerprint, read_peft
from qwen3_model.checkpoints.hf_folder import write_hf_weights
from qwen3_model.checkpoints.safetensors_file import TensorPlan, open_safetensors, write_safetensors
from qwen3_model.errors import FormatError

Q, UP, EMBEDDING, HEAD = (
    "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj", "model.embed_tokens", "lm_head",
)  # fmt: skip
RTOL = 1e-6  # one rounding of float32 more than the sum in float64
RNG = np.random.default_rng(11)


def run(*words: object):
    return CliRunner().invoke(main, [str(word) for word in words])


def base(folder: Path, config=TINY) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_hf()), encoding="utf-8")
    (folder / "tokenizer.json").write_text("the base's", encoding="utf-8")
    weights = {n: RNG.standard_normal(s).astype(np.float32) for n, s in config.weight_shapes().items()}
    write_hf_weights(folder, [(TensorPlan(n, "F32", v.shape), [v]) for n, v in weights.items()])
    return weights


def adapter(folder: Path, ranks: dict[str, int], config=TINY, saved=(), metadata=None, **told):
    """Write a PEFT folder; return the halves by module and the saved weights."""
    shapes = config.weight_shapes() | {"lm_head.weight": (config.vocab_size, config.hidden_size)}
    tensors, halves, whole = {}, {}, {}
    for module, rank in ranks.items():
        out, inner = shapes[f"{module}.weight"]
        out, inner, leaf = (
            (inner, out, "lora_embedding_{}") if module == EMBEDDING else (out, inner, "lora_{}.weight")
        )
        a, b = (RNG.standard_normal(shape).astype(np.float32) for shape in ((rank, inner), (out, rank)))
        halves[module] = (a.T, b.T) if module == EMBEDDING else (b, a)
        for half, values in (("A", a), ("B", b)):
            tensors[f"base_model.model.{module}.{leaf.format(half)}"] = values
    for module in saved:
        whole[module] = tensors[f"base_model.model.{module}.weight"] = RNG.standard_normal(
            shapes[f"{module}.weight"]
        ).astype(np.float32)
    folder.mkdir(parents=True)
    config_file = {
        "peft_type": "LORA",
        "lora_alpha": 4,
        "r": max(ranks.values(), default=2),
        "bias": "none",
    } | told
    (folder / "adapter_config.json").write_text(json.dumps(config_file), encoding="utf-8")
    entries = [(TensorPlan(n, "F32", v.shape), [np.ascontiguousarray(v)]) for n, v in tensors.items()]
    write_safetensors(folder / "adapter_model.safetensors", entries, {"format": "pt"} | (metadata or {}))
    return halves, whole


def fused(folder: Path) -> dict[str, np.ndarray]:
    file = open_safetensors(folder / "model.safetensors")
    return {name: file.float32(name) for name in file.tensors}


def assert_fused(found, weights, halves, scales, whole=()):
    expected = {name: values.astype(np.float64) for name, values in weights.items()}
    for module, (left, right) in halves.items():
        expected[f"{module}.weight"] += scales[module] * (left.astype(np.float64) @ right.astype(np.float64))
    expected |= {f"{module}.weight": whole[module] for module in whole}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, RTOL, atol=RTOL * np.abs(values).max(), err_msg=name)


@pytest.mark.parametrize(
    ("ranks", "told", "scales"),
    [
        ({Q: 2, UP: 2}, {}, {Q: 2, UP: 2}),
        ({Q: 2, UP: 2}, {"use_rslora": True}, dict.fromkeys((Q, UP), 4 / math.sqrt(2))),
        ({Q: 2, UP: 8}, {"r": 2, "rank_pattern": {"up_proj": 8}}, {Q: 2, UP: 0.5}),
        ({Q: 2, UP: 8}, {"r": 2, "rank_pattern": {r"layers\.1\.mlp\..*": 8}}, {Q: 2, UP: 0.5}),
        ({Q: 2, UP: 2}, {"alpha_pattern": {"q_proj": 7}}, {Q: 3.5, UP: 2}),
        (
            {Q: 1, UP: 3},
            {"r": 1, "rank_pattern": {"up_proj": 3}, "alpha_pattern": {"up_proj": 6}, "use_rslora": True},
            {Q: 4, UP: 6 / math.sqrt(3)},
        ),
        ({Q: 2}, {"target_modules": "all-linear", "lora_dropout": 0.5, "qalora_group_size": 16}, {Q: 2}),
    ],
)  # fmt: skip
def test_every_module_gets_its_own_scale(tmp_path, ranks, told, scales):
    weights = base(tmp_path / "base")
    halves, _ = adapter(tmp_path / "peft", ranks, **told)
    result = run("lora", "fuse", tmp_path / "base", tmp_path / "peft", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert_fused(fused(tmp_path / "out"), weights, halves, scales)


def test_whole_weights_take_the_place_of_the_bases(tmp_path):
    weights = base(tmp_path / "base")
    halves, whole = adapter(tmp_path / "peft", {Q: 2}, saved=[HEAD], modules_to_save=["lm_head"])
    result = run("lora", "fuse", tmp_path / "base", tmp_path / "peft", tmp_path / "out", "--dtype", "fp32")
    assert result.exit_code == 0, result.output
    assert_fused(fused(tmp_path / "out"), weights, halves, {Q: 2}, whole)
    adapter(tmp_path / "stray", {Q: 2}, saved=[HEAD], modules_to_save=["norm"])
    result = run("lora", "fuse", tmp_path / "base", tmp_path / "stray", tmp_path / "no")
    assert "is no LoRA tensor, and modules_to_save does not name it" in result.output


@pytest.mark.parametrize(
    "kind", ["adapter of the embedding", "adapter of the head", "saved embedding", "saved head"]
)
def test_a_tied_base_gets_an_untied_head_where_peft_leaves_it_alone(tmp_path, kind):
    weights = base(tmp_path / "base", TIED)
    module = EMBEDDING if "embedding" in kind else HEAD
    if kind.startswith("saved"):
        halves, whole = adapter(tmp_path / "peft", {}, TIED, saved=[module], modules_to_save=[module])
    else:
        halves, whole = adapter(tmp_path / "peft", {module: 2}, TIED)
    result = run("lora", "fuse", tmp_path / "base", tmp_path / "peft", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "the head is no longer tied: lm_head.weight is written" in result.stderr
    told = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert told["tie_word_embeddings"] is False
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    assert_fused(fused(tmp_path / "out"), weights, halves, {module: 2}, whole)
    (tmp_path / "out" / "tokenizer.json").unlink()  # the base's is none that can be read
    result = run("verify", tmp_path / "out")
    assert result.exit_code == 0, result.output


def test_export_of_pefts_own_folder_ties_nothing(tmp_path):
    base(tmp_path / "base", TIED)
    adapter(tmp_path / "peft", {EMBEDDING: 2}, TIED)
    result = run("lora", "export", tmp_path / "peft", tmp_path / "out", "--hf-dir", tmp_path / "base")
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    assert "ensure_weight_tying" not in told
    assert not any(
        "lm_head" in name for name in open_safetensors(tmp_path / "out" / "adapter_model.safetensors").tensors
    )


REFUSED = {
    "alora_invocation_tokens": [1, 2], "layer_replication": [[0, 1], [0, 1]], "use_dora": True,
    "trainable_token_indices": [3], "target_parameters": ["x"], "lora_bias": True, "use_qalora": True,
    "fan_in_fan_out": True, "arrow_config": {"k": 1}, "corda_config": {"a": 1}, "of_a_later_peft": 1,
}  # fmt: skip


@pytest.mark.parametrize("key", REFUSED)
def test_keys_that_change_the_mathematics_or_are_unknown_are_refused_by_name(tmp_path, key):
    adapter(tmp_path / "peft", {Q: 2}, **{key: REFUSED[key]})
    with pytest.raises(FormatError, match=f"only plain LoRA without bias is implemented, not {key}"):
        read_peft(tmp_path / "peft")
    empty = type(REFUSED[key])()
    adapter(tmp_path / "off", {Q: 2}, **{key: empty})
    read_peft(tmp_path / "off")


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"bias": "all"}, "not bias 'all'"),
        ({"peft_type": "IA3"}, "not peft_type 'IA3'"),
        ({"init_lora_weights": "pissa"}, "not init_lora_weights 'pissa'"),
        (
            {"rank_pattern": {"q_proj": 3}},
            "says rank 3, but the adapters of model.layers.0.self_attn.q_proj have rank 2",
        ),
        ({"rank_pattern": {"(": 3}}, "rank_pattern must map patterns of modules to numbers"),
        ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern of q_proj is -1, not a number above 0"),
        ({"r": 0}, "r is 0, not a rank"),
        ({"r": "8"}, "r is '8', not a rank"),
        ({"lora_alpha": True}, "lora_alpha is True, not a number above 0"),
        ({"lora_alpha": 10**400}, "not a number above 0"),
        ({"alpha_pattern": {"q_proj": 10**400}}, "not a number above 0"),
        ({"use_rslora": "false"}, "use_rslora is 'false', not true or false"),
        (
            {"rank_pattern": ["q_proj"]},
            "rank_pattern is ['q_proj'], but must map patterns of modules to numbers",
        ),
        ({"alpha_pattern": {"q_proj": [8]}}, "alpha_pattern of q_proj is [8], not a number above 0"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path, told, sentence):
    adapter(tmp_path / "peft", {Q: 2}, **told)
    with pytest.raises(FormatError) as caught:
        read_peft(tmp_path / "peft")
    assert sentence in str(caught.value)


def test_another_base_of_the_same_shapes_is_noticed(tmp_path):
    for name in ("base", "other"):
        base(tmp_path / name)
    trained = {"qwen3_train": json.dumps({"base": base_fingerprint(tmp_path / "base")})}
    adapter(tmp_path / "run", {Q: 2}, metadata=trained)
    assert run("lora", "export", tmp_path / "run", tmp_path / "peft").exit_code == 0
    for source in ("run", "peft"):
        right = run("lora", "fuse", tmp_path / "base", tmp_path / source, tmp_path / f"right {source}")
        assert (right.exit_code, right.stderr) == (0, "")
        wrong = run("lora", "fuse", tmp_path / "other", tmp_path / source, tmp_path / f"wrong {source}")
        assert wrong.exit_code == 1
        assert "the adapter was trained on another base than" in wrong.output
        words = (
            "lora",
            "fuse",
            tmp_path / "other",
            tmp_path / source,
            tmp_path / f"any {source}",
            "--any-base",
        )
        assert run(*words).exit_code == 0
    adapter(tmp_path / "named", {Q: 2}, base_model_name_or_path="me/my-model")
    noted = run("lora", "fuse", tmp_path / "base", tmp_path / "named", tmp_path / "noted")
    assert "says that its base is me/my-model; nothing shows that" in noted.stderr


def test_the_adapters_own_tokenizer_and_template_come_along(tmp_path):
    base(tmp_path / "base")
    adapter(tmp_path / "peft", {Q: 2})
    (tmp_path / "peft" / "tokenizer.json").write_text("the adapter's", encoding="utf-8")
    (tmp_path / "peft" / "chat_template.jinja").write_text("new", encoding="utf-8")
    (tmp_path / "peft" / "README.md").write_text("of the adapter", encoding="utf-8")
    result = run("lora", "fuse", tmp_path / "base", tmp_path / "peft", tmp_path / "out")
    assert (
        "tokenizer.json, chat_template.jinja of the adapter differ from the base's and were taken"
        in result.stderr
    )
    assert (tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8") == "the adapter's"
    assert (tmp_path / "out" / "chat_template.jinja").read_text(encoding="utf-8") == "new"
    assert not (tmp_path / "out" / "README.md").exists()


def test_adapter_folders_are_inspected_verified_and_compared(tmp_path):
    adapter(tmp_path / "a", {Q: 2})
    adapter(tmp_path / "b", {Q: 2})
    assert "lora_A" in run("inspect", tmp_path / "a").stdout
    assert run("verify", tmp_path / "a").exit_code == 0
    assert run("diff", tmp_path / "a", tmp_path / "a").exit_code == 0
    assert run("diff", tmp_path / "a", tmp_path / "b").exit_code == 1
    adapter(tmp_path / "bad", {Q: 2}, use_dora=True)
    result = run("verify", tmp_path / "bad")
    assert result.exit_code == 1
    assert "not use_dora" in result.output
