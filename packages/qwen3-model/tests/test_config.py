import ast
import dataclasses
import json
from pathlib import Path

import pytest

from qwen3_model import config as config_module
from qwen3_model.config import IGNORED, MAPPED, MUST_EQUAL, SIZES, SPELLED_TWICE, Qwen3Config
from qwen3_model.errors import ConfigError
from qwen3_model.rope_scaling import YarnScaling

FIXTURES = Path(__file__).parent / "fixtures"
# Counted by hand from the published shapes.
PARAMETERS = {
    "0.6B": 596_049_920,
    "1.7B": 1_720_574_976,
    "4B": 4_022_468_096,
    "8B": 8_190_735_360,
    "14B": 14_768_307_200,
    "32B": 32_762_123_264,
}


def read_fixture(spelling, size):
    return json.loads((FIXTURES / f"configs_{spelling}" / f"{size}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("size", PARAMETERS)
def test_both_spellings_of_a_released_config_are_the_size_in_the_table(size):
    assert Qwen3Config.from_hf(read_fixture("v4", size)) == SIZES[size]
    assert Qwen3Config.from_hf(read_fixture("v5", size)) == SIZES[size]


@pytest.mark.parametrize("size", PARAMETERS)
def test_parameters_are_counted_as_published(size):
    assert SIZES[size].num_parameters() == PARAMETERS[size]


@pytest.mark.parametrize("size", PARAMETERS)
def test_what_is_written_is_read_back_as_the_same(size):
    raw = json.loads(json.dumps(SIZES[size].to_hf()))
    assert Qwen3Config.from_hf(raw) == SIZES[size]


def test_what_is_written_has_the_keys_and_values_of_the_released_file():
    written, released = SIZES["8B"].to_hf(), read_fixture("v4", "8B")
    del released["transformers_version"]
    assert written == released


@pytest.mark.parametrize("spelling", ["v4", "v5"])
def test_every_key_of_a_released_config_is_in_exactly_one_table(spelling):
    tables = [set(MAPPED), set(MUST_EQUAL), SPELLED_TWICE, IGNORED]
    for key in read_fixture(spelling, "0.6B"):
        assert sum(key in table for table in tables) == 1, key


def test_every_field_is_read_by_some_module_of_the_package():
    source = Path(config_module.__file__).parent
    read = set()
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    through_tables = {"bos_token_id", "pad_token_id", "max_position_embeddings"}
    assert {field.name for field in dataclasses.fields(Qwen3Config)} - read - through_tables == set()
    assert through_tables <= set(MAPPED.values()), "to_hf writes what the table maps"


def test_an_unknown_key_is_refused_with_the_key_that_was_meant():
    raw = read_fixture("v4", "0.6B") | {"num_atention_heads": 16}
    with pytest.raises(ConfigError, match=r"num_atention_heads \(did you mean num_attention_heads\?\)"):
        Qwen3Config.from_hf(raw)


def test_a_missing_key_is_named():
    raw = read_fixture("v4", "0.6B")
    del raw["head_dim"]
    with pytest.raises(ConfigError, match="lacks head_dim"):
        Qwen3Config.from_hf(raw)


YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2"}, "model_type='qwen2'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"use_sliding_window": True}, "use_sliding_window=True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "rope type 'llama3'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "lacks factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": 1}}, "unknown keys mscale"),
        ({"rope_theta": None}, "rope_theta once"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, "rope_theta once"),
        ({"torch_dtype": "float8"}, "dtype='float8'"),
        ({"head_dim": 127}, "even"),
        ({"num_key_value_heads": 5}, "not a multiple"),
        ({"hidden_size": "1024"}, "hidden_size='1024'"),
        ({"num_hidden_layers": 0}, "num_layers=0"),
        ({"rms_norm_eps": 0}, "rms_norm_eps=0"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes'"),
        ({"num_hidden_layers": True}, "num_layers=True"),
        ({"layer_types": 28}, "layer_types=28 must list"),
        ({"dtype": ["bfloat16"]}, "dtype=['bfloat16']"),
        ({"eos_token_id": [[1]]}, "eos_token_id=([1],)"),
        ({"rope_theta": "1e6"}, "rope_theta: '1e6' is not a number"),
        ({"rope_theta": True}, "rope_theta: True is not a number"),
        ({"rope_theta": float("nan")}, "rope_theta=nan must be a finite number"),
        ({"rope_theta": 10**400}, "must be a finite number"),
        ({"rms_norm_eps": 10**400}, "must be a number above 0"),
        ({"rope_scaling": []}, "rope_scaling=[] must be a section"),
        ({"rope_scaling": YARN | {"factor": None}}, "lacks factor"),
        ({"rope_scaling": YARN | {"factor": [4]}}, "rope_scaling.factor: [4] is not a number"),
        ({"rope_scaling": YARN | {"beta_fast": "32"}}, "rope_scaling.beta_fast: '32' is not a number"),
        ({"rope_scaling": YARN | {"truncate": 0}}, "rope_scaling.truncate: 0 is not true or false"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(change, message):
    with pytest.raises(ConfigError) as caught:
        Qwen3Config.from_hf(read_fixture("v4", "0.6B") | change)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
        {
            "rope_theta": None,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1000000,
                "factor": 4.0,
                "original_max_position_embeddings": 32768,
            },
        },
    ],
)
def test_yarn_is_read_in_all_its_spellings_and_written_back(change):
    config = Qwen3Config.from_hf(read_fixture("v4", "8B") | change)
    assert config.rope_scaling == YarnScaling(factor=4.0, original_max_position_embeddings=32768)
    assert Qwen3Config.from_hf(config.to_hf()) == config


def test_several_ends_of_text_survive_a_round_trip():
    config = dataclasses.replace(SIZES["0.6B"], eos_token_id=(151645, 151643), pad_token_id=151643)
    assert Qwen3Config.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[1]", "no JSON object"), ("{}", "lacks")])
def test_a_damaged_config_file_is_named(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        Qwen3Config.from_dir(tmp_path)


def test_a_folder_without_a_config_says_what_to_give(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config\.json; give a Hugging Face model folder"):
        Qwen3Config.from_dir(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_theta": "x"},
        {"layer_types": 5},
        {"rope_scaling": {"rope_type": "yarn", "factor": "2", "original_max_position_embeddings": 4}},
        {"eos_token_id": "a"},
        {"eos_token_id": [1, "a"]},
        {"pad_token_id": 1.5},
    ],
)
def test_a_value_of_a_wrong_type_is_refused_with_the_files_name(tmp_path, change):
    (tmp_path / "config.json").write_text(json.dumps(read_fixture("v4", "8B") | change), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.json"):
        Qwen3Config.from_dir(tmp_path)


def test_notes_of_tools_that_saved_a_folder_are_no_obstacle():
    notes = {
        "unsloth_fixed": True,
        "unsloth_version": "2025.5.1",
        "task_specific_params": None,
        "use_mrope": False,
    }
    assert Qwen3Config.from_hf(SIZES["0.6B"].to_hf() | notes) == SIZES["0.6B"]
    with pytest.raises(ConfigError, match="use_mrope=True is not implemented"):
        Qwen3Config.from_hf(SIZES["0.6B"].to_hf() | {"use_mrope": True})
    with pytest.raises(ConfigError, match="does not implement: my_unsloth_fixed"):
        Qwen3Config.from_hf(SIZES["0.6B"].to_hf() | {"my_unsloth_fixed": True})


def test_keys_of_the_tool_that_saved_a_folder_are_named_once(tmp_path, caplog):
    notes = {"unsloth_version": "2025.5.1", "unsloth_\x1b[31m": True}
    (tmp_path / "config.json").write_text(json.dumps(SIZES["0.6B"].to_hf() | notes), encoding="utf-8")
    for _ in range(2):
        assert Qwen3Config.from_dir(tmp_path) == SIZES["0.6B"]
    (message,) = caplog.messages
    assert message.startswith(f"Note: {tmp_path / 'config.json'} has keys")
    assert message.endswith("unsloth_version")
    assert "\x1b" not in message


def test_a_config_that_would_take_all_memory_or_nests_too_deep_is_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match="num_layers=100000000 must be a whole number from 1 to 10000"):
        Qwen3Config.from_hf(SIZES["0.6B"].to_hf() | {"num_hidden_layers": 100_000_000})
    (tmp_path / "config.json").write_text('{"a":' * 200_000, encoding="utf-8")
    with pytest.raises(ConfigError, match="is not JSON"):
        Qwen3Config.from_dir(tmp_path)
