"""What grows with files, documents and samples: token files, their indexes, and what a step reads."""

import json
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from bench_scale_series import Series, cpu_s, one_thread, open_files_limited, straight
from measures import cpu_seconds_of_children

from qwen3_model.text.tokens import open_tokens
from qwen3_train.data.batch_plan import BatchPlan
from qwen3_train.data.batches import own_batches
from qwen3_train.data.blend_order import weighted_order, weighted_pieces
from qwen3_train.data.gpt_dataset import DocumentOptions, GptDataset
from qwen3_train.data.gpt_index import build_sample_index, fill_sample_index
from qwen3_train.data.index_cache import cached

TOKENIZER = Path(__file__).resolve().parents[1] / "demo_data/tokenizer"
FILE_DOCUMENTS = 156_250_000
"""Documents of each of 64 files of 1e10 documents together, which are 1e13 tokens at 1,000 each."""
SAMPLES = 2.44e9
"""Samples of 4,096 tokens in 1e13 tokens."""
SEQ_LENGTH = 4096
OWN_SAMPLES = 4
"""That a replica takes of a step, whatever the others take."""
STEPS = 32


def files(largest: int) -> Iterator[Series]:
    """`qwen3-data preprocess` of small files."""
    sizes = [largest // 2**power for power in (4, 3, 2, 1, 0)]
    costs = []
    for count in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "text"
            folder.mkdir()
            for number in range(count):
                text = json.dumps({"text": f"a few words, which are those of document {number}"})
                (folder / f"{number:07d}.jsonl").write_text(text + "\n", encoding="utf-8")
            flags = [
                "--input",
                folder,
                "--tokenizer-dir",
                TOKENIZER,
                "--output-prefix",
                Path(name) / "tokens",
            ]
            costs.append(_command_s("preprocess", *flags, "--threads", "1", "--quiet"))
    yield Series(
        what="`qwen3-data preprocess`, by files of one document", unit="CPU s", sizes=sizes, costs=costs,
        target=1e6, fit=straight,
    )  # fmt: skip


def shards() -> Iterator[Series]:
    """`qwen3-data merge` of token files, with 1,024 open files allowed."""
    sizes, costs = [500, 1000, 2000, 4000], []
    with tempfile.TemporaryDirectory() as name:
        line = Path(name) / "one.jsonl"
        line.write_text('{"text": "a few words"}\n', encoding="utf-8")
        _command_s(
            "preprocess",
            "--input",
            line,
            "--tokenizer-dir",
            TOKENIZER,
            "--output-prefix",
            f"{name}/one",
            "--quiet",
        )
        made = 0
        for count in sizes:
            folder = Path(name) / "shards"
            folder.mkdir(exist_ok=True)
            while made < count:
                for ending in (".bin", ".idx"):
                    copy = folder / f"{made:06d}{ending}"
                    copy.write_bytes((Path(name) / f"one_text_document{ending}").read_bytes())
                made += 1
            with open_files_limited():
                flags = ["--input", folder, "--output-prefix", f"{name}/joined_{count}", "--quiet"]
                costs.append(_command_s("merge", *flags))
    yield Series(
        what="`qwen3-data merge`, by shards, at most 1,024 open files", unit="CPU s", sizes=sizes,
        costs=costs, target=1e5, fit=straight,
    )  # fmt: skip


def index() -> Iterator[Series]:
    """The sample index of a file."""
    documents = [1_000_000, 2_000_000, 4_000_000, 8_000_000]
    rng = np.random.default_rng(0)
    spent, held = [], []
    for count in documents:
        lengths = rng.integers(1, 2000, count, dtype=np.int32)
        spent.append(cpu_s(lambda lengths=lengths: _index(lengths)))
        tracemalloc.start()
        _index(lengths)
        held.append(tracemalloc.get_traced_memory()[1] / 1e9)
        tracemalloc.stop()
    yield _row("Sample index of a file, by documents", "CPU s", documents, spent, FILE_DOCUMENTS)
    yield Series(
        what="memory while it is made",
        unit="GB",
        sizes=documents,
        costs=held,
        target=FILE_DOCUMENTS,
        fit=straight,
    )


def blend() -> Iterator[Series]:
    """The order in which the samples of several files come."""
    samples = [5_000_000, 10_000_000, 20_000_000, 40_000_000]
    rng = np.random.default_rng(0)
    for count in (2, 8, 64):
        weights = (rng.random(count) + 0.01).tolist()
        weighted_order(weights, samples[0])  # compiles
        spent = [cpu_s(lambda n=n, weights=weights: _order(weights, n)) for n in samples]
        yield _row(f"Order of a blend of {count} files, by samples", "CPU s", samples, spent, SAMPLES)


def step() -> Iterator[Series]:
    """What a replica reads for a step whose global batch grows with the replicas."""
    replicas = [1, 4, 16, 64, 256]
    with tempfile.TemporaryDirectory() as name:
        line = Path(name) / "long.jsonl"
        text = "a few words " * 400_000
        line.write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
        flags = ["--input", line, "--tokenizer-dir", TOKENIZER, "--output-prefix", f"{name}/long", "--quiet"]
        _command_s("preprocess", *flags)
        tokens = open_tokens(Path(name) / "long_text_document")
        needed = replicas[-1] * OWN_SAMPLES * STEPS
        lengths = tokens.sequence_lengths
        indexed = build_sample_index(lengths, range(len(lengths)), SEQ_LENGTH, needed, 1)
        dataset = GptDataset(tokens, indexed, SEQ_LENGTH)
        spent = [_step_s(dataset, dp, needed) * 1000 for dp in replicas]
    yield _row("A replica reads its 4 samples of a step, by replicas", "CPU ms", replicas, spent, 128)


def _step_s(dataset: GptDataset, num_replicas: int, num_samples: int) -> float:
    """Return the CPU seconds of one replica's part of a step."""
    plan = BatchPlan(
        micro_batch=1,
        num_micro_batches=OWN_SAMPLES,
        num_replicas=num_replicas,
        num_samples=num_samples,
        num_epochs=1,
    )
    options = DocumentOptions(
        eod=None, pad=-1, eod_mask_loss=False, reset_position_ids=False, separate_documents=False
    )
    own_batches(dataset, plan, options, 1, 4096)

    def run() -> None:
        for number in range(1, STEPS + 1):
            own_batches(dataset, plan, options, number, 4096, num_replicas - 1)

    return cpu_s(run) / STEPS


def _row(what: str, unit: str, sizes: Sequence[int], costs: list[float], target: float) -> Series:
    return Series(what=what, unit=unit, sizes=sizes, costs=costs, target=target)


def _command_s(command: str, *flags: str | Path) -> float:
    """Return the CPU seconds of a qwen3-data command."""
    before = cpu_seconds_of_children()
    words = [Path(sys.executable).with_name("qwen3-data"), command, *flags]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=one_thread())
    return cpu_seconds_of_children() - before


def _order(weights: list[float], num_samples: int) -> None:
    for _ in weighted_pieces(weights, num_samples):
        pass


def _index(lengths: np.ndarray) -> None:
    """Make the index of a file of documents, one pass over them, in a folder."""
    with tempfile.TemporaryDirectory() as name:
        cached(
            Path(name),
            "",
            lambda room: fill_sample_index(room, lengths, range(len(lengths)), SEQ_LENGTH, None, 1),
        )
