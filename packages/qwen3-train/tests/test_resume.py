"""Which checkpoint a start continues: the run's own newest first, whatever else the command names."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from train_inputs import counting_documents, tiny_run, write_tokens, write_yaml

from qwen3_model.checkpoints.checkpoint_files import EpochStep
from qwen3_model.checkpoints.safetensors_file import TensorPlan, open_safetensors, write_safetensors
from qwen3_model.command.run_config import load_run_config
from qwen3_model.errors import ConfigError, OutputExistsError
from qwen3_train.checkpoints.checkpoint import FloatTensor, TrainState, save_checkpoint
from qwen3_train.checkpoints.resume import changed_settings, run_facts
from qwen3_train.cli import main
from qwen3_train.prepare.prepare import prepare_run
from qwen3_train.reports.run_log import read_metrics
from qwen3_train.settings.run import read_settings
from qwen3_train.settings.schema import TRAIN

pytestmark = pytest.mark.usefixtures("share_graphs")


@pytest.fixture
def prefix(tmp_path):
    return write_tokens(tmp_path / "tiny_text_document", counting_documents(60), eod_id=1)


@pytest.fixture
def prepare(tmp_path, prefix):
    """Return a function that checks a start of a run as `launch` does, without training."""

    def prepared(out="out", *, force=False, data=prefix, **changes):
        values = tiny_run(tmp_path / out, data, **changes)
        config = load_run_config(write_yaml(tmp_path / "config.yaml", values), [], TRAIN)
        return prepare_run(read_settings(config), force=force)

    return prepared


def leave_checkpoint(run, step, *, rank=0, whole=True):
    """Write what a run leaves in its folder after a step."""
    state = TrainState(step, run.fingerprint, global_batch=4, settings=run_facts(run.settings))
    tensors = [FloatTensor("w", (2,), lambda: np.ones(2, np.float32))]
    out = run.settings.output_dir
    place = EpochStep(*run.plan.epoch_and_step(step))
    path = save_checkpoint(out / "checkpoint" / f"rank_{rank}", f"qwen3_rank_{rank}", place, state, tensors)
    if not whole:
        path.write_bytes(path.read_bytes()[:-3])
    (out / "run.yaml").write_text("seed: 7\n", encoding="utf-8")
    return path


def steps_of(run):
    return (
        None
        if run.source is None
        else (run.source.first.parent.parent.parent.name, run.source.first.stem[-1])
    )


def test_the_own_newest_checkpoint_comes_before_load_checkpoint(prepare, tmp_path):
    one = prepare("one")
    leave_checkpoint(one, 4)
    for mode in (True, "auto", "qwen3_rank_0-1_4.safetensors"):
        began = prepare("out", resume_training=mode, load_checkpoint=str(tmp_path / "one"))
        # With auto, load_checkpoint has weights to begin with; with the others, the state of a run.
        assert steps_of(began) == (None if mode == "auto" else ("one", "4"))
        assert began.settings.weights_from == (tmp_path / "one" if mode == "auto" else None)
    own = prepare("out")
    leave_checkpoint(own, 2)
    for mode in (True, "auto", "qwen3_rank_0-1_4.safetensors"):
        later = prepare("out", resume_training=mode, load_checkpoint=str(tmp_path / "one"))
        assert steps_of(later) == ("out", "2")
        assert any("is where the run began; it goes on from" in note for note in later.notes) == (
            mode != "auto"
        )
    shutil.rmtree(tmp_path / "one")
    assert steps_of(prepare("out", resume_training="auto", load_checkpoint=str(tmp_path / "one"))) == (
        "out",
        "2",
    )


def test_auto_begins_where_there_is_nothing_and_goes_on_where_there_is(prepare):
    assert prepare(resume_training="auto").source is None
    run = prepare()
    leave_checkpoint(run, 2)
    assert steps_of(prepare(resume_training="auto")) == ("out", "2")
    with pytest.raises(OutputExistsError, match="continue it with --resume_training auto"):
        prepare()


def test_auto_takes_a_run_that_is_done_for_finished_and_true_says_what_helps(prepare, tmp_path):
    leave_checkpoint(prepare(), 6)
    assert prepare(resume_training="auto").is_finished
    with pytest.raises(
        ConfigError, match=r"nothing left to train, raise runner_config.epochs to train longer"
    ):
        prepare(resume_training=True)
    assert not prepare(resume_training=True, runner_config__epochs=2).is_finished
    stopping = {"callbacks": [{"type": "TrainCallBack", "stop_step": 6}], "runner_config__epochs": 2}
    with pytest.raises(ConfigError, match=r"raise stop_step of the callback TrainCallBack, up to 12"):
        prepare(resume_training=True, **stopping)
    config = write_yaml(
        tmp_path / "done.yaml",
        tiny_run(tmp_path / "out", tmp_path / "tiny_text_document", resume_training="auto"),
    )
    done = CliRunner().invoke(main, ["launch", "--config", str(config)])
    assert (done.exit_code, done.stdout) == (0, "")
    assert "is finished with qwen3_rank_0-1_6.safetensors" in done.stderr


def test_a_first_checkpoint_that_was_never_finished_lets_auto_begin_and_damage_does_not(prepare):
    run = prepare()
    leave_checkpoint(run, 2)
    (run.settings.output_dir / "checkpoint" / "rank_1").mkdir()
    began = prepare(resume_training="auto")
    assert began.source is None
    assert any("was finished on every rank, so the run begins anew" in note for note in began.notes)
    (run.settings.output_dir / "checkpoint" / "rank_1").rmdir()
    leave_checkpoint(run, 2, whole=False)
    with pytest.raises(ConfigError, match=r"no whole checkpoint .* is not whole"):
        prepare(resume_training="auto")
    leave_checkpoint(run, 1)
    assert steps_of(prepare(resume_training="auto")) == ("out", "1")


def test_an_older_checkpoint_is_taken_by_name_with_force_alone(prepare):
    run = prepare()
    for step in (2, 4):
        leave_checkpoint(run, step)
    with pytest.raises(OutputExistsError, match=r"1_4.safetensors, which is newer than qwen3_rank_0-1_2"):
        prepare(resume_training="qwen3_rank_0-1_2")
    assert steps_of(prepare(resume_training="qwen3_rank_0-1_2", force=True)) == ("out", "2")
    assert steps_of(prepare(resume_training="qwen3_rank_0-1_4")) == ("out", "4")


def test_true_begins_where_load_checkpoint_is_a_folder_without_checkpoints_yet(prepare, tmp_path):
    own = str(tmp_path / "out" / "checkpoint")
    assert prepare(resume_training=True, load_checkpoint=own).source is None
    (tmp_path / "out" / "checkpoint").mkdir(parents=True)
    assert prepare(resume_training=True, load_checkpoint=own).source is None
    (tmp_path / "empty").mkdir()
    assert prepare(resume_training=True, load_checkpoint=str(tmp_path / "empty")).source is None
    for wrong, sentence in (("/nowhere", "/nowhere does not exist"), (str(tmp_path), "no .*rank_0")):
        with pytest.raises(ConfigError, match=sentence):
            prepare(resume_training=True, load_checkpoint=wrong)
    leave_checkpoint(prepare("out"), 2)
    assert steps_of(prepare(resume_training=True, load_checkpoint=own)) == ("out", "2")


def test_a_failed_start_blocks_nothing_and_another_folder_is_no_failed_start(prepare, tmp_path):
    out = tmp_path / "out"
    (out / "events").mkdir(parents=True)
    for name in ("run.yaml", "config.json", "metrics.jsonl"):
        (out / name).write_text("" if name == "metrics.jsonl" else "{}", encoding="utf-8")
    assert prepare().source is None
    (out / "metrics.jsonl").write_text('{"step": 1}\n', encoding="utf-8")
    with pytest.raises(OutputExistsError, match="holds a run already"):
        prepare()
    assert prepare(resume_training="auto").source is None
    (out / "metrics.jsonl").unlink()
    (out / "run.yaml").unlink()
    with pytest.raises(OutputExistsError, match=r"holds a run already \(config.json\)"):
        prepare()  # as a folder of Hugging Face's would be


def test_each_setting_that_changed_is_named(prepare):
    leave_checkpoint(prepare(), 2)
    notes = prepare(
        resume_training="auto", seed=8, lr_schedule__learning_rate=0.01, optimizer__betas=[0.9, 0.99],
        optimizer__weight_decay=0.0, runner_wrapper__use_clip_grad=False, runner_config__epochs=3,
        lr_schedule__type="LinearWithWarmUpLR",
    ).notes  # fmt: skip
    changed = [note.removesuffix(" from here on") for note in notes if "from here on" in note]
    assert sorted(changed) == [
        "lr_schedule.learning_rate was 0.02, is 0.01",
        "lr_schedule.type was CosineWithWarmUpLR, is LinearWithWarmUpLR",
        "optimizer.betas was [0.9, 0.95], is [0.9, 0.99]",
        "optimizer.weight_decay was 0.1, is 0.0",
        "runner_config.epochs was 1, is 3",
        "runner_wrapper.max_grad_norm was 1.0, is not set",
        "seed was 7, is 8",
    ]
    assert changed_settings({}, {"seed": 3}) == []
    assert not any("from here on" in note for note in prepare(resume_training="auto").notes)


def test_other_data_are_taken_on_purpose_alone(prepare, tmp_path):
    leave_checkpoint(prepare(), 2)
    other = write_tokens(tmp_path / "other_text_document", counting_documents(60, seed=1), eod_id=1)
    with pytest.raises(ConfigError, match="or set ignore_data_skip: True to go on with these data"):
        prepare(resume_training="auto", data=other)
    with pytest.raises(ConfigError, match=r"raise runner_config\.epochs to 2 or more"):
        prepare(resume_training="auto", data=other, ignore_data_skip=True)
    changes = {"resume_training": "auto", "data": other, "ignore_data_skip": True, "runner_config__epochs": 3}
    run = prepare(**changes)
    assert run.plan.samples(3) == range(4)
    assert run.plan.epoch_and_step(3) == (2, 1)
    assert (run.plan.num_steps, run.plan.start.steps) == (2 + 6 + 6, 2)
    assert prepare(**changes, data_skip_steps=2).plan.samples(3) == range(8, 12)
    with pytest.raises(ConfigError, match="data_skip_steps=6 leaves nothing of 24 samples"):
        prepare(**changes, data_skip_steps=6)
    with pytest.raises(ConfigError, match="set ignore_data_skip: True, or leave it out"):
        prepare(resume_training="auto", data_skip_steps=2)


def as_merged(run_dir, target):
    """Write the newest checkpoint of a run as merging does: parts with a map of names, scalars apart."""
    file = open_safetensors(max((run_dir / "checkpoint" / "rank_0").glob("*.safetensors")))
    parts = {"part0.safetensors": [], "part1.safetensors": [], "hyper_param.safetensors": []}
    for name, info in file.tensors.items():
        part = "part1" if name.startswith("adam_v.") else "part0" if "." in name else "hyper_param"
        plan = TensorPlan(name, info.dtype, tuple(info.shape))
        parts[f"{part}.safetensors"].append((plan, iter([file.raw(name)])))
    target.mkdir()
    names = {plan.name: part for part, held in parts.items() for plan, _ in held if part[0] == "p"}
    (target / "param_name_map.json").write_text(json.dumps({"weight_map": names}), encoding="utf-8")
    for part, held in parts.items():
        write_safetensors(target / part, held, {"format": "ms"})


def test_merged_weights_without_moments_are_to_begin_with(prepare, tmp_path):
    (tmp_path / "merged").mkdir()
    held = [(TensorPlan("w", "F32", (1,)), iter([np.ones(1, np.float32)]))]
    write_safetensors(tmp_path / "merged" / "part0.safetensors", held, {"format": "ms"})
    (tmp_path / "merged" / "param_name_map.json").write_text('{"w": "part0.safetensors"}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"has no optimizer state .* use --resume_training auto"):
        prepare(resume_training=True, load_checkpoint=str(tmp_path / "merged"))


def test_a_requeued_run_keeps_its_progress_and_equals_the_unbroken_one(tmp_path, prefix):
    """A run that starts from another's weights, stopped twice and started with one and the same command."""

    def launch(out, *arguments, **changes):
        values = tiny_run(tmp_path / out, prefix, resume_training="auto", **changes)
        config = write_yaml(tmp_path / f"{out}.yaml", values)
        done = CliRunner().invoke(main, ["launch", "--config", str(config), *arguments])
        assert done.exit_code == 0, done.output
        return done.output

    def losses(out):
        return [(line["step"], line["loss"]) for line in read_metrics(tmp_path / out / "metrics.jsonl")]

    launch("one")
    begin = {"load_checkpoint": str(tmp_path / "one")}
    launch("whole", **begin)
    stop = [{"type": "CheckpointMonitor", "save_checkpoint_steps": 2, "keep_checkpoint_max": 2},
            {"type": "TrainCallBack", "stop_step": 4}]  # fmt: skip
    launch("parts", **begin, callbacks=stop)
    assert [step for step, _ in losses("parts")] == [1, 2, 3, 4]
    as_merged(tmp_path / "parts", tmp_path / "merged")
    told = launch("parts", "--callbacks.1.stop_step", "6", **begin, callbacks=stop)
    assert "parts/checkpoint/rank_0/qwen3_rank_0-1_4.safetensors after step 4" in told
    assert losses("parts") == losses("whole")
    assert losses("whole")[0][1] < losses("one")[0][1] - 0.05
    launch("moved", "--resume_training", "True", "--load_checkpoint", str(tmp_path / "merged"))
    assert losses("moved") == losses("whole")[4:]
    state = json.loads((tmp_path / "parts" / "checkpoint" / "rank_0" / "meta.json").read_text())
    assert state["last_step"] == 6
