"""The readers that `tools/fuzz` feeds, each a function of bytes that raises nothing but sentences of ours."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from qwen3_ckpt.operations.verify import find_faults
from qwen3_data.encode.tokenizer_facts import TokenizerFile
from qwen3_data.input.block import Position
from qwen3_data.input.blocks import read_blocks
from qwen3_data.input.records import RecordParser
from qwen3_data.input.sources import find_sources
from qwen3_infer.folder.generation_config import read_generation_config
from qwen3_infer.folder.model_folder import ModelFolder
from qwen3_infer.sampling.grammar import Grammars
from qwen3_infer.sampling.sampling import Sampling
from qwen3_infer.serve.errors import ApiError
from qwen3_infer.serve.requests import read_chat, read_completion
from qwen3_infer.serve.responses_request import read_response
from qwen3_infer.serve.service import Service
from qwen3_infer.serve.tokens import detokenize, tokenize
from qwen3_infer.settings.settings import Decoding
from qwen3_infer.text.output import ChatOutput
from qwen3_model.checkpoints.adapter_config import read_adapter_config
from qwen3_model.checkpoints.hf_folder import open_hf_tensors
from qwen3_model.checkpoints.iteration_files import open_iteration
from qwen3_model.checkpoints.safetensors_file import TensorPlan, encode_header, open_safetensors
from qwen3_model.checkpoints.strategy import TensorLayout, read_strategy
from qwen3_model.checkpoints.strategy_json import read_json_strategy
from qwen3_model.checkpoints.tensors import Tensors
from qwen3_model.command.plain_text import as_message, without_controls
from qwen3_model.command.yaml_loader import parse_yaml
from qwen3_model.config import SIZES, Qwen3Config
from qwen3_model.errors import Qwen3Error
from qwen3_model.text.chat_pieces import ChatRenderer
from qwen3_model.text.chat_template import render_chat_template
from qwen3_model.text.conversations import ConversationError
from qwen3_model.text.tokenizer import Qwen3Tokenizer
from qwen3_model.text.tokens import open_tokens, read_manifest

ROOT = Path(__file__).parents[2]
SEEDS = ROOT / "tools/fuzz_seeds"
TOKENIZER = ROOT / "tools/demo_data/tokenizer"
ALLOWED = (Qwen3Error, ConversationError, ApiError)
MOST_RANKS = 64
SMALL = encode_header([TensorPlan("a", "F32", (2,))], {}) + bytes(8)
"""A file of weights."""


@dataclass(frozen=True, slots=True)
class Target:
    """A reader."""

    name: str
    read: Callable[[bytes], None]
    is_json: bool
    """Whether inputs are made as JSON values, too."""

    @property
    def seeds(self) -> list[bytes]:
        """What inputs are made from."""
        return [path.read_bytes() for path in sorted((SEEDS / self.name).iterdir())]

    def try_to_read(self, raw: bytes) -> None:
        """Read `raw`; raise what is no sentence of ours."""
        try:
            self.read(raw)
        except ALLOWED as error:
            message = as_message(str(error))
            if not message or message != without_controls(message):
                raise AssertionError(f"no sentence: {message!r}") from error


class _Folder:
    """A folder for the files that readers open."""

    def __init__(self) -> None:
        self._held = tempfile.TemporaryDirectory(prefix="fuzz-")
        self.path = Path(self._held.name)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (self.path / name).write_bytes((TOKENIZER / name).read_bytes())
        (self.path / "tokens.bin").write_bytes(bytes(range(64)))

    def with_file(self, name: str, raw: bytes) -> Path:
        """Write a file and return the folder."""
        (self.path / name).write_bytes(raw)
        return self.path


def targets() -> list[Target]:
    """Return all readers."""
    folder, tokenizer = _Folder(), Qwen3Tokenizer.from_dir(TOKENIZER)
    service = _service(tokenizer)
    return [
        Target("safetensors", lambda raw: _safetensors(folder, raw), is_json=False),
        Target("token_index", lambda raw: _token_index(folder, raw), is_json=False),
        Target("token_manifest", lambda raw: _manifest(folder, raw), is_json=True),
        Target("strategy", lambda raw: _strategy(folder, raw), is_json=False),
        Target("strategy_json", lambda raw: _strategy_json(folder, raw), is_json=True),
        Target("config", lambda raw: _config(folder, raw), is_json=True),
        Target("generation_config", lambda raw: _generation_config(folder, raw), is_json=True),
        Target("adapter_config", lambda raw: _adapter_config(folder, raw), is_json=True),
        Target("weights_index", lambda raw: _weights_index(folder, raw), is_json=True),
        Target("iteration", lambda raw: _iteration(_Folder(), raw), is_json=True),
        Target("checks", lambda raw: _checks(_Folder(), raw), is_json=True),
        Target("tokenizer", lambda raw: _tokenizer(_Folder(), raw), is_json=True),
        Target("tokenizer_config", lambda raw: _tokenizer_config(_Folder(), raw), is_json=True),
        Target("template", _template, is_json=False),
        Target("yaml", _yaml, is_json=False),
        Target("records", lambda raw: _records(folder, raw), is_json=True),
        Target("conversation", lambda raw: _conversation(tokenizer, raw), is_json=True),
        Target("answer", _answer, is_json=False),
        Target("request", lambda raw: _request(service, raw), is_json=True),
    ]


def _safetensors(folder: _Folder, raw: bytes) -> None:
    file = open_safetensors(folder.with_file("x.safetensors", raw) / "x.safetensors")
    for name in file.tensors:
        file.raw(name)


def _token_index(folder: _Folder, raw: bytes) -> None:
    tokens = open_tokens(folder.with_file("tokens.idx", raw) / "tokens")
    for number in range(len(tokens.sequence_lengths)):
        tokens.sequence(number)


def _manifest(folder: _Folder, raw: bytes) -> None:
    (folder.path / "tokens.idx").unlink(missing_ok=True)
    read_manifest(folder.with_file("tokens.json", raw) / "tokens")
    (folder.path / "tokens.json").unlink()


def _strategy(folder: _Folder, raw: bytes) -> None:
    _place(read_strategy(folder.with_file("x.ckpt", raw) / "x.ckpt")[1])


def _strategy_json(folder: _Folder, raw: bytes) -> None:
    _place(read_json_strategy(folder.with_file("x.json", raw) / "x.json")[1])


def _place(layouts: dict[str, TensorLayout]) -> None:
    for layout in layouts.values():
        for rank in range(min(MOST_RANKS, layout.num_devices())):
            layout.slice_of(rank)


def _config(folder: _Folder, raw: bytes) -> None:
    Qwen3Config.from_file(folder.with_file("config.json", raw) / "config.json").num_parameters()


def _generation_config(folder: _Folder, raw: bytes) -> None:
    read_generation_config(folder.with_file("generation_config.json", raw), SIZES["0.6B"])


def _adapter_config(folder: _Folder, raw: bytes) -> None:
    config = read_adapter_config(folder.with_file("adapter_config.json", raw))
    config.check_rank("model.layers.0.self_attn.q_proj", 4)
    config.scale("model.layers.0.self_attn.q_proj", 4)


def _weights_index(folder: _Folder, raw: bytes) -> None:
    open_hf_tensors(folder.with_file("model.safetensors.index.json", raw))


def _iteration(folder: _Folder, raw: bytes) -> None:
    folder.with_file("a.safetensors", SMALL)
    open_iteration(folder.with_file("metadata.json", raw))


def _checks(folder: _Folder, raw: bytes) -> None:
    folder.with_file("model.safetensors", SMALL)
    for name in ("sha256.json", "param_name_map.json"):
        folder.with_file(name, raw)
        for _ in find_faults(folder.path, lambda _: None):
            pass
        (folder.path / name).unlink()


def _tokenizer(folder: _Folder, raw: bytes) -> None:
    folder.with_file("tokenizer.json", raw)
    problems: list[Exception] = []
    for read in (_facts, _encode):
        try:
            read(folder.path)
        except Qwen3Error as error:
            problems.append(error)
    if problems:
        raise problems[0]


def _facts(path: Path) -> None:
    TokenizerFile(path).facts(None)


def _encode(path: Path) -> None:
    tokenizer = Qwen3Tokenizer.from_dir(path)
    ids = tokenizer.encode("A text <|im_end|> 文字 \n\t 12.")
    tokenizer.decode(ids)
    tokenizer.longest_token_bytes()


def _tokenizer_config(folder: _Folder, raw: bytes) -> None:
    tokenizer = Qwen3Tokenizer.from_dir(folder.with_file("tokenizer_config.json", raw))
    tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}])


def _template(raw: bytes) -> None:
    values = {
        "messages": [{"role": "user", "content": "Hello"}],
        "tools": None,
        "add_generation_prompt": True,
    }
    render_chat_template(raw.decode("utf-8", "surrogateescape"), values)


def _yaml(raw: bytes) -> None:
    parse_yaml(raw.decode("utf-8", "replace"), "x.yaml")


def _records(folder: _Folder, raw: bytes) -> None:
    for name in ("x.jsonl", "x.json"):
        folder.with_file(name, raw)
        sources = find_sources([str(folder.path / name)])
        parser = RecordParser(["text", "meta.text"], on_error="skip", special_tokens=["<|im_end|>"])
        for _ in parser.parse(read_blocks(sources, Position(), keys=["text"], max_record_bytes=100_000)):
            pass


def _conversation(tokenizer: Qwen3Tokenizer, raw: bytes) -> None:
    record = _value(raw)
    renderer = ChatRenderer(tokenizer, loss_on="all", empty_think="train", thoughts="split")
    for sample in renderer.samples_of(record):
        for piece in sample:
            if not piece.is_special:
                tokenizer.encode(piece.text)


def _answer(raw: bytes) -> None:
    text = raw.decode("utf-8", "replace")
    for step in (1, 7, len(text) + 1):
        output = ChatOutput(has_tools=True)
        parts = [part for at in range(0, len(text), step) for part in output.push(text[at : at + step])]
        for part in (*parts, *output.push("", is_last=True)):
            json.dumps(part.text).encode()
            part.text.encode("utf-8", "surrogatepass")


def _request(service: Service, raw: bytes) -> None:
    body = _value(raw)
    problems: list[ApiError] = []
    for read in (read_chat, read_completion, read_response, tokenize, detokenize):
        try:
            read(body, service)
        except ApiError as error:
            json.dumps(error.body()).encode()
            problems.append(error)
        except Qwen3Error as error:
            raise AssertionError(f"the server answers with 500: {error}") from error
    if problems:
        raise problems[0]


def _value(raw: bytes) -> object:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _service(tokenizer: Qwen3Tokenizer) -> Service:
    defaults = Decoding(
        sampling=Sampling(temperature=0.0),
        max_new_tokens=100,
        is_length_explicit=False,
        stop_ids=frozenset([tokenizer.eos_id]),
        stop_strings=(),
    )
    folder = ModelFolder(
        path=TOKENIZER,
        config=replace(SIZES["0.6B"], vocab_size=tokenizer.vocab_size),
        tokenizer=tokenizer,
        defaults=read_generation_config(TOKENIZER, SIZES["0.6B"]),
        weights=cast(Tensors, None),  # no request is answered
    )
    return Service(
        folder=folder,
        name="model",
        defaults=defaults,
        thinking=True,
        context_tokens=512,
        grammars=Grammars(tokenizer),
        token_bytes=tokenizer.longest_token_bytes(),
    )
