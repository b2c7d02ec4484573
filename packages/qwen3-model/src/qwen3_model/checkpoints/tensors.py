"""Whole tensors by name, wherever their bytes lie: what training and generation read into memory."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Self

import numpy as np
from numpy.typing import NDArray

from qwen3_model.checkpoints.byte_writer import FileRange
from qwen3_model.checkpoints.rows import LazyTensor, Slices, from_file
from qwen3_model.checkpoints.safetensors_file import NUMPY_DTYPES, SafetensorsFile


class TensorPart:
    """A part of a tensor in files: sliced like an array, and read where an array is wanted.

    Nothing is mapped, so that a file that is cut short meanwhile is a FormatError and no signal.
    """

    def __init__(self, tensor: LazyTensor, wanted: Slices | None = None) -> None:
        self._tensor = tensor
        self._wanted = wanted or tuple(slice(0, size) for size in tensor.plan.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each dimension."""
        return tuple(part.stop - part.start for part in self._wanted)

    @property
    def nbytes(self) -> int:
        """Bytes of the part in its file's type."""
        return math.prod(self.shape) * NUMPY_DTYPES[self._tensor.plan.dtype].itemsize

    def __getitem__(self, wanted: slice | Slices) -> Self:
        """Return a part of the part; each slice has a step of 1."""
        inner = wanted if isinstance(wanted, tuple) else (wanted,)
        cut = [
            slice(outer.start + first, outer.start + stop)
            for outer, size, part in zip(self._wanted, self.shape, inner, strict=False)
            for first, stop, _ in [part.indices(size)]
        ]
        return type(self)(self._tensor, (*cut, *self._wanted[len(cut) :]))

    def ranges(self) -> list[FileRange] | None:
        """Return where the bytes lie in files, in their order; None where they lie nowhere as they are."""
        sizes = self._tensor.plan.shape
        if not sizes or self._wanted[1:] != tuple(slice(0, size) for size in sizes[1:]):
            return None
        return self._tensor.rows.ranges(self._wanted[0].start, self._wanted[0].stop)

    def __array__(self, dtype: object = None, copy: bool | None = None) -> NDArray[np.generic]:
        """Read it; BF16 comes as uint16.

        Raises:
            FormatError: A file has become shorter, or cannot be read.
        """
        return self._tensor.read(self._wanted)


class Tensors:
    """Tensors under their names, as if one process had written them to one file."""

    def __init__(self, first: SafetensorsFile, lazy: Mapping[str, LazyTensor]) -> None:
        self.first = first
        """A file of them, for what its metadata say."""
        self.lazy = dict(lazy)
        """The tensors themselves, for those who copy them without reading them."""

    def __contains__(self, name: str) -> bool:
        return name in self.lazy

    def __iter__(self) -> Iterator[str]:
        return iter(self.lazy)

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self.lazy)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the whole tensor."""
        return self.lazy[name].plan.shape

    def dtype(self, name: str) -> str:
        """Return safetensors' dtype."""
        return self.lazy[name].plan.dtype

    def part(self, name: str, wanted: Slices | None = None) -> tuple[str, TensorPart]:
        """Return safetensors' dtype and the wanted part, or all, of which nothing has been read yet."""
        return self.dtype(name), TensorPart(self.lazy[name], wanted)

    def read(self, name: str, wanted: Slices | None = None) -> tuple[str, NDArray[np.generic]]:
        """Return safetensors' dtype and the wanted part, or all, as a copy.

        Raises:
            FormatError: A file has become shorter, or cannot be read.
        """
        return self.dtype(name), self.lazy[name].read(wanted)


def whole_tensors(files: Iterable[SafetensorsFile]) -> Tensors:
    """Return the tensors of files that hold each of them whole."""
    files = list(files)
    return Tensors(files[0], {name: from_file(file, name) for file in files for name in file.tensors})
