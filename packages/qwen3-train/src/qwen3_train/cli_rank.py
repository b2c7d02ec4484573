"""What each worker of `qwen3-train launch` runs: `python -m qwen3_train.cli_rank --config YAML ...`."""

import os
import sys
from pathlib import Path

from qwen3_train.launch import run_rank


def main() -> None:
    """Train as the rank that msrun says."""
    _, _, config_path, *arguments = sys.argv
    rank, worker_num = int(os.environ["RANK_ID"]), int(os.environ["RANK_SIZE"])
    run_rank(Path(config_path), arguments, rank=rank, worker_num=worker_num)


if __name__ == "__main__":
    main()
