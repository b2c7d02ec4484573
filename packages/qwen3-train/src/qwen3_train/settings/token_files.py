"""The YAML's `train_dataset` section as checked values."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen3_model.command.narrow import as_int, as_list, as_section, as_text, optional
from qwen3_model.errors import ConfigError
from qwen3_train.settings.blend import Blend, has_weights, parse_blend, split_bounds

LOADER = "train_dataset.data_loader"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSettings:
    """Which token files, which part of them, and what document borders do."""

    train: Blend
    valid: Blend | None
    """The files to evaluate on; None where the split has no valid part."""
    split: str | None
    """Proportions of train, valid and test in each file; None when each has files of its own."""
    seq_length: int
    num_train: int | None
    """Samples of an epoch; None for one pass over the data."""
    num_valid: int | None
    """Samples of an evaluation; None for all of the valid part."""
    seed: int
    cache: Path | None
    """Folder in which indexes of samples are kept (path_to_cache); None to make them in each process."""
    eod: int | None
    """Id that ends a document; None to take it from the manifest beside the data."""
    pad: int
    eod_mask_loss: bool
    reset_position_ids: bool
    separate_documents: bool


def read_data(section: Mapping[str, object]) -> DataSettings:
    """Read the keys of `train_dataset`.

    Raises:
        ConfigError: A key is missing, or values contradict each other.
    """
    loader = as_section(section.get("data_loader", {}))
    kind = loader.get("type") or "BlendedMegatronDatasetDataLoader"
    if kind != "BlendedMegatronDatasetDataLoader":
        raise ConfigError(
            f"{LOADER}.type={kind!r} is not implemented; use BlendedMegatronDatasetDataLoader with token "
            "files of qwen3-data preprocess, SftFileDataLoader with those of qwen3-data sft, or HFDataLoader"
        )
    config = as_section(loader.get("config", {}))
    seq_length = optional(as_int, config.get("seq_length"))
    if not seq_length or seq_length < 1:
        raise ConfigError(f"{LOADER}.config.seq_length={seq_length} must be at least 1")
    train, valid, split = _files(config)
    num_train, num_valid = read_sizes(loader.get("sizes"))
    if num_train is None and has_weights(train):
        raise ConfigError(
            f"{LOADER} has weights in data_path, but sizes={loader.get('sizes')} does not say how many "
            "samples to take; set sizes to for example [8000, 200, 0], or leave the weights out to read "
            "every sample once"
        )
    return DataSettings(
        train=train,
        valid=valid,
        split=split,
        seq_length=seq_length,
        num_train=num_train,
        num_valid=num_valid,
        seed=as_int(config.get("seed", 1234)),
        cache=Path(as_text(config["path_to_cache"])) if config.get("path_to_cache") else None,
        eod=optional(as_int, config.get("eod")),
        pad=as_int(config.get("pad", -1)),
        eod_mask_loss=bool(config.get("eod_mask_loss")),
        reset_position_ids=bool(config.get("reset_position_ids")),
        separate_documents=bool(
            config.get("reset_attention_mask") or config.get("create_compressed_eod_mask")
        ),
    )


def _files(config: Mapping[str, object]) -> tuple[Blend, Blend | None, str | None]:
    own = {part: config.get(f"{part}_data_path") for part in ("train", "valid", "test")}
    if any(own.values()):
        if config.get("data_path"):
            raise ConfigError(
                f"{LOADER}.config has data_path and {'/'.join(own)}_data_path; give one or the other"
            )
        train = parse_blend(own["train"], f"{LOADER}.config.train_data_path")
        valid = parse_blend(own["valid"], f"{LOADER}.config.valid_data_path") if own["valid"] else None
        return train, valid, None
    blend = parse_blend(config.get("data_path"), f"{LOADER}.config.data_path")
    given = config.get("split")
    split = "1, 0, 0" if given in (None, "") else given
    split = ", ".join(map(str, split)) if isinstance(split, list | tuple) else str(split)
    bounds = split_bounds(split, 1_000_000)
    if bounds[0] is None:
        raise ConfigError(f"{LOADER}.config.split={split!r} leaves nothing to train on")
    return blend, blend if bounds[1] is not None else None, split


def read_sizes(sizes: object) -> tuple[int | None, int | None]:
    """Read `[train, valid, test]`; 0, -1 or none means one pass over the part.

    Raises:
        ConfigError: The list is longer, or has another value.
    """
    if sizes is None:
        return None, None
    numbers = [-1 if size is None else size for size in as_list(sizes)]
    counts = [number for number in numbers if type(number) is int and number >= -1]
    if len(counts) < len(numbers) or len(counts) > 3:
        raise ConfigError(f"{LOADER}.sizes={sizes} must be the numbers of train, valid and test samples")
    train, valid, *_ = (*counts, -1, -1)
    return train if train > 0 else None, valid if valid > 0 else None
