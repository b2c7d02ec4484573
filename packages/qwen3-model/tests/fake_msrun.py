"""Stands for msrun in tests: same flags, same processes and sessions, same words, no MindSpore."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
for flag in (
    "worker_num",
    "local_worker_num",
    "master_port",
    "node_rank",
    "cluster_time_out",
    "tail_worker_log",
):
    parser.add_argument(f"--{flag}", type=int)
for flag in ("master_addr", "log_dir", "join"):
    parser.add_argument(f"--{flag}")
parser.add_argument("command", nargs=argparse.REMAINDER)
args = parser.parse_args()

workers = []
for local_rank in range(args.local_worker_num):
    rank = args.node_rank * args.local_worker_num + local_rank
    environment = os.environ | {"RANK_ID": str(rank), "MS_ROLE": "MS_WORKER", "OMP_NUM_THREADS": "1"}
    with (Path(args.log_dir) / f"worker_{rank}.log").open("w") as log:
        workers.append(
            subprocess.Popen(
                args.command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        )
while any(worker.poll() is None for worker in workers):
    for worker in workers:
        if worker.poll():
            said = f"Worker process {worker.pid} exit with exception. Error code: {worker.returncode}.\n"
            sys.stdout.write(said)
            sys.stdout.flush()
            for other in workers:
                other.kill()
            time.sleep(60)  # as msrun waits for its scheduler
    time.sleep(0.1)
sys.exit(max(worker.returncode for worker in workers))
