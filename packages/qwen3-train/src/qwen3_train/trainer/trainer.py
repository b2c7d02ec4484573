"""The run itself: weights in, then steps, evaluations and checkpoints."""

from dataclasses import replace
from pathlib import Path

import mindspore as ms
from mindspore.communication import init

from qwen3_model.command.plain_text import counted
from qwen3_model.device.ascend import AscendSettings, choose_device
from qwen3_model.device.cann import CANN_DIR
from qwen3_model.ranks.msrun.stop_signals import StopRequest
from qwen3_train.checkpoints.lora_base import write_adapter_config
from qwen3_train.checkpoints.one_reader import OneReader
from qwen3_train.checkpoints.other_layout import forget_earlier
from qwen3_train.checkpoints.run_folder import BEST, METRICS
from qwen3_train.checkpoints.shared_writing import own_share
from qwen3_train.checkpoints.strategy_files import write_strategies
from qwen3_train.checkpoints.weights import resume_weights, start_weights
from qwen3_train.checkpoints.writer import CheckpointWriter
from qwen3_train.layout.flops import training_flops
from qwen3_train.parallel.grid import Grid, WorldSum
from qwen3_train.prepare.prepare import PreparedRun
from qwen3_train.reports.run_log import Metrics, RunLog
from qwen3_train.settings.run import TrainSettings
from qwen3_train.step.rank_step import make_model, make_step
from qwen3_train.step.step import Evaluation
from qwen3_train.trainer.adapters import start_adapters
from qwen3_train.trainer.device_peak import Utilisation, device_peak
from qwen3_train.trainer.loop import RunOutputs, TrainingLoop
from qwen3_train.trainer.stopping import StopAgreement


def set_up_device(
    device: str, ascend: AscendSettings | None = None, *, graph_mode: bool, is_worker: bool = False
) -> None:
    """Choose device and mode; call once, before any tensor is made. A worker of msrun meets the others."""
    choose_device(device, ascend)
    ms.set_context(mode=ms.GRAPH_MODE if graph_mode else ms.PYNATIVE_MODE)
    if is_worker:
        init()


def train(
    run: PreparedRun,
    log: RunLog,
    rank: int = 0,
    *,
    saves: bool = True,
    request: StopRequest | None = None,
    cann: Path = CANN_DIR,
    cache_dir: Path | None = None,
) -> str:
    """Take every step of `run` that is left, as one of its ranks, evaluating and saving on the way.

    Args:
        run: What to do.
        log: This rank's log.
        rank: Number of this rank.
        saves: Whether to write checkpoints.
        request: What may ask it to save and end.
        cann: Folder of CANN, which describes an NPU.
        cache_dir: See `training_kernels`.

    Returns:
        Why it ended before its last step; "" where it did not.

    Raises:
        WeightError: Weights to start from do not fit the model.
        Qwen3Error: The loss is no longer a number.
    """
    settings = run.settings
    model, grid = make_model(settings, rank, log.line, cache_dir)
    reader = _make_one_reader(settings, grid)
    dropout = start_adapters(model, run, reader) if settings.lora else None
    step = make_step(settings, model, grid)
    step.dropout, done = dropout, 0
    if run.source is None:
        origin = f"{run.lora_base}, under fresh adapters"
        log.line(f"weights: {origin if settings.lora else start_weights(model, settings, reader)}")
    else:
        done = resume_weights(step, model, run.source, settings, reader)
        log.line(f"resumed from {run.source.path(rank)} after step {done}")
    strategy = _describe(run, settings.output_dir, rank)
    # Every rank knows the loss of all; the first writes it down.
    metrics = Metrics(settings.output_dir / METRICS, after_step=done) if rank == 0 else None
    world = WorldSum(grid.world)
    writer = best_writer = None
    if saves:
        writer = _make_writer(run, settings.output_dir, rank, world, log, keep_max=settings.keep_max)
        if settings.validation.keep_best:
            _describe(run, settings.output_dir / BEST, rank)
            best_writer = _make_writer(run, settings.output_dir / BEST, rank, world, log, keep_max=1)
    agreement = StopAgreement(
        request or StopRequest(),
        world.add,
        is_first=rank == 0,
        is_alone=grid.layout.num_ranks == 1,
        exit_file=settings.exit_file,
        checkpoint_bytes=sum(tensor.size * 4 for tensor in (step.weights | step.moments()).values()),
    )
    outputs = RunOutputs(log=log, metrics=metrics, writer=writer, best_writer=best_writer, strategy=strategy)
    try:
        # A dry run, which saves nothing, does not compute either, so it has no speed.
        utilisation = _make_utilisation(run, world, cann, log) if saves else None
        loop = TrainingLoop(run, step, Evaluation(model, grid), grid, world, outputs, utilisation)
        try:
            return loop.run(done, agreement)
        finally:
            loop.close()
    finally:
        if writer is not None:
            writer.close()
        if metrics is not None:
            metrics.close()


def _make_one_reader(settings: TrainSettings, grid: Grid) -> OneReader | None:
    """Return what lets replicas read a part each of the weights; None where each reads all."""
    if not settings.broadcasts or grid.replicas.size == 1:
        return None
    return OneReader(WorldSum(grid.replicas).add_array, grid.replica, grid.replicas.size)


def _make_utilisation(run: PreparedRun, world: WorldSum, cann: Path, log: RunLog) -> Utilisation | None:
    """Return what turns tokens per second into MFU; None where the devices' peak is not known."""
    settings = run.settings
    peak = device_peak(settings.device, cann)
    # All ranks take part in each sum.
    known, total = (world.add(value)[0] for value in (float(peak is not None), peak.flops if peak else 0.0))
    if peak is None or known < settings.layout.num_ranks:
        log.line("no MFU: CANN's description of this NPU, which states its peak, was not found")
        return None
    adapters = settings.lora.num_trained if settings.lora else None
    flops = training_flops(settings.model, settings.data.seq_length, adapter_parameters=adapters)
    devices = counted(settings.layout.num_ranks, "device")
    reach = f"the {devices} {'reaches' if settings.layout.num_ranks == 1 else 'reach'}"
    log.line(
        f"MFU: a token takes {flops / 1e9:.3g} GFLOP, {reach} {total / 1e12:.3g} TFLOP/s ({peak.source})"
    )
    return Utilisation(flops, total, is_timed=peak.is_timed)


def _describe(run: PreparedRun, folder: Path, rank: int) -> Path:
    """Write the strategy files of the checkpoints in `folder`, and for adapters their configuration."""
    settings = replace(run.settings, output_dir=folder)
    if settings.lora and run.lora_base and rank == 0:
        write_adapter_config(settings.lora, settings, run.lora_base)
    return write_strategies(
        folder,
        settings.layout,
        settings.model,
        rank,
        offset=settings.offset,
        shares_moments=settings.parallel_optimizer,
        lora=settings.lora,
    )


def _make_writer(
    run: PreparedRun, folder: Path, rank: int, world: WorldSum, log: RunLog, *, keep_max: int
) -> CheckpointWriter:
    settings, share = run.settings, None
    if settings.shares_writing and settings.layout.num_ranks > 1:
        share = own_share(
            settings.layout, settings.model, rank, offset=settings.offset,
            shares_moments=settings.parallel_optimizer, lora=settings.lora,
        )  # fmt: skip
    is_own = folder == settings.output_dir
    writer = CheckpointWriter(
        folder / "checkpoint" / f"rank_{rank}",
        f"{settings.prefix}_rank_{rank}",
        keep_max,
        in_thread=settings.async_save and is_own,
        share=share,
        wait_for_others=lambda: world.add(0.0),
        log=log.line,
    )
    if is_own and rank == 0:
        writer.on_whole = lambda: forget_earlier(folder)
    return writer
