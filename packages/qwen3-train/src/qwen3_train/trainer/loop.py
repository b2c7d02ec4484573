"""The steps of a run: train, log, evaluate and save, until the last step or a request to stop."""

import math
import secrets
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from qwen3_model.checkpoints.checkpoint_files import EpochStep
from qwen3_model.command.plain_text import counted
from qwen3_model.errors import Qwen3Error
from qwen3_train.checkpoints.checkpoint import FloatTensor, TrainState
from qwen3_train.checkpoints.resume import data_facts, run_facts
from qwen3_train.checkpoints.writer import CheckpointWriter
from qwen3_train.data.batches import counted_tokens, evaluation_batches
from qwen3_train.data.context_part import ContextPart
from qwen3_train.data.step_reader import StepReader, require_whole_files
from qwen3_train.parallel.grid import Grid, WorldSum
from qwen3_train.prepare.prepare import PreparedRun
from qwen3_train.reports.run_log import Metrics, RunLog, step_line
from qwen3_train.step.step import Evaluation, TrainStep
from qwen3_train.trainer.device_peak import Utilisation
from qwen3_train.trainer.peak_memory import peak_memory_gb
from qwen3_train.trainer.profiling import StepProfiler
from qwen3_train.trainer.skipped_steps import SkippedSteps
from qwen3_train.trainer.stopping import StopAgreement

COUNT_BASE = 1 << 12
RECENT_STEPS = 20
"""Steps that the estimate of the time left looks back on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOutputs:
    """What one rank writes of a run."""

    log: RunLog
    metrics: Metrics | None
    """Metrics file; None on all ranks but the first."""
    writer: CheckpointWriter | None
    """Writes the run's checkpoints; None for a run that saves none."""
    best_writer: CheckpointWriter | None
    """Writes the checkpoint of the lowest evaluation loss; None where it is not kept."""
    strategy: Path
    """The rank's strategy file, which is in the run's folder before the first step."""


class TrainingLoop:
    """Take the steps of a run as one of its ranks."""

    def __init__(
        self,
        run: PreparedRun,
        step: TrainStep,
        evaluation: Evaluation,
        grid: Grid,
        world: WorldSum,
        outputs: RunOutputs,
        utilisation: Utilisation | None,
    ) -> None:
        """Open the run's data; all ranks call this.

        Args:
            run: What to do.
            step: Updates the model.
            evaluation: Computes the same model's losses on held-out samples.
            grid: What this rank is.
            world: Adds up numbers over all ranks.
            outputs: Where log, metrics and checkpoints go.
            utilisation: Turns tokens per second into MFU; None where the devices' peak is not known.
        """
        self.prepared, self.step, self.evaluation = run, step, evaluation
        self.grid, self.world, self.outputs, self.utilisation = grid, world, outputs, utilisation
        self.log, self.best = outputs.log, replace(run.best)
        self.times_s: list[float] = []
        self.reader = StepReader(
            run.train,
            run.plan,
            run.options,
            run.settings.model.vocab_size,
            part=ContextPart.of_rank(grid.layout, grid.replica),
            last_step=run.last_step,
            add_counts=self._add_counts,
        )
        self.skipped = SkippedSteps(run.settings.skip)
        self.profiler = StepProfiler(
            run.settings.profile, run.settings.output_dir, grid, run.settings.device, self.log.line
        )
        self.course = self._draw_course()

    def _draw_course(self) -> str:
        """Return the number of this start, hexadecimal: rank 0 draws it, and a sum brings it to all ranks."""
        # Two halves of 24 bits: float32 has such integers exactly.
        halves = (float(secrets.randbelow(1 << 24)) if self.grid.rank == 0 else 0.0 for _ in range(2))
        return "".join(f"{int(self.world.add(half)[0]):06x}" for half in halves)

    def run(self, done: int, agreement: StopAgreement) -> str:
        """Take the steps after `done`; return why the run ended before its last step, or ""."""
        settings, last, saved = self.prepared.settings, self.prepared.last_step, done
        if done == 0:
            self._evaluate(0)
        for number in range(done + 1, last + 1):
            if self.outputs.writer is not None:
                self.outputs.writer.check()
            if reason := agreement.reason(number, self.times_s[-1] if len(self.times_s) > 1 else 0.0):
                self._stop_before(number, reason, is_saved=saved == number - 1)
                return reason
            self.profiler.before(number)
            values = self._take_step(number)
            self.profiler.after(number)
            if number % settings.log_every == 0 or number in (done + 1, last):
                self._log_step(number, values)
            if self._is_due(number, settings.eval_every):
                self._evaluate(number)
                if self._is_patience_used_up() and number < last:
                    self._stop_early(number)
                    return ""
            if self._is_due(number, settings.save_every):
                started_s, saved = time.perf_counter(), number
                self._save(number)
                agreement.saved_in(time.perf_counter() - started_s)
                self._require_folder()
        self._finish_writing()
        return ""

    def close(self) -> None:
        """Stop the reader's thread and the profiler."""
        self.reader.close()
        self.profiler.close()

    def _is_due(self, number: int, every: int | None) -> bool:
        """Return whether this step is the last, or one of those that end each `every` steps."""
        return number == self.prepared.last_step or (every is not None and number % every == 0)

    def _is_patience_used_up(self) -> bool:
        patience = self.prepared.settings.validation.patience
        return patience is not None and self.best.waited >= patience

    def _stop_before(self, number: int, reason: str, *, is_saved: bool) -> None:
        if not is_saved:
            self._save(number - 1)
        self._finish_writing()
        kept = f"step {number - 1} is saved" if number > 1 else "no step was taken"
        self.log.line(f"ended by {reason}: {kept}; start the run again to go on")

    def _stop_early(self, number: int) -> None:
        self._save(number)
        self._finish_writing()
        self.log.line(
            f"EarlyStopping: eval_loss was lowest at step {self.best.step} ({self.best.loss:.6f}), "
            f"{counted(self.best.waited, 'evaluation')} ago; the run ends after step {number}"
        )

    def _finish_writing(self) -> None:
        if self.outputs.writer is not None:
            self.outputs.writer.finish()
        self._require_folder()

    def _require_folder(self) -> None:
        """Raise Qwen3Error where the run's folder was removed: checkpoints alone are not the run."""
        if not self.outputs.strategy.exists():
            raise Qwen3Error(
                f"{self.prepared.settings.output_dir} was removed or moved while the run was going on "
                f"({self.outputs.strategy} is gone); what is there now was written since, so it lacks "
                "config.json and the metrics before: choose another --output_dir and start again"
            )

    def _take_step(self, number: int) -> dict[str, float]:
        """Take one step; return what the metrics say of it."""
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
        if self.utilisation is not None:
            values["mfu"] = self.utilisation.at(speed)
        if warning is not None:
            self.log.line(warning, "WARNING")
            values["skipped_in_row"] = self.skipped.in_row
        self._write_metrics(step=number, **values)
        return values

    def _write_metrics(self, *, step: int, **values: float) -> None:
        if self.outputs.metrics is not None:
            # JSON has no numbers that are not finite.
            self.outputs.metrics.write(step=step, **{k: v for k, v in values.items() if math.isfinite(v)})

    def _log_step(self, number: int, values: dict[str, float]) -> None:
        plan = self.prepared.plan
        # The first step compiles, so its time says nothing about the steps to come.
        recent = self.times_s[max(1, len(self.times_s) - RECENT_STEPS) :] or self.times_s
        left_s = (self.prepared.last_step - number) * sum(recent) / len(recent)
        epoch, within = plan.epoch_and_step(number)
        self.log.line(step_line((epoch, plan.num_epochs), (within, plan.steps_of(epoch)), values, left_s))

    def _evaluate(self, number: int) -> None:
        run = self.prepared
        if run.valid is None:
            return
        if self.step.dropout is not None:
            self.step.dropout.switch_off()
        total, num_tokens = 0.0, 0
        batches = evaluation_batches(
            run.valid,
            run.num_valid,
            run.settings.batch_size,
            run.options,
            run.settings.model.vocab_size,
            replica=self.reader.part.replica,
            num_replicas=self.grid.layout.data_parallel,
        )
        for whole, unmasked in batches:
            batch = self.reader.part.part_of(whole)
            num_tokens += unmasked if batch is whole else counted_tokens([batch])
            total += self.evaluation.run(batch)
        require_whole_files(run.valid)
        (total,) = self.world.add(total if self.grid.has_loss() else 0.0)
        num_tokens = self._add_counts(num_tokens)
        loss = total / max(num_tokens, 1)
        perplexity = math.exp(min(loss, 700.0))
        self._write_metrics(step=number, eval_loss=loss, eval_perplexity=perplexity)
        self.log.line(
            f"step {number}: eval_loss: {loss:.6f}, eval_perplexity: {perplexity:.3f} on "
            f"{counted(num_tokens, 'held-out token')}"
        )
        is_best = self.best.take(number, loss, run.settings.validation.min_delta)
        if is_best and self.outputs.best_writer is not None and number > 0:
            self._save_with(self.outputs.best_writer, number)

    def _add_counts(self, count: int) -> int:
        """Return the sum of the replicas' whole numbers; float32 has the sum of each half exactly."""
        if self.world.world.size == 1:
            return count
        upper, lower = divmod(count, COUNT_BASE) if self.grid.has_loss() else (0, 0)
        upper_sum, lower_sum = self.world.add(float(upper), float(lower))
        return int(upper_sum) * COUNT_BASE + int(lower_sum)

    def _save(self, number: int) -> None:
        if self.outputs.writer is not None:
            self._save_with(self.outputs.writer, number)

    def _save_with(self, writer: CheckpointWriter, number: int) -> None:
        run = self.prepared
        tensors = {
            name: FloatTensor(name, tuple(tensor.shape), tensor.asnumpy)
            for name, tensor in (self.step.weights | self.step.moments()).items()
        }
        for name, whole in self.step.whole_moments(writer.share):
            tensors[name] = FloatTensor(name, whole.shape, partial(np.asarray, whole))
        writer.save(
            EpochStep(*run.plan.epoch_and_step(number)),
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
                best=replace(self.best) if math.isfinite(self.best.loss) else None,
            ),
            tensors.values(),
        )
