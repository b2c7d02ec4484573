"""A pipeline stage's part of a step: its graphs, run in the order of `pipeline_schedule`.

A stage keeps only the inputs of the micro-batches in flight and computes its forward pass anew in the
backward pass; the last stage does both at once.

B batch, L length, M this rank's rows (B * L, of which sequence parallelism leaves it a share), D hidden.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from qwen3_model.model import Qwen3ForCausalLM
from qwen3_train.data.batches import Batch
from qwen3_train.loss import TokenLoss, loss_arguments
from qwen3_train.parallel.gradients import AddGradients
from qwen3_train.parallel.grid import Grid
from qwen3_train.parallel.pipeline_schedule import Do, schedule


class PipelineStage:
    """Run one stage of `model`, together with the processes that run the others."""

    def __init__(self, model: Qwen3ForCausalLM, grid: Grid, sums: ParameterTuple | None) -> None:
        """Prepare to add gradients to `sums`, one per trained weight of the stage; None to evaluate only."""
        self.grid, self.width, self.dtype = grid, model.config.hidden_size, model.kernels.residual_dtype
        self.kernels = model.kernels
        self.before: Any = grid.before
        self.after: Any = grid.after
        self.split = grid.layout.tp if grid.layout.sequence_parallel else 1
        self._last: Any = _Loss(TokenLoss(model)) if grid.part.is_last else None
        self._forward: Any = None if grid.part.is_last else _Forward(_Rows(model))
        self._backward: Any = None
        if sums is not None:
            # What is frozen under adapters takes no gradient.
            weights = ParameterTuple([weight for weight in model.get_parameters() if weight.requires_grad])
            kind = (
                _LastBackward if grid.part.is_last else _Backward if grid.part.is_first else _MiddleBackward
            )
            self._backward = kind(model, weights, sums)

    def train(self, batches: Sequence[Batch], before_pass: Callable[[int], None]) -> float:
        """Take all micro-batches of a step through the pipeline and add up their gradients.

        Args:
            batches: This replica's.
            before_pass: Called with the number of the micro-batch before each pass, forward or backward.

        Returns:
            On the last stage the sum of their losses in float64, else 0.
        """
        inputs: dict[int, Any] = {}
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
                    outputs[i] = self._rows(batches[i], inputs.get(i))
                case Do.GIVE_OUTPUT:
                    self.after.send(outputs.pop(i))
                case Do.TAKE_GRADIENT:
                    gradients[i] = self.after.receive(shape, self.dtype)
                case Do.BACKWARD:
                    before_pass(i)
                    loss, gradients[i] = self._gradient(
                        batches[i], inputs.pop(i, None), gradients.pop(i, None)
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
        self.after.send(self._rows(batch, x_MD))
        return 0.0

    def _rows(self, batch: Batch, x_MD: Tensor | None) -> Tensor:
        ids, _, _, positions, segments = loss_arguments(batch, self.kernels)
        return self._forward(x_MD, ids, positions, segments)

    def _gradient(self, batch: Batch, x_MD: Tensor | None, grad_MD: Tensor | None) -> tuple[float, Any]:
        """Add up the weights' gradients; return the loss on the last stage, and the input's gradient."""
        ids, labels, weights, positions, segments = loss_arguments(batch, self.kernels)
        if self.grid.part.is_last:
            loss, input_grad_MD = self._backward(x_MD, ids, labels, weights, positions, segments)
            return float(loss.asnumpy()), input_grad_MD
        if self.grid.part.is_first:
            return 0.0, self._backward(grad_MD, ids, positions, segments)
        return 0.0, self._backward(x_MD, grad_MD, ids, positions, segments)

    def _shape(self, batch: Batch) -> tuple[int, int]:
        return batch.input_ids_BL.size // self.split, self.width


class _Rows(nn.Cell):
    """The stage's hidden states."""

    def __init__(self, model: Qwen3ForCausalLM) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, x_MD, ids_BL, position_ids_BL=None, segment_ids_BL=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return self.model.model(ids_BL, position_ids_BL, segment_ids_BL, None, None, x_MD)


class _FirstRows(nn.Cell):
    def __init__(self, model: Qwen3ForCausalLM) -> None:
        super().__init__(auto_prefix=False)
        self.rows = _Rows(model)

    def construct(self, ids_BL, position_ids_BL=None, segment_ids_BL=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return self.rows(None, ids_BL, position_ids_BL, segment_ids_BL)


class _LossOfRows(nn.Cell):
    def __init__(self, loss: TokenLoss) -> None:
        super().__init__(auto_prefix=False)
        self.loss = loss

    def construct(self, x_MD, ids, labels, weights, positions=None, segments=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return self.loss(ids, labels, weights, positions, segments, x_MD)


class _Forward(nn.Cell):
    def __init__(self, rows: _Rows) -> None:
        super().__init__(auto_prefix=False)
        self.rows = rows

    @ms.jit
    def construct(self, x_MD, ids_BL, position_ids_BL=None, segment_ids_BL=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return self.rows(x_MD, ids_BL, position_ids_BL, segment_ids_BL)


class _Loss(nn.Cell):
    def __init__(self, loss: TokenLoss) -> None:
        super().__init__(auto_prefix=False)
        self.loss = _LossOfRows(loss)

    @ms.jit
    def construct(self, x_MD, ids, labels, weights, positions=None, segments=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return self.loss(x_MD, ids, labels, weights, positions, segments)


class _Backward(nn.Cell):
    def __init__(self, model: Qwen3ForCausalLM, weights: ParameterTuple, sums: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.add, self.rows, self.weights = AddGradients(sums, model.kernels), _FirstRows(model), weights
        self.gradient = ops.GradOperation(get_by_list=True, sens_param=True)
        self.done = Tensor(np.zeros(1, np.float32))

    @ms.jit
    def construct(self, grad_MD, ids_BL, position_ids_BL=None, segment_ids_BL=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        gradient = self.gradient(self.rows, self.weights)
        gradients = gradient(ids_BL, position_ids_BL, segment_ids_BL, grad_MD)
        return self.add(gradients, self.done * 1.0)


class _MiddleBackward(nn.Cell):
    def __init__(self, model: Qwen3ForCausalLM, weights: ParameterTuple, sums: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.add, self.rows, self.weights = AddGradients(sums, model.kernels), _Rows(model), weights
        self.all_gradients = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)

    @ms.jit
    def construct(self, x_MD, grad_MD, ids_BL, position_ids_BL=None, segment_ids_BL=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        gradient = self.all_gradients(self.rows, self.weights)
        input_gradients, gradients = gradient(x_MD, ids_BL, position_ids_BL, segment_ids_BL, grad_MD)
        return self.add(gradients, input_gradients[0])


class _LastBackward(nn.Cell):
    def __init__(self, model: Qwen3ForCausalLM, weights: ParameterTuple, sums: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.add = AddGradients(sums, model.kernels)
        self.loss_and_gradients = ms.value_and_grad(_LossOfRows(TokenLoss(model)), 0, weights)

    @ms.jit
    def construct(self, x_MD, ids, labels, weights, positions=None, segments=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        loss, (input_grad_MD, gradients) = self.loss_and_gradients(
            x_MD, ids, labels, weights, positions, segments
        )
        return self.add(gradients, loss), input_grad_MD
