"""The native kernels as operations of MindSpore's graphs, for processes that share a model out.

Such processes add up in the middle of a layer, through MindSpore's collectives; one process alone calls the
same kernels without MindSpore (`native.network`).

M rows, O outputs, D width, F feed-forward, B batch, L length, N query heads, J key/value heads, H head_dim,
R head rows (M * N or M * J).
"""

from collections.abc import Callable
from pathlib import Path

import mindspore as ms
from mindspore import Tensor, ops

from qwen3_model.network.cache import LayerCache
from qwen3_model.network.kernels.portable import PortableKernels
from qwen3_model.network.kernels.seam import KEY_TURNS, QUERY_TURNS, Plan, Segments


@ms.jit_class
class NativeKernels(PortableKernels):
    """The inference half of `PortableKernels`, with a compiled function for each operation of a layer.

    Keys and values are written into the cache by the operation that reads them.
    """

    def __init__(self, library: Path, *, rounds_inputs: bool = False) -> None:
        """Take the functions of `library`, which `native.build` has made.

        Args:
            library: Compiled for this machine.
            rounds_inputs: Whether products with bfloat16 weights round their inputs to bfloat16, as other
                programs do that compute in bfloat16, for processors that multiply these twice as fast.
        """
        super().__init__()
        self.rounds_inputs, self.library = rounds_inputs, str(library)

        def function(name: str, out_shape: Callable[..., object]) -> ops.Custom:
            return ops.Custom(f"{library}:{name}", out_shape, lambda *_: ms.float32, func_type="aot")

        self._embed = function("qwen3_embed", lambda w, ids: [ids[0], w[1]])
        self._linear = function("qwen3_linear", lambda x, w: [x[0], w[0]])
        self._linear_rounded = function("qwen3_linear_rounded", lambda x, w: [x[0], w[0]])
        self._norm = function("qwen3_rms_norm", lambda x, w, eps: x)
        self._swiglu = function("qwen3_swiglu", lambda gate, up: gate)
        self._turn = function("qwen3_rotate", lambda x, cos, sin: x)
        self._attention = function("qwen3_cached_attention", lambda q, *_: q)

    def embed(self, weight_VD: Tensor, ids_M: Tensor) -> Tensor:
        """Return the row of each id in float32."""
        return self._embed(weight_VD, ids_M)

    def linear(self, x_MD: Tensor, weight_OD: Tensor) -> Tensor:
        """Multiply each row by the transpose of the weight, bfloat16 or float32."""
        if self.rounds_inputs and weight_OD.dtype == ms.bfloat16:
            return self._linear_rounded(x_MD, weight_OD)
        return self._linear(x_MD, weight_OD)

    def rms_norm(self, x_MD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Scale each row to unit root mean square, then by the weight."""
        return self._norm(x_MD, weight_D, Tensor([eps], ms.float32))

    def swiglu(self, gate_MF: Tensor, up_MF: Tensor) -> Tensor:
        """Return silu(gate) * up."""
        return self._swiglu(gate_MF, up_MF)

    def plan(
        self,
        cos_BLH: Tensor,
        sin_BLH: Tensor,
        visible_BLS: Segments | None,
        num_heads: int,
        num_kv_heads: int,
    ) -> Plan:
        """Return turns of H/2 angles; positions alone say what a cached query sees."""
        turns = cos_BLH, sin_BLH
        return (cos_BLH.shape[0], cos_BLH.shape[1], num_heads, num_kv_heads), turns, turns, None, None

    def rotate_queries(self, q_RH: Tensor, plan: Plan) -> Tensor:
        """Turn pair i = (x[i], x[i + H/2]) of each query head by its angle."""
        cos_BLH, sin_BLH = plan[QUERY_TURNS]
        return self._turn(q_RH, cos_BLH, sin_BLH)

    def rotate_keys(self, k_RH: Tensor, plan: Plan) -> Tensor:
        """Turn the key heads likewise."""
        cos_BLH, sin_BLH = plan[KEY_TURNS]
        return self._turn(k_RH, cos_BLH, sin_BLH)

    def cached_attention(
        self, q_RH: Tensor, k_RH: Tensor, v_RH: Tensor, plan: Plan, cache: LayerCache
    ) -> Tensor:
        """Store new keys and values, all in the order (B, L, heads), and attend to those stored so far."""
        keys, values, _, (slots_R, _, positions_BL) = cache
        return self._attention(q_RH, k_RH, v_RH, keys, values, slots_R, positions_BL)
