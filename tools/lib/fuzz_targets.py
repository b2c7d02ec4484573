"""The readers that `tools/fuzz` feeds, each a function of bytes that raises nothing but sentences of ours."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import fuzz_files
from fuzz_files import ROOT, TOKENIZER, Folder

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
from qwen3_model.checkpoints.tensors import Tensors
from qwen3_model.command.plain_text import as_message, without_controls
from qwen3_model.command.yaml_loader import parse_yaml
from qwen3_model.config import SIZES
from qwen3_model.errors import Qwen3Error
from qwen3_model.text.chat_pieces import ChatRenderer
from qwen3_model.text.chat_template import render_chat_template
from qwen3_model.text.conversations import ConversationError
from qwen3_model.text.tokenizer import Qwen3Tokenizer

SEEDS = ROOT / "tools/fuzz_seeds"
ALLOWED = (Qwen3Error, ConversationError, ApiError)


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


def targets() -> list[Target]:
    """Return all readers."""
    folder, tokenizer = Folder(), Qwen3Tokenizer.from_dir(TOKENIZER)
    service = _service(tokenizer)
    return [
        Target("safetensors", lambda raw: fuzz_files.safetensors(folder, raw), is_json=False),
        Target("token_index", lambda raw: fuzz_files.token_index(folder, raw), is_json=False),
        Target("token_manifest", lambda raw: fuzz_files.manifest(folder, raw), is_json=True),
        Target("sft_manifest", lambda raw: fuzz_files.sft_manifest(folder, raw), is_json=True),
        Target("strategy", lambda raw: fuzz_files.strategy(folder, raw), is_json=False),
        Target("strategy_json", lambda raw: fuzz_files.strategy_json(folder, raw), is_json=True),
        Target("config", lambda raw: fuzz_files.config(folder, raw), is_json=True),
        Target("generation_config", lambda raw: fuzz_files.generation_config(folder, raw), is_json=True),
        Target("adapter_config", lambda raw: fuzz_files.adapter_config(folder, raw), is_json=True),
        Target("weights_index", lambda raw: fuzz_files.weights_index(folder, raw), is_json=True),
        Target("names", lambda raw: fuzz_files.names(Folder(), raw), is_json=True),
        Target("iteration", lambda raw: fuzz_files.iteration(Folder(), raw), is_json=True),
        Target("checks", lambda raw: fuzz_files.checks(Folder(), raw), is_json=True),
        Target("tokenizer", lambda raw: fuzz_files.tokenizer(Folder(), raw), is_json=True),
        Target("tokenizer_config", lambda raw: fuzz_files.tokenizer_config(Folder(), raw), is_json=True),
        Target("node", lambda raw: fuzz_files.node(folder, raw), is_json=True),
        Target("template", _template, is_json=False),
        Target("yaml", _yaml, is_json=False),
        Target("records", lambda raw: fuzz_files.records(folder, raw), is_json=True),
        Target("conversation", lambda raw: _conversation(tokenizer, raw), is_json=True),
        Target("answer", _answer, is_json=False),
        Target("request", lambda raw: _request(service, raw), is_json=True),
    ]


def _template(raw: bytes) -> None:
    values = {
        "messages": [{"role": "user", "content": "Hello"}],
        "tools": None,
        "add_generation_prompt": True,
    }
    render_chat_template(raw.decode("utf-8", "surrogateescape"), values)


def _yaml(raw: bytes) -> None:
    parse_yaml(raw.decode("utf-8", "replace"), "x.yaml")


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
