"""A step on a device, whose logits stay there.

R rows, V vocabulary, C candidates.
"""

from mindspore import Tensor, mint, nn

from qwen3_infer.sampling.logits import NUM_CANDIDATES


class WithLikeliest(nn.Cell):
    """A step and, beside its logits (R, V), the likeliest of each row."""

    def __init__(self, step: nn.Cell) -> None:
        super().__init__()
        self.step = step

    def construct(self, *arguments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits (R, V), and of the C largest the values and the ids, (R, C)."""
        logits_RV = self.step(*arguments)
        values_RC, ids_RC = mint.topk(logits_RV, min(NUM_CANDIDATES, logits_RV.shape[1]))
        return logits_RV, values_RC, ids_RC
