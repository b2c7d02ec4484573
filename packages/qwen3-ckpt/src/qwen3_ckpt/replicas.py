"""Compare the ranks that should hold the same slice."""

import numpy as np

from qwen3_ckpt.rank_files import RankFiles
from qwen3_ckpt.rows import from_file, row_windows
from qwen3_ckpt.strategies import Stages
from qwen3_model.errors import WeightError
from qwen3_model.safetensors_file import SafetensorsFile


def check_replicas(ranks: RankFiles, stages: Stages) -> None:
    """Compare every slice that several ranks hold.

    Raises:
        WeightError: Two ranks disagree; tensor and files are named.
    """
    first_rank = 0
    for stage in sorted(stages):
        devices = next(iter(stages[stage].values())).num_devices()
        for name, layout in stages[stage].items():
            holders: dict[object, SafetensorsFile] = {}
            for local in range(devices):
                file = ranks.files.get(first_rank + local)
                if file is None or name not in file.tensors:
                    continue
                first = holders.setdefault(layout.place(local), file)
                if first is not file and not _equal(name, first, file):
                    raise WeightError(
                        f"{name} differs between {first.path} and {file.path}, which must hold the same"
                    )
        first_rank += devices


def _equal(name: str, a: SafetensorsFile, b: SafetensorsFile) -> bool:
    left, right = from_file(a, name).rows, from_file(b, name).rows
    return all(np.array_equal(left.read(*window), right.read(*window)) for window in row_windows(left))
