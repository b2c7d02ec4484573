"""Fine-tuning under every layout is what one process does: adapters with dropout, and conversations in packs.

Starting processes costs most of such a test, so those of one number of ranks train all their runs in turn.
The micro-batches of all layouts are those of the one process, hence also what dropout leaves out.
"""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from many_runs import train_many
from run_results import steps_of, tensors_of
from sft_inputs import loader, sft_run, write_records
from train_inputs import TINY_MODEL, counting_documents, tiny_run, write_tokens, write_yaml

from qwen3_model.checkpoints.checkpoint_files import choose_checkpoint
from qwen3_model.checkpoints.fresh_weights import init_weights
from qwen3_model.checkpoints.hf_folder import write_hf_weights
from qwen3_model.checkpoints.rank_tensors import strategy_path
from qwen3_model.checkpoints.safetensors_file import TensorPlan, open_safetensors
from qwen3_model.checkpoints.strategy import read_strategy
from qwen3_train.cli import main
from qwen3_train.reports.run_log import read_metrics
from qwen3_train.settings.model import read_model

pytestmark = pytest.mark.usefixtures("share_graphs")

# Sums in another order, as in test_parallel; largest seen: 3e-6, 6e-7 and 3e-6.
LOSS_ATOL, NORM_RTOL, WEIGHT_ATOL = 1e-5, 1e-5, 2e-5
LONGEST_S = 600
STEPS, HALF = 8, 4
PET = {"pet_type": "lora", "lora_rank": 2, "lora_alpha": 4, "lora_dropout": 0.1, "target_modules": ".*"}
NORMS = PET | {"lora_dropout": 0.0, "freeze_exclude": ["*lora*", "*norm*"]}

# name: kind of model, layout; zero1 in a name shares the moments out, recompute computes layers anew
RUNS = {
    2: {
        "tp2 recompute": ("tied", {"model_parallel": 2}),
        "dp2 zero1": ("tied", {"data_parallel": 2}),
        "tp2 sp norms": ("untied", {"model_parallel": 2, "use_seq_parallel": True}),
        "sft tp2": ("sft", {"model_parallel": 2}),
        "sft dp2": ("sft", {"data_parallel": 2}),
        "cp2 recompute norms": ("untied", {"context_parallel": 2}),
    },
    4: {
        "tp2 pp2": ("tied", {"model_parallel": 2, "pipeline_stage": 2, "micro_batch_num": 2}),
        "sft cp2 pp2": ("sft", {"context_parallel": 2, "pipeline_stage": 2, "micro_batch_num": 4}),
    },
}
ALL = {name: kind for runs in RUNS.values() for name, (kind, _) in runs.items()}
# Runs of conversations evaluate in batches of their own kind; adapters alone do so as whole models do.
EVALUATED = ("sft tp2", "sft cp2 pp2", "tp2 pp2")
# name: layout, the run whose middle is gone on from
RESUMED = {
    2: {
        "sft dp2 again": ("sft dp2", "sft dp2"),
        "dp2 zero1 again": ("dp2 zero1", "dp2 zero1"),
    },
    4: {"tp2 pp2 moved": ("tp2 pp2", "dp2 zero1")},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("finetune")


@pytest.fixture(scope="module")
def values_of(folder, demo_tokenizer_dir):
    """Return a function that gives a run's YAML for a kind of model and a layout."""
    prefix = write_tokens(folder / "tiny_text_document", counting_documents(200), eod_id=1)
    bases = {}
    for kind in ("tied", "untied", "sft"):
        own = {"hidden_size": 32, "tie_word_embeddings": kind != "untied"}
        own |= {"vocab_size": 4096, "max_position_embeddings": 512} if kind == "sft" else {}
        bases[kind] = write_base(folder / kind, read_model(TINY_MODEL | own, None))
    for path in demo_tokenizer_dir.glob("*token*"):
        shutil.copy(path, bases["sft"])
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    records = write_records(folder / "records.jsonl", [
        {"instruction": f"Count to {word}.", "input": "", "output": " ".join(words[: 1 + 7 * i % 10] * 3)}
        for i, word in enumerate(words * 3)
    ])  # fmt: skip

    def values(out, kind, parallel, **changes):
        passes = parallel.get("data_parallel", 1) * parallel.get("micro_batch_num", 1)
        changes = {
            "run_mode": "finetune", "auto_trans_ckpt": True, "pretrained_model_dir": str(bases[kind]),
            "use_parallel": bool(parallel), "parallel_config": parallel,
            "callbacks__1__save_checkpoint_steps": HALF, "callbacks__1__keep_checkpoint_max": 9,
            "parallel": {"enable_parallel_optimizer": "zero1" in out},
            "recompute_config": {"recompute": "recompute" in out},
        } | changes  # fmt: skip
        if kind == "sft":
            section = loader(records, folder / "cache", seq_length=64)
            section["data_loader"]["shuffle"] = True
            held_out = loader(records, folder / "cache", seq_length=64)
            held_out["data_loader"]["split"] = "train[:30%]"
            changes |= {"do_eval": is_evaluated(out), "eval_dataset": held_out}
            made = sft_run(folder / out, bases[kind], section, lr_schedule__learning_rate=0.005, **changes)
            made["model"] = {"model_config": {}}
            made["runner_config"] = {
                "epochs": 20, "batch_size": 1, "gradient_accumulation_steps": 4 // passes,
            }  # fmt: skip
            made["callbacks"].append({"type": "TrainCallBack", "stop_step": STEPS})
            return made
        made = tiny_run(folder / out, prefix, **changes)
        made["train_dataset"]["data_loader"]["sizes"] = [8 * STEPS, 20, 0]
        made["do_eval"] = is_evaluated(out)
        made["runner_config"] |= {"batch_size": 4, "gradient_accumulation_steps": 2 // passes}
        made["model"] = {"model_config": {"pet_config": NORMS if kind == "untied" else PET}}
        return made

    return values


def is_evaluated(name):
    return name in EVALUATED or name.startswith("single")


def write_base(path, config):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config.to_hf()), encoding="utf-8")
    weights = dict(init_weights(config, 3))
    write_hf_weights(path, [(TensorPlan(name, "F32", a.shape), [a]) for name, a in weights.items()])
    return path


@pytest.fixture(scope="module")
def single(folder, values_of):
    """Return a function that trains a kind of model in one process and returns the run's folder."""
    finished = {}

    def run(kind):
        if kind not in finished:
            out = f"single {kind}"
            config = write_yaml(folder / f"{out}.yaml", values_of(out, kind, {}))
            result = CliRunner().invoke(main, ["launch", "--config", str(config)])
            assert result.exit_code == 0, result.output
            finished[kind] = folder / out
        return finished[kind]

    return run


@pytest.fixture(scope="module")
def train(folder, values_of, single):
    """Return a function that gives the folder of a run; those of one number of ranks train together."""
    started = []

    def run(name):
        for worker_num in RUNS:
            if worker_num not in started:
                # Leaves the tokenised samples, which no two ranks should make at once.
                single("sft")
                launch(folder, values_of, worker_num)
                started.append(worker_num)
            if name in RUNS[worker_num] or name in RESUMED[worker_num]:
                break
        return folder / name

    return run


def launch(folder, values_of, worker_num):
    runs, jobs = RUNS[worker_num], []

    def add(name, layout, *arguments):
        config = write_yaml(folder / f"{name}.yaml", values_of(name, *runs[layout]))
        jobs.append({"config": str(config), "arguments": arguments})

    for name in runs:
        add(name, name)
    for name, (layout, source) in RESUMED[worker_num].items():
        half = f"qwen3_rank_0-1_{HALF}.safetensors"
        add(name, layout, "--resume_training", half, "--load_checkpoint", str(folder / source))
    train_many(folder, jobs, worker_num, LONGEST_S)


def assert_same(run_dir, other_dir, after=0):
    got, wanted = steps_of(run_dir, after), steps_of(other_dir, after)
    assert [line["step"] for line in got] == list(range(after + 1, STEPS + 1))
    for key, rtol, atol in (("loss", 0, LOSS_ATOL), ("grad_norm", NORM_RTOL, 0)):
        values = [[line[key] for line in lines] for lines in (got, wanted)]
        np.testing.assert_allclose(values[0], values[1], rtol=rtol, atol=atol, err_msg=key)
    evaluated = [
        {
            line["step"]: line["eval_loss"]
            for line in read_metrics(each / "metrics.jsonl")
            if "eval_loss" in line
        }
        for each in (run_dir, other_dir)
    ]
    assert evaluated[0].keys() == ({0, STEPS} if is_evaluated(run_dir.name) else set())
    for step, value in evaluated[0].items():
        assert value == pytest.approx(evaluated[1][step], abs=LOSS_ATOL)
    tensors, whole = tensors_of(run_dir), tensors_of(other_dir)
    assert tensors.keys() == whole.keys()
    for each, value in tensors.items():
        np.testing.assert_allclose(value, whole[each], rtol=0, atol=WEIGHT_ATOL, err_msg=each)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_layout_fine_tunes_as_one_process_does(train, single, name):
    run_dir, whole_dir = train(name), single(ALL[name])
    losses = [line["loss"] for line in steps_of(whole_dir)]
    assert losses[-1] < losses[0] - 0.05
    assert_same(run_dir, whole_dir)


@pytest.mark.slow
def test_every_rank_saves_its_part_of_what_trains_and_nothing_else(train):
    for name in ("tp2 pp2", "dp2 zero1", "tp2 sp norms"):
        run_dir = train(name)
        for rank, path in choose_checkpoint(run_dir, None, None)[0].items():
            held = {each for each in open_safetensors(path).tensors if "model" in each}
            assert held == set(read_strategy(strategy_path(run_dir, rank))[1])
            assert all(".lora_" in each or (name == "tp2 sp norms" and "norm" in each) for each in held)
        assert (run_dir / "adapter_config.json").is_file()
    piece = open_safetensors(choose_checkpoint(train("dp2 zero1"), None, None)[0][1])
    down = "model.layers.0.mlp.down_proj"
    assert piece.tensors[f"{down}.lora_B.weight"].shape == (32, 2)
    assert piece.tensors[f"adam_m.{down}.lora_B.weight"].shape == (16, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft dp2", "dp2 zero1"])
def test_fine_tuning_resumes_bit_for_bit_in_its_layout(train, name):
    first, again = train(name), train(f"{name} again")
    curves = [
        [(line["loss"], line["grad_norm"]) for line in steps_of(run_dir, HALF)] for run_dir in (again, first)
    ]
    assert len(curves[0]) == STEPS - HALF
    assert curves[0] == curves[1]
    wanted = tensors_of(first)
    for each, value in tensors_of(again).items():
        np.testing.assert_array_equal(value, wanted[each], err_msg=each)


@pytest.mark.slow
def test_adapters_go_on_under_another_layout(train, single):
    assert_same(train("tp2 pp2 moved"), single("tied"), HALF)
