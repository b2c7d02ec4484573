"""Compile a cell with MindSpore's front end alone: no memory for weights, no device, no kernels."""

import mindspore as ms
import mindspore.ops.operations.comm_ops as comm_ops
import numpy as np
from mindspore import Tensor
from mindspore.common.api import _cell_graph_executor as executor


def compile_graph(cell, *inputs):
    """Infer every shape and type of the cell's graph, as `ms.export` does, and return the graph as bytes."""
    graph, _ = executor.compile(cell, *inputs, phase="export.mindir", do_convert=False)
    return executor._get_func_graph_proto(cell, graph, "mind_ir")


def ints(*shape):
    return Tensor(np.zeros(shape, np.int32))


def halves(*shape):
    return Tensor(np.zeros(shape, np.float32)).astype(ms.bfloat16)


def fake_groups(monkeypatch):
    """Let groups of any ranks be made by one process, which is enough for shapes and types."""
    sizes = {}
    monkeypatch.setattr(
        "qwen3_model.ranks.collectives.create_group", lambda name, ranks: sizes.update({name: len(ranks)})
    )
    monkeypatch.setattr(comm_ops, "_get_group", lambda name: name)
    monkeypatch.setattr(comm_ops, "get_group_size", lambda name: sizes[name])
    monkeypatch.setattr(comm_ops, "get_rank", lambda name: 0)
