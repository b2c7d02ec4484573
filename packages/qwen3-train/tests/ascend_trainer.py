"""The trainer as on Ascend, where each graph that it would run is compiled by MindSpore's front end instead.

That needs no memory for weights, no device, and one process for any rank: what a graph returns is zeros of
the shapes and types that the front end has inferred.
"""

from types import SimpleNamespace

import mindspore as ms
import mindspore.ops.operations.comm_ops as comm_ops
import numpy as np
from mindspore import Tensor, nn
from mindspore.common.api import _cell_graph_executor as executor
from mindspore.train.mind_ir_pb2 import ModelProto, TensorProto

from qwen3_model.ranks import collectives

TYPES = {
    TensorProto.FLOAT: ms.float32,
    TensorProto.BFLOAT16: ms.bfloat16,
    TensorProto.INT32: ms.int32,
}


def install(monkeypatch):
    """Replace running by compiling; return the list to which the names of graphs and operators are added."""
    graphs, run, returned = [], nn.Cell.__call__, {}

    def call(cell, *inputs, **named):
        # A jitted `construct` is a graph of its own; other cells are parts of one.
        if not hasattr(type(cell).construct, "__wrapped__"):
            return run(cell, *inputs, **named)
        key = (cell, *map(kind, inputs))
        if key in returned:
            return returned[key]
        number, _ = executor.compile(cell, *inputs, phase="export.mindir", do_convert=False)
        model = ModelProto.FromString(executor._get_func_graph_proto(cell, number, "mind_ir"))
        operators = {node.op_type for each in (model.graph, *model.functions) for node in each.node}
        graphs.append(SimpleNamespace(name=type(cell).__name__.strip("_"), operators=operators))
        outputs = [zeros(tensor) for output in model.graph.output for tensor in tensors(output)]
        returned[key] = outputs[0] if len(outputs) == 1 else tuple(outputs)
        return returned[key]

    monkeypatch.setattr(nn.Cell, "__call__", call)
    _fake_groups(monkeypatch)
    return graphs


def kind(x):
    """What a graph is compiled for: the shape of a tensor, how many numbers, or that there is none."""
    if isinstance(x, Tensor):
        return x.shape, str(x.dtype)
    return None if x is None else (type(x).__name__, len(x) if isinstance(x, tuple) else 1)


def tensors(output):
    """What an output of a graph is made of: itself, or the members of a tuple."""
    return list(output.tensor) or [member.tensors[0] for member in output.attr_info.values]


def zeros(tensor):
    return Tensor(np.zeros(tuple(tensor.dims), np.float32)).astype(TYPES[tensor.data_type])


def _fake_groups(monkeypatch):
    """Let one process make groups of any ranks, which is enough for shapes and types."""
    sizes = {}

    def create(name, ranks, options=None):
        sizes[name] = len(ranks)

    def make(device, name, ranks, rank, *, is_world=False, **options):
        if is_world:
            sizes[collectives.WORLD] = len(ranks)
        return collectives.make_group(device, name, ranks, rank, is_world=is_world, **options)

    monkeypatch.setattr(collectives, "create_group", create)
    monkeypatch.setattr("qwen3_train.parallel.grid.make_group", make)
    monkeypatch.setattr(comm_ops, "_get_group", lambda name: name)
    monkeypatch.setattr(comm_ops, "get_group_size", lambda name: sizes[name])
    monkeypatch.setattr(comm_ops, "get_rank", lambda name: 0)
