"""Cross entropy of a head's outputs that are never all there at once.

The rows are taken in chunks. A chunk's logits give its losses and, in the same go, the gradients of its
hidden states and its part of the head's gradient, which is added up in float32; then they are gone. So the
backward pass computes no logits anew, and reads nothing but gradients (Hsu et al. 2024, Liger Kernel, 3.2).

A head is one product, or two where it has an adapter: logits = x W^T + low B^T.

M rows, D hidden, R rank of an adapter, V this rank's share of the vocabulary, C rows of a chunk.
"""

import mindspore as ms
from mindspore import Tensor, nn, ops

from qwen3_model.network.kernels.ascend import AscendKernels
from qwen3_model.network.kernels.seam import Kernels
from qwen3_model.ranks.shards import Tp
from qwen3_train.loss.loss_chunks import rows_of_chunk
from qwen3_train.loss.split_loss import SplitCrossEntropy


class ChunkedLoss(nn.Cell):
    """Add up the cross entropies of all rows, each times its weight.

    Its gradient takes that of the result to be 1: the result must be what is differentiated.

    Args of the call:
        inputs: What each product of the head takes, (M, D) or (M, R).
        factors: Their weights, (V, D) or (V, R), float32.
        labels_M: int32.
        weights_M: float32.

    Returns:
        float32 scalar, in nats.
    """

    def __init__(
        self, tp: Tp, kernels: Kernels, trained: tuple[bool, ...], most: int, *, has_gradients: bool
    ) -> None:
        """Take what does not change from call to call.

        Args:
            tp: How the vocabulary is split.
            kernels: The model's.
            trained: For each factor whether it takes a gradient.
            most: Logits that may be there at once.
            has_gradients: Whether the loss is differentiated.
        """
        super().__init__(auto_prefix=False)
        chunks = _Chunks(tp, kernels, trained, most, has_gradients=has_gradients)
        self.chunks, self.has_gradients = chunks, has_gradients
        self.of_one, self.of_two = _OfOneProduct(chunks), _OfTwoProducts(chunks)

    def construct(
        self, inputs: tuple[Tensor, ...], factors: tuple[Tensor, ...], labels_M: Tensor, weights_M: Tensor
    ) -> Tensor:
        if not self.has_gradients:
            return self.chunks(inputs, factors, labels_M, weights_M)[0]
        if len(inputs) == 1:
            return self.of_one(inputs[0], factors[0], labels_M, weights_M)[0]
        return self.of_two(inputs[0], factors[0], inputs[1], factors[1], labels_M, weights_M)[0]


class _OfOneProduct(nn.Cell):
    def __init__(self, chunks: "_Chunks") -> None:
        super().__init__(auto_prefix=False)
        self.chunks = chunks

    def construct(self, x_MD: Tensor, head_VD: Tensor, labels_M: Tensor, weights_M: Tensor) -> tuple:
        return self.chunks((x_MD,), (head_VD,), labels_M, weights_M)

    def bprop(self, x_MD, head_VD, labels_M, weights_M, out, gradient):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return out[1][0], out[2][0], ops.zeros_like(labels_M), ops.zeros_like(weights_M)


class _OfTwoProducts(nn.Cell):
    def __init__(self, chunks: "_Chunks") -> None:
        super().__init__(auto_prefix=False)
        self.chunks = chunks

    def construct(self, x_MD, head_VD, low_MR, wide_VR, labels_M, weights_M):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return self.chunks((x_MD, low_MR), (head_VD, wide_VR), labels_M, weights_M)

    def bprop(self, x_MD, head_VD, low_MR, wide_VR, labels_M, weights_M, out, gradient):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, PLR0913
        nothing = ops.zeros_like(labels_M), ops.zeros_like(weights_M)
        return (out[1][0], out[2][0], out[1][1], out[2][1], *nothing)


class _Chunks(nn.Cell):
    """Return the loss, the gradients of the inputs and those of the factors; zero for what is frozen."""

    def __init__(
        self, tp: Tp, kernels: Kernels, trained: tuple[bool, ...], most: int, *, has_gradients: bool
    ) -> None:
        super().__init__(auto_prefix=False)
        self.kernels, self.trained, self.most, self.has_gradients = kernels, trained, most, has_gradients
        is_plain = tp.size == 1 and not isinstance(kernels, AscendKernels)
        self.entropy: nn.Cell = _PlainCrossEntropy(kernels) if is_plain else SplitCrossEntropy(tp, kernels)
        self.join, self.sum = ops.Concat(0), ops.auto_generate.SumExt()
        # Primitives of its own: what a graph and its gradient both call by a function is lost in one of them.
        self.logits, self.rows, self.columns = (
            ops.MatMul(transpose_b=True), ops.MatMul(), ops.MatMul(transpose_a=True)
        )  # fmt: skip

    def construct(
        self, inputs: tuple[Tensor, ...], factors: tuple[Tensor, ...], labels_M: Tensor, weights_M: Tensor
    ) -> tuple:
        num_rows = inputs[0].shape[0]
        copies: tuple[Tensor, ...] = ()
        for k in range(len(factors)):
            copies = (*copies, factors[k].astype(inputs[k].dtype))
        step = rows_of_chunk(num_rows, factors[0].shape[0], self.most)
        total: Tensor | None = None
        pieces: tuple = ((),) * len(inputs)
        sums: tuple = (None,) * len(inputs)
        for first in range(0, num_rows, step):
            end = min(first + step, num_rows)
            own: tuple[Tensor, ...] = ()
            for k in range(len(inputs)):
                own = (*own, self.kernels.rows(inputs[k], first, end))
            if first > 0:
                # One chunk after the other: all at once would take the memory of all.
                own = (ops.depend(own[0], self._take_last(total, pieces, sums)), *own[1:])
            labels_C = self.kernels.rows(labels_M, first, end)
            weights_C = self.kernels.rows(weights_M, first, end)
            logits_CV = self._logits(own, copies)
            losses_C, known = self.entropy(logits_CV, labels_C)
            part = self.sum(losses_C * weights_C)
            total = part if first == 0 else total + part
            if self.has_gradients:
                slopes_CV, scale_C1 = self.entropy.slopes(logits_CV, labels_C, known, weights_C)
                sums = self._add(sums, slopes_CV, own, scale_C1)
                pieces = self._append(pieces, slopes_CV, copies, scale_C1)
        if not self.has_gradients:
            return (total,)
        return total, self._join_pieces(pieces), self._complete(sums, factors)

    def _take_last(self, total: Tensor, pieces: tuple, sums: tuple) -> tuple[Tensor, ...]:
        """Return what the chunk before has made last; a tuple with None in it is none for a graph."""
        made: tuple[Tensor, ...] = (total,)
        for k in range(len(sums)):
            if len(pieces[k]) > 0:
                made = (*made, pieces[k][-1])
            if sums[k] is not None:
                made = (*made, sums[k])
        return made

    def _logits(self, own: tuple[Tensor, ...], copies: tuple[Tensor, ...]) -> Tensor:
        logits_CV = self.logits(own[0], copies[0])
        return logits_CV if len(own) == 1 else logits_CV + self.logits(own[1], copies[1])

    def _add(self, sums: tuple, slopes_CV: Tensor, own: tuple[Tensor, ...], scale_C1: Tensor | None) -> tuple:
        """Add a chunk's part to the gradients of the factors that take one."""
        added: tuple = ()
        for k in range(len(own)):
            if not self.trained[k]:
                added = (*added, None)
                continue
            x_CD = own[k] if scale_C1 is None else own[k] * scale_C1
            part_VD = self.columns(slopes_CV, x_CD)
            if sums[k] is None:
                added = (*added, part_VD.astype(ms.float32))
            else:
                added = (*added, self.kernels.accumulate(sums[k], part_VD))
        return added

    def _append(
        self, pieces: tuple, slopes_CV: Tensor, copies: tuple[Tensor, ...], scale_C1: Tensor | None
    ) -> tuple:
        """Append a chunk's gradients of the inputs to those before."""
        appended: tuple = ()
        for k in range(len(copies)):
            piece_CD = self.rows(slopes_CV, copies[k])
            piece_CD = piece_CD if scale_C1 is None else piece_CD * scale_C1
            appended = (*appended, (*pieces[k], piece_CD))
        return appended

    def _join_pieces(self, pieces: tuple) -> tuple[Tensor, ...]:
        joined: tuple[Tensor, ...] = ()
        for each in pieces:
            joined = (*joined, each[0] if len(each) == 1 else self.join(each))
        return joined

    def _complete(self, sums: tuple, factors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        whole: tuple[Tensor, ...] = ()
        for k in range(len(sums)):
            whole = (*whole, ops.zeros_like(factors[k]) if sums[k] is None else sums[k])
        return whole


class _PlainCrossEntropy(nn.Cell):
    """The same as `SplitCrossEntropy` for a whole vocabulary on a CPU, whose broadcasts are slow.

    The rows' weights go to the small factors of the products instead of the slopes.
    """

    def __init__(self, kernels: Kernels) -> None:
        super().__init__(auto_prefix=False)
        self.kernels = kernels
        self.log_softmax, self.pick, self.exp = ops.LogSoftmax(-1), ops.GatherD(), ops.Exp()

    def construct(self, logits_CV: Tensor, labels_C: Tensor) -> tuple[Tensor, Tensor]:
        log_probs_CV = self.log_softmax(logits_CV.astype(ms.float32))
        return -self.pick(log_probs_CV, 1, labels_C.reshape(-1, 1)).reshape(-1), log_probs_CV

    def slopes(self, logits_CV: Tensor, labels_C: Tensor, log_probs_CV: Tensor, weights_C: Tensor) -> tuple:
        """Return softmax - onehot, and what its rows are to be multiplied by."""
        ones_C1 = ops.ones_like(weights_C).reshape(-1, 1)
        slopes_CV = self.kernels.subtract_at(self.exp(log_probs_CV), labels_C.reshape(-1, 1), ones_C1)
        return slopes_CV, weights_C.reshape(-1, 1)
