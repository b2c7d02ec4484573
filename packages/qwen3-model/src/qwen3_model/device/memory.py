"""Amounts of a device's memory: how they are written, and what collectives take beside MindSpore's own."""

from qwen3_model.command.run_config import RunConfig
from qwen3_model.command.spellings import parse_memory

GROUP_BYTES = 2 * 200 * 2**20
"""A group of HCCL keeps two buffers of HCCL_BUFFSIZE, 200 MiB unless set, outside of max_device_memory."""


def gib(num_bytes: int) -> str:
    """Return bytes as GiB with two decimals."""
    return f"{num_bytes / 2**30:.2f}"


def read_memory_limit(config: RunConfig, override: int | None) -> int | None:
    """Return the bytes of a device that a plan must fit into; None where neither option nor YAML states them.

    Args:
        config: The YAML, whose context.max_device_memory is meant.
        override: Bytes of the option --max-device-memory, which comes first.

    Raises:
        ConfigError: The YAML's value is no amount of memory.
    """
    stated = config.get("context.max_device_memory")
    return override or (parse_memory(str(stated)) if stated else None)
