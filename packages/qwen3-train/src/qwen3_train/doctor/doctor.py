"""A list for the first day on a machine: what is there, what is missing, whether it computes what it should.

The machine itself is looked at here. The device is used in processes of their own, since a driver that does
not fit ends a process without a word, or stands still.
"""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

from qwen3_model.device.simulation import read_simulation
from qwen3_model.errors import Qwen3Error
from qwen3_model.ranks.msrun.checks import LaunchSettings, count_ascend_devices
from qwen3_model.ranks.msrun.launcher import Job, launch_workers
from qwen3_train.doctor.checks import machine_findings
from qwen3_train.doctor.finding import FAIL, PASS, SKIPPED, Finding
from qwen3_train.doctor.measured import Measured

LOSSES, GRAD_NORM = (6.536376, 5.047460), 3.230459
"""Losses of `doctor.probe`'s two steps, in nats, and the norm of the first, in float32 on a CPU."""
ATOL = {"CPU": 1e-3, "Ascend": 5e-2}
"""Float32 in another order; bfloat16, of which nothing was measured on the hardware."""
PRODUCT_RTOL = {"CPU": 1e-5, "Ascend": 1e-2}
"""A product of 256 x 256; an Ascend may multiply float32 in half precision."""


def examine(
    device: str,
    launch: LaunchSettings,
    output_dir: Path,
    environment: Mapping[str, str],
    *,
    time_out_s: float,
) -> Iterator[Finding]:
    """Yield one finding after the other, those that need the device last.

    Args:
        device: CPU or Ascend.
        launch: How many workers try the device together, and where.
        output_dir: Where runs shall be written.
        environment: This process's environment.
        time_out_s: For the workers.
    """
    failed = set()
    for finding in machine_findings(device, launch, output_dir, environment):
        if finding.state == FAIL:
            failed.add(finding.what)
        yield finding
    needed = {"python", "mindspore", "numpy", "npu", "ports"} & failed
    if needed:
        for what in ("device", "collective", "step"):
            yield Finding(what, SKIPPED, f"needs {', '.join(sorted(needed))}")
        return
    with tempfile.TemporaryDirectory(prefix="qwen3-doctor-") as folder:
        found = Path(folder) / "found.json"
        logs = replace(launch, log_dir=launch.log_dir)
        try:
            with _limit(time_out_s):
                _use_device(device, logs, found, environment)
        except (Qwen3Error, OSError) as error:
            yield Finding("device", FAIL, str(error), f"read {launch.log_dir}; mend the lines above first")
            for what in ("collective", "step"):
                yield Finding(what, SKIPPED, "needs device")
            return
        if read_simulation(environment):
            yield Finding("device", PASS, "the graphs compile in this dry run, which computes nothing")
            return
        if not found.exists():
            yield Finding(
                "device", PASS, "the workers of this node have finished; node 0 says what they found"
            )
            return
        measured: Measured = json.loads(found.read_text(encoding="utf-8"))
        yield from _judge(device, launch.worker_num, measured)


def _use_device(device: str, launch: LaunchSettings, found: Path, environment: Mapping[str, str]) -> None:
    simulation = read_simulation(environment)
    num_ranks = simulation.num_ranks if simulation else launch.worker_num
    argv = ["-m", "qwen3_train.cli_doctor_rank", device, str(num_ranks), str(found)]
    if launch.worker_num > 1 and simulation is None:
        devices = None
        if device == "Ascend":
            devices = count_ascend_devices(environment.get("ASCEND_RT_VISIBLE_DEVICES"))
        launch_workers(Job(argv=argv, environment=environment), launch, num_devices=devices)
        return
    launch.log_dir.mkdir(parents=True, exist_ok=True)
    log = launch.log_dir / "doctor.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *argv], env=dict(environment), stdout=output, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait()
        finally:
            process.kill()
    if code:
        how = f"ended with exit code {code}" if code > 0 else f"was ended by signal {-code}"
        lines = [
            line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
        ]
        raise Qwen3Error(f"the process {how}: {lines[-1].strip() if lines else 'it said nothing'}; see {log}")


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Raise after `seconds`: a device or a network that stands still says nothing by itself."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Qwen3Error(f"the workers did not end within {seconds:g} s (--timeout)")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _judge(device: str, num_ranks: int, found: Measured) -> Iterator[Finding]:
    error, allowed = found["product_error"], PRODUCT_RTOL[device]
    yield Finding(
        "device", PASS if error <= allowed else FAIL,
        f"{device} multiplies matrices within {error:.1e} (MindSpore {found['mindspore']})",
        "driver, CANN and MindSpore do not fit: install a set that MindSpore's version table names",
    )  # fmt: skip
    total = found["sum"]
    if total is None:
        yield Finding("collective", SKIPPED, "one process; --worker-num N tries N together")
    else:
        text = f"AllReduce of 16.8 MB over {num_ranks} ranks in {total['seconds'] * 1e3:.0f} ms, "
        yield Finding(
            "collective", PASS if total["is_right"] else FAIL,
            text + f"{total['gb_per_s']:.3g} GB/s" + ("" if total["is_right"] else ", with wrong sums"),
            "check the links between the devices (hccn_tool) and that all nodes have the same versions",
        )  # fmt: skip
    yield from _judge_steps(device, found)


def _judge_steps(device: str, found: Measured) -> Iterator[Finding]:
    steps, atol = found["steps"], ATOL[device]
    losses, norm = [step["loss"] for step in steps], steps[0]["grad_norm"]
    differences = [abs(loss - known) for loss, known in zip(losses, LOSSES, strict=True)]
    good = all(each <= atol for each in differences) and abs(norm - GRAD_NORM) <= atol * max(1.0, GRAD_NORM)
    known = ", ".join(f"{loss:.4f}" for loss in LOSSES)
    yield Finding(
        "step", PASS if good else FAIL,
        f"losses {', '.join(f'{loss:.4f}' for loss in losses)} (a CPU's {known}), gradient norm {norm:.4f} "
        f"({GRAD_NORM:.4f}), {steps[-1]['seconds']:.2g} s, {found['memory_gb']:.2g} GB at most",
        "do not train here: report device, versions and these numbers",
    )  # fmt: skip
