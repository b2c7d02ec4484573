"""The one seam between devices: the few operations that an accelerator has fused and a CPU has not.

`PortableKernels` is plain mathematics in float32 and runs everywhere. `AscendKernels` calls MindSpore's fused
operators in bfloat16; the tests compile its graphs, which is not the same as having run on the hardware.

B batch, L query length, S key length, N query heads, K key/value heads, G = N / K, H head_dim,
F feed-forward, M rows (B * L), D width.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, ops

from qwen3_model.errors import ConfigError

# Adding this hides a key; it is finite so that a query which sees nothing gives a mean and not NaN.
HIDDEN = -1e30
# FlashAttentionScore's compressed causal mask has this fixed size whatever the sequence length.
COMPRESSED_MASK = 2048


@ms.jit_class
class PortableKernels:
    """Plain mathematics in float32."""

    compute_dtype = ms.float32

    def __init__(self) -> None:
        # These primitives are several times faster on a CPU than mint's matmul, split and cat.
        self._matmul = ops.MatMul(transpose_b=True)
        self._scores = ops.BatchMatMul(transpose_b=True)
        self._weighted = ops.BatchMatMul()
        self._halves = ops.Split(-1, 2)
        self._join = ops.Concat(-1)

    def linear(self, x_MD: Tensor, weight_OD: Tensor) -> Tensor:
        """Multiply each row by the transpose of the weight, which stays where it is."""
        return self._matmul(x_MD, weight_OD)

    def rms_norm(self, x_MD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Scale each row to unit root mean square, then by the weight (Zhang and Sennrich 2019, eq. 4)."""
        x32_MD = x_MD.astype(ms.float32)
        x32_MD = x32_MD * mint.rsqrt(mint.mean(x32_MD * x32_MD, dim=-1, keepdim=True) + eps)
        return weight_D * x32_MD.astype(x_MD.dtype)

    def rotate(self, x_BLNH: Tensor, cos_BL1H: Tensor, sin_BL1H: Tensor) -> Tensor:
        """Turn pair i = (x[i], x[i + H/2]) by its angle; the tables have H/2 entries (Su et al. 2021)."""
        first, second = self._halves(x_BLNH)
        return self._join((first * cos_BL1H - second * sin_BL1H, second * cos_BL1H + first * sin_BL1H))

    def swiglu(self, gate_MF: Tensor, up_MF: Tensor) -> Tensor:
        """Return silu(gate) * up (Shazeer 2020)."""
        return mint.nn.functional.silu(gate_MF) * up_MF

    def causal_mask(self, length: int) -> Tensor:
        """Return the mask with which each query sees itself and what came before."""
        return Tensor(np.triu(np.full((length, length), HIDDEN, np.float32), 1)).reshape(
            1, 1, 1, length, length
        )

    def mask(self, visible_BLS: Tensor) -> Tensor:
        """Return the mask for `attention` with which queries see the keys where `visible_BLS` is true."""
        b, length, s = visible_BLS.shape
        return mint.where(visible_BLS, 0.0, HIDDEN).astype(ms.float32).reshape(b, 1, 1, length, s)

    def attention(self, q_BLNH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask: Tensor) -> Tensor:
        """Return softmax(q k^T / sqrt(H) + mask) v as (B, L, N, H); `mask` comes from one of the two above.

        The G query heads of a key/value head are rows of one matrix, so keys and values are never repeated.
        """
        b, length, n, h = q_BLNH.shape
        k, s = k_BKSH.shape[1], k_BKSH.shape[2]
        q_BKGLH = q_BLNH.reshape(b, length, k, n // k, h).transpose(0, 2, 3, 1, 4)
        scores_BKMS = self._scores(q_BKGLH.reshape(b, k, (n // k) * length, h), k_BKSH)
        scores_BKGLS = scores_BKMS.reshape(b, k, n // k, length, s).astype(ms.float32) * (h**-0.5) + mask
        probs_BKGLS = mint.nn.functional.softmax(scores_BKGLS, dim=-1).astype(q_BLNH.dtype)
        out_BKMH = self._weighted(probs_BKGLS.reshape(b, k, (n // k) * length, s), v_BKSH)
        return out_BKMH.reshape(b, k, n // k, length, h).transpose(0, 3, 1, 2, 4).reshape(b, length, n, h)


@ms.jit_class
class AscendKernels:
    """MindSpore's fused operators for Ascend, in bfloat16."""

    compute_dtype = ms.bfloat16

    def __init__(self) -> None:
        self._matmul = ops.MatMul(transpose_b=True)
        self._join = ops.Concat(-1)

    def linear(self, x_MD: Tensor, weight_OD: Tensor) -> Tensor:
        """Multiply each row by the transpose of the weight."""
        return self._matmul(x_MD, weight_OD)

    def rms_norm(self, x_MD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Scale each row to unit root mean square, then by the weight."""
        return ops.rms_norm(x_MD, weight_D, eps)[0]

    def rotate(self, x_BLNH: Tensor, cos_BL1H: Tensor, sin_BL1H: Tensor) -> Tensor:
        """Turn pair i = (x[i], x[i + H/2]) by its angle; the tables have H/2 entries."""
        cos = self._join((cos_BL1H, cos_BL1H)).astype(x_BLNH.dtype)
        sin = self._join((sin_BL1H, sin_BL1H)).astype(x_BLNH.dtype)
        return ops.rotary_position_embedding(x_BLNH, cos, sin, 0)

    def swiglu(self, gate_MF: Tensor, up_MF: Tensor) -> Tensor:
        """Return silu(gate) * up."""
        return ops.swiglu(self._join((gate_MF, up_MF)), -1)

    def causal_mask(self, length: int) -> Tensor:
        """Return the operator's compressed mask: its size does not depend on the length."""
        return Tensor(np.triu(np.ones((COMPRESSED_MASK, COMPRESSED_MASK), np.uint8), 1))

    def mask(self, visible_BLS: Tensor) -> Tensor:
        """Return the mask for `attention`; the operator wants 1 where a key is hidden."""
        b, length, s = visible_BLS.shape
        return mint.logical_not(visible_BLS).astype(ms.uint8).reshape(b, 1, length, s)

    def attention(self, q_BLNH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask: Tensor) -> Tensor:
        """Return softmax(q k^T / sqrt(H) + mask) v as (B, L, N, H), in tiles that never hold all scores."""
        n, h = q_BLNH.shape[2], q_BLNH.shape[3]
        sparse_mode = 2 if len(mask.shape) == 2 else 0
        out_BNLH = ops.flash_attention_score(
            q_BLNH.transpose(0, 2, 1, 3), k_BKSH, v_BKSH, n,
            attn_mask=mask, scalar_value=h**-0.5, input_layout="BNSD", sparse_mode=sparse_mode,
        )  # fmt: skip
        return out_BNLH.transpose(0, 2, 1, 3)


def make_kernels(device_target: str) -> PortableKernels | AscendKernels:
    """Return the kernels of `device_target`, MindSpore's name of a device.

    Raises:
        ConfigError: The device is neither CPU nor Ascend.
    """
    if device_target == "Ascend":
        return AscendKernels()
    if device_target == "CPU":
        return PortableKernels()
    raise ConfigError(f"device_target={device_target!r} is not supported; use CPU or Ascend")
