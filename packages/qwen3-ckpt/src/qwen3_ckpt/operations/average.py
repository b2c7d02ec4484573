"""The mean of several models' weights, in bounded memory.

Each element is the sum of share times value in float64, rounded to float32 and then to the first source's
type (Izmailov et al. 2018, "Averaging weights leads to wider optima"; Wortsman et al. 2022, "Model soups").
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwen3_ckpt.engine.hf_output import write_hf_folder
from qwen3_ckpt.sources.sources import need_model_files, sources_of
from qwen3_model.checkpoints.fused import FusedLayout
from qwen3_model.checkpoints.model_weights import model_weights
from qwen3_model.checkpoints.rows import Bytes, LazyTensor, cast
from qwen3_model.checkpoints.safetensors_file import NUMPY_DTYPES, SafetensorsFile, from_float32, to_float32
from qwen3_model.checkpoints.weight_files import open_checkpoint
from qwen3_model.errors import UsageError, WeightError


@dataclass(frozen=True, slots=True)
class AverageRequest:
    """What to average and how."""

    sources: tuple[Path, ...]
    """Weights of any form, of models of one shape."""
    weights: tuple[float, ...]
    """One a source, of any sum; equal ones where empty."""
    dtype: str | None
    """BF16, F16 or F32, or None for the first source's."""
    hf_dir: Path | None
    """Folder with config.json and tokenizer files; None to look beside the first source."""
    layout: FusedLayout
    """Row order of fused weights in the sources."""


class MeanRows:
    """The weighted mean of tensors of one shape."""

    def __init__(self, tensors: Sequence[LazyTensor], shares: Sequence[float]) -> None:
        self._tensors, self._shares = tensors, shares
        self.num_rows, self.row_bytes = tensors[0].rows.num_rows, tensors[0].rows.row_bytes

    def read(self, start: int, stop: int, first: int = 0, last: int | None = None) -> Bytes:
        """Return a copy."""
        total: np.ndarray | float = 0.0
        for tensor, share in zip(self._tensors, self._shares, strict=True):
            dtype = tensor.plan.dtype
            raw = np.ascontiguousarray(tensor.rows.read(start, stop)).view(NUMPY_DTYPES[dtype])
            total = total + share * to_float32(raw, dtype).astype(np.float64)
        mean = np.asarray(total).astype(np.float32)
        return from_float32(mean, self._tensors[0].plan.dtype).view(np.uint8)[:, first:last]

    def ranges(self, start: int, stop: int) -> None:
        """Return None: the bytes are computed."""

    def files(self) -> Iterator[tuple[SafetensorsFile, str]]:
        """Yield the files of all."""
        for tensor in self._tensors:
            yield from tensor.rows.files()


def average(
    request: AverageRequest, output: Path, *, force: bool, quiet: bool, shard_bytes: int
) -> tuple[list[float], list[str]]:
    """Write a Hugging Face folder of the mean; return the share of each source, and notes on the values.

    Raises:
        UsageError: There are fewer than two sources, or another number of weights.
        WeightError: A source has other weights than the first one's config makes.
        Qwen3Error: See `output_of`.
    """
    if len(request.sources) < 2:
        raise UsageError("give two or more sources to average")
    weights = request.weights or (1.0,) * len(request.sources)
    if len(weights) != len(request.sources) or not math.fsum(weights):
        raise UsageError(
            f"--weight must be given once a source, {len(request.sources)} times, with a sum other than 0"
        )
    shares = [weight / math.fsum(weights) for weight in weights]
    opened = [open_checkpoint(source) for source in request.sources]
    model = need_model_files(opened[0].path, request.hf_dir)
    found = []
    for source, checkpoint in zip(request.sources, opened, strict=True):
        try:
            found.append(model_weights(checkpoint.tensors, model.config, request.layout))
        except WeightError as error:
            raise WeightError(f"{source}: {error}") from None
    tensors = {}
    for name, first in found[0].items():
        parts = [first, *(other[name] for other in found[1:])]
        if request.dtype:
            # The first decides the type of the mean; float32 holds all others exactly.
            parts[0] = cast(first, "F32")
        mean = LazyTensor(parts[0].plan, MeanRows(parts, shares))
        tensors[name] = cast(mean, request.dtype) if request.dtype else mean
    notes = write_hf_folder(
        output, tensors, model, sources_of(request.sources, opened, model),
        force=force, quiet=quiet, shard_bytes=shard_bytes,
    )  # fmt: skip
    return shares, notes
