"""Whole tensors by name, wherever their bytes lie: what training and generation read into memory."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from qwen3_model.rows import LazyTensor, Slices, from_file
from qwen3_model.safetensors_file import SafetensorsFile

MAX_MAPPED_FILES = 256
"""A mapping holds a descriptor, of which a process has few; more files than this are read into copies."""


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

    def read(self, name: str, wanted: Slices | None = None) -> tuple[str, NDArray[Any]]:
        """Return safetensors' dtype and the wanted part, or all; no copy where one mapped file holds it.

        Raises:
            FormatError: A file has become shorter, or cannot be read.
        """
        return self.dtype(name), self.lazy[name].read(wanted)

    def release(self, name: str) -> None:
        """Take what was read of a tensor, and of what lies with it, out of this process's memory again."""
        for file, held in self.lazy[name].rows.files():
            file.release(held)


def mapped(tensors: Tensors) -> Tensors:
    """Let the files of the tensors be mapped, so that parts are read without a copy; return the tensors."""
    files = {id(file): file for tensor in tensors.lazy.values() for file, _ in tensor.rows.files()}
    for file in files.values():
        file.is_mapped = len(files) <= MAX_MAPPED_FILES
    return tensors


def whole_tensors(files: Iterable[SafetensorsFile]) -> Tensors:
    """Return the tensors of files that hold each of them whole."""
    files = list(files)
    return Tensors(files[0], {name: from_file(file, name) for file in files for name in file.tensors})
