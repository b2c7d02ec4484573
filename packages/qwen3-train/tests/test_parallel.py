"""Every layout trains as one process does: loss, gradient norm and weights of twenty steps, through msrun.

Starting processes costs most of such a test, so those of one number of ranks train all their runs in turn.
Tied models start from random weights, untied ones from a Hugging Face folder or mindformers' weights.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from many_runs import train_many
from plan_inputs import make_settings
from run_results import steps_of, tensors_of
from train_inputs import TINY_MODEL, counting_documents, tiny_run, write_tokens, write_yaml

from qwen3_model.checkpoints.checkpoint_files import choose_checkpoint
from qwen3_model.checkpoints.fresh_weights import init_weights
from qwen3_model.checkpoints.fused import FusedLayout, fused_shapes, mlp_runs, qkv_runs, split_name
from qwen3_model.checkpoints.hf_folder import write_hf_weights
from qwen3_model.checkpoints.safetensors_file import TensorPlan, open_safetensors, write_safetensors
from qwen3_model.ranks.layout import Layout
from qwen3_train.cli import main
from qwen3_train.plan.memory import plan_memory
from qwen3_train.reports.run_log import read_metrics
from qwen3_train.settings.model import read_model

pytestmark = pytest.mark.usefixtures("share_graphs")

# Sums in another order, at a learning rate of 0.02; largest seen: 2e-6, 3e-6 and 3e-6.
LOSS_ATOL, NORM_RTOL, WEIGHT_ATOL = 1e-5, 1e-5, 2e-5
MOMENT_ATOL = 1e-5
STEPS, HALF = 20, 10
LONGEST_S = 1200

TP2, DP2, CP2 = {"model_parallel": 2}, {"data_parallel": 2}, {"context_parallel": 2}
SP = {"use_seq_parallel": True}
PP2 = {"pipeline_stage": 2, "micro_batch_num": 4}
# Compiling is most of a run, and a graph for evaluation costs as much as one of a step. So a layout has both
# kinds of model where its ranks exchange other things for each, keys that do not touch each other share a
# run, each way to evaluate is compared once, and runs of equal settings share their graphs.
ACCUMULATED = {"runner_config__gradient_accumulation_steps": 2}
SHARED = {"callbacks__1__remove_redundancy": True}
SELECT = {"recompute_config": {"recompute": [1, 0], "select_recompute": True}}
# name, with its kind of model at its end: layout, and keys besides; the moments are shared out under "zero1".
RUNS = {
    2: {
        "tp2 tied": (TP2, {}),
        "tp2 sp recompute mindformers untied": (
            TP2 | SP,
            {"recompute_config": {"recompute": True}, "load_checkpoint": "mindformers"},
        ),
        "dp2 tied": (DP2, {}),
        "dp2 untied": (DP2, {}),
        "dp2 zero1 tied": (DP2, {}),
        "dp2 shared tied": (DP2, SHARED),
        "dp2 shared untied": (DP2, SHARED),
        "pp2 accumulated select tied": (PP2 | {"micro_batch_num": 2}, ACCUMULATED | SELECT),
        "pp2 untied": (PP2, {}),
        "cp2 tied": (CP2, {}),
    },
    4: {
        "tp2 pp2 chunks tied": (TP2 | PP2, {}),
        "dp2 tp2 sp zero1 tied": (DP2 | TP2 | SP, ACCUMULATED),
        "dp2 pp2 untied": (DP2 | PP2 | {"micro_batch_num": 2}, {}),
        "cp2 tp2 sp zero1 untied": (CP2 | TP2 | SP, {}),
    },
}
SINGLE = ("single tied", "single untied")
EVALUATED = ("tp2 tied", "pp2 untied", "dp2 zero1 tied", "tp2 pp2 chunks tied", "cp2 tp2 sp zero1 untied")
# name: layout, run whose middle is gone on from, arguments
RESUMED = {
    2: {
        "tp2 again": ("tp2", "tp2", ()),
        "tp2 from dp2 zero1": ("tp2", "dp2 zero1", ()),
        "pp2 from dp2 shared": ("pp2 accumulated select", "dp2 shared", ()),
        "cp2 from one process": ("cp2", "single", ()),
        "dp2 shared again": ("dp2 shared", "dp2 shared", ()),
        # Two replicas of the old batch: 16 samples a step where there were 8.
        "dp2 of twice the batch": ("dp2", "tp2", ("--runner_config.batch_size", "8")),
    },
    4: {"dp2 tp2 sp zero1 from tp2 pp2": ("dp2 tp2 sp zero1", "tp2 pp2 chunks", ())},
}
MOVED = [name for runs in RESUMED.values() for name, (_, _, arguments) in runs.items() if not arguments]
ALL = [name for runs in RUNS.values() for name in runs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parallel")


@pytest.fixture(scope="module")
def hf_dir(folder):
    """A Hugging Face folder, and beside it mindformers' merged checkpoint of the same weights."""
    config = read_model(TINY_MODEL | {"hidden_size": 32, "tie_word_embeddings": False}, None)
    path = folder / "hf"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config.to_hf()), encoding="utf-8")
    weights = dict(init_weights(config, 3))
    write_hf_weights(path, [(TensorPlan(name, "F32", a.shape), [a]) for name, a in weights.items()])
    fused = fuse(weights, config)
    merged = folder / "mindformers" / "unified_safe"
    merged.mkdir(parents=True)
    entries = [(TensorPlan(name, "F32", a.shape), [a]) for name, a in fused.items()]
    write_safetensors(merged / "part0.safetensors", entries, {"format": "ms"})
    told = {"weight_map": dict.fromkeys(fused, "part0.safetensors")}
    (merged / "param_name_map.json").write_text(json.dumps(told), encoding="utf-8")
    return path


def fuse(weights, config):
    runs = qkv_runs(config, FusedLayout())
    runs |= {part: [run] for part, run in mlp_runs(config, FusedLayout()).items()}
    fused = {}
    for theirs, shape in fused_shapes(config).items():
        names = split_name(theirs)
        fused[theirs] = np.empty(shape, np.float32)
        for name in names:
            part = runs.get(name.split(".")[-2].removesuffix("_proj"))
            rows = [np.arange(run.start, run.stop, run.step) for run in part or ()]
            fused[theirs][np.concatenate(rows) if len(names) > 1 else slice(None)] = weights[name]
    return fused


@pytest.fixture(scope="module")
def values_of(folder, hf_dir):
    """Return a function that gives a run's YAML."""
    prefix = write_tokens(folder / "tiny_text_document", counting_documents(260), eod_id=1)

    def values(name, parallel, changes):
        kind = name.split()[-1]
        passes = parallel.get("micro_batch_num", 1) * parallel.get("data_parallel", 1)
        passes *= changes.get("runner_config__gradient_accumulation_steps", 1)
        own = {
            "use_parallel": bool(parallel), "parallel_config": parallel,
            "do_eval": name in SINGLE + EVALUATED,
            "eval_step_interval": HALF, "runner_config__batch_size": 8 // passes,
            "parallel": {
                "enable_parallel_optimizer": "zero1" in name,
                "parameter_broadcast": "shared" in name or "zero1" in name,
            },
            "callbacks__1__save_checkpoint_steps": HALF,
            "model__model_config": TINY_MODEL | {"hidden_size": 32},
        }  # fmt: skip
        if kind == "untied":
            own |= {"run_mode": "finetune", "pretrained_model_dir": str(hf_dir), "model__model_config": {}}
        if changes.get("load_checkpoint"):
            changes = changes | {"load_checkpoint": str(folder / changes["load_checkpoint"])}
        made = tiny_run(folder / name, prefix, **(own | changes))
        made["train_dataset"]["data_loader"]["sizes"] = [8 * STEPS, 20, 0]
        return made

    return values


@pytest.fixture(scope="module")
def single(folder, values_of):
    """Return a function that trains a kind of model in one process and returns the run's folder."""
    finished = set()

    def run(kind, *arguments, name="single"):
        out = f"{name} {kind}"
        if out not in finished:
            config = write_yaml(folder / f"{out}.yaml", values_of(out, {}, {}))
            result = CliRunner().invoke(main, ["launch", "--config", str(config), *arguments])
            assert result.exit_code == 0, result.output
            finished.add(out)
        return folder / out

    return run


@pytest.fixture(scope="module")
def train(folder, values_of, single):
    """Return a function that gives the folder of a run; those of one number of ranks train together."""
    started = []

    def run(name):
        worker_num = next(n for n in RUNS if name in RUNS[n] or name.removesuffix(" tied") in RESUMED[n])
        if worker_num not in started:
            started.append(worker_num)
            single("tied")
            launch(folder, values_of, worker_num)
        return folder / name

    return run


def launch(folder, values_of, worker_num):
    jobs = []

    def add(name, run, *arguments):
        config = write_yaml(folder / f"{name}.yaml", values_of(name, *run))
        # Ten rows of the 32 logits that each of two shards has; a micro-batch has 32 rows.
        chunks = {"most_logits": 320} if "chunks" in name else {}
        jobs.append({"config": str(config), "arguments": arguments, **chunks})

    for name, run in RUNS[worker_num].items():
        add(name, run)
    for name, (layout, source, arguments) in RESUMED[worker_num].items():
        run = RUNS[worker_num][f"{layout} tied"]
        add(f"{name} tied", run, *from_half(folder / f"{source} tied"), *arguments)
    train_many(folder, jobs, worker_num, LONGEST_S)


def from_half(run_dir):
    """Return the keys that go on from the middle of a run, in another folder."""
    half = f"qwen3_rank_0-1_{HALF}.safetensors"
    return ["--resume_training", half, "--load_checkpoint", str(run_dir)]


def assert_same_run(run_dir: Path, single: Path, after: int = 0, last: int = STEPS):
    got, wanted = steps_of(run_dir, after), steps_of(single, after)
    assert [line["step"] for line in got] == list(range(after + 1, last + 1))
    losses = [[line["loss"] for line in lines] for lines in (got, wanted)]
    norms = [[line["grad_norm"] for line in lines] for lines in (got, wanted)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=LOSS_ATOL)
    np.testing.assert_allclose(norms[0], norms[1], rtol=NORM_RTOL, atol=0)
    evaluations = [
        {
            line["step"]: line["eval_loss"]
            for line in read_metrics(each / "metrics.jsonl")
            if "eval_loss" in line
        }
        for each in (run_dir, single)
    ]
    assert evaluations[0].keys() == ({0, HALF, last} if run_dir.name in EVALUATED else set())
    for step, value in evaluations[0].items():
        assert value == pytest.approx(evaluations[1][step], abs=LOSS_ATOL)
    tensors, whole = tensors_of(run_dir), tensors_of(single)
    assert tensors.keys() == whole.keys()
    for name, value in tensors.items():
        atol = MOMENT_ATOL if name.startswith("adam") else WEIGHT_ATOL
        np.testing.assert_allclose(value, whole[name], rtol=0, atol=atol, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_layout_trains_as_one_process_does(train, single, name):
    whole = single("untied" if name.endswith(" untied") else "tied")
    assert steps_of(whole)[-1]["loss"] < steps_of(whole)[0]["loss"] - 1
    assert_same_run(train(name), whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_replicas_write_each_tensor_once_and_read_each_weight_once_to_the_same_bits(train, kind):
    shared, whole = train(f"dp2 shared {kind}"), train(f"dp2 {kind}")
    written = [
        [set(open_safetensors(path).tensors) for path in choose_checkpoint(run_dir, 2, None)[0].values()]
        for run_dir in (shared, whole)
    ]
    scalars = {"epoch_num", "step_num", "global_step", "loss_scale"}
    assert written[0][0] & written[0][1] == scalars
    assert written[0][0] | written[0][1] == written[1][0]
    want = tensors_of(whole)
    for name, value in tensors_of(shared).items():
        np.testing.assert_array_equal(value, want[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if "shared" not in name])
def test_each_rank_holds_what_the_planner_counts(train, name):
    parallel, _ = next(runs[name] for runs in RUNS.values() if name in runs)
    cp = parallel.get("context_parallel", 1)
    layout = Layout(
        dp=parallel.get("data_parallel", 1) * cp, cp=cp, tp=parallel.get("model_parallel", 1),
        pp=parallel.get("pipeline_stage", 1),
    )  # fmt: skip
    model = read_model(TINY_MODEL | {"hidden_size": 32, "tie_word_embeddings": name.endswith(" tied")}, None)
    settings = make_settings(model=model, layout=layout, parallel_optimizer="zero1" in name)
    stages = plan_memory(settings)
    files = choose_checkpoint(train(name), layout.num_ranks, None)[0]
    for rank, path in files.items():
        held = {"weights": 0, "moments": 0}
        for tensor in open_safetensors(path).tensors.values():
            if "." in tensor.name:
                held["moments" if tensor.name.startswith("adam_") else "weights"] += tensor.size_bytes
        stage = stages[layout.coordinates(rank)[0]]
        assert held == {"weights": stage.parameters, "moments": stage.optimizer}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tp2", "dp2 shared"])
def test_a_run_resumes_bit_for_bit_in_its_layout(train, name):
    first, again = train(f"{name} tied"), train(f"{name} again tied")
    curves = [
        [(line["step"], line["loss"], line["grad_norm"]) for line in steps_of(run_dir, HALF)]
        for run_dir in (again, first)
    ]
    assert len(curves[0]) == STEPS - HALF
    assert curves[0] == curves[1]
    wanted = tensors_of(first)
    for name, value in tensors_of(again).items():
        np.testing.assert_array_equal(value, wanted[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MOVED)
def test_a_run_resumes_under_another_layout(train, single, name):
    assert_same_run(train(f"{name} tied"), single("tied"), HALF)


@pytest.mark.slow
def test_one_process_goes_on_from_four(train, single):
    source = train("tp2 pp2 chunks tied")
    moved = single("tied", *from_half(source), name="single from tp2 pp2")
    assert_same_run(moved, single("tied"), HALF)


@pytest.mark.slow
def test_strategies_that_lie_elsewhere_are_named(train, single, folder, values_of):
    source = train("tp2 tied")
    shutil.copytree(source, folder / "moved", ignore=shutil.ignore_patterns("strategy"))
    arguments = [*from_half(folder / "moved"), "--src_strategy_path_or_dir"]
    moved = single("tied", *arguments, str(source / "strategy"), name="single from moved")
    assert_same_run(moved, single("tied"), HALF)
    config = write_yaml(folder / "lost.yaml", values_of("lost tied", {}, {}))
    refused = CliRunner().invoke(main, ["launch", "--config", str(config), *arguments, str(folder)])
    assert refused.exit_code == 1
    assert "holds no strategy file (*.ckpt or *.json), such as ckpt_strategy_rank_0.ckpt" in refused.output


@pytest.mark.slow
def test_a_run_resumes_with_other_replicas_and_another_batch(train, single):
    moved = train("dp2 of twice the batch tied")
    twice = ["--runner_config.gradient_accumulation_steps", "2"]
    whole = single("tied", *from_half(single("tied")), *twice, name="single of twice the batch")
    # Of 160 samples ten steps took 80; five of 16 take the rest.
    assert_same_run(moved, whole, HALF, last=15)
