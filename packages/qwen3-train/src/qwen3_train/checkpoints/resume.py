"""Whether a checkpoint belongs to the run that is to continue, and where the run then goes on."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace

from qwen3_model.command.plain_text import counted
from qwen3_model.errors import ConfigError
from qwen3_train.checkpoints.checkpoint import TrainState, read_epoch, read_state
from qwen3_train.checkpoints.source import ResumeSource
from qwen3_train.checkpoints.strategy_files import refuse_other_layout
from qwen3_train.data.batch_plan import BatchPlan, Start
from qwen3_train.settings.conversation_blend import BlendSettings
from qwen3_train.settings.hf_loader import HfDataSettings, SftFileSettings
from qwen3_train.settings.run import TrainSettings
from qwen3_train.settings.validation import BestLoss


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumed:
    """How a run goes on."""

    plan: BatchPlan
    steps_done: int = 0
    best: BestLoss = field(default_factory=BestLoss)


def continue_plan(
    settings: TrainSettings,
    source: ResumeSource | None,
    plan: BatchPlan,
    fingerprint: Callable[[int | None], str],
    base: str,
    notes: list[str],
) -> Resumed:
    """Check that a checkpoint belongs to the run, and let its plan begin where the checkpoint stands.

    Args:
        settings: Settings of the run to be resumed.
        source: The checkpoint; None for a run that begins.
        plan: As if it began anew.
        fingerprint: Fingerprint of its data; see `RunData`.
        base: Fingerprint of the weights under adapters.
        notes: Gets sentences for the log, one for each setting that changed.

    Raises:
        ConfigError: The checkpoint is of other data, of another base or of another layout.
    """
    if source is None:
        return Resumed(plan=plan)
    if not source.is_checked:
        source.open()
        if source.is_own:
            refuse_other_layout(settings)
    state = read_state(source.first_file)
    if state.base != base:
        raise ConfigError(
            f"{source.first} belongs to another base (fingerprint {state.base or 'none'}, now "
            f"{base or 'none'}); name the folder that its adapters were trained on as pretrained_model_dir"
        )
    best = state.best or BestLoss()
    notes += changed_settings(state.settings, run_facts(settings))
    wanted = fingerprint(plan.global_batch if state.version == 1 else None)
    if not state.data:
        notes.append(f"{source.first} does not say on which data it was trained, so they are not compared")
    elif state.data != wanted:
        difference = _differences(state.facts, data_facts(settings))
        if not settings.resume.ignore_data_skip:
            raise ConfigError(
                f"{source.first} was trained on other data or in another order (fingerprint {state.data}, "
                f"now {wanted}{difference}); resume with the data and settings that it began with, or set "
                "ignore_data_skip: True to go on with these data from their first sample"
            )
        epoch = read_epoch(source.first_file)
        changed = _begin_other_data(plan, state.global_step, epoch, settings.resume.data_skip_steps)
        notes.append(
            f"ignore_data_skip: the data are others{difference}; epoch {changed.start.epoch + 1} begins with "
            f"their sample {changed.start.samples}, and the run will have "
            f"{counted(changed.num_steps, 'step')}"
        )
        return Resumed(plan=changed, steps_done=state.global_step, best=best)
    return Resumed(plan=_continue_plan(plan, state, notes), steps_done=state.global_step, best=best)


def run_facts(settings: TrainSettings) -> dict[str, object]:
    """Return the settings that change what later steps compute, by key, as JSON reads them back."""
    adam, skip = settings.adam, settings.skip
    facts: dict[str, object] = {f"lr_schedule.{key}": value for key, value in settings.lr_schedule.items()}
    facts |= {
        "optimizer.betas": [adam.beta1, adam.beta2],
        "optimizer.eps": adam.eps,
        "optimizer.weight_decay": adam.weight_decay,
        "runner_wrapper.max_grad_norm": settings.max_grad_norm,
        "runner_config.epochs": settings.epochs,
        "seed": settings.seed,
        "monitor_config.global_norm_spike_threshold": None if skip is None else skip.norm_limit,
        "model.model_config.rope_theta": settings.model.rope_theta,
        "model.model_config.rms_norm_eps": settings.model.rms_norm_eps,
        "model.model_config.max_position_embeddings": settings.model.max_position_embeddings,
    }
    read_back: dict[str, object] = json.loads(json.dumps(facts, default=str))
    return read_back


def changed_settings(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Return a sentence for each setting that differs; none where the checkpoint does not say."""
    if not before:
        return []
    keys = dict.fromkeys((*before, *now))
    return [
        f"{key} was {_value_text(before.get(key))}, is {_value_text(now.get(key))} from here on"
        for key in keys
        if before.get(key) != now.get(key)
    ]


def _value_text(value: object) -> str:
    return "not set" if value is None else str(value)


def data_facts(settings: TrainSettings) -> dict[str, object]:
    """Return what a person would compare where two fingerprints differ."""
    data = settings.data
    if isinstance(data, HfDataSettings):
        return asdict(data.chat) | {"shuffle": data.shuffle, "seed": data.seed}
    if isinstance(data, BlendSettings):
        facts = {
            "datasets": len(data.parts),
            "weights": list(data.weights or ()),
            "seq_length": data.seq_length,
        }
        return facts | {"samples of an epoch": data.num_train, "shuffle": data.shuffle, "seed": data.seed}
    if isinstance(data, SftFileSettings):
        return {"seq_length": data.seq_length, "shuffle": data.shuffle, "seed": data.seed}
    facts = asdict(data)
    kept = ("split", "seq_length", "seed", "pad", "eod_mask_loss", "reset_position_ids", "separate_documents")
    return {key: facts[key] for key in kept} | {
        "samples of an epoch": data.num_train,
        "weights": list(data.train.weights or ()),
        "token files": len(data.train.prefixes),
    }


def _differences(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    if not before:
        return ""
    parts = [f"{key} was {before[key]}, is {now.get(key)}" for key in before if before[key] != now.get(key)]
    return f": {', '.join(parts)}" if parts else ": the settings are the same, the files are not"


def _begin_other_data(plan: BatchPlan, steps: int, epochs: int, skip: int) -> BatchPlan:
    """Let the epoch after those begun begin with the first sample of other data, or `skip` steps later."""
    start = Start(steps, epochs, samples=skip * plan.global_batch)
    if start.samples >= plan.num_samples:
        raise ConfigError(
            f"data_skip_steps={skip} leaves nothing of {counted(plan.num_samples, 'sample')} in steps of "
            f"{plan.global_batch}"
        )
    if start.epoch >= plan.num_epochs:
        raise ConfigError(
            f"other data begin with an epoch of their own, number {start.epoch + 1}, but "
            f"runner_config.epochs is {plan.num_epochs}; raise runner_config.epochs to {start.epoch + 1} "
            "or more"
        )
    return replace(plan, start=start)


def _continue_plan(plan: BatchPlan, state: TrainState, notes: list[str]) -> BatchPlan:
    """Let the plan begin where the checkpoint stands, if its steps had another size."""
    if state.global_batch is None:
        return plan
    before = replace(
        plan, micro_batch=state.global_batch, num_micro_batches=1, num_replicas=1, start=state.start
    )
    if before.global_batch == plan.global_batch:
        return replace(plan, start=state.start)
    changed = replace(plan, start=before.after(state.global_step))
    notes.append(
        f"the global batch is {counted(plan.global_batch, 'sample')} where it was {before.global_batch}: "
        "the run goes "
        f"on after sample {changed.start.samples} of epoch {changed.start.epoch + 1}, so that each sample "
        f"still comes once an epoch; it will have {counted(changed.num_steps, 'step')} instead of "
        f"{before.num_steps}, "
        "and the learning rate follows the number of the step"
    )
    return changed
