"""RMSNorm, softmax and reordering with their gradients written out, for the CPU's kernels.

MindSpore's CPU kernels that broadcast or transpose build indices of 8 bytes per element, which each of them
keeps for the life of the graph, and the gradients derived from them are up to ten times slower than these. An
outer product is a matrix product with an inner dimension of one, which has neither fault.

R rows, D width, S keys.
"""

import mindspore as ms
from mindspore import Tensor, mint, nn, ops

# Before 2.9 MindSpore's product adds up a row in one go, and is 1e-5 off from some 50,000 elements on; since
# then it does so in blocks, and many short rows take eight times as long as a few long ones.
SUMS_IN_BLOCKS = tuple(int(part) for part in ms.__version__.split(".")[:2]) >= (2, 9)
MAX_ROW = 4 << 20 if SUMS_IN_BLOCKS else 16 << 10


class RmsNorm(nn.Cell):
    """Return x * weight / sqrt(mean(x^2) + eps) row by row (Zhang and Sennrich 2019, eq. 4)."""

    def __init__(self) -> None:
        super().__init__()
        self._matmul = ops.MatMul()

    def construct(self, x_RD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        return x_RD * self._matmul(self._inverse_rms(x_RD, eps), weight_D.reshape(1, -1))

    def bprop(self, x_RD: Tensor, weight_D: Tensor, eps: float, out_RD: Tensor, grad_RD: Tensor) -> tuple:
        r, d = x_RD.shape
        inverse_R1 = self._inverse_rms(x_RD, eps)
        grad_x_RD = grad_RD * x_RD
        slope_R1 = (
            self._matmul(grad_x_RD, weight_D.reshape(-1, 1)) * inverse_R1 * inverse_R1 * inverse_R1 * (-1 / d)
        )
        direct_RD = grad_RD * self._matmul(inverse_R1, weight_D.reshape(1, -1))
        through_rms_RD = x_RD * self._matmul(slope_R1, _ones(1, d))
        return direct_RD + through_rms_RD, self._matmul(inverse_R1.reshape(1, r), grad_x_RD).reshape(-1), 0.0

    def _inverse_rms(self, x_RD: Tensor, eps: float) -> Tensor:
        d = x_RD.shape[1]
        return mint.rsqrt(self._matmul(x_RD * x_RD, _ones(d, 1)) * (1 / d) + eps)


class Softmax(nn.Cell):
    """Return the softmax of each row."""

    def __init__(self) -> None:
        super().__init__()
        self._softmax, self._matmul = ops.Softmax(-1), ops.MatMul()

    def construct(self, x_RS: Tensor) -> Tensor:
        return self._softmax(x_RS)

    def bprop(self, x_RS: Tensor, out_RS: Tensor, grad_RS: Tensor) -> tuple:
        s = x_RS.shape[1]
        product_RS = out_RS * grad_RS
        sums_RS = self._matmul(self._matmul(product_RS, _ones(s, 1)), _ones(1, s))
        return (product_RS - out_RS * sums_RS,)


class OrderRows(nn.Cell):
    """Take rows in another order; the gradient takes them back, which is cheaper than a scatter."""

    def construct(self, x_RD: Tensor, order_R: Tensor, inverse_R: Tensor) -> Tensor:
        return ops.gather(x_RD, order_R, 0)

    def bprop(
        self, x_RD: Tensor, order_R: Tensor, inverse_R: Tensor, out_RD: Tensor, grad_RD: Tensor
    ) -> tuple:
        return ops.gather(grad_RD, inverse_R, 0), ops.zeros_like(order_R), ops.zeros_like(inverse_R)


def _ones(rows: int, columns: int) -> Tensor:
    return ops.ones((rows, columns), ms.float32)


def num_rows(size: int, max_row: int = MAX_ROW) -> int:
    """Return into how many equal rows to cut elements whose squares are summed in float32, row by row.

    One row of 156 million normal numbers, the embedding of Qwen3-0.6B, comes out 4% short on a CPU; in rows
    of up to `max_row` the sum is within 1e-6, or 2e-5 where all are equal.
    """
    rows = 1
    while size > rows * max_row and size % (2 * rows) == 0:
        rows *= 2
    return rows
