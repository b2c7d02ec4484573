"""Where a run's own layout could be better, with the numbers that say so."""

from dataclasses import replace

from qwen3_train.plan.layout_search import RECOMPUTE, Candidate, Machine, assess, grid_words, search_layouts
from qwen3_train.plan.memory import plan_memory
from qwen3_train.plan.settings import PlanSettings

GIB = 2**30
WORTH = 1.1
"""A change is named when it makes a step's tokens this much faster."""
IDLE = 0.2
"""A pipeline is called idle from this share on."""


def plan_notes(settings: PlanSettings, memory_bytes: int | None) -> list[str]:
    """Return sentences on recomputation, the pipeline, the optimizer and the grid of `settings`."""
    own = assess(settings, Machine())
    notes = [
        _recompute_note(settings, own, memory_bytes),
        _pipeline_note(settings),
        _optimizer_note(settings),
        _offset_note(settings),
        _grid_note(settings, own, memory_bytes),
    ]
    return [note for note in notes if note]


def _recompute_note(settings: PlanSettings, own: Candidate, memory_bytes: int | None) -> str:
    if memory_bytes is None or settings.recompute == "none":
        return ""
    for recompute in RECOMPUTE[: RECOMPUTE.index(settings.recompute)]:
        lighter = assess(replace(settings, recompute=recompute))
        if lighter.memory_bytes <= memory_bytes:
            gain = own.time.total_s / lighter.time.total_s
            how = "without it" if recompute == "none" else f"with {recompute}"
            return (
                f"Recomputation {settings.recompute} is not needed: {how} the fullest device takes "
                f"{lighter.memory_bytes / GIB:.1f} of {memory_bytes / GIB:.1f} GiB, and a step is about "
                f"{gain:.2f} times as fast."
            )
    return ""


def _pipeline_note(settings: PlanSettings) -> str:
    pp, num = settings.layout.pp, settings.micro_batch_num
    idle = (pp - 1) / (num + pp - 1)
    if pp == 1 or idle < IDLE:
        return ""
    more = 4 * pp
    return (
        f"The pipeline of {pp} stages is idle for {idle:.0%} of a step with micro_batch_num {num}; {more} "
        f"micro-batches would leave {(pp - 1) / (more + pp - 1):.0%}."
    )


def _optimizer_note(settings: PlanSettings) -> str:
    if settings.layout.dp == 1 or settings.parallel_optimizer:
        return ""
    now = max(stage.total for stage in plan_memory(settings))
    then = max(stage.total for stage in plan_memory(replace(settings, parallel_optimizer=True)))
    return f"enable_parallel_optimizer would save {(now - then) / GIB:.2f} GiB on the fullest device."


def _offset_note(settings: PlanSettings) -> str:
    if not any(settings.offset):
        return ""
    now = [stage.total for stage in plan_memory(settings)]
    if sum(settings.offset) != 0:
        return ""
    then = [stage.total for stage in plan_memory(replace(settings, offset=()))]
    return (
        f"offset {list(settings.offset)} puts {max(now) / GIB:.1f} GiB on the fullest stage and "
        f"{min(now) / GIB:.1f} on the emptiest; without it they would be {max(then) / GIB:.1f} and "
        f"{min(then) / GIB:.1f}."
    )


def _grid_note(settings: PlanSettings, own: Candidate, memory_bytes: int | None) -> str:
    """Compare with the best grid for a global batch that every grid can split."""
    num_devices = settings.layout.num_ranks
    larger = replace(
        settings, accumulation=settings.accumulation * num_devices // settings.layout.data_parallel
    )
    best = next(iter(search_layouts(larger, num_devices, memory_bytes).fitting), None)
    if best is None or best.settings.layout == settings.layout:
        return ""
    own_speed = settings.tokens_per_step / own.time.total_s
    gain = best.settings.tokens_per_step / best.time.total_s / own_speed
    if gain < WORTH:
        return ""
    layout = best.settings.layout
    kind = best.settings.recompute
    recompute = "without recomputation" if kind == "none" else f"with {kind} recomputation"
    return (
        f"With a global batch of {best.settings.global_batch}, {grid_words(layout)} {recompute} "
        f"would fit in {best.memory_bytes / GIB:.1f} GiB and give about {gain:.1f} "
        "times the tokens per second."
    )
