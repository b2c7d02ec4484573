"""The model and the step of one rank, as its coordinates and the run's settings decide."""

from collections.abc import Callable
from pathlib import Path

from qwen3_model.network.kernels.seam import Kernels
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_train.native.choice import training_kernels
from qwen3_train.parallel.context import context_kernels
from qwen3_train.parallel.grid import Grid, make_grid
from qwen3_train.settings.run import TrainSettings
from qwen3_train.step.recompute import apply_recompute
from qwen3_train.step.step import TrainStep


def make_model(
    settings: TrainSettings,
    rank: int,
    say: Callable[[str], None] = lambda text: None,
    cache_dir: Path | None = None,
) -> tuple[Qwen3ForCausalLM, Grid]:
    """Return the rank's part of the model, its weights yet to be filled, and what the rank is.

    Args:
        settings: The run's settings.
        rank: Its number.
        say: See `training_kernels`.
        cache_dir: See `training_kernels`.
    """
    grid = make_grid(settings.device, settings.model, settings.layout, settings.offset, rank)
    float32_residual = settings.ascend.float32_residual
    kernels: Kernels
    if grid.layout.cp > 1:
        kernels = context_kernels(settings.device, grid.context, float32_residual=float32_residual)
    else:
        kernels = training_kernels(
            settings.device,
            float32_residual=float32_residual,
            is_alone=grid.layout.num_ranks == 1,
            say=say,
            cache_dir=cache_dir,
        )
    return Qwen3ForCausalLM(settings.model, kernels, tp=grid.tp, part=grid.part), grid


def make_step(settings: TrainSettings, model: Qwen3ForCausalLM, grid: Grid) -> TrainStep:
    """Return the step of `model`, which has its adapters, should it train any.

    Args:
        settings: The run's settings.
        model: By `make_model`.
        grid: What the same rank is.
    """
    apply_recompute(model, settings.recompute, grid.stage)
    return TrainStep(
        model,
        settings.adam,
        max_norm=settings.max_grad_norm,
        num_micro_batches=settings.passes,
        grid=grid,
        shares_moments=settings.parallel_optimizer,
        skip=settings.skip,
    )
