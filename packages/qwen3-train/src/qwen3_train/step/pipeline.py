"""A pipeline stage's part of a step: its graphs, run in the order of `pipeline_schedule`.

Of the micro-batches in flight a stage keeps its input, and those of its layers that are recomputed whole; it
computes the rest of its forward pass anew in the backward pass. The last stage does both at once.

M this rank's rows (B * L, of which sequence parallelism leaves it a share), D hidden.
"""

from collections.abc import Callable, Sequence
from typing import Any

from mindspore import ParameterTuple, Tensor

from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_train.data.batches import Batch
from qwen3_train.loss.loss import TokenLoss, loss_arguments
from qwen3_train.parallel.grid import Grid
from qwen3_train.step.pipeline_schedule import Do, schedule
from qwen3_train.step.stage_graphs import (
    Backward,
    Forward,
    LastBackward,
    LossOnly,
    kept_inputs,
)


class PipelineStage:
    """Run one stage of `model`, together with the processes that run the others."""

    def __init__(self, model: Qwen3ForCausalLM, grid: Grid, sums: ParameterTuple | None) -> None:
        """Prepare to add gradients to `sums`, one per trained weight of the stage; None to evaluate only."""
        self.grid, self.width, self.dtype = grid, model.config.hidden_size, model.kernels.residual_dtype
        self.kernels = model.kernels
        self.before: Any = grid.before
        self.after: Any = grid.after
        self.split = grid.layout.tp if grid.layout.sequence_parallel else 1
        keeps = kept_inputs(model) if sums is not None else (False,) * len(model.model.layers)
        self._last: Any = LossOnly(TokenLoss(model, has_gradients=False)) if grid.part.is_last else None
        self._forward: Any = None if grid.part.is_last else Forward(model, keeps)
        self._backward: Any = None
        if sums is not None:
            # What is frozen under adapters takes no gradient.
            weights = ParameterTuple([weight for weight in model.get_parameters() if weight.requires_grad])
            if grid.part.is_last:
                self._backward = LastBackward(model, weights, sums)
            else:
                self._backward = Backward(model, weights, sums, keeps)

    def train(self, batches: Sequence[Batch], before_pass: Callable[[int], None]) -> float:
        """Take all micro-batches of a step through the pipeline and add up their gradients.

        Args:
            batches: This replica's.
            before_pass: Called with the number of the micro-batch before each pass, forward or backward.

        Returns:
            On the last stage the sum of their losses in float64, else 0.
        """
        inputs: dict[int, Any] = {}
        kept: dict[int, list[Tensor]] = {}
        outputs: dict[int, Any] = {}
        gradients: dict[int, Any] = {}
        total, shape = 0.0, self._shape(batches[0])
        for action in schedule(self.grid.stage, self.grid.layout.pp, len(batches)):
            i = action.micro_batch
            match action.kind:
                case Do.TAKE_INPUT:
                    inputs[i] = self.before.receive(shape, self.dtype)
                case Do.FORWARD:
                    before_pass(i)
                    outputs[i], *kept[i] = self._rows(batches[i], inputs.get(i))
                case Do.GIVE_OUTPUT:
                    self.after.send(outputs.pop(i))
                case Do.TAKE_GRADIENT:
                    gradients[i] = self.after.receive(shape, self.dtype)
                case Do.BACKWARD:
                    before_pass(i)
                    loss, gradients[i] = self._gradient(
                        batches[i], inputs.pop(i, None), gradients.pop(i, None), kept.pop(i, [])
                    )
                    total += loss
                case Do.GIVE_GRADIENT:
                    self.before.send(gradients.pop(i))
        return total

    def evaluate(self, batch: Batch) -> float:
        """Return on the last stage the sum of the batch's token losses times their weights, else 0."""
        x_MD = None
        if not self.grid.part.is_first:
            x_MD = self.before.receive(self._shape(batch), self.dtype)
        if self._last is not None:
            return float(self._last(x_MD, *loss_arguments(batch, self.kernels)).asnumpy())
        self.after.send(self._rows(batch, x_MD)[0])
        return 0.0

    def _rows(self, batch: Batch, x_MD: Tensor | None) -> tuple[Tensor, ...]:
        """Return the stage's hidden states and the inputs that it keeps, but for its own."""
        ids, _, _, positions, segments = loss_arguments(batch, self.kernels)
        found = self._forward(x_MD, ids, positions, segments)
        return found if isinstance(found, tuple) else (found,)

    def _gradient(
        self, batch: Batch, x_MD: Tensor | None, grad_MD: Tensor | None, kept: Sequence[Tensor]
    ) -> tuple[float, Any]:
        """Add up the weights' gradients; return the loss on the last stage, and the input's gradient."""
        ids, labels, weights, positions, segments = loss_arguments(batch, self.kernels)
        if self.grid.part.is_last:
            loss, input_grad_MD = self._backward(x_MD, ids, labels, weights, positions, segments)
            return float(loss.asnumpy()), input_grad_MD
        starts = kept if x_MD is None else (x_MD, *kept)
        return 0.0, self._backward(grad_MD, ids, positions, segments, *starts)

    def _shape(self, batch: Batch) -> tuple[int, int]:
        return batch.input_ids_BL.size // self.split, self.width
