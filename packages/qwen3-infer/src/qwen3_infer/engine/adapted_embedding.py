"""An embedding with a LoRA adapter, in the products whose bits do not depend on the batch.

M rows, D width, R rank, V vocabulary of one rank.
"""

import numpy as np
from mindspore import Parameter, Tensor

from qwen3_model.network.layers import Embedding, LookUp


class AdaptedEmbedding(LookUp):
    """Look up in W + scale A^T B^T, which is the head of a tied model, too.

    `qwen3_model.network.lora.LoraEmbedding` computes the same for training, out of A and B as they are
    trained.
    """

    def __init__(
        self, base: Embedding, a_RV: np.ndarray, b_DR: np.ndarray, scale: float, *, name: str
    ) -> None:
        """Take the weight of `base`, and float32 halves of which A is cut as its rows are."""
        super().__init__(base.num_rows, base.tp)
        self.kernels, self.weight, self.scale = base.kernels, base.weight, scale
        halves = {"a_VR": np.ascontiguousarray(a_RV.T), "b_DR": b_DR, "b_RD": np.ascontiguousarray(b_DR.T)}
        self.a_VR, self.b_DR, self.b_RD = (
            Parameter(Tensor(values), name=f"{name}.{half}", requires_grad=False)
            for half, values in halves.items()
        )

    def look_up(self, rows_M: Tensor) -> Tensor:
        low_MR = self.kernels.embed(self.a_VR, rows_M) * self.scale
        return self.kernels.embed(self.weight, rows_M) + self.kernels.linear(low_MR, self.b_DR)

    def project(self, hidden_MD: Tensor) -> Tensor:
        """Return the logits that the adapted weight gives as the head of a tied model."""
        low_MR = self.kernels.linear(hidden_MD, self.b_RD) * self.scale
        return self.kernels.linear(hidden_MD, self.weight) + self.kernels.linear(low_MR, self.a_VR)
