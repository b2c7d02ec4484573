"""LoRA from end to end: only adapters train and are saved, and a resumed run is the unbroken one."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from train_inputs import TINY_MODEL, counting_documents, tiny_run, write_tokens, write_yaml

from qwen3_model.checkpoints.fresh_weights import init_weights
from qwen3_model.checkpoints.hf_folder import write_hf_weights
from qwen3_model.checkpoints.safetensors_file import TensorPlan, open_safetensors
from qwen3_model.checkpoints.strategy import read_strategy
from qwen3_model.errors import ConfigError
from qwen3_train.cli import main
from qwen3_train.reports.run_log import read_metrics
from qwen3_train.settings.lora import peft_targets, read_lora
from qwen3_train.settings.model import read_model

pytestmark = pytest.mark.usefixtures("share_graphs")

CONFIG = read_model(TINY_MODEL, None)
PET = {"pet_type": "lora", "lora_rank": 2, "lora_alpha": 4, "lora_dropout": 0.1, "target_modules": ".*"}


def write_base(folder, seed):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG.to_hf()))
    tensors = [(TensorPlan(n, "F32", v.shape), iter([v])) for n, v in init_weights(CONFIG, seed)]
    write_hf_weights(folder, tensors)
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    prefix = write_tokens(folder / "tiny_text_document", counting_documents(60), eod_id=1)
    return folder, prefix, write_base(folder / "base", 5)


def lora_run(inputs, name, pet=PET, **changes):
    folder, prefix, base = inputs
    values = tiny_run(folder / name, prefix, run_mode="finetune", pretrained_model_dir=str(base), **changes)
    values["model"]["model_config"]["pet_config"] = pet
    return values


def launch(inputs, values, *arguments):
    config = write_yaml(inputs[0] / "config.yaml", values)
    return CliRunner().invoke(main, ["launch", "--config", str(config), *arguments])


def last_file(run_dir):
    return max((run_dir / "checkpoint/rank_0").glob("*.safetensors"), key=lambda path: path.stat().st_mtime)


def losses(run_dir):
    return [line["loss"] for line in read_metrics(run_dir / "metrics.jsonl") if "loss" in line]


@pytest.fixture(scope="module")
def finished(inputs):
    result = launch(inputs, lora_run(inputs, "out"))
    assert result.exit_code == 0, result.output
    return inputs[0] / "out", result.output


def test_a_checkpoint_holds_adapters_and_their_moments_alone_and_is_small(finished):
    run_dir, output = finished
    path = last_file(run_dir)
    names = set(open_safetensors(path).tensors)
    scalars = {"epoch_num", "step_num", "global_step", "loss_scale"}
    adapters = {name for name in names - scalars if not name.startswith("adam_")}
    assert len(adapters) == 2 * (2 * 7 + 1)  # A and B of seven layers in two blocks, and of the embedding
    assert all(".lora_" in name for name in names - scalars)
    assert names == adapters | scalars | {f"adam_{m}.{n}" for m in "mv" for n in adapters}
    assert path.stat().st_size < 50_000
    assert "adapters of rank 2 on 15 modules: 1,616 parameters train" in output
    written = json.loads((run_dir / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"]) == (2, 4)
    assert written["target_modules"][:2] == ["down_proj", "embed_tokens"]
    assert set(read_strategy(run_dir / "strategy/ckpt_strategy_rank_0.ckpt")[1]) == names - scalars


def test_the_first_loss_is_the_bases_and_the_adapters_learn(finished, inputs):
    run_dir, _ = finished
    full = lora_run(inputs, "full", pet=None, callbacks=[{"type": "TrainCallBack", "stop_step": 1}])
    result = launch(inputs, full)
    assert result.exit_code == 0, result.output
    assert losses(run_dir)[0] == losses(inputs[0] / "full")[0]
    assert losses(run_dir)[-1] < losses(run_dir)[0] - 0.01
    file = open_safetensors(last_file(run_dir))
    moved = [n for n in file.tensors if n.endswith("lora_B.weight") and not n.startswith("adam_")]
    assert all(np.abs(file.raw(name)).max() > 0 for name in moved)


def test_a_resumed_run_equals_the_unbroken_one_also_in_what_it_drops(finished, inputs):
    run_dir, _ = finished
    shutil.copytree(run_dir, inputs[0] / "parts")
    result = launch(inputs, lora_run(inputs, "parts"), "--resume_training", "qwen3_rank_0-1_4", "--force")
    assert result.exit_code == 0, result.output
    assert "after step 4" in result.output
    assert losses(inputs[0] / "parts") == losses(run_dir)
    whole, parts = open_safetensors(last_file(run_dir)), open_safetensors(last_file(inputs[0] / "parts"))
    assert all(np.array_equal(whole.raw(name), parts.raw(name)) for name in whole.tensors)


def test_adapters_of_another_base_or_another_kind_are_not_resumed(finished, inputs):
    resume = ("--resume_training", "True", "--runner_config.epochs", "2")
    other = write_base(inputs[0] / "other", 6)
    refused = launch(inputs, lora_run(inputs, "out"), *resume, "--pretrained_model_dir", str(other))
    assert refused.exit_code == 1
    assert "belongs to another base (fingerprint " in refused.output
    refused = launch(inputs, lora_run(inputs, "out", pet=PET | {"lora_rank": 3}), *resume)
    assert "r 2 is now 3; resume with the pet_config that the run began with" in refused.output
    refused = launch(inputs, lora_run(inputs, "out", pet=None), *resume)
    assert "belongs to another base" in refused.output


@pytest.mark.parametrize(
    ("pet", "sentence"),
    [
        ({"lora_rank": 0}, "lora_rank=0 must be at least 1"),
        ({"lora_alpha": 0}, "lora_alpha=0.0 must be above 0"),
        ({"lora_dropout": 1.0}, "lora_dropout=1.0 must be from 0 to below 1"),
        ({"lora_a_init": "orthogonal"}, "lora_a_init='orthogonal' is none of normal, zeros, ones"),
        ({"lora_a_init": "zeros"}, "with lora_a_init and lora_b_init both zeros nothing would ever train"),
        ({"target_modules": ".*q_prj"}, "'.*q_prj' matches nothing; modules that can are word_embeddings"),
        ({"target_modules": ".*q_proj|.*norm"}, "'.*norm' means input_layernorm, k_norm, norm"),
        ({"target_modules": "(q_proj"}, "is no regular expression"),
        ({"freeze_include": ["*.self_atn.*"]}, "freeze_include: '*.self_atn.*' matches no weight"),
        ({"freeze_exclude": ["*norm*"]}, "freezes the adapters too; freeze_exclude must have '*lora*'"),
    ],
)
def test_a_pet_config_that_cannot_work_is_one_sentence(pet, sentence):
    with pytest.raises(ConfigError) as caught:
        read_lora(PET | pet, CONFIG)
    assert sentence in str(caught.value)


def test_a_run_refuses_unknown_keys_missing_bases_and_layouts(inputs):
    unknown = launch(inputs, lora_run(inputs, "bad", pet=PET | {"lora_rnk": 1}))
    assert "pet_config.lora_rnk" in unknown.output
    assert "did you mean lora_rank?" in unknown.output
    bare = lora_run(inputs, "bad", use_parallel=True) | {"run_mode": "train"}
    assert "adapters need a base: give pretrained_model_dir" in launch(inputs, bare).output
    assert not (inputs[0] / "bad").exists()


@pytest.mark.parametrize(
    ("pattern", "leaves"),
    [
        (".*linear_qkv", {"q_proj", "k_proj", "v_proj"}),
        (".*word_embeddings|.*linear_fc1", {"embed_tokens", "gate_proj", "up_proj"}),
        ("q_proj|v_proj", {"q_proj", "v_proj"}),
        (".*", {"embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_target_modules_are_mindformers_names_or_ours(pattern, leaves):
    lora = read_lora(PET | {"target_modules": pattern}, CONFIG)
    assert {module.rpartition(".")[2] for module in lora.modules} == leaves
    assert set(peft_targets(lora.modules, CONFIG)) == leaves


def test_one_block_alone_is_named_whole_for_peft():
    lora = read_lora(PET | {"target_modules": r"model\.layers\.1\..*q_proj"}, CONFIG)
    assert peft_targets(lora.modules, CONFIG) == ["model.layers.1.self_attn.q_proj"]


def test_weights_that_freezing_leaves_out_train_as_well():
    lora = read_lora(PET | {"freeze_exclude": ["*lora*", "*.q_norm.*"]}, CONFIG)
    assert [name for name in lora.trained if ".lora_" not in name] == [
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.1.self_attn.q_norm.weight",
    ]


def test_a_stage_without_adapters_is_refused(inputs):
    pet = PET | {"target_modules": r"model\.layers\.1\..*q_proj"}
    layout = {"pipeline_stage": 2, "micro_batch_num": 2}
    values = lora_run(inputs, "bad", pet=pet, use_parallel=True, parallel_config=layout)
    refused = launch(inputs, values, "--worker-num", "2")
    assert refused.exit_code == 1
    assert "gives the layers of pipeline stage 0 no adapter" in refused.output
