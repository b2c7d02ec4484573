"""LoRA adapters: W x becomes W x + (alpha / r) B A dropout(x), with W as it was (Hu et al. 2021, 4.1).

Weights are named after the module that carries them: `<module>.lora_A.weight` of (r, inputs) and
`<module>.lora_B.weight` of (outputs, r). An embedding looks up columns of A, (r, rows), and multiplies them
by B, (width, r); as the head of a tied model it has the same adapter, for it is the same weight.

Under tensor parallelism the half that touches the split dimension is split with it: A of a row-parallel
layer and of an embedding, B of a column-parallel layer. The other half is whole on every rank, where its
gradient is that of the rank's part (`shards.is_partial`).

M rows, D inputs, O outputs, R rank, V vocabulary.
"""

import hashlib
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from qwen3_model.errors import ConfigError
from qwen3_model.network.kernels.seam import Kernels
from qwen3_model.network.layers import Embedding, Linear, LookUp, make_parameter
from qwen3_model.network.loading import fill
from qwen3_model.network.model import Qwen3ForCausalLM, name_parameters
from qwen3_model.ranks.layout import placement, shard_slices, whole_shape

INITS = ("normal", "zeros", "ones", "he_uniform", "xavier_uniform", "xavier_normal")
"""Ways to start A and B, named as in MindSpore; "normal" has a standard deviation of 0.01."""
FIRST_MULTIPLIER, SECOND_MULTIPLIER = 0x2C1B3C6D, 0x297A2D39
"""Multipliers of the integer hash prospector32 (Wellons, Prospecting for Hash Functions, 2018)."""
PER_TICK, PER_MODULE = 7919, 65537
"""Primes by which the hashed numbers of neighbouring ticks, and of neighbouring modules' columns, differ."""
HALF_RANGE = 1 << 31
"""One more than the largest hash."""


class LoraDropout(nn.Cell):
    """Drop inputs of adapters by a hash of the tick, the module, the row and the column.

    The random numbers are hashes of where an input stands: prospector32, with shifts of 15 bits throughout,
    over rows, over columns and over the sum of both hashes. There is no state. So a resumed run drops what an
    unbroken run did, a recomputed forward pass drops what the first one did, and a tensor-parallel rank drops
    what one process would.

    Args of the call:
        x_MD: Inputs, float.
        salt: Number of the module in the whole model.
        first_column: Column of the whole input with which `x_MD` begins.

    Returns:
        `x_MD`, with the dropped inputs 0 and the others divided by the share of kept ones.
    """

    def __init__(self, rate: float, kernels: Kernels) -> None:
        super().__init__(auto_prefix=False)
        self.rate, self.kernels = rate, kernels
        self.tick = _state("tick", np.int32(0))
        self.lowest_kept = _state("lowest_kept", np.int32(0))
        self.gain = _state("gain", np.float32(1))

    def switch_on(self, tick: int) -> None:
        """Drop inputs from now on; `tick`, which counts forward passes over all replicas, decides which."""
        ops.assign(self.tick, Tensor(np.int32(tick % HALF_RANGE)))
        ops.assign(self.lowest_kept, Tensor(np.int32(self.rate * HALF_RANGE)))
        ops.assign(self.gain, Tensor(np.float32(1 / (1 - self.rate))))

    def switch_off(self) -> None:
        """Drop nothing from now on, as in evaluation."""
        ops.assign(self.lowest_kept, Tensor(np.int32(0)))
        ops.assign(self.gain, Tensor(np.float32(1)))

    def construct(self, x_MD: Tensor, salt: int, first_column: int = 0) -> Tensor:
        m, d = x_MD.shape
        rows_M = self._mix(Tensor(np.arange(m, dtype=np.int32)) + self.tick * PER_TICK + salt)
        # The dependence keeps the columns from being constants: MindSpore has folded overflowing
        # products wrongly (2.7).
        columns_D = ops.depend(Tensor(np.arange(d, dtype=np.int32)), self.tick) + first_column
        columns_D = self._mix(columns_D * PER_MODULE + salt)
        hash_MD = self._mix(rows_M.expand_dims(1) + columns_D.expand_dims(0))
        # The shift carries the sign along, so this lies in 0 to 2^31 - 1.
        hash_MD = self.kernels.fold_bits(hash_MD)
        is_kept_MD = (hash_MD >= self.lowest_kept).astype(x_MD.dtype)
        return x_MD * is_kept_MD * self.gain.astype(x_MD.dtype)

    def _mix(self, x: Tensor) -> Tensor:
        """Return the hash without its first and last shift, int32 that wraps around."""
        return self.kernels.fold_bits(x * FIRST_MULTIPLIER) * SECOND_MULTIPLIER


class Half(nn.Cell):
    """One of an adapter's two matrices, A or B."""

    def __init__(self, shape: tuple[int, int], dtype: ms.Type) -> None:
        super().__init__()
        self.weight = make_parameter(shape, dtype)


class LoraLinear(nn.Cell):
    """A linear layer and its adapter."""

    def __init__(
        self,
        base: Linear,
        rank: int,
        scale: float,
        dropout: LoraDropout | None,
        salt: int,
        shard: int,
        dtype: ms.Type,
    ) -> None:
        """Adapt `base`.

        Args:
            base: Its weight stays as it is, and is shared.
            rank: Rank of the adapter.
            scale: The adapter's product is multiplied by this.
            dropout: Drops inputs of the adapter; None to drop none.
            salt: Number of the module in the whole model.
            shard: Number of this rank's part of the inputs, where tensor parallelism splits them; else 0.
            dtype: Type of the adapter's weights.
        """
        super().__init__()
        self.kernels, self.weight, self.scale = base.kernels, base.weight, scale
        # Without dropout all layers are equal, which lets a trainer compile one for all.
        self.dropout, self.salt = dropout, 0 if dropout is None else salt
        self.first_column = shard * base.weight.shape[1]
        num_outputs, num_inputs = base.weight.shape
        self.lora_A = Half((rank, num_inputs), dtype)
        self.lora_B = Half((num_outputs, rank), dtype)

    def construct(self, x_MD: Tensor) -> Tensor:
        (x_MD, low_MR), (weight_OD, b_OR) = self.products(x_MD)
        return self.kernels.linear(x_MD, weight_OD) + self.kernels.linear(low_MR, b_OR)

    def products(self, x_MD: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the two products whose sum this is, see `Linear.products`."""
        dropped_MD = x_MD if self.dropout is None else self.dropout(x_MD, self.salt, self.first_column)
        low_MR = self.kernels.linear(dropped_MD, self.lora_A.weight) * self.scale
        return (x_MD, low_MR), (self.weight, self.lora_B.weight)

    def product_weights(self) -> tuple[Parameter, ...]:
        """Return the weights behind the second part of `products`."""
        return self.weight, self.lora_B.weight


class LoraEmbedding(LookUp):
    """An embedding and its adapter, which a tied head shares; without dropout, as in PEFT."""

    def __init__(self, base: Embedding, rank: int, scale: float, dtype: ms.Type) -> None:
        super().__init__(base.num_rows, base.tp)
        self.kernels, self.weight, self.scale = base.kernels, base.weight, scale
        width = base.weight.shape[1]
        self.lora_A = Half((rank, self.num_rows), dtype)
        self.lora_B = Half((width, rank), dtype)
        self.widen = ops.MatMul(transpose_a=True, transpose_b=True)
        self.multiply, self.turn = ops.MatMul(), ops.Transpose()

    def look_up(self, rows_M: Tensor) -> Tensor:
        x_MD = self.kernels.embed(self.weight, rows_M)
        low_RM = self.kernels.columns(self.lora_A.weight, rows_M).astype(x_MD.dtype) * self.scale
        return x_MD + self.widen(low_RM, self.lora_B.weight.astype(x_MD.dtype))

    def project(self, hidden_MD: Tensor) -> Tensor:
        """Return logits: the adapted weight as a head."""
        base_MV = self.kernels.linear(hidden_MD, self.weight)
        return base_MV + self.multiply(
            self._project_low(hidden_MD), self.lora_A.weight.astype(hidden_MD.dtype)
        )

    def products(self, hidden_MD: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the two products whose sum `project` returns, see `Linear.products`."""
        a_VR = self.turn(self.lora_A.weight, (1, 0))
        return (hidden_MD, self._project_low(hidden_MD)), (self.weight, a_VR)

    def product_weights(self) -> tuple[Parameter, ...]:
        """Return the weights behind the second part of `products`."""
        return self.weight, self.lora_A.weight

    def _project_low(self, hidden_MD: Tensor) -> Tensor:
        return self.multiply(hidden_MD, self.lora_B.weight.astype(hidden_MD.dtype)) * self.scale


def add_lora(
    model: Qwen3ForCausalLM,
    modules: Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    dtype: ms.Type | None = None,
) -> LoraDropout | None:
    """Give `modules` adapters of zeros, before anything is compiled, and name all weights by their paths.

    Args:
        model: Its weights stay as they are; freezing them is the caller's.
        modules: Paths of linear layers and of the embedding, such as `model.layers.0.self_attn.q_proj`; paths
            of other pipeline stages are passed over.
        rank: Rank of every adapter.
        alpha: The adapter is scaled by alpha / rank.
        dropout: Share of an adapter's inputs that is dropped while the returned switch is on.
        dtype: Type of the adapters' weights; that of the adapted weight when left out.

    Returns:
        The switch, or None where nothing is dropped.

    Raises:
        ConfigError: A module is not there or cannot carry an adapter.
    """
    switch = LoraDropout(dropout, model.kernels) if dropout else None
    cells, known = dict(model.cells_and_names()), model.config.weight_shapes()
    # The number of a module in the whole model, so that a stage drops what one process would.
    for salt, path in enumerate(modules):
        base, (parent, _, leaf) = cells.get(path), path.rpartition(".")
        if base is None and f"{path}.weight" in known:
            continue
        if isinstance(base, Linear):
            shard = model.tp.index if placement(f"{path}.weight")[1] == "tp" else 0
            adapted: nn.Cell = LoraLinear(
                base, rank, alpha / rank, switch, salt, shard, dtype or base.weight.dtype
            )
        elif isinstance(base, Embedding):
            adapted = LoraEmbedding(base, rank, alpha / rank, dtype or base.weight.dtype)
        else:
            raise ConfigError(f"{path} cannot carry an adapter; only linear layers and the embedding can")
        setattr(cells[parent] if parent else model, leaf, adapted)
    name_parameters(model)
    return switch


def init_lora(model: Qwen3ForCausalLM, *, a_init: str, b_init: str, seed: int) -> None:
    """Fill every adapter of `model` with its first values.

    They depend on the weight's name, on the seed and on the size of the whole weight alone: on no layout.

    Args:
        model: Has adapters by `add_lora`.
        a_init: One of `INITS`, for A.
        b_init: One of `INITS`, for B.
        seed: Seed of the random numbers.
    """
    tp, shard = model.tp.size, model.tp.index
    for name, parameter in model.parameters_and_names():
        for half, init in ((".lora_A.weight", a_init), (".lora_B.weight", b_init)):
            if name.endswith(half):
                shape = whole_shape(name, tuple(parameter.shape), tp)
                values = fresh_half(name, shape, init, seed)
                fill(parameter, "F32", values[shard_slices(name, shape, tp=tp, shard=shard)])


def fresh_half(name: str, shape: tuple[int, ...], init: str, seed: int) -> np.ndarray:
    """Return the first values of A or B, float32, by one of `INITS`.

    Random numbers are numpy's default, PCG64 seeded by `seed` and the first 64 bits of the name's SHA-256.
    """
    rows, columns = shape
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    rng = np.random.default_rng([seed, key])
    if init in ("zeros", "ones"):
        return np.full(shape, float(init == "ones"), np.float32)
    if init in ("he_uniform", "xavier_uniform"):
        bound = (6 / columns) ** 0.5 if init == "he_uniform" else (6 / (rows + columns)) ** 0.5
        return rng.uniform(-bound, bound, shape).astype(np.float32)
    deviation = {"normal": 0.01, "xavier_normal": (2 / (rows + columns)) ** 0.5}[init]
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(deviation)


def _state(name: str, value: np.generic) -> Parameter:
    return Parameter(Tensor(value), name=f"lora_dropout.{name}", requires_grad=False)
