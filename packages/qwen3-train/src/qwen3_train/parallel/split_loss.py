"""Cross entropy of logits whose vocabulary is split over the ranks of a tensor-parallel group.

Each rank takes the maximum, the sum of exponentials and the label's logit of its own share; these three
numbers per row are all that travels. The gradient softmax - onehot needs only the rank's own logits then.

M rows, V this rank's share of the vocabulary, T ranks.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, nn, ops

from qwen3_model.shards import Tp


class SplitCrossEntropy(nn.Cell):
    """Return (M, 2): each row's cross entropy in nats, and the logarithm of its sum of exponentials."""

    def __init__(self, tp: Tp) -> None:
        super().__init__(auto_prefix=False)
        self.group, self.index = tp.group, tp.index
        self.maximum, self.sum = ops.ReduceMax(keep_dims=True), ops.ReduceSum(keep_dims=True)
        self.pick, self.join, self.exp, self.log = ops.GatherD(), ops.Concat(-1), ops.Exp(), ops.Log()
        self.zeros = ops.ZerosLike()

    def construct(self, logits_MV: Tensor, labels_M: Tensor) -> Tensor:
        rows = logits_MV.shape[0]
        label_M1, is_here_M1 = self._local(logits_MV, labels_M)
        max_M1 = self.maximum(logits_MV, -1)
        sum_M1 = self.sum(self.exp(logits_MV - max_M1), -1)
        target_M1 = self.pick(logits_MV, 1, label_M1) * is_here_M1
        parts_TM3 = self.group.gather_rows(self.join((max_M1, sum_M1, target_M1))).reshape(-1, rows, 3)
        maxima_TM, sums_TM, targets_TM = parts_TM3[:, :, 0], parts_TM3[:, :, 1], parts_TM3[:, :, 2]
        highest_M = self.maximum(maxima_TM, 0)
        whole_M = self.sum(sums_TM * self.exp(maxima_TM - highest_M), 0)
        log_sum_M1 = (self.log(whole_M) + highest_M).reshape(-1, 1)
        return self.join((log_sum_M1 - self.sum(targets_TM, 0).reshape(-1, 1), log_sum_M1))

    def bprop(self, logits_MV: Tensor, labels_M: Tensor, out_M2: Tensor, grad_M2: Tensor) -> tuple:
        label_M1, is_here_M1 = self._local(logits_MV, labels_M)
        slope_M1 = grad_M2[:, :1]
        grad_MV = self.exp(logits_MV - out_M2[:, 1:]) * slope_M1
        rows_M1 = Tensor(np.arange(logits_MV.shape[0], dtype=np.int32).reshape(-1, 1))
        places_M2 = self.join((rows_M1, label_M1))
        grad_MV = ops.tensor_scatter_sub(grad_MV, places_M2, (slope_M1 * is_here_M1).reshape(-1))
        return grad_MV, self.zeros(labels_M)

    def _local(self, logits_MV: Tensor, labels_M: Tensor) -> tuple[Tensor, Tensor]:
        """Return each label's column here, 0 where another rank has it, and whether it is here as 0 or 1."""
        width = logits_MV.shape[1]
        label_M1 = labels_M.reshape(-1, 1) - self.index * width
        is_here_M1 = mint.logical_and(label_M1 >= 0, label_M1 < width)
        return label_M1 * is_here_M1.astype(ms.int32), is_here_M1.astype(ms.float32)
