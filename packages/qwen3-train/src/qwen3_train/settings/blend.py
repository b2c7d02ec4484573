"""Several token files as one dataset, and the part of each that is for training, validation or test."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from qwen3_model.errors import ConfigError

SURPLUS = 1.005
"""Samples asked of each file over its share, so that none runs dry by rounding; part of Megatron's order."""

DECIMAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
NUMERIC = re.compile(r"[-+.,%_0-9]*[0-9][-+.,%_0-9eE]*|[-+]?(nan|inf|infinity)", re.IGNORECASE)
"""What is meant as a number, also where it is none: 0,3 or 30%."""


@dataclass(frozen=True, slots=True)
class Blend:
    """The files of a dataset and their shares."""

    prefixes: tuple[str, ...]
    """Paths without `.bin` or `.idx`."""
    weights: tuple[float, ...] | None
    """Shares that sum to 1, or None where none were given."""


def parse_blend(data_path: object, key: str) -> Blend:
    """Read `[prefix, ...]` or `[weight, prefix, weight, prefix, ...]`, also as one string with spaces.

    Raises:
        ConfigError: The list is empty, a weight is no number above 0, or a prefix has none.
    """
    items = data_path.split() if isinstance(data_path, str) else data_path
    if not isinstance(items, Sequence) or not items:
        raise ConfigError(
            f"{key}={data_path!r} names no data; give a prefix, or weights and prefixes in turn"
        )
    wrong = [item for item in items if not isinstance(item, str | int | float) or isinstance(item, bool)]
    if wrong:
        raise ConfigError(f"{key}: {wrong[0]!r} is neither a prefix nor a weight")
    texts = [str(item) for item in items]
    if not any(NUMERIC.fullmatch(text) for text in texts[::2]):
        return Blend(tuple(texts), None)
    if len(texts) % 2:
        raise ConfigError(f"{key} has {len(texts)} items; give a weight before each prefix, or before none")
    weights = [parse_number(text) for text in texts[::2]]
    for text, weight in zip(texts[::2], weights, strict=True):
        if weight is None or not 0 < weight < math.inf:
            raise ConfigError(f"{key}: the weight {text!r} must be a number above 0, such as 0.3")
    numbers = np.array(weights, dtype=np.float64)
    return Blend(tuple(texts[1::2]), tuple((numbers / numbers.sum()).tolist()))


def has_weights(blend: Blend) -> bool:
    """Return whether weights decide what is read: the weight of a single file does not."""
    return blend.weights is not None and len(blend.prefixes) > 1


def split_bounds(split: object, num_sequences: int) -> list[tuple[int, int] | None]:
    """Return the range of sequences for training, validation and test; None for a part of size 0.

    Args:
        split: Proportions like "95, 5, 0".
        num_sequences: Sequences of the file.

    Raises:
        ConfigError: `split` holds anything but numbers, none above 0, or more than three.
    """
    entries = split if isinstance(split, list | tuple) else re.split(r"[\s,;:/]+", str(split).strip())
    parts = []
    for entry in entries:
        part = parse_number(str(entry))
        if part is None or not 0 <= part < math.inf:
            raise ConfigError(
                f"split={split!r}: {str(entry)!r} is no proportion; write for example '95, 5, 0'"
            )
        parts.append(part)
    if len(parts) > 3 or sum(parts) <= 0:
        raise ConfigError(
            f"split={split!r} must be up to three proportions of train, valid and test, like '95, 5, 0'"
        )
    parts += [0.0] * (3 - len(parts))
    ends = [0.0]
    for part in parts:
        ends.append(ends[-1] + part / sum(parts))
    return [
        (round(low * num_sequences), round(high * num_sequences)) if high > low else None
        for low, high in pairwise(ends)
    ]


def samples_per_file(blend: Blend, num_samples: int | None) -> list[int | None]:
    """Return how many samples to ask of each file for `num_samples` of the blend."""
    if blend.weights is None:
        # Several files without weights are each read once, in proportion to their sizes.
        return [num_samples] if len(blend.prefixes) == 1 else [None] * len(blend.prefixes)
    if num_samples is None:
        return [None] * len(blend.prefixes)
    return [math.ceil(num_samples * weight * SURPLUS) for weight in blend.weights]


def parse_number(text: str) -> float | None:
    """Return the value of a decimal number as people write it; None for any other text."""
    return float(text) if DECIMAL.fullmatch(text) else None
