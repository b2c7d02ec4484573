"""Self-attention with grouped queries, normalised queries and keys, and rotary positions.

M token rows (batch * length), D hidden, R head rows (M * heads), H head_dim.
"""

import mindspore as ms
from mindspore import Tensor, nn

from qwen3_model.config import Qwen3Config
from qwen3_model.network.cache import LayerCache
from qwen3_model.network.kernels.seam import Kernels, Plan
from qwen3_model.network.layers import Linear, RMSNorm
from qwen3_model.ranks.shards import Tp


class Attention(nn.Cell):
    """Let each token gather from those that `plan` shows it.

    Queries and keys are normalised per head before they are rotated (Qwen3 technical report 2025, section 2).
    """

    def __init__(self, config: Qwen3Config, kernels: Kernels, dtype: ms.Type, tp: Tp) -> None:
        super().__init__()
        self.kernels, self.tp, self.head_dim = kernels, tp, config.head_dim
        q_width = config.num_heads // tp.size * config.head_dim
        kv_width = config.num_kv_heads // tp.size * config.head_dim
        self.q_proj = Linear(config.hidden_size, q_width, kernels, dtype)
        self.k_proj = Linear(config.hidden_size, kv_width, kernels, dtype)
        self.v_proj = Linear(config.hidden_size, kv_width, kernels, dtype)
        self.o_proj = Linear(q_width, config.hidden_size, kernels, dtype)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps, kernels, dtype)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps, kernels, dtype)

    def construct(self, x_MD: Tensor, plan: Plan, cache: LayerCache | None = None) -> Tensor:
        x_MD = self.tp.enter(x_MD)
        q_RH = self.q_norm(self.q_proj(x_MD).reshape(-1, self.head_dim))
        k_RH = self.k_norm(self.k_proj(x_MD).reshape(-1, self.head_dim))
        v_RH = self.v_proj(x_MD).reshape(-1, self.head_dim)
        q_RH = self.kernels.rotate_queries(q_RH, plan)
        k_RH = self.kernels.rotate_keys(k_RH, plan)
        if cache is None:
            k_RH, v_RH = self.kernels.heads_first(k_RH, plan), self.kernels.heads_first(v_RH, plan)
            out_RH = self.kernels.attention(q_RH, k_RH, v_RH, plan)
        else:
            out_RH = self.kernels.cached_attention(q_RH, k_RH, v_RH, plan, cache)
        return self.tp.leave(self.o_proj(out_RH.reshape(x_MD.shape[0], -1)))
