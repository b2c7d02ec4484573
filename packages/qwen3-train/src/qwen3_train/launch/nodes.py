"""A run on several nodes: their launchers agree on each start, and start again together after a failure.

The node that decides checks the run, chooses the checkpoint and the layout, and writes what the folder needs;
the others only start their workers. Before, each makes the indexes of its share of the token files.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from qwen3_model.errors import Qwen3Error
from qwen3_model.ranks.msrun.checks import LaunchSettings, check_launch, usable_port
from qwen3_model.ranks.msrun.launcher import Job, launch_workers
from qwen3_model.ranks.msrun.meeting import Meeting, Rules, Start, own_address
from qwen3_model.ranks.msrun.node_files import ENDED, End, Round
from qwen3_train.checkpoints.run_folder import METRICS, only_run, replaced_run
from qwen3_train.data.token_data import index_share_of_run
from qwen3_train.launch.folder import last_words, log_name, open_log, say_finished, write_run
from qwen3_train.launch.run_arguments import pinned, read_config
from qwen3_train.launch.smaller_layout import smaller_layout
from qwen3_train.launch.status import status_of
from qwen3_train.prepare.prepare import prepare_run
from qwen3_train.prepare.run_start import append_start
from qwen3_train.reports.run_log import RunLog
from qwen3_train.settings.resume import ResumeSettings
from qwen3_train.settings.run import TrainSettings, read_settings

MEETING = "nodes"
"""Folder in the run's, where the launchers meet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodesRun:
    """A run on several nodes, as one of their launchers is to start it."""

    config_path: Path
    arguments: Sequence[str]
    settings: TrainSettings
    launch: LaunchSettings
    environment: Mapping[str, str]
    """Environment of the workers."""
    devices: int | None
    """NPUs of this machine; None where the run needs none."""
    force: bool
    quiet: bool
    command: Sequence[str]
    """What was typed, for `starts.jsonl`."""
    rules: Rules


def launch_on_nodes(node_run: NodesRun) -> str:
    """Train on all nodes of the job; return why the run ended before its last step, or "".

    Raises:
        Qwen3Error: The run cannot start or go on, on whichever node.
    """
    launch, output_dir = node_run.launch, node_run.settings.output_dir
    check_launch(launch, num_devices=node_run.devices)
    is_first = launch.node_rank == 0
    address = launch.master_addr if is_first else own_address(launch.master_addr, launch.master_port)
    with ExitStack() as stack:
        if is_first:
            stack.enter_context(only_run(output_dir))
        log = _Log(launch.log_dir / log_name(launch), stack, quiet=node_run.quiet)
        planner = _StartPlanner(node_run, log, stack)
        folder = output_dir / MEETING
        meeting = stack.enter_context(
            Meeting(folder, launch.node_rank, launch.num_nodes, address, node_run.rules)
        )
        with suppress(Qwen3Error, OSError):  # the node that leads says what is wrong with the data
            index_share_of_run(node_run.settings, launch.node_rank, launch.num_nodes)
        while True:
            agreed = meeting.agree(planner.propose, log.say)
            if isinstance(agreed, End):
                return agreed.reason
            if agreed.is_finished:
                return meeting.finish("").reason
            end = _take_part(node_run, meeting, agreed, planner.last_step)
            if end.state in ENDED:
                log.say(last_words(end.reason, output_dir), "WARNING" if end.reason else "INFO")
                return end.reason
            if end.is_final:
                raise Qwen3Error(end.reason)
            again = f"starting again, {agreed.restarts + 1} of at most {node_run.rules.max_restarts} times"
            log.say(f"{end.reason}; {again}", "WARNING")


class _Log:
    """A launcher's log, which is opened with its first line."""

    def __init__(self, path: Path, stack: ExitStack, *, quiet: bool) -> None:
        self._path, self._stack, self._quiet = path, stack, quiet
        self._log: RunLog | None = None

    def open(self, *, append: bool = True) -> RunLog:
        if self._log is None:
            self._log = self._stack.enter_context(open_log(self._path, append=append, quiet=self._quiet))
        return self._log

    def say(self, text: str, level: str = "WARNING") -> None:
        self.open().line(text, level)


class _StartPlanner:
    """Prepares the next start on the node that leads."""

    def __init__(self, node_run: NodesRun, log: _Log, stack: ExitStack) -> None:
        self._node_run, self._log, self._stack = node_run, log, stack
        self.last_step: int | None = None
        """Last step of the run that was decided on here."""

    def propose(self, nodes: Sequence[int], restarts: int) -> Start:
        """Check and write what a start needs that `nodes` can take part in; see `Start`."""
        node_run, launch = self._node_run, self._node_run.launch
        members, changes = tuple(nodes), list[str]()
        if len(nodes) < launch.num_nodes:
            count, changes = smaller_layout(
                node_run.settings, len(nodes), launch.num_nodes, launch.local_worker_num
            )
            members = members[:count]
        config = read_config(node_run.config_path, [*node_run.arguments, *changes])
        settings = read_settings(config, worker_num=len(members) * launch.local_worker_num)
        if node_run.force and settings.resume.mode == "auto":
            settings = replace(settings, resume=ResumeSettings(mode="never"))
        run = prepare_run(
            settings, force=node_run.force or restarts > 0, takes_other_layout=node_run.rules.max_restarts > 0
        )
        self.last_step = run.last_step
        if run.is_finished:
            say_finished(run)
            return Start(members=members, port=launch.master_port, is_finished=True)
        if node_run.force and not settings.resume.is_on and settings.output_dir.exists() and restarts == 0:
            self._stack.enter_context(replaced_run(settings.output_dir))
        log = self._log.open(append=run.source is not None or restarts > 0)
        if len(members) < launch.num_nodes:
            away = [node for node in range(launch.num_nodes) if node not in members]
            log.line(f"without node {', '.join(map(str, away))}: {' '.join(changes)}", "WARNING")
        write_run(run, config, log)
        append_start(run, node_run.command)
        return Start(
            members=members,
            port=usable_port(_own_address(launch, members[0]), launch.master_port),
            arguments=(*changes, *pinned(run)),
        )


def _own_address(launch: LaunchSettings, node: int) -> str:
    return launch.master_addr if node == 0 else own_address(launch.master_addr, launch.master_port)


def _take_part(node_run: NodesRun, meeting: Meeting, start: Round, last_step: int | None) -> End:
    """Run this node's workers until all nodes have ended; return how they have ended."""
    launch = replace(
        node_run.launch,
        worker_num=len(start.members) * node_run.launch.local_worker_num,
        node_rank=start.members.index(node_run.launch.node_rank),
        master_addr=start.address,
        master_port=start.port,
    )
    status: Callable[[], str] = str
    if launch.node_rank == 0:
        status = status_of(node_run.settings.output_dir / METRICS, last_step)
    words = ["-m", "qwen3_train.cli_rank", "--config", str(node_run.config_path), *node_run.arguments]
    job = Job(
        argv=[*words, *start.arguments],
        environment=node_run.environment,
        status=status,
        quiet=node_run.quiet,
        is_over=meeting.check,
        is_stoppable=node_run.settings.graceful_exit,
    )
    try:
        return meeting.finish(launch_workers(job, launch, num_devices=node_run.devices))
    except Qwen3Error as error:
        return meeting.fail(f"node {node_run.launch.node_rank}: {error}")
