"""Run one of our commands through MindSpore's Ascend backend as one rank of a job; report on its graphs."""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ascend_report import Report, make_report, text_of
from ascend_stand_in import mindspore_folder, stand_in, stand_in_environment
from measures import cpu_seconds_of_children

PROBE = Path(__file__).with_name("ascend_probe.py")
SOCS = {"Ascend910B2": "A2", "Ascend910_9391": "A3"}
CANN_VARIABLES = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
LEFT_OUT = ("PYTHONPATH", "MS_ROLE", "MS_WORKER_NUM", "MS_SCHED_HOST", "MS_SCHED_PORT", "RANK_TABLE_FILE")


def dry_run(
    command: Sequence[str],
    *,
    rank: int = 0,
    ranks: int = 1,
    soc: str = "Ascend910B2",
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Report:
    """Run `command` as `rank` of `ranks` and return what MindSpore's backend made of it.

    Args:
        command: One of our commands with its arguments; what it prints goes to stderr.
        rank: The one that is played.
        ranks: Ranks of the job.
        soc: What the device says it is.
        cwd: Working directory; None for this process's.
        environment: This process's environment when left out.
    """
    given = dict(os.environ if environment is None else environment)
    with tempfile.TemporaryDirectory(prefix="qwen3-dry-run-") as folder:
        graphs, logs = Path(folder) / "graphs.jsonl", Path(folder) / "log"
        logs.mkdir()
        variables = dry_run_environment(rank, ranks, soc, given) | {
            "GLOG_v": "2", "MS_SUBMODULE_LOG_v": "{DEVICE:1}", "GLOG_logtostderr": "0",
            "GLOG_stderrthreshold": "4", "GLOG_log_dir": str(logs),
        }  # fmt: skip
        started_s, used_s = time.monotonic(), cpu_seconds_of_children()
        done = subprocess.run(
            [sys.executable, "-s", PROBE, graphs, *command],
            env=variables, cwd=cwd, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False,
        )  # fmt: skip
        facts = {
            "command": list(command), "rank": rank, "ranks": ranks, "soc": soc,
            "mindspore": importlib.metadata.version("mindspore"), "cann": real_cann(given) or "stand-ins",
            "exit_code": done.returncode, "seconds": round(time.monotonic() - started_s, 1),
            "cpu_seconds": round(cpu_seconds_of_children() - used_s, 1),
        }  # fmt: skip
        return make_report(facts, graphs, logs)


def called_functions(
    command: Sequence[str], *, rank: int, ranks: int, soc: str = "Ascend910B2", cwd: Path | None = None
) -> set[str]:
    """Return the aclnn functions that MindSpore calls to prepare the kernels of the command's first graph.

    At simulation level 3 it does call them, and ends at the first launch, for which a stand-in has prepared
    nothing. CANN itself would need a device there.
    """
    with tempfile.TemporaryDirectory(prefix="qwen3-dry-run-") as folder:
        called = Path(folder) / "called"
        called.touch()
        variables = dry_run_environment(rank, ranks, soc, {}) | {
            "PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", folder), "GLOG_v": "4",
            "MS_SIMULATION_LEVEL": "3", "QWEN3_DRY_RUN_ACLNN": str(called),
        }  # fmt: skip
        subprocess.run(
            [sys.executable, "-s", PROBE, Path(folder) / "graphs.jsonl", *command],
            env=variables, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, check=False,
        )  # fmt: skip
        return set(called.read_text(encoding="ascii").split())


def dry_run_environment(
    rank: int, ranks: int, soc: str = "Ascend910B2", environment: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the environment of a process that plays `rank` of `ranks`, out of the one that is given."""
    given = os.environ if environment is None else environment
    variables = {name: value for name, value in given.items() if name not in LEFT_OUT}
    if real_cann(given) is None:
        variables |= stand_in_environment(stand_in(), mindspore_folder())
    elif "PYTHONPATH" in given:
        variables["PYTHONPATH"] = given["PYTHONPATH"]  # CANN's set_env.sh puts its packages there
    return variables | {
        "MS_SIMULATION_LEVEL": "1", "RANK_ID": str(rank), "RANK_SIZE": str(ranks), "QWEN3_DRY_RUN_SOC": soc,
        # With two cores, MindSpore 2.10 waits for itself in graphs with a branch that is inlined.
        "MS_DEV_RUNTIME_CONF": "switch_inline:False",
    }  # fmt: skip


def real_cann(environment: Mapping[str, str]) -> str | None:
    """Return the folder of the CANN whose environment is set; None without one."""
    named = next((environment[name] for name in CANN_VARIABLES if environment.get(name)), None)
    return named if named and list(Path(named).glob("**/lib64/libascendcl.so")) else None


def main() -> int:
    """Run what the command line says."""
    if sys.argv[1:] == ["make"]:
        print(stand_in())
        return 0
    usage = "%(prog)s [options] -- COMMAND ... | --all, --small, --functions or --record [NAME] | make"
    parser = argparse.ArgumentParser(prog="tools/ascend_dry_run", description=__doc__, usage=usage)
    matrix = parser.add_mutually_exclusive_group()
    matrix.add_argument("--all", nargs="?", const="", metavar="NAME", help="every case with NAME in its name")
    matrix.add_argument(
        "--small", nargs="?", const="", metavar="NAME", help="the same of those of tools/test"
    )
    matrix.add_argument(
        "--functions", nargs="?", const="", metavar="NAME", help="the aclnn functions that those call"
    )
    matrix.add_argument(
        "--record", nargs="?", const="", metavar="NAME", help="write down the memory that plan is held to"
    )
    parser.add_argument("--rank", type=int, default=0, help="the rank that is played (default 0)")
    parser.add_argument("--ranks", type=int, default=1, help="ranks of the job (default 1)")
    parser.add_argument("--soc", choices=SOCS, default="Ascend910B2", help="Ascend910_9391 is an A3")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there, too")
    parser.add_argument("command", nargs="*", help="qwen3-train launch ..., qwen3-infer generate ...")
    options = parser.parse_args()
    if (name := options.all if options.all is not None else options.small) is not None:
        from ascend_cases import all_cases, small_cases
        from ascend_matrix import run_cases

        cases = all_cases() if options.all is not None else small_cases()
        return 1 if run_cases(case for case in cases if name in case.name) else 0
    if options.functions is not None:
        from ascend_cases import small_cases
        from ascend_matrix import run_functions

        return 1 if run_functions(case for case in small_cases() if options.functions in case.name) else 0
    if options.record is not None:
        from ascend_record import record

        return record(options.record)
    if not options.command:
        parser.error("give a command after --, or make")
    if not 0 <= options.rank < options.ranks:
        parser.error(f"--rank {options.rank} is none of --ranks {options.ranks}; count from 0")
    report = dry_run(options.command, rank=options.rank, ranks=options.ranks, soc=options.soc)
    if options.json:
        options.json.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
    print(text_of(report))
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
