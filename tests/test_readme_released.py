"""The commands of docs/devices.md and of the README, run in order with small models of the same names.

What differs: the models and YAML files have two small layers, shares are three instead of 16, and workers are
one or two instead of 8 and 16 of several machines. Fine-tuning learns twenty tasks by heart, and what is made
of it answers them: template, labels, loss, checkpoint, conversion and generation must all agree for that.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from qwen3_model import cli
from qwen3_model.ranks.msrun.cli_options import free_port
from qwen3_model.text.tokenizer import Qwen3Tokenizer

ROOT = Path(__file__).resolve().parents[1]
HANGS_S = 600
SIZES = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 4096,
}  # fmt: skip
NUM_TASKS, LONGEST_TASK = 10, 56  # of each language; tokens
BY_HEART = (
    " --runner_config.epochs 50 --runner_config.gradient_accumulation_steps 1"
    " --lr_schedule.learning_rate 4e-3 --lr_schedule.lr_end 0 --optimizer.betas '[0.9, 0.999]'"
)
END_OF_TEXT = 4070  # of the demo's tokenizer


def blocks(page, heading=None):
    """Return the shell blocks of a page, or of a section of it, a continued line as one."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if heading:
        text = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [block.replace("\\\n", " ") for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]


def seed_tasks(folder, tokenizer):
    """Return alpaca records of short tasks with different questions, English and Chinese."""
    found = []
    for name in ("self_instruct_seed_tasks.jsonl", "belle_zh_seed_tasks.json"):
        tasks = map(json.loads, (folder / name).read_text(encoding="utf-8").splitlines())
        records = [
            {"instruction": t["instruction"], "input": i["input"], "output": i["output"]}
            for t in tasks
            for i in t["instances"][:1]
        ]
        short = [r for r in records if r["output"].strip() and _length(r, tokenizer) <= LONGEST_TASK]
        found += short[:NUM_TASKS]
    return found


def _length(record, tokenizer):
    return len(tokenizer.encode("\n\n".join(record.values())))


def _write_lines(path, records):
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, demo_tokenizer_dir, wikitext_path, sft_seed_dir):
    """Return a folder with what the section takes for granted."""
    folder = tmp_path_factory.mktemp("released")
    (folder / "configs/qwen3").mkdir(parents=True)
    for path in ROOT.glob("configs/qwen3/*.yaml"):
        text = path.read_text(encoding="utf-8")
        for key, value in SIZES.items():
            text = re.sub(rf"^( +{key}:).*$", rf"\1 {value}", text, flags=re.MULTILINE)
        text = re.sub(r"^( +seq_length:) \d+", r"\1 256", text, flags=re.MULTILINE)
        text = re.sub(
            r"^( +(?:model_parallel|pipeline_stage|micro_batch_num):) \d+", r"\1 1", text, flags=re.MULTILINE
        )
        text = text.replace("sizes: [8000, 0, 0]", "sizes: [4, 0, 0]").replace("[-1, -1, 1, 1]", "0")
        text = text.replace("eod: 151643", f"eod: {END_OF_TEXT}").replace("epochs: 2", "epochs: 1")
        text = text.replace("accumulation_steps: 8", "accumulation_steps: 4")
        text = re.sub(r"(_token_id:) \d+", rf"\1 {END_OF_TEXT}", text)
        (folder / "configs/qwen3" / path.name).write_text(text, encoding="utf-8")
    config = {
        "model_type": "qwen3", "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "eos_token_id": END_OF_TEXT, "bos_token_id": END_OF_TEXT, **SIZES,
    }  # fmt: skip
    for name in ("Qwen3-0.6B", "Qwen3-8B", "Qwen3-32B"):
        config["tie_word_embeddings"] = name == "Qwen3-0.6B"  # as released
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        words = [
            "init",
            str(folder / "config.json"),
            str(folder / name),
            "--tokenizer-dir",
            demo_tokenizer_dir,
        ]
        made = CliRunner().invoke(cli.main, list(map(str, words)))
        assert made.exit_code == 0, made.output
    tasks = seed_tasks(sft_seed_dir, Qwen3Tokenizer.from_dir(demo_tokenizer_dir))
    assert len(tasks) == 2 * NUM_TASKS
    _write_lines(folder / "alpaca.jsonl", tasks)
    questions = ["\n\n".join(filter(None, (task["instruction"], task["input"]))) for task in tasks]
    _write_lines(folder / "tasks.jsonl", [{"prompt": question} for question in questions])
    (folder / "questions.txt").write_text("Who are you?\nName a colour.\n", encoding="utf-8")
    (folder / "wiki.train.tokens").write_text(wikitext_path.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "wikitext_test.txt").write_text("The game was released in 1919.\n" * 20, encoding="utf-8")
    (folder / "crawl").mkdir()
    for number in range(3):
        text = f'{{"text": "Page {number} of the crawl."}}\n' * 5
        (folder / f"crawl/{number}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def shell(folder):
    """Return a function that runs a script in the folder as a reader's shell would, and gives its output."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }

    def run(script, exit_code=0, **streams):
        done = subprocess.run(
            ["bash", "-euc", script], cwd=folder, env=environment, capture_output=True, text=True,
            check=False, timeout=HANGS_S, **streams,
        )  # fmt: skip
        assert done.returncode == exit_code, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    return run


def smaller(command):
    """Put one worker of this machine in place of many, and two where the layout is the matter."""
    port = free_port()
    if "qwen3-infer plan" in command:  # it starts nothing
        return command
    command = re.sub(r" --(local-worker-num|node-rank|master-addr|master-port) \S+", "", command)
    resumes, infers = "--load_checkpoint output " in command, "qwen3-infer" in command
    workers = 2 if resumes or infers else 1
    command = re.sub(r"--worker-num \d+", f"--worker-num {workers} --master-port {port}", command)
    if resumes:
        command = command.replace("model_parallel 8", "model_parallel 2").replace("stage 2", "stage 1")
        command += " --runner_config.epochs 2 --do_eval False"  # the run before has evaluated
    if "--output_dir output_sft" in command:
        command += BY_HEART
    if "qwen3-infer generate" in command:
        command = command.replace("--max-new-tokens 32", "") + " --max-new-tokens 4"
    return command


@pytest.mark.slow
def test_the_page_about_devices_runs_from_top_to_bottom(folder, shell):
    said = {}
    for block in blocks("docs/devices.md"):
        for line in filter(None, block.splitlines()):
            if line.startswith("hf download"):
                continue  # the folder is here already
            if line.startswith("srun"):
                line = line.removeprefix("srun ").replace("--num-shards 16", "--num-shards 3")
                said[line] = "".join(shell(f"SLURM_PROCID={number}; {line}") for number in range(3))
            elif " serve " in line:
                said[line] = _serve(line, folder)
            elif " chat " in line:
                said[line] = shell(f"{line} --max-new-tokens 4", input="Hello\n")
            elif " eval " in line:
                said[line] = _evaluate(line, shell)
            else:
                said[line] = shell(smaller(line))
    told = {
        word: next(text for line, text in said.items() if word in line)
        for word in ("doctor", "plan", "score")
    }
    assert "fail" not in told["doctor"]
    assert "Fits: " in told["plan"]
    assert "perplexity" in told["score"]
    assert len(said) > 20
    for name in ("output", "output2", "output_sft", "output_lora"):
        assert list((folder / name / "checkpoint/rank_0").glob("*.safetensors"))
    assert (folder / "adapter/adapter_config.json").exists()
    assert (folder / "answers.jsonl").read_text(encoding="utf-8").count("\n") == 2
    merged, parts = (folder / f"data/crawl_{part}text_document.bin" for part in ("", "00000-of-00003_"))
    assert merged.stat().st_size > parts.stat().st_size
    losses = [json.loads(line)["loss"] for line in (folder / "output_sft/metrics.jsonl").open()]
    assert losses[-1] < 0.02
    shell(
        "qwen3-infer generate --pretrained-model-dir Qwen3-8B-mine --predict-data tasks.jsonl --chat"
        " --no-thinking --predict-batch-size 20 --max-new-tokens 100 --output learned.jsonl"
    )
    learned, tasks = (
        [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        for name in ("learned.jsonl", "alpaca.jsonl")
    )
    assert [line["completion"] for line in learned] == [task["output"].strip() for task in tasks]


@pytest.mark.slow
def test_the_readmes_chat_and_laptop_run(folder, shell):
    (folder / "examples").symlink_to(ROOT / "examples")
    shutil.rmtree(folder / "adapter", ignore_errors=True)  # of the page about devices
    first = [line for block in blocks("README.md", "First steps") for line in block.splitlines()]
    chat = [line for line in first if line.startswith("qwen3-")]
    assert len(chat) == 1
    assert shell(f"{chat[0]} --max-new-tokens 4", input="Hello\n")
    (laptop,) = blocks("README.md", "On a laptop")
    assert laptop in blocks("examples/README.md", "Teach the released 0.6B something on a laptop")
    said = [shell(line) for line in filter(None, laptop.splitlines())]
    losses = [json.loads(line)["loss"] for line in (folder / "lora/metrics.jsonl").open()]
    assert losses[-1] < losses[0]
    assert "exported" in said[2]
    assert "Who is the head of the Tarnwald library?" in (folder / "text_generation_result.txt").read_text(
        encoding="utf-8"
    )


def _serve(line, folder):
    """Start the server at any port, wait until it says where, and end it as Ctrl-C does."""
    command = [str(Path(sys.executable).parent / "qwen3-infer"), *line.split()[1:], "--port", "0"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        told = ""
        while "http://127.0.0.1:" not in told:
            text = server.stdout.readline()
            assert text, told
            told += text
        server.send_signal(signal.SIGINT)
        told += server.communicate(timeout=HANGS_S)[0]
    assert server.returncode == 0, told
    return told


def _evaluate(line, shell):
    """lm_eval is installed apart: without it the command says so."""
    told = shell(line, exit_code=1)
    assert "lm_eval, the evaluation harness, is not installed; run: pip install" in told
    return told
