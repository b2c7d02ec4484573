"""Where a launcher stands in a job step of Slurm, by the variables that srun sets for each task."""

import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from qwen3_model.command.plain_text import counted
from qwen3_model.errors import ConfigError

PORTS = range(10_000, 30_000)
"""Below those that the system gives to outgoing connections."""
SCONTROL_S = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmStep:
    """A step with one task on each of its nodes."""

    num_nodes: int
    node_rank: int
    first_node: str
    """Name of node 0."""
    port: int
    """The same on all nodes of the step, and another for another job."""


def read_slurm(environment: Mapping[str, str]) -> SlurmStep | None:
    """Return the step that srun has started this process in; None outside of one.

    Raises:
        ConfigError: srun starts more than one task on a node.
    """
    # A batch script has the variables of its job, but only what srun starts is on all nodes.
    if "SLURM_STEP_NODELIST" not in environment or "SLURM_NODEID" not in environment:
        return None
    num_nodes = int(environment.get("SLURM_STEP_NUM_NODES", "1"))
    num_tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if num_tasks != num_nodes:
        raise ConfigError(
            f"srun starts {num_tasks} tasks on {counted(num_nodes, 'node')}, but one launch on each node "
            "starts its workers; use srun --ntasks-per-node 1"
        )
    seed = int(environment.get("SLURM_JOB_ID", "0")) * 31 + int(environment.get("SLURM_STEP_ID", "0"))
    return SlurmStep(
        num_nodes=num_nodes,
        node_rank=int(environment["SLURM_NODEID"]),
        first_node=first_node(environment["SLURM_STEP_NODELIST"]),
        port=PORTS[seed % len(PORTS)],
    )


def first_node(nodes: str) -> str:
    """Return the first name of a list such as `login,rack[03-07,9]-ib`."""
    match = re.match(r"([^\[,]*)(?:\[([^\],-]+)[^\]]*\])?([^\[,]*)", nodes)
    assert match is not None  # every part may be empty
    return "".join(part or "" for part in match.groups())


def node_address(name: str) -> str:
    """Return `name` if it can be looked up, else the address that Slurm knows for it."""
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        try:
            description = subprocess.run(
                ["scontrol", "show", "node", name],
                capture_output=True, text=True, check=False, timeout=SCONTROL_S,
            ).stdout  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return name
        if match := re.search(r"NodeAddr=(\S+)", description):
            return match[1]
    return name
