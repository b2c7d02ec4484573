"""What can be known to be wrong before any process of a job starts."""

import errno
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from qwen3_model.command.plain_text import counted
from qwen3_model.errors import ConfigError

PORTS = range(1024, 65536)


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchSettings:
    """How many workers, where, and how they find each other; msrun's own names."""

    worker_num: int
    """Workers of the job, on all nodes."""
    local_worker_num: int
    """Workers on this node."""
    master_addr: str = "127.0.0.1"
    """Address of node 0."""
    master_port: int = 8118
    """Port of the scheduler there."""
    node_rank: int = 0
    """Number of this node."""
    log_dir: Path = Path("output/msrun_log")
    join: bool = True
    """Wait for the job; else it goes on in the background."""
    cluster_time_out: float = 7200
    """Seconds to wait for the workers of the other nodes."""

    @property
    def num_nodes(self) -> int:
        """Nodes of the job."""
        return self.worker_num // self.local_worker_num

    @property
    def msrun_log(self) -> Path:
        """What msrun itself says on this node."""
        return self.log_dir / ("msrun.log" if self.num_nodes == 1 else f"msrun_{self.node_rank}.log")

    @property
    def ranks(self) -> range:
        """Ranks on this node."""
        first = self.node_rank * self.local_worker_num
        return range(first, first + self.local_worker_num)


def check_launch(settings: LaunchSettings, *, num_devices: int | None = None) -> None:
    """Raise ConfigError with everything that keeps the job from starting.

    Args:
        settings: The job.
        num_devices: Devices of this machine; None where workers share the processor.
    """
    problems = _number_problems(settings)
    if num_devices is not None and settings.local_worker_num > num_devices:
        problems.append(
            f"--local-worker-num {settings.local_worker_num} exceeds the {counted(num_devices, 'device')} "
            "of this "
            "machine; start fewer workers here or use more nodes"
        )
    if not problems:
        problems += _address_problems(settings) + _folder_problems(settings.log_dir)
    if problems:
        raise ConfigError("; ".join(problems))


def find_msrun() -> Path:
    """Return the msrun of the running interpreter's environment.

    Raises:
        ConfigError: MindSpore is not installed beside it.
    """
    msrun = Path(sys.executable).parent / "msrun"
    if not msrun.is_file():
        raise ConfigError(
            f"{msrun} does not exist; install MindSpore into the environment of {sys.executable}"
        )
    return msrun


def interpreter_name() -> str:
    """Return the name by which msrun finds the running interpreter in its folder: it takes these two only.

    Raises:
        ConfigError: Neither name is the running interpreter.
    """
    running = Path(sys.executable)
    for name in ("python", "python3"):
        candidate = running.parent / name
        if candidate.exists() and candidate.samefile(running):
            return name
    raise ConfigError(
        f"{running.parent} has no python or python3 that is {running.name}; use a virtual environment"
    )


def count_ascend_devices(visible: str | None) -> int:
    """Return how many NPUs this machine offers; `visible` is ASCEND_RT_VISIBLE_DEVICES."""
    if visible:
        return len(visible.split(","))
    return sum(path.name.removeprefix("davinci").isdigit() for path in Path("/dev").glob("davinci*"))


def usable_port(addr: str, wanted: int) -> int:
    """Return `wanted` where this machine's `addr` has it free, else another port that is.

    Raises:
        ConfigError: The address is not this machine's.
    """
    for port in (wanted, 0):
        with socket.socket(socket.AF_INET6 if ":" in addr else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((addr.strip("[]"), port))
            except OSError as error:
                if port == 0:
                    raise ConfigError(f"{addr} is not this machine's ({error.strerror})") from None
                continue
            found: int = probe.getsockname()[1]
            return found
    raise AssertionError


def _number_problems(settings: LaunchSettings) -> list[str]:
    problems = []
    if settings.worker_num < 1 or settings.local_worker_num < 1:
        numbers = f"--worker-num {settings.worker_num} and --local-worker-num {settings.local_worker_num}"
        return [f"{numbers} must be at least 1"]
    if settings.worker_num % settings.local_worker_num:
        problems.append(
            f"--worker-num {settings.worker_num} is no multiple of --local-worker-num "
            f"{settings.local_worker_num}; every node starts the same number"
        )
    elif not 0 <= settings.node_rank < settings.num_nodes:
        problems.append(
            f"--node-rank {settings.node_rank} is none of the {settings.num_nodes} nodes; count from 0"
        )
    if settings.master_port not in PORTS:
        problems.append(f"--master-port {settings.master_port} is not from {PORTS[0]} to {PORTS[-1]}")
    return problems


def _address_problems(settings: LaunchSettings) -> list[str]:
    addr, port = settings.master_addr, settings.master_port
    try:
        family, *_, target = socket.getaddrinfo(addr.strip("[]"), port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        return [f"--master-addr {addr} is unknown ({error.strerror or error}); give the address of node 0"]
    except UnicodeError:
        return [f"--master-addr {addr} is no name of a host; give the address of node 0"]
    if settings.node_rank != 0:
        return []
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Sockets of an earlier job that only wait for late packets are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(target)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return [f"--master-port {port} of {addr} is in use; choose another or end what holds it"]
            return [
                f"--master-addr {addr} is not this machine's ({error.strerror}); node 0 must run where it is"
            ]
    return []


def _folder_problems(log_dir: Path) -> list[str]:
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        return [f"--log-dir {log_dir} is not a folder; choose another"]
    except OSError as error:
        return [f"--log-dir {log_dir} cannot be made ({error.strerror}); choose another"]
    if not os.access(log_dir, os.W_OK):
        return [f"--log-dir {log_dir} cannot be written; choose another"]
    return []
