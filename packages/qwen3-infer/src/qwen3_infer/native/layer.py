"""A decoder layer as one operation of the native kernels.

MindSpore starts each operation of a graph by itself; the seventeen of a layer take as long to start as a
token's share of the weights takes to read.

M rows (B * L), D width.
"""

from typing import Any

from mindspore import Tensor, nn

from qwen3_infer.native.kernels import NativeKernels
from qwen3_model.layers import Linear
from qwen3_model.model import DecoderLayer, Qwen3ForCausalLM, name_parameters


class NativeLayer(nn.Cell):
    """The weights of a `DecoderLayer`, under their names, and the same result to the last bit."""

    def __init__(self, layer: DecoderLayer, kernels: NativeKernels) -> None:
        super().__init__()
        self.kernels, self.eps = kernels, layer.input_layernorm.eps
        self.input_layernorm, self.self_attn = layer.input_layernorm, layer.self_attn
        self.post_attention_layernorm, self.mlp = layer.post_attention_layernorm, layer.mlp

    def construct(self, x_MD: Tensor, plan: Any, cached: Any) -> Tensor:
        attention, mlp = self.self_attn, self.mlp
        weights = (
            self.input_layernorm.weight, attention.q_norm.weight, attention.k_norm.weight,
            self.post_attention_layernorm.weight, attention.q_proj.weight, attention.k_proj.weight,
            attention.v_proj.weight, attention.o_proj.weight, mlp.gate_proj.weight, mlp.up_proj.weight,
            mlp.down_proj.weight,
        )  # fmt: skip
        return self.kernels.layer(x_MD, plan, cached, weights, self.eps)


def join_operations(model: Qwen3ForCausalLM) -> None:
    """Make one operation of each layer that has no adapter, on one process, before anything is compiled.

    Processes that share a model out add up in the middle of a layer.
    """
    kernels = model.kernels
    if not isinstance(kernels, NativeKernels) or model.tp.size > 1:
        return
    for number, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        products = (
            attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
            mlp.gate_proj, mlp.up_proj, mlp.down_proj,
        )  # fmt: skip
        if all(isinstance(product, Linear) for product in products):
            model.model.layers[number] = NativeLayer(layer, kernels)
    name_parameters(model)
