"""One rank's shard of the model, and whole logits on every rank.

B rows, L new tokens a row, V vocabulary, T ranks.
"""

from dataclasses import replace

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore.communication import init

from qwen3_infer.device import Device
from qwen3_model.config import Qwen3Config
from qwen3_model.device.ascend import choose_device
from qwen3_model.network.cache import KVCache, Rows
from qwen3_model.network.model import CachedQwen3, Qwen3ForCausalLM
from qwen3_model.ranks.collectives import Group, make_group
from qwen3_model.ranks.shards import Shards, Tp, Whole


def join_ranks(device: Device, num_ranks: int, rank: int) -> Tp:
    """Meet the other ranks, which all call this first; return this one's number among the shards."""
    if num_ranks == 1:
        return Whole()
    choose_device(device.target, device.ascend)
    init()
    group = make_group(device.target, "tp", range(num_ranks), rank, is_world=True)
    return Shards(group, sequence_parallel=False)


def is_so_everywhere(tp: Tp, is_so: bool) -> bool:
    """Return whether `is_so` holds on every rank; all of them ask at the same time."""
    if tp.size == 1:
        return is_so
    total = ms.jit(Sum(tp.group).construct)(Tensor(np.array([float(is_so)], np.float32)))
    return round(float(total.asnumpy()[0])) == tp.size


class Sum(nn.Cell):
    """What all ranks have, added up; compile `construct`."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.group = group

    def construct(self, x: Tensor) -> Tensor:
        return self.group.sum(x)


def shard_config(config: Qwen3Config, tp: Tp) -> Qwen3Config:
    """Return the config with the heads of one rank, which are those that its cache keeps."""
    return replace(config, num_heads=config.num_heads // tp.size, num_kv_heads=config.num_kv_heads // tp.size)


class WholeLogits(CachedQwen3):
    """A rank's shard and cache, and all ranks' logits: everyone chooses the next token from the same bits."""

    def __init__(self, network: Qwen3ForCausalLM, cache: KVCache) -> None:
        super().__init__(network, cache)
        self.group = network.tp.group

    def construct(
        self, ids_BL: Tensor, position_ids_BL: Tensor, last_B: Tensor, rows_B: Rows = None
    ) -> Tensor:
        """Return float32 logits (B, V): of B rows, or at B positions of one."""
        part_BV = self.network(ids_BL, position_ids_BL, None, self.cache, last_B, rows_B)
        return joined(self.group, part_BV)


def joined(group: Group, part_BV: Tensor) -> Tensor:
    """Return all ranks' logits (B, V) out of this one's share of them."""
    b = part_BV.shape[0]
    if group.size == 1:
        return part_BV
    parts_TBV = group.gather_rows(part_BV).reshape(group.size, b, -1)
    if b == 1:
        return parts_TBV.reshape(1, -1)
    return parts_TBV.transpose(1, 0, 2).reshape(b, -1)
