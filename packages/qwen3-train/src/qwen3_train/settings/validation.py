"""What evaluations decide: which checkpoint is the best, and whether the run goes on."""

from dataclasses import dataclass
from math import inf

from qwen3_model.command.narrow import as_int, as_number
from qwen3_model.command.run_config import RunConfig
from qwen3_model.errors import ConfigError
from qwen3_train.settings.values import callback_of


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationSettings:
    """The callback EarlyStopping, and `keep_best` of CheckpointMonitor."""

    keep_best: bool
    """Keep the checkpoint of the lowest eval_loss in `best` besides the newest."""
    patience: int | None
    """End the run after so many evaluations without a lower loss; None for never."""
    min_delta: float
    """Amount by which a loss must be lower to count."""


@dataclass(slots=True)
class BestLoss:
    """The lowest loss of a run's evaluations, the same on all ranks."""

    loss: float = inf
    step: int = 0
    waited: int = 0
    """Evaluations since."""

    def take(self, step: int, loss: float, min_delta: float) -> bool:
        """Take note of an evaluation; say whether it is the best."""
        if loss < self.loss - min_delta:
            self.loss, self.step, self.waited = loss, step, 0
            return True
        self.waited += 1
        return False


def read_validation(config: RunConfig) -> ValidationSettings:
    """Read the callbacks.

    Raises:
        ConfigError: There is nothing to compare, or a number is out of range.
    """
    stopping = callback_of(config, "EarlyStopping")  # not empty where it is there: it has its type
    keep_best = bool(callback_of(config, "CheckpointMonitor").get("keep_best"))
    interval = as_int(config.get("eval_step_interval", 0))
    if (keep_best or stopping) and not (config.get("do_eval") and interval > 0):
        what = "keep_best" if keep_best else "the callback EarlyStopping"
        raise ConfigError(f"{what} compares evaluations; set do_eval: True and eval_step_interval")
    patience, min_delta = as_int(stopping.get("patience", 1)), as_number(stopping.get("min_delta", 0.0))
    if patience < 1 or min_delta < 0:
        raise ConfigError(
            f"EarlyStopping has patience={patience} and min_delta={min_delta}; use at least 1 and 0"
        )
    return ValidationSettings(
        keep_best=keep_best, patience=patience if stopping else None, min_delta=float(min_delta)
    )
