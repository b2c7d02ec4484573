"""From which checkpoint a run goes on, and where in its data that is."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qwen3_model.checkpoint_files import choose_checkpoint
from qwen3_model.errors import ConfigError
from qwen3_model.rank_tensors import open_rank_tensors
from qwen3_model.safetensors_file import open_safetensors
from qwen3_train.checkpoints.checkpoint import TrainState, read_state
from qwen3_train.checkpoints.strategy_files import refuse_other_layout
from qwen3_train.data.batch_plan import BatchPlan
from qwen3_train.settings.hf_loader import HfDataSettings, SftFileSettings
from qwen3_train.settings.run import TrainSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumed:
    """What a run goes on from."""

    paths: Mapping[int, Path]
    """Checkpoint of each rank; empty for a new run."""
    strategy: Path | None = None
    """Where strategy files are that do not lie in the checkpoint's run."""
    plan: BatchPlan
    steps_done: int


def find_resumed(
    settings: TrainSettings,
    plan: BatchPlan,
    fingerprint: Callable[[int | None], str],
    base: str,
    notes: list[str],
) -> Resumed:
    """Choose the newest whole checkpoint, or the one that is named, and check that it belongs to the run.

    Args:
        settings: Of the run that is to go on.
        plan: As if it began anew.
        fingerprint: Of its data; see `RunData`.
        base: Fingerprint of the weights under adapters.
        notes: Gets sentences for the log.

    Raises:
        ConfigError: There is none, or it is of other data, of another base or of another layout.
    """
    if not settings.resume:
        return Resumed(paths={}, plan=plan, steps_done=0)
    source, name = settings.resume_from or settings.output_dir, settings.resume_file
    if source.is_file():
        source, name = source.parent.parent, source.name
    files, passed_over = choose_checkpoint(source, None, name)
    notes += [f"passed over: {problem}" for problem in passed_over]
    is_own = files[0].is_relative_to(settings.output_dir)
    # The key is about a run that was moved or came from elsewhere; this one's strategies lie where it saved.
    strategy = None if is_own else settings.strategy_from
    open_rank_tensors(files, strategy)
    if is_own:
        refuse_other_layout(settings)
    state = read_state(open_safetensors(files[0]))
    if state.base != base:
        raise ConfigError(
            f"{files[0]} belongs to another base (fingerprint {state.base or 'none'}, now {base or 'none'}); "
            "name the folder that its adapters were trained on as pretrained_model_dir"
        )
    wanted = fingerprint(plan.global_batch if state.version == 1 else None)
    if state.data and state.data != wanted:
        raise ConfigError(
            f"{files[0]} was trained on other data or in another order (fingerprint {state.data}, now "
            f"{wanted}{_differences(state.facts, data_facts(settings))}); resume with the settings and files "
            "that it began with"
        )
    continued = _continued(plan, state, notes)
    return Resumed(paths=files, strategy=strategy, plan=continued, steps_done=state.global_step)


def data_facts(settings: TrainSettings) -> dict[str, Any]:
    """Return what a person would compare where two fingerprints differ."""
    data = settings.data
    if isinstance(data, HfDataSettings):
        return asdict(data.chat) | {"shuffle": data.shuffle, "seed": data.seed}
    if isinstance(data, SftFileSettings):
        return {"seq_length": data.seq_length, "shuffle": data.shuffle, "seed": data.seed}
    facts = asdict(data)
    kept = ("split", "seq_length", "seed", "pad", "eod_mask_loss", "reset_position_ids", "separate_documents")
    return {key: facts[key] for key in kept} | {
        "samples of an epoch": data.num_train,
        "weights": list(data.train.weights or ()),
        "token files": len(data.train.prefixes),
    }


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if not before:
        return ""
    parts = [f"{key} was {before[key]}, is {now.get(key)}" for key in before if before[key] != now.get(key)]
    return f": {', '.join(parts)}" if parts else ": the settings are the same, the files are not"


def _continued(plan: BatchPlan, state: TrainState, notes: list[str]) -> BatchPlan:
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
        f"the global batch is {plan.global_batch} samples where it was {before.global_batch}: the run goes "
        f"on after sample {changed.start.samples} of epoch {changed.start.epoch + 1}, so that each sample "
        f"still comes once an epoch; it will have {changed.num_steps} steps instead of {before.num_steps}, "
        "and the learning rate follows the number of the step"
    )
    return changed
