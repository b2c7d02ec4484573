"""`qwen3-data preprocess`: jsonl and other inputs to Megatron token files."""

import dataclasses
import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from qwen3_data.ahead import run_ahead
from qwen3_data.blocks import Position, read_blocks
from qwen3_data.encoding import Checker, encode_batches
from qwen3_data.engines import Engine, TokenizersEngine, make_engine, read_tokenizer_json
from qwen3_data.records import OnError, RecordParser, Reject
from qwen3_data.shares import Share, find_share
from qwen3_data.sources import Source, find_sources
from qwen3_data.splitting import can_split
from qwen3_data.token_writer import TokenWriter, WriterState, choose_dtype
from qwen3_data.workspace import Workspace, refuse_existing_outputs
from qwen3_model.errors import ConfigError, FormatError
from qwen3_model.files import write_text_atomically
from qwen3_model.progress import Progress
from qwen3_model.tokens import MANIFEST_VERSION, Manifest, manifest_json, read_manifest, sibling

AHEAD = 2
"""Blocks between two stages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What one run is asked to do."""

    inputs: tuple[str, ...]
    output_prefix: Path
    tokenizer_dir: Path
    json_keys: tuple[str, ...] = ("text",)
    append_eod: bool = True
    eod_token: str = "<|endoftext|>"
    allow_special: bool = False
    engine: str = "auto"
    dtype: str = "auto"
    on_error: OnError = "fail"
    rejects: Path | None = None
    max_docs: int | None = None
    shard_bytes: int = 256 << 20
    """Token bytes between two resume points."""
    shard_index: int = 0
    num_shards: int = 1
    resume: bool = False
    force: bool = False
    quiet: bool = False


@dataclass(slots=True)
class Totals:
    """Counts over all keys of a run."""

    num_documents: int = 0
    num_skipped: int = 0
    num_special: int = 0
    num_empty: int = 0
    num_tokens: int = 0
    num_chars: int = 0
    num_checked: int = 0


@dataclass(slots=True)
class Result:
    """What a run wrote."""

    prefixes: list[Path]
    totals: Totals
    engine: str
    seconds: float
    was_done: bool = False
    """`--resume` found the output whole."""
    seconds_of: dict[str, float] = field(default_factory=dict)
    """Busy time of each stage; stages overlap."""


@dataclass(frozen=True, slots=True)
class _Tokenizer:
    """What the run must know of a tokenizer before it is loaded."""

    directory: Path
    sha256: str
    vocab_size: int
    eod_id: int
    special_tokens: list[str]
    splits: bool

    @property
    def path(self) -> Path:
        return self.directory / "tokenizer.json"


def preprocess(settings: Settings) -> Result:
    """Encode the inputs and write `<prefix>_<key>_document.{bin,idx,json}` for each key.

    Raises:
        Qwen3Error: Anything that cannot work, before or during the work; no output is left then.
    """
    started_s = time.monotonic()
    sources = find_sources(settings.inputs)
    tokenizer = _read_tokenizer(settings.tokenizer_dir, settings.eod_token)
    share = find_share(sources, settings.shard_index, settings.num_shards)
    prefix = share.name_of(settings.output_prefix)
    names = [f"{prefix.name}_{key}_document" for key in settings.json_keys]
    outputs = [prefix.with_name(name) for name in names]
    choose_dtype(settings.dtype, tokenizer.vocab_size)
    print_of_run = _print_of_run(settings, sources, tokenizer)
    folder = prefix.with_name(f".{prefix.name}.partial")
    if settings.resume and not (folder / "progress.json").exists() and _is_done(outputs, sources, tokenizer):
        return Result(outputs, Totals(), "", 0.0, was_done=True)
    if not (settings.resume and (folder / "progress.json").exists()):
        refuse_existing_outputs(outputs, force=settings.force)
    workspace = Workspace(prefix, force=settings.force, resume=settings.resume)
    try:
        run = _Run(settings, sources, tokenizer, share, workspace, names, print_of_run)
        result = run.execute()
    except Exception:
        workspace.remove()
        raise
    except BaseException:  # Ctrl-C and SIGTERM: the resume points stay
        workspace.leave()
        raise
    workspace.remove()
    result.prefixes, result.seconds = outputs, time.monotonic() - started_s
    return result


class _Run:
    """One run from its resume point to its outputs."""

    def __init__(
        self,
        settings: Settings,
        sources: list[Source],
        tokenizer: _Tokenizer,
        share: Share,
        workspace: Workspace,
        names: list[str],
        print_of_run: dict[str, Any],
    ) -> None:
        self.settings, self.sources, self.tokenizer = settings, sources, tokenizer
        self.share, self.workspace = share, workspace
        self.names, self.print_of_run = names, print_of_run
        self.totals = Totals()
        self.position = share.start
        self.busy_s = dict.fromkeys(("read", "parse", "encode", "write"), 0.0)
        self.states = dict.fromkeys(settings.json_keys, WriterState())

    def execute(self) -> Result:
        """Encode what is left and make the output visible."""
        if self.workspace.progress is not None:
            self._take_up(self.workspace.progress)
        engine_name = ""
        if self.workspace.progress is None or not self.workspace.progress["finished"]:
            engine_name = self._encode()
        self.workspace.commit(self.names)
        self._publish_rejects()
        return Result([], self.totals, engine_name, 0.0, seconds_of=self.busy_s)

    def _take_up(self, progress: dict[str, Any]) -> None:
        changed = sorted(key for key, value in self.print_of_run.items() if progress["run"].get(key) != value)
        if changed:
            raise ConfigError(
                f"the interrupted run in {self.workspace.folder} had other {', '.join(changed)}; "
                "resume it with the same, or pass --force without --resume to begin anew"
            )
        self.totals = Totals(**progress["totals"])
        self.position = Position(*progress["position"])
        self.states = {key: WriterState(*state) for key, state in progress["states"].items()}

    def _encode(self) -> str:
        settings, tokenizer = self.settings, self.tokenizer
        eod_id = tokenizer.eod_id if settings.append_eod else None
        dtype = choose_dtype(settings.dtype, tokenizer.vocab_size)
        writers = {
            key: TokenWriter(self.workspace.folder / name, dtype, eod_id, self.states[key])
            for key, name in zip(settings.json_keys, self.names, strict=True)
        }
        with ThreadPoolExecutor(2) as loaders:
            loading = loaders.submit(
                make_engine, settings.engine, tokenizer.path, allow_special=settings.allow_special
            )
            reference: Future[Engine] = loaders.submit(
                TokenizersEngine, tokenizer.path, allow_special=settings.allow_special
            )
            try:
                name = self._pump(writers, loading, reference)
            except BaseException:
                for writer in writers.values():
                    writer.close()
                raise
        for key, writer in writers.items():
            writer.finish()
            self.totals.num_tokens += writer.num_tokens
            self.totals.num_empty += writer.num_documents - writer.num_sequences
            self._write_manifest(key, writer)
        self._save(writers, finished=True)
        return name

    def _pump(
        self, writers: dict[str, TokenWriter], loading: "Future[Engine]", reference: "Future[Engine]"
    ) -> str:
        settings, tokenizer = self.settings, self.tokenizer
        parser = RecordParser(
            settings.json_keys, on_error=settings.on_error, special_tokens=tokenizer.special_tokens
        )
        left = None if settings.max_docs is None else settings.max_docs - self.totals.num_documents
        blocks = read_blocks(self.sources, self.position, keys=list(settings.json_keys), end=self.share.end)
        total = self.share.size_bytes
        saved_at = sum(state.bin_bytes for state in self.states.values())
        with (
            run_ahead(self._timed("read", blocks), AHEAD) as read,
            run_ahead(self._timed("parse", parser.parse(read, left)), AHEAD) as parsed,
        ):
            engine = loading.result()
            checker = None
            if engine.name != "tokenizers":
                checker = Checker(reference, splits=tokenizer.splits)
            encode = encode_batches(parsed, engine, splits=tokenizer.splits, checker=checker)
            with (
                run_ahead(self._timed("encode", encode), AHEAD) as encoded,
                Progress("preprocess", total or None, "B", quiet=settings.quiet) as progress,
            ):
                for part in encoded:
                    begin_s = time.perf_counter()
                    writers[part.key].add(part.ids_T, part.offsets, part.ends)
                    self.totals.num_chars += part.num_chars
                    self.busy_s["write"] += time.perf_counter() - begin_s
                    batch = part.finished
                    if batch is None:
                        continue
                    self.position = batch.after
                    self.totals.num_documents += batch.num_documents
                    self.totals.num_special += batch.num_special
                    self._note_rejects(batch.rejects)
                    done = self.share.read_before(batch.after.source, batch.read_bytes)
                    progress.advance(done - progress.done)
                    written = sum(writer.bin_bytes for writer in writers.values())
                    if written - saved_at >= settings.shard_bytes:
                        self._save(writers, finished=False)
                        saved_at = written
            self.totals.num_checked = checker.num_checked if checker else 0
        if not self.totals.num_documents and settings.num_shards == 1:
            raise FormatError(
                f"{_names(self.sources)} holds no document"
                + (f" ({self.totals.num_skipped} bad records)" if self.totals.num_skipped else "")
                + "; check that it is the right file"
            )
        return engine.name

    def _timed(self, stage: str, items: Iterator[Any]) -> Iterator[Any]:
        """Add the time that `items` takes to the stage, waiting for the stage before included."""
        while True:
            begin_s = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self.busy_s[stage] += time.perf_counter() - begin_s
            yield item

    def _note_rejects(self, rejects: list[Reject]) -> None:
        self.totals.num_skipped += len(rejects)
        if rejects and self.settings.rejects is not None:
            with (self.workspace.folder / "rejects.jsonl").open("ab") as file:
                for reject in rejects:
                    file.write(orjson.dumps(reject, option=orjson.OPT_APPEND_NEWLINE))

    def _publish_rejects(self) -> None:
        if self.settings.rejects is not None:
            grown = self.workspace.folder / "rejects.jsonl"
            text = grown.read_text(encoding="utf-8") if grown.exists() else ""
            write_text_atomically(self.settings.rejects, text)

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
            sources=tuple(str(source.path) for source in self.sources),
            num_skipped_records=self.totals.num_skipped,
            num_special_texts=self.totals.num_special,
        )
        name = self.names[self.settings.json_keys.index(key)]
        write_text_atomically(sibling(self.workspace.folder / name, ".json"), manifest_json(manifest))

    def _save(self, writers: dict[str, TokenWriter], *, finished: bool) -> None:
        if not finished:
            for writer in writers.values():
                writer.sync()
        self.workspace.save_progress(
            {
                "run": self.print_of_run,
                "finished": finished,
                "position": dataclasses.astuple(self.position),
                "totals": dataclasses.asdict(self.totals),
                "states": {key: dataclasses.astuple(writer.state) for key, writer in writers.items()},
            }
        )


def _read_tokenizer(directory: Path, eod_token: str) -> _Tokenizer:
    parsed, raw = read_tokenizer_json(directory)
    vocab, added = parsed["model"].get("vocab", {}), parsed.get("added_tokens", [])
    ids = {entry["content"]: entry["id"] for entry in added}
    if not isinstance(vocab, dict):
        raise FormatError(f"{directory / 'tokenizer.json'} is no byte-pair tokenizer, as Qwen3's is")
    eod_id = ids.get(eod_token, vocab.get(eod_token))
    if eod_id is None:
        raise ConfigError(
            f"--eod-token {eod_token} is no token of {directory}; its special tokens are {sorted(ids)[:6]}"
        )
    return _Tokenizer(
        directory=directory,
        sha256=hashlib.sha256(raw).hexdigest(),
        vocab_size=len(vocab.keys() | ids.keys()),
        eod_id=eod_id,
        special_tokens=[entry["content"] for entry in added if entry["special"]],
        splits=can_split(parsed),
    )


def _print_of_run(settings: Settings, sources: list[Source], tokenizer: _Tokenizer) -> dict[str, Any]:
    """Return what must be the same when a run is resumed, for its bytes to be those of an unbroken run."""
    return {
        "input": [
            [str(s.path), s.size_bytes, 0 if s.is_stdin else s.path.stat().st_mtime_ns] for s in sources
        ],
        "tokenizer": tokenizer.sha256,
        "json-keys": list(settings.json_keys),
        "eod": tokenizer.eod_id if settings.append_eod else None,
        "allow-special": settings.allow_special,
        "dtype": settings.dtype,
        "on-error": settings.on_error,
        "rejects": None if settings.rejects is None else str(settings.rejects),
        "max-docs": settings.max_docs,
        "shard": [settings.shard_index, settings.num_shards],
    }


def _is_done(outputs: list[Path], sources: list[Source], tokenizer: _Tokenizer) -> bool:
    wanted = tuple(str(source.path) for source in sources)
    manifests = [read_manifest(output) if sibling(output, ".idx").exists() else None for output in outputs]
    return all(
        manifest is not None and (manifest.sources, manifest.tokenizer_sha256) == (wanted, tokenizer.sha256)
        for manifest in manifests
    )


def _names(sources: list[Source]) -> str:
    return str(sources[0].path) if len(sources) == 1 else f"the input ({len(sources)} files)"
