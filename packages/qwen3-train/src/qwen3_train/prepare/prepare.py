"""All that can be known and refused before MindSpore is imported: data, steps, learning rates, space."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from qwen3_model.checkpoints.adapters import base_fingerprint
from qwen3_model.checkpoints.checkpoint_files import is_hf_folder
from qwen3_model.checkpoints.weight_files import open_weight_files
from qwen3_model.command.files import require_free_space
from qwen3_model.command.plain_text import counted
from qwen3_model.errors import ConfigError
from qwen3_train.checkpoints.lora_base import find_base
from qwen3_train.checkpoints.other_layout import make_room_for_layout
from qwen3_train.checkpoints.resume import Resumed, continue_plan
from qwen3_train.checkpoints.run_folder import refuse_used_folder, restore_replaced
from qwen3_train.checkpoints.shared_writing import checkpoint_bytes
from qwen3_train.checkpoints.source import ResumeSource, find_source
from qwen3_train.data.batch_plan import BatchPlan
from qwen3_train.data.batches import Dataset
from qwen3_train.data.gpt_dataset import DocumentOptions
from qwen3_train.data.sft_prepare import prepare_sft
from qwen3_train.data.token_data import prepare_tokens
from qwen3_train.settings.exit_file import refuse_exit_request
from qwen3_train.settings.lr_schedule import Schedule, make_schedule, warmup_length
from qwen3_train.settings.model import size_differences
from qwen3_train.settings.run import TrainSettings
from qwen3_train.settings.token_files import DataSettings
from qwen3_train.settings.validation import BestLoss

EVALUATION_SHARE = 0.5
"""Share of the time of the steps between two evaluations from which on an evaluation is called long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedRun:
    """A run that nothing known beforehand speaks against."""

    settings: TrainSettings
    train: Dataset
    valid: Dataset | None
    """What to evaluate on, or None for no evaluation."""
    num_valid: int
    options: DocumentOptions
    plan: BatchPlan
    last_step: int
    """Step after which the run ends."""
    schedule: Schedule
    fingerprint: str
    """Fingerprint of the data and their order; a resumed run must have the same."""
    source: ResumeSource | None
    """Checkpoint to continue from; None for a run that begins."""
    steps_done: int
    """Steps before this start; 0 for a run that begins."""
    best: BestLoss
    """The lowest loss of its evaluations so far."""
    is_finished: bool
    """Whether that checkpoint is the run's end, which is no error where `resume_training` is auto."""
    lora_base: Path | None
    """Weights under the adapters; None where the model itself trains."""
    lora_base_fingerprint: str
    stop_ids: tuple[int, ...]
    """Tokens at which the trained model's answers end; empty where the data are no conversations."""
    notes: tuple[str, ...]
    """Sentences for the log."""


def prepare_run(
    settings: TrainSettings,
    *,
    force: bool,
    saves: bool = True,
    is_checked: bool = False,
    takes_other_layout: bool = False,
) -> PreparedRun:
    """Check a run against its files and index its data.

    Args:
        settings: The run's settings.
        force: Whether the output folder may hold another run.
        saves: Whether checkpoints will be written, which need space.
        is_checked: Whether the launcher has done this before, and found the checkpoint whole.
        takes_other_layout: Whether a run of another layout in the output folder goes on under this one.

    Raises:
        ConfigError: Settings do not fit the data.
        FormatError: A token file or checkpoint is damaged.
        OutputExistsError: The output folder holds a run.
    """
    notes: list[str] = []
    refuse_exit_request(settings.exit_file)
    if settings.resume.is_on:
        restore_replaced(settings.output_dir)
    refuse_used_folder(settings.output_dir, force=force, resume=settings.resume.is_on)
    if takes_other_layout and settings.resume.is_on:
        make_room_for_layout(settings, notes)
    source = find_source(settings, force=force, notes=notes, is_checked=is_checked)
    _check_weights(settings, is_start=source is None)
    base = find_base(settings, source.run_dir if source else None) if settings.lora else None
    base_hash = base_fingerprint(base) if base else ""
    if isinstance(settings.data, DataSettings):
        data = prepare_tokens(settings, settings.data, notes)
    else:
        data = prepare_sft(settings, settings.data, notes)
    if settings.model.eos_token_id is None and data.eos_id is not None:
        # Text ends where documents or answers end, so generation should stop there.
        settings = replace(settings, model=replace(settings.model, eos_token_id=data.eos_id))
    resumed = continue_plan(settings, source, _plan(settings, data.train), data.fingerprint, base_hash, notes)
    if source is not None:
        source.close()
    plan = resumed.plan
    last_step = min(plan.num_steps, settings.stop_step or plan.num_steps)
    patience = settings.validation.patience
    is_stopped = patience is not None and resumed.best.waited >= patience
    is_finished = source is not None and (resumed.steps_done >= last_step or is_stopped)
    if source is not None and is_finished and settings.resume.mode != "auto":
        raise ConfigError(f"{source.first.name} {_explain_finished(resumed, last_step)}")
    notes += _adapter_notes(settings)
    notes += _step_notes(settings, plan, last_step)
    notes += _evaluation_notes(settings, plan, data.num_valid)
    if saves:
        size = checkpoint_bytes(
            settings.layout, settings.model, offset=settings.offset, lora=settings.lora,
            shares_moments=settings.parallel_optimizer, shares_writing=settings.shares_writing,
        )  # fmt: skip
        # One more while the new one is written, and of the best one two in the same way.
        kept = settings.keep_max + 1 + 2 * settings.validation.keep_best
        require_free_space(settings.output_dir, size * kept)
    return PreparedRun(
        settings=settings,
        train=data.train,
        valid=data.valid,
        num_valid=data.num_valid,
        options=data.options,
        plan=plan,
        last_step=last_step,
        schedule=make_schedule(settings.lr_schedule, plan.num_steps),
        fingerprint=data.fingerprint(None),
        source=source,
        steps_done=resumed.steps_done,
        best=resumed.best,
        is_finished=is_finished,
        lora_base=base,
        lora_base_fingerprint=base_hash,
        stop_ids=data.stop_ids,
        notes=tuple(notes),
    )


def _adapter_notes(settings: TrainSettings) -> Iterator[str]:
    lora = settings.lora
    if lora is None:
        return
    share = lora.num_trained / settings.model.num_parameters()
    yield (
        f"adapters of rank {lora.rank} on {len(lora.modules)} modules: {lora.num_trained:,} parameters "
        f"train, {share:.2%} of the model's"
    )
    if others := [name for name in lora.trained if ".lora_" not in name]:
        yield (
            f"{len(others)} weights train besides adapters ({others[0]}, ...), as freeze_include and "
            "freeze_exclude say; qwen3-ckpt lora takes the adapters alone"
        )


def _step_notes(settings: TrainSettings, plan: BatchPlan, last_step: int) -> Iterator[str]:
    if (warmup := warmup_length(settings.lr_schedule, plan.num_steps)) > last_step:
        yield (
            f"the warm-up takes {counted(warmup, 'step')} and the run {last_step}, so the learning rate is "
            "never reached"
        )
    left = plan.num_samples % plan.global_batch
    if left and not isinstance(settings.data, DataSettings):
        yield (
            f"{left} of {plan.num_samples} samples are left out of each epoch, which takes whole steps of "
            f"{plan.global_batch}"
        )


def _evaluation_notes(settings: TrainSettings, plan: BatchPlan, num_valid: int) -> Iterator[str]:
    trained = (settings.eval_every or 0) * plan.global_batch
    # A forward pass is about a third of a step's work.
    if trained and num_valid > EVALUATION_SHARE * 3 * trained:
        yield (
            f"each evaluation takes {num_valid:,} held-out samples and comes after {trained:,} trained ones: "
            f"about {num_valid / (num_valid + 3 * trained):.0%} of the run's time; bound them by the second "
            "number of sizes, or raise eval_step_interval"
        )


def _explain_finished(resumed: Resumed, last_step: int) -> str:
    if resumed.steps_done < last_step:
        return (
            f"was ended by EarlyStopping, {counted(resumed.best.waited, 'evaluation')} after the lowest "
            "loss; raise its "
            "patience to train longer"
        )
    if last_step < resumed.plan.num_steps:
        remedy = f"raise stop_step of the callback TrainCallBack, up to {resumed.plan.num_steps}"
    else:
        remedy = "raise runner_config.epochs to train longer on the same data"
    return f"has finished step {resumed.steps_done} of {last_step}; there is nothing left to train, {remedy}"


def _check_weights(settings: TrainSettings, *, is_start: bool) -> None:
    source = settings.weights_from if is_start else None
    if source is not None and not source.exists():
        raise ConfigError(
            f"{source} does not exist; give a Hugging Face folder or a checkpoint to start from"
        )
    if source is not None and source.is_dir() and (differences := size_differences(settings.model, source)):
        raise ConfigError(
            f"the weights of {source} do not fit model.model_config: {differences}; take the YAML file of "
            "that size, or leave these keys out"
        )
    if source is not None and not is_hf_folder(source):
        open_weight_files(source, settings.strategy_from)


def _suggest_more(settings: TrainSettings, num_samples: int) -> str:
    """Say what to change, so that the samples are enough for a step."""
    if settings.data.num_train is not None and settings.data.num_train <= num_samples:
        more = "raise --train_dataset.data_loader.sizes"
    else:
        more = "use more data"
    others = settings.passes * settings.layout.data_parallel
    if num_samples >= others:
        return f"set --runner_config.batch_size {num_samples // others}, or {more}"
    if num_samples >= settings.layout.data_parallel and settings.passes > 1:
        return f"set --batch_size 1 and --gradient_accumulation_steps 1, or {more}"
    return f"{more}, or lower seq_length"


def _plan(settings: TrainSettings, train: Dataset) -> BatchPlan:
    num_samples = min(len(train), settings.data.num_train or len(train))
    plan = BatchPlan(
        micro_batch=settings.batch_size,
        num_micro_batches=settings.passes,
        num_replicas=settings.layout.data_parallel,
        num_samples=num_samples,
        num_epochs=settings.epochs,
    )
    if plan.num_steps < 1:
        raise ConfigError(
            f"one step takes {counted(plan.global_batch, 'sample')} (batch_size {settings.batch_size} x "
            f"{settings.passes} forward passes x data_parallel {plan.num_replicas}) but the data give "
            f"{num_samples} of seq_length {settings.data.seq_length}; {_suggest_more(settings, num_samples)}"
        )
    return plan
