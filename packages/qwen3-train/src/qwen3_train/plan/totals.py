"""What a whole job writes, sends and sets up, which grows with the number of devices."""

import math
from dataclasses import dataclass

from qwen3_train.layout.stages import is_cut_by_rows
from qwen3_train.plan.communication import Traffic, trained_shapes
from qwen3_train.plan.groups import is_own
from qwen3_train.plan.memory import WEIGHT_BYTES, StageMemory
from qwen3_train.plan.settings import PlanSettings

DISK_BYTES_PER_S = 2e10
"""Assumed of the file system that all nodes share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """Sums over all ranks of a job."""

    checkpoint_bytes: int
    """Bytes of one checkpoint: what every rank writes of the weights that it trains and of its moments."""
    resume_bytes: int
    """What all ranks together read to go on from one: each its slices, where replicas do not send each other
    what they all hold."""
    unique_bytes: int
    """Bytes of one of its replicas without ZeRO-1: what there is to save."""
    sent_bytes: int
    """Bytes that all ranks together send in a step."""
    num_groups: int
    """Communication groups of the job."""
    idle_share: float
    """Part of a step in which a stage of the pipeline waits for it to fill and drain (1F1B)."""

    @property
    def checkpoint_s(self) -> float:
        """Seconds that a checkpoint takes at `DISK_BYTES_PER_S`."""
        return self.checkpoint_bytes / DISK_BYTES_PER_S

    @property
    def resume_s(self) -> float:
        """Seconds that its reading takes at `DISK_BYTES_PER_S`."""
        return self.resume_bytes / DISK_BYTES_PER_S


def count_totals(settings: PlanSettings, stages: list[StageMemory], traffic: list[list[Traffic]]) -> Totals:
    """Add up what the ranks of each stage do."""
    layout = settings.layout
    ranks_of_stage = layout.dp * layout.tp
    # A gradient, or its sum, is as large as what it is of, and so is each of the two moments.
    trained = [max(stage.gradients, stage.gradient_sums) for stage in stages]
    unique = layout.tp * 3 * sum(trained)
    moments = 2 * WEIGHT_BYTES * sum(_count_saved(settings, stage) for stage in range(layout.pp))
    written = ranks_of_stage * (sum(trained) + moments)
    return Totals(
        checkpoint_bytes=unique if settings.shares_writing else written,
        resume_bytes=unique
        if settings.broadcasts
        else ranks_of_stage * (sum(trained) + sum(stage.optimizer for stage in stages)),
        unique_bytes=unique,
        sent_bytes=ranks_of_stage * sum(item.sent_bytes for items in traffic for item in items),
        num_groups=_num_groups(settings),
        idle_share=(layout.pp - 1) / (settings.micro_batch_num + layout.pp - 1),
    )


def _count_saved(settings: PlanSettings, stage: int) -> int:
    """Elements of each moment in a rank's file: a replica's rows, or all where it has no rows of its own."""
    dp = settings.layout.dp if settings.parallel_optimizer else 1
    shapes = trained_shapes(settings, stage).values()
    return sum(math.prod(shape) // (dp if is_cut_by_rows(shape, dp) else 1) for shape in shapes)


def _num_groups(settings: PlanSettings) -> int:
    layout = settings.layout
    dp, tp, pp = layout.dp, layout.tp, layout.pp
    if layout.num_ranks == 1:
        return 0
    links = (pp - 1) * dp * tp
    is_tied = settings.model.tie_word_embeddings and pp > 1
    return (
        1
        + is_own(settings, layout.num_ranks)
        + dp * pp * is_own(settings, tp)
        + tp * pp * is_own(settings, dp)
        + dp // layout.cp * tp * pp * (layout.cp < dp and is_own(settings, layout.cp))
        + links
        + dp * tp * (is_tied and is_own(settings, 2))
    )
