"""The next tokens of all requests of a step in one call of the native kernels, on all threads."""

import ctypes
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from qwen3_infer.native.numpy_loop import exponential_loop
from qwen3_infer.sampling.rows import Chosen, Row
from qwen3_infer.sampling.sampling import Sampling

_FIELDS = (
    "logits", "size", "temperature:f", "top_k", "top_p:f", "min_p:f", "number:f",
    "num_biased", "biased", "biases", "num_seen", "seen", "repetition:f",
    "num_counted", "counted", "subtracted",
    "allowed", "num_allowed", "num_forbidden", "forbidden",
    "wants_logprob", "num_top", "top_ids", "top_logprobs", "logprob:f", "token",
)  # fmt: skip
ROW = np.dtype([(name.partition(":")[0], np.float64 if ":" in name else np.int64) for name in _FIELDS])
"""`Row` of choose.h: float64, whole numbers and addresses."""
KNOWN = (
    "temperature", "top_k", "top_p", "min_p",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias",
)  # fmt: skip
OTHERS = [(field.name, field.default) for field in fields(Sampling) if field.name not in KNOWN]
"""Fields that choose.h does not know, and their neutral values: numpy decides for rows that set one."""


class NativeChooser:
    """Chooses as `sampling.rows.choose_row` does, but for rows of which rounding may decide."""

    def __init__(self, library: Path | str) -> None:
        """Take the function of `library`, which `native.build` has made."""
        self._choose = ctypes.CDLL(str(library)).qwen3_choose
        self._choose.restype = None
        self._choose.argtypes = ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p
        self._loop = exponential_loop()

    def choose(self, rows: Sequence[Row]) -> list[Chosen | None]:
        """Return the choice for each row; None for those that numpy has to decide."""
        num_top = sum(row.num_top for row in rows)
        top_ids, top_logprobs = np.empty(num_top, np.int64), np.empty(num_top)
        records, used, at = np.zeros(len(rows), ROW), [], 0
        for number, row in enumerate(rows):
            logits_V = row.logits_V
            flags = logits_V.flags
            if not (flags.c_contiguous and flags.writeable and logits_V.dtype == np.float32):
                logits_V = np.array(logits_V, np.float32)
            restricted, arrays = _restriction(row)
            used.append((logits_V, arrays))  # they must not go before the call has ended
            records[number] = (
                _address(logits_V), len(logits_V), *_settings(row), *restricted,
                row.logprob, row.num_top, _address(top_ids) + 8 * at, _address(top_logprobs) + 8 * at,
                0.0, -1,
            )  # fmt: skip
            at += row.num_top
        self._choose(_address(records), len(rows), *self._loop)
        return _results(rows, records, top_ids.tolist(), top_logprobs.tolist())


def _settings(row: Row) -> tuple[object, ...]:
    changes, sampling = row.penalties, row.penalties.sampling
    return (
        sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, row.number,
        changes.biased.count, changes.biased.address, changes.biases.address,
        changes.seen.count, changes.seen.address, sampling.repetition_penalty,
        changes.counted.count, changes.counted.address, changes.subtracted.address,
    )  # fmt: skip


def _restriction(row: Row) -> tuple[tuple[int, ...], tuple[np.ndarray, ...]]:
    """Return the four fields, and the arrays whose addresses are in them."""
    if row.restriction is None:
        return (0, 0, 0, 0), ()
    allowed, forbidden = row.restriction.allowed, np.array(row.restriction.forbidden, np.int64)
    words = (0, 0) if allowed is None else (_address(allowed), len(allowed))
    return (*words, len(forbidden), _address(forbidden)), (forbidden,)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _results(
    rows: Sequence[Row], records: np.ndarray, top_ids: list[int], top_logprobs: list[float]
) -> list[Chosen | None]:
    found: list[Chosen | None] = []
    tokens, logprobs, at = records["token"].tolist(), records["logprob"].tolist(), 0
    for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
        end = at + row.num_top
        sampling = row.penalties.sampling
        is_unknown = any(getattr(sampling, name) != neutral for name, neutral in OTHERS)
        if token < 0 or -1 in top_ids[at:end] or is_unknown:
            found.append(None)
        else:
            top = tuple(zip(top_ids[at:end], top_logprobs[at:end], strict=True))
            found.append(Chosen(token, logprob if row.logprob else None, top))
        at = end
    return found
