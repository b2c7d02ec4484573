"""The command from end to end; every refusal comes before MindSpore is imported."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from train_inputs import TINY_MODEL, counting_documents, tiny_run, write_tokens, write_yaml

from qwen3_model.checkpoints.fresh_weights import init_weights
from qwen3_model.checkpoints.hf_folder import write_hf_weights
from qwen3_model.checkpoints.safetensors_file import TensorPlan, open_safetensors
from qwen3_model.checkpoints.strategy import read_strategy
from qwen3_train.cli import main
from qwen3_train.reports.run_log import read_metrics
from qwen3_train.settings.model import read_model

pytestmark = pytest.mark.usefixtures("share_graphs")


@pytest.fixture
def prefix(tmp_path):
    return write_tokens(tmp_path / "tiny_text_document", counting_documents(60), eod_id=1)


def launch(tmp_path, values, *arguments):
    config = write_yaml(tmp_path / "config.yaml", values)
    return CliRunner().invoke(main, ["launch", "--config", str(config), *arguments])


def last_weights(output_dir):
    file = open_safetensors(max((output_dir / "checkpoint" / "rank_0").glob("*.safetensors")))
    return {name: np.array(file.raw(name)) for name in file.tensors}


@pytest.mark.slow
def test_a_run_leaves_everything_that_the_next_tools_need(tmp_path, prefix):
    out = tmp_path / "out"
    result = launch(tmp_path, tiny_run(out, prefix, do_eval=True, eval_step_interval=3))
    assert result.exit_code == 0, result.output
    metrics = read_metrics(out / "metrics.jsonl")
    losses = [line["loss"] for line in metrics if "loss" in line]
    assert [line["step"] for line in metrics if "eval_loss" in line] == [0, 3, 6]
    assert [line["step"] for line in metrics if "loss" in line] == [1, 2, 3, 4, 5, 6]
    # Random weights know nothing: the loss is that of 64 equal chances.
    assert losses[0] == pytest.approx(np.log(64), abs=0.05)
    assert losses[-1] < losses[0] - 0.05
    for line in metrics:
        if "eval_loss" in line:
            assert line["eval_perplexity"] == pytest.approx(np.exp(line["eval_loss"]))
    assert [line["lr"] for line in metrics if "loss" in line][:3] == [0.0, 0.01, 0.02]
    assert "step:[3/6], loss: " in result.output
    assert "loss: " in (out / "msrun_log" / "worker_0.log").read_text()
    kept = sorted(path.name for path in (out / "checkpoint" / "rank_0").iterdir())
    assert kept == ["meta.json", "qwen3_rank_0-1_4.safetensors", "qwen3_rank_0-1_6.safetensors"]
    stage, layouts = read_strategy(out / "strategy" / "ckpt_strategy_rank_0.ckpt")
    weights = last_weights(out)
    assert stage == 0
    assert set(weights) == set(layouts) | {"epoch_num", "step_num", "global_step", "loss_scale"}
    config = json.loads((out / "config.json").read_text())
    assert (config["num_hidden_layers"], config["tie_word_embeddings"], config["eos_token_id"]) == (
        2,
        True,
        1,
    )
    # The resolved configuration is a valid one and gives the same run.
    again = yaml.safe_load((out / "run.yaml").read_text()) | {"output_dir": str(tmp_path / "again")}
    assert launch(tmp_path, again).exit_code == 0
    for name, value in last_weights(tmp_path / "again").items():
        np.testing.assert_array_equal(value, weights[name], err_msg=name)


@pytest.mark.slow
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path, prefix):
    # Two epochs, accumulation and clipping; the break comes inside the second epoch.
    changes = {
        "runner_config__epochs": 2, "runner_config__batch_size": 2,
        "runner_config__gradient_accumulation_steps": 2,
        "callbacks__1__save_checkpoint_steps": 100,
    }  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert launch(tmp_path, tiny_run(whole, prefix, **changes)).exit_code == 0
    stopping = tiny_run(broken, prefix, **changes)
    stopping["callbacks"].append({"type": "TrainCallBack", "stop_step": 8})
    assert launch(tmp_path, stopping).exit_code == 0
    result = launch(tmp_path, tiny_run(broken, prefix, **changes), "--resume_training", "True")
    assert result.exit_code == 0, result.output
    assert "after step 8" in result.output
    after = last_weights(broken)
    for name, value in last_weights(whole).items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    curves = [
        [
            (line["step"], line["loss"], line["lr"], line["grad_norm"])
            for line in read_metrics(out / "metrics.jsonl")
        ]
        for out in (whole, broken)
    ]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 12
    result = launch(tmp_path, tiny_run(broken, prefix, **changes), "--resume_training", "True")
    assert "there is nothing left to train" in result.output
    result = launch(tmp_path, tiny_run(broken, prefix, **changes, seed=3), "--resume_training", "True",
                    "--train_dataset.data_loader.config.seed", "5")  # fmt: skip
    assert "was trained on other data or in another order" in result.output
    assert ": seed was 1234, is 5)" in result.output


@pytest.mark.slow
def test_a_run_resumed_with_another_batch_goes_on_after_the_samples_that_it_had(tmp_path, prefix):
    out = tmp_path / "out"
    stopping = tiny_run(out, prefix)
    stopping["callbacks"].append({"type": "TrainCallBack", "stop_step": 2})
    assert launch(tmp_path, stopping).exit_code == 0
    # 24 samples, of which two steps of 4 took 8: the rest are two steps of 8 instead of four of 4.
    larger = tiny_run(out, prefix, runner_config__batch_size=2, runner_config__gradient_accumulation_steps=4)
    larger["callbacks"][1] |= {"save_checkpoint_steps": 3, "async_save": True}
    result = launch(tmp_path, larger, "--resume_training", "True")
    assert result.exit_code == 0, result.output
    assert "the global batch is 8 samples where it was 4: the run goes on after sample 8 of epoch 1" in (
        result.output
    )
    assert "it will have 4 steps instead of 6" in result.output
    assert "step:[4/4], loss: " in result.output
    assert [line["step"] for line in read_metrics(out / "metrics.jsonl")] == [1, 2, 3, 4]
    whole = last_weights(out)
    # Where the batch changed is in the checkpoint, so that going on from a later one is bit for bit, too.
    result = launch(tmp_path, larger, "--resume_training", "qwen3_rank_0-1_3", "--force")
    assert result.exit_code == 0, result.output
    assert "where it was" not in result.output
    for name, value in last_weights(out).items():
        np.testing.assert_array_equal(value, whole[name], err_msg=name)


@pytest.mark.slow
def test_weights_come_from_a_checkpoint_and_a_failed_force_keeps_the_run(tmp_path, prefix):
    first = tmp_path / "first"
    assert launch(tmp_path, tiny_run(first, prefix)).exit_code == 0
    before = {path.name: path.read_bytes() for path in (first / "checkpoint" / "rank_0").iterdir()}
    result = launch(tmp_path, tiny_run(first, prefix))
    assert result.exit_code == 1
    assert "holds a run already" in result.output
    # A rate of 1e30 spoils the weights before the first checkpoint of the new run.
    wild = {
        "lr_schedule__learning_rate": 1e30,
        "lr_schedule__warmup_steps": 0,
        "runner_wrapper__use_clip_grad": False,
    }
    result = launch(
        tmp_path, tiny_run(first, prefix, **wild, callbacks__1__save_checkpoint_steps=50), "--force"
    )
    assert result.exit_code == 1
    assert "the weights are spoilt" in result.output
    assert {path.name: path.read_bytes() for path in (first / "checkpoint" / "rank_0").iterdir()} == before
    second = tmp_path / "second"
    result = launch(tmp_path, tiny_run(second, prefix), "--load_checkpoint", str(first))
    assert result.exit_code == 0, result.output
    losses = [[line["loss"] for line in read_metrics(out / "metrics.jsonl")] for out in (first, second)]
    assert losses[1][0] < losses[0][0] - 0.05


REFUSED = [
    ({"model__model_config__vocab_size": 60}, [], "a vocabulary of 64, but the model has vocab_size=60"),
    ({}, ["--train_dataset.data_loader.config.eod", "2"], "eod=2 but documents of .* end with 1"),
    ({}, ["--train_dataset.data_loader.config.seq_length", "5000",
          "--model.model_config.max_position_embeddings",
          "5000"], "fewer than one sample of seq_length"),
    ({}, ["--train_dataset.data_loader.config.seq_length", "65"], "longer than max_position_embeddings=64"),
    ({}, ["--train_dataset.data_loader.config.data_path", "/nowhere/x"], "/nowhere/x.idx is missing"),
    ({}, ["--train_dataset.data_loader.config.split", "0, 1"], "leaves nothing to train on"),
    ({}, ["--runner_config.batch_size", "900"], "one step takes 900 samples .* but the data give 24"),
    ({}, ["--runner_config.batch_size", "0"], "runner_config.batch_size=0 must be at least 1"),
    ({"use_parallel": True, "parallel_config__model_parallel": 4}, [],
     "needs 4 processes but worker_num is 1"),
    ({"use_parallel": True, "parallel_config__model_parallel": 4}, ["--worker-num", "4"],
     "num_key_value_heads=2 does not divide by parallel_config.model_parallel=4"),
    ({"use_parallel": True, "parallel_config__pipeline_stage": 2}, ["--worker-num", "2"],
     "micro_batch_num=1 is below parallel_config.pipeline_stage=2"),
    ({"use_parallel": True, "parallel_config__data_parallel": 2, "runner_config__batch_size": 16},
     ["--worker-num", "2"], "one step takes 32 samples .batch_size 16 x 1 forward passes x data_parallel 2"),
    ({"lr_schedule__learning_rate": -1.0}, [], "learning_rate=-1.0 must be a number of at least 0"),
    ({"recompute_config__select_recompute": ["mlp.dance"]}, [], "'mlp.dance' is no part that can be recomp"),
    ({"recompute_config__recompute": [1, 1]}, [], "has 2 numbers for 1 pipeline stages"),
    ({"optimizer__type": "Muon"}, [], "optimizer.type='Muon' is not implemented"),
    ({"optimizer__betas": [0.9, 1.5]}, [], "betas=.0.9, 1.5. must be two numbers"),
    ({"run_mode": "predict"}, [], "run_mode='predict' is not for this command"),
    ({"run_mode": "finetune"}, [], "run_mode=finetune needs weights"),
    ({"do_eval": True, "train_dataset__data_loader__config__split": "1"}, [], "leaves no valid part"),
    ({"load_checkpoint": "/nowhere"}, [], "/nowhere does not exist"),
    ({"pretrained_model_dir": "/nowhere"}, [], "pretrained_model_dir=/nowhere is not a folder"),
    ({"resume_training": True}, [], "no whole checkpoint"),
    ({"train_dataset__data_loader__type": "MindDataset"}, [], "type='MindDataset' is not implemented"),
    ({"model__model_config": {"vocab_size": 64}}, [], "model.model_config lacks .*hidden_size"),
    ({"model__model_config__kv_channels": 16}, [], "kv_channels=16 and 8 under another name"),
    ({"learning_rat": 1}, [], "unknown key learning_rat"),
    ({"lr_schedule__learning_rat": 1}, [], "lr_schedule.learning_rat .did you mean learning_rate"),
    ({}, ["--worker-num", "2"], "use_parallel is False but --worker-num is 2"),
    ({}, ["--lr_schedule.warmup"], "needs a value"),
    ({"train_dataset__data_loader__config__pad": 1}, [], "pad=1 is also the end-of-document id"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "arguments", "sentence"), REFUSED)
def test_what_cannot_work_is_refused_in_a_sentence_and_leaves_nothing(
    tmp_path, prefix, changes, arguments, sentence
):
    out = tmp_path / "out"
    result = launch(tmp_path, tiny_run(out, prefix, **changes), *arguments)
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit), result.exception  # no traceback
    assert re.search(sentence, result.output), result.output
    assert not out.exists()


def test_several_faults_are_named_at_once(tmp_path, prefix):
    values = tiny_run(tmp_path / "out", prefix, optimizer__eps=0.0, runner_config__epochs=0, run_mode="eval")
    output = launch(tmp_path, values).output
    assert all(word in output for word in ("optimizer.eps=0.0", "runner_config.epochs=0", "run_mode='eval'"))


def test_no_space_is_refused_before_anything_is_written(tmp_path, prefix, monkeypatch):
    full = SimpleNamespace(total=2000, used=1000, free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    result = launch(tmp_path, tiny_run(tmp_path / "out", prefix))
    assert result.exit_code == 1
    assert re.search(r"needs \d+\.\d\d [kM]B", result.output)
    assert not (tmp_path / "out").exists()


def test_an_npu_without_cann_is_a_sentence_and_leaves_no_folder(tmp_path, prefix, monkeypatch):
    (tmp_path / "davinci_manager").touch()
    monkeypatch.setattr("qwen3_model.device.simulation.DEVICE_FILE", tmp_path / "davinci_manager")
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    values = tiny_run(tmp_path / "out", prefix)
    del values["context"]
    result = launch(tmp_path, values)
    assert result.exit_code == 1
    assert re.search(
        r"Error: this machine has an NPU but CANN is not set up; `source .*doctor", result.output
    )
    assert not (tmp_path / "out").exists()


def test_refusals_and_help_do_not_import_mindspore(tmp_path, prefix):
    config = write_yaml(tmp_path / "config.yaml", tiny_run(tmp_path / "out", prefix, run_mode="predict"))
    program = (
        "import sys; from qwen3_train.cli import main; sys.argv = ['qwen3-train', *sys.argv[1:]]\n"
        "try: main()\n"
        "finally: sys.stderr.write(str('mindspore' in sys.modules))"
    )
    for arguments in (
        ["launch", "--config", str(config)],
        ["--help"],
        ["launch", "--help"],
        ["report", "--help"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
        )
        assert done.stderr.endswith("False"), done.stderr


def test_report_draws_the_run(tmp_path):
    lines = [{"step": 0, "eval_loss": 4.0, "eval_perplexity": 54.6}]
    lines += [
        {
            "step": step,
            "loss": 4.0 - step / 10,
            "lr": 0.1,
            "grad_norm": 1.0,
            "tokens_per_s": 100.0,
            "step_time_s": 0.5,
        }
        for step in range(1, 21)
    ]
    lines += [{"step": 20, "eval_loss": 2.1, "eval_perplexity": 8.2}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 2')
    result = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "3.9000 -> 2.0000" in result.output
    assert "perplexity 54.60 at step 0 -> 8.20 at step 20" in result.output
    assert result.output.count("*") == 20  # one mark per step
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("<svg") == 4


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("\x80\n{}", "metrics.jsonl: line 1 is not JSON"),
        ("[1]", "metrics.jsonl: line 1 holds no metrics of a step: [1] is not a section with keys"),
        ('{"loss": 1.0}', "metrics.jsonl: line 1 holds no metrics of a step: it has no step"),
        ('{"step": 1, "loss": "a"}', "line 1 holds no metrics of a step: loss: 'a' is not a number"),
        ('{"step": 1, "loss": 2.0, "lr": 0.1}', "metrics.jsonl: step 1 has loss and no tokens_per_s"),
    ],
)
def test_report_of_another_programs_metrics_is_a_sentence(tmp_path, line, sentence):
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n", encoding="latin-1")
    result = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert len(result.output.strip().splitlines()) == 1


def test_report_of_a_folder_without_run_is_a_sentence(tmp_path):
    result = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert result.exit_code == 1
    assert "give the output folder of qwen3-train launch" in result.output
    assert not list(Path(tmp_path).iterdir())


def test_fine_tuning_starts_from_a_hugging_face_folder(tmp_path, prefix):
    config = read_model(TINY_MODEL | {"initializer_range": 0.5}, None)
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    (folder / "tokenizer_config.json").write_text("{}")
    weights = dict(init_weights(config, 11))
    write_hf_weights(folder, [(TensorPlan(name, "F32", a.shape), [a]) for name, a in weights.items()])
    values = tiny_run(tmp_path / "out", prefix, run_mode="finetune", recompute_config__recompute=True)
    del values["model"]  # the folder's config says it all
    values["callbacks"].append({"type": "TrainCallBack", "stop_step": 1})
    result = launch(tmp_path, values, "--pretrained_model_dir", str(folder), "--context.mode", "1")
    assert result.exit_code == 0, result.output
    assert f"weights: {folder}" in result.output
    # The first step has a rate of 0, so the weights saved are those that came in.
    saved = last_weights(tmp_path / "out")
    for name, array in weights.items():
        np.testing.assert_array_equal(saved[name], array, err_msg=name)
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == "{}"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["initializer_range"] == 0.5


def test_python_m_is_the_command():
    command = [sys.executable, "-m", "qwen3_train", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("qwen3-train, version ")
