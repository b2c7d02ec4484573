"""One run of `preprocess`, from its beginning or resume point to its visible outputs."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import orjson

from qwen3_data.encode.ahead import run_ahead
from qwen3_data.encode.encoding import Checker, Cut, Encoded, encode_batches
from qwen3_data.encode.engines import Encoders
from qwen3_data.encode.sentences import split_sentences
from qwen3_data.encode.tokenizer_facts import TokenizerFacts
from qwen3_data.input.block import Position
from qwen3_data.input.blocks import read_blocks
from qwen3_data.input.records import RecordParser, Reject
from qwen3_data.input.shares import Share
from qwen3_data.input.sources import Source, refuse_changed
from qwen3_data.runs.preprocess_settings import Settings
from qwen3_data.write.token_writer import TokenWriter, WriterState, choose_dtype
from qwen3_data.write.workspace import Workspace
from qwen3_model.command.files import write_text_atomically
from qwen3_model.command.narrow import as_flag, as_ints, as_section, build
from qwen3_model.command.progress import Progress
from qwen3_model.errors import ConfigError, FormatError
from qwen3_model.text.tokens import MANIFEST_VERSION, Manifest, manifest_json, sibling

RESUME_FORMAT = 3
"""Version of the format of a resume point."""
AHEAD = 2
"""Blocks between two stages."""
PARSED_AHEAD = 12
"""Blocks that are parsed while the encoder loads."""


@dataclass(slots=True)
class Totals:
    """Counts over all keys of a run."""

    num_documents: int = 0
    num_skipped: int = 0
    num_empty: int = 0
    num_tokens: int = 0
    num_chars: int = 0
    num_checked: int = 0
    num_special: dict[str, int] = field(default_factory=dict)
    """Texts of each key that spell a special token."""
    rejects_bytes: int = 0
    """Size of the rejects file that is being written."""


def output_names(prefix: Path, keys: Sequence[str], *, sentences: bool) -> list[str]:
    """Return the names of the token files of each key, without ending.

    Raises:
        ConfigError: A key cannot be part of a file's name.
    """
    if bad := [key for key in keys if "/" in key]:
        raise ConfigError(
            f"the key {bad[0]!r} cannot be part of a file's name; rename it in the input and in --json-keys"
        )
    return [f"{prefix.name}_{key}_{'sentence' if sentences else 'document'}" for key in keys]


class EncodeRun:
    """Reads, parses, encodes and writes side by side; knows from where it could go on."""

    def __init__(
        self,
        settings: Settings,
        sources: list[Source],
        tokenizer: TokenizerFacts,
        share: Share,
        workspace: Workspace,
        run_settings: dict[str, object],
        encoders: Encoders,
    ) -> None:
        self.settings, self.sources, self.tokenizer = settings, sources, tokenizer
        self.share, self.workspace = share, workspace
        self.names = output_names(workspace.prefix, settings.json_keys, sentences=settings.split_sentences)
        self.run_settings, self.encoders = run_settings, encoders
        self.engine_name = ""
        self.busy_s: dict[str, float] = {}
        self.totals = Totals()
        self.position = share.start
        self.states = dict.fromkeys(settings.json_keys, WriterState())
        self._is_encoded = False
        if workspace.progress is not None:
            progress = workspace.progress
            states = as_section(progress["states"])
            self.totals = build(Totals, as_section(progress["totals"]))
            self.position = Position(*as_ints(progress["position"]))
            self.states = {key: WriterState(*as_ints(state)) for key, state in states.items()}
            self._is_encoded = as_flag(progress["finished"])

    def execute(self) -> None:
        """Encode what is left and make the output visible."""
        if not self._is_encoded:
            self._encode()
        self.workspace.commit(self.names)
        self._publish_rejects()

    def _encode(self) -> None:
        settings, tokenizer = self.settings, self.tokenizer
        eod_id = tokenizer.eod_id if settings.append_eod else None
        dtype = choose_dtype(settings.dtype, tokenizer.vocab_size)
        writers = {
            key: TokenWriter(self.workspace.folder / name, dtype, eod_id, self.states[key])
            for key, name in zip(settings.json_keys, self.names, strict=True)
        }
        try:
            self._pump(writers)
            refuse_changed(self.sources)
            if not self.totals.num_documents and settings.num_shards == 1:
                raise FormatError(self._explain_nothing_found())
            for key, writer in writers.items():
                writer.finish()
                self.totals.num_tokens += writer.num_tokens
                self.totals.num_empty += writer.num_empty
                self._write_manifest(key, writer)
        finally:
            for writer in writers.values():
                writer.close()
        self._save(writers, finished=True)

    def _pump(self, writers: dict[str, TokenWriter]) -> None:
        settings, tokenizer = self.settings, self.tokenizer
        keys = list(settings.json_keys)
        parser = RecordParser(
            keys,
            on_error=settings.on_error,
            special_tokens=tokenizer.special_tokens,
            start=self.share.start,
        )
        left = None if settings.max_docs is None else settings.max_docs - self.totals.num_documents
        reference = self.encoders.reference
        checker = None if reference is None else Checker(reference, splits=tokenizer.splits)
        blocks = read_blocks(
            self.sources,
            self.position,
            keys=keys,
            end=self.share.end,
            max_record_bytes=settings.max_record_bytes,
        )
        with (
            run_ahead(blocks, AHEAD) as read,
            run_ahead(parser.parse(read, left), PARSED_AHEAD) as parsed,
        ):
            engine = self.encoders.loading.result()
            encode = encode_batches(parsed, engine, splits=tokenizer.splits, checker=checker, cut=self._cut())
            with (
                run_ahead(encode, AHEAD) as encoded,
                Progress("preprocess", self.share.size_bytes or None, "B", quiet=settings.quiet) as progress,
            ):
                saved_bytes = sum(writer.bin_bytes for writer in writers.values())
                for part in encoded:
                    writers[part.key].add(part.ids_T, part.offsets, part.ends)
                    if not self._count(part, progress):
                        continue
                    written_bytes = sum(writer.bin_bytes for writer in writers.values())
                    if written_bytes - saved_bytes >= settings.shard_bytes:
                        self._save(writers, finished=False)
                        saved_bytes = written_bytes
            self.engine_name = engine.name
            self.totals.num_checked = checker.num_checked if checker else 0
            self.busy_s = {
                "read": read.busy_s,
                "parse": parsed.busy_s - read.waited_s,
                "encode": encoded.busy_s - parsed.waited_s,
                "write": sum(writer.busy_s for writer in writers.values()),
            }

    def _cut(self) -> Cut | None:
        if not self.settings.split_sentences:
            return None
        return partial(split_sentences, keep_newlines=self.settings.keep_newlines)

    def _count(self, part: Encoded, progress: Progress) -> bool:
        """Count a part; return whether a batch ends with it, so that a resume point may follow."""
        self.totals.num_chars += part.num_chars
        batch = part.finished
        if batch is None:
            return False
        self.position = batch.after
        self.totals.num_documents += batch.num_documents
        for key, count in batch.num_special.items():
            self.totals.num_special[key] = self.totals.num_special.get(key, 0) + count
        self._note_rejects(batch.rejects)
        progress.advance(self.share.read_before(batch.after.source, batch.read_bytes) - progress.done)
        return True

    def _note_rejects(self, rejects: list[Reject]) -> None:
        self.totals.num_skipped += len(rejects)
        if not rejects:
            return
        with (self.workspace.folder / "rejects.jsonl").open("ab") as file:
            file.truncate(self.totals.rejects_bytes)  # what a dead run noted after its resume point
            for reject in rejects:
                file.write(orjson.dumps(reject, option=orjson.OPT_APPEND_NEWLINE))
            self.totals.rejects_bytes = file.tell()

    def _publish_rejects(self) -> None:
        if self.settings.rejects is not None:
            grown = self.workspace.folder / "rejects.jsonl"
            text = grown.read_bytes()[: self.totals.rejects_bytes] if grown.exists() else b""
            write_text_atomically(self.settings.rejects, text.decode("utf-8"))

    def _write_manifest(self, key: str, writer: TokenWriter) -> None:
        tokenizer = self.tokenizer
        manifest = Manifest(
            version=MANIFEST_VERSION,
            tokenizer_name=tokenizer.directory.resolve().name,
            tokenizer_sha256=tokenizer.sha256,
            vocab_size=tokenizer.vocab_size,
            eod_id=tokenizer.eod_id,
            eod_appended=self.settings.append_eod,
            num_documents=writer.num_documents,
            num_sequences=writer.num_sequences,
            num_tokens=writer.num_tokens,
            sources=tuple(source.name for source in self.sources),
            num_skipped_records=self.totals.num_skipped,
            num_special_texts=self.totals.num_special.get(key, 0),
            settings=self.run_settings,
        )
        name = self.names[self.settings.json_keys.index(key)]
        write_text_atomically(sibling(self.workspace.folder / name, ".json"), manifest_json(manifest))

    def _save(self, writers: dict[str, TokenWriter], *, finished: bool) -> None:
        if not finished:
            for writer in writers.values():
                writer.sync()
        self.workspace.save_progress(
            {
                "format": RESUME_FORMAT,
                "run": self.run_settings,
                "finished": finished,
                "position": dataclasses.astuple(self.position),
                "totals": dataclasses.asdict(self.totals),
                "states": {key: dataclasses.astuple(writer.state) for key, writer in writers.items()},
            }
        )

    def _explain_nothing_found(self) -> str:
        count = len(self.sources)
        name = str(self.sources[0].path) if count == 1 else f"the input ({count} files)"
        skipped = f" ({self.totals.num_skipped} bad records)" if self.totals.num_skipped else ""
        return f"{name} holds no document{skipped}; check that it is the right file"
