"""Weights and adapters in every form are the same tensors; what does not belong together is refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from weight_samples import (
    CONFIG,
    RAW,
    fuse_by_hand,
    whole_weights,
    write_hf,
    write_merged,
    write_run,
    write_tensors,
)

from qwen3_infer.device import Device
from qwen3_infer.folder.weights import open_adapter, open_checkpoint_weights, open_hf_weights
from qwen3_infer.processes.local import make_local
from qwen3_infer.steps.pieces import cut
from qwen3_model.checkpoints.adapters import Adapter, AdapterSet, base_fingerprint, read_peft
from qwen3_model.checkpoints.fused import FusedLayout
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import ConfigError, FormatError, WeightError
from qwen3_model.ranks.layout import Layout, shard_slices

LAYOUTS = [Layout(), Layout(tp=2), Layout(pp=2), Layout(dp=2, tp=2, pp=2)]
# The adapter is added to the activations here as in peft; sums in another order.
LOGITS_ATOL = 2e-5


def assert_equal(weights, whole, tp=2):
    for shard in range(tp):
        for name, each in whole.items():
            part = shard_slices(name, each.shape, tp=tp, shard=shard)
            np.testing.assert_array_equal(weights.read(name, part)[1], each[part])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("merged_strategy", [False, True], ids=["strategies", "merged strategy"])
def test_a_distributed_checkpoint_of_any_layout_gives_every_shard(tmp_path, layout, merged_strategy):
    whole = whole_weights()
    run = write_run(tmp_path / "run", whole, layout, merged_strategy=merged_strategy)
    strategy = run / "merged.ckpt" if merged_strategy else None
    for source in (run, run / "checkpoint", run / "checkpoint/rank_0/qwen3_rank_0-1_2.safetensors"):
        assert_equal(open_checkpoint_weights(source, strategy, CONFIG), whole)


def test_strategy_files_may_lie_elsewhere(tmp_path):
    whole = whole_weights()
    run = write_run(tmp_path / "run", whole, Layout(tp=2))
    (run / "strategy").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"ckpt_strategy_rank_0.ckpt is missing; without it nobody knows"):
        open_checkpoint_weights(run, None, CONFIG)
    assert_equal(open_checkpoint_weights(run, tmp_path / "elsewhere", CONFIG), whole)


def test_merged_and_single_files_give_every_shard(tmp_path):
    whole = whole_weights()
    merged = write_merged(tmp_path / "merged", whole)
    for source in (merged, merged / "1_2_ckpt_convert", merged / "1_2_ckpt_convert/unified_safe"):
        assert_equal(open_checkpoint_weights(source, None, CONFIG), whole)
    write_tensors(tmp_path / "all.safetensors", whole | {"adam_m.lm_head.weight": np.zeros(3, np.float32)})
    assert_equal(open_checkpoint_weights(tmp_path / "all.safetensors", None, CONFIG), whole)
    folder = write_hf(tmp_path / "hf", whole)
    assert_equal(open_checkpoint_weights(folder, None, CONFIG), whole)
    assert_equal(open_hf_weights(folder), whole)


@pytest.mark.parametrize("layout", [FusedLayout(), FusedLayout(True, False)], ids=str)
def test_weights_of_mindformers_are_taken_apart(tmp_path, layout):
    whole = whole_weights()
    theirs = fuse_by_hand(whole, layout)
    scalars = {
        "epoch_num": np.ones(1, np.float32),
        "adam_m.output_layer.weight": theirs["output_layer.weight"],
    }
    write_tensors(tmp_path / "all.safetensors", theirs | scalars)
    weights = open_checkpoint_weights(tmp_path / "all.safetensors", None, CONFIG, layout)
    assert_equal(weights, whole)
    assert {weights.dtype(name) for name in whole} == {"F32"}
    with pytest.raises(WeightError, match=r"model.layers.4.self_attn.q_proj.weight is missing"):
        open_checkpoint_weights(tmp_path / "all.safetensors", None, replace(CONFIG, num_layers=5), layout)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_layers": 5}, "model.layers.4.input_layernorm.weight is missing"),
        ({"num_layers": 3}, "model.layers.3.input_layernorm.weight in .* is no weight of this model"),
        ({"vocab_size": 65}, r"has shape \(64, 16\), config.json says \(65, 16\)"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, change, sentence):
    run = write_run(tmp_path / "run", whole_weights(), Layout(tp=2, pp=2))
    with pytest.raises(WeightError, match=sentence):
        open_checkpoint_weights(run, None, replace(CONFIG, **change))


def test_a_tied_models_head_may_lie_beside_its_embedding(tmp_path):
    config = replace(CONFIG, tie_word_embeddings=True)
    whole = whole_weights()
    write_tensors(tmp_path / "other.safetensors", whole)
    with pytest.raises(WeightError, match=r"ties the head to the embedding, but lm_head\.weight differs"):
        open_checkpoint_weights(tmp_path / "other.safetensors", None, config)
    whole["lm_head.weight"] = whole["model.embed_tokens.weight"]
    write_tensors(tmp_path / "all.safetensors", whole)
    assert "lm_head.weight" not in open_checkpoint_weights(tmp_path / "all.safetensors", None, config)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda folder: None, "does not exist; give a run, a checkpoint or a folder with weights"),
        (lambda folder: folder.mkdir(), r"has no model.safetensors, param_name_map.json or rank_0"),
        (lambda folder: shutil.copytree(
            write_merged(folder, whole_weights()) / "1_2_ckpt_convert", folder / "1_4_ckpt_convert"),
         "holds several: .*1_2_ckpt_convert.*1_4_ckpt_convert"),
        (lambda folder: next(write_merged(folder, whole_weights()).rglob("part1*")).unlink(),
         "names files that are not there: part1.safetensors"),
        (lambda folder: next(write_run(folder, whole_weights(), Layout(tp=2)).rglob("*_1-1_2*")).unlink(),
         r"no step is in every rank folder \(rank_0: 1_2; rank_1: none\)"),
    ],
)  # fmt: skip
def test_what_holds_no_whole_weights_is_refused(tmp_path, make, sentence):
    folder = tmp_path / "weights"
    make(folder)
    with pytest.raises((ConfigError, FormatError), match=sentence):
        open_checkpoint_weights(folder, None, CONFIG)


@pytest.fixture
def golden(golden_dir):
    """Return a base, peft's adapter of it and what peft computes."""
    told = json.loads((golden_dir / "adapter/logits.json").read_text("utf-8"))
    return golden_dir / "tied", golden_dir / "adapter", told


@pytest.mark.parametrize("kind", ["native", "portable"])
def test_an_adapter_beside_the_weights_gives_pefts_logits(golden, cache_dir, kind):
    base, adapter, told = golden
    device = Device(target="CPU", kernels=kind, num_threads=1, cache_dir=cache_dir)
    config, weights = Qwen3Config.from_dir(base), open_hf_weights(base)
    logits = {}
    for name, adapters in (("base", None), ("adapted", open_adapter(adapter, base, config, weights))):
        model = make_local(config, weights, adapters, device, quiet=True, note=pytest.fail)
        engine = model.engine(1, 64)
        for start, length in cut(len(told["ids"])):
            logits[name] = engine.read(0, told["ids"][start : start + length], start, length)
    np.testing.assert_allclose(logits["base"], told["base_logits"], rtol=0, atol=LOGITS_ATOL)
    np.testing.assert_allclose(logits["adapted"], told["logits"], rtol=0, atol=LOGITS_ATOL)
    assert np.abs(logits["adapted"] - logits["base"]).max() > 0.1


def test_a_row_has_the_same_bits_in_any_batch_with_an_adapter_too(tmp_path, cache_dir):
    # From a width of 1024 on MindSpore's own product of a row depends on how many there are.
    wide = {"hidden_size": 1024, "num_hidden_layers": 1, "tie_word_embeddings": True}
    config, rng = Qwen3Config.from_hf(RAW | wide), np.random.default_rng(2)
    whole = {name: each / np.float32(each.shape[-1]) ** 0.5 for name, each in whole_weights(config).items()}
    weights = open_hf_weights(write_hf(tmp_path / "hf", whole, RAW | wide))
    modules = {}
    for name, shape in config.weight_shapes().items():
        if len(shape) == 2:
            a, b = shape[::-1] if "embed_tokens" not in name else shape
            halves = (rng.standard_normal(size).astype(np.float32) for size in ((16, a), (b, 16)))
            modules[name.removesuffix(".weight")] = Adapter(*halves)
    device = Device(target="CPU", kernels="native", num_threads=1, cache_dir=cache_dir)
    adapter = AdapterSet(modules, 4.0)
    model = make_local(config, weights, adapter, device, quiet=True, note=pytest.fail)
    logits = {}
    for count in (1, 8):
        engine = model.engine(count, 32)
        for row in range(count):
            engine.read(row * 32, [5 + row, 9, 11], 0, 32)
        rows = np.arange(count, dtype=np.int32)
        logits[count] = engine.decode(rows * 32, rows + 7, np.full(count, 3, np.int32))
    np.testing.assert_array_equal(logits[1][0], logits[8][0])
    assert np.ptp(logits[1]) > 0.1


def test_a_runs_adapter_is_that_of_peft(golden, tmp_path):
    base, peft, _ = golden
    run = write_adapter_run(tmp_path / "run", base, peft)
    config, weights = Qwen3Config.from_dir(base), open_hf_weights(base)
    wanted = read_peft(peft)
    for source in (run, run / "checkpoint", run / "checkpoint/rank_1/qwen3_rank_1-1_2.safetensors"):
        found = open_adapter(source, base, config, weights)
        assert (found.alpha, found.rank, found.modules.keys()) == (12, 4, wanted.modules.keys())
        for module, halves in wanted.modules.items():
            np.testing.assert_array_equal(found.modules[module].a, halves.a)
            np.testing.assert_array_equal(found.modules[module].b, halves.b)


def test_adapters_of_a_run_whose_metadata_are_damaged_name_no_base(golden, tmp_path):
    base, peft, _ = golden
    run = write_adapter_run(tmp_path / "run", base, peft)
    for path in run.rglob("*.safetensors"):
        body = path.read_bytes()
        begin = b'"{\\"version'
        assert begin in body
        path.write_bytes(body.replace(begin, b'"[\\"version'))
    assert open_adapter(run, base, Qwen3Config.from_dir(base), open_hf_weights(base)).rank == 4


def test_an_adapter_for_another_base_is_refused(golden, tmp_path):
    base, peft, _ = golden
    other = write_hf(tmp_path / "other", whole_weights())
    other_weights = open_hf_weights(other)
    with pytest.raises(WeightError, match=r"is for another base: model.embed_tokens is \(64, 16\), its"):
        open_adapter(peft, other, CONFIG, other_weights)
    run = write_adapter_run(tmp_path / "run", base, peft)
    changed = shutil.copytree(base, tmp_path / "changed")
    body = bytearray((changed / "model.safetensors").read_bytes())
    body[-1] ^= 1
    (changed / "model.safetensors").write_bytes(body)
    with pytest.raises(WeightError, match=r"is for another base than .*changed .fingerprint [0-9a-f]{16}"):
        open_adapter(run, changed, Qwen3Config.from_dir(base), open_hf_weights(changed))
    # PEFT's files hold the embedding of their base.
    body = bytearray((changed / "model.safetensors").read_bytes())
    start = open_hf_weights(changed).first.tensors["model.embed_tokens.weight"].start
    body[start] ^= 1
    (changed / "model.safetensors").write_bytes(body)
    with pytest.raises(WeightError, match=r"holds its own model.embed_tokens.weight, which differs"):
        open_adapter(peft, changed, Qwen3Config.from_dir(base), open_hf_weights(changed))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: shutil.rmtree(folder), "does not exist; --adapter takes PEFT's folder or a run"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "has no adapter_config.json"),
        (lambda folder: (folder / "adapter_config.json").write_text('{"lora_alpha": 1, "use_dora": true}'),
         "only plain LoRA without bias is implemented, not use_dora"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(),
         "holds adapter_config.json but no adapter_model.safetensors"),
    ],
)  # fmt: skip
def test_what_is_no_adapter_is_refused(golden, tmp_path, spoil, sentence):
    base, peft, _ = golden
    folder = shutil.copytree(peft, tmp_path / "peft")
    spoil(folder)
    with pytest.raises((ConfigError, FormatError), match=sentence):
        open_adapter(folder, base, Qwen3Config.from_dir(base), open_hf_weights(base))


def test_mindformers_adapters_are_sent_to_the_export(golden, tmp_path):
    base, _, _ = golden
    name = "decoder.layers.0.self_attention.linear_qkv.lora_"
    halves = {f"{name}{half}.weight": np.ones((4, 4), np.float32) for half in "AB"}
    write_tensors(tmp_path / "lora.safetensors", halves)
    with pytest.raises(
        FormatError, match="has mindformers' fused names; give what qwen3-ckpt lora export makes"
    ):
        open_adapter(tmp_path / "lora.safetensors", base, Qwen3Config.from_dir(base), open_hf_weights(base))


def test_a_run_without_adapters_is_no_adapter(tmp_path):
    run = write_run(tmp_path / "run", whole_weights(), Layout())
    folder = write_hf(tmp_path / "hf", whole_weights(), RAW)
    with pytest.raises(FormatError, match="holds no adapter"):
        open_adapter(run, folder, CONFIG, open_hf_weights(folder))


def write_adapter_run(run, base, peft):
    """Write PEFT's adapter as two tensor-parallel ranks of qwen3-train write it."""
    whole = {}
    for module, halves in read_peft(peft).modules.items():
        whole |= {f"{module}.lora_A.weight": halves.a, f"{module}.lora_B.weight": halves.b}
    write_run(run, whole, Layout(tp=2), told={"version": 1, "data": "", "base": base_fingerprint(base)})
    (run / "adapter_config.json").write_text(json.dumps({"lora_alpha": 12, "r": 4}), encoding="utf-8")
    return run
