"""A command's model: in this process, or shared out over others that it starts and watches."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwen3_infer.device import Device
from qwen3_infer.folder.model_folder import ModelFolder
from qwen3_model.command.narrow import as_text
from qwen3_model.device.simulation import Simulation
from qwen3_model.errors import ConfigError, Qwen3Error
from qwen3_model.ranks.layout_checks import split_problems
from qwen3_model.ranks.msrun.checks import LaunchSettings, check_launch, count_ascend_devices
from qwen3_model.ranks.msrun.launcher import Job, launch_workers

if TYPE_CHECKING:
    from qwen3_infer.engine.models import MindSporeModel
    from qwen3_infer.native.model import NativeModel
    from qwen3_infer.processes.remote import Ranks, RemoteModel

DRIVER_VARIABLE = "QWEN3_INFER_DRIVER"
"""Tells rank 0 where the command's process listens, and the secret: `PORT:SECRET`."""
PATIENCE_S = 20.0
"""Seconds that the processes have to end once they are asked to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """The processes that share a model out."""

    settings: LaunchSettings
    """How many, and where."""
    arguments: tuple[str, ...]
    """The command and its arguments, which each of them reads again."""
    environment: Mapping[str, str]
    """Environment of this process, which the others get."""


Sharing = Launch | Simulation | None
"""Over which processes a model is shared out: those to start, the rank that a dry run plays, or none."""


@contextlib.contextmanager
def open_model(
    folder: ModelFolder,
    device: Device,
    launch: Sharing,
    *,
    quiet: bool,
    note: Callable[[str], None],
) -> Iterator["NativeModel | MindSporeModel | RemoteModel"]:
    """Load the model, and let it go at the end.

    Args:
        folder: The model.
        device: Device of this process, or of each process that is started.
        launch: Those that share it out; None for this one alone.
        quiet: Whether progress is left out.
        note: Called with sentences for the user.

    Raises:
        Qwen3Error: It cannot be loaded or shared out; within the block, a process of these has ended.
    """
    if not isinstance(launch, Launch):
        yield _local_model(folder, device, launch, quiet=quiet, note=note)
        return
    _require_split(folder, launch.settings.worker_num)
    num_devices = _num_devices(device, launch)
    check_launch(launch.settings, num_devices=num_devices)
    from qwen3_infer.processes.remote import Ranks, RemoteModel

    ranks = Ranks(launch.settings.master_addr, launch.settings.worker_num)
    is_up, is_over = threading.Event(), threading.Event()
    job = _job(
        launch,
        {DRIVER_VARIABLE: f"{ranks.port}:{ranks.secret}"},
        status=lambda: None if is_up.is_set() else "",
        is_over=is_over.is_set,
        quiet=quiet,
    )
    watching = threading.Thread(target=_watch, args=(job, launch, num_devices, ranks), daemon=True)
    watching.start()
    try:
        for text in ranks.meet():
            note(text)
        is_up.set()
        about, _ = ranks.call({"do": "about"})
        yield RemoteModel(ranks, as_text(about["compute_dtype"]))
    finally:
        ranks.close()
        if not ranks.has_failed:  # who waits for one that has ended would not hear
            watching.join(PATIENCE_S)
        is_over.set()
        watching.join()


def _local_model(
    folder: ModelFolder,
    device: Device,
    simulation: Simulation | None,
    *,
    quiet: bool,
    note: Callable[[str], None],
) -> "NativeModel | MindSporeModel":
    """Load the model into this process, or the shard of the rank that it plays."""
    rank = simulation or Simulation()
    _require_split(folder, rank.num_ranks)
    from qwen3_infer.processes.local import open_local

    if simulation is None:
        return open_local(folder, device, quiet=quiet, note=note)
    from qwen3_infer.engine.tensor_parallel import join_ranks

    tp = join_ranks(device, rank.num_ranks, rank.rank)
    return open_local(folder, device, quiet=quiet, note=note, tp=tp)


def _require_split(folder: ModelFolder, num_ranks: int) -> None:
    if problems := split_problems(folder.config, num_ranks):
        raise ConfigError("; ".join(problems))


def run_other_node(device: Device, launch: Launch, *, quiet: bool) -> None:
    """Run this node's processes for a command of node 0, until they have ended.

    Raises:
        Qwen3Error: One of them has failed.
    """
    num_devices = _num_devices(device, launch)
    launch_workers(_job(launch, {}, quiet=quiet), launch.settings, num_devices=num_devices)


def _job(
    launch: Launch,
    variables: Mapping[str, str],
    *,
    quiet: bool,
    status: Callable[[], str | None] = str,
    is_over: Callable[[], bool] = lambda: False,
) -> Job:
    return Job(
        argv=["-m", "qwen3_infer.cli_rank", *launch.arguments],
        environment={**launch.environment, **variables},
        status=status,
        is_over=is_over,
        quiet=quiet,
    )


def _num_devices(device: Device, launch: Launch) -> int | None:
    if device.target != "Ascend":
        return None
    return count_ascend_devices(launch.environment.get("ASCEND_RT_VISIBLE_DEVICES"))


def _watch(job: Job, launch: Launch, num_devices: int | None, ranks: "Ranks") -> None:
    try:
        launch_workers(job, launch.settings, num_devices=num_devices)
    except Qwen3Error as error:
        ranks.fail(error)
    except Exception as error:  # whoever waits for the processes must not wait for ever
        ranks.fail(Qwen3Error(f"the processes that share the model out cannot be watched: {error}"))
    else:
        ranks.fail(Qwen3Error("the processes that share the model out have ended"))
