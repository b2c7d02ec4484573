"""The only `Any` of the network: what the device decides the form of."""

from typing import Any, TypeAlias

DeviceForm: TypeAlias = Any
"""A value whose form the kernels choose and only they read: a tensor on one device, a number, a tuple or None
on another. A union would not do: MindSpore's stubs type neither a cell's call nor its operators, and a graph
takes no class of ours that could wrap the value."""
