"""The communication groups of a rank, each of which takes buffers of the device beside MindSpore's memory."""

from qwen3_train.plan.settings import PlanSettings

BUFFER_BYTES = 2 * 200 * 2**20
"""A group of HCCL keeps two buffers of HCCL_BUFFSIZE, 200 MiB unless set, outside of max_device_memory."""


def groups_of_stage(settings: PlanSettings, stage: int) -> tuple[str, ...]:
    """Return what each group of a stage's rank is for, in the order in which it is made.

    All ranks are in MindSpore's own group, and in the one in which losses and norms are added up.
    """
    layout = settings.layout
    if layout.num_ranks == 1:
        return ()
    last = layout.pp - 1
    is_end = settings.model.tie_word_embeddings and last > 0 and stage in (0, last)
    wanted = (
        ("all", True),
        ("tensor parallel", layout.tp > 1),
        ("replicas", layout.dp > 1),
        ("stage before", stage > 0),
        ("stage after", stage < last),
        ("tied embedding", is_end),
        ("loss and norm", True),
    )
    return tuple(name for name, is_there in wanted if is_there)


def buffer_bytes(settings: PlanSettings, stage: int) -> int:
    """Return the bytes of the collectives' buffers on a device; a CPU has none."""
    return BUFFER_BYTES * len(groups_of_stage(settings, stage)) if settings.is_fused else 0
