"""Samples of Megatron token files, with the labels, masks and positions that the YAML asks for."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen3_model.command.plain_text import counted
from qwen3_model.errors import ConfigError
from qwen3_model.text.tokens import TokenFile, check_index, open_tokens
from qwen3_train.data.blend_order import exhaustive_pieces, weighted_pieces
from qwen3_train.data.gpt_index import SampleIndex, count_tokens, fill_sample_index, sample_index_of
from qwen3_train.data.index_cache import Room, cached, identity
from qwen3_train.settings.blend import Blend, has_weights, samples_per_file, split_bounds

SPLITS = ("train", "valid", "test")
MOST_SEQUENCES = 2**31 - 1
"""Documents are counted in int32, as Megatron's index does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentOptions:
    """What a document border inside a sample does."""

    eod: int | None
    """Id that ends a document, or None where none is known."""
    pad: int
    """Id that carries no loss; -1 for none."""
    eod_mask_loss: bool
    """No loss where the input is the end of a document, that is for guessing how the next one begins."""
    reset_position_ids: bool
    """Positions count from 0 in each document."""
    separate_documents: bool
    """No attention across documents (`reset_attention_mask` or `create_compressed_eod_mask`)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a batch; all int32 but the mask."""

    input_ids_L: NDArray[np.int32]
    labels_L: NDArray[np.int32]
    loss_mask_L: NDArray[np.float32]
    position_ids_L: NDArray[np.int32]
    document_ids_L: NDArray[np.int32]
    """Counts the documents of the sample; all 0 unless documents are separate."""


class GptDataset:
    """The samples of one token file, in training order."""

    def __init__(self, tokens: TokenFile, index: SampleIndex, seq_length: int) -> None:
        self.tokens, self.index, self.seq_length = tokens, index, seq_length

    def __len__(self) -> int:
        return len(self.index)

    def text(self, number: int) -> NDArray[np.int64]:
        """Return the `seq_length + 1` ids of a sample."""
        index = int(self.index.order[number])
        (first, begin), (last, end) = self.index.starts[index : index + 2].tolist()
        text_T = np.empty(self.seq_length + 1, dtype=np.int64)
        filled = 0
        for at in range(first, last + 1):
            sequence = int(self.index.documents[at])
            offset = begin if at == first else 0
            part = self.tokens.read(sequence, offset, end + 1 - offset if at == last else None)
            text_T[filled : filled + len(part)] = part
            filled += len(part)
        return text_T


class BlendedDataset:
    """The samples of several token files, mixed by weight."""

    def __init__(
        self, datasets: list[GptDataset], files_N: NDArray[np.int32], numbers_N: NDArray[np.int64]
    ) -> None:
        self.datasets, self.files_N, self.numbers_N = datasets, files_N, numbers_N

    def __len__(self) -> int:
        return len(self.files_N)

    def text(self, number: int) -> NDArray[np.int64]:
        """Return the `seq_length + 1` ids of a sample."""
        return self.datasets[int(self.files_N[number])].text(int(self.numbers_N[number]))


GptData = GptDataset | BlendedDataset


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """Which samples of token files."""

    blend: Blend
    """Files and weights."""
    split: str | None
    """Proportions of train, valid and test; None to use the files whole."""
    part: str
    """train, valid or test."""
    seq_length: int
    """Input tokens of a sample."""
    num_samples: int | None
    """Samples wanted at least; None for one pass."""
    seed: int
    """Seed of the samples' order."""
    cache: Path | None = None
    """Folder in which indexes are kept for other processes and starts; None to make them in memory."""


def build_dataset(
    blend: Blend,
    split: str | None,
    part: str,
    *,
    seq_length: int,
    num_samples: int | None,
    seed: int,
    cache: Path | None = None,
) -> GptData | None:
    """Open the files of `blend` and index the samples of one part of the split; `Wanted` has the arguments.

    Returns:
        The dataset, or None where the split leaves nothing for the part.

    Raises:
        ConfigError: A file's part is shorter than one sample, or weights come without a number of samples.
        FormatError: A file is missing or damaged.
    """
    if num_samples is None and has_weights(blend):
        raise ConfigError(
            f"data_path has weights, which need a number of samples to take of the {part} part; set it in "
            "sizes, or leave the weights out to read every sample once"
        )
    wanted = Wanted(
        blend=blend, split=split, part=part, seq_length=seq_length, num_samples=num_samples, seed=seed,
        cache=cache,
    )  # fmt: skip
    datasets = []
    for prefix, count in zip(blend.prefixes, samples_per_file(blend, num_samples), strict=True):
        dataset = _open_file(wanted, Path(prefix), count)
        if dataset is None:
            return None
        datasets.append(dataset)
    if len(datasets) == 1 and blend.weights is None:
        return datasets[0]
    return _mix(datasets, blend, num_samples, cache)


def index_share(wanted: Wanted, number: int, of: int) -> None:
    """Make and keep the indexes of every `of`-th file, so that several machines make those of all together.

    Raises:
        As `build_dataset`.
    """
    counts = samples_per_file(wanted.blend, wanted.num_samples)
    for prefix, count in list(zip(wanted.blend.prefixes, counts, strict=True))[number::of]:
        _open_file(wanted, Path(prefix), count)


def _open_file(wanted: Wanted, prefix: Path, num_samples: int | None) -> GptDataset | None:
    tokens = open_tokens(prefix, checks=False)
    count = len(tokens.sequence_lengths)
    if count > MOST_SEQUENCES:
        raise ConfigError(
            f"{prefix} holds {count} documents, and one file may hold {MOST_SEQUENCES}; make several "
            "with qwen3-data split"
        )
    bounds: tuple[int, int] | None = (0, count)
    if wanted.split is not None:
        bounds = split_bounds(wanted.split, count)[SPLITS.index(wanted.part)]
    if bounds is None:
        return None
    return GptDataset(tokens, _sample_index(wanted, tokens, range(*bounds), num_samples), wanted.seq_length)


def _sample_index(
    wanted: Wanted, tokens: TokenFile, sequences: range, num_samples: int | None
) -> SampleIndex:
    seq_length = wanted.seq_length

    def make(room: Room) -> None:
        # Who finds the index made looks at neither lengths nor pointers, which are as many as documents.
        check_index(tokens)
        num_tokens = count_tokens(tokens.sequence_lengths, sequences)
        if num_tokens < seq_length + 1:
            raise ConfigError(
                f"{tokens.prefix}: its {wanted.part} part has {counted(num_tokens, 'token')} in "
                f"{counted(len(sequences), 'document')}, fewer than one sample of seq_length + 1 = "
                f"{seq_length + 1}; shorten seq_length, change split or add data"
            )
        fill_sample_index(room, tokens.sequence_lengths, sequences, seq_length, num_samples, wanted.seed)

    facts: tuple[object, ...] = ()
    if wanted.cache is not None:
        bounds = sequences.start, len(sequences)
        facts = ("samples", identity(tokens.prefix), bounds, seq_length, num_samples, wanted.seed)
    return sample_index_of(cached(wanted.cache, facts, make))


def _mix(
    datasets: list[GptDataset], blend: Blend, num_samples: int | None, cache: Path | None
) -> BlendedDataset:
    sizes = [len(dataset) for dataset in datasets]
    # The weight of a single file decides nothing.
    weights = None if num_samples is None else blend.weights

    def make(room: Room) -> None:
        if weights is None or num_samples is None:
            total = sum(sizes) if num_samples is None else min(num_samples, sum(sizes))
            pieces = exhaustive_pieces(sizes)
        else:
            total, pieces = num_samples, weighted_pieces(weights, num_samples)
        room.lay_out({"files": (np.int32, (total,)), "numbers": (np.int64, (total,))})
        done = 0
        while done < total:
            files_P, numbers_P = next(pieces)
            room.put("files", done, files_P[: total - done])
            room.put("numbers", done, numbers_P[: total - done])
            done += len(files_P)

    found = cached(cache, ("blend", weights or sizes, num_samples), make)
    return BlendedDataset(datasets, found["files"], found["numbers"])


def make_sample(text_T: NDArray[np.int64], options: DocumentOptions) -> Sample:
    """Turn the ids of a sample into inputs, labels (already shifted), loss mask, positions and documents.

    Args:
        text_T: `seq_length + 1` ids.
        options: What document borders do.
    """
    tokens_L, labels_L = text_T[:-1].copy(), text_T[1:].copy()
    length = len(tokens_L)
    loss_mask_L = np.ones(length, dtype=np.float32)
    loss_mask_L[labels_L == options.pad] = 0.0
    ends_L = np.zeros(length, dtype=bool) if options.eod is None else tokens_L == options.eod
    if options.eod_mask_loss:
        loss_mask_L[ends_L] = 0.0
    # A document begins after each end; the end itself belongs to the document before it.
    begins_L = np.concatenate([[False], ends_L[:-1]])
    positions_L = np.arange(length, dtype=np.int32)
    if options.reset_position_ids:
        positions_L -= np.maximum.accumulate(np.where(begins_L, positions_L, 0))
    documents_L = np.zeros(length, dtype=np.int32)
    if options.separate_documents:
        documents_L = np.cumsum(begins_L, dtype=np.int32)
    tokens_L[tokens_L == options.pad] = 0
    labels_L[labels_L == options.pad] = 0
    return Sample(tokens_L.astype(np.int32), labels_L.astype(np.int32), loss_mask_L, positions_L, documents_L)
