"""What each worker of `qwen3-train launch` runs: `python -m qwen3_train.cli_rank --config YAML ...`."""

import os
import sys
from pathlib import Path

from qwen3_model.device.cann import cann_dir
from qwen3_model.ranks.msrun.stop_signals import StoppedExit, StopRequest, watch_stop_signals
from qwen3_train.launch.launch import run_rank
from qwen3_train.trainer.stopping import STOP_AT_VARIABLE


def main() -> None:
    """Train as the rank that msrun says."""
    _, _, config_path, *arguments = sys.argv
    rank, worker_num = int(os.environ["RANK_ID"]), int(os.environ["RANK_SIZE"])
    stop_at = os.environ.get(STOP_AT_VARIABLE)
    request = StopRequest(float(stop_at) if stop_at else None)
    watch_stop_signals(request.put)
    stopped = run_rank(
        Path(config_path),
        arguments,
        rank=rank,
        worker_num=worker_num,
        request=request,
        cann=cann_dir(os.environ),
    )
    if stopped:
        raise StoppedExit(stopped)


if __name__ == "__main__":
    main()
