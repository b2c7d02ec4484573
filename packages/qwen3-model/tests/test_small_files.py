"""No file that is read whole makes its reader take more than a stated limit."""

import dataclasses
import json
import time

import numpy as np
import pytest

from qwen3_model.checkpoints.adapter_config import read_adapter_config
from qwen3_model.checkpoints.hf_folder import open_hf_tensors
from qwen3_model.checkpoints.strategies import read_stages
from qwen3_model.checkpoints.weight_files import open_checkpoint
from qwen3_model.command import small_files
from qwen3_model.command.json_file import read_json
from qwen3_model.command.plain_text import as_message, one_line, without_controls
from qwen3_model.command.run_config import load_run_config
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import FormatError, Qwen3Error
from qwen3_model.text.sft import SftManifest, read_sft_manifest
from qwen3_model.text.tokenizer import Qwen3Tokenizer
from qwen3_model.text.tokens import read_manifest

READERS = {
    "config.json": lambda folder: Qwen3Config.from_dir(folder),
    "adapter_config.json": read_adapter_config,
    "model.safetensors.index.json": open_hf_tensors,
    "param_name_map.json": open_checkpoint,
    "ckpt_strategy_rank_0.ckpt": read_stages,
    "tokenizer.json": Qwen3Tokenizer.from_dir,
    "run.yaml": lambda folder: load_run_config(folder / "run.yaml", (), {}),
    "tokens.json": lambda folder: read_manifest(folder / "tokens"),
    "sft.json": lambda folder: read_sft_manifest(folder / "sft.json"),
    "any.json": lambda folder: read_json(folder / "any.json"),
}


@pytest.fixture
def small_limits(monkeypatch):
    """Limits of a thousand bytes, wherever they were imported."""
    import sys

    for module in [each for name, each in sys.modules.items() if name.startswith("qwen3_model")]:
        for name in ("SETTINGS_BYTES", "INDEX_BYTES", "YAML_BYTES"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, 1000)
    for reader in (small_files.read_small, small_files.read_small_text, read_json):
        monkeypatch.setattr(reader, "__defaults__", (1000,))


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("name", READERS)
def test_a_file_beyond_the_limit_is_one_sentence(tmp_path, name):
    (tmp_path / name).write_bytes(b" " * 1001)
    with pytest.raises(Qwen3Error, match=f"{name} has more than 1,000 bytes"):
        READERS[name](tmp_path)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("body", [b'{"a":' * 100_000, b"[" * 100_000, b"\xff\xfe", b'"\\ud800"', b"1" * 5000])
def test_a_file_of_anything_is_one_sentence(tmp_path, name, body):
    (tmp_path / name).write_bytes(body)
    with pytest.raises(Qwen3Error) as found:
        READERS[name](tmp_path)
    assert len(as_message(str(found.value))) < 4500


@pytest.mark.parametrize("name", ["sources", "packed", "seq_length", "thoughts"])
@pytest.mark.parametrize("value", [None, [1], {"a": 1}, 1.5, [True]])
def test_instruction_data_whose_manifest_has_another_type_is_named(tmp_path, name, value):
    kinds = {int: 1, bool: True, str: "sft", tuple[str, ...]: []}
    whole = {field.name: kinds[field.type] for field in dataclasses.fields(SftManifest)}
    (tmp_path / "sft.json").write_text(json.dumps(whole | {name: value}), encoding="utf-8")
    with pytest.raises(FormatError, match=rf"sft\.json has values of a wrong type in \['{name}'\]"):
        read_sft_manifest(tmp_path / "sft.json")


@pytest.mark.parametrize(
    "contents", [{"a": 5}, {"weight_map": {"a": None}}, {"weight_map": ["a"]}, {"a": {}}]
)
def test_a_map_of_names_to_what_is_no_file_is_one_sentence(tmp_path, contents):
    (tmp_path / "param_name_map.json").write_text(json.dumps(contents), encoding="utf-8")
    with pytest.raises(
        FormatError, match=r"param_name_map\.json is no map of names to files: \w+: .* is not a"
    ):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)*b", ".*.*.*.*.*x", "x" * 2000, "((?:q.){9}){9}"])
def test_a_pattern_that_may_never_end_to_match_is_refused(tmp_path, pattern):
    config = {"lora_alpha": 8, "r": 4, "rank_pattern": {pattern: 4}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    started_s = time.process_time()
    with pytest.raises(FormatError, match="which may never end to match"):
        read_adapter_config(tmp_path).check_rank("a" * 60, 4)
    assert time.process_time() - started_s < 1


def test_patterns_that_people_write_are_matched(tmp_path):
    pattern = {r"layers\.\d+\.q_proj": 4, "k_proj": 5, r"layers.(1|2)\..*v_proj": 6}
    config = {"lora_alpha": 8, "r": 4, "rank_pattern": pattern}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    adapter = read_adapter_config(tmp_path)
    for module, rank in (("m.layers.7.q_proj", 4), ("m.k_proj", 5), ("m.layers.2.self_attn.v_proj", 6)):
        adapter.check_rank(module, rank)


def test_nothing_of_a_name_moves_a_cursor_or_looks_like_a_line_of_ours():
    name = "a\x1b[2J\x07\x9b1m\u202eb\nError: all is well"
    assert without_controls(name) == "a\\x1b[2J\\x07\\x9b1m\\u202eb\nError: all is well"
    assert one_line(name) == "a\\x1b[2J\\x07\\x9b1m\\u202eb\\nError: all is well"
    assert as_message(f"{name}\n").splitlines() == ["a\\x1b[2J\\x07\\x9b1m\\u202eb", "  Error: all is well"]
    assert len(as_message("x" * 10**6)) < 4500
    assert np.all([one_line(text) == text for text in ("plain", "\u9b3c \U0001f600")])
