"""Several sets of conversations or token files in one run: the list `datasets` of a data loader."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen3_model.command.narrow import as_int, as_list, as_number, as_section, as_sections
from qwen3_model.errors import ConfigError
from qwen3_train.settings.hf_loader import LOADER, HfDataSettings, SftFileSettings
from qwen3_train.settings.token_files import DataSettings

OF_EACH = ("path", "load_func", "name", "data_dir", "split", "data_files", "handler")
"""Keys that stand in the entries and not beside the list."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlendSettings:
    """Conversations of several datasets."""

    parts: tuple[HfDataSettings | SftFileSettings, ...]
    weights: tuple[float, ...] | None
    """Shares of the samples, which sum to 1; None to read every sample of all once."""
    num_train: int | None
    """Samples of an epoch; None exactly where there are no weights."""
    shuffle: bool
    seed: int

    @property
    def seq_length(self) -> int:
        """Tokens of a training sample, the same for all."""
        return self.parts[0].seq_length

    @property
    def tokenizer_dir(self) -> Path | None:
        """Folder with tokenizer.json that an entry names; None for the run's `pretrained_model_dir`."""
        named = (part.tokenizer_dir for part in self.parts if isinstance(part, HfDataSettings))
        return next((folder for folder in named if folder is not None), None)


Part = DataSettings | HfDataSettings | SftFileSettings | BlendSettings


def read_blend(
    section: Mapping[str, object], read_part: Callable[[Mapping[str, object]], Part]
) -> BlendSettings:
    """Read `datasets` of a loader of conversations.

    Args:
        section: `train_dataset`.
        read_part: Reads a section of one dataset.

    Raises:
        ConfigError: An entry cannot work, or the entries do not go together.
    """
    loader = as_section(section["data_loader"])
    entries = as_sections(loader["datasets"])
    weights = entry_weights(loader)
    num_train = _num_train(loader.get("sizes"), weights)
    shared = {key: loader[key] for key in ("type", "cache_dir") if loader.get(key)}
    parts = []
    for number, entry in enumerate(entries):
        own = {key: value for key, value in entry.items() if key != "weight"}
        try:
            part = read_part({"data_loader": {**shared, **own}})
        except ConfigError as error:
            raise ConfigError(f"{LOADER}.datasets.{number}: {error}") from error
        if not isinstance(part, HfDataSettings | SftFileSettings):
            raise ConfigError(f"{LOADER}.datasets.{number} must be conversations, as the others are")
        parts.append(part)
    lengths = sorted({part.seq_length for part in parts})
    if len(lengths) > 1:
        raise ConfigError(f"{LOADER}.datasets have seq_length {lengths}; give all the same")
    return BlendSettings(
        parts=tuple(parts),
        weights=weights,
        num_train=num_train,
        shuffle=bool(loader.get("shuffle")),
        seed=as_int(section.get("seed", 1234)),
    )


def token_section(section: Mapping[str, object]) -> dict[str, object]:
    """Return a section of token files whose `datasets` stand in `config.data_path`.

    Raises:
        ConfigError: An entry is no path with a weight, or other paths are given besides.
    """
    loader = dict(as_section(section["data_loader"]))
    weights = entry_weights(loader)
    config = as_section(loader.get("config", {}))
    if config.get("data_path") or config.get("train_data_path"):
        raise ConfigError(f"{LOADER} has datasets and config.data_path; give one or the other")
    data_path: list[object] = []
    for number, entry in enumerate(as_sections(loader.pop("datasets"))):
        unknown = sorted(entry.keys() - {"path", "weight", "type"})
        if unknown or not entry.get("path"):
            raise ConfigError(
                f"{LOADER}.datasets.{number} of token files takes path and weight, and needs path"
            )
        data_path += [entry["path"]] if weights is None else [str(weights[number]), entry["path"]]
    return {**section, "data_loader": {**loader, "config": {**config, "data_path": data_path}}}


def entry_weights(loader: Mapping[str, object]) -> tuple[float, ...] | None:
    """Return the shares of the entries; None where no entry has a weight.

    Raises:
        ConfigError: The list is empty, some entries have a weight and others not, or one is not above 0.
    """
    entries = as_sections(loader["datasets"])
    if not entries:
        raise ConfigError(f"{LOADER}.datasets is empty; list at least one dataset")
    if beside := [key for key in OF_EACH if loader.get(key)]:
        raise ConfigError(f"{LOADER}.{beside[0]} stands beside datasets; move it into their entries")
    given = [entry.get("weight") for entry in entries]
    if all(weight is None for weight in given):
        return None
    weights: list[float] = []
    for number, weight in enumerate(given):
        if weight is None or not 0 < (share := as_number(weight)) < math.inf:
            raise ConfigError(
                f"{LOADER}.datasets.{number}.weight={weight} must be a number above 0, since all entries "
                "have one or none has"
            )
        weights.append(float(share))
    return tuple(weight / sum(weights) for weight in weights)


def _num_train(sizes: object, weights: tuple[float, ...] | None) -> int | None:
    size = as_list(sizes)[0] if sizes else None
    if weights is None:
        if size:
            raise ConfigError(f"{LOADER}.sizes={sizes} needs a weight in each entry of datasets")
        return None
    if len(weights) == 1 and not size:
        raise ConfigError(f"{LOADER}.datasets has a single entry, whose weight decides nothing; leave it out")
    if type(size) is not int or size < 1:
        raise ConfigError(
            f"{LOADER}.datasets has weights, but sizes={sizes} does not say how many samples to take; set it "
            "to for example [8000], or leave the weights out to read every sample once"
        )
    return size
