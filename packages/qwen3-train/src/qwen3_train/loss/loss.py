"""The training loss as one cell, so that forward and backward compile into one graph.

B batch, L length, M = B * L, D hidden, V vocabulary.
"""

import mindspore as ms
from mindspore import Tensor, nn, ops

from qwen3_model.network.kernels.portable import PortableKernels
from qwen3_model.network.kernels.seam import Kernels, Segments
from qwen3_model.network.layers import Embedding
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_train.data.batches import Batch
from qwen3_train.loss import loss_chunks
from qwen3_train.loss.chunked_loss import ChunkedLoss
from qwen3_train.loss.split_loss import SplitCrossEntropy


class TokenLoss(nn.Cell):
    """Add up the cross entropies of all tokens, each times its weight, in float32.

    With weights of loss_mask / (unmasked tokens of the whole step) the sum is the step's mean loss, and the
    sums of micro-batches or replicas add up to it whatever their sizes.

    Args of the call:
        ids_BL: int32 inputs.
        labels_BL: int32, the token that follows each input.
        weights_BL: float32.
        position_ids_BL: int32, or None for 0, 1, 2, ...
        segment_ids_BL: int32; no attention between different ids. None for plain causal attention.
        x_MD: Hidden states of the stage before, where the model is the last stage of a pipeline.

    Returns:
        float32 scalar, in nats.
    """

    def __init__(
        self, model: Qwen3ForCausalLM, *, has_gradients: bool = True, most_logits: int | None = None
    ) -> None:
        """Take the model.

        Args:
            model: With its adapters, should it have any.
            has_gradients: Whether the loss is differentiated, which must then be by itself.
            most_logits: Where a micro-batch has more, its rows are taken in chunks (`chunked_loss`);
                `loss_chunks.MOST_LOGITS` when left out.
        """
        super().__init__(auto_prefix=False)
        self.model, self.most_logits = model, most_logits or loss_chunks.MOST_LOGITS
        # On a CPU several times faster than ops.cross_entropy, forward and backward.
        self.log_softmax, self.pick = ops.LogSoftmax(-1), ops.GatherD()
        self.sum = ops.auto_generate.SumExt()
        self.is_split, self.width = model.tp.size > 1, model.config.vocab_size // model.tp.size
        self.split_cross_entropy = SplitCrossEntropy(model.tp, model.kernels)
        # One process on a CPU that trains a tied embedding whole.
        is_whole = model.tp.size == 1 and model.part.is_first and model.part.is_last
        is_shared = is_whole and model.is_tied and _trains_table(model)
        kernels = model.kernels
        self.lookup = TiedLookup(kernels) if is_shared and isinstance(kernels, PortableKernels) else None
        trained = tuple(factor.requires_grad for factor in model.head_weights())
        self.chunked = ChunkedLoss(model.tp, kernels, trained, self.most_logits, has_gradients=has_gradients)

    def construct(
        self,
        ids_BL: Tensor,
        labels_BL: Tensor,
        weights_BL: Tensor,
        position_ids_BL: Tensor | None = None,
        segment_ids_BL: Tensor | None = None,
        x_MD: Tensor | None = None,
    ) -> Tensor:
        table_VD = None
        if self.lookup is not None:
            x_MD, table_VD = self.lookup(self.model.model.embed_tokens.weight, ids_BL.reshape(-1))
        hidden_MD = self.model.model(ids_BL, position_ids_BL, segment_ids_BL, None, None, x_MD)
        if labels_BL.size * self.width > self.most_logits:
            inputs, factors = self.model.head_products(hidden_MD)
            factors = factors if table_VD is None else (table_VD,)
            return self.chunked(inputs, factors, labels_BL.reshape(-1), weights_BL.reshape(-1))
        if table_VD is None:
            logits_MV = self.model.project(hidden_MD)
        else:
            logits_MV = self.model.kernels.linear(hidden_MD, table_VD)
        if self.is_split:
            losses_M, _ = self.split_cross_entropy(logits_MV, labels_BL.reshape(-1))
            return self.sum(losses_M * weights_BL.reshape(-1))
        log_probs_MV = self.log_softmax(logits_MV.astype(ms.float32))
        picked_M1 = self.pick(log_probs_MV, 1, labels_BL.reshape(-1, 1))
        return -self.sum(picked_M1.reshape(-1) * weights_BL.reshape(-1))


class TiedLookup(nn.Cell):
    """Look rows of a tied embedding up, and hand the table on to the head.

    The gradient of the lookup has a few rows. MindSpore would spread them over a table of zeros and add that
    to the head's; here they are added to the head's gradient, which saves two tables of memory.
    """

    def __init__(self, kernels: PortableKernels) -> None:
        super().__init__(auto_prefix=False)
        self.kernels = kernels

    def construct(self, table_VD: Tensor, ids_M: Tensor) -> tuple[Tensor, Tensor]:
        return self.kernels.embed(table_VD, ids_M), table_VD

    def bprop(self, table_VD, ids_M, out, gradients):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        rows_MD, head_VD = gradients
        return self.kernels.add_rows(head_VD, ids_M, rows_MD), ops.zeros_like(ids_M)


def _trains_table(model: Qwen3ForCausalLM) -> bool:
    """Return whether the embedding itself takes gradients; under adapters it is frozen, or another cell."""
    embedding = model.model.embed_tokens
    return type(embedding) is Embedding and embedding.weight.requires_grad


def loss_arguments(batch: Batch, kernels: Kernels) -> list[Tensor | Segments | None]:
    """Return the first five arguments of `TokenLoss`."""
    parts = (
        batch.input_ids_BL,
        batch.labels_BL,
        batch.weights_BL,
        batch.position_ids_BL,
    )
    segments = None if batch.segment_ids_BL is None else kernels.segments(batch.segment_ids_BL)
    return [*(None if part is None else Tensor(part) for part in parts), segments]
