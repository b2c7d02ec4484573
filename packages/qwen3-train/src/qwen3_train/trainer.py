"""The run itself: weights in, then steps, evaluations and checkpoints."""

import math
import secrets
import time
from dataclasses import asdict, replace
from pathlib import Path

import mindspore as ms
from mindspore.communication import init

from qwen3_model.ascend_settings import AscendSettings, choose_device
from qwen3_model.checkpoint_files import Place
from qwen3_model.errors import Qwen3Error
from qwen3_model.kernels import make_kernels
from qwen3_model.model import Qwen3ForCausalLM
from qwen3_model.msrun.stop_signals import StopRequest
from qwen3_train.checkpoints.checkpoint import FloatTensor, TrainState
from qwen3_train.checkpoints.resume import data_facts, run_facts
from qwen3_train.checkpoints.strategy_files import write_strategies
from qwen3_train.checkpoints.weights import resume_weights, start_weights
from qwen3_train.checkpoints.writer import CheckpointWriter
from qwen3_train.data.batches import evaluation_batches
from qwen3_train.data.step_reader import StepReader
from qwen3_train.graph_cache import graph_cache
from qwen3_train.lora.base import write_adapter_config
from qwen3_train.lora.run import start_adapters
from qwen3_train.parallel.grid import Grid, WorldSum, make_grid
from qwen3_train.peak_memory import peak_memory_gb
from qwen3_train.prepare import PreparedRun
from qwen3_train.recompute import apply_recompute
from qwen3_train.reports.run_log import Metrics, RunLog, step_line
from qwen3_train.run_folder import BEST, METRICS
from qwen3_train.skipped_steps import SkippedSteps
from qwen3_train.step import Evaluation, TrainStep
from qwen3_train.stopping import StopAgreement

COUNT_BASE = 1 << 12
RECENT_STEPS = 20
"""Steps that the estimate of the time left looks back on."""


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
) -> str:
    """Take every step of `run` that is left, as one of its ranks, evaluating and saving on the way.

    Args:
        run: What to do.
        log: Of this rank.
        rank: Its number.
        saves: Whether to write checkpoints.
        request: What may ask it to save and end.

    Returns:
        Why it ended before its last step; "" where it did not.

    Raises:
        WeightError: Weights to start from do not fit the model.
        Qwen3Error: The loss is no longer a number.
    """
    settings = run.settings
    grid = make_grid(settings.device, settings.model, settings.layout, settings.offset, rank)
    kernels = make_kernels(settings.device, float32_residual=settings.ascend.float32_residual)
    model = Qwen3ForCausalLM(settings.model, kernels, tp=grid.tp, part=grid.part)
    dropout = start_adapters(model, run) if settings.lora else None
    apply_recompute(model, settings.recompute, grid.stage)
    step = TrainStep(
        model,
        settings.adam,
        max_norm=settings.max_grad_norm,
        num_micro_batches=settings.passes,
        grid=grid,
        shares_moments=settings.parallel_optimizer,
        skip=settings.skip,
        graphs=graph_cache(settings, rank, log.line),
    )
    step.dropout, done = dropout, 0
    if run.source is None:
        told = f"{run.lora_base}, under fresh adapters" if settings.lora else start_weights(model, settings)
        log.line(f"weights: {told}")
    else:
        done = resume_weights(step, model, run.source, settings.fused_layout)
        log.line(f"resumed from {run.source.files.get(rank, run.source.first)} after step {done}")
    strategy = _describe(run, settings.output_dir, rank)
    # Every rank knows the loss of all; one writes it down.
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
        checkpoint_bytes=sum(held.size * 4 for held in (step.weights | step.moments()).values()),
    )
    try:
        loop = _Loop(run, step, Evaluation(model, grid), grid, world, writer, metrics, log, strategy)
        loop.best_writer = best_writer
        try:
            return loop.run(done, agreement)
        finally:
            loop.reader.close()
    finally:
        if writer is not None:
            writer.close()
        if metrics is not None:
            metrics.close()


def _describe(run: PreparedRun, folder: Path, rank: int) -> Path:
    """Write beside the checkpoints in `folder` how they are cut, and of adapters what they belong to."""
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
    return CheckpointWriter(
        folder / "checkpoint" / f"rank_{rank}",
        f"{run.settings.prefix}_rank_{rank}",
        keep_max,
        in_thread=run.settings.async_save and folder == run.settings.output_dir,
        wait_for_others=lambda: world.add(0.0),
        log=log.line,
    )


class _Loop:
    def __init__(  # noqa: PLR0913
        self,
        run: PreparedRun,
        step: TrainStep,
        evaluation: Evaluation,
        grid: Grid,
        world: WorldSum,
        writer: CheckpointWriter | None,
        metrics: Metrics | None,
        log: RunLog,
        strategy: Path,
    ) -> None:
        self.strategy, self.best = strategy, replace(run.best)
        self.best_writer: CheckpointWriter | None = None
        self.prepared, self.step, self.evaluation = run, step, evaluation
        self.grid, self.world, self.writer, self.metrics, self.log = grid, world, writer, metrics, log
        self.times_s: list[float] = []
        self.reader = StepReader(
            run.train,
            run.plan,
            run.options,
            run.settings.model.vocab_size,
            replica=grid.replica,
            last_step=run.last_step,
            add_counts=self._add_counts,
        )
        self.skipped = SkippedSteps(run.settings.skip)
        # Rank 0 says it to all; float32 has these integers exactly.
        parts = (float(secrets.randbelow(1 << 24)) if grid.rank == 0 else 0.0 for _ in range(2))
        self.course = "".join(f"{int(world.add(part)[0]):06x}" for part in parts)

    def run(self, done: int, agreement: StopAgreement) -> str:
        """Take the steps after `done`; return why it ended before the last one, or ""."""
        settings, last, saved = self.prepared.settings, self.prepared.last_step, done
        if done == 0:
            self._evaluate(0)
        for number in range(done + 1, last + 1):
            if self.writer is not None:
                self.writer.check()
            if reason := agreement.reason(number, self.times_s[-1] if len(self.times_s) > 1 else 0.0):
                if saved < number - 1:
                    self._save(number - 1)
                self._finish()
                kept = f"step {number - 1} is saved" if number > 1 else "no step was taken"
                self.log.line(f"ended by {reason}: {kept}; start the run again to go on")
                return reason
            values = self._step(number)
            if number % settings.log_every == 0 or number in (done + 1, last):
                self._log_step(number, values)
            if number == last or (settings.eval_every and number % settings.eval_every == 0):
                self._evaluate(number)
                if self._is_hopeless() and number < last:
                    self._end_early(number)
                    return ""
            if number == last or (settings.save_every and number % settings.save_every == 0):
                started_s, saved = time.perf_counter(), number
                self._save(number)
                agreement.saved_in(time.perf_counter() - started_s)
                self._require_folder()
        self._finish()
        return ""

    def _is_hopeless(self) -> bool:
        patience = self.prepared.settings.validation.patience
        return patience is not None and self.best.waited >= patience

    def _end_early(self, number: int) -> None:
        self._save(number)
        self._finish()
        self.log.line(
            f"EarlyStopping: eval_loss was lowest at step {self.best.step} ({self.best.loss:.6f}), "
            f"{self.best.waited} evaluations ago; the run ends after step {number}"
        )

    def _finish(self) -> None:
        if self.writer is not None:
            self.writer.finish()
        self._require_folder()

    def _require_folder(self) -> None:
        """Refuse to go on where what the run had written is gone, but for what it has just saved."""
        if not self.strategy.exists():
            raise Qwen3Error(
                f"{self.prepared.settings.output_dir} was removed or moved while the run was going on "
                f"({self.strategy} is gone); what is there now was written since, so it lacks config.json "
                "and the metrics before: choose another --output_dir and start again"
            )

    def _step(self, number: int) -> dict[str, float]:
        run, started_s = self.prepared, time.perf_counter()
        lr = run.schedule(number - 1)
        result = self.step.run(self.reader.batches(number), lr, number)
        step_time_s = time.perf_counter() - started_s
        warning = self.skipped.notice(number, result)
        self.times_s.append(step_time_s)
        speed = run.plan.global_batch * run.settings.data.seq_length / step_time_s
        values = {
            "loss": result.loss, "lr": lr, "grad_norm": result.grad_norm,
            "tokens_per_s": speed, "step_time_s": step_time_s,
            "memory_gb": peak_memory_gb(run.settings.device),
        }  # fmt: skip
        if warning is not None:
            self.log.line(warning, "WARNING")
            values["skipped_in_row"] = self.skipped.in_row
        self._write(step=number, **values)
        return values

    def _write(self, *, step: int, **values: float) -> None:
        if self.metrics is not None:
            # JSON has no other numbers.
            self.metrics.write(step=step, **{k: v for k, v in values.items() if math.isfinite(v)})

    def _log_step(self, number: int, values: dict[str, float]) -> None:
        plan = self.prepared.plan
        # The first step compiles, so it says nothing about those to come.
        recent = self.times_s[1:][-RECENT_STEPS:] or self.times_s
        left_s = (self.prepared.last_step - number) * sum(recent) / len(recent)
        epoch, within = plan.epoch_and_step(number)
        self.log.line(step_line((epoch, plan.num_epochs), (within, plan.steps_of(epoch)), values, left_s))

    def _evaluate(self, number: int) -> None:
        run = self.prepared
        if run.valid is None:
            return
        if self.step.dropout is not None:
            self.step.dropout.switch_off()
        total, counted = 0.0, 0
        batches = evaluation_batches(
            run.valid,
            run.num_valid,
            run.settings.batch_size,
            run.options,
            run.settings.model.vocab_size,
            replica=self.grid.replica,
            num_replicas=self.grid.layout.dp,
        )
        for batch, unmasked in batches:
            counted += unmasked
            total += self.evaluation.run(batch)
        (total,) = self.world.add(total if self.grid.has_loss() else 0.0)
        counted = self._add_counts(counted)
        loss = total / max(counted, 1)
        perplexity = math.exp(min(loss, 700.0))
        self._write(step=number, eval_loss=loss, eval_perplexity=perplexity)
        told = f"eval_loss: {loss:.6f}, eval_perplexity: {perplexity:.3f} on {counted} held-out tokens"
        self.log.line(f"step {number}: {told}")
        if self.best.take(number, loss, run.settings.validation.min_delta) and self.best_writer and number:
            self._save_to(self.best_writer, number)

    def _add_counts(self, counted: int) -> int:
        """Add up whole numbers over the replicas; float32 has each half exactly."""
        if self.world.world.size == 1:
            return counted
        upper, lower = divmod(counted, COUNT_BASE) if self.grid.has_loss() else (0, 0)
        upper_sum, lower_sum = self.world.add(float(upper), float(lower))
        return int(upper_sum) * COUNT_BASE + int(lower_sum)

    def _save(self, number: int) -> None:
        if self.writer is not None:
            self._save_to(self.writer, number)

    def _save_to(self, writer: CheckpointWriter, number: int) -> None:
        run = self.prepared
        parameters = self.step.weights | self.step.moments()
        writer.save(
            Place(*run.plan.epoch_and_step(number)),
            TrainState(
                number,
                run.fingerprint,
                run.lora_base_fingerprint,
                run.plan.global_batch,
                run.plan.start,
                data_facts(run.settings),
                self.course,
                skipped=self.step.num_skipped,
                settings=run_facts(run.settings),
                best=asdict(self.best) if math.isfinite(self.best.loss) else {},
            ),
            [FloatTensor(name, tuple(held.shape), held.asnumpy) for name, held in parameters.items()],
        )
