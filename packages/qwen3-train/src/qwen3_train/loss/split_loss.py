"""Cross entropy of logits whose vocabulary is split over the ranks of a tensor-parallel group.

Each rank takes the maximum, the sum of exponentials and the label's logit of its own share; these three
numbers per row are all that travels. The gradient softmax - onehot needs only the rank's own logits then,
which are kept as they came, in the model's type.

M rows, V this rank's share of the vocabulary, T ranks.
"""

import mindspore as ms
from mindspore import Tensor, mint, nn, ops

from qwen3_model.network.kernels.seam import Kernels
from qwen3_model.ranks.shards import Tp


class SplitCrossEntropy(nn.Cell):
    """Return (M,), each row's cross entropy in nats, and (M, 1), the logarithm of its sum of exponentials."""

    def __init__(self, tp: Tp, kernels: Kernels) -> None:
        super().__init__(auto_prefix=False)
        self.group, self.index, self.kernels = tp.group, tp.index, kernels
        self.maximum, self.sum = ops.ReduceMax(keep_dims=True), ops.auto_generate.SumExt()
        self.pick, self.join, self.exp, self.log = ops.GatherD(), ops.Concat(-1), ops.Exp(), ops.Log()
        self.split, self.zeros = ops.auto_generate.SplitWithSize(), ops.ZerosLike()

    def construct(self, logits_MV: Tensor, labels_M: Tensor) -> tuple[Tensor, Tensor]:
        logits_MV = logits_MV.astype(ms.float32)
        rows = logits_MV.shape[0]
        label_M1, is_here_M1 = self._local(logits_MV, labels_M)
        max_M1 = self.maximum(logits_MV, -1)
        sum_M1 = self.sum(self.exp(logits_MV - max_M1), (-1,), True)
        target_M1 = self.pick(logits_MV, 1, label_M1) * is_here_M1
        parts_TM3 = self.group.gather_rows(self.join((max_M1, sum_M1, target_M1))).reshape(-1, rows, 3)
        maxima_TM1, sums_TM1, targets_TM1 = self.split(parts_TM3, (1, 1, 1), 2)
        highest_M1 = self.maximum(maxima_TM1, 0)
        whole_M1 = self.sum(sums_TM1 * self.exp(maxima_TM1 - highest_M1), (0,), True)
        log_sum_M1 = self.log(whole_M1) + highest_M1
        losses_M1 = log_sum_M1 - self.sum(targets_TM1, (0,), True)
        return losses_M1.reshape(-1), log_sum_M1.reshape(-1, 1)

    def bprop(self, logits_MV: Tensor, labels_M: Tensor, out: tuple, grad: tuple) -> tuple:
        return self.slopes(logits_MV, labels_M, out[1], grad[0])[0], self.zeros(labels_M)

    def slopes(self, logits_MV: Tensor, labels_M: Tensor, log_sum_M1: Tensor, weights_M: Tensor) -> tuple:
        """Return the gradient of the logits, (softmax - onehot) * weight; None: it is whole as it is."""
        label_M1, is_here_M1 = self._local(logits_MV, labels_M)
        slope_M1 = weights_M.reshape(-1, 1)
        grad_MV = self.exp(logits_MV.astype(ms.float32) - log_sum_M1) * slope_M1
        grad_MV = self.kernels.subtract_at(grad_MV, label_M1, slope_M1 * is_here_M1)
        return grad_MV.astype(logits_MV.dtype), None

    def _local(self, logits_MV: Tensor, labels_M: Tensor) -> tuple[Tensor, Tensor]:
        """Return each label's column here, 0 where another rank has it, and whether it is here as 0 or 1."""
        width = logits_MV.shape[1]
        label_M1 = labels_M.reshape(-1, 1) - self.index * width
        is_here_M1 = mint.logical_and(label_M1 >= 0, label_M1 < width)
        return label_M1 * is_here_M1.astype(ms.int32), is_here_M1.astype(ms.float32)
