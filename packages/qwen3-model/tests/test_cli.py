import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from qwen3_model import __version__
from qwen3_model.checkpoints.hf_folder import open_hf_folder
from qwen3_model.checkpoints.safetensors_file import open_safetensors
from qwen3_model.cli import main
from qwen3_model.text.tokenizer import Qwen3Tokenizer

# A model of 5,712 weights.
TINY = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def run_and_fail(*arguments, code=1):
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()[-1:]) == 1
    return result.stderr


@pytest.fixture
def tiny_config(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path, tiny_config):
    assert run("init", tiny_config, tmp_path / "model").exit_code == 0
    return tmp_path / "model"


def overwrite(path, name, values):
    """Put `values`, a bytes object, at the start of tensor `name`."""
    info = open_safetensors(path).tensors[name]
    with path.open("r+b") as file:
        file.seek(info.start)
        file.write(values)


def test_info_counts_a_released_size():
    result = run("info", "8B")
    assert result.exit_code == 0
    assert "8,190,735,360" in result.stdout
    assert "16,381,470,720 (16.38 GB)" in result.stdout
    facts = json.loads(run("info", "8B", "--json").stdout)
    assert facts["parameters"]["total"] == 8_190_735_360
    assert facts["parameters"]["head"] == 151936 * 4096
    assert facts["cache_bytes_per_token"]["bfloat16"] == 2 * 36 * 8 * 128 * 2


def test_info_of_a_folder_tells_what_is_stored(folder):
    facts = json.loads(run("info", folder, "--json").stdout)
    assert facts["stored_bytes"] == {"BF16": 2 * facts["parameters"]["total"]}
    assert "stored as BF16" in run("info", folder).stdout


def test_info_of_a_config_file_counts_its_weights(tiny_config):
    per_layer = 3 * 16 * 24 + 2 * 16 * 32 + 2 * 16 * 16 + 2 * 16 + 2 * 8
    facts = json.loads(run("info", tiny_config, "--json").stdout)
    assert facts["parameters"]["total"] == 2 * 50 * 16 + 2 * per_layer + 16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "absent", "no path and no size; give a folder"),
        (lambda path: path, "has no config.json"),
        (lambda path: _write(path / "text.json", "hello"), "is not JSON"),
        (lambda path: _write(path / "list.json", "[]"), "holds no JSON object"),
        (
            lambda path: _write(path / "typo.json", json.dumps(TINY | {"hiden_size": 1})),
            "did you mean hidden_size",
        ),
    ],
)
def test_info_of_what_is_no_model_is_one_sentence(tmp_path, make, message):
    assert message in run_and_fail("info", make(tmp_path))


def _write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_init_writes_a_sound_folder_whose_bytes_the_seed_decides(tmp_path, tiny_config):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run("init", tiny_config, tmp_path / name, "--seed", seed).exit_code == 0
    data = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}
    assert data["a"] == data["b"] != data["c"]
    assert run("verify", tmp_path / "a").exit_code == 0
    found = open_hf_folder(tmp_path / "a")
    assert found.config.dtype == "bfloat16"
    assert found.info("lm_head.weight").dtype == "BF16"
    assert np.abs(found.float32("lm_head.weight")).max() > 0.02
    assert open_safetensors(tmp_path / "a" / "model.safetensors").metadata == {"format": "pt"}


@pytest.mark.parametrize(("dtype", "stored"), [("float16", "F16"), ("float32", "F32")])
def test_init_writes_the_dtype_that_is_asked_for_and_says_so_in_the_config(
    tmp_path, tiny_config, dtype, stored
):
    assert run("init", tiny_config, tmp_path / "out", "--dtype", dtype).exit_code == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["torch_dtype"] == dtype
    assert open_hf_folder(tmp_path / "out").info("model.norm.weight").dtype == stored


def test_init_takes_the_tokenizers_files_along(tmp_path, tiny_config):
    source = tmp_path / "tokenizer"
    source.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "notes.txt"):
        (source / name).write_text("{}", encoding="utf-8")
    assert run("init", tiny_config, tmp_path / "out", "--tokenizer-dir", source).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_init_refuses_an_existing_output_without_force(folder, tiny_config):
    before = (folder / "model.safetensors").read_bytes()
    assert "already exists; choose another output or pass --force" in run_and_fail(
        "init", tiny_config, folder
    )
    assert (folder / "model.safetensors").read_bytes() == before
    assert run("init", tiny_config, folder, "--seed", 9, "--force").exit_code == 0
    assert (folder / "model.safetensors").read_bytes() != before


def test_init_refuses_what_it_cannot_do_and_leaves_nothing(tmp_path, tiny_config):
    empty = tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "out"
    assert "no path and no size" in run_and_fail("init", "7B", out)
    assert "has no tokenizer.json" in run_and_fail("init", tiny_config, out, "--tokenizer-dir", empty)
    assert "does not exist" in run_and_fail("init", tiny_config, out, "--tokenizer-dir", out, code=2)
    assert "is not one of" in run_and_fail("init", tiny_config, out, "--dtype", "int8", code=2)
    assert "tiny.json is a file; choose another" in run_and_fail("init", tiny_config, tiny_config / "out")
    assert "tiny.json is a file; choose another" in run_and_fail("init", tiny_config, tiny_config / "a" / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "tiny.json"]


def test_init_says_how_much_room_is_missing_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10**9})())
    message = run_and_fail("init", "0.6B", tmp_path / "out")
    assert "needs 1.19 GB but 1.00 GB are free" in message
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing_half_written(tmp_path, tiny_config):
    # -B: a module that is compiled now would be cut off as well, and broken for whoever imports it next.
    command = [sys.executable, "-B", "-m", "qwen3_model", "init", str(tiny_config), str(tmp_path / "out")]

    def limit_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit_files, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.json"]


def test_verify_of_a_sound_folder_says_so(folder):
    result = run("verify", folder)
    assert result.exit_code == 0
    assert result.stdout == f"{folder} is sound\n"


def test_verify_lists_everything_that_is_wrong(folder):
    weights = folder / "model.safetensors"
    overwrite(weights, "model.norm.weight", b"\xc0\x7f\x80\x7f\x80\xff")  # NaN, infinity, -infinity
    config = TINY | {"hidden_size": 16, "intermediate_size": 25, "num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    result = run("verify", folder)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert "model.norm.weight in model.safetensors has 3 values that are NaN or infinite" in lines
    shape = (
        "model.layers.0.mlp.up_proj.weight in model.safetensors has shape (24, 16), config.json says (25, 16)"
    )
    assert shape in lines
    assert sum("model.layers.1." in line and "is no weight of this model" in line for line in lines) == 11
    assert len(lines) == 3 + 1 + 11
    assert "has 15 faults, listed above" in result.stderr


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("tokenizer.json", b"[" * 200_000, "is no tokenizer that `tokenizers` can read"),
        ("tokenizer.json", b"{}", "is no tokenizer that `tokenizers` can read"),
        ("tokenizer_config.json", b'{"a":' * 200_000, "is no"),
        ("tokenizer_config.json", b'{"chat_template": 5}', "has a chat_template that is no text"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "default"}, 7]}', None),
        ("tokenizer_config.json", b'{"eos_token": [1]}', "has the eos_token [1], which is no text"),
        ("special_tokens_map.json", b"[]", "holds no JSON object"),
        ("chat_template.jinja", b"\xff", "is not UTF-8"),
        ("chat_template.jinja", b"{{ 10**100000000 }}", "goes beyond its limits: it computes an integer"),
        ("chat_template.jinja", b"{% for", "the chat template refuses"),
    ],
)
def test_verify_looks_at_the_tokenizer(tmp_path, demo_tokenizer_dir, name, body, message):
    num_rows = Qwen3Tokenizer.from_dir(demo_tokenizer_dir).vocab_size
    (tmp_path / "config").write_text(json.dumps(TINY | {"vocab_size": num_rows}), encoding="utf-8")
    folder = tmp_path / "model"
    assert run("init", tmp_path / "config", folder).exit_code == 0
    for file in demo_tokenizer_dir.iterdir():
        shutil.copy(file, folder)
    assert run("verify", folder).exit_code == 0
    (folder / name).write_bytes(body)
    result = run("verify", folder)
    if message is None:
        assert result.exit_code == 0
    else:
        assert message in run_and_fail("verify", folder) + result.stdout


def test_verify_compares_tokenizer_and_embedding(folder, demo_tokenizer_dir):
    shutil.copy(demo_tokenizer_dir / "tokenizer.json", folder)
    assert (
        "tokens and the model's embedding 50 rows; they are of different models"
        in run("verify", folder).stdout
    )


def test_verify_names_a_missing_weight_with_its_shape(folder):
    (folder / "config.json").write_text(json.dumps(TINY | {"num_hidden_layers": 3}), encoding="utf-8")
    lines = run("verify", folder).stdout.splitlines()
    assert "model.layers.2.self_attn.q_proj.weight is missing, of shape (32, 16)" in lines
    assert len(lines) == 11


def test_verify_compares_the_head_of_a_tied_model_with_the_embedding(folder):
    (folder / "config.json").write_text(json.dumps(TINY | {"tie_word_embeddings": True}), encoding="utf-8")
    result = run("verify", folder)
    assert result.exit_code == 1
    assert "lm_head.weight differs" in result.stdout


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "neither model.safetensors nor"),
        (lambda folder: os.truncate(folder / "model.safetensors", 2000), "damaged|cut short"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{"), "is no index"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text("[1]"),
            r"\[1\] is not a section",
        ),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{}"), "weight_map is missing"),
    ],
)
def test_verify_of_a_damaged_folder_is_one_sentence(folder, spoil, message):
    import re

    spoil(folder)
    result = run("verify", folder)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert re.search(message, result.stdout)
    assert "has 1 fault," in result.stderr


def test_verify_takes_a_folder_only(tiny_config, tmp_path):
    assert "is a file" in run_and_fail("verify", tiny_config, code=2)
    assert "does not exist" in run_and_fail("verify", tmp_path / "absent", code=2)


@pytest.mark.parametrize("command", ["info", "verify", "init"])
def test_help_has_an_example(command):
    # That it comes at once: tests/test_help.py says what it loads, tools/bench_help how long it takes.
    assert f"qwen3-model {command}" in run(command, "--help").stdout.split("Example:")[1]


@pytest.mark.parametrize(("level", "shown"), [("debug", ["low", "high"]), ("error", [])])
def test_the_log_level_rules_what_libraries_say(level, shown):
    script = (
        "import logging, os\nfrom qwen3_model.cli import main\n"
        f"main(['info', '0.6B', '--log-level', '{level}'], standalone_mode=False)\n"
        "logging.getLogger('some.library').debug('low')\n"
        "logging.getLogger('some.library').warning('high')\n"
        "print(os.environ['GLOG_v'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert [line.split()[-1] for line in done.stderr.splitlines()] == shown
    assert done.stdout.splitlines()[-1] == {"debug": "0", "error": "3"}[level]


def test_nothing_of_the_command_line_loads_mindspore(folder):
    script = (
        "import sys\nfrom qwen3_model.cli import main\n"
        "for arguments in (['info', '0.6B'], ['verify', sys.argv[1]]):\n"
        "    main(arguments, standalone_mode=False)\n"
        "assert 'mindspore' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, check=True)


def test_version_is_the_packages():
    assert run("--version").stdout == f"qwen3-model, version {__version__}\n"
