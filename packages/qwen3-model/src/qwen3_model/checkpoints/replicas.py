"""Compare the ranks that should hold the same slice."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from qwen3_model.checkpoints.rows import LazyTensor, equal_rows, from_file
from qwen3_model.checkpoints.safetensors_file import SafetensorsFile
from qwen3_model.checkpoints.strategies import Stages
from qwen3_model.checkpoints.strategy import TensorLayout
from qwen3_model.errors import WeightError

# Bytes of a slice that are compared, which costs nothing: a strategy of another layout takes different slices
# for equal.
SAMPLE_BYTES = 4096
SAMPLED_TENSORS = 32


def check_replicas(files: Mapping[int, SafetensorsFile], stages: Stages) -> None:
    """Compare every slice that several ranks hold, byte by byte.

    Raises:
        WeightError: Two ranks disagree; tensor and files are named.
    """
    for name, first, file in _pairs(files, stages):
        if not _equal(name, first, file):
            raise WeightError(
                f"{name} differs between {first.path} and {file.path}, which must hold the same"
            )


def check_stage_twins(twins: Iterable[tuple[LazyTensor, LazyTensor]]) -> None:
    """Compare the tensors that two stages hold whole, byte by byte.

    Raises:
        WeightError: Two stages disagree about a tensor.
    """
    for first, other in twins:
        if not equal_rows(first.rows, other.rows):
            raise WeightError(f"{first.plan.name} differs between the stages that hold it")


def check_samples(files: Mapping[int, SafetensorsFile], stages: Stages) -> None:
    """Compare the beginnings of some slices that several ranks hold.

    Replicas that drifted differ in some slices, ranks that are no replicas differ in most.

    Raises:
        WeightError: Most slices of two ranks differ, so the strategy is of another layout.
    """
    compared: dict[tuple[Path, Path], list[tuple[str, bool]]] = {}
    pairs = _pairs(files, {stage: _sample_layouts(layouts) for stage, layouts in stages.items()})
    order = {file.path: number for number, file in enumerate(files.values())}
    # File by file: more of them than may be open would else be opened again for each tensor.
    for name, first, file in sorted(pairs, key=lambda pair: order[pair[2].path]):
        is_equal = np.array_equal(_sample(name, first), _sample(name, file))
        compared.setdefault((first.path, file.path), []).append((name, is_equal))
    for (first_path, path), slices in compared.items():
        different = [name for name, is_equal in slices if not is_equal]
        if len(different) * 2 > len(slices):
            raise WeightError(
                f"by the strategy {first_path} and {path} hold the same slices, but {len(different)} of "
                f"{len(slices)} differ, such as {different[0]}; the strategy is of another run or layout"
            )


def _pairs(
    files: Mapping[int, SafetensorsFile], stages: Stages
) -> Iterator[tuple[str, SafetensorsFile, SafetensorsFile]]:
    """Yield each slice's first holder with every other one."""
    first_rank = 0
    for stage in sorted(stages):
        devices = next(iter(stages[stage].values())).num_devices()
        for name, layout in stages[stage].items():
            holders: dict[object, SafetensorsFile] = {}
            for local in range(devices):
                file = files.get(first_rank + local)
                if file is None or name not in file.tensors:
                    continue
                first = holders.setdefault(layout.slice_of(local), file)
                if first is not file:
                    yield name, first, file
        first_rank += devices


def _sample_layouts(layouts: dict[str, TensorLayout]) -> dict[str, TensorLayout]:
    """Return a spread of the matrices; vectors are equal under most layouts."""
    matrices = [name for name, layout in layouts.items() if len(layout.tensor_map) == 2] or list(layouts)
    return {name: layouts[name] for name in matrices[:: -(-len(matrices) // SAMPLED_TENSORS)]}


def _sample(name: str, file: SafetensorsFile) -> np.ndarray:
    return file.read(name, 0, min(SAMPLE_BYTES, file.tensors[name].size_bytes))


def _equal(name: str, a: SafetensorsFile, b: SafetensorsFile) -> bool:
    return equal_rows(from_file(a, name).rows, from_file(b, name).rows)
