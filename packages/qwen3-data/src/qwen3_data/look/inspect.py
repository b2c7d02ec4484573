"""What is in a token file: counts, lengths, decoded documents."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen3_model.text.tokens import Manifest, TokenFile, open_tokens, read_manifest

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
BAR_WIDTH = 40


@dataclass(frozen=True, slots=True)
class Inspection:
    """A token file and what was counted in it."""

    tokens: TokenFile
    manifest: Manifest | None
    num_empty: int
    """Documents without tokens."""
    quantiles: tuple[int, ...]
    """Quantiles of the sequence lengths, at QUANTILES; empty without sequences."""
    bounds: NDArray[np.int64]
    """Lower length of each histogram bar, and the end of the last: powers of two."""
    counts: NDArray[np.int64]
    """Sequences in each bar."""

    def num_samples(self, seq_length: int) -> int:
        """Return the training samples of one epoch at `seq_length`, as Megatron counts them."""
        return max(0, (self.tokens.num_tokens - 1) // seq_length)


def inspect_tokens(prefix: Path) -> Inspection:
    """Open and count a token file.

    Raises:
        FormatError: It is missing or damaged.
    """
    tokens, manifest = open_tokens(prefix), read_manifest(prefix)
    lengths = tokens.sequence_lengths
    num_empty = tokens.num_documents - int(np.count_nonzero(np.diff(tokens.document_indices)))
    quantiles: tuple[int, ...] = ()
    bounds = np.zeros(1, dtype=np.int64)
    counts = np.zeros(0, dtype=np.int64)
    if len(lengths):
        quantiles = tuple(int(value) for value in np.quantile(lengths, QUANTILES, method="nearest"))
        low = max(0, int(quantiles[0]).bit_length() - 1)
        high = max(low + 1, int(quantiles[-1]).bit_length())
        bounds = 1 << np.arange(low, high + 1, dtype=np.int64)
        bounds[0] = min(bounds[0], quantiles[0])
        counts = np.histogram(lengths, bounds)[0].astype(np.int64)
    return Inspection(tokens, manifest, num_empty, quantiles, bounds, counts)


def describe(inspection: Inspection) -> list[str]:
    """Return the lines that `qwen3-data inspect` prints first."""
    tokens, manifest = inspection.tokens, inspection.manifest
    lines = [
        f"{tokens.prefix}",
        f"  documents  {tokens.num_documents:,} ({inspection.num_empty:,} empty)",
        f"  sequences  {len(tokens.sequence_lengths):,}",
        f"  tokens     {tokens.num_tokens:,} of {tokens.dtype}, {tokens.ids.nbytes:,} bytes",
    ]
    if manifest is None:
        lines.append("  manifest   none: the tokenizer and the end-of-document id are not known")
    else:
        ends = "ends each document" if manifest.eod_appended else "is not appended"
        lines += [
            f"  tokenizer  {manifest.tokenizer_name}, vocabulary {manifest.vocab_size:,}, "
            f"sha256 {manifest.tokenizer_sha256[:12]}",
            f"  EOD        {manifest.eod_id} {ends}",
            f"  skipped    {_count(manifest.num_skipped_records)} bad records; "
            f"{_count(manifest.num_special_texts)} documents spell special tokens",
            f"  sources    {', '.join(manifest.sources[:4])}{' ...' if len(manifest.sources) > 4 else ''}",
        ]
    if inspection.quantiles:
        shown = ", ".join(
            f"{share:.0%} {length:,}" for share, length in zip(QUANTILES, inspection.quantiles, strict=True)
        )
        lines.append(f"  lengths    {shown}")
        lines += _histogram(inspection)
    return lines


def _count(number: int | None) -> str:
    return "an unknown number of" if number is None else f"{number:,}"


def _histogram(inspection: Inspection) -> list[str]:
    most = max(1, int(inspection.counts.max()))
    lines = []
    for low, high, count in zip(
        inspection.bounds[:-1], inspection.bounds[1:], inspection.counts, strict=True
    ):
        bar = "#" * max(int(BAR_WIDTH * count / most), 1 if count else 0)
        lines.append(f"  {low:>9,} to {high - 1:>9,}  {count:>11,}  {bar}")
    return lines
