"""The sections `train_dataset` and `eval_dataset`, of whichever kind of data they are."""

from collections.abc import Mapping
from dataclasses import dataclass

from qwen3_model.command.narrow import as_int, as_section, as_sections, optional
from qwen3_model.command.run_config import RunConfig, read_section
from qwen3_model.errors import ConfigError
from qwen3_train.settings.blend import has_weights
from qwen3_train.settings.conversation_blend import BlendSettings, read_blend, token_section
from qwen3_train.settings.hf_loader import HfDataSettings, SftFileSettings, read_hf_data, read_sft_file
from qwen3_train.settings.schema import DATASET
from qwen3_train.settings.token_files import DataSettings, read_data, read_sizes

Conversations = HfDataSettings | SftFileSettings | BlendSettings

TOKENS, SFT_FILE, HF = "BlendedMegatronDatasetDataLoader", "SftFileDataLoader", "HFDataLoader"
# Keys that would change what is trained on, and whose they are; the rest do not differ or have no effect.
OWNERS = dict.fromkeys(("sizes", "config"), (TOKENS,)) | {"path": (HF, SFT_FILE), "shuffle": (HF, SFT_FILE)}
OWNERS |= dict.fromkeys(("load_func", "name", "data_dir", "split", "data_files", "handler"), (HF,))


def read_dataset(section: Mapping[str, object]) -> DataSettings | Conversations:
    """Read a section by the type of its loader.

    Raises:
        ConfigError: A value cannot work.
    """
    loader = as_section(section.get("data_loader", {}))
    kind = loader.get("type") or TOKENS
    if loader.get("datasets") is not None:
        return read_data(token_section(section)) if kind == TOKENS else read_blend(section, read_dataset)
    for key, owners in OWNERS.items():
        if loader.get(key) and kind in (TOKENS, SFT_FILE, HF) and kind not in owners:
            raise ConfigError(
                f"data_loader.{key} is a key of {' and '.join(owners)}, not of {kind}; leave it out"
            )
    if kind == HF:
        return read_hf_data(section)
    return read_sft_file(section) if kind == SFT_FILE else read_data(section)


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """What the arithmetic of a step needs to know of the data."""

    seq_length: int
    """Tokens of a sample."""
    num_train: int | None
    """Samples of an epoch; None where only the data know."""
    separate_documents: bool
    """No attention from one document or conversation of a sample to another."""
    num_files: int
    """Token files; 0 for conversations."""
    keeps_indexes: bool
    """Whether indexes of samples are kept for other processes and starts (path_to_cache)."""


def read_samples(config: RunConfig) -> Samples:
    """Read `train_dataset` without its files, which need not be there and need not be named.

    A section that names them is read as `read_dataset` reads it, and refused alike. Only samples made before
    say their length in a file; theirs, and that of data without a name, is what the YAML states.

    Raises:
        ConfigError: A value cannot work, or the length is not stated.
    """
    section = config.section("train_dataset")
    if _names_data(section):
        data = read_dataset(section)
        files = data if isinstance(data, DataSettings) else None
        return Samples(
            seq_length=data.seq_length,
            num_train=data.num_train,
            separate_documents=files.separate_documents if files else True,
            num_files=len(files.train.prefixes) if files else 0,
            keeps_indexes=files is not None and files.cache is not None,
        )
    loader = config.section("train_dataset.data_loader")
    keys = config.section("train_dataset.data_loader.config")
    handlers = config.sections("train_dataset.data_loader.handler")
    stated = (keys, *handlers, config.section("model.model_config"))
    lengths = (each.get("seq_length") for each in stated)
    seq_length = optional(as_int, next((length for length in lengths if length is not None), None))
    if not seq_length or seq_length < 1:
        raise ConfigError(f"train_dataset.data_loader.config.seq_length={seq_length} must be at least 1")
    is_text = (loader.get("type") or TOKENS) == TOKENS
    is_masked = bool(keys.get("reset_attention_mask") or keys.get("create_compressed_eod_mask"))
    return Samples(
        seq_length=seq_length,
        num_train=read_sizes(loader.get("sizes"))[0],
        separate_documents=is_masked or not is_text,
        num_files=int(is_text),
        keeps_indexes=is_text and bool(keys.get("path_to_cache")),
    )


def _names_data(section: Mapping[str, object]) -> bool:
    """Return whether a section names data whose length does not stand in a file of theirs."""
    loader = as_section(section.get("data_loader", {}))
    entries = as_sections(loader.get("datasets") or [loader])
    if SFT_FILE in (loader.get("type"), *(entry.get("type") for entry in entries)):
        return False
    keys = as_section(loader.get("config", {}))
    paths = [keys.get(key) for key in ("data_path", "train_data_path")]
    return any(paths) or any(entry.get("path") for entry in entries)


def read_eval_dataset(config: RunConfig, train: DataSettings | Conversations) -> Conversations | None:
    """Read `eval_dataset` where `do_eval` asks for it; None where there is none.

    Raises:
        ConfigError: A key or value cannot work, or does not go with what is trained on.
    """
    if config.get("do_eval") and isinstance(train, DataSettings):
        _refuse_unsized_weights(train)
    stated = config.get("eval_dataset")
    # mindformers' YAMLs have a section that they do not use, of other keys.
    if not config.get("do_eval") or not stated:
        return None
    if isinstance(train, DataSettings):
        raise ConfigError(
            "eval_dataset is for conversations; of token files the valid part of train_dataset's split is "
            "evaluated, leave it out"
        )
    section = read_section(stated, DATASET, "eval_dataset")
    try:
        held_out = read_dataset(section)
    except ConfigError as error:
        raise ConfigError(f"eval_dataset: {error}") from error
    if isinstance(held_out, DataSettings):
        raise ConfigError("eval_dataset.data_loader.type must be HFDataLoader or SftFileDataLoader")
    if held_out.seq_length != train.seq_length:
        raise ConfigError(
            f"eval_dataset has seq_length {held_out.seq_length}, train_dataset {train.seq_length}; give both "
            "the same"
        )
    return held_out


def _refuse_unsized_weights(data: DataSettings) -> None:
    if data.valid is not None and data.num_valid is None and has_weights(data.valid):
        raise ConfigError(
            "do_eval=True needs the second number of train_dataset.data_loader.sizes, since data_path has "
            "weights: set it to the samples of an evaluation, for example sizes: [8000, 200, 0], or leave "
            "the weights out to evaluate all"
        )
