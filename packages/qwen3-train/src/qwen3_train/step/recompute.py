"""Computing parts of a layer again in the backward pass, instead of keeping what they made.

On Ascend MindSpore recomputes: a whole layer, or the product of gate and up. On a CPU that keeps what a cell
with a gradient of its own takes and returns, the attention's probabilities among it, and holds more than both
parts below do by themselves (883 MB against 786 for 12 layers, 1302 without): there these stand for the whole
layer, too.

The two cells of a CPU have their inputs alone from forward to backward.
The backward pass begins with `depend` on the gradient that comes in: else the same operations would be found
to have been done, or be done at once, and everything kept after all.

M rows (B * L), R head rows (M * heads), B batch, K key/value heads, X query rows of one of them, S keys,
H head_dim, F feed-forward, D hidden.
"""

import mindspore as ms
from mindspore import Tensor, nn, ops

from qwen3_model.network.kernels.portable import PortableKernels
from qwen3_model.network.kernels.seam import Kernels, Plan
from qwen3_model.network.layers import Linear
from qwen3_model.network.model import Qwen3ForCausalLM, name_parameters
from qwen3_train.parallel.context import ContextPortableKernels
from qwen3_train.settings.recompute import ATTENTION, SWIGLU, Recompute


def apply_recompute(model: Qwen3ForCausalLM, recompute: Recompute, stage: int) -> None:
    """Change the layers of a stage, before anything is compiled; when adapters are in."""
    kernels = model.kernels
    if isinstance(kernels, PortableKernels):
        _apply_to_parts(model, kernels, recompute, stage)
        return
    # Its fused attention keeps no probabilities in the first place.
    again = _SwigluAgain()
    for number, layer in enumerate(model.model.layers):
        if recompute.is_whole(stage, number):
            layer.is_recomputed = True
            # Other stages have their forward pass in a graph of its own, and compute it anew layer by layer.
            if model.part.is_last:
                layer.recompute()
        elif SWIGLU in recompute.parts_of(stage, number):
            layer.mlp.kernels = again


def _apply_to_parts(
    model: Qwen3ForCausalLM, kernels: PortableKernels, recompute: Recompute, stage: int
) -> None:
    # One of each for all layers, so that equal layers stay equal.
    attention: _AttentionAgain | ContextPortableKernels = _AttentionAgain(kernels)
    if isinstance(kernels, ContextPortableKernels):
        attention = kernels.with_attention(_RecomputedAttention(kernels.plain))
    pair, down = _PairOnly(), _RecomputedDown(kernels)
    for number, layer in enumerate(model.model.layers):
        parts = recompute.parts_of(stage, number)
        if ATTENTION in parts:
            layer.self_attn.kernels = attention
        # An adapted product has its own dropout; it keeps what it multiplies.
        if SWIGLU in parts and type(layer.mlp.down_proj) is Linear:
            layer.mlp.kernels, layer.mlp.down_proj = pair, _DownOfPair(layer.mlp.down_proj, down)
    name_parameters(model)


def is_recomputed(layer: nn.Cell) -> bool:
    """Return whether all of a layer is computed again; on a CPU none is."""
    return getattr(layer, "is_recomputed", False)


@ms.jit_class
class _SwigluAgain:
    """The kernels of a feed-forward layer that keeps gate and up; MindSpore makes their product again."""

    def __init__(self) -> None:
        self._join, self._swiglu = ops.Concat(-1), ops.auto_generate.Swiglu().recompute()

    def swiglu(self, gate_MF: Tensor, up_MF: Tensor) -> Tensor:
        return self._swiglu(self._join((gate_MF, up_MF)), -1)


class _RecomputedAttention(nn.Cell):
    """Attention of the plain kernels that keeps queries, keys and values, not the probabilities."""

    def __init__(self, kernels: PortableKernels) -> None:
        super().__init__()
        self.kernels = kernels
        # Primitives of its own: what a graph and its gradient both call by a function is lost in one of them.
        self.gather, self.softmax, self.ones = ops.Gather(), ops.Softmax(-1), ops.Ones()
        self.add_row, self.rows = ops.BiasAdd(), ops.MatMul()
        self.a_b, self.a_bt, self.at_b = (
            ops.BatchMatMul(), ops.BatchMatMul(transpose_b=True), ops.BatchMatMul(transpose_a=True)
        )  # fmt: skip

    def construct(self, q_RH: Tensor, k_RH: Tensor, v_RH: Tensor, plan: Plan) -> Tensor:
        return self.kernels.attention(q_RH, k_RH, v_RH, plan)

    def bprop(
        self, q_RH: Tensor, k_RH: Tensor, v_RH: Tensor, plan: Plan, out_RH: Tensor, grad_RH: Tensor
    ) -> tuple:
        (b, _, _, num_kv_heads), _, _, mask, ((heads_first, tokens_first), _) = plan
        h = q_RH.shape[1]
        late_RH = ops.depend(q_RH, grad_RH) * (h**-0.5)
        q_BKXH = self._order(late_RH, heads_first).reshape(b, num_kv_heads, -1, h)
        grad_BKXH = self._order(grad_RH, heads_first).reshape(b, num_kv_heads, -1, h)
        k_BKSH, v_BKSH = k_RH.reshape(b, num_kv_heads, -1, h), v_RH.reshape(b, num_kv_heads, -1, h)
        s = k_BKSH.shape[2]
        scores_RS = self.a_bt(q_BKXH, k_BKSH).reshape(-1, s)
        if len(mask.shape) == 1:
            scores_RS = self.add_row(scores_RS.reshape(-1, mask.shape[0]), mask).reshape(-1, s)
        else:
            scores_RS = (scores_RS.reshape(mask.shape) + mask).reshape(-1, s)
        probs_RS = self.softmax(scores_RS)
        probs_BKXS = probs_RS.reshape(b, num_kv_heads, -1, s)
        product_RS = probs_RS * self.a_bt(grad_BKXH, v_BKSH).reshape(-1, s)
        sums_RS = self.rows(
            self.rows(product_RS, self.ones((s, 1), ms.float32)), self.ones((1, s), ms.float32)
        )
        scores_grad_BKXS = (product_RS - probs_RS * sums_RS).reshape(b, num_kv_heads, -1, s)
        q_grad_RH = self._order(self.a_b(scores_grad_BKXS, k_BKSH).reshape(-1, h), tokens_first)
        k_grad_RH = self.at_b(scores_grad_BKXS, q_BKXH).reshape(-1, h)
        v_grad_RH = self.at_b(probs_BKXS, grad_BKXH).reshape(-1, h)
        # Nothing asks for the plan's gradient; it must only have the plan's form.
        return q_grad_RH * (h**-0.5), k_grad_RH, v_grad_RH, plan

    def _order(self, x_RH: Tensor, order: Tensor | None) -> Tensor:
        return x_RH if order is None else self.gather(x_RH, order, 0)


@ms.jit_class
class _AttentionAgain:
    """The kernels of an attention layer, with the attention itself recomputed."""

    def __init__(self, kernels: PortableKernels) -> None:
        self.kernels, self.compute_dtype = kernels, kernels.compute_dtype
        self.recomputed = _RecomputedAttention(kernels)

    def rotate_queries(self, q_RH: Tensor, plan: Plan) -> Tensor:
        return self.kernels.rotate_queries(q_RH, plan)

    def rotate_keys(self, k_RH: Tensor, plan: Plan) -> Tensor:
        return self.kernels.rotate_keys(k_RH, plan)

    def heads_first(self, k_RH: Tensor, plan: Plan) -> Tensor:
        return self.kernels.heads_first(k_RH, plan)

    def attention(self, q_RH: Tensor, k_RH: Tensor, v_RH: Tensor, plan: Plan) -> Tensor:
        return self.recomputed(q_RH, k_RH, v_RH, plan)


@ms.jit_class
class _PairOnly:
    """Leaves gate and up as they are, for `_DownOfPair` to multiply."""

    def swiglu(self, gate_MF: Tensor, up_MF: Tensor) -> tuple[Tensor, Tensor]:
        return gate_MF, up_MF


class _DownOfPair(nn.Cell):
    """The last product of the feed-forward layer, out of gate and up."""

    def __init__(self, linear: Linear, down: "_RecomputedDown") -> None:
        super().__init__()
        self.weight, self.down = linear.weight, down

    def construct(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return self.down(pair[0], pair[1], self.weight)


class _RecomputedDown(nn.Cell):
    """linear(silu(gate) * up, weight), which keeps gate and up alone."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.rows, self.columns, self.sigmoid = ops.MatMul(), ops.MatMul(transpose_a=True), ops.Sigmoid()

    def construct(self, gate_MF: Tensor, up_MF: Tensor, weight_DF: Tensor) -> Tensor:
        return self.kernels.linear(self.kernels.swiglu(gate_MF, up_MF), weight_DF)

    def bprop(
        self, gate_MF: Tensor, up_MF: Tensor, weight_DF: Tensor, out_MD: Tensor, grad_MD: Tensor
    ) -> tuple:
        # d silu(g) = s (1 + g (1 - s)) dg with s = sigmoid(g).
        gate_MF = ops.depend(gate_MF, grad_MD)
        share_MF = self.sigmoid(gate_MF)
        silu_MF = gate_MF * share_MF
        product_grad_MF = self.rows(grad_MD, weight_DF.astype(grad_MD.dtype))
        weight_grad_DF = self.columns(grad_MD, silu_MF * up_MF).astype(weight_DF.dtype)
        gate_grad_MF = product_grad_MF * up_MF * (share_MF + silu_MF * (1.0 - share_MF))
        return gate_grad_MF, product_grad_MF * silu_MF, weight_grad_DF
