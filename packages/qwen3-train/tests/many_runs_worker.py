"""A process of msrun that trains one run after the other: many layouts for one start of the processes.

Usage: many_runs_worker.py JOBS, a JSON list of {"config": YAML, "arguments": [...]}, with "most_logits" where
the loss is to be taken in chunks of so many logits.
"""

import gc
import json
import os
import sys
from pathlib import Path


def main() -> None:
    if os.environ["MS_ROLE"] == "MS_SCHED":
        import mindspore
        from mindspore.communication import init

        mindspore.set_device("CPU")
        init()
        return
    from kept_graphs import kept_graphs

    from qwen3_train.launch.launch import run_rank
    from qwen3_train.loss import loss_chunks

    usual = loss_chunks.MOST_LOGITS
    rank, worker_num = int(os.environ["RANK_ID"]), int(os.environ["MS_WORKER_NUM"])
    with kept_graphs():
        for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
            gc.freeze()  # what earlier runs left is not looked through again, a tenth of the time
            loss_chunks.MOST_LOGITS = job.get("most_logits", usual)
            run_rank(Path(job["config"]), job["arguments"], rank=rank, worker_num=worker_num)


if __name__ == "__main__":
    main()
