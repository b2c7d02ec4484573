"""The forward and backward passes of a step: one pass with the update in its graph, or several with a sum.

Both classes have the same `run`; `step.TrainStep` chooses one of them once.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor

from qwen3_model.network.kernels.seam import Scalar
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_train.data.batches import Batch
from qwen3_train.loss.loss import TokenLoss, loss_arguments
from qwen3_train.parallel.grid import Grid
from qwen3_train.step.pipeline import PipelineStage
from qwen3_train.step.step_graphs import AddMicroBatch, ApplySums, ClearSums, Finish, WholeStep
from qwen3_train.update.gradients import SumReplicas
from qwen3_train.update.guarded_update import GuardedUpdate, clear

BeforePass = Callable[[int], None]
"""Called with the number of the micro-batch, from 0, before each pass over it, forward or backward."""


class SinglePass:
    """One micro-batch on a rank that has every layer: forward, backward and update in one graph."""

    def __init__(
        self, model: Qwen3ForCausalLM, weights: ParameterTuple, update: GuardedUpdate, finish: Finish
    ) -> None:
        self._kernels = model.kernels
        self._graph = WholeStep(TokenLoss(model), weights, update, finish)

    def run(
        self, micro_batches: Sequence[Batch], scalars: Sequence[Scalar], before_pass: BeforePass
    ) -> tuple[float, float]:
        """Update the weights by the only micro-batch; return loss and norm, see `StepResult`.

        Args:
            micro_batches: One.
            scalars: From `adam_scalars`.
            before_pass: See `BeforePass`.
        """
        before_pass(0)
        loss, norm = self._graph(*scalars, *loss_arguments(micro_batches[0], self._kernels))
        return float(loss.asnumpy()), float(norm.asnumpy())

    def forget_gradients(self) -> None:
        """Do nothing: no gradient outlives the graph."""


class SummedPasses:
    """Several micro-batches, or the stage of a pipeline: their gradients are added up, then applied once."""

    def __init__(
        self,
        model: Qwen3ForCausalLM,
        grid: Grid,
        weights: Mapping[str, Parameter],
        sums: ParameterTuple,
        update: GuardedUpdate,
        finish: Finish,
        *,
        shares_moments: bool,
    ) -> None:
        """Compile nothing yet.

        Args:
            model: Its weights are read and updated.
            grid: What this rank is.
            weights: The trained weights, by name.
            sums: A sum of gradients for each of them, by `make_gradient_sum`.
            update: Updates the same weights.
            finish: For the sums.
            shares_moments: ZeRO-1.
        """
        self.sums, self._kernels = sums, model.kernels
        self._is_alone = grid.layout.num_ranks == 1
        self._gradients: PipelineStage | MicroBatches
        if grid.layout.pp == 1:
            self._gradients = MicroBatches(model, ParameterTuple(list(weights.values())), sums)
        else:
            self._gradients = PipelineStage(model, grid, sums)
        self._apply, self._clear = ApplySums(update, sums, finish), ClearSums(sums, model.kernels)
        self._sum_replicas: SumReplicas | None = None
        if grid.replicas.size > 1:
            self._sum_replicas = SumReplicas(weights, sums, grid, model.kernels, shares_moments)

    def run(
        self, micro_batches: Sequence[Batch], scalars: Sequence[Scalar], before_pass: BeforePass
    ) -> tuple[float, float]:
        """Update the weights by all micro-batches; return loss and norm, see `StepResult`.

        Args:
            micro_batches: This replica's, of equal shapes.
            scalars: From `adam_scalars`.
            before_pass: See `BeforePass`.
        """
        total = self._gradients.train(micro_batches, before_pass)
        if self._sum_replicas is not None:
            self._sum_replicas()
        loss, norm = self._apply(*scalars, Tensor(np.float32(total)))
        self._clear()
        return total if self._is_alone else float(loss.asnumpy()), float(norm.asnumpy())

    def forget_gradients(self) -> None:
        """Set the sums to zero even where they are NaN, which not every device's `clear` does."""
        if not self._kernels.clears_nan:
            for total in self.sums:
                clear(total)


class MicroBatches:
    """Add up the gradients of micro-batches, one after the other."""

    def __init__(self, model: Qwen3ForCausalLM, weights: ParameterTuple, sums: ParameterTuple) -> None:
        self._kernels = model.kernels
        self._add = AddMicroBatch(TokenLoss(model), weights, sums)

    def train(self, micro_batches: Sequence[Batch], before_pass: BeforePass) -> float:
        """Add the gradients of all micro-batches to the sums; return the sum of their losses."""
        # Float64 on the host: the sum then does not depend on how the step was cut.
        total = 0.0
        for number, batch in enumerate(micro_batches):
            before_pass(number)
            loss = self._add(*loss_arguments(batch, self._kernels))
            total += float(loss.asnumpy())
        return total
