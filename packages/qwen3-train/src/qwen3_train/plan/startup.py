"""How long a start takes before processes, compilation and the first step: data, the ranks' files, weights.

The rates are rows of docs/scale.md: CPU seconds of one core that `tools/bench_scale` measured, and the rate
that is assumed of a shared file system.
"""

import math
from dataclasses import dataclass

from qwen3_model.checkpoints.fresh_weights import BLOCK_ROWS, NUM_THREADS
from qwen3_model.ranks.layout import placement
from qwen3_train.layout.stages import stage_names
from qwen3_train.plan.layout_search import Machine
from qwen3_train.plan.settings import PlanSettings
from qwen3_train.plan.totals import DISK_BYTES_PER_S

DOCUMENT_TOKENS = 1000
"""Assumed of the data, whose files `plan` does not open."""
INDEX_S = 0.22e-6
"""Seconds a document, to make the sample index (`bench_scale index`)."""
ORDER_S, ORDER_OF_FILE_S = 23e-9, 0.53e-9
"""Seconds a sample, to make the order of a blend, and besides for each of its files (`bench_scale blend`)."""
FINGERPRINT_S = 10e-9
"""Seconds a document, for the hash of all lengths: SHA-256 at about 1 GB/s."""
MAP_S = 2e-3
"""Seconds a file whose index is there: 2 MB are hashed to name it."""
LOOK_S = 1.8e-3
"""Seconds a rank, at whose file the launcher looks before it resumes (`bench_scale resume`)."""
FRESH_PER_S = 60e6
"""Random numbers a second of a core (`bench_scale fresh`)."""
HF_BYTES = 2
"""Bytes of an element in a Hugging Face folder, which is bfloat16 as released."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StartUp:
    """Seconds of a start, computed."""

    first_data_s: float | None
    """Seconds to make the indexes of samples; None where the data decide, or are no token files."""
    later_data_s: float | None
    """Seconds to find the indexes made."""
    look_s: float
    """Seconds in which the launcher looks at every rank's file before a run is resumed."""
    weights_bytes: int
    """What all ranks together read of weights to begin with; 0 for random ones."""
    weights_s: float
    """Seconds to read the weights, or to make random ones on the slowest rank."""


def plan_startup(settings: PlanSettings) -> StartUp:
    """Count what a start does before its processes meet."""
    first_s, later_s = _data_s(settings)
    read = 0
    if settings.reads_weights:
        replicas = 1 if settings.broadcasts else settings.layout.dp
        read = HF_BYTES * settings.model.num_parameters() * replicas
    made = max(_numbers_made(settings, stage) for stage in range(settings.layout.pp))
    weights_s = read / DISK_BYTES_PER_S if read else made / FRESH_PER_S / NUM_THREADS
    ranks = settings.layout.num_ranks
    return StartUp(
        first_data_s=first_s,
        later_data_s=later_s,
        look_s=LOOK_S * ranks if ranks > 1 else 0.0,
        weights_bytes=read,
        weights_s=weights_s,
    )


def _data_s(settings: PlanSettings) -> tuple[float | None, float | None]:
    """Return the seconds of a first and of a later start; nodes that keep indexes share out the files."""
    files = settings.num_files
    if settings.num_samples is None or not files:
        return None, None
    documents = settings.num_samples * settings.seq_length / DOCUMENT_TOKENS
    nodes = math.ceil(settings.layout.num_ranks / Machine().devices_per_node) if settings.keeps_indexes else 1
    index_s = INDEX_S * documents / files * math.ceil(files / nodes)
    order_s = settings.num_samples * (ORDER_S + ORDER_OF_FILE_S * files) if files > 1 else 0.0
    first_s = index_s + order_s + FINGERPRINT_S * documents
    return first_s, MAP_S * files if settings.keeps_indexes else first_s


def _numbers_made(settings: PlanSettings, stage: int) -> int:
    """Return the random numbers that a rank makes: whole blocks of rows, of columns those of all shards."""
    model, layout, total = settings.model, settings.layout, 0
    for name in stage_names(model, layout.pp, settings.offset, stage):
        shape = model.weight_shapes()[name]
        if len(shape) == 1:
            continue
        rows = shape[0] // layout.tp if placement(name)[0] == "tp" else shape[0]
        total += min(shape[0], math.ceil(rows / BLOCK_ROWS) * BLOCK_ROWS) * shape[1]
    return total
