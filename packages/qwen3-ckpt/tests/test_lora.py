import json

import numpy as np
import pytest
import safetensors.numpy
from ckpt_samples import TIED, TINY, Spec, make_checkpoint
from click.testing import CliRunner

from qwen3_ckpt.cli import main
from qwen3_model.checkpoints.hf_folder import open_hf_folder
from qwen3_model.checkpoints.safetensors_file import TensorPlan, from_float32, to_float32, write_safetensors

RNG = np.random.default_rng(3)
RANK, ALPHA = 2, 6
Q, DOWN, EMBED = "model.layers.0.self_attn.q_proj", "model.layers.3.mlp.down_proj", "model.embed_tokens"


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def pair_for(shape):
    rows, columns = shape
    return RNG.standard_normal((RANK, columns)).astype(np.float32), RNG.standard_normal((rows, RANK)).astype(
        np.float32
    )


@pytest.fixture
def base(tmp_path):
    made = make_checkpoint(tmp_path / "run", Spec(dtype="BF16"))
    result = run(
        "merge", "--mindspore-ckpt-dir", made.checkpoint_dir, "--to", "hf", "--output-dir", tmp_path / "base"
    )
    assert result.exit_code == 0, result.output
    return made


@pytest.fixture
def adapter(tmp_path):
    """A PEFT folder with adapters on a column, a row and an embedding module."""
    shapes = TINY.weight_shapes()
    pairs = {module: pair_for(shapes[f"{module}.weight"]) for module in (Q, DOWN)}
    rows, width = shapes[f"{EMBED}.weight"]
    pairs[EMBED] = pair_for((width, rows))
    tensors = {}
    for module, (a, b) in pairs.items():
        leaves = (
            ("lora_embedding_A", "lora_embedding_B")
            if module == EMBED
            else ("lora_A.weight", "lora_B.weight")
        )
        tensors |= {
            f"base_model.model.{module}.{leaf}": half for leaf, half in zip(leaves, (a, b), strict=True)
        }
    folder = tmp_path / "adapter"
    folder.mkdir()
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return pairs


def test_fusing_adds_the_product_in_float32_and_rounds_once(base, adapter, tmp_path):
    result = run("lora", "fuse", tmp_path / "base", tmp_path / "adapter", tmp_path / "fused")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("fused 3 adapters")
    fused = open_hf_folder(tmp_path / "fused")
    for name, raw in base.whole.items():
        module = name.removesuffix(".weight")
        expected = raw
        if module in adapter:
            a, b = adapter[module]
            change = (b @ a).T if module == EMBED else b @ a
            wide = to_float32(raw, "BF16").astype(np.float64) + np.float64(ALPHA / RANK) * change
            expected = from_float32(wide.astype(np.float32), "BF16")
            # The sum may fall on either side of a rounding boundary: one unit in the last place of bfloat16.
            gap = np.abs(fused.raw(name).astype(np.int32) - expected.astype(np.int32))
            assert gap.max() <= 1
            assert (gap == 0).mean() > 0.99
            assert (fused.raw(name) != raw).any()
        else:
            np.testing.assert_array_equal(fused.raw(name), expected)


def test_export_of_our_adapters_is_read_back_as_peft(base, adapter, tmp_path):
    tensors = {}
    for module, (a, b) in adapter.items():
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    rank_dir = tmp_path / "lora" / "checkpoint" / "rank_0"
    rank_dir.mkdir(parents=True)
    entries = [(TensorPlan(name, "F32", value.shape), [value]) for name, value in tensors.items()]
    write_safetensors(rank_dir / "qwen3_rank_0-1_1.safetensors", entries, {})
    result = run(
        "lora", "export", tmp_path / "lora", tmp_path / "peft", "--lora-alpha", ALPHA,
        "--hf-dir", tmp_path / "base",
        "--base-model", "Qwen/x",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    ours = safetensors.numpy.load_file(tmp_path / "peft" / "adapter_model.safetensors")
    theirs = safetensors.numpy.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (RANK, ALPHA, "Qwen/x")
    # Other layers have such modules, too, so the names of layers alone would say too much.
    assert config["target_modules"] == [EMBED, Q, DOWN]


def test_an_export_names_its_targets_short_and_its_base_as_the_run_did(base, tmp_path):
    held = tmp_path / "held"
    held.mkdir()
    tensors = {}
    for layer in range(TINY.num_layers):
        a, b = pair_for((32, 16))
        module = f"model.layers.{layer}.self_attn.q_proj"
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    safetensors.numpy.save_file(tensors, held / "model.safetensors")
    told = {"lora_alpha": 5, "base_model_name_or_path": "/models/base"}
    (held / "adapter_config.json").write_text(json.dumps(told), encoding="utf-8")
    result = run("lora", "export", held, tmp_path / "peft", "--hf-dir", tmp_path / "base")
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["target_modules"] == ["q_proj"]
    assert (config["lora_alpha"], config["base_model_name_or_path"]) == (5, "/models/base")


def test_fused_adapters_of_mindformers_are_split_by_heads(base, tmp_path):
    c = TINY
    group = (c.num_heads // c.num_kv_heads + 2) * c.head_dim
    qkv = pair_for((group * c.num_kv_heads, c.hidden_size))
    fc1 = pair_for((2 * c.intermediate_size, c.hidden_size))
    rank_dir = tmp_path / "lora" / "rank_0"
    rank_dir.mkdir(parents=True)
    tensors = {}
    for module, (a, b) in (("self_attention.linear_qkv", qkv), ("mlp.linear_fc1", fc1)):
        tensors |= {
            f"decoder.layers.1.{module}.lora_A.weight": a,
            f"decoder.layers.1.{module}.lora_B.weight": b,
        }
    entries = [(TensorPlan(name, "F32", value.shape), [value]) for name, value in tensors.items()]
    write_safetensors(rank_dir / "x_rank_0-1_1.safetensors", entries, {})
    result = run(
        "lora",
        "export",
        tmp_path / "lora",
        tmp_path / "peft",
        "--lora-alpha",
        1,
        "--hf-dir",
        tmp_path / "base",
    )
    assert result.exit_code == 0, result.output
    peft = safetensors.numpy.load_file(tmp_path / "peft" / "adapter_model.safetensors")
    grouped = qkv[1].reshape(c.num_kv_heads, group, RANK)
    q_rows = c.num_heads // c.num_kv_heads * c.head_dim
    prefix = "base_model.model.model.layers.1"
    v = grouped[:, q_rows + c.head_dim :].reshape(-1, RANK)
    np.testing.assert_array_equal(peft[f"{prefix}.self_attn.v_proj.lora_B.weight"], v)
    np.testing.assert_array_equal(peft[f"{prefix}.self_attn.k_proj.lora_A.weight"], qkv[0])
    np.testing.assert_array_equal(peft[f"{prefix}.mlp.up_proj.lora_B.weight"], fc1[1][1::2])


def test_an_adapter_of_another_base_is_refused(base, adapter, tmp_path):
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors[f"base_model.model.{Q}.lora_B.weight"] = np.ones((7, RANK), np.float32)
    safetensors.numpy.save_file(tensors, path)
    result = run("lora", "fuse", tmp_path / "base", tmp_path / "adapter", tmp_path / "fused")
    assert result.exit_code == 1
    assert f"the adapter is for another base: {Q} is (32, 16), its adapter is for (7, 16)" in result.output
    assert not (tmp_path / "fused").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "only plain LoRA without bias is implemented, not use_dora"),
        ({"bias": "all"}, "only plain LoRA"),
        ({"lora_alpha": None}, "is no adapter config"),
    ],
)
def test_other_kinds_of_adapters_are_refused(base, adapter, tmp_path, change, message):
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | change
    path.write_text(json.dumps(config), encoding="utf-8")
    result = run("lora", "fuse", tmp_path / "base", tmp_path / "adapter", tmp_path / "fused")
    assert result.exit_code == 1
    assert message in result.output


def test_half_an_adapter_is_named(base, adapter, tmp_path):
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    del tensors[f"base_model.model.{Q}.lora_B.weight"]
    safetensors.numpy.save_file(tensors, path)
    result = run("lora", "fuse", tmp_path / "base", tmp_path / "adapter", tmp_path / "fused")
    assert result.exit_code == 1
    assert f"{Q} has only one half of its adapter" in result.output


def with_base_copy(tmp_path, values):
    """Add the embedding to the adapter as peft does when it is a target."""
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors[f"base_model.model.{EMBED}.base_layer.weight"] = values
    safetensors.numpy.save_file(tensors, path)
    return run("lora", "fuse", tmp_path / "base", tmp_path / "adapter", tmp_path / "fused")


def test_the_copy_of_the_embedding_that_peft_saves_must_be_the_bases(base, adapter, tmp_path):
    values = to_float32(base.whole[f"{EMBED}.weight"], "BF16")
    result = with_base_copy(tmp_path, values)
    assert result.exit_code == 0, result.output
    changed = values.copy()
    changed[3, 2] += 1
    (tmp_path / "fused").rename(tmp_path / "first")
    result = with_base_copy(tmp_path, changed)
    assert result.exit_code == 1
    assert f"the adapter holds its own {EMBED}.weight, which differs from the base's" in result.output
    assert not (tmp_path / "fused").exists()


def test_an_embeddings_adapter_may_be_held_like_any_matrix(base, adapter, tmp_path):
    a, b = adapter[EMBED]
    tensors = {f"{EMBED}.lora_A.weight": b.T.copy(), f"{EMBED}.lora_B.weight": a.T.copy()}
    safetensors.numpy.save_file(tensors, tmp_path / "ours.safetensors")
    (tmp_path / "held").mkdir()
    (tmp_path / "ours.safetensors").rename(tmp_path / "held" / "model.safetensors")
    words = ("lora", "export", tmp_path / "held", tmp_path / "peft", "--lora-alpha", ALPHA)
    refused = run(*words)
    assert refused.exit_code == 1
    assert "whether the head is tied to the adapted embedding decides" in refused.output
    result = run(*words, "--hf-dir", tmp_path / "base")
    assert result.exit_code == 0, result.output
    exported = safetensors.numpy.load_file(tmp_path / "peft" / "adapter_model.safetensors")
    np.testing.assert_array_equal(exported[f"base_model.model.{EMBED}.lora_embedding_A"], a)
    np.testing.assert_array_equal(exported[f"base_model.model.{EMBED}.lora_embedding_B"], b)


def test_an_adapted_embedding_with_a_tied_head_is_exported_as_peft_ties_it_and_read_back(tmp_path):
    made = make_checkpoint(tmp_path / "run", Spec(config=TIED))
    merge = ("merge", "--mindspore-ckpt-dir", made.checkpoint_dir, "--to", "hf", "--output-dir")
    assert run(*merge, tmp_path / "tied").exit_code == 0
    rows, width = made.whole[f"{EMBED}.weight"].shape
    a, b = pair_for((width, rows))
    held, peft = tmp_path / "held", tmp_path / "peft"
    held.mkdir()
    tensors = {f"{EMBED}.lora_A.weight": a, f"{EMBED}.lora_B.weight": b}
    safetensors.numpy.save_file(tensors, held / "model.safetensors")
    result = run("lora", "export", held, peft, "--lora-alpha", ALPHA, "--hf-dir", tmp_path / "tied")
    assert result.exit_code == 0, result.output
    config = json.loads((peft / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["ensure_weight_tying"], config["target_modules"]) == (True, ["embed_tokens"])
    exported = safetensors.numpy.load_file(peft / "adapter_model.safetensors")
    np.testing.assert_array_equal(exported["base_model.model.lm_head.lora_A.weight"], b.T)
    np.testing.assert_array_equal(exported["base_model.model.lm_head.lora_B.weight"], a.T)
    for source, out in ((peft, "of_peft"), (held, "of_held")):
        result = run("lora", "fuse", tmp_path / "tied", source, tmp_path / out, "--lora-alpha", ALPHA)
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("fused 1 adapters")
    fused = [open_hf_folder(tmp_path / out).raw(f"{EMBED}.weight") for out in ("of_peft", "of_held")]
    np.testing.assert_array_equal(*fused)
    exported["base_model.model.lm_head.lora_B.weight"] += 1
    safetensors.numpy.save_file(exported, peft / "adapter_model.safetensors")
    refused = run("lora", "fuse", tmp_path / "tied", peft, tmp_path / "none")
    assert refused.exit_code == 1
    assert "promises a tied head, but its adapter is another than the embedding's" in refused.output


def test_a_stated_alpha_takes_the_place_of_the_adapters_own(base, adapter, tmp_path):
    for alpha in ("1", "7"):
        flags = ["--lora-alpha", alpha]
        result = run(
            "lora", "fuse", tmp_path / "base", tmp_path / "adapter", tmp_path / f"fused{alpha}", *flags
        )
        assert result.exit_code == 0, result.output
    weights = [open_hf_folder(tmp_path / f"fused{alpha}").float32(f"{Q}.weight") for alpha in ("1", "7")]
    assert not np.array_equal(*weights)


def test_merging_adapters_to_a_whole_model_names_the_right_command(base, adapter, tmp_path):
    a, b = adapter[Q]
    folder = tmp_path / "run" / "checkpoint" / "rank_0"
    (path,) = folder.glob("*.safetensors")
    path.unlink()
    tensors = {f"{Q}.lora_A.weight": a, f"{Q}.lora_B.weight": b}
    safetensors.numpy.save_file(tensors, folder / "qwen3_rank_0-1_5.safetensors")
    flags = ["--mindspore-ckpt-dir", folder.parent, "--output-dir", tmp_path / "out", "--to", "hf"]
    result = run("merge", *flags)
    assert result.exit_code == 1
    assert "add them to their base with `qwen3-ckpt lora fuse BASE ADAPTER OUTPUT`" in result.output
