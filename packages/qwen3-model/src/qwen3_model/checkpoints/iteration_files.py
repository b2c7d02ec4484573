"""mindformers' newer checkpoints: a folder for each step, and a metadata.json that says what is where.

    iteration_00000005/model-0000000-0000008.safetensors, opt-....safetensors, common.json, metadata.json
    latest_checkpointed_iteration.txt

metadata.json has, for each tensor, its whole shape and into how many parts each axis is cut
(`axis_fragmentations`), and for each part, under the text "('name', (number,))", the files that hold it.
Parts are numbered with the last axis running fastest. A run of one device writes no metadata.json.
"""

import ast
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from qwen3_model.checkpoints.rows import (
    ConstantRows,
    FileRows,
    JoinedColumns,
    LazyTensor,
    RowSource,
    StackedRows,
    from_file,
)
from qwen3_model.checkpoints.safetensors_file import SafetensorsFile, TensorPlan, open_safetensors
from qwen3_model.command.files import is_file_name
from qwen3_model.command.json_file import read_json
from qwen3_model.command.narrow import as_ints, as_section, as_sections, as_text, at_key
from qwen3_model.command.small_files import INDEX_BYTES, read_small_text
from qwen3_model.errors import FormatError, WeightError

COUNTERS = ("epoch_num", "step_num", "global_step")
METADATA, COMMON, LATEST = "metadata.json", "common.json", "latest_checkpointed_iteration.txt"
MAX_NAMED = 8


def find_iteration(source: Path) -> Path | None:
    """Return the folder of the step at or below `source`, the latest where it has several; None for none."""
    for folder in (source, source / "checkpoint"):
        if (folder / METADATA).is_file() or (folder / COMMON).is_file():
            return folder
        if (folder / LATEST).is_file():
            text = read_small_text(folder / LATEST).strip()
            if not text.isdigit() or not (latest := folder / f"iteration_{int(text):08d}").is_dir():
                raise FormatError(
                    f"{folder / LATEST} says {text[:40]!r}, and there is no such folder beside it"
                )
            return latest
    return None


def suffix_of(folder: Path) -> str:
    """Return epoch and step, `E_S`, as common.json says them.

    Raises:
        FormatError: It is damaged.
    """
    counters = _counters(folder)
    return f"{max(1, counters.get('epoch_num', 1))}_{max(1, counters.get('step_num', 1))}"


def run_state_of(folder: Path) -> dict[str, LazyTensor]:
    """Return the run's counters as common.json says them, as int32 of shape (1,), which rank files hold.

    Raises:
        FormatError: It is damaged.
    """
    return {
        name: LazyTensor(TensorPlan(name, "I32", (1,)), ConstantRows(np.array([[count]], "<i4")))
        for name, count in _counters(folder).items()
    }


def _counters(folder: Path) -> dict[str, int]:
    path = folder / COMMON
    meta = read_json(path, INDEX_BYTES) if path.is_file() else {}
    counters = {}
    for name in COUNTERS:
        count = meta.get(name)
        if count is None:
            continue
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < 1 << 31:
            raise FormatError(f"{path} states {name}={str(count)[:40]!r}, which counts no epochs or steps")
        counters[name] = count
    return counters


def open_iteration(folder: Path) -> tuple[dict[str, LazyTensor], list[SafetensorsFile]]:
    """Return the whole tensors of a step, and the files that they come from.

    Raises:
        FormatError: metadata.json or a file is damaged, or they do not fit.
        WeightError: Parts of tensors are in no file; they are named.
    """
    path = folder / METADATA
    if not path.is_file():
        files = [open_safetensors(file) for file in sorted(folder.glob("*.safetensors"))]
        if not files:
            raise FormatError(f"{folder} has {COMMON} but no weights")
        if len({file.path.name.partition("-")[0] for file in files}) != len(files):
            raise FormatError(
                f"{folder} has files of several devices but no {METADATA}, which says what they hold"
            )
        return {name: from_file(file, name) for file in files for name in file.tensors}, files
    meta = read_json(path, INDEX_BYTES)
    opened: dict[str, SafetensorsFile] = {}
    try:
        stored = at_key(meta, "storage_data", as_section)
        storage = {ast.literal_eval(key): at_key(stored, key, _file_names) for key in stored}
        stated = at_key(meta, "state_dict_metadata", as_section)
        tensors, problems = {}, []
        for name in stated:
            shape, cuts = at_key(stated, name, _shape_and_cuts)
            try:
                tensors[name] = _assemble(folder, name, shape, cuts, storage, opened)
            except WeightError as error:
                problems.append(str(error))
    except (TypeError, ValueError, SyntaxError, RecursionError, MemoryError, FormatError) as error:
        raise FormatError(f"{path} is no metadata of a checkpoint: {error}") from None
    if problems:
        more = f"; and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        raise WeightError(f"{folder} is not whole: {'; '.join(problems[:MAX_NAMED])}{more}")
    if not tensors:
        raise FormatError(f"{path} lists no tensor")
    return tensors, list(opened.values())


def _file_names(entries: object) -> Sequence[str]:
    """Return the files that are said to hold a part; each of them has all of it."""
    return [at_key(entry, "file_name", as_text) for entry in as_sections(entries)]


def _shape_and_cuts(entry: object) -> tuple[tuple[int, ...], tuple[int, ...]]:
    section = as_section(entry)
    shape, cuts = (at_key(section, key, as_ints) for key in ("global_shape", "axis_fragmentations"))
    return tuple(shape), tuple(cuts)


def _assemble(
    folder: Path,
    name: str,
    shape: tuple[int, ...],
    cuts: tuple[int, ...],
    storage: Mapping[object, Sequence[str]],
    opened: dict[str, SafetensorsFile],
) -> LazyTensor:
    if len(cuts) != len(shape) or any(cut < 1 or size % cut for size, cut in zip(shape, cuts, strict=True)):
        raise WeightError(f"{name} of {shape} is said to be cut by {cuts}")
    if any(cut > 1 for cut in cuts[2:]):
        raise WeightError(f"{name} is cut along dimension 2 or beyond, which no Qwen3 weight is")
    local = tuple(size // cut for size, cut in zip(shape, cuts, strict=True))
    rows: dict[tuple[int, ...], FileRows] = {}
    dtypes: set[str] = set()
    for number, slice_index in enumerate(product(*map(range, cuts))):
        names = storage.get((name, (number,)), ())
        file = next((file for file in _holders(folder, name, names, opened)), None)
        if file is None:
            files = " or ".join(names) or "no file"
            raise WeightError(f"{name}: part {number} of {math.prod(cuts)} is missing from {files}")
        info = file.tensors[name]
        if info.shape != local:
            raise WeightError(f"{name} is {info.shape} in {file.path.name}, {METADATA} says {local}")
        dtypes.add(info.dtype)
        rows[slice_index] = FileRows(file, name)
    if len(dtypes) != 1:
        raise WeightError(f"{name} has parts of different types: {', '.join(sorted(dtypes))}")
    return LazyTensor(TensorPlan(name, dtypes.pop(), shape), _grid(cuts, rows))


def _holders(
    folder: Path, name: str, names: Sequence[str], opened: dict[str, SafetensorsFile]
) -> Iterator[SafetensorsFile]:
    for file_name in names:
        if not is_file_name(file_name):
            raise WeightError(f"{name} is said to be outside of its folder, in {file_name}")
        if file_name not in opened and (folder / file_name).is_file():
            opened[file_name] = open_safetensors(folder / file_name)
        if file_name in opened and name in opened[file_name].tensors:
            yield opened[file_name]


def _grid(cuts: tuple[int, ...], rows: Mapping[tuple[int, ...], FileRows]) -> RowSource:
    rest = (0,) * max(len(cuts) - 2, 0)
    bands: list[RowSource] = []
    for row in range(cuts[0] if cuts else 1):
        columns = [
            rows[(row, column, *rest)[: len(cuts)]] for column in range(cuts[1] if len(cuts) > 1 else 1)
        ]
        bands.append(columns[0] if len(columns) == 1 else JoinedColumns(columns))
    return bands[0] if len(bands) == 1 else StackedRows(bands)
