"""Convert whole weights between Hugging Face's folder, ours and mindformers' fused form."""

import json
from dataclasses import dataclass
from pathlib import Path

from qwen3_ckpt.fused import fuse
from qwen3_ckpt.hf_output import write_hf_folder
from qwen3_ckpt.names import hf_tensors
from qwen3_ckpt.rows import LazyTensor, cast, from_file
from qwen3_ckpt.unified import NAME_MAP, UNIFIED, write_parts
from qwen3_model.companions import companion_files, copy_companions, find_companions
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import ConfigError, FormatError
from qwen3_model.files import output_directory, require_free_space
from qwen3_model.fused import FusedLayout
from qwen3_model.hf_folder import INDEX_FILE, SINGLE_FILE, open_hf_tensors
from qwen3_model.progress import Progress
from qwen3_model.safetensors_file import SafetensorsFile, open_safetensors


@dataclass(frozen=True, slots=True)
class ConvertRequest:
    """What to convert and into what."""

    source: Path
    """A Hugging Face folder, a merged folder (or one above it), or one safetensors file."""
    target: str
    """"hf", "ours" (unified files with Hugging Face's names) or "mindformers" (fused weights)."""
    source_layout: FusedLayout
    """Row order of fused weights in the source."""
    target_layout: FusedLayout
    """Row order of fused weights to be written."""
    dtype: str | None
    """BF16, F16, F32, or None to keep each tensor's."""
    hf_dir: Path | None
    """Folder with config.json and tokenizer files; None to look beside the source."""


def convert(request: ConvertRequest, output_dir: Path, *, force: bool, quiet: bool, shard_bytes: int) -> None:
    """Write `output_dir`.

    Raises:
        ConfigError: No config.json was found.
        WeightError: The weights are not exactly those of the model.
        OutputExistsError: `output_dir` is there and `force` is false.
    """
    folder = find_weights(request.source)
    companions = request.hf_dir or find_companions(folder)
    if companions is None:
        raise ConfigError(f"no config.json lies beside {request.source}; name its folder with --hf-dir")
    config = Qwen3Config.from_dir(companions)
    tensors = hf_tensors(open_weights(folder), config, request.source_layout)
    sources = [request.source, *weight_paths(folder)]
    if request.dtype:
        tensors = {name: cast(tensor, request.dtype) for name, tensor in tensors.items()}
    if request.target == "hf":
        write_hf_folder(
            output_dir,
            tensors,
            config,
            companions,
            force=force,
            quiet=quiet,
            shard_bytes=shard_bytes,
            sources=sources,
        )
        return
    if request.target == "mindformers":
        tensors = fuse(tensors, config, request.target_layout)
    total = sum(tensor.plan.size_bytes for tensor in tensors.values())
    require_free_space(output_dir, total)
    with (
        output_directory(output_dir, force=force, sources=(*sources, *companion_files(companions))) as out,
        Progress("write", total, "B", quiet=quiet) as progress,
    ):
        write_parts(out / UNIFIED, tensors, progress.advance)
        copy_companions(companions, out / "hf_files")


def find_weights(source: Path) -> Path:
    """Return the folder or file of whole weights at, or one or two levels below, `source`.

    Raises:
        FormatError: There is none, or there are several.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        raise FormatError(f"{source} does not exist; give a folder or file of weights")
    if any((source / name).exists() for name in (SINGLE_FILE, INDEX_FILE, NAME_MAP)):
        return source
    found = sorted(path.parent for depth in ("*", "*/*") for path in source.glob(f"{depth}/{NAME_MAP}"))
    if len(found) != 1:
        listed = (
            f"several: {', '.join(map(str, found))}"
            if found
            else f"no {SINGLE_FILE}, {INDEX_FILE} or {NAME_MAP}"
        )
        raise FormatError(f"{source} holds {listed}; give the folder with the weights")
    return found[0]


def weight_paths(folder: Path) -> list[Path]:
    """Return every file of weights that `find_weights` found."""
    return [folder] if folder.is_file() else [*folder.glob("*.safetensors"), *folder.glob("*.json")]


def open_weights(folder: Path) -> dict[str, LazyTensor]:
    """Open the weights that `find_weights` found.

    Raises:
        FormatError: A file is missing or damaged, or the index and the files disagree.
    """
    if folder.is_file():
        file = open_safetensors(folder)
        return {name: from_file(file, name) for name in file.tensors}
    if (folder / NAME_MAP).exists():
        return {name: from_file(file, name) for name, file in _open_unified(folder).items()}
    return {name: from_file(file, name) for name, file in open_hf_tensors(folder).items()}


def _open_unified(folder: Path) -> dict[str, SafetensorsFile]:
    path = folder / NAME_MAP
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        weight_map: dict[str, str] = told.get("weight_map", told)
        names = sorted(set(weight_map.values()))
    except (ValueError, AttributeError, TypeError) as error:
        raise FormatError(f"{path} is no map of names to files: {error}") from None
    absent = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if absent:
        raise FormatError(f"{path} names files that are not there: {', '.join(absent)}")
    files = {name: open_safetensors(folder / name) for name in names}
    lost = [tensor for tensor, name in weight_map.items() if tensor not in files[name].tensors]
    if lost:
        raise FormatError(f"{path} places tensors in files that lack them: {', '.join(lost[:8])}")
    stray = [t for name, file in files.items() for t in file.tensors if weight_map.get(t) != name]
    if stray:
        raise FormatError(f"{path} does not list, or lists elsewhere: {', '.join(stray[:8])}")
    return {tensor: files[name] for tensor, name in weight_map.items()}
