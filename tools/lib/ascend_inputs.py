"""What the cases of a dry run read: token files, conversations, and models whose weights are all zero."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen3_model.config import Qwen3Config

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "tools/demo_data/tokenizer"
TEXT = ROOT / "tools/demo_data/wikitext2_valid.txt"
WORDS = ("one", "two", "three", "four", "five", "six")
NUM_RECORDS = 600


class Inputs:
    """Makes each input in a folder at its first use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def tokens(self) -> Path:
        """Prefix of token files of real text; documents end with `eod`."""
        prefix, text = self.folder / "tokens", self.folder / "text.jsonl"
        _run("qwen3-data", "wikitext", TEXT, text)
        _run(
            "qwen3-data",
            "preprocess",
            "--input",
            text,
            "--output-prefix",
            prefix,
            "--tokenizer-dir",
            TOKENIZER,
        )
        return prefix.with_name("tokens_text_document")

    @cached_property
    def eod(self) -> int:
        """The token that ends a document."""
        manifest = self.tokens.with_name(self.tokens.name + ".json")
        return int(json.loads(manifest.read_text(encoding="utf-8"))["eod_id"])

    @cached_property
    def conversations(self) -> Path:
        """JSON lines of questions and answers, enough for steps of long packs."""
        path = self.folder / "conversations.jsonl"
        records = (
            {"instruction": f"Say {word}.", "input": "", "output": f"{word}, as you wish, " * 20}
            for word in (WORDS[index % len(WORDS)] for index in range(NUM_RECORDS))
        )
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return path

    @cached_property
    def document(self) -> Path:
        """A text of a few hundred tokens."""
        path = self.folder / "document.txt"
        path.write_text("The game was " * 200, encoding="utf-8")
        return path

    def model(self, name: str, sizes: Mapping[str, object]) -> Path:
        """Return a Hugging Face folder of zeros; its file is a hole, so that 32B takes no disk."""
        from qwen3_model.config import Qwen3Config

        config = Qwen3Config.from_hf(
            {
                "model_type": "qwen3", "vocab_size": sizes["vocab_size"], "hidden_size": sizes["hidden_size"],
                "intermediate_size": sizes["intermediate_size"],
                "num_hidden_layers": sizes["num_hidden_layers"],
                "num_attention_heads": sizes["num_attention_heads"],
                "num_key_value_heads": sizes["num_key_value_heads"], "head_dim": sizes["head_dim"],
                "max_position_embeddings": sizes["max_position_embeddings"],
                "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
                "tie_word_embeddings": sizes["tie_word_embeddings"],
            }
        )  # fmt: skip
        return self.zeros(name, config)

    def zeros(self, name: str, config: "Qwen3Config") -> Path:
        """Return the same of a config."""
        folder = self.folder / name
        if folder.is_dir():
            return folder
        shutil.copytree(TOKENIZER, folder)
        # The tokenizer is another one than that of the released sizes, without their tokens that end a text.
        values = {key: value for key, value in config.to_hf().items() if not key.endswith("_token_id")}
        (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
        header, end = {}, 0
        for tensor, shape in config.weight_shapes().items():
            start, end = end, end + 2 * math.prod(shape)
            header[tensor] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / "model.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        return folder


def _run(command: str, *arguments: object) -> None:
    words = [str(Path(sys.executable).parent / command), *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"ascend_dry_run: {command} failed: {done.stderr.strip()}")
