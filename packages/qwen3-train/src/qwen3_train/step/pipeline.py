"""A pipeline stage's part of a step: its graphs, run in the order of `pipeline_schedule`.

Of each micro-batch in flight a stage keeps the input, and the inputs of its layers that are recomputed whole;
the rest of the forward pass is computed anew in the backward pass. The last stage computes both at once.

M this rank's rows (B * L, of which sequence parallelism leaves it a share), D hidden.
"""

from collections.abc import Callable, Sequence

import mindspore as ms
from mindspore import ParameterTuple, Tensor

from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_model.ranks.collectives import Link
from qwen3_train.data.batches import Batch
from qwen3_train.loss.loss import TokenLoss, loss_arguments
from qwen3_train.parallel.grid import Grid
from qwen3_train.step.pipeline_schedule import Do, schedule
from qwen3_train.step.stage_graphs import Backward, Forward, LastBackward, LastForward, kept_inputs


class PipelineStage:
    """Run one stage of `model`, together with the processes that run the others."""

    def __init__(self, model: Qwen3ForCausalLM, grid: Grid, sums: ParameterTuple | None) -> None:
        """Prepare to add gradients to `sums`, one per trained weight of the stage; None to evaluate only."""
        self.grid, self.width, self.dtype = grid, model.config.hidden_size, model.kernels.residual_dtype
        self.before, self.after = grid.before, grid.after
        self.split = grid.layout.tp if grid.layout.sequence_parallel else 1
        # What is frozen under adapters takes no gradient.
        weights = ParameterTuple([weight for weight in model.get_parameters() if weight.requires_grad])
        make = _LastStage if grid.part.is_last else _EarlierStage
        self._graphs: _LastStage | _EarlierStage = make(model, weights, sums)

    def train(self, batches: Sequence[Batch], before_pass: Callable[[int], None]) -> float:
        """Take all micro-batches of a step through the pipeline and add up their gradients.

        Args:
            batches: This replica's.
            before_pass: Called with the number of the micro-batch before each pass, forward or backward.

        Returns:
            On the last stage the sum of their losses in float64, else 0.
        """
        # What is in flight, by the number of its micro-batch.
        inputs: dict[int, Tensor] = {}
        kept: dict[int, list[Tensor]] = {}
        outputs: dict[int, Tensor] = {}
        gradients: dict[int, Tensor] = {}
        total, shape = 0.0, self._shape(batches[0])
        for action in schedule(self.grid.stage, self.grid.layout.pp, len(batches)):
            i = action.micro_batch
            match action.kind:
                case Do.TAKE_INPUT:
                    inputs[i] = _receive(self.before, shape, self.dtype)
                case Do.FORWARD:
                    before_pass(i)
                    outputs[i], *kept[i] = self._graphs.forward(batches[i], inputs.get(i))
                case Do.GIVE_OUTPUT:
                    _send(self.after, outputs.pop(i))
                case Do.TAKE_GRADIENT:
                    gradients[i] = _receive(self.after, shape, self.dtype)
                case Do.BACKWARD:
                    before_pass(i)
                    loss, gradients[i] = self._graphs.backward(
                        batches[i], inputs.pop(i, None), gradients.pop(i, None), kept.pop(i, [])
                    )
                    total += loss
                case Do.GIVE_GRADIENT:
                    _send(self.before, gradients.pop(i))
        return total

    def evaluate(self, batch: Batch) -> float:
        """Return on the last stage the sum of the batch's token losses times their weights, else 0."""
        x_MD = None
        if not self.grid.part.is_first:
            x_MD = _receive(self.before, self._shape(batch), self.dtype)
        output, *_ = self._graphs.forward(batch, x_MD)
        if self.grid.part.is_last:
            return float(output.asnumpy())
        _send(self.after, output)
        return 0.0

    def _shape(self, batch: Batch) -> tuple[int, int]:
        """Return (M, D) of the hidden states that stages exchange."""
        return batch.input_ids_BL.size // self.split, self.width


def _receive(link: Link | None, shape: tuple[int, int], dtype: ms.Type) -> Tensor:
    assert link is not None, "the schedule names no neighbour that a stage lacks"
    return link.receive(shape, dtype)


def _send(link: Link | None, tensor: Tensor) -> None:
    assert link is not None, "the schedule names no neighbour that a stage lacks"
    link.send(tensor)


class _EarlierStage:
    """The graphs of a stage that is not the last: the forward pass ends with hidden states."""

    def __init__(self, model: Qwen3ForCausalLM, weights: ParameterTuple, sums: ParameterTuple | None) -> None:
        self._kernels = model.kernels
        keeps = kept_inputs(model) if sums is not None else (False,) * len(model.model.layers)
        self._forward = Forward(model, keeps)
        self._backward = None if sums is None else Backward(model, weights, sums, keeps)

    def forward(self, batch: Batch, x_MD: Tensor | None) -> tuple[Tensor, ...]:
        """Return the hidden states, then the inputs to keep for `backward`, apart from `x_MD`.

        Args:
            batch: A micro-batch.
            x_MD: The stage's input; None on the first stage.
        """
        ids, _, _, positions, segments = loss_arguments(batch, self._kernels)
        found = self._forward(x_MD, ids, positions, segments)
        return found if isinstance(found, tuple) else (found,)

    def backward(
        self, batch: Batch, x_MD: Tensor | None, grad_MD: Tensor | None, kept: Sequence[Tensor]
    ) -> tuple[float, Tensor]:
        """Add the weights' gradients to their sums; return 0 for the loss, and the input's gradient.

        Args:
            batch: The micro-batch that `forward` had.
            x_MD: Its input.
            grad_MD: The gradient of what `forward` returned.
            kept: The inputs that it returned to be kept.
        """
        assert self._backward is not None, "a stage without sums only evaluates"
        ids, _, _, positions, segments = loss_arguments(batch, self._kernels)
        starts = kept if x_MD is None else (x_MD, *kept)
        return 0.0, self._backward(grad_MD, ids, positions, segments, *starts)


class _LastStage:
    """The graphs of the last stage, with the same methods: the forward pass ends with the loss."""

    def __init__(self, model: Qwen3ForCausalLM, weights: ParameterTuple, sums: ParameterTuple | None) -> None:
        self._kernels = model.kernels
        self._forward = LastForward(TokenLoss(model, has_gradients=False))
        self._backward = None if sums is None else LastBackward(model, weights, sums)

    def forward(self, batch: Batch, x_MD: Tensor | None) -> tuple[Tensor, ...]:
        """Return the loss alone; nothing is kept, for `backward` computes the forward pass, too."""
        return (self._forward(x_MD, *loss_arguments(batch, self._kernels)),)

    def backward(
        self, batch: Batch, x_MD: Tensor | None, grad_MD: Tensor | None, kept: Sequence[Tensor]
    ) -> tuple[float, Tensor]:
        """Add the weights' gradients to their sums; return the loss and the gradient of `x_MD`."""
        assert self._backward is not None, "a stage without sums only evaluates"
        loss, input_grad_MD = self._backward(x_MD, *loss_arguments(batch, self._kernels))
        return float(loss.asnumpy()), input_grad_MD
