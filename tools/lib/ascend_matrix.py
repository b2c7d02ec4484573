"""Run many cases, and print a line for each: how it ended, kernels by kind, seconds, peak."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import yaml
from ascend_cases import Case
from ascend_dry_run import called_functions, dry_run
from ascend_inputs import Inputs
from ascend_report import GIB, KINDS, Report, known_functions


def run_case(case: Case, inputs: Inputs, folder: Path) -> Report:
    """Run `case` in `folder`, which is new and empty."""
    folder.mkdir(parents=True)
    command = case.command(inputs, folder)
    if case.resumes:
        command += ["--load_checkpoint", str(_checkpoint(case, inputs, folder)), "--resume_training", "True"]
        command += ["--callbacks.2.stop_step", "2"]
    work = folder / "cwd"
    work.mkdir()
    report = dry_run(command, rank=case.rank, ranks=case.ranks, soc=case.soc, cwd=work)
    if left := sorted(path.name for path in work.iterdir()):
        sentence = f"the working directory has got {', '.join(left)}"
        report = replace(report, problems=[*report.problems, sentence])
    return report


def _checkpoint(case: Case, inputs: Inputs, folder: Path) -> Path:
    """Take a step on the CPU, as one process, and return the run's folder."""
    other = folder / "before"
    other.mkdir()
    values = yaml.safe_load(Path(case.command(inputs, other)[-1]).read_text(encoding="utf-8"))
    values |= {"use_parallel": False, "context": {"device_target": "CPU"}, "do_eval": False}
    path = other / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    command = Path(sys.executable).parent / "qwen3-train"
    done = subprocess.run([command, "launch", "--config", path], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"ascend_dry_run: {case.name}: {done.stderr.strip()}")
    return other / "out"


def run_cases(cases: Iterable[Case]) -> int:
    """Print a line for each case as it ends; return how many have a problem."""
    failed, started_s = 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="qwen3-dry-runs-") as base:
        inputs = Inputs(Path(base))
        for number, case in enumerate(cases):
            report = run_case(case, inputs, Path(base) / f"case_{number}")
            failed += bool(report.problems)
            sys.stdout.write(line_of(case, report))
            sys.stdout.flush()
    sys.stdout.write(f"{failed} with problems, {time.monotonic() - started_s:.0f} s\n")
    return failed


def functions_of(case: Case, inputs: Inputs, folder: Path) -> set[str]:
    """Return the aclnn functions that the first graph of `case` calls; `folder` is new."""
    folder.mkdir(parents=True)
    command = case.command(inputs, folder)
    return called_functions(command, rank=case.rank, ranks=case.ranks, soc=case.soc, cwd=folder)


def run_functions(cases: Iterable[Case]) -> int:
    """Print which aclnn functions each case's first graph calls; return how many cases call others."""
    listed, failed = known_functions(), 0
    with tempfile.TemporaryDirectory(prefix="qwen3-dry-runs-") as base:
        inputs = Inputs(Path(base))
        for number, case in enumerate(cases):
            called = functions_of(case, inputs, Path(base) / f"case_{number}")
            failed += not called or bool(called - listed)
            sys.stdout.write(f"{case.name}: {len(called)} functions\n")
            if others := sorted(called - listed):
                sys.stdout.write(f"{'':7}not in the list: {', '.join(others)}\n")
            sys.stdout.flush()
    return failed


def line_of(case: Case, report: Report) -> str:
    """Return the case's line and its problems below."""
    counts = {kind: sum(graph.count(kind) for graph in report.graphs) for kind in KINDS}
    kernels = ", ".join(f"{number} {kind}" for kind, number in counts.items() if number)
    peaks = [graph.peak_bytes or 0 for graph in report.graphs]
    state = "FAILED" if report.problems else "ok"
    line = (
        f"{state:7}{case.name} (rank {case.rank} of {case.ranks}): {kernels or 'no kernels'}; "
        f"{report.facts['seconds']:.0f} s ({report.facts['cpu_seconds']:.0f} of the processor), "
        f"{max(peaks, default=0) / GIB:.2f} GiB\n"
    )
    return line + "".join(f"{'':7}{sentence}\n" for sentence in report.problems)
