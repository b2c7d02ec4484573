"""What msrun runs: `python -m qwen3_model.ranks.msrun.cli_worker TARGET...`.

TARGET is what would follow `python`.

msrun starts one process more than there are workers, the scheduler, with the same command: it only lets the
workers find each other and never runs the target. A worker leaves a record of its state, so that the launcher
can name the first that failed.
"""

import os
import runpy
import sys
from pathlib import Path

from qwen3_model.errors import Qwen3Error
from qwen3_model.ranks.msrun.records import (
    DONE,
    FAILED,
    LOG_DIR_VARIABLE,
    NODE_VARIABLE,
    RUNNING,
    SCHEDULER,
    STOPPED,
    THREADS_VARIABLE,
    write_record,
)
from qwen3_model.ranks.msrun.stop_signals import StoppedExit

LONGEST_ERROR = 600


def main() -> None:
    """Run the target, or the scheduler, and record how it ends."""
    log_dir = Path(os.environ[LOG_DIR_VARIABLE])
    is_scheduler = os.environ.get("MS_ROLE") == "MS_SCHED"
    if is_scheduler and os.environ.get(NODE_VARIABLE, "0") != "0":
        # msrun takes each node with the address of node 0 for node 0, also where several are on one machine.
        return
    name = SCHEDULER if is_scheduler else f"worker_{os.environ['RANK_ID']}"
    # msrun sets one thread; MindSpore reads this when it is imported.
    os.environ["OMP_NUM_THREADS"] = "1" if is_scheduler else os.environ[THREADS_VARIABLE]
    write_record(log_dir, name, os.getpid(), RUNNING)
    try:
        _schedule() if is_scheduler else _run(sys.argv[1:])
    except SystemExit as stopped:
        if isinstance(stopped, StoppedExit):
            # msrun would end the others, which are still saving, for any code but 0.
            write_record(log_dir, name, os.getpid(), STOPPED, stopped.reason)
            return
        # A sentence has been printed by whoever chose to stop.
        failed = stopped.code not in (None, 0)
        write_record(log_dir, name, os.getpid(), FAILED if failed else DONE)
        raise
    except BaseException as error:
        write_record(log_dir, name, os.getpid(), FAILED, _one_line(error))
        raise
    write_record(log_dir, name, os.getpid(), DONE)


def _run(target: list[str]) -> None:
    if target[0] == "-m":
        sys.argv = target[1:]
        runpy.run_module(target[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = target
        sys.path.insert(0, str(Path(target[0]).absolute().parent))
        runpy.run_path(target[0], run_name="__main__")


def _schedule() -> None:
    import mindspore
    from mindspore.communication import init

    mindspore.set_device("CPU")
    init()


def _one_line(error: BaseException) -> str:
    """The error's first line; MindSpore's have a heading between rules above and a stack of C++ below."""
    lines = (line.strip() for line in str(error).splitlines())
    first = next((line for line in lines if line.strip("- ") and not line.startswith("- ")), "")
    kind = type(error).__name__
    text = first if isinstance(error, Qwen3Error) and first else f"{kind}: {first}" if first else kind
    return text[:LONGEST_ERROR]


if __name__ == "__main__":
    main()
