"""Any part of any tensor out of the files that the ranks of a run have written, whatever its layout was.

The strategy files beside a checkpoint say how each tensor was cut; a run of one process needs none.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3_model.errors import ConfigError, FormatError
from qwen3_model.safetensors_file import SafetensorsFile, open_safetensors
from qwen3_model.strategy import TensorLayout, read_strategy

Slices = tuple[slice, ...]
WHOLE = TensorLayout(dev_matrix=(1,), tensor_map=())


class RankTensors:
    """Tensors under their names, as if one process had written them."""

    def __init__(
        self, files: Mapping[int, SafetensorsFile], layouts: Mapping[int, Mapping[str, TensorLayout]]
    ) -> None:
        """Take each rank's file and the layouts of its tensors; a rank without layouts holds all whole."""
        self.first = files[min(files)]
        self._holders: dict[str, list[tuple[SafetensorsFile, Slices]]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for rank, file in files.items():
            for name, info in file.tensors.items():
                layout = layouts.get(rank, {}).get(name, WHOLE)
                shape, place = _place(tuple(info.shape), layout, rank)
                if self._shapes.setdefault(name, shape) != shape:
                    raise FormatError(
                        f"{file.path} and its strategy make {name} {shape}, other ranks {self._shapes[name]}"
                    )
                held = self._holders.setdefault(name, [])
                if all(slices != place for _, slices in held):
                    held.append((file, place))

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the whole tensor."""
        return self._shapes[name]

    def dtype(self, name: str) -> str:
        """Return safetensors' dtype."""
        return self._holders[name][0][0].tensors[name].dtype

    def release(self, name: str) -> None:
        """Take what was read of a tensor out of this process's memory again."""
        for file, _ in self._holders[name]:
            file.release(name)

    def read(self, name: str, wanted: Slices) -> tuple[str, NDArray[Any]]:
        """Return safetensors' dtype and the wanted part; no copy where one file holds all of it.

        Raises:
            FormatError: A part is in none of the files.
        """
        holders = self._holders[name]
        dtype = holders[0][0].tensors[name].dtype
        target: NDArray[Any] | None = None
        missing = int(np.prod([part.stop - part.start for part in wanted], dtype=np.int64))
        for file, held in holders:
            common = _overlap(held, wanted)
            if common is None:
                continue
            part = file.raw(name)[_relative(common, held)]
            if common == wanted:
                return dtype, part
            if target is None:
                target = np.empty([each.stop - each.start for each in wanted], part.dtype)
            target[_relative(common, wanted)] = part
            missing -= part.size
        if target is None or missing:
            raise FormatError(f"{self.first.path} and the other ranks' files do not hold all of {name}")
        return dtype, target


def open_rank_tensors(files: Mapping[int, Path], strategy: Path | None = None) -> RankTensors:
    """Open each rank's file of one step, with the strategies of its run.

    Args:
        files: By rank.
        strategy: Folder of the ranks' strategy files, or one file that merges the stages of a pipeline; the
            run's own when left out.

    Raises:
        ConfigError: Several ranks wrote the files, and a strategy file is missing.
        FormatError: A file is damaged, or files and strategies do not fit.
    """
    opened = {rank: open_safetensors(path) for rank, path in files.items()}
    if len(files) == 1:
        return RankTensors(opened, {})
    if strategy is not None and strategy.is_file():
        return RankTensors(opened, {rank: _layouts_of_stage(strategy, rank) for rank in files})
    layouts = {}
    for rank, path in files.items():
        own = strategy_path(path.parent.parent.parent, rank)
        if strategy is not None:
            own = strategy / own.name
        if not own.is_file():
            raise ConfigError(f"{own} is missing; without it nobody knows which part {path} holds")
        layouts[rank] = read_strategy(own)[1]
    return RankTensors(opened, layouts)


def open_whole_tensors(files: Iterable[SafetensorsFile]) -> RankTensors:
    """Give the tensors of files that hold each of them whole the same form."""
    return RankTensors(dict(enumerate(files)), {})


def strategy_path(run_dir: Path, rank: int) -> Path:
    """Return the strategy file of a rank."""
    return run_dir / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt"


def _layouts_of_stage(strategy: Path, rank: int) -> dict[str, TensorLayout]:
    """Return a rank's layouts out of a file for all; a pipeline's names in it are `<stage>-<name>`."""
    layouts = read_strategy(strategy)[1]
    found: dict[str, TensorLayout] = {}
    for name, layout in layouts.items():
        stage, dash, rest = name.partition("-")
        if not (dash and stage.isdigit()):
            found[name] = layout
        elif int(stage) == rank // layout.num_devices():
            found[rest] = layout
    return found


def cut_of(layout: TensorLayout, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return into how many parts each dimension is cut, and which of them `rank` holds.

    A share among replicas counts as a cut of dimension 0; strategy files have two ways to say that.
    """
    parts, piece = layout.place(rank % layout.num_devices())
    splits, pieces = layout.splits(), layout.optimizer_pieces()
    return (splits[0] * pieces, *splits[1:]), (parts[0] * pieces + piece, *parts[1:])


def _place(shape: tuple[int, ...], layout: TensorLayout, rank: int) -> tuple[tuple[int, ...], Slices]:
    """Shape of the whole tensor and what of it a rank holds as `shape`."""
    if not layout.tensor_map:
        return shape, tuple(slice(0, size) for size in shape)
    if len(layout.tensor_map) != len(shape):
        raise FormatError(f"a tensor of shape {shape} has the tensor map {layout.tensor_map}")
    splits, places = cut_of(layout, rank)
    whole = tuple(size * count for size, count in zip(shape, splits, strict=True))
    return whole, tuple(
        slice(place * size, (place + 1) * size) for place, size in zip(places, shape, strict=True)
    )


def _overlap(a: Slices, b: Slices) -> Slices | None:
    common = tuple(slice(max(x.start, y.start), min(x.stop, y.stop)) for x, y in zip(a, b, strict=True))
    return common if all(part.start < part.stop for part in common) else None


def _relative(part: Slices, to: Slices) -> Slices:
    return tuple(slice(x.start - y.start, x.stop - y.start) for x, y in zip(part, to, strict=True))
