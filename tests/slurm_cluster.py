"""A cluster of Slurm on this machine: slurmctld and two slurmd with ports, keys and folders of their own."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "sinfo")
NODES = ("n1", "n2")
LONGEST_S = 60
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
KillWait=30
MailProg=/bin/true
SchedulerParameters=sched_interval=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """Start it, give jobs to it, take a node away and bring it back."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.daemons = folder, {}
        folder.chmod(0o755)
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir()
        ports = _free_ports(3)
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        text = CONFIG.format(host=socket.gethostname(), folder=folder, ports=ports)
        (folder / "slurm.conf").write_text(text, encoding="utf-8")
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        names = [f"--{what}={folder}/munge.{what.split('-')[0]}" for what in ("key-file", "socket")]
        names += [f"--{what}={folder}/munge-{what}" for what in ("pid-file", "log-file", "seed-file")]
        self._start("munged", ["munged", "--foreground", "--force", *names])
        _wait_until(lambda: (folder / "munge.socket").exists(), "munged")
        self._start("slurmctld", ["slurmctld", "-D", "-c"])
        for node in NODES:
            self.start_node(node)
        _wait_until(lambda: self.states() == {"idle"}, "the nodes")

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        self._start(node, ["slurmd", "-D", "-N", node])

    def kill_node(self, node: str) -> None:
        """Kill the daemon of a node and all that runs on it, as a power cut does."""
        self.daemons.pop(node).kill()
        steps = self._processes(f"SLURMD_NODENAME={node}")
        for pid in {_parent(pid) for pid in steps if b"slurmstepd" in _command(_parent(pid))} | set(steps):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def kill_ranks(self, node: str) -> None:
        """Kill the ranks that run on a node, and nothing else of the job."""
        for pid in self._processes(f"SLURMD_NODENAME={node}"):
            if b"cli_rank" in _command(pid) and b"MS_ROLE=MS_WORKER" in _environment(pid):
                os.kill(pid, signal.SIGKILL)

    def states(self) -> set[str]:
        """Return the states of all nodes."""
        return set(self.run("sinfo", "-h", "-N", "-o", "%t").split())

    def run(self, *command: str) -> str:
        """Run one of Slurm's commands; return what it prints."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, cwd=self.folder
        )
        return done.stdout

    def submit(self, *arguments: str) -> str:
        """Give a job to the cluster; return its number."""
        return self.run("sbatch", "--parsable", *arguments).strip()

    def job(self, number: str) -> dict[str, str]:
        """Return what Slurm knows about a job."""
        told = self.run("scontrol", "show", "job", number).split()
        return dict(part.split("=", 1) for part in told if "=" in part)

    def stop(self) -> None:
        """End all daemons and what they have started."""
        for pid in self._processes(f"SLURM_CONF={self.folder}/slurm.conf"):
            if b"slurmctld" not in _command(pid) and b"slurmd\0" not in _command(pid):
                os.kill(pid, signal.SIGKILL)
        for daemon in self.daemons.values():
            daemon.kill()
            daemon.wait()

    def _start(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            program = shutil.which(command[0]) or f"/usr/sbin/{command[0]}"
            self.daemons[name] = subprocess.Popen(
                [program, *command[1:]],
                env=self.environment,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
            )

    def _processes(self, variable: str) -> list[int]:
        """Return this cluster's processes with a variable in their environment."""
        own, found = f"SLURM_CONF={self.folder}/slurm.conf".encode(), []
        for folder in Path("/proc").iterdir():
            held = _environment(int(folder.name)) if folder.name.isdigit() else []
            if own in held and variable.encode() in held:
                found.append(int(folder.name))
        return found


def missing_programs() -> list[str]:
    """Return what is not installed."""
    return [name for name in PROGRAMS if not (shutil.which(name) or Path(f"/usr/sbin/{name}").exists())]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _wait_until(is_so, what: str) -> None:
    deadline_s = time.monotonic() + LONGEST_S
    while not is_so():
        assert time.monotonic() < deadline_s, f"{what} did not come up"
        time.sleep(0.2)
