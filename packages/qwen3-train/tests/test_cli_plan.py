import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from qwen3_model.command.base import Commands
from qwen3_train.cli_plan import plan

CONFIGS = Path(__file__).parents[3] / "configs" / "qwen3"
YAML = """
use_parallel: True
runner_config: {epochs: 2, batch_size: 1, gradient_accumulation_steps: 1}
train_dataset: {data_loader: {sizes: [8000, 0, 0], config: {seq_length: 4096}}}
context: {device_target: Ascend, max_device_memory: 58GB}
parallel_config:
  {data_parallel: 1, model_parallel: 4, pipeline_stage: 4, micro_batch_num: 4, use_seq_parallel: True}
parallel: {enable_parallel_optimizer: True}
recompute_config: {recompute: True}
model:
  model_config:
    {vocab_size: 151936, hidden_size: 5120, intermediate_size: 25600, num_hidden_layers: 64,
     num_attention_heads: 64, num_key_value_heads: 8, head_dim: 128, max_position_embeddings: 40960,
     rope_theta: 1000000.0, offset: [-1, -1, 1, 1], compute_dtype: bfloat16}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(YAML, encoding="utf-8")
    return path


def run(*arguments):
    group = Commands(name="main", commands={"plan": plan})
    assert isinstance(group, click.Group)
    return CliRunner().invoke(group, ["plan", *map(str, arguments)])


def test_the_text_names_batch_memory_traffic_and_layouts(config):
    result = run("--config", config)
    assert result.exit_code == 0
    assert (
        "4 samples = rows 1 x forward passes 4 x dp 1; 16,384 tokens; 2,000 steps in an epoch, 4,000"
        in result.stdout
    )
    assert "Fits: 36.00 of 58.00 GiB on the fullest device." in result.stdout
    assert "dp 1 x tp 8 x pp 2, sequence parallel" in result.stdout


def test_json_and_text_agree(config):
    values = json.loads(run("--config", config, "--json").stdout)
    assert f"{values['stages'][3]['total'] / 2**30:.2f}" == "36.00"
    assert values["problem"] is None


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["--parallel_config.model_parallel", "16"],
            "num_key_value_heads=8 does not divide by parallel_config.model_par",
        ),
        (
            ["--parallel_config.pipeline_stage=3"],
            "offset=[-1, -1, 1, 1] has 4 numbers but parallel_config.pipeline_stage=3",
        ),
        (
            ["--parallel_config.micro_batch_num", "2"],
            "micro_batch_num=2 is below parallel_config.pipeline_stage=4",
        ),
        (
            ["--max-device-memory", "30GB"],
            "the fullest device needs 36.00 GiB of max_device_memory 30.00 GiB",
        ),
        (["--devices", "8"], "needs 16 processes but worker_num is 8"),
        (["--train_dataset.data_loader.sizes", "[3]"], "a step takes 4 samples"),
        (["--batch_size", "0"], "runner_config.batch_size=0 must be at least 1"),
        (["--recompute_config.recompute", "3"], "differs from layer to layer, which is not planned"),
        (["--model.model_config.offset", "yes"], "offset=True must be 0 or a list"),
        (["--model.model_config.pet_config", "{lora_rank: 0}"], "pet_config.lora_rank=0 must be"),
        (["--model.model_config.pet_config", "{target_modules: nothing}"], "'nothing' matches nothing"),
        (["--train_dataset.data_loader.config.seq_length", "0"], "seq_length=0 must be at least 1"),
    ],
)
def test_what_cannot_work_is_one_sentence_and_exit_code_1(config, overrides, sentence):
    result = run("--config", config, *overrides)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [["--max-device-memory", "much"], ["--parallel_config.model_paralel", "2"], ["--devices", "0"]],
)
def test_a_command_line_that_cannot_be_meant_exits_with_2(config, arguments):
    assert run("--config", config, *arguments).exit_code == 2


def test_a_layout_that_is_not_in_use_is_not_planned(config):
    result = run("--config", config, "--use_parallel", "False", "--max-device-memory", "2TB")
    assert "dp 1 x tp 1 x pp 1 = 1 device," in result.stdout
    assert "use_parallel is not True, so parallel_config is not used" in result.stderr


def test_a_missing_config_is_a_sentence(tmp_path):
    result = run("--config", tmp_path / "none.yaml")
    assert result.exit_code == 1
    assert "does not exist; give a YAML file" in result.stderr


def test_a_refused_layout_still_lists_those_that_fit(config):
    result = run("--config", config, "--max-device-memory", "44GB", "--recompute_config.recompute", "False")
    assert result.exit_code == 1
    assert "dp 1 x tp 4 x pp 4" in result.stdout.partition("best first")[2]


def test_adapters_are_planned_with_mindformers_names(config):
    pet = "{pet_type: lora, lora_rank: 16, target_modules: 'linear_qkv|linear_proj'}"
    values = json.loads(run("--config", config, "--json", "--model.model_config.pet_config", pet).stdout)
    stage = values["stages"][0]
    assert 0 < stage["gradients"] < 0.01 * stage["parameters"]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("pretrain_*.yaml")), ids=lambda path: path.stem)
def test_the_recommended_layout_of_every_ready_config_fits(path):
    result = run("--config", path)
    assert result.exit_code == 0
    assert "Fits: " in result.stdout


FAKE_TOOL = """#!{python}
import json, sys
words = sys.argv[1:]
rank = int(words[words.index("--rank") + 1])
report = {{
    "exit_code": int({fails}), "problems": ["the command ended with exit code 1"] * {fails},
    "graphs": [{{"peak_bytes": rank << 30}}, {{"peak_bytes": None}}], "words": words,
}}
open(words[words.index("--json") + 1], "w").write(json.dumps(report))
assert words[words.index("--") + 1].endswith("tools/lib/ascend_step.py")
assert words[words.index("--seed") + 1] == "3"
"""


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """A checkout whose tool answers with as many GiB as the rank's number."""
    (tmp_path / "tools/lib").mkdir(parents=True)
    (tmp_path / "tools/lib/ascend_step.py").touch()
    path = tmp_path / "tools/ascend_dry_run"
    monkeypatch.setattr("qwen3_train.plan.dry_run.__file__", str(tmp_path / "packages/here.py"))

    def write(*, fails=False):
        path.write_text(FAKE_TOOL.format(python=sys.executable, fails=fails), encoding="utf-8")
        path.chmod(0o755)

    write()
    return write


def test_a_dry_run_is_of_the_fullest_the_first_and_the_last_stage(config, tool):
    planned = [stage["total"] for stage in json.loads(run("--config", config, "--json").stdout)["stages"]]
    result = run("--config", config, "--dry-run", "--json", "--seed", 3)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["dry_run"]
    stages = sorted({0, 3, max(range(4), key=lambda stage: planned[stage])})
    assert [each["stage"] for each in found] == stages
    assert [each["rank"] for each in found] == [4 * stage for stage in stages]
    assert [each["peak_bytes"] for each in found] == [4 * stage << 30 for stage in stages]
    assert [each["planned_bytes"] for each in found] == [planned[stage] for stage in stages]
    text = run("--config", config, "--dry-run", "--seed", 3).stdout
    assert f"rank 12, stage 3: 12.00 GiB, {planned[3] / 2**30:.2f} above" in text


def test_a_dry_run_that_fails_or_that_has_no_tool_is_a_sentence(config, tool, monkeypatch):
    tool(fails=True)
    result = run("--config", config, "--dry-run", "--seed", 3)
    assert result.exit_code == 1
    assert "Error: the dry run of rank 0 failed: the command ended with exit code 1" in result.stderr
    monkeypatch.setattr("qwen3_train.plan.dry_run.__file__", "/nowhere/qwen3_train/plan/dry_run.py")
    monkeypatch.chdir("/")
    result = run("--config", config, "--dry-run")
    assert result.exit_code == 1
    assert "--dry-run needs tools/ascend_dry_run, which comes with a checkout" in result.stderr
    assert result.stdout == ""


def test_planning_never_imports_mindspore(config):
    code = (
        "import sys, runpy\n"
        "from qwen3_train.cli_plan import plan\n"
        f"plan(['--config', {str(config)!r}], standalone_mode=False)\n"
        "sys.exit('mindspore' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
