"""What tools/msrun_launcher.sh makes of the arguments of mindformers' launcher."""

import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools/lib"))

import msrun_launcher

ROOT = Path(__file__).resolve().parents[1]
LAUNCHER = ROOT / "tools/msrun_launcher.sh"
PRETRAIN = """run_mindformer.py \\
  --config configs/qwen3/pretrain_qwen3_32b_4k.yaml \\
  --auto_trans_ckpt False --use_parallel True --run_mode train"""
PREDICT = (
    "python run_mindformer.py --config configs/qwen3/predict_qwen3.yaml --use_parallel=True "
    "--predict_data 'Who are you?' --pretrained_model_dir model --parallel_config.model_parallel 2"
)


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Run the script with commands on PATH that print their words; return exit code, words and messages."""
    for name in ("qwen3-train", "qwen3-infer"):
        (tmp_path / name).write_text('#!/bin/sh\nprintf "%s\\n" "$(basename "$0")" "$@"\n', encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/local/bin:/usr/bin:/bin")

    def run(*arguments, **variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        done = subprocess.run(
            ["bash", str(LAUNCHER), *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout.splitlines(), done.stderr

    return run


def test_nine_arguments_are_those_of_a_node_among_several(launch):
    code, words, said = launch(PRETRAIN, "16", "8", "192.168.1.1", "50001", "1", "logs", "False", "7200")
    assert code == 0
    assert words == shlex.split(
        "qwen3-train launch --config configs/qwen3/pretrain_qwen3_32b_4k.yaml --auto_trans_ckpt False "
        "--use_parallel True --run_mode train --worker-num 16 --local-worker-num 8 --master-addr 192.168.1.1 "
        "--master-port 50001 --node-rank 1 --log-dir logs --join False --cluster-time-out 7200"
    )
    assert said == f"Running Command: {shlex.join(words)}\n"


def test_fewer_arguments_are_one_machine(launch):
    assert launch(PRETRAIN)[1][-2:] == ["--worker-num", "8"]
    assert launch(PRETRAIN, "4")[1][-2:] == ["--worker-num", "4"]
    assert launch(PRETRAIN, "1")[1][-2:] == ["--worker-num", "1"]
    expected = shlex.split(
        "--worker-num 4 --master-port 8119 --log-dir logs --join True --cluster-time-out 60"
    )
    assert launch(PRETRAIN, "4", "8119", "logs", "True", "60")[1][-10:] == expected
    # All of the workers are local: neither address nor number of the node counts.
    assert launch(PRETRAIN, "4", "4", "10.0.0.1", "8119", "3", "logs", "True", "60")[1][-10:] == expected


def test_predicting_goes_to_the_other_command_as_the_flag_or_the_yaml_says(launch):
    code, words, _ = launch(PREDICT, "2", MF_LOG_SUFFIX="night")
    assert (code, words[:2]) == (0, ["qwen3-infer", "generate"])
    assert words[words.index("--predict_data") + 1] == "Who are you?"
    assert words[words.index("--use_parallel") + 1] == "True"
    assert words[-4:] == ["--worker-num", "2", "--log-dir", "output/msrun_log_night"]
    assert launch(f"{PREDICT} --run_mode predict")[1][:2] == ["qwen3-infer", "generate"]
    assert launch(f"{PREDICT} --run-mode finetune")[1][:2] == ["qwen3-train", "launch"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "0 arguments were given, but it takes 1, 2, 6 or 9"),
        ((PRETRAIN, "8", "8118"), "3 arguments were given"),
        ((PRETRAIN, "eight"), "WORKER_NUM eight is not a number of processes"),
        ((PRETRAIN, "0"), "WORKER_NUM 0 is not a number"),
        (("run_mindformer.py --config x.yaml", "--run_mode", "predict"), "--run_mode stands outside"),
        (("run_mindformer.py --run_mode train", "8"), "no --config"),
        (("run_mindformer.py --config 'x.yaml", "8"), "is never closed"),
        (("my_train.py --config x.yaml", "8"), "only run_mindformer.py has a counterpart"),
        ((f"{PRETRAIN} --run_mode eval", "8"), "run_mode eval (--run_mode)"),  # the last counts
        (("run_mindformer.py --config x.yaml --run_mode", "8"), "run_mode  (--run_mode) is neither"),
        (("run_mindformer.py --config x.yaml --run_mode eval", "8"), "qwen3-infer score"),
        ((f"{PRETRAIN} --register_path my_code", "8"), "--register_path has no counterpart here; leave"),
        ((f"{PRETRAIN} --train-dataset-dir=data", "8"), "--train_dataset.data_loader.config.data_path"),
    ],
)  # fmt: skip
def test_what_cannot_be_handed_on_is_one_sentence(arguments, sentence):
    with pytest.raises(msrun_launcher.LaunchError) as caught:
        msrun_launcher.command_line(list(arguments), {})
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_refusal_ends_with_2_and_help_with_0(launch):
    code, words, said = launch(PRETRAIN, "eight")
    assert (code, words) == (2, [])
    assert said.startswith("tools/msrun_launcher.sh: WORKER_NUM eight")
    code, words, said = launch("--help")
    assert (code, said) == (0, "")
    assert words[0].startswith("usage: tools/msrun_launcher.sh")


def test_the_real_commands_take_what_is_handed_on():
    from qwen3_infer.cli import main as infer
    from qwen3_train.cli import main as train

    train_words = msrun_launcher.command_line([PRETRAIN, "8"], {})
    infer_words = msrun_launcher.command_line([f"{PREDICT} --pretrained_model_dir {ROOT}", "2"], {})
    for main, words in ((train, train_words), (infer, infer_words)):
        command = main.commands[words[1]]
        parent = click.Context(main, info_name=words[0], **main.context_settings)
        assert command.make_context(words[1], words[2:], parent=parent).params["worker_num"] in (2, 8)
