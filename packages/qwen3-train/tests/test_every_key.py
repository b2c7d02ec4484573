"""Every key of the schema counts: it changes the run, or is named, or is refused, by `launch` and `plan`."""

import itertools
import json
from copy import deepcopy
from dataclasses import replace

import pytest
import yaml
from click.testing import CliRunner
from train_inputs import TINY_MODEL, tiny_run, write_yaml

from qwen3_model.command.keys import Key
from qwen3_model.command.run_config import parse_run_config
from qwen3_model.errors import Qwen3Error
from qwen3_train.cli import main
from qwen3_train.settings.lr_schedule import ALIASES, SCHEDULES, make_schedule
from qwen3_train.settings.run import read_settings
from qwen3_train.settings.schema import TRAIN
from qwen3_train.settings.unused import unused_keys, with_winning_overrides

# Keys that count elsewhere than in the settings of a run.
ELSEWHERE = {
    "output_dir": "where the run lies",
    "use_parallel": "refused without several workers",
    "context.mode": "read by launch",
    "model.model_config.hidden_act": "two names of the one function",
    "model.model_config.architectures": "two forms of the one name",
    "train_dataset.data_loader.split": "in the settings of conversations",
    "use_graceful_exit": "True is how it is without the key",
    "train_dataset.data_loader.handler.padding": "packs are padded and single samples too",
}


def leaves(schema, prefix=()):
    for name, rule in schema.items():
        if isinstance(rule, Key):
            yield (*prefix, name), rule
        elif isinstance(rule, list):
            yield from leaves(rule[0], (*prefix, name, 0))
        else:
            yield from leaves(rule, (*prefix, name))


def values_for(rule):
    """Return values that a person might give."""
    if rule.choices:
        return [rule.choices[0], rule.choices[-1]] if not isinstance(rule.choices, range) else [11]
    kinds = rule.types or (str, bool, int, list)
    samples = {str: ["abc"], bool: [True], int: [3], float: [0.37], list: [[1, 2]], dict: [{"a": 1}]}
    return list(itertools.chain.from_iterable(samples[kind] for kind in kinds))


def put(values, path, new):
    place = values
    for index, part in enumerate(path[:-1]):
        if isinstance(place, list):
            while len(place) <= part:
                place.append({})
            place = place[part]
        else:
            follows = [] if isinstance(path[index + 1], int) else {}
            if not isinstance(place.get(part), type(follows)):
                place[part] = follows
            place = place[part]
    place[path[-1]] = new


def outcome(values):
    """Return what a run would do, in a form that compares, and the sentences that are said."""
    config = parse_run_config(yaml.safe_dump(values), [], TRAIN, where="test")
    settings = read_settings(config)
    schedule = make_schedule(settings.lr_schedule, 40)
    done = replace(settings, lr_schedule={"rates": [schedule(step) for step in range(45)]})
    return done, [*config.notes, *unused_keys(config)]


def token_run(tmp_path):
    values = tiny_run(tmp_path / "out", "prefix")
    values["train_dataset"]["data_loader"]["config"]["eod"] = 1
    return values


def conversation_run(tmp_path):
    values = tiny_run(tmp_path / "out", "prefix")
    values["train_dataset"] = {
        "data_loader": {
            "type": "HFDataLoader", "path": "json", "data_files": str(tmp_path / "x.jsonl"),
            "handler": [{"type": "AlpacaInstructDataHandler", "seq_length": 16}],
        }
    }  # fmt: skip
    (tmp_path / "x.jsonl").write_text(json.dumps({"messages": []}) + "\n", encoding="utf-8")
    return values


KEYS = [(".".join(str(part) for part in path), path, rule) for path, rule in leaves(TRAIN)]


@pytest.mark.parametrize("make", [token_run, conversation_run])
def test_every_key_changes_the_run_or_is_named_or_is_refused(tmp_path, make):
    base = make(tmp_path)
    before, said = outcome(base)
    silent = []
    for name, path, rule in KEYS:
        plain = ".".join(part for part in path if not isinstance(part, int))
        if plain in ELSEWHERE:
            continue
        for value in values_for(rule):
            values = deepcopy(base)
            put(values, path, value)
            if values == base or rule.effect != "used":
                continue  # the schema names it
            only_value = len(rule.choices) == 1 if not isinstance(rule.choices, range) else False
            try:
                after, told = outcome(values)
            except Qwen3Error:
                continue
            if after == before and set(told) <= set(said) and not only_value:
                silent.append(f"{name}={value}")
    assert not silent


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"profile": True, "profile_start_step": 5, "profile_stop_step": 4}, "are no window of steps"),
        ({"profile": True, "profile_rank_ids": [0, "x"]}, "must be ranks, such as"),
        ({"callbacks": [{"type": "OnRequestExit", "save_ckpt": False}]}, "save_ckpt"),
    ],
)
def test_a_profile_or_an_exit_that_cannot_be_meant_is_refused(tmp_path, keys, sentence):
    with pytest.raises(Qwen3Error, match=sentence):
        outcome(token_run(tmp_path) | keys)


def test_keys_without_effect_are_named_by_launch_and_plan_alike(tmp_path):
    values = token_run(tmp_path)
    values |= {
        "parallel_config": {"data_parallel": 4, "micro_batch_num": 2},
        "monitor_config": {"global_norm_spike_threshold": 2.0},
        "runner_wrapper": {"max_grad_norm": 0.5},
        "eval_step_interval": 5,
        "layer_scale": True,
        "profile_stop_step": 5,
    }
    values["model"]["model_config"]["seq_length"] = 512
    values["callbacks"][0]["save_checkpoint_steps"] = 3
    config = write_yaml(tmp_path / "x.yaml", values)
    planned = CliRunner().invoke(main, ["plan", "--config", str(config), "--json"])
    assert planned.exit_code == 0, planned.output
    keys = json.loads(planned.stdout)["keys"]
    assert keys == outcome(values)[1]
    text = "\n".join(keys)
    for said in (
        "use_parallel is not True, so parallel_config is not used: parallel_config.data_parallel",
        "since use_skip_data_by_global_norm is not True: monitor_config.global_norm_spike_threshold",
        "since use_clip_grad is not True: runner_wrapper.max_grad_norm",
        "since do_eval is not True: eval_step_interval",
        "model.model_config.seq_length=512 has no effect: the data's seq_length is 16",
        "callbacks.0: save_checkpoint_steps means nothing to MFLossMonitor",
        "accepted without effect here: layer_scale",
        "since profile is not True: profile_stop_step",
    ):
        assert said in text, text
    assert all(f"Note: {key}" in planned.stderr for key in keys)


@pytest.mark.parametrize(("flags", "first"), [([], 0.02), ([("lr_schedule.warmup_steps", "4")], 0.0)])
def test_a_flag_wins_over_the_other_spelling_in_the_yaml(tmp_path, flags, first):
    values = tiny_run(tmp_path / "out", "prefix")
    values["lr_schedule"] = {"type": "cosine", "learning_rate": 0.02, "warmup_ratio": 0.0}
    config = parse_run_config(yaml.safe_dump(values), with_winning_overrides(flags), TRAIN, where="test")
    assert make_schedule(read_settings(config).lr_schedule, 20)(0) == first
    assert not any("has no effect beside" in note for note in unused_keys(config))


def test_two_spellings_are_named_in_a_yaml_and_refused_on_the_command_line(tmp_path):
    values = tiny_run(tmp_path / "out", "prefix", lr_schedule__warmup_ratio=0.1)
    assert "lr_schedule.warmup_steps has no effect beside lr_schedule.warmup_ratio" in outcome(values)[1][0]
    both = ["--lr_schedule.warmup_steps", "3", "--lr_schedule.warmup_ratio", "0.1"]
    config = write_yaml(tmp_path / "x.yaml", values)
    for command in ("launch", "plan"):
        refused = CliRunner().invoke(main, [command, "--config", str(config), *both])
        assert refused.exit_code == 2
        assert "say the same thing in two ways" in refused.stderr


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lr_schedule__type": "Nonsense"}, "'Nonsense' is none of"),
        ({"optimizer__type": "Muon"}, "optimizer.type='Muon' is not implemented"),
        ({"train_dataset__data_loader__config__seq_length": 100}, "longer than max_position_embeddings=64"),
        ({"runner_wrapper__max_grad_norm": -1.0}, "max_grad_norm=-1.0 must be above 0"),
        (
            {"model__model_config__num_hidden_layers": 100_000},
            "num_layers=100000 must be a whole number from 1 to",
        ),
        ({"run_mode": "predict"}, "use qwen3-infer generate or qwen3-infer plan with --config"),
    ],
)
def test_plan_refuses_what_launch_refuses(tmp_path, changes, sentence):
    config = write_yaml(tmp_path / "x.yaml", tiny_run(tmp_path / "out", "prefix", **changes))
    for command in ("launch", "plan"):
        refused = CliRunner().invoke(main, [command, "--config", str(config)])
        assert refused.exit_code in (1, 2)
        assert sentence in refused.stderr, (command, refused.stderr)


def test_mindformers_short_names_of_schedules_are_the_long_ones():
    own = {"CosineAnnealingLR": {"t_max": 9}, "CosineAnnealingWarmRestarts": {"t_0": 4}}
    for short, long in ALIASES.items():
        section = {"learning_rate": 1.0} | own.get(long, {})
        pair = [make_schedule(section | {"type": name}, 20) for name in (short, long)]
        assert [pair[0](step) for step in range(22)] == [pair[1](step) for step in range(22)]
        assert long in SCHEDULES


def test_the_keys_of_mindformers_earlier_files_are_read(tmp_path):
    values = tiny_run(tmp_path / "out", "prefix", model__model_config=dict(
        TINY_MODEL, residual_dtype="float32", use_contiguous_weight_layout=True, hidden_act="swiglu",
        use_flash_attention=True, qkv_concat=True, position_embedding_type="rope",
    ))  # fmt: skip
    settings, told = outcome(values)
    assert settings.fused_layout.contiguous_qkv
    assert any("model.model_config.residual_dtype" in note for note in told)
