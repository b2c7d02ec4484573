"""The readers of files that `tools/fuzz` feeds: each writes its input into a folder and reads it there."""

import tempfile
from pathlib import Path

from qwen3_ckpt.operations.verify import find_faults
from qwen3_data.encode.tokenizer_facts import TokenizerFile
from qwen3_data.input.block import Position
from qwen3_data.input.blocks import read_blocks
from qwen3_data.input.records import RecordParser
from qwen3_data.input.sources import find_sources
from qwen3_data.runs.provenance import joint_manifest
from qwen3_infer.folder.generation_config import read_generation_config
from qwen3_model.checkpoints.adapter_config import read_adapter_config
from qwen3_model.checkpoints.hf_folder import open_hf_tensors
from qwen3_model.checkpoints.iteration_files import open_iteration
from qwen3_model.checkpoints.safetensors_file import TensorPlan, encode_header, open_safetensors
from qwen3_model.checkpoints.strategy import TensorLayout, read_strategy
from qwen3_model.checkpoints.strategy_json import read_json_strategy
from qwen3_model.checkpoints.weight_files import open_checkpoint
from qwen3_model.config import SIZES, Qwen3Config
from qwen3_model.errors import Qwen3Error
from qwen3_model.ranks.msrun.node_files import NodeFiles
from qwen3_model.text.sft import read_sft_manifest
from qwen3_model.text.tokenizer import Qwen3Tokenizer
from qwen3_model.text.tokens import open_tokens, read_manifest

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "tools/demo_data/tokenizer"
MOST_RANKS = 64
SMALL = encode_header([TensorPlan("a", "F32", (2,))], {}) + bytes(8)
"""A file of weights."""


class Folder:
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


def safetensors(folder: Folder, raw: bytes) -> None:
    file = open_safetensors(folder.with_file("x.safetensors", raw) / "x.safetensors")
    for name in file.tensors:
        file.raw(name)


def token_index(folder: Folder, raw: bytes) -> None:
    tokens = open_tokens(folder.with_file("tokens.idx", raw) / "tokens")
    for number in range(len(tokens.sequence_lengths)):
        tokens.sequence(number)


def manifest(folder: Folder, raw: bytes) -> None:
    (folder.path / "tokens.idx").unlink(missing_ok=True)
    prefix = folder.with_file("tokens.json", raw) / "tokens"
    joint_manifest([prefix], [read_manifest(prefix)], allow_incomplete=False)
    (folder.path / "tokens.json").unlink()


def sft_manifest(folder: Folder, raw: bytes) -> None:
    read_sft_manifest(folder.with_file("sft.json", raw) / "sft.json")


def strategy(folder: Folder, raw: bytes) -> None:
    _place(read_strategy(folder.with_file("x.ckpt", raw) / "x.ckpt")[1])


def strategy_json(folder: Folder, raw: bytes) -> None:
    _place(read_json_strategy(folder.with_file("x.json", raw) / "x.json")[1])


def _place(layouts: dict[str, TensorLayout]) -> None:
    for layout in layouts.values():
        for rank in range(min(MOST_RANKS, layout.num_devices())):
            layout.slice_of(rank)


def config(folder: Folder, raw: bytes) -> None:
    Qwen3Config.from_file(folder.with_file("config.json", raw) / "config.json").num_parameters()


def generation_config(folder: Folder, raw: bytes) -> None:
    read_generation_config(folder.with_file("generation_config.json", raw), SIZES["0.6B"])


def adapter_config(folder: Folder, raw: bytes) -> None:
    config = read_adapter_config(folder.with_file("adapter_config.json", raw))
    config.check_rank("model.layers.0.self_attn.q_proj", 4)
    config.scale("model.layers.0.self_attn.q_proj", 4)


def weights_index(folder: Folder, raw: bytes) -> None:
    open_hf_tensors(folder.with_file("model.safetensors.index.json", raw))


def names(folder: Folder, raw: bytes) -> None:
    folder.with_file("a.safetensors", SMALL)
    open_checkpoint(folder.with_file("param_name_map.json", raw))


def node(folder: Folder, raw: bytes) -> None:
    files = NodeFiles(folder.with_file("node_1.json", raw))
    folder.with_file("round_1.json", raw)
    folder.with_file("end_1.json", raw)
    problems: list[Qwen3Error] = []
    for read in (files.node, files.round, files.end):
        try:
            read(1)
        except Qwen3Error as error:
            problems.append(error)
    if problems:
        raise problems[0]


def iteration(folder: Folder, raw: bytes) -> None:
    folder.with_file("a.safetensors", SMALL)
    open_iteration(folder.with_file("metadata.json", raw))


def checks(folder: Folder, raw: bytes) -> None:
    folder.with_file("model.safetensors", SMALL)
    for name in ("sha256.json", "param_name_map.json"):
        folder.with_file(name, raw)
        for _ in find_faults(folder.path, lambda _: None):
            pass
        (folder.path / name).unlink()


def tokenizer(folder: Folder, raw: bytes) -> None:
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


def tokenizer_config(folder: Folder, raw: bytes) -> None:
    tokenizer = Qwen3Tokenizer.from_dir(folder.with_file("tokenizer_config.json", raw))
    tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}])


def records(folder: Folder, raw: bytes) -> None:
    for name in ("x.jsonl", "x.json"):
        folder.with_file(name, raw)
        sources = find_sources([str(folder.path / name)])
        parser = RecordParser(["text", "meta.text"], on_error="skip", special_tokens=["<|im_end|>"])
        for _ in parser.parse(read_blocks(sources, Position(), keys=["text"], max_record_bytes=100_000)):
            pass
