"""What is no YAML of training is refused as what it is, in every command that reads one."""

import pytest
from click.testing import CliRunner

from qwen3_train.cli import main

COMMANDS = ("launch", "plan", "inspect-data")
FILES = {
    "": "is empty; begin with a copy of",
    "# nothing but a comment\n": "is empty; begin with a copy of",
    "run_mode: predict\npredict_batch_size: 2\n": "use qwen3-infer generate or qwen3-infer plan",
    '{"hidden_size": 64, "model_type": "qwen3"}': "is a model's config.json; give the YAML of a run",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("text", FILES)
def test_a_file_for_something_else_is_refused_with_what_is_meant(tmp_path, command, text):
    (tmp_path / "file.yaml").write_text(text, encoding="utf-8")
    result = CliRunner().invoke(main, [command, "--config", str(tmp_path / "file.yaml")])
    assert result.exit_code == 2
    assert FILES[text] in result.output
    assert list(tmp_path.iterdir()) == [tmp_path / "file.yaml"]


def test_run_mode_predict_on_the_command_line_names_the_command(tmp_path):
    (tmp_path / "file.yaml").write_text("seed: 1\n", encoding="utf-8")
    arguments = ["launch", "--config", str(tmp_path / "file.yaml"), "--run_mode", "predict"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "use qwen3-infer generate" in result.output
