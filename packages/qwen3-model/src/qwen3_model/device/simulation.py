"""MindSpore's dry run, and which device a command takes by default.

With MS_SIMULATION_LEVEL in its environment MindSpore compiles graphs for an Ascend, selects kernels and
plans memory as one rank of a job would, and launches nothing. That variable is the one switch for our
commands, too: they then ask for no device and no disk space, play rank RANK_ID of RANK_SIZE in one process,
and write no checkpoint, whose values would mean nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen3_model.errors import UsageError

LEVEL, RANK, NUM_RANKS = "MS_SIMULATION_LEVEL", "RANK_ID", "RANK_SIZE"
DEVICE_FILE = Path("/dev/davinci_manager")
"""Is there where an NPU's driver is."""


@dataclass(frozen=True, slots=True)
class Simulation:
    """Which rank of how many one process plays."""

    rank: int = 0
    num_ranks: int = 1


def read_simulation(environment: Mapping[str, str]) -> Simulation | None:
    """Return the dry run that the environment asks for; None for a real run.

    Raises:
        UsageError: The rank is none of the job's.
    """
    if not environment.get(LEVEL):
        return None
    texts = environment.get(RANK) or "0", environment.get(NUM_RANKS) or "1"
    if not all(text.isdecimal() for text in texts) or not int(texts[0]) < int(texts[1]):
        raise UsageError(
            f"{LEVEL} is set and {RANK}={texts[0]} is no rank of {NUM_RANKS}={texts[1]}; count ranks from 0"
        )
    return Simulation(int(texts[0]), int(texts[1]))


def default_device(simulation: Simulation | None = None) -> str:
    """Return Ascend where the NPU driver's device file is and in a dry run, else CPU."""
    return "Ascend" if simulation is not None or DEVICE_FILE.exists() else "CPU"
