"""Training samples as the model sees them, for people; free of MindSpore.

What is shown of a token is whether it is learned, that is whether the position before it carries loss.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from qwen3_model.command.plain_text import counted, without_controls
from qwen3_model.command.run_config import load_run_config
from qwen3_model.errors import ConfigError
from qwen3_model.text.sft import read_sft_manifest
from qwen3_model.text.tokenizer import Qwen3Tokenizer
from qwen3_model.text.tokens import sibling
from qwen3_train.data.batches import read_sample
from qwen3_train.data.gpt_dataset import Sample
from qwen3_train.data.run_data import RunData
from qwen3_train.data.sft_prepare import prepare_sft
from qwen3_train.data.token_data import prepare_tokens
from qwen3_train.settings.conversation_blend import BlendSettings
from qwen3_train.settings.hf_loader import HfDataSettings, SftFileSettings
from qwen3_train.settings.run import read_settings
from qwen3_train.settings.schema import TRAIN
from qwen3_train.settings.token_files import DataSettings

LEARNED, PLAIN, RESET = "\033[32m", "\033[2m", "\033[0m"
HERE = (("use_parallel", "False"), ("context.device_target", "CPU"), ("run_mode", "train"))
"""Overrides after which neither the machine nor weights are checked, which samples do not depend on."""


def inspect_data(
    config_path: Path,
    overrides: Sequence[tuple[str, str]],
    *,
    first: int,
    count: int,
    table: bool,
    color: bool,
) -> Iterator[str]:
    """Yield lines about samples of a run's data.

    Args:
        config_path: The run's YAML.
        overrides: Keys and values of the command line.
        first: Number of the first sample in the order of training, from 0.
        count: Samples to show.
        table: Whether to show a line per token, in place of the text.
        color: Whether to mark learned tokens by colours, in place of brackets.

    Raises:
        Qwen3Error: The data cannot be used, or there is no such sample.
    """
    settings = read_settings(load_run_config(config_path, [*overrides, *HERE], TRAIN))
    notes: list[str] = []
    if isinstance(settings.data, DataSettings):
        data = prepare_tokens(settings, settings.data, notes)
    else:
        data = prepare_sft(settings, settings.data, notes)
    if first >= len(data.train):
        raise ConfigError(
            f"there are {len(data.train)} samples, counted from 0; --start {first} is none of them"
        )
    folder = settings.tokenizer_dir
    tokenizer = Qwen3Tokenizer.from_dir(folder) if folder and (folder / "tokenizer.json").is_file() else None
    yield from notes
    if tokenizer is None:
        yield "no tokenizer (give --pretrained_model_dir), so ids are shown"
    samples = counted(len(data.train), "sample")
    yield f"{samples} of {counted(settings.data.seq_length, 'token')}{_choices(settings.data)}"
    for number in range(first, min(first + count, len(data.train))):
        yield from show_sample(data, number, tokenizer, table=table, color=color)


def _choices(data: object) -> str:
    """Return what a loader of conversations makes of them, for people."""
    if isinstance(data, BlendSettings):
        shares = data.weights or ("all",) * len(data.parts)
        shown = (f"{share}{_choices(part)}" for share, part in zip(shares, data.parts, strict=True))
        return "".join(f"\n  datasets.{number}: share {one}" for number, one in enumerate(shown))
    if isinstance(data, SftFileSettings):
        made = read_sft_manifest(sibling(data.prefix, ".json"))
        return f"; loss_on {made.loss_on}, thoughts {made.thoughts}, empty_think {made.empty_think}"
    if not isinstance(data, HfDataSettings):
        return ""
    chat = data.chat
    if chat.prompt_style == "vicuna":
        return "; prompt_style vicuna"
    return f"; loss_on {chat.loss_on}, thoughts {chat.thoughts}, empty_think {chat.empty_think}"


def show_sample(
    data: RunData, number: int, tokenizer: Qwen3Tokenizer | None, *, table: bool, color: bool
) -> Iterator[str]:
    """Yield a sample's documents one after the other; learned tokens are green, or between [[ and ]]."""
    sample = read_sample(data.train, number, data.options)
    yield ""
    with_loss = int(sample.loss_mask_L.sum())
    yield f"sample {number}: {with_loss} of {len(sample.input_ids_L)} positions carry loss"
    borders = [0, *(np.flatnonzero(np.diff(sample.document_ids_L)) + 1).tolist(), len(sample.input_ids_L)]
    is_learned_L = np.concatenate([[False], sample.loss_mask_L[:-1] > 0])
    for begin, end in pairwise(borders):
        positions = sample.position_ids_L[begin:end]
        if data.stop_ids and end == len(sample.input_ids_L) and _is_padding(sample, begin):
            yield f"-- {counted(end - begin, 'token')} of padding"
            continue
        yield (
            f"-- document {sample.document_ids_L[begin]}: tokens {begin} to {end - 1}, positions "
            f"{positions[0]} to {positions[-1]}, {int(is_learned_L[begin:end].sum())} tokens are learned"
        )
        if table:
            yield from _rows(sample, begin, end, tokenizer)
        else:
            ids = sample.input_ids_L[begin:end].tolist()
            yield _colour(ids, is_learned_L[begin:end].tolist(), tokenizer, color=color)


def _is_padding(sample: Sample, begin: int) -> bool:
    rest = sample.input_ids_L[begin:]
    return not sample.loss_mask_L[begin:].any() and bool((rest == rest[0]).all())


def _colour(ids: list[int], learned: list[bool], tokenizer: Qwen3Tokenizer | None, *, color: bool) -> str:
    text, first = "", 0
    marks = (
        {True: (LEARNED, RESET), False: (PLAIN, RESET)} if color else {True: ("[[", "]]"), False: ("", "")}
    )
    for at in range(1, len(ids) + 1):
        if at == len(ids) or learned[at] != learned[first]:
            before, after = marks[learned[first]]
            text += before + _text(ids[first:at], tokenizer) + after
            first = at
    return text


def _rows(sample: Sample, begin: int, end: int, tokenizer: Qwen3Tokenizer | None) -> Iterator[str]:
    """Yield one line per position: where it is, what goes in, what is to come out."""
    yield f"{'index':>6} {'position':>8} {'id':>7} {'label':>7} token"
    for at in range(begin, end):
        token, label = int(sample.input_ids_L[at]), int(sample.labels_L[at])
        target, shown = "-", _show_token(token, tokenizer)
        if sample.loss_mask_L[at]:
            target, shown = str(label), f"{shown} -> {_show_token(label, tokenizer)}"
        yield f"{at:>6} {sample.position_ids_L[at]:>8} {token:>7} {target:>7} {shown}"


def _show_token(token: int, tokenizer: Qwen3Tokenizer | None) -> str:
    return "" if tokenizer is None else repr(tokenizer.decode([token], skip_special=False))


def _text(ids: list[int], tokenizer: Qwen3Tokenizer | None) -> str:
    if tokenizer is None:
        return " ".join(map(str, ids)) + " "
    return without_controls(tokenizer.decode(ids, skip_special=False))
