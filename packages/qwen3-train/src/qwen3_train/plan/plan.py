"""The plan of a run: what it needs, whether it fits, and what else would."""

from dataclasses import asdict, dataclass

from qwen3_model.device.memory import gib
from qwen3_train.layout.checks import batch_problems, layout_problems, process_problems
from qwen3_train.plan.communication import Traffic, plan_traffic
from qwen3_train.plan.layout_search import Candidate, Search, search_layouts
from qwen3_train.plan.memory import StageMemory, plan_memory
from qwen3_train.plan.notes import plan_notes
from qwen3_train.plan.saved_tensors import layer_tensors
from qwen3_train.plan.settings import PlanSettings
from qwen3_train.plan.startup import StartUp, plan_startup
from qwen3_train.plan.totals import Totals, count_totals


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that `qwen3-train plan` says."""

    settings: PlanSettings
    problem: str
    """What keeps the run's own layout from working; empty when nothing does."""
    memory_bytes: int | None
    """Limit of a device, or None for no limit."""
    num_devices: int
    stages: list[StageMemory]
    """Empty when the layout does not divide."""
    traffic: list[list[Traffic]]
    """Exchanges of each stage."""
    totals: Totals | None
    """Totals of the whole job; None when the layout does not divide."""
    start: StartUp | None
    """Seconds of a start; None when the layout does not divide."""
    notes: list[str]
    search: Search


def make_plan(settings: PlanSettings, *, num_devices: int | None, memory_bytes: int | None) -> Plan:
    """Plan the run's own layout and search the layouts of `num_devices`, its own number when None."""
    devices = num_devices or settings.layout.num_ranks
    search = search_layouts(settings, devices, memory_bytes)
    stages: list[StageMemory] = []
    traffic: list[list[Traffic]] = []
    totals: Totals | None = None
    start: StartUp | None = None
    notes: list[str] = []
    problems = layout_problems(
        settings.model,
        settings.layout,
        seq_length=settings.seq_length,
        offset=settings.offset,
        micro_batch_num=settings.micro_batch_num,
    )
    if settings.layout.num_ranks > devices:
        problems += process_problems(settings.layout, devices)
    problems += batch_problems(
        settings.layout.data_parallel, settings.batch_size, settings.passes, settings.num_samples
    )
    if not problems:
        stages = plan_memory(settings)
        traffic = [plan_traffic(settings, stage) for stage in range(settings.layout.pp)]
        totals = count_totals(settings, stages, traffic)
        start = plan_startup(settings)
        notes = plan_notes(settings, memory_bytes)
        fullest = max(stage.total for stage in stages)
        if memory_bytes is not None and fullest > memory_bytes:
            problems.append(
                f"the fullest device needs {gib(fullest)} GiB of max_device_memory {gib(memory_bytes)} GiB; "
                "take a layout from the list, more recomputation or more devices"
            )
    problem = "; ".join(problems)
    return Plan(
        settings=settings, problem=problem, memory_bytes=memory_bytes, num_devices=devices, stages=stages,
        traffic=traffic, totals=totals, start=start, notes=notes, search=search,
    )  # fmt: skip


def plan_values(plan: Plan) -> dict[str, object]:
    """Return the plan as values for JSON; sizes in bytes, times in seconds."""
    settings = plan.settings
    return {
        "layout": asdict(settings.layout) | {"data_parallel": settings.layout.data_parallel},
        "problem": plan.problem or None,
        "max_device_memory_bytes": plan.memory_bytes,
        "batch": {
            "global_batch": settings.global_batch,
            "tokens_per_step": settings.tokens_per_step,
            "steps_per_epoch": settings.steps_per_epoch,
            "epochs": settings.epochs,
        },
        "stages": [asdict(stage) | {"total": stage.total, "fullest": stage.fullest} for stage in plan.stages],
        "traffic": [[asdict(item) for item in items] for items in plan.traffic],
        "totals": _totals(plan.totals) if plan.totals else None,
        "start": asdict(plan.start) if plan.start else None,
        "layer_tensors": [
            {
                "name": tensor.name,
                "shape": tensor.shape,
                "bytes": tensor.num_bytes,
                "kept": tensor.is_kept(settings.recompute),
            }
            for tensor in (layer_tensors(settings) if plan.stages else [])
        ],
        "notes": plan.notes,
        "fitting": [_candidate_values(candidate) for candidate in plan.search.fitting],
        "too_large": [_candidate_values(candidate) for candidate in plan.search.too_large],
        "refused": plan.search.refused,
    }


def _candidate_values(candidate: Candidate) -> dict[str, object]:
    return {
        "layout": asdict(candidate.settings.layout),
        "offset": list(candidate.settings.offset),
        "recompute": candidate.settings.recompute,
        "micro_batch_num": candidate.settings.micro_batch_num,
        "gradient_accumulation_steps": candidate.settings.accumulation,
        "enable_parallel_optimizer": candidate.settings.parallel_optimizer,
        "memory_bytes": candidate.memory_bytes,
        "rough_step_s": candidate.time.total_s,
        "reason": candidate.reason,
    }


def _totals(totals: Totals) -> dict[str, object]:
    return asdict(totals) | {"checkpoint_s": totals.checkpoint_s, "resume_s": totals.resume_s}
