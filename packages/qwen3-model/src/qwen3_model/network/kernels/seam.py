"""The one seam between the network and a device: what layers, losses and optimizers ask of its kernels.

`portable.PortableKernels` is plain mathematics in float32 and runs everywhere; `ascend.AscendKernels` calls
MindSpore's fused operators. `choice.make_kernels` chooses once, from the device; the choice is an argument
from there on. Other packages derive kernels of their own (compiled C++, a shared sequence) from these two.

A call of the model makes one `Plan`, which every layer gets: what positions and mask come to on the device.
Its fields are named by the constants below and by unpacking, for a plan has to be a plain tuple: in a
compiled graph MindSpore (2.10) reads a NamedTuple's fields through the Python interpreter, and the gradient
of whatever is computed with them is silently zero.

B batch, L query length, S key length, N query heads, K key/value heads, H head_dim, F feed-forward, V
vocabulary, M rows (B * L), R head rows (B * L * N or B * L * K), D width.
"""

from typing import Final, Protocol, TypeAlias

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from qwen3_model.config import Qwen3Config
from qwen3_model.network.cache import KVCache, LayerCache
from qwen3_model.network.forms import DeviceForm

Sizes = tuple[int, int, int, int]
"""B, L, N and K of a call."""
Turns = tuple[Tensor, Tensor]
"""Cosine and sine by which heads are rotated, in the form that the device's `rotate_*` takes."""
Own: TypeAlias = DeviceForm
"""What the device alone reads: orders of rows, ends of documents, plans of chunks."""
Plan = tuple[Sizes, Turns, Turns, Tensor, Own]
"""Sizes; turns of queries; turns of keys; what hides keys, in the device's form, or None; the device's
own."""
SIZES: Final = 0
QUERY_TURNS: Final = 1
KEY_TURNS: Final = 2
MASK: Final = 3
OWN: Final = 4
Scalar: TypeAlias = DeviceForm
"""A number of the optimizer's update: a tensor of one element on a CPU, a float on Ascend."""
Segments: TypeAlias = Tensor | tuple[int, ...]
"""Which tokens are of one document: numbers (B, L), visible keys (B, L, S), or the ends of documents."""


class Kernels(Protocol):
    """A device's operations, for compiled graphs, but for `make_cache`, `segments` and `adam_scalars`."""

    compute_dtype: ms.Type
    """Type of activations."""
    residual_dtype: ms.Type
    """Type of the stream that layers add to."""
    clears_nan: bool
    """Whether `clear` sets NaN to zero, too."""

    def make_cache(self, config: Qwen3Config, num_rows: int, capacity: int) -> KVCache:
        """Return room for `capacity` tokens in each of `num_rows` rows."""

    def embed(self, weight_VD: Tensor, ids_M: Tensor) -> Tensor:
        """Return the row of each id, in `compute_dtype`."""

    def pick(self, x_MD: Tensor, rows_R: Tensor) -> Tensor:
        """Return those rows."""

    def columns(self, weight_RV: Tensor, ids_M: Tensor) -> Tensor:
        """Return the column of each id, (R, M)."""

    def linear(self, x_MD: Tensor, weight_OD: Tensor) -> Tensor:
        """Multiply each row by the transpose of the weight."""

    def rms_norm(self, x_MD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Scale each row to unit root mean square, then by the weight (Zhang and Sennrich 2019, eq. 4)."""

    def swiglu(self, gate_MF: Tensor, up_MF: Tensor) -> Tensor:
        """Return silu(gate) * up (Shazeer 2020)."""

    def plan(
        self,
        cos_BLH: Tensor,
        sin_BLH: Tensor,
        visible_BLS: Segments | None,
        num_heads: int,
        num_kv_heads: int,
    ) -> Plan:
        """Return the plan of a call.

        Args:
            cos_BLH: Cosine of each position's H/2 angles.
            sin_BLH: Sine of the same.
            visible_BLS: Which keys a query sees, or what `segments` returns; None is the causal order.
            num_heads: N.
            num_kv_heads: K.
        """

    def segments(self, ids_BL: np.ndarray) -> Segments:
        """Return what a graph takes for the documents with these numbers, which it keeps apart."""

    def rotate_queries(self, q_RH: Tensor, plan: Plan) -> Tensor:
        """Turn pair i = (x[i], x[i + H/2]) of each query head by its angle (Su et al. 2021, eq. 34)."""

    def rotate_keys(self, k_RH: Tensor, plan: Plan) -> Tensor:
        """Turn the key heads likewise."""

    def heads_first(self, k_RH: Tensor, plan: Plan) -> Tensor:
        """Bring keys or values, rows in the order (B, L, K), into the order that `attention` takes."""

    def attention(self, q_RH: Tensor, k_RH: Tensor, v_RH: Tensor, plan: Plan) -> Tensor:
        """Return softmax(q k^T / sqrt(H) + mask) v for queries and in the order (B, L, N)."""

    def cached_attention(
        self, q_RH: Tensor, k_RH: Tensor, v_RH: Tensor, plan: Plan, cache: LayerCache
    ) -> Tensor:
        """Store new keys and values, all in the order (B, L, heads), and attend to those stored so far."""

    def adam_scalars(
        self, lr: float, step: int, eps: float, decay: float, betas: tuple[float, float]
    ) -> tuple[Scalar, Scalar, Scalar, Tensor]:
        """Return rate, eps, decay and step as `adamw` takes them for the `step`-th update, counted from 1."""

    def adamw(  # noqa: PLR0913
        self,
        weight: Parameter,
        m: Parameter,
        v: Parameter,
        gradient: Tensor,
        rate: Scalar,
        eps: Scalar,
        decay: Scalar | None,
        step: Tensor,
        betas: tuple[float, float],
        scale: Tensor | None = None,
    ) -> Tensor:
        """Update a weight and its moments in place (Loshchilov and Hutter 2019, algorithm 2), all float32.

        The gradient is multiplied by `scale` first.
        """

    def scale(self, target: Parameter, factor: Tensor) -> Tensor:
        """Return `target` times a number, which may overwrite it."""

    def sum_of_squares(self, x: Tensor) -> Tensor:
        """Return the sum of the squares of all elements, float32 of shape (1,)."""

    def add_all(self, parts: tuple[Tensor, ...]) -> Tensor:
        """Return the sum of many tensors of shape (1,)."""

    def assign(self, target: Parameter, value: Tensor) -> Tensor:
        """Overwrite `target`."""

    def add_to(self, target: Parameter, value: Tensor) -> Tensor:
        """Add to `target` in place."""

    def accumulate(self, total: Tensor, value: Tensor) -> Tensor:
        """Return the sum of two tensors of one shape, in the type of `total`, which nothing else reads.

        It may overwrite `total`, and takes no gradient.
        """

    def fold_bits(self, x: Tensor) -> Tensor:
        """Return x ^ (x >> 15) of int32, the shift with its sign."""

    def clear(self, target: Parameter) -> Tensor:
        """Set all to zero in place; `clears_nan` says whether NaN, too."""

    def rows(self, x: Tensor, first: int, end: int) -> Tensor:
        """Return rows `first` to `end` of a tensor that takes no gradient."""

    def subtract_at(self, x_MV: Tensor, columns_M1: Tensor, values_M1: Tensor) -> Tensor:
        """Subtract at one column of each row of `x_MV`, which nothing else reads; takes no gradient."""
