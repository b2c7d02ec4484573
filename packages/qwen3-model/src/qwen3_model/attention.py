"""Self-attention with grouped queries, normalised queries and keys, and rotary positions.

B batch, L query length, S key length, D hidden, N query heads, K key/value heads, H head_dim, M = B * L.
"""

import mindspore as ms
from mindspore import Parameter, Tensor, nn

from qwen3_model.cache import write_and_read
from qwen3_model.config import Qwen3Config
from qwen3_model.layers import Kernels, Linear, RMSNorm


class Attention(nn.Cell):
    """Let each token gather from those that `mask` shows it.

    Queries and keys are normalised per head before they are rotated (Qwen3 technical report 2025, section 2).
    """

    def __init__(self, config: Qwen3Config, kernels: Kernels, dtype: ms.Type) -> None:
        super().__init__()
        self.kernels = kernels
        self.num_heads, self.num_kv_heads, self.head_dim = (
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
        )
        q_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, q_width, kernels, dtype)
        self.k_proj = Linear(config.hidden_size, kv_width, kernels, dtype)
        self.v_proj = Linear(config.hidden_size, kv_width, kernels, dtype)
        self.o_proj = Linear(q_width, config.hidden_size, kernels, dtype)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps, kernels, dtype)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps, kernels, dtype)

    def construct(
        self,
        x_MD: Tensor,
        cos_BL1H: Tensor,
        sin_BL1H: Tensor,
        mask: Tensor,
        cached: tuple[Parameter, Parameter, Tensor] | None = None,
    ) -> Tensor:
        heads_BLxH = (cos_BL1H.shape[0], cos_BL1H.shape[1], -1, self.head_dim)
        q_BLNH = self.q_norm(self.q_proj(x_MD).reshape(-1, self.head_dim)).reshape(heads_BLxH)
        k_BLKH = self.k_norm(self.k_proj(x_MD).reshape(-1, self.head_dim)).reshape(heads_BLxH)
        v_BLKH = self.v_proj(x_MD).reshape(heads_BLxH)
        q_BLNH = self.kernels.rotate(q_BLNH, cos_BL1H, sin_BL1H)
        k_BLKH = self.kernels.rotate(k_BLKH, cos_BL1H, sin_BL1H)
        if cached is None:
            k_BKSH, v_BKSH = k_BLKH.transpose(0, 2, 1, 3), v_BLKH.transpose(0, 2, 1, 3)
        else:
            keys, values, slots = cached
            k_BKSH, v_BKSH = write_and_read(keys, slots, k_BLKH), write_and_read(values, slots, v_BLKH)
        out_BLNH = self.kernels.attention(q_BLNH, k_BKSH, v_BKSH, mask)
        return self.o_proj(out_BLNH.reshape(x_MD.shape[0], -1))
