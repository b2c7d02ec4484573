"""`qwen3-data sft`: instruction records to tokens with a loss mask, packed or not."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from qwen3_data.encode.ahead import run_ahead
from qwen3_data.encode.encoding import Checker
from qwen3_data.encode.engines import choose_engine, make_engine
from qwen3_data.encode.tokenizer_facts import TokenizerFile
from qwen3_data.input.block import Position
from qwen3_data.input.blocks import MAX_RECORD_BYTES, read_blocks
from qwen3_data.input.records import BadRecordError, OnError, Reject, load_record, reject_record
from qwen3_data.input.shares import find_share
from qwen3_data.input.sources import Source, find_sources, input_size, refuse_changed
from qwen3_data.write.token_writer import TokenWriter, choose_dtype
from qwen3_data.write.workspace import Workspace, check_rejects, refuse_existing_outputs, refuse_inputs
from qwen3_model.command.files import write_text_atomically
from qwen3_model.command.plain_text import counted
from qwen3_model.command.progress import Progress
from qwen3_model.errors import FormatError
from qwen3_model.text.chat_encoding import FitCounts, encode_samples, fit_samples
from qwen3_model.text.chat_pieces import ChatRenderer, EmptyThink, LossOn, Piece, Thoughts
from qwen3_model.text.conversations import ConversationError
from qwen3_model.text.packing import ChatSample, Packer
from qwen3_model.text.sft import KIND, SFT_VERSION, SftManifest
from qwen3_model.text.tokenizer import Qwen3Tokenizer
from qwen3_model.text.tokens import sibling


@dataclass(frozen=True, kw_only=True, slots=True)
class SftSettings:
    """What one run is asked to do."""

    inputs: tuple[str, ...]
    output_prefix: Path
    tokenizer_dir: Path
    seq_length: int = 4096
    pack: bool = True
    loss_on: LossOn = "all"
    empty_think: EmptyThink = "train"
    thoughts: Thoughts = "keep"
    too_long: str = "truncate"
    """Or "drop"."""
    max_record_bytes: int = MAX_RECORD_BYTES
    engine: str = "auto"
    on_error: OnError = "fail"
    rejects: Path | None = None
    force: bool = False
    quiet: bool = False


@dataclass(slots=True)
class SftTotals:
    """Counts of a run."""

    fit: FitCounts = field(default_factory=FitCounts)
    rejects: list[Reject] = field(default_factory=list)
    num_without_thought: int = 0
    """Answers that are learned without the thought of their record."""


def write_sft(settings: SftSettings) -> tuple[Path, SftManifest, SftTotals]:
    """Encode the conversations and write `<prefix>_sft.{bin,idx,mask,json}`.

    Returns:
        The prefix of the files, their manifest, and the counts of the run.

    Raises:
        Qwen3Error: Anything that cannot work; no output is left then.
    """
    sources = find_sources(settings.inputs)
    tokenizer = Qwen3Tokenizer.from_dir(settings.tokenizer_dir)
    chosen = choose_engine(settings.engine, input_size(sources))
    name = f"{settings.output_prefix.name}_sft"
    output = settings.output_prefix.with_name(name)
    refuse_inputs(sources, [output], settings.rejects)
    refuse_existing_outputs([output], force=settings.force)
    check_rejects(settings.rejects, may_exist=settings.force)
    workspace = Workspace(output, force=settings.force, resume=False)
    try:
        run = _SftRun(settings, sources, tokenizer, chosen)
        manifest = run.write(workspace.folder / name)
        workspace.commit([name])
        if settings.rejects is not None:
            lines = (orjson.dumps(reject).decode() + "\n" for reject in run.totals.rejects)
            write_text_atomically(settings.rejects, "".join(lines))
    finally:
        workspace.remove()
    return output, manifest, run.totals


class _SftRun:
    def __init__(
        self, settings: SftSettings, sources: list[Source], tokenizer: Qwen3Tokenizer, engine: str
    ) -> None:
        self.settings, self.sources, self.tokenizer = settings, sources, tokenizer
        file = TokenizerFile(settings.tokenizer_dir)
        facts = file.facts(None)
        self.vocab_size = facts.vocab_size
        self.engine = make_engine(engine, file, allow_special=False)
        self.renderer = ChatRenderer(
            tokenizer,
            loss_on=settings.loss_on,
            empty_think=settings.empty_think,
            thoughts=settings.thoughts,
        )
        self.totals = SftTotals()
        self.checker: Checker | None = None
        if engine != "tokenizers":
            self.checker = Checker(tokenizer, splits=facts.splits)

    def write(self, stem: Path) -> SftManifest:
        """Write the files of the run into the folder in which it grows."""
        dtype = choose_dtype("auto", self.vocab_size)
        writer = TokenWriter(stem, dtype, None)
        with sibling(stem, ".mask").open("wb") as mask_file:
            packs = Packer(self.settings.seq_length, is_open=self.settings.pack).pack(self._samples())
            for pack in packs:
                ids_L = np.concatenate([sample.ids_L for sample in pack])
                writer.add_document(ids_L, np.array([len(sample.ids_L) for sample in pack]))
                mask_file.write(np.concatenate([sample.mask_L for sample in pack]).tobytes())
            mask_file.flush()
            os.fsync(mask_file.fileno())
        writer.finish()
        if not writer.num_documents:
            raise FormatError(self._explain_nothing_left())
        manifest = self._manifest(writer)
        text = json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False) + "\n"
        write_text_atomically(sibling(stem, ".json"), text)
        return manifest

    def _samples(self) -> Iterator[ChatSample]:
        blocks = read_blocks(
            self.sources, Position(), keys=None, max_record_bytes=self.settings.max_record_bytes
        )
        share = find_share(self.sources, 0, 1)
        with (
            run_ahead(blocks, 2) as read,
            Progress("sft", share.size_bytes or None, "B", quiet=self.settings.quiet) as progress,
        ):
            for block in read:
                origins: list[str] = []
                samples: list[list[Piece]] = []
                for number, raw in enumerate(block.records, block.first_record):
                    try:
                        record = load_record(raw)
                        pieces = [] if record is None else self.renderer.samples_of(record)
                    except (BadRecordError, ConversationError) as error:
                        reject = reject_record(block, number, str(error), self.settings.on_error)
                        self.totals.rejects.append(reject)
                        continue
                    samples += pieces
                    origins += [f"{block.source.name}, record {number}"] * len(pieces)
                yield from self._encode(samples, origins)
                done = share.read_before(block.after.source, block.read_bytes)
                progress.advance(done - progress.done)
        refuse_changed(self.sources)
        self.totals.num_without_thought = self.renderer.num_without_thought

    def _encode(self, samples: list[list[Piece]], origins: list[str]) -> Iterator[ChatSample]:
        """Encode the texts of many samples in one call."""
        encoded = encode_samples(samples, self._ids, self.tokenizer.special_tokens)
        yield from fit_samples(
            encoded,
            origins,
            self.totals.fit,
            limit=self.settings.seq_length,
            drop=self.settings.too_long == "drop",
        )

    def _ids(self, texts: list[str]) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
        ids_T, offsets = self.engine.encode(texts)
        if self.checker is not None:
            self.checker.check(texts, ids_T, offsets)
        return ids_T, offsets

    def _explain_nothing_left(self) -> str:
        totals = self.totals
        what = (
            f"{len(totals.rejects)} bad records, {counted(totals.fit.num_dropped, 'sample')} too long for "
            "--seq-length"
        )
        names = ", ".join(source.name for source in self.sources[:3])
        return f"{names} gave no sample ({what} {self.settings.seq_length}); check the input"

    def _manifest(self, writer: TokenWriter) -> SftManifest:
        tokenizer, settings, totals = self.tokenizer, self.settings, self.totals
        return SftManifest(
            kind=KIND,
            version=SFT_VERSION,
            tokenizer_name=tokenizer.name,
            tokenizer_sha256=tokenizer.sha256,
            template_sha256=hashlib.sha256(tokenizer.chat_template.encode()).hexdigest(),
            vocab_size=self.vocab_size,
            seq_length=settings.seq_length,
            packed=settings.pack,
            loss_on=settings.loss_on,
            empty_think=settings.empty_think,
            thoughts=settings.thoughts,
            num_packs=writer.num_documents,
            num_samples=totals.fit.num_samples,
            num_tokens=writer.num_tokens,
            num_loss_tokens=totals.fit.num_loss_tokens,
            num_truncated=totals.fit.num_truncated,
            num_dropped=totals.fit.num_dropped,
            num_skipped_records=len(totals.rejects),
            sources=tuple(source.name for source in self.sources),
        )
