import pytest

from qwen3_model.command.keys import Key, parse_dotted
from qwen3_model.command.run_config import parse_run_config
from qwen3_model.command.yaml_loader import parse_yaml
from qwen3_model.errors import ConfigError, UsageError

SCHEMA = {
    "seed": Key((int,)),
    "optimizer": {"learning_rate": Key((float,)), "type": Key((str,), choices=("AdamW",))},
    "callbacks": [{"type": Key((str,)), "steps": Key((int,))}],
    "profile": Key((bool,), effect="none"),
    "context": {"max_device_memory": Key((str,), effect="ascend")},
    "shape": Key((list,)),
}


def parse(text, *overrides):
    return parse_run_config(text, parse_dotted(overrides, SCHEMA), SCHEMA, where="run.yaml")


def test_exponent_without_dot_is_a_number():
    config = parse("optimizer: {learning_rate: 1e-6}")
    assert config.get("optimizer.learning_rate") == 1e-6


def test_overrides_reach_nested_keys_and_list_items_in_order():
    config = parse(
        "callbacks: [{type: A, steps: 1}, {type: B}]",
        "--optimizer.learning-rate", "0.5", "--callbacks.1.steps=7", "--seed", "1", "--seed", "2",
        "--shape", "[1, -1]",
    )  # fmt: skip
    assert config.values == {
        "callbacks": [{"type": "A", "steps": 1}, {"type": "B", "steps": 7}],
        "optimizer": {"learning_rate": 0.5},
        "seed": 2,
        "shape": [1, -1],
    }


def test_unknown_keys_are_all_named_with_a_hint():
    with pytest.raises(ConfigError) as caught:
        parse("sed: 1\noptimizer: {learning_rte: 1.0, other: 2}")
    assert str(caught.value) == (
        "run.yaml: unknown key sed (did you mean seed?); "
        "unknown key optimizer.learning_rte (did you mean learning_rate?); unknown key optimizer.other"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: true", "run.yaml: seed=True must be int"),
        ("seed: 1.5", "run.yaml: seed=1.5 must be int"),
        ("optimizer: 3", "run.yaml: optimizer=3 must be a section with keys"),
        ("optimizer: {type: Muon}", "run.yaml: optimizer.type='Muon' is none of AdamW"),
        ("callbacks: {type: A}", "run.yaml: callbacks={'type': 'A'} must be a list of sections"),
        ("seed: 1\nseed: 2", "run.yaml, line 2, column 1: key 'seed' is given twice"),
        ("seed: [1", "run.yaml, line 1, column 9: expected ',' or ']', but got '<stream end>'"),
        ("- 1", "run.yaml must hold keys and values, found list"),
        (r'path: "a\0"', "run.yaml, line 1, column 7: a text has U+0000 or half a character in it"),
        (r'path: "\uDE00\uD83D"', "run.yaml, line 1, column 7: a text has U+0000 or half a character in it"),
    ],
)
def test_bad_file_is_one_sentence(text, message):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value) == message


def test_a_character_that_json_escapes_in_two_halves_is_one():
    assert parse_yaml(r'"\uD83D\uDE00"', "run.yaml") == "\U0001f600"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--sed", "1"], "--sed: unknown key sed (did you mean seed?)"),
        (["--seed", "x"], "--seed: seed='x' must be int"),
        (["--seed"], "--seed needs a value"),
        (["--optimizer", "1"], "--optimizer: optimizer=1 must be a section with keys"),
        (["--options", "seed=1"], "--options: write each key on its own, as --seed 1 or --a.b 2"),
        (["--lr"], "--lr: unknown key lr (did you mean optimizer.learning_rate?)"),
        (["--profile", "3"], "--profile: profile=3 must be True or False"),
        (["--seed", "--shape"], "--seed needs a value"),
        (["stray"], "unexpected argument 'stray'; overrides are written --key.key value"),
        (["--callbacks.4.steps", "1"], "--callbacks.4.steps: '4' is no index of a list of 1; count from 0"),
        (
            ["--callbacks.0.steps.deep", "1"],
            "--callbacks.0.steps.deep: callbacks.0.steps is 3, not a section",
        ),
    ],
)
def test_bad_override_is_a_usage_error(overrides, message):
    with pytest.raises(UsageError) as caught:
        parse("callbacks: [{steps: 3}]", *overrides)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--profile"], True), (["--profile", "--seed", "1"], True), (["--profile", "False"], False),
        (["--no-profile"], False), (["--no_profile", "--seed", "1"], False), (["--profile=no"], False),
    ],
)  # fmt: skip
def test_a_key_that_is_true_or_false_is_a_switch(arguments, value):
    assert parse("", *arguments).values["profile"] is value


def test_keys_without_effect_are_named_once():
    config = parse("profile: true\ncontext: {max_device_memory: 58GB}")
    assert config.notes == (
        "accepted without effect here: profile",
        "with effect on Ascend only: context.max_device_memory",
    )


def test_written_configuration_reads_back_equal():
    config = parse("optimizer: {learning_rate: 1e-6}\nshape: [1, 2]")
    assert parse(config.to_yaml()).values == config.values


def test_anchor_and_alias_are_followed():
    config = parse("optimizer: &o {learning_rate: 2.0}\nseed: 3")
    assert config.get("optimizer.learning_rate") == 2.0
    assert config.get("optimizer.type", "AdamW") == "AdamW"


def test_a_key_without_a_value_counts_as_left_out():
    config = parse("seed:\noptimizer: {learning_rate: null, type: AdamW}\ncallbacks: [{type: A, steps: ~}]")
    assert config.values == {"optimizer": {"type": "AdamW"}, "callbacks": [{"type": "A"}]}
    assert parse("seed: 3\nprofile: true", "--seed", "null", "--profile=").values == {}


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_a_number_is_finite(value):
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate=.* must be a finite number"):
        parse(f"optimizer: {{learning_rate: {value}}}")


def test_a_range_of_whole_numbers_is_stated():
    schema = {"seed": Key((int,), range(2**32)), "rope": Key((dict,))}
    assert parse_run_config("seed: 4294967295", [], schema, where="x").get("seed") == 2**32 - 1
    with pytest.raises(ConfigError, match="seed=-1 must be from 0 to 4294967295; rope=3 must be a section"):
        parse_run_config("seed: -1\nrope: 3", [], schema, where="x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "[1, 2"], "--shape, line 1, column 6: .*; quote a text that looks like YAML"),
        (["--seed", "\0"], "--seed, line 1: character #x0000 is not allowed in YAML"),
        (["--callbacks.\u00b2.steps", "1"], "'\u00b2' is no index of a list of 1"),
    ],
)
def test_an_override_that_cannot_be_read_is_an_error_of_usage(arguments, message):
    with pytest.raises(UsageError, match=message):
        parse("callbacks: [{type: A}]", *arguments)


def test_deep_nesting_and_control_characters_are_one_sentence():
    with pytest.raises(ConfigError, match=r"run\.yaml is nested too deeply"):
        parse("shape: " + "[" * 5000 + "]" * 5000)
    with pytest.raises(ConfigError, match=r"^run\.yaml, line 2: character #x0007 is not allowed in YAML$"):
        parse("seed: 1\noptimizer: {type: \a}")
