"""Records of a dataset, through Hugging Face's `datasets`: files on this machine, or whatever it finds."""

import glob
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3_model.command.json_file import fault_of_line
from qwen3_model.command.narrow import as_int
from qwen3_model.command.small_files import LFS_POINTER_BYTES, refuse_lfs_pointer
from qwen3_model.errors import ConfigError, FormatError
from qwen3_train.settings.hf_loader import LOADER, HfDataSettings

if TYPE_CHECKING:
    from datasets import Dataset

FILE_FORMATS = ("json", "csv", "parquet", "arrow", "text")
"""Values of `path` that name a format of `data_files`."""
BUILDERS = (
    "audiofolder", "cache", "eval", "generator", "hdf5", "imagefolder", "lance", "niftifolder", "pandas",
    "pdffolder", "spark", "sql", "videofolder", "webdataset", "xml",
)  # fmt: skip
"""Words that `datasets` takes for builders of its own, even beside a folder of that name."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
SCHEMES = ("https://", "hf://")
KINDS = (("messages",), ("conversations",), ("instances",), ("instruction", "output"))
"""Columns that make a record a conversation; see docs/formats/sft.md."""


def load_records(data: HfDataSettings) -> "Dataset":
    """Return the `datasets.Dataset` that the section describes, its own methods applied.

    Raises:
        ConfigError: A file, split or column is not there.
        FormatError: A file cannot be read.
    """
    _check_files(data)
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it would say comes as our sentence
    records = _load(data)
    for method, values in data.steps:
        records = _apply(records, method, values)
    if not len(records):
        raise ConfigError(f"{LOADER}: {data.path} gives no record after its handlers; use more of it")
    columns = set(records.column_names)
    wanted = [kind for kind in KINDS if columns.issuperset(kind)]
    if data.chat.prompt_style == "vicuna":
        wanted = [kind for kind in wanted if kind == ("instruction", "output")]
    if not wanted:
        raise ConfigError(
            f"{LOADER}: the dataset has the columns {', '.join(sorted(columns))}, but a conversation needs "
            "instruction and output, or messages, or conversations (prompt_style vicuna: instruction and "
            "output); rename them with a handler rename_column"
        )
    return records


def read_rows(records: "Dataset") -> Iterator[dict[str, object]]:
    """Yield the records as the files had them, without the None that arrow puts where a key is absent."""
    for batch in records.iter(batch_size=1000):
        names = list(batch)
        for values in zip(*(batch[name] for name in names), strict=True):
            yield {
                name: _drop_none(value)
                for name, value in zip(names, values, strict=True)
                if value is not None
            }


def _drop_none(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _drop_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_drop_none(inner) for inner in value]
    return value


def _check_files(data: HfDataSettings) -> None:
    if data.load_func == "load_from_disk":
        if not Path(data.path).is_dir():
            raise ConfigError(f"{LOADER}.path={data.path} is no folder that datasets has saved")
        return
    _refuse_word(data.path)
    if data.path in FILE_FORMATS and not data.data_files:
        raise ConfigError(f"{LOADER}.path={data.path} needs data_files, the paths of {data.path} files")
    for path in [*_paths(data.data_files), *([data.data_dir] if data.data_dir else [])]:
        if "://" in path or "::" in path:
            _refuse_scheme(path)
    files = []
    for path in _local_paths(data):
        files += _check_local(path)
    if files and not any(file.stat().st_size for file in files):
        names = ", ".join(map(str, files[:3]))
        raise ConfigError(f"{LOADER}.data_files: {names} is empty; give a file that has records")


def _check_local(path: str) -> list[Path]:
    """Return the files that a path of data_files names; refuse a path without any, and a Git LFS pointer."""
    found = _find_paths(path)
    if not found:
        raise ConfigError(f"{LOADER}.data_files: {path} does not exist")
    files = [each for each in found if each.is_file()]
    if not files:
        inner = sorted(each.suffix for each in found[0].iterdir() if each.is_file() and each.suffix)
        pattern = f"{found[0]}/*{inner[0] if inner else '.jsonl'}"
        raise ConfigError(
            f"{LOADER}.data_files: {found[0]} is a folder; give files, such as '{pattern}' in quotes"
        )
    for file in files:
        with file.open("rb") as opened:
            refuse_lfs_pointer(file, opened.read(LFS_POINTER_BYTES))
    return files


def _local_paths(data: HfDataSettings) -> list[str]:
    """Return the paths and patterns of `data_files` that are of this machine."""
    return [path for path in _paths(data.data_files) if "://" not in path]


def _find_paths(path: str) -> list[Path]:
    """Return what a path or a pattern names on this machine, in the order of names."""
    return [Path(path)] if Path(path).exists() else list(map(Path, sorted(glob.glob(path))))  # noqa: PTH207 - may be absolute


def _local_files(data: HfDataSettings) -> list[Path]:
    """Return the files of this machine that `data_files` names."""
    return [file for path in _local_paths(data) for file in _find_paths(path) if file.is_file()]


def _broken_json(data: HfDataSettings) -> str | None:
    """Return which line of the JSON files is not JSON and why, or None where that is not what is wrong."""
    for file in _local_files(data) if data.path == "json" else ():
        if file.suffix not in (".json", ".jsonl"):
            continue
        with file.open("rb") as opened:
            is_array = opened.read(1) == b"["
            opened.seek(0)
            for number, line in enumerate([opened.read()] if is_array else opened, start=1):
                try:
                    json.loads(line) if line.strip() else None
                except ValueError as error:
                    where = f"{file}" if is_array else f"{file}, line {number}"
                    if not is_array and number == 1 and line.strip() in (b"{", b"["):
                        return None  # an object over several lines, which is another matter
                    return f"{where} is not JSON: {error if is_array else fault_of_line(error)}"
    return None


def _refuse_word(path: str) -> None:
    """Refuse every `path` but a format of files, a folder, and a dataset of the hub.

    `datasets` takes further words for its own builders; `pandas` unpickles files, which runs code of theirs.
    """
    known = ", ".join(FILE_FORMATS)
    if path in FILE_FORMATS or HUB_NAME.fullmatch(path) or (Path(path).is_dir() and path not in BUILDERS):
        return
    raise ConfigError(
        f"{LOADER}.path={path!r} is no format of data_files ({known}), no folder, and no owner/name of a "
        "dataset on the hub; other builders of datasets are not run, since some run code of the files"
    )


def _refuse_builder(builder: object, path: str) -> None:
    """Refuse what `datasets` chose for a folder or a dataset of the hub, unless it reads text records."""
    chosen = type(builder).__module__.rpartition(".")[2]
    if chosen not in FILE_FORMATS:
        raise ConfigError(
            f"{LOADER}.path={path!r} holds data that datasets reads with its builder {chosen}; only "
            f"{', '.join(FILE_FORMATS)} are read"
        )


def _refuse_scheme(path: str) -> None:
    if not path.startswith(SCHEMES) or "::" in path:
        raise ConfigError(
            f"{LOADER}: {path} is not fetched; give a local path, or an address that begins with "
            f"{' or '.join(SCHEMES)}"
        )


def _paths(files: object) -> list[str]:
    if isinstance(files, Mapping):
        return [path for part in files.values() for path in _paths(part)]
    if isinstance(files, list | tuple):
        return [str(path) for path in files]
    return [str(files)] if files else []


def _load(data: HfDataSettings) -> "Dataset":
    import datasets

    try:
        if data.load_func == "load_from_disk":
            loaded = datasets.load_from_disk(data.path)
            return loaded[data.split] if isinstance(loaded, datasets.DatasetDict) else loaded
        builder = datasets.load_dataset_builder(
            data.path,
            name=data.name,
            data_dir=data.data_dir,
            data_files=data.data_files,
            cache_dir=str(data.cache_dir) if data.cache_dir else None,
        )
        _refuse_builder(builder, data.path)
        builder.download_and_prepare()
        return builder.as_dataset(split=data.split)
    except ConfigError:
        raise
    except Exception as error:  # datasets raises whatever its readers raise
        if broken := _broken_json(data):
            raise FormatError(f"{LOADER}.data_files: {broken}; mend or delete it") from error
        what = f"{type(error).__name__}: {str(error).strip() or error.__cause__}".splitlines()[0][:300]
        cause = error.__cause__
        why = f" ({type(cause).__name__}: {str(cause).splitlines()[0][:300]})" if cause and str(cause) else ""
        raise FormatError(
            f"{LOADER}: datasets cannot load path={data.path}, data_files={data.data_files}, "
            f"split={data.split}: {what}{why}{_advice(data)}"
        ) from error


def _advice(data: HfDataSettings) -> str:
    if data.path in FILE_FORMATS:
        return f"; the files must be {data.path} files that have records and one kind of columns"
    return "; without a network use path: json and data_files"


def _apply(records: "Dataset", method: str, values: Mapping[str, object]) -> "Dataset":
    values = dict(values)
    if method in ("take", "skip"):
        values["n"] = min(as_int(values.get("n", 0)), len(records))
    try:
        return getattr(records, method)(**values)
    except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in values.items())
        raise ConfigError(
            f"{LOADER}.handler: {method}({given}) fails on columns {', '.join(records.column_names)}: {error}"
        ) from error
