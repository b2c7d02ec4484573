"""The communication groups of a rank, each of which takes buffers of the device beside MindSpore's memory."""

from qwen3_model.device.memory import GROUP_BYTES
from qwen3_train.layout.stages import PAIR_BUFFER_MIB
from qwen3_train.plan.settings import PlanSettings

ALL, BEFORE, AFTER, ENDS = "all", "stage before", "stage after", "tied embedding"
BUFFERS = dict.fromkeys((BEFORE, AFTER, ENDS), 2 * PAIR_BUFFER_MIB * 2**20)
"""Bytes of buffers of the groups that set their own."""


def groups_of_stage(settings: PlanSettings, stage: int) -> tuple[str, ...]:
    """Return what each group of a stage's rank is for, in the order in which it is made.

    All ranks are in MindSpore's own group. On Ascend it also adds up losses and norms, and stands for any
    other group that has all ranks; on a CPU each of these is one more.
    """
    layout, is_last = settings.layout, stage == settings.layout.pp - 1
    if layout.num_ranks == 1:
        return ()

    is_end = settings.model.tie_word_embeddings and layout.pp > 1 and (stage == 0 or is_last)
    wanted = (
        (ALL, True),
        ("tensor parallel", is_own(settings, layout.tp)),
        ("replicas", is_own(settings, layout.dp)),
        ("context parallel", layout.cp < layout.dp and is_own(settings, layout.cp)),
        (BEFORE, stage > 0),
        (AFTER, not is_last),
        (ENDS, is_end and is_own(settings, 2)),
        ("loss and norm", is_own(settings, layout.num_ranks)),
    )
    return tuple(name for name, is_there in wanted if is_there)


def is_own(settings: PlanSettings, size: int) -> bool:
    """Return whether ranks of such a number make a group of their own."""
    return size > 1 and not (settings.is_fused and size == settings.layout.num_ranks)


def buffer_bytes(settings: PlanSettings, stage: int) -> int:
    """Return the bytes of the collectives' buffers on a device; a CPU has none."""
    if not settings.is_fused:
        return 0
    return sum(BUFFERS.get(name, GROUP_BYTES) for name in groups_of_stage(settings, stage))
