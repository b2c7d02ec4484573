"""`qwen3-infer eval` against lm_eval's own transformers backend: each answer to each request, each metric.

What needs lm_eval itself is skipped where it is not installed; `tools/parity` installs it.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from qwen3_infer.cli import main
from qwen3_infer.device import Device
from qwen3_infer.processes.local import open_local
from qwen3_model.text.tokenizer import Qwen3Tokenizer

GOLDEN_DIR = Path(os.environ.get("QWEN3_GENERATIONS_DIR", Path(__file__).parent / "golden")) / "scored"
TASKS = "local_choices,local_rolling,local_completion"
ATOL_F32 = 2e-3  # sums of up to 500 log-probabilities of -20
needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm_eval is installed by tools/parity alone"
)


@pytest.fixture(scope="module")
def scored(tmp_path_factory, demo_tokenizer_dir):
    """Return a model folder, the tasks with their data, and what lm_eval found with transformers."""
    directory = tmp_path_factory.mktemp("harness")
    shutil.copytree(demo_tokenizer_dir, directory / "model")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN_DIR / name, directory / "model")
    shutil.copytree(GOLDEN_DIR / "tasks", directory / "tasks")
    golden = json.loads((GOLDEN_DIR / "harness.json").read_text("utf-8"))
    return SimpleNamespace(dir=directory / "model", tasks=directory / "tasks", golden=golden)


def test_answers_to_questions_have_the_likelihoods_of_lm_eval(scored, cache_dir):
    device = Device(target="CPU", kernels="native", num_threads=2, cache_dir=cache_dir)
    scorer = open_local(scored.dir, device, quiet=True, note=pytest.fail).scorer(64)
    tokenizer = Qwen3Tokenizer.from_dir(scored.dir)
    lines = (scored.tasks / "local_choices.jsonl").read_text("utf-8").splitlines()
    answers = scored.golden["plain"]["local_choices"]["answers"]
    assert sum(is_greedy for row in answers for [[_, is_greedy]] in row) >= 8
    for line, expected in zip(map(json.loads, lines), answers, strict=True):
        question = line["question"].rstrip()
        before = tokenizer.encode(question) or [tokenizer.eos_id]
        for choice, [[log_likelihood, is_greedy]] in zip(line["choices"], expected, strict=True):
            whole = tokenizer.encode(line["question"] + choice)
            wanted = whole[len(before) :] if question else whole
            found = scorer.score([*before, *wanted], len(wanted))
            assert found.log_probs_T.sum() == pytest.approx(log_likelihood, abs=ATOL_F32), choice
            assert found.is_likeliest_T.all() == is_greedy


@needs_lm_eval
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["plain", "chat"])
def test_a_whole_evaluation_gives_the_results_of_lm_evals_own_backend(scored, form, tmp_path, monkeypatch):
    monkeypatch.chdir(scored.tasks)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    chosen = ["--tasks", TASKS] if form == "plain" else ["--tasks", TASKS.replace(",local_rolling", "")]
    chosen += ["--apply_chat_template"] if form == "chat" else []
    arguments = [
        "eval", "--pretrained-model-dir", scored.dir, *chosen, "--include_path", ".", "--batch_size", 4,
        "--output_path", tmp_path / "out", "--log_samples",
    ]  # fmt: skip
    found = CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
    assert found.exit_code == 0, found.output
    (results_path,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(results_path.read_text("utf-8"))["results"]
    assert results.keys() == scored.golden[form].keys()
    for task, expected in scored.golden[form].items():
        for metric, value in expected["metrics"].items():
            assert results[task][metric] == pytest.approx(value, rel=1e-4), (task, metric)
        (samples_path,) = (tmp_path / "out").rglob(f"samples_{task}_*.jsonl")
        samples = [json.loads(line) for line in samples_path.read_text("utf-8").splitlines()]
        answers = [sample["resps"] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
        compare(answers, expected["answers"], task)


def compare(found, expected, where):
    """Numbers may differ by rounding (lm_eval may write them as text), everything else not at all."""
    if isinstance(expected, list):
        assert len(found) == len(expected), where
        for one, other in zip(found, expected, strict=True):
            compare(one, other, where)
    elif isinstance(expected, float):
        assert float(found) == pytest.approx(expected, abs=ATOL_F32), where
    else:
        assert str(found) == str(expected), where


@needs_lm_eval
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("code", "sentence", "extra"),
    [
        (1, "nothing_like_it", ["--tasks", "nothing_like_it"]),
        (1, "model_args has beams; the model qwen3 knows", ["--tasks", TASKS, "--model_args", "beams=2"]),
        (1, "max_length=900 must be 2 to 256", ["--tasks", TASKS, "--model_args", "max_length=900"]),
        (1, "batch_size=none must be a whole number", ["--tasks", TASKS, "--batch_size", "none"]),
        (1, "model_args: adapter=5 must be a text", ["--tasks", TASKS, "--model_args", "adapter=5"]),
        (
            1,
            "gen_kwargs: top_p: 'wide' is not a number",
            ["--tasks", "local_completion", "--gen_kwargs", "top_p=wide,do_sample=True"],
        ),
    ],
)
def test_what_the_harness_cannot_do_is_one_sentence(scored, monkeypatch, tmp_path, code, sentence, extra):
    monkeypatch.chdir(scored.tasks)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    arguments = ["eval", "--pretrained-model-dir", str(scored.dir), "--include_path", ".", *extra]
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == code, found.output
    assert sentence in found.stderr.splitlines()[-1], found.stderr
    assert found.stderr.splitlines()[-1].startswith("Error: ")


def test_bad_input_is_one_sentence_before_lm_eval_is_needed(scored):
    model = ["--pretrained-model-dir", str(scored.dir)]
    for code, sentence, arguments in [
        (2, "give the tasks as --tasks NAME", model),
        (2, "give the model's folder", ["--tasks", TASKS]),
        (2, "--model of lm_eval is not for use here", [*model, "--tasks", TASKS, "--model", "hf"]),
        (1, "does not exist", ["--pretrained-model-dir", "nowhere", "--tasks", TASKS]),
    ]:
        found = CliRunner().invoke(main, ["eval", *arguments])
        assert found.exit_code == code, found.output
        assert sentence in found.stderr.splitlines()[-1]


def test_without_lm_eval_the_command_says_how_to_get_it(scored):
    script = (
        "import sys\nsys.modules['lm_eval'] = None\nimport importlib.util\n"
        "importlib.util.find_spec = lambda name: None\n"
        "from qwen3_infer.cli import main\nmain(sys.argv[1:])\n"
    )
    arguments = ["eval", "--pretrained-model-dir", str(scored.dir), "--tasks", "hellaswag"]
    found = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    assert found.stderr.splitlines()[-1].endswith("run: pip install 'lm_eval>=0.4.13,<0.5'")
