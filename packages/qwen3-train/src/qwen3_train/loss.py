"""The training loss as one cell, so that forward and backward compile into one graph.

B batch, L length, M = B * L, D hidden, V vocabulary.
"""

from mindspore import Tensor, nn, ops

from qwen3_model.model import Qwen3ForCausalLM


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

    Returns:
        float32 scalar, in nats.
    """

    def __init__(self, model: Qwen3ForCausalLM) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        # On a CPU several times faster than ops.cross_entropy, forward and backward.
        self.log_softmax, self.pick, self.sum = ops.LogSoftmax(-1), ops.GatherD(), ops.ReduceSum()

    def construct(
        self,
        ids_BL: Tensor,
        labels_BL: Tensor,
        weights_BL: Tensor,
        position_ids_BL: Tensor | None = None,
        segment_ids_BL: Tensor | None = None,
    ) -> Tensor:
        hidden_MD = self.model.model(ids_BL, position_ids_BL, segment_ids_BL)
        log_probs_MV = self.log_softmax(self.model.head(hidden_MD))
        picked_M1 = self.pick(log_probs_MV, 1, labels_BL.reshape(-1, 1))
        return -self.sum(picked_M1.reshape(-1) * weights_BL.reshape(-1))
