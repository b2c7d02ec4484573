"""Amounts of a device's memory: how they are written, and what collectives take beside MindSpore's own."""

import re

from qwen3_model.errors import UsageError

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
GROUP_BYTES = 2 * 200 * 2**20
"""A group of HCCL keeps two buffers of HCCL_BUFFSIZE, 200 MiB unless set, outside of max_device_memory."""


def parse_memory(text: str) -> int:
    """Return the bytes of mindformers' `58GB`; a GB counts 2^30 bytes, as in MindSpore.

    Raises:
        UsageError: It is no positive number with a unit.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT])(?:i?B)?\s*", text, re.IGNORECASE)
    if not found or not float(found[1]):
        raise UsageError(f"{text!r} is no amount of memory; write it like 58GB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def gib(num_bytes: int) -> str:
    """Return bytes as GiB with two decimals."""
    return f"{num_bytes / 2**30:.2f}"
