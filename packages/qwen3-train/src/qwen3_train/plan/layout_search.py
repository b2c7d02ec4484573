"""Every layout of a number of devices: which ones fit, best first, and why the others are left out.

The order rests on a rough time per step: arithmetic over the devices, the pipeline's idle share, and bytes
over the links. `Machine` holds the round figures for that; they order layouts and promise nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from qwen3_model.ranks.layout import Layout
from qwen3_train.layout.checks import pipeline_problems, tensor_problems
from qwen3_train.layout.flops import head_flops, layer_flops
from qwen3_train.layout.stages import balanced_offset, stage_layers
from qwen3_train.plan.communication import plan_traffic
from qwen3_train.plan.memory import plan_memory
from qwen3_train.plan.settings import PlanSettings

RECOMPUTE = ("none", "selective", "full")


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Speeds of a device and its links."""

    flops: float = 1.4e14
    """Floating-point operations per second that matrix products reach."""
    devices_per_node: int = 8
    node_bytes_per_s: float = 1.0e11
    """Bytes a second between devices of a node."""
    network_bytes_per_s: float = 2.0e10
    """Bytes a second between nodes, for each device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Seconds of a step, roughly."""

    compute_s: float
    """Arithmetic of the fullest stage, without waiting."""
    repeated_s: float
    """Part of it that is forward work done again: by full recomputation, and by all stages but the last."""
    idle_s: float
    """Waiting for the pipeline to fill and drain."""
    tensor_s: float
    context_s: float
    data_s: float
    pipeline_s: float

    @property
    def total_s(self) -> float:
        """Sum of all parts."""
        return self.compute_s + self.idle_s + self.tensor_s + self.context_s + self.data_s + self.pipeline_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A layout with what it costs."""

    settings: PlanSettings
    memory_bytes: int
    """Bytes that the fullest stage takes."""
    time: StepTime

    @property
    def reason(self) -> str:
        """Key by which layouts are sorted, the best first."""
        time = self.time
        shares = {
            "recomputation": time.repeated_s,
            "idle in the pipeline": time.idle_s,
            "tensor-parallel traffic": time.tensor_s,
            "context-parallel traffic": time.context_s,
            "gradient traffic": time.data_s,
            "stage traffic": time.pipeline_s,
        }
        parts = [
            f"{seconds / time.total_s:.0%} {name}"
            for name, seconds in shares.items()
            if seconds >= 0.01 * time.total_s
        ]
        return ", ".join(parts) or "nearly all of the step is arithmetic"


@dataclass(frozen=True, slots=True)
class Search:
    """The outcome of a search."""

    fitting: list[Candidate]
    """Best first."""
    too_large: list[Candidate]
    """Smallest first."""
    refused: list[str]
    """Sentences on layouts that do not divide."""


def grid_words(layout: Layout) -> str:
    """Return the numbers of a grid for a reader."""
    context = f" x cp {layout.cp}" if layout.cp > 1 else ""
    return f"dp {layout.data_parallel}{context} x tp {layout.tp} x pp {layout.pp}"


def search_layouts(
    settings: PlanSettings, num_devices: int, memory_bytes: int | None, machine: Machine | None = None
) -> Search:
    """Try all layouts of `num_devices` with the global batch of `settings`.

    For each grid the least recomputation that fits is taken; sequence parallelism wherever the sequence
    divides; context parallelism as in `settings` wherever its degree divides the replicas.
    """
    machine = machine or Machine()
    fitting: list[Candidate] = []
    too_large: list[Candidate] = []
    refused: list[str] = []
    for layout in _grids(num_devices, settings, machine):
        candidate_settings, problems = _with_layout(settings, layout)
        if candidate_settings is None:
            refused.append(f"{grid_words(layout)}: {'; '.join(problems)}")
            continue
        candidate = _least_recompute(candidate_settings, memory_bytes, machine)
        fits = memory_bytes is None or candidate.memory_bytes <= memory_bytes
        (fitting if fits else too_large).append(candidate)
    fitting.sort(key=lambda candidate: candidate.time.total_s)
    too_large.sort(key=lambda candidate: candidate.memory_bytes)
    return Search(fitting, too_large, refused)


def assess(settings: PlanSettings, machine: Machine | None = None) -> Candidate:
    """Return memory and rough time of one layout."""
    memory = max(stage.total for stage in plan_memory(settings))
    return Candidate(settings=settings, memory_bytes=memory, time=step_time(settings, machine or Machine()))


def step_time(settings: PlanSettings, machine: Machine) -> StepTime:
    """Estimate a step of the slowest stage."""
    layout, model = settings.layout, settings.model
    per_layer = layer_flops(model, settings.seq_length)
    work = repeated = 0.0
    for stage, layers in enumerate(stage_layers(model.num_layers, layout.pp, settings.offset)):
        is_last = stage == layout.pp - 1
        layers_work = len(layers) * per_layer
        head = head_flops(model) if is_last else 0
        again = layers_work * ((settings.recompute == "full") + (not is_last))
        stage_work = (2 if settings.adapters else 3) * (layers_work + head) + again
        if stage_work > work:
            work, repeated = stage_work, again
    per_device_s = settings.rows * settings.passes / layout.tp / machine.flops
    compute_s, repeated_s = work * per_device_s, repeated * per_device_s
    return StepTime(
        compute_s=compute_s,
        repeated_s=repeated_s,
        idle_s=compute_s * (layout.pp - 1) / settings.micro_batch_num,
        tensor_s=_link_s(settings, ("tp",), layout.tp, machine),
        context_s=_link_s(settings, ("cp",), layout.tp * layout.cp, machine),
        data_s=_link_s(settings, ("dp", "tied"), layout.tp * layout.dp, machine),
        pipeline_s=_link_s(settings, ("pp",), layout.num_ranks, machine),
    )


def _link_s(settings: PlanSettings, kinds: tuple[str, ...], span: int, machine: Machine) -> float:
    """Seconds for the traffic of a group whose ranks lie within `span` neighbours."""
    sent = max(
        sum(traffic.sent_bytes for traffic in plan_traffic(settings, stage) if traffic.kind in kinds)
        for stage in range(settings.layout.pp)
    )
    within = span <= machine.devices_per_node
    return sent / (machine.node_bytes_per_s if within else machine.network_bytes_per_s)


def _grids(num_devices: int, settings: PlanSettings, machine: Machine) -> Iterator[Layout]:
    for tp in _divisors(num_devices):
        if tp > machine.devices_per_node:
            continue
        for pp in _divisors(num_devices // tp):
            dp = num_devices // tp // pp
            cp = settings.layout.cp if dp % settings.layout.cp == 0 else 1
            split = tp > 1 and settings.seq_length // cp % tp == 0
            yield Layout(dp=dp, cp=cp, tp=tp, pp=pp, sequence_parallel=split)


def _with_layout(settings: PlanSettings, layout: Layout) -> tuple[PlanSettings | None, list[str]]:
    """The settings under another grid and the same global batch, or what prevents that."""
    samples, remainder = divmod(settings.global_batch, layout.data_parallel * settings.batch_size)
    problems = tensor_problems(settings.model, layout, settings.seq_length)
    if remainder or samples == 0:
        problems.append(
            f"a global batch of {settings.global_batch} does not divide by data_parallel "
            f"{layout.data_parallel} x "
            f"batch_size {settings.batch_size}"
        )
    own = settings.layout.pp == layout.pp
    num_layers = settings.model.num_layers
    offset = (
        settings.offset if own else balanced_offset(num_layers, layout.pp) if layout.pp <= num_layers else ()
    )
    if not problems:
        problems += pipeline_problems(settings.model, layout.pp, offset, samples if layout.pp > 1 else 1)
    if problems:
        return None, problems
    return replace(
        settings,
        layout=layout,
        offset=offset,
        micro_batch_num=samples if layout.pp > 1 else 1,
        accumulation=1 if layout.pp > 1 else samples,
        parallel_optimizer=settings.parallel_optimizer or layout.dp > 1,
    ), []


def _least_recompute(settings: PlanSettings, memory_bytes: int | None, machine: Machine) -> Candidate:
    for recompute in RECOMPUTE:
        candidate = assess(replace(settings, recompute=recompute), machine)
        if memory_bytes is None or candidate.memory_bytes <= memory_bytes:
            return candidate
    return candidate


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
