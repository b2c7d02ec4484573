"""The work behind tools/msrun_launcher.sh: mindformers' arguments to a command of this project.

The forms, defaults and variables are those of scripts/msrun_launcher.sh in mindformers, the options those of
its run_mindformer.py. It needs nothing but Python, of any version from 3.8 on.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

FORMS: dict[int, tuple[str, ...]] = {
    1: (),
    2: ("worker-num",),
    6: ("worker-num", "master-port", "log-dir", "join", "cluster-time-out"),
    9: (
        "worker-num", "local-worker-num", "master-addr", "master-port", "node-rank", "log-dir", "join",
        "cluster-time-out",
    ),
}  # fmt: skip
"""By the number of arguments: the option that each one after the first becomes."""
USAGE = """usage: tools/msrun_launcher.sh "run_mindformer.py --config FILE ..."
       tools/msrun_launcher.sh "run_mindformer.py ..." WORKER_NUM
       tools/msrun_launcher.sh "run_mindformer.py ..." WORKER_NUM MASTER_PORT LOG_DIR JOIN CLUSTER_TIME_OUT
       tools/msrun_launcher.sh "run_mindformer.py ..." WORKER_NUM LOCAL_WORKER MASTER_ADDR MASTER_PORT \\
         NODE_RANK LOG_DIR JOIN CLUSTER_TIME_OUT

Starts the same job with qwen3-train launch, or with qwen3-infer generate where run_mode is predict.
docs/migration.md says what each argument becomes."""
DEFAULT_WORKERS = "8"
DEFAULT_LOG_DIR = "output/msrun_log"
COMMANDS = {
    "train": "qwen3-train launch",
    "finetune": "qwen3-train launch",
    "predict": "qwen3-infer generate",
}
NOT_HANDED_ON = {
    "train_dataset_dir": "give --train_dataset.data_loader.config.data_path PREFIX, or .data_files FILE",
    "eval_dataset_dir": "give --eval_dataset.data_loader.data_files FILE, or a `split` of the token files",
    "num_samples": "give --train_dataset.data_loader.sizes '[N, 0, 0]', or a handler `take` of conversations",
    "options": "give each key as --section.key VALUE",
    "strategy_load_checkpoint": "give --src_strategy_path_or_dir PATH",
    "register_path": "leave it out: no code outside of the packages is loaded",
    "trust_remote_code": "leave it out: no code outside of the packages is loaded",
    "transform_process_num": "leave it out: each rank reads its own part of a checkpoint of another layout",
    "only_save_strategy": "leave it out: every run writes its strategy files",
    "remote_save_url": "leave it out, and copy the run's folder afterwards",
    "modal_type": "leave it out: Qwen3 reads text alone",
    "adapter_id": "give --adapter DIR, a PEFT folder or a run that trained one",
}
"""Options of run_mindformer.py without a counterpart of their name, and what to do."""


class LaunchError(Exception):
    """What is wrong, where, and what to do, in one sentence."""


def command_line(arguments: list[str], environment: dict[str, str]) -> list[str]:
    """Return the command that starts the job.

    Args:
        arguments: The launcher's arguments: the quoted command, then 0, 1, 5 or 8 more.
        environment: MF_LOG_SUFFIX is added to the folder of logs, behind an underscore.

    Raises:
        LaunchError: The arguments are not those of mindformers' launcher, or an option cannot be handed on.
    """
    if len(arguments) > 1 and any(word.startswith("--") for word in arguments[1:]):
        raise LaunchError(f"{arguments[1]} stands outside of the first argument, where all options belong")
    if len(arguments) not in FORMS:
        raise LaunchError(
            f"{len(arguments)} arguments were given, but it takes 1, 2, 6 or 9: the command, then "
            "WORKER_NUM, or WORKER_NUM MASTER_PORT LOG_DIR JOIN CLUSTER_TIME_OUT, or "
            "WORKER_NUM LOCAL_WORKER MASTER_ADDR MASTER_PORT NODE_RANK LOG_DIR JOIN CLUSTER_TIME_OUT"
        )
    options = _options_of_script(arguments[0])
    program = COMMANDS[_run_mode(options)]
    return [
        *program.split(),
        *options,
        *_options_of_launch(arguments[1:], environment.get("MF_LOG_SUFFIX", "")),
    ]


def _options_of_launch(arguments: list[str], log_suffix: str) -> list[str]:
    values = dict(zip(FORMS[len(arguments) + 1], arguments))  # noqa: B905, strict= is of Python 3.10
    values.setdefault("worker-num", DEFAULT_WORKERS)
    if not re.fullmatch("[1-9][0-9]*", values["worker-num"]):
        raise LaunchError(f"WORKER_NUM {values['worker-num']} is not a number of processes; give 1 or more")
    if values.get("local-worker-num") == values["worker-num"]:
        # One machine has them all: mindformers' launcher uses neither address nor number of it.
        for name in ("local-worker-num", "master-addr", "node-rank"):
            del values[name]
    if log_suffix:
        values["log-dir"] = f"{values.get('log-dir', DEFAULT_LOG_DIR)}_{log_suffix}"
    return [word for name, value in values.items() for word in (f"--{name}", value)]


def _options_of_script(command: str) -> list[str]:
    """Return the options of run_mindformer.py, with each --name=VALUE as two words."""
    try:
        words = shlex.split(command.replace("\\\n", " "))
    except ValueError as error:
        raise LaunchError(f"a quotation mark in {command!r} is never closed; close it") from error
    if words and re.fullmatch(r"python[0-9.]*", words[0].rpartition("/")[2]):
        del words[0]
    if not words or words[0].rpartition("/")[2] != "run_mindformer.py":
        shown = words[0] if words else "an empty text"
        raise LaunchError(
            f"the first argument begins with {shown}; only run_mindformer.py has a counterpart here"
        )
    options = []
    for word in words[1:]:
        name, equals, value = word.partition("=")
        options += [name, value] if equals and name.startswith("--") else [word]
    for option in options:
        remedy = NOT_HANDED_ON.get(option[2:].replace("-", "_")) if option.startswith("--") else None
        if remedy:
            raise LaunchError(f"{option} has no counterpart here; {remedy}")
    if "--config" not in options[:-1]:
        raise LaunchError("run_mindformer.py has no --config; give the YAML file of the run")
    return options


def _run_mode(options: list[str]) -> str:
    """Return what --run_mode says, else the YAML, else train."""
    names = [option.replace("-", "_") for option in options]
    if "__run_mode" in names:
        last = len(names) - 1 - names[::-1].index("__run_mode")
        mode, where = "".join(options[last + 1 :][:1]), "--run_mode"
    else:
        where = options[options.index("--config") + 1]
        path = Path(where)
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        found = re.search(r"^run_mode:\s*['\"]?(\w+)", text, re.MULTILINE)
        mode = found[1] if found else "train"
    if mode not in COMMANDS:
        remedy = (
            "evaluate a text with qwen3-infer score, tasks with qwen3-infer eval, a run with --do_eval True"
        )
        raise LaunchError(f"run_mode {mode} ({where}) is neither train, finetune nor predict; {remedy}")
    return mode


def main() -> None:
    """Print the command and become it."""
    environment = os.environ
    if sys.argv[1:] in (["--help"], ["-h"]):
        print(USAGE)
        return
    try:
        command = command_line(sys.argv[1:], dict(environment))
    except LaunchError as error:
        print(f"tools/msrun_launcher.sh: {error}", file=sys.stderr)
        sys.exit(2)
    if (
        environment.get("PLOG_REDIRECT_TO_OUTPUT", environment.get("PLOG_REDICT_TO_OUTPUT", "False"))
        != "False"
    ):
        suffix = "".join(f"_{text}" for text in [environment.get("MF_LOG_SUFFIX")] if text)
        environment["ASCEND_PROCESS_LOG_PATH"] = str(Path.cwd() / f"output/plog{suffix}")
    print(f"Running Command: {shlex.join(command)}", file=sys.stderr, flush=True)
    try:
        os.execvp(command[0], command)
    except FileNotFoundError:
        print(f"tools/msrun_launcher.sh: {command[0]} is not on PATH; run tools/setup first", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
