"""`qwen3-data count`: documents and tokens of an input, without a file written."""

from dataclasses import dataclass, field

import numpy as np

from qwen3_data.encode.ahead import run_ahead
from qwen3_data.encode.encoding import Checker, Encoded, encode_batches
from qwen3_data.encode.engines import Encoders
from qwen3_data.encode.tokenizer_facts import TokenizerFacts
from qwen3_data.input.block import Position
from qwen3_data.input.blocks import MAX_RECORD_BYTES, read_blocks
from qwen3_data.input.records import OnError, RecordParser
from qwen3_data.input.shares import find_share
from qwen3_data.input.sources import Source, refuse_changed
from qwen3_data.write.token_writer import DOCUMENT
from qwen3_model.command.progress import Progress

AHEAD = 2


@dataclass(slots=True)
class KeyCount:
    """Counts of one key."""

    num_documents: int = 0
    num_with_tokens: int = 0
    """Documents that are not empty, each of which gets an end-of-document id."""
    num_tokens: int = 0
    """Tokens of the texts, without those that end documents."""
    num_chars: int = 0
    open_tokens: int = 0
    """Tokens of a document that the next part continues."""

    def add(self, part: Encoded) -> None:
        """Count a part of the encoded text."""
        self.num_tokens += int(part.offsets[-1])
        self.num_chars += part.num_chars
        stops = part.offsets[1:][part.ends == DOCUMENT]
        lengths = np.diff(stops, prepend=0)
        if len(stops):
            lengths[0] += self.open_tokens
            self.open_tokens = int(part.offsets[-1] - stops[-1])
        else:
            self.open_tokens += int(part.offsets[-1])
        self.num_documents += len(stops)
        self.num_with_tokens += int(np.count_nonzero(lengths))


@dataclass(slots=True)
class Count:
    """Counts of a run."""

    keys: dict[str, KeyCount] = field(default_factory=dict)
    num_skipped: int = 0
    read_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class CountSettings:
    """What to count."""

    json_keys: tuple[str, ...] = ("text",)
    on_error: OnError = "fail"
    max_docs: int | None = None
    max_record_bytes: int = MAX_RECORD_BYTES
    quiet: bool = False


def count_tokens(
    settings: CountSettings, sources: list[Source], tokenizer: TokenizerFacts, encoders: Encoders
) -> Count:
    """Encode the inputs and count.

    Raises:
        Qwen3Error: A record is bad, unless they are skipped, or an input changed meanwhile.
    """
    keys = list(settings.json_keys)
    count = Count({key: KeyCount() for key in keys})
    parser = RecordParser(keys, on_error=settings.on_error, special_tokens=[])
    share = find_share(sources, 0, 1)
    checker = None
    if encoders.reference is not None:
        checker = Checker(encoders.reference, splits=tokenizer.splits)
    blocks = read_blocks(sources, Position(), keys=keys, max_record_bytes=settings.max_record_bytes)
    with run_ahead(blocks, AHEAD) as read, run_ahead(parser.parse(read, settings.max_docs), AHEAD) as parsed:
        engine = encoders.loading.result()
        parts = encode_batches(parsed, engine, splits=tokenizer.splits, checker=checker)
        with Progress("count", share.size_bytes or None, "B", quiet=settings.quiet) as progress:
            for part in parts:
                count.keys[part.key].add(part)
                if part.finished is not None:
                    count.num_skipped += len(part.finished.rejects)
                    done = share.read_before(part.finished.after.source, part.finished.read_bytes)
                    progress.advance(done - progress.done)
    refuse_changed(sources)
    count.read_bytes = share.size_bytes
    return count
