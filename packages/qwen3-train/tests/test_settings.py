from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from train_inputs import settings_of, tiny_run

from qwen3_model.command.run_config import load_run_config, parse_run_config
from qwen3_model.config import SIZES
from qwen3_model.errors import ConfigError
from qwen3_model.ranks.layout import Layout
from qwen3_train.plan.settings import read_plan_settings
from qwen3_train.settings.run import read_settings
from qwen3_train.settings.schema import TRAIN
from qwen3_train.settings.skip import SkipSettings

KEYS = Path(__file__).with_name("mindformers_keys.yaml")
CONFIGS = Path(__file__).parents[3] / "configs" / "qwen3"
LAYOUTS = {"0.6B": (8, 1), "1.7B": (8, 1), "4B": (8, 1), "8B": (8, 1), "14B": (8, 1), "32B": (4, 4)}


@pytest.mark.parametrize("size", SIZES)
def test_the_ready_file_of_each_size_has_its_architecture_and_the_guides_layout(size):
    path = CONFIGS / f"pretrain_qwen3_{size.lower()}_4k.yaml"
    tp, pp = LAYOUTS[size]
    settings = read_settings(load_run_config(path, [], TRAIN), worker_num=tp * pp)
    # The files train on 4096 tokens in float32 weights, and stop at the end of a document.
    differ = {"max_position_embeddings", "eos_token_id", "pad_token_id", "dtype"}
    for field in fields(settings.model):
        if field.name not in differ:
            assert getattr(settings.model, field.name) == getattr(SIZES[size], field.name), field.name
    assert settings.layout == Layout(tp=tp, pp=pp, sequence_parallel=True)
    assert settings.recompute.kind == ("full" if size in ("14B", "32B") else "none")
    assert settings.data.eod == 151643


def test_the_demo_file_is_read():
    config = load_run_config(
        CONFIGS / "demo.yaml", [("train_dataset.data_loader.config.data_path", "some/prefix")], TRAIN
    )
    settings = read_settings(config)
    assert settings.model.vocab_size == 4096
    assert settings.data.train.prefixes == ("some/prefix",)
    assert config.notes == ()


def test_every_key_of_mindformers_file_works_or_is_named_once():
    config = load_run_config(KEYS, [], TRAIN)
    settings = read_settings(config)
    assert settings.data.train.prefixes == ("/path/to/wiki103-megatron_text_document",)
    assert settings.data.num_train == 8000
    assert (settings.data.eod, settings.data.seq_length) == (1, 4096)
    assert settings.max_grad_norm == 1.0
    assert (settings.save_every, settings.keep_max, settings.prefix) == (5000, 1, "qwen3")
    assert settings.model.eos_token_id == 63
    assert settings.layout == Layout()  # use_parallel is False
    notes = " ".join(config.notes)
    for key in ("layer_decay", "parallel.search_mode", "model.model_config.use_flash_attention", "profile"):
        assert notes.count(key) >= 1


def test_defaults_are_those_of_one_short_run(tmp_path):
    values = tiny_run(tmp_path, "prefix")
    del values["optimizer"], values["lr_schedule"], values["callbacks"], values["runner_wrapper"]
    settings = settings_of(values)
    assert (settings.adam.beta2, settings.adam.weight_decay) == (0.999, 0.0)
    assert settings.max_grad_norm is None
    assert (settings.save_every, settings.keep_max, settings.log_every) == (None, 1, 1)


def test_steps_are_skipped_under_mindformers_keys(tmp_path):
    assert settings_of(tiny_run(tmp_path, "prefix")).skip is None
    on = {"use_skip_data_by_global_norm": True}
    assert settings_of(tiny_run(tmp_path, "prefix", **on)).skip == SkipSettings(
        norm_limit=3.0, most_in_row=10, stops_at_nan=False
    )
    own = {"global_norm_spike_threshold": 1e30, "global_norm_spike_count_threshold": 2}
    skip = settings_of(tiny_run(tmp_path, "prefix", monitor_config=own, **on)).skip
    assert (skip.norm_limit, skip.most_in_row) == (1e30, 2)
    for key in own:
        with pytest.raises(ConfigError, match=f"monitor_config.{key}=0 must be"):
            settings_of(tiny_run(tmp_path, "prefix", monitor_config={key: 0}))


def test_sizes_of_nothing_mean_one_pass(tmp_path):
    for sizes in ([0, 0, 0], [-1], None):
        values = tiny_run(tmp_path, "prefix", train_dataset__data_loader__sizes=sizes)
        assert settings_of(values).data.num_train is None
    with pytest.raises(ConfigError, match="sizes="):
        settings_of(tiny_run(tmp_path, "prefix", train_dataset__data_loader__sizes=["many"]))


def test_weights_need_a_number_of_samples_for_each_part_that_is_used(tmp_path):
    blend = {"train_dataset__data_loader__config__data_path": ["0.01", "a", "0.99", "b"]}
    sizes, split = "train_dataset__data_loader__sizes", "train_dataset__data_loader__config__split"
    for wanted in ([0, 0, 0], None, [-1, 8, 0]):
        with pytest.raises(ConfigError, match="has weights in data_path, but sizes="):
            settings_of(tiny_run(tmp_path, "prefix", **blend, **{sizes: wanted}))
    evaluated = {**blend, sizes: [80, 0, 0], split: "95, 5, 0", "do_eval": True}
    with pytest.raises(ConfigError, match=r"do_eval=True needs the second number of .*sizes"):
        settings_of(tiny_run(tmp_path, "prefix", **evaluated))
    for changes in ({"do_eval": False}, {sizes: [80, 8, 0]}):
        assert settings_of(tiny_run(tmp_path, "prefix", **(evaluated | changes))).data.num_train == 80


def test_files_of_their_own_exclude_a_split(tmp_path):
    own = {"train_dataset__data_loader__config__train_data_path": ["a"]}
    with pytest.raises(ConfigError, match="give one or the other"):
        settings_of(tiny_run(tmp_path, "prefix", **own))
    config = "train_dataset__data_loader__config__"
    changes = own | {f"{config}data_path": None, f"{config}valid_data_path": ["b"]}
    data = settings_of(tiny_run(tmp_path, "prefix", **changes)).data
    assert (data.train.prefixes, data.valid.prefixes, data.split) == (("a",), ("b",), None)


def test_a_layout_fits_the_number_of_processes(tmp_path):
    changes = {"use_parallel": True, "parallel_config": {"data_parallel": 2, "model_parallel": 2}}
    assert settings_of(tiny_run(tmp_path, "prefix", **changes), worker_num=4).layout == Layout(dp=2, tp=2)
    with pytest.raises(ConfigError, match="needs 4 processes but worker_num is 2"):
        settings_of(tiny_run(tmp_path, "prefix", **changes), worker_num=2)


def test_a_number_without_a_value_has_its_default(tmp_path):
    pet_config = dict.fromkeys(("lora_rank", "lora_alpha", "lora_dropout")) | {"target_modules": "q_proj"}
    nulls = {"optimizer__eps": None, "optimizer__weight_decay": None, "runner_config__epochs": None}
    settings = settings_of(tiny_run(tmp_path, "data", model__model_config__pet_config=pet_config, **nulls))
    assert (settings.adam.eps, settings.adam.weight_decay, settings.epochs) == (1e-8, 0.0, 1)
    assert (settings.lora.rank, settings.lora.alpha, settings.lora.dropout) == (8, 16.0, 0.01)


LOADER = "train_dataset__data_loader"
REFUSED = (
    ({f"{LOADER}__type": "HFDataLoader"}, "data_loader.sizes is a key of BlendedMegatron.*, not of HFData"),
    ({f"{LOADER}__handler": [{"type": "take", "n": 2}]}, "data_loader.handler is a key of HFDataLoader, not"),
    ({f"{LOADER}__handler": [{"column_mapping": "a"}]}, "column_mapping='a' must be a section with keys"),
    ({f"{LOADER}__handler": [{"column_names": 3}]}, "handler.0.column_names=3 must be list or str"),
    ({"seed": -1}, "seed=-1 must be from 0 to 4294967295"),
    ({"train_dataset__data_loader__config__seed": 2**32}, "config.seed=4294967296 must be from 0"),
    ({"model__model_config__rope_scaling": "yarn"}, "rope_scaling='yarn' must be a section with keys"),
    ({"model__model_config__rope_theta": float("nan")}, "rope_theta=nan must be a finite number"),
    ({"model__model_config__eos_token_id": ["a"]}, "eos_token_id=.'a'. must be an id or a list of ids"),
    ({"optimizer__weight_decay": float("inf")}, "weight_decay=inf must be a finite number"),
    ({"optimizer__eps": 10**400}, "optimizer.eps=10+[.]{3}0+ must be a finite number"),
)


@pytest.mark.parametrize(("changes", "sentence"), REFUSED)
def test_values_of_the_wrong_kind_are_refused_in_a_sentence(tmp_path, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        settings_of(tiny_run(tmp_path, "data", **changes))


def test_keys_that_nothing_reads_are_named(tmp_path):
    values = tiny_run(tmp_path, "data", eval_epoch_interval=2)
    values["train_dataset"]["data_loader"]["config"]["create_attention_mask"] = True
    notes = parse_run_config(yaml.safe_dump(values), [], TRAIN, where="x").notes
    assert "eval_epoch_interval" in notes[0]
    assert "train_dataset.data_loader.config.create_attention_mask" in notes[0]


def test_launch_and_plan_read_the_same(tmp_path):
    overrides = [
        ("model.model_config.num_hidden_layers", "4"), ("use_parallel", "True"),
        ("parallel_config.model_parallel", "2"), ("parallel_config.pipeline_stage", "2"),
        ("parallel_config.micro_batch_num", "2"), ("recompute_config.recompute", "True"),
        ("model.model_config.offset", "[1, -1]"), ("runner_config.epochs", "3"),
        ("runner_config.batch_size", "2"),
        ("train_dataset.data_loader.config.reset_attention_mask", "True"),
        ("model.model_config.pet_config", "{lora_rank: 4, target_modules: linear_qkv}"),
    ]  # fmt: skip
    config = parse_run_config(yaml.safe_dump(tiny_run(tmp_path, "p")), overrides, TRAIN, where="test")
    run, plan = read_settings(config, worker_num=4), read_plan_settings(config)
    for name in ("model", "layout", "offset", "micro_batch_num", "accumulation", "epochs", "shares_writing"):
        assert getattr(plan, name) == getattr(run, name), name
    assert (plan.batch_size, plan.recompute) == (run.batch_size, run.recompute.kind) == (2, "full")
    assert (plan.seq_length, plan.num_samples) == (run.data.seq_length, run.data.num_train)
    assert plan.separate_documents is run.data.separate_documents is True
    assert (plan.adapters.rank, plan.adapters.target_modules) == (4, "linear_qkv")
    assert (run.lora.rank, run.lora.target_modules) == (4, "linear_qkv")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("parallel_config.data_parallel", "0"),
        ("parallel_config.context_parallel", "-1"),
        ("runner_config.batch_size", "0"),
        ("model.model_config.pet_config", "{lora_alpha: 0}"),
        ("model.model_config.pet_config", "{freeze_include: ['nothing']}"),
        ("model.model_config.max_position_embeddings", "4"),
        ("pretrained_model_dir", "nowhere"),
        ("train_dataset.data_loader.type", "Other"),
        ("train_dataset.data_loader.sizes", "[many]"),
        ("data_skip_steps", "3"),
    ],
)
def test_launch_and_plan_refuse_in_the_same_words(tmp_path, key, value):
    overrides = [("use_parallel", "True"), (key, value)]
    config = parse_run_config(yaml.safe_dump(tiny_run(tmp_path, "p")), overrides, TRAIN, where="test")
    with pytest.raises(ConfigError) as launch:
        read_settings(config)
    with pytest.raises(ConfigError) as plan:
        read_plan_settings(config)
    assert str(launch.value) == str(plan.value)
