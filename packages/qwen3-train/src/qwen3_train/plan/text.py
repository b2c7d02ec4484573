"""A plan as text for a terminal."""

from qwen3_model.command.plain_text import counted
from qwen3_model.device.memory import gib
from qwen3_train.layout.stages import stage_layers
from qwen3_train.plan.layout_search import Candidate, grid_words
from qwen3_train.plan.memory import PARTS
from qwen3_train.plan.plan import Plan
from qwen3_train.plan.settings import PlanSettings
from qwen3_train.plan.totals import DISK_BYTES_PER_S

SHOWN = 8
"""Layouts that are listed; the JSON has all."""


def plan_text(plan: Plan) -> str:
    """Return the plan for a terminal."""
    return "\n".join(
        [*_head(plan), *_memory(plan), *_traffic(plan), *_totals(plan), *_notes(plan), *_layouts(plan)]
    )


def _head(plan: Plan) -> list[str]:
    settings, layout, model = plan.settings, plan.settings.layout, plan.settings.model
    passes = f"rows {settings.batch_size} x forward passes {settings.passes} x dp {layout.data_parallel}"
    steps = settings.steps_per_epoch
    epochs = (
        f"{counted(steps, 'step', ',')} in an epoch, {steps * settings.epochs:,} in all"
        if steps is not None
        else "steps: the data decide"
    )
    return [
        f"Model    {counted(model.num_parameters(), 'parameter', ',')}, "
        f"{counted(model.num_layers, 'layer')}, vocabulary "
        f"{model.vocab_size}",
        f"Layout   {_layout(settings)} = {_devices(layout.num_ranks)}, recomputation {settings.recompute}",
        f"Batch    {counted(settings.global_batch, 'sample', ',')} = {passes}; "
        f"{counted(settings.tokens_per_step, 'token', ',')}; "
        f"{epochs}",
    ]


def _memory(plan: Plan) -> list[str]:
    if not plan.stages:
        return ["", f"Not possible: {plan.problem}"]
    unit, size = ("GiB", 2**30) if max(stage.total for stage in plan.stages) >= 2**30 else ("MiB", 2**20)
    layers = stage_layers(plan.settings.model.num_layers, plan.settings.layout.pp, plan.settings.offset)
    lines = ["", f"Memory of a device in {unit}, for each pipeline stage"]
    rows = [
        ["", *(f"stage {stage}" for stage in range(len(layers)))],
        ["layers", *(str(len(part)) for part in layers)],
    ]
    values = [(part, [getattr(stage, part) for stage in plan.stages]) for part in PARTS]
    moments = plan.stages[0].moments
    if len(moments) > 1:
        values += [
            (f"at the {moment}", [stage.moments[moment] for stage in plan.stages]) for moment in moments
        ]
    values.append(("total", [stage.total for stage in plan.stages]))
    rows += [
        [name.replace("_", " "), *(f"{value / size:.2f}" for value in of_stages)]
        for name, of_stages in values
        if any(of_stages)
    ]
    lines += _table(rows)
    lines += _describe_outside(plan)
    if plan.problem:
        return [*lines, f"Does not fit: {plan.problem}"]
    if plan.memory_bytes is None:
        return [*lines, "No limit is given; --max-device-memory 58GB checks one."]
    fullest = max(stage.total for stage in plan.stages)
    return [*lines, f"Fits: {gib(fullest)} of {gib(plan.memory_bytes)} GiB on the fullest device."]


def _describe_outside(plan: Plan) -> list[str]:
    """What MindSpore's memory does not have, and no dry run shows."""
    stage = max(plan.stages, key=lambda stage: stage.outside)
    if not stage.outside:
        return []
    return [
        f"Beside it: {gib(stage.outside)} GiB for HCCL's buffers of {len(stage.groups)} groups "
        f"({', '.join(stage.groups)}), and what kernels need while they run, which the device alone knows.",
    ]


def _traffic(plan: Plan) -> list[str]:
    if not any(plan.traffic):
        return []
    stage = max(range(len(plan.traffic)), key=lambda at: sum(item.sent_bytes for item in plan.traffic[at]))
    rows = [["kind", "operation", "of", "times", "MiB each", "GiB sent"]]
    rows += [
        [item.kind, item.operation, item.purpose, str(item.calls),
         f"{item.payload_bytes / 2**20:.2f}", f"{item.sent_bytes / 2**30:.2f}"]
        for item in plan.traffic[stage]
    ]  # fmt: skip
    return [
        "",
        f"Sent by a device in a step (stage {stage}, which sends most)",
        *_table(rows, text_columns=3),
    ]


def _totals(plan: Plan) -> list[str]:
    totals = plan.totals
    if totals is None:
        return []
    lines = [
        f"Checkpoint: {totals.checkpoint_bytes / 1e9:,.1f} GB in {_files(plan.settings.layout.num_ranks)}, "
        f"{totals.checkpoint_s:,.0f} s at {DISK_BYTES_PER_S / 1e9:.0f} GB/s; to go on from it all ranks read "
        f"{totals.resume_bytes / 1e9:,.1f} GB, {totals.resume_s:,.0f} s (computed)"
    ]
    if totals.num_groups:
        lines.append(
            f"All devices: {totals.sent_bytes / 2**30:,.1f} GiB sent in a step, {totals.num_groups} "
            f"communication groups, {totals.idle_share:.0%} of a step idle in the pipeline"
        )
    return ["", *lines, *_start(plan)]


def _start(plan: Plan) -> list[str]:
    """What a start takes before processes meet and graphs are compiled."""
    start = plan.start
    if start is None:
        return []
    parts = []
    if start.first_data_s is not None and start.later_data_s is not None:
        again = f", later {start.later_data_s:,.1f} s" if plan.settings.keeps_indexes else " in each process"
        parts.append(f"indexes of samples {start.first_data_s:,.1f} s{again}")
    if start.weights_bytes:
        parts.append(f"{start.weights_bytes / 1e9:,.1f} GB of weights {start.weights_s:,.1f} s")
    else:
        parts.append(f"random weights {start.weights_s:,.1f} s")
    if start.look_s:
        parts.append(f"to resume, a look at every rank's file {start.look_s:,.1f} s")
    return [f"Start: {'; '.join(parts)} (computed from rates of docs/scale.md)"]


def _files(number: int) -> str:
    return counted(number, "file", ",")


def _notes(plan: Plan) -> list[str]:
    return ["", *(f"Note: {note}" for note in plan.notes)] if plan.notes else []


def _layouts(plan: Plan) -> list[str]:
    search = plan.search
    limit = f" and {gib(plan.memory_bytes)} GiB" if plan.memory_bytes is not None else ""
    lines = ["", f"Layouts of {_devices(plan.num_devices)}{limit} with this global batch, best first"]
    if not search.fitting:
        lines.append("  none fits")
    rows = [_candidate_row(candidate) for candidate in search.fitting[:SHOWN]]
    lines += _table(rows, text_columns=3) if rows else []
    if len(search.fitting) > SHOWN:
        lines.append(f"  and {len(search.fitting) - SHOWN} more; --json lists all")
    if search.too_large:
        lines += ["Too large even with full recomputation, smallest first"]
        lines += [
            f"  {_layout(item.settings)}: {gib(item.memory_bytes)} GiB" for item in search.too_large[:3]
        ]
    if search.refused:
        lines += [
            f"Impossible ({len(search.refused)})",
            *(f"  {sentence}" for sentence in search.refused[:SHOWN]),
        ]
        if len(search.refused) > SHOWN:
            lines.append(f"  and {len(search.refused) - SHOWN} more; --json lists all")
    return lines


def _candidate_row(candidate: Candidate) -> list[str]:
    recompute = f"recomputation {candidate.settings.recompute}"
    return [_layout(candidate.settings), recompute, candidate.reason, f"{gib(candidate.memory_bytes)} GiB"]


def _layout(settings: PlanSettings) -> str:
    layout = settings.layout
    extras = ", sequence parallel" if layout.sequence_parallel else ""
    extras += f", offset {list(settings.offset)}" if settings.offset else ""
    return f"{grid_words(layout)}{extras}"


def _devices(number: int) -> str:
    return counted(number, "device")


def _table(rows: list[list[str]], text_columns: int = 1) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) if at < text_columns else cell.rjust(width)
                 for at, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        lines.append("  " + "  ".join(cells).rstrip())
    return lines
