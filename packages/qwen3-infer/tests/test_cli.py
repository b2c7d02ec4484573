"""The command: refusals before MindSpore is imported, and real runs of a tiny model from folder to files."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from qwen3_infer.cli import main
from qwen3_infer.settings.schema import PREDICT
from qwen3_model.command.run_config import load_run_config

CONFIGS = Path(__file__).resolve().parents[3] / "configs/qwen3"


SMALL = ("--max-tokens-in-cache", "64")


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return CliRunner().invoke(main, ["generate", *map(str, arguments)])

    return run


def python(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False, encoding="utf-8"
    )


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["chat", "--help"]])
def test_help_has_an_example(arguments):
    found = python("-m", "qwen3_infer", *arguments)
    assert found.returncode == 0
    assert "generate" in found.stdout
    assert arguments == ["--help"] or "Example:" in found.stdout


def test_refusals_do_not_import_mindspore(make_demo_folder, tmp_path):
    (tmp_path / "out.txt").write_text("mine", "utf-8")
    folder = make_demo_folder()
    code = (
        "import sys\nfrom qwen3_infer.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as stop:\n"
        "    print(stop.code, 'mindspore' in sys.modules)\n"
    )
    for extra in (["--save-file", tmp_path / "out.txt"], ["--top-p", "2"], ["--max-new-tokens", "300"]):
        found = python(
            "-c", code, "generate", "--pretrained-model-dir", folder, "--predict-data", "hi", *extra
        )
        assert found.stdout.split() == ["1", "False"], found.stderr


def test_every_predict_config_is_read_without_notes():
    paths = sorted(CONFIGS.glob("predict_*.yaml"))
    assert len(paths) >= 2
    for path in paths:
        assert load_run_config(path, [], PREDICT).notes in (
            (),
            ("accepted without effect here: trainer.model_name",),
        )


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([], 2, "give the model's folder as --pretrained-model-dir DIR"),
        (["--pretrained-model-dir", "absent", "--predict-data", "x"], 1, "absent does not exist"),
        (["--pretrained-model-dir", "MODEL"], 2, "there is no prompt"),
        (["--pretrained-model-dir", "MODEL", "--predict-data", "a.txt"], 1, "a.txt does not exist"),
        (
            ["--pretrained-model-dir", "MODEL", "--predict-data", "x", "--temprature", "1"],
            2,
            "unknown key temprature",
        ),
        (
            ["--pretrained-model-dir", "MODEL", "--predict-data", "x", "--top-k", "x"],
            2,
            "'x' is not a valid integer",
        ),
        (
            ["--pretrained-model-dir", "MODEL", "--predict-data", "x", "--top-k", "-3"],
            1,
            "top_k=-3 is no sampling",
        ),
        (["--pretrained-model-dir", "MODEL", "--predict-data", "x", "--save-file", "."], 2, "is a folder"),
        (
            ["--pretrained-model-dir", "MODEL", "--predict-data", "x", "--config", "no.yaml"],
            1,
            "no.yaml does not",
        ),
        (
            ["--pretrained-model-dir", "MODEL", "--predict-data", "long " * 300],
            1,
            "exceeds the context of 256",
        ),
        (
            ["--pretrained-model-dir", "MODEL", "--predict-data", "x", "--save-file", "r", "--output", "r"],
            2,
            "cannot be both",
        ),
        (
            ["--pretrained-model-dir", "MODEL", "--predict-data", "x", "--max-new-tokens", "100", *SMALL],
            1,
            "needs 101 tokens of the cache, more than --max-tokens-in-cache 64",
        ),
    ],
)
def test_bad_input_is_one_sentence_without_traceback(
    run, make_demo_folder, tmp_path, arguments, code, sentence
):
    folder = make_demo_folder()
    found = run(*[str(folder) if argument == "MODEL" else argument for argument in arguments])
    assert found.exit_code == code
    assert sentence in found.stderr
    assert "Traceback" not in found.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_the_default_result_replaces_its_like_and_nothing_else(run, make_demo_folder, tmp_path):
    arguments = (
        "--pretrained-model-dir",
        make_demo_folder(),
        "--predict-data",
        "Once",
        "--max-new-tokens",
        2,
    )
    result = tmp_path / "text_generation_result.txt"
    result.write_text("my notes", "utf-8")
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert "text_generation_result.txt already exists; choose another output" in refused.stderr
    assert result.read_text("utf-8") == "my notes"
    result.unlink()
    assert [run(*arguments, "--seed", seed).exit_code for seed in (1, 2)] == [0, 0]
    assert ast.literal_eval(result.read_text("utf-8"))[0]["text_generation_text"][0].startswith("Once")


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_a_chat_shows_the_answer_alone(run, make_demo_folder, tmp_path, stream):
    found = run(
        "--pretrained-model-dir", make_demo_folder(), "--predict-data", "Who are you?", "--chat",
        "--no-thinking", "--max-new-tokens", 8, "--output", "out.jsonl", stream, "--quiet",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    (line,) = (tmp_path / "out.jsonl").read_text("utf-8").splitlines()
    assert found.stdout == json.loads(line)["completion"] + "\n"


def test_a_file_of_prompts_gives_text_and_records(run, make_demo_folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("Once upon a time\nThe game\n茶 is\n", "utf-8")
    arguments = (
        "--pretrained_model_dir", make_demo_folder(), "--predict_data", "prompts.txt",
        "--predict_batch_size", 2, "--max-new-tokens", 6, "--output", "out.jsonl",
    )  # fmt: skip
    found = run(*arguments, "--temperature", 1.5, "--seed", 3)
    assert found.exit_code == 0, found.output
    batches = ast.literal_eval((tmp_path / "text_generation_result.txt").read_text("utf-8"))
    assert [len(batch["text_generation_text"]) for batch in batches] == [2, 1]
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    texts = [text for batch in batches for text in batch["text_generation_text"]]
    assert texts == [record["prompt"] + record["completion"] for record in records]
    assert all(record["completion_tokens"] == 6 and record["finish_reason"] == "length" for record in records)
    for text in texts:
        assert text in found.stdout

    again = run(*arguments)
    assert again.exit_code == 1
    assert "already exists; choose another output or pass --force to replace it" in again.stderr

    same = run(*arguments, "--temperature", 1.5, "--seed", 3, "--force", "--quiet")
    assert same.exit_code == 0
    assert "tokens/s" in found.stderr
    assert same.stderr == ""
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()] == records

    # Another batch size with a cache for two of them, and the config's keys.
    alone = run(
        "--config", CONFIGS / "predict_qwen3.yaml", *arguments, "--predict-batch-size", 3, "--force",
        "--max-tokens-in-cache", 64,
        "--generation.temperature", "1.5", "--seed", 3,
    )  # fmt: skip
    assert alone.exit_code == 0, alone.output
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()] == records


def test_several_completions_of_a_prompt_with_their_log_probabilities(run, make_demo_folder, tmp_path):
    found = run(
        "--pretrained-model-dir", make_demo_folder(), "--predict-data", "Once", "--predict-data", "Twice",
        "--predict-batch-size", 4, "--num-return-sequences", 2, "--temperature", 1.5, "--max-new-tokens", 4,
        "--logprobs", "--output", "out.jsonl",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert [(record["index"], record["sample"]) for record in records] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert records[0]["completion_ids"] != records[1]["completion_ids"]
    for record in records:
        assert len(record["logprobs"]) == len(record["completion_ids"]) == 4
        assert max(record["logprobs"]) < 0


def test_one_prompt_streams_and_chat_uses_the_template(run, make_demo_folder, tmp_path):
    found = run(
        "--pretrained-model-dir", make_demo_folder(), "--predict-data", "Hi <|im_end|>",
        "--chat", "--no-thinking", "--max-new-tokens", 5, "--stream", "--output", "out.jsonl",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    (record,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert found.stdout.strip("\n") == record["completion"].strip("\n")
    (batch,) = ast.literal_eval((tmp_path / "text_generation_result.txt").read_text("utf-8"))
    assert batch["text_generation_text"][0].startswith("user\nHi <|im_end|>\nassistant\n")


def test_chat_answers_each_line_and_remembers_until_cleared(run, make_demo_folder):
    arguments = [
        "chat",
        "--pretrained-model-dir",
        str(make_demo_folder()),
        "--no-thinking",
        "--max-new-tokens",
        "6",
    ]
    typed = "Hello\n\nHello\n/clear\nHello\n" + "long " * 300 + "\nHello\n/exit\nunread\n"
    found = CliRunner().invoke(main, [*arguments, "--quiet"], input=typed)
    assert found.exit_code == 0, found.output
    assert "the conversation has" in found.stderr
    assert "exceeds the context of 256" in found.stderr
    assert "/clear forgets the conversation" in found.stderr
    system = CliRunner().invoke(main, [*arguments, "--system", "Be brief."], input="Hello\n")
    assert system.exit_code == 0
    assert system.stdout.strip() != found.stdout[: len(system.stdout)].strip()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([], 2, "give the model's folder"),
        (["--pretrained-model-dir", "absent"], 1, "absent does not exist"),
        (["--pretrained-model-dir", "MODEL", "--top-p", "3"], 1, "top_p=3.0 is no sampling value"),
        (
            ["--pretrained-model-dir", "MODEL", "--generation.num_return_sequences", "2", "--top-k", "3"],
            1,
            "must be 1",
        ),
        (["--pretrained-model-dir", "MODEL", "--context-tokens", "1"], 2, "1 is not in the range"),
    ],
)
def test_chat_refuses_in_one_sentence(make_demo_folder, arguments, code, sentence):
    folder = str(make_demo_folder())
    found = CliRunner().invoke(
        main, ["chat", *[folder if word == "MODEL" else word for word in arguments]], input=""
    )
    assert found.exit_code == code
    assert sentence in found.stderr
    assert "Traceback" not in found.output


def test_without_a_compiler_it_goes_on_with_a_warning_or_refuses(
    run, make_demo_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = ("--pretrained-model-dir", make_demo_folder(), "--predict-data", "Hi", "--max-new-tokens", 2)
    refused = run(*arguments, "--kernels", "native")
    assert (refused.exit_code, refused.stderr) == (1, "Error: there is no C++ compiler; install g++\n")
    found = run(*arguments)
    assert found.exit_code == 0
    assert (
        "no C++ compiler; install g++; going on with MindSpore's own operators, several times slower"
        in found.stderr
    )
