"""Train several runs in one start of msrun's processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

from qwen3_model.ranks.msrun.cli_options import free_port

WORKER = Path(__file__).parent / "many_runs_worker.py"


def train_many(folder, jobs, worker_num, longest_s):
    """Run `jobs`, as many_runs_worker.py has them, in `worker_num` processes that log into `folder`."""
    path = folder / f"jobs{worker_num}.json"
    path.write_text(json.dumps(jobs), encoding="utf-8")
    port = str(free_port())
    bin_dir, log_dir = Path(sys.executable).parent, folder / f"log{worker_num}"
    # Every process waits for the slowest, which may be compiling; msrun ends all when one fails.
    environment = os.environ | {"PATH": f"{bin_dir}:{os.environ['PATH']}", "MS_CPU_COMM_OP_TIMEOUT": "600"}
    done = subprocess.run(
        [
            bin_dir / "msrun", f"--worker_num={worker_num}", f"--local_worker_num={worker_num}",
            f"--master_port={port}", f"--log_dir={log_dir}", "--join=True",
            WORKER, path,
        ],
        env=environment, capture_output=True, text=True, check=False, timeout=longest_s,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
