"""Amounts of a device's memory: how they are written, and what collectives take beside MindSpore's own."""

GROUP_BYTES = 2 * 200 * 2**20
"""A group of HCCL keeps two buffers of HCCL_BUFFSIZE, 200 MiB unless set, outside of max_device_memory."""


def gib(num_bytes: int) -> str:
    """Return bytes as GiB with two decimals."""
    return f"{num_bytes / 2**30:.2f}"
