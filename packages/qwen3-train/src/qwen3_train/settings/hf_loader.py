"""The YAML's HFDataLoader section as checked values."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen3_model.command.narrow import as_int, as_section, as_sections, as_text, build, optional
from qwen3_model.errors import ConfigError
from qwen3_model.text.chat_pieces import EmptyThink, LossOn, Thoughts

LOADER = "train_dataset.data_loader"
CHAT_HANDLER, PACKING_HANDLER = "AlpacaInstructDataHandler", "PackingHandler"
METHODS: dict[str, tuple[str, ...]] = {
    "take": ("n",),
    "skip": ("n",),
    "shuffle": ("seed",),
    "sort": ("column_names",),
    "shard": ("num_shards", "index"),
    "select_columns": ("column_names",),
    "remove_columns": ("column_names",),
    "rename_column": ("original_column_name", "new_column_name"),
    "rename_columns": ("column_mapping",),
}
"""Methods of `datasets.Dataset` that a handler may name, with their arguments."""
CHAT_KEYS = (
    "seq_length", "padding", "tokenizer", "prompt_style", "loss_on", "empty_think", "thoughts", "too_long",
    "on_bad_record",
)  # fmt: skip
PACKING_KEYS = ("seq_length", "pack_strategy")

PromptStyle = Literal["qwen", "vicuna"]
CHOICES: dict[str, tuple[str, ...]] = {
    "prompt_style": ("qwen", "vicuna"),
    "loss_on": ("all", "last"),
    "empty_think": ("train", "mask"),
    "thoughts": ("keep", "split", "template"),
    "too_long": ("truncate", "drop"),
    "on_bad_record": ("fail", "skip"),
    "pack_strategy": ("pack", "truncate"),
}
"""Values of a handler's keys; the first is the default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatSettings:
    """How a record becomes tokens and which of them carry loss."""

    seq_length: int
    """Tokens of a training sample."""
    prompt_style: PromptStyle
    """The tokenizer's chat template, or the prompt of mindformers' alpaca handler."""
    loss_on: LossOn
    empty_think: EmptyThink
    """Whether the empty thought that the template puts before an answer carries loss."""
    thoughts: Thoughts
    """Thoughts of answers before the last: "keep", "split" (a sample per answer) or "template"."""
    too_long: str
    """"truncate" or "drop": a conversation of more than `seq_length` tokens."""
    on_bad_record: str
    """"fail" or "skip"."""
    pack_strategy: str | None
    """"pack": whole conversations; "truncate": cut where a sample is full; None: one to a sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HfDataSettings:
    """Which records, through which steps, to which samples."""

    load_func: str
    """load_dataset or load_from_disk."""
    path: str
    name: str | None
    """Configuration of the dataset."""
    data_dir: str | None
    data_files: object
    """A path, a list of them, or lists by split."""
    split: str
    steps: tuple[tuple[str, Mapping[str, object]], ...]
    """Methods of `datasets.Dataset` and their arguments, in order."""
    chat: ChatSettings
    tokenizer_dir: Path | None
    """Folder with tokenizer.json; None for the run's `pretrained_model_dir`."""
    shuffle: bool
    """Shuffle the samples, after packing, anew for every epoch."""
    seed: int
    cache_dir: Path | None
    """Folder for `datasets` and the tokenised samples; None for their own under the home folder."""

    @property
    def seq_length(self) -> int:
        """Tokens of a training sample."""
        return self.chat.seq_length

    @property
    def num_train(self) -> None:
        """One pass over the data is an epoch."""
        return


@dataclass(frozen=True, kw_only=True, slots=True)
class SftFileSettings:
    """Samples that qwen3-data sft has made."""

    prefix: Path
    shuffle: bool
    seed: int
    seq_length: int
    """Tokens of a training sample."""

    @property
    def num_train(self) -> None:
        """One pass over the data is an epoch."""
        return


def read_hf_data(section: Mapping[str, object]) -> HfDataSettings:
    """Read the keys of `train_dataset` for an HFDataLoader.

    Raises:
        ConfigError: A key is missing or values contradict each other.
    """
    loader = as_section(section["data_loader"])
    load_func = as_text(loader.get("load_func") or "load_dataset")
    if load_func not in ("load_dataset", "load_from_disk"):
        raise ConfigError(
            f"{LOADER}.load_func={load_func!r} is not implemented; use load_dataset or load_from_disk"
        )
    if not loader.get("path"):
        raise ConfigError(f"{LOADER}.path is missing; give for example path: json and data_files: FILE.jsonl")
    steps, chat, packing = _handlers(as_sections(loader.get("handler", [])))
    tokenizer = as_section(chat.get("tokenizer", {}))
    return HfDataSettings(
        load_func=load_func,
        path=as_text(loader["path"]),
        name=optional(as_text, loader.get("name")),
        data_dir=optional(as_text, loader.get("data_dir")),
        data_files=loader.get("data_files"),
        split=as_text(loader.get("split") or "train"),
        steps=tuple(steps),
        chat=_chat(chat, packing),
        tokenizer_dir=_path(tokenizer.get("pretrained_model_dir")),
        shuffle=bool(loader.get("shuffle")),
        seed=as_int(section.get("seed", 1234)),
        cache_dir=_path(loader.get("cache_dir")),
    )


def read_sft_file(section: Mapping[str, object]) -> SftFileSettings:
    """Read the keys of `train_dataset` for an SftFileDataLoader.

    Raises:
        ConfigError, FormatError: The path is missing, or no manifest of instruction data is there.
    """
    from qwen3_model.text.sft import read_sft_manifest
    from qwen3_model.text.tokens import sibling

    loader = as_section(section["data_loader"])
    if not loader.get("path"):
        raise ConfigError(f"{LOADER}.path is missing; give the prefix that qwen3-data sft has printed")
    prefix = Path(as_text(loader["path"]))
    return SftFileSettings(
        prefix=prefix,
        shuffle=bool(loader.get("shuffle")),
        seed=as_int(section.get("seed", 1234)),
        seq_length=read_sft_manifest(sibling(prefix, ".json")).seq_length,
    )


def _handlers(
    handlers: Sequence[Mapping[str, object]],
) -> tuple[list[tuple[str, Mapping[str, object]]], Mapping[str, object], Mapping[str, object] | None]:
    """Return the methods of the dataset, the chat handler and the packing handler, as they must follow."""
    steps: list[tuple[str, Mapping[str, object]]] = []
    chat: Mapping[str, object] | None = None
    packing: Mapping[str, object] | None = None
    for index, handler in enumerate(handlers):
        kind, key = optional(as_text, handler.get("type")), f"{LOADER}.handler.{index}"
        values = {key: value for key, value in handler.items() if key != "type"}
        if kind == CHAT_HANDLER and chat is None and packing is None:
            _check_keys(key, CHAT_HANDLER, values, CHAT_KEYS)
            chat = values
        elif kind == PACKING_HANDLER and packing is None and chat is not None:
            _check_keys(key, PACKING_HANDLER, values, PACKING_KEYS)
            packing = values
        elif kind in METHODS and chat is None:
            _check_keys(key, kind, values, METHODS[kind])
            steps.append((kind, values))
        elif kind in (*METHODS, CHAT_HANDLER, PACKING_HANDLER):
            raise ConfigError(
                f"{key}.type={kind!r} is out of place: the dataset's own methods come first, then one "
                f"{CHAT_HANDLER}, then at most one {PACKING_HANDLER}"
            )
        else:
            known = (CHAT_HANDLER, PACKING_HANDLER, *METHODS)
            close = difflib.get_close_matches(str(kind), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            raise ConfigError(f"{key}.type={kind!r} is not implemented; {hint}")
    if chat is None:
        raise ConfigError(f"{LOADER}.handler has no {CHAT_HANDLER}, which turns records into tokens; add it")
    return steps, chat, packing


def _check_keys(key: str, kind: str, values: Mapping[str, object], known: Sequence[str]) -> None:
    unknown = sorted(values.keys() - set(known))
    if unknown:
        raise ConfigError(f"{key} ({kind}) does not take {', '.join(unknown)}; it takes {', '.join(known)}")


def _chat(chat: Mapping[str, object], packing: Mapping[str, object] | None) -> ChatSettings:
    lengths = {as_int(values["seq_length"]) for values in (chat, packing or {}) if "seq_length" in values}
    if len(lengths) != 1 or min(lengths) < 2:
        raise ConfigError(
            f"{LOADER}.handler: {CHAT_HANDLER} and {PACKING_HANDLER} need one common seq_length of at least "
            f"2, found {sorted(lengths) or 'none'}"
        )
    if chat.get("prompt_style") == "vicuna" and (unused := sorted({"empty_think", "thoughts"} & chat.keys())):
        raise ConfigError(
            f"{LOADER}.handler: {unused[0]} is of the chat template, not of prompt_style vicuna; leave it out"
        )
    chosen: dict[str, object] = {key: _choice(chat, key) for key in CHOICES if key != "pack_strategy"}
    chosen["pack_strategy"] = None if packing is None else _choice(packing, "pack_strategy")
    return build(ChatSettings, chosen | {"seq_length": lengths.pop()})


def _choice(values: Mapping[str, object], key: str) -> str:
    value = as_text(values.get(key, CHOICES[key][0]))
    if value not in CHOICES[key]:
        raise ConfigError(f"{LOADER}.handler: {key}={value!r} is none of {', '.join(CHOICES[key])}")
    return value


def _path(text: object) -> Path | None:
    return Path(as_text(text)).expanduser() if text else None
