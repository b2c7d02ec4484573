"""The compiled graph of a step, kept from one run to the next.

MindSpore takes the graph that it finds in a folder without asking whether it is the one that the program
describes. So each folder here is named after all that shapes the graph, the source code included, holds one
graph, and counts only when it is whole and nobody else could have written it.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mindspore as ms

import qwen3_model
import qwen3_train
from qwen3_model.command.files import temporary_neighbour
from qwen3_model.command.private_files import (
    OTHERS_WRITE,
    SharedFileError,
    make_private,
    require_private_tree,
)
from qwen3_train.settings.run import TrainSettings

SWITCH, FOLDER = "MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"
SUMS = "sums.json"


class GraphCache:
    """Let the first graph that a process compiles within `graph` come from `folder`, or go there."""

    def __init__(self, folder: Path, facts: str, note: Callable[[str], None] = lambda _: None) -> None:
        """Use `folder`, which may hold the graphs of many runs.

        Args:
            folder: Made when needed, for this user alone.
            facts: Text of all that shapes the graph besides source code and MindSpore's version.
            note: Hears why the cache is not used.
        """
        self.folder, self.facts, self.note = folder, facts, note

    @contextmanager
    def graph(self, inputs: str) -> Iterator[None]:
        """Compile one graph, of inputs whose shapes and types `inputs` says, from or into the cache."""
        # MindSpore reads the folder's name once in a process, so a second graph would get the first one's.
        environment = os.environ  # noqa: TID251 - where MindSpore looks when it compiles
        if FOLDER in environment or SWITCH in environment:
            yield
            return
        try:
            kept = make_private(self.folder) / _key(self.facts, inputs)
            is_new = not _is_kept(kept)
            place = temporary_neighbour(kept) if is_new else kept
            make_private(place)
        except SharedFileError as error:
            self.note(f"the compiled graph is not kept or taken: {error}")
            yield
            return
        environment.update({SWITCH: "1", FOLDER: str(place)})
        try:
            yield
            if is_new:
                _keep(place, kept)
        finally:
            environment[SWITCH] = "0"
            if is_new:
                shutil.rmtree(place, ignore_errors=True)


def graph_cache(
    settings: TrainSettings, rank: int, note: Callable[[str], None], kernels: str = ""
) -> GraphCache | None:
    """Return the cache that a run's `rank` uses, where the run has one; one of adapters has none.

    Args:
        settings: Of the run.
        rank: Its number.
        note: Hears why the cache is not used.
        kernels: Library that the graph calls, which another machine or start may lack; "" for none.
    """
    # A graph that MindSpore takes from its cache has no values for weights that do not train.
    if settings.graph_cache is None or settings.lora is not None:
        return None
    # All settings that shape the graph; rather one too many than one too few.
    facts = (
        rank, settings.device, settings.model, settings.layout, settings.offset, settings.passes,
        settings.parallel_optimizer, settings.adam, settings.max_grad_norm, settings.recompute, settings.lora,
        settings.skip, kernels,
    )  # fmt: skip
    return GraphCache(settings.graph_cache, repr(facts), note)


def _is_kept(kept: Path) -> bool:
    """Say whether `kept` is there; remove it where it is damaged.

    Raises:
        SharedFileError: Others could have written it.
    """
    if not os.path.lexists(kept):
        return False
    require_private_tree(kept)
    if not is_whole(kept):
        shutil.rmtree(kept, ignore_errors=True)
    return kept.exists()


def is_whole(folder: Path) -> bool:
    """Say whether a kept graph's files are those that were written."""
    try:
        sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        return all(_sum(folder / name) == value for name, value in sums.items())
    except (OSError, ValueError):
        return False


def _keep(place: Path, kept: Path) -> None:
    files = [path for path in place.rglob("*") if path.is_file()]
    if sum(path.suffix == ".mindir" for path in files) != 1:
        return
    sums = {str(path.relative_to(place)): _sum(path) for path in files}
    (place / SUMS).write_text(json.dumps(sums, indent=1), encoding="utf-8")
    for path in place.rglob("*"):  # whatever the umask is
        path.chmod(path.stat().st_mode & ~OTHERS_WRITE)
    try:
        place.rename(kept)
    except OSError:  # another run was first
        return


def _key(facts: str, inputs: str) -> str:
    parts = [ms.__version__, sys.version, sys.argv[0], facts, inputs]
    for package in (qwen3_model, qwen3_train):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            parts.append(f"{path.relative_to(root)} {_sum(path)}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
