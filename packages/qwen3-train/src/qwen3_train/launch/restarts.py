"""A job that starts again by itself after a failure, from its newest whole checkpoint (`--max-restarts`)."""

from collections.abc import Callable

from qwen3_model.errors import Qwen3Error, UsageError
from qwen3_train.prepare.prepare import PreparedRun


def require_restartable(
    max_restarts: int, *, is_alone: bool, mode: str, force: bool, joins: bool = True
) -> None:
    """Raise UsageError where a run cannot be started again by its launcher."""
    if max_restarts and not joins:
        raise UsageError(
            "--max-restarts needs a launcher that waits for its processes; leave out --join False"
        )
    if max_restarts and is_alone:
        raise UsageError("--max-restarts is for several processes; one alone ends with its launcher")
    if max_restarts and (mode != "auto" or force):
        raise UsageError(
            "--max-restarts needs resume_training: auto, and no --force, so that each start goes on from "
            "the newest checkpoint"
        )


def run_with_restarts(
    start: Callable[[PreparedRun], str],
    run: PreparedRun,
    prepare_again: Callable[[], PreparedRun],
    max_restarts: int,
    log: Callable[[str], object],
) -> str:
    """Start the processes of a run, and again after failures; return why the run ended early, or "".

    Args:
        start: Starts them and waits for their end.
        run: As it begins or goes on.
        prepare_again: Finds the newest checkpoint anew.
        max_restarts: Starts after the first.
        log: Takes a sentence.

    Raises:
        Qwen3Error: The last start has failed, or what is there cannot be gone on from.
    """
    for number in range(1, max_restarts + 1):
        try:
            return start(run)
        except Qwen3Error as error:
            log(f"{error}; starting again, {number} of at most {max_restarts} times")
        run = prepare_again()
        if run.is_finished:
            return ""
    return start(run)
