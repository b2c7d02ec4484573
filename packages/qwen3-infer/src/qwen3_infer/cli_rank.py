"""What each worker of `qwen3-infer` runs: `python -m qwen3_infer.cli_rank COMMAND ARGUMENTS...`, its own."""

import os
import sys
from pathlib import Path

from qwen3_infer.cli import main as command
from qwen3_infer.processes.rank import Rank
from qwen3_infer.processes.shared_model import DRIVER_VARIABLE
from qwen3_model.ranks.msrun.records import LOG_DIR_VARIABLE


def main() -> None:
    """Do a command's part as the rank that msrun says."""
    rank = Rank(
        number=int(os.environ["RANK_ID"]),
        log_dir=Path(os.environ[LOG_DIR_VARIABLE]),
        master_addr=os.environ.get("MS_SCHED_HOST", "127.0.0.1"),
        driver=os.environ.get(DRIVER_VARIABLE, ""),
    )
    command.main(sys.argv[1:], prog_name="qwen3-infer", obj=rank)


if __name__ == "__main__":
    main()
