"""A worker of tests: argument 1 is what rank 1 does, argument 2 a folder for what the tests look at."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from qwen3_model.errors import ConfigError
from qwen3_model.ranks.msrun.stop_signals import StoppedExit, StopRequest, watch_stop_signals

deed, folder, rank = sys.argv[1], Path(sys.argv[2]), os.environ["RANK_ID"]
if deed == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a worker that is deep in C++
if deed == "stoppable":
    request = StopRequest()
    watch_stop_signals(request.put)
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
(folder / f"pids_{rank}.tmp").write_text(f"{os.getpid()} {os.getppid()} {helper.pid}")
(folder / f"pids_{rank}.tmp").rename(folder / f"pids_{rank}")
sys.stdout.write(f"prefix {sys.prefix} threads {os.environ['OMP_NUM_THREADS']}\n")
if rank == "1":
    while not (folder / "pids_0").exists():  # Rank 0 may be ended with this one before it has begun
        time.sleep(0.01)
    if deed == "raise":
        raise ValueError("the second rank does not like this\nand says so at length")
    if deed == "refuse":
        raise ConfigError("seq_length=0 must be at least 1")
    if deed == "exit":
        sys.stdout.write("Error: no space left on the device\n[WARNING] what MindSpore says at its end\n")
        sys.exit(1)
    if deed == "kill":
        os.kill(os.getpid(), 9)
    (folder / "status").write_text("three of ten")
if deed == "stoppable":
    while request.by is None:
        time.sleep(0.01)
    time.sleep(0.5 * int(rank))  # the other is done, and msrun must not take that for a failure
    helper.kill()
    helper.wait()
    raise StoppedExit(request.by.name)
if deed != "finish":
    time.sleep(600)
time.sleep(0.5)
helper.kill()
helper.wait()
