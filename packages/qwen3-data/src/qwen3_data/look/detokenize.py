"""`qwen3-data detokenize`: a token file back to JSON lines."""

from dataclasses import dataclass
from pathlib import Path

import orjson

from qwen3_model.command.files import write_atomically
from qwen3_model.command.progress import Progress
from qwen3_model.errors import ConfigError
from qwen3_model.text.tokenizer import Qwen3Tokenizer
from qwen3_model.text.tokens import open_tokens, read_manifest

REPLACEMENT = "\ufffd"


@dataclass(slots=True)
class Restored:
    """What was written."""

    num_documents: int = 0
    num_damaged: int = 0
    """Documents with bytes that are no UTF-8, which come as U+FFFD."""


def detokenize(
    prefix: Path, output: Path, tokenizer: Qwen3Tokenizer, *, key: str, eod_id: int | None, quiet: bool
) -> Restored:
    """Write each document as an object on a line of `output`, in order; whole or not at all.

    A document of one sequence is a string, of several an array of them, which `preprocess` takes. The
    end-of-document id that ends a document is left out.

    Args:
        prefix: Path of the token file, without ending.
        output: The `.jsonl`.
        tokenizer: That made it.
        key: Name of the text.
        eod_id: What ends a document, None to take it from the manifest.
        quiet: Show no progress.

    Raises:
        ConfigError: The file was made with another tokenizer.
        FormatError: The file is damaged.
    """
    tokens, manifest = open_tokens(prefix), read_manifest(prefix)
    if manifest is not None and manifest.tokenizer_sha256 != tokenizer.sha256:
        raise ConfigError(
            f"{prefix} was made with {manifest.tokenizer_name}, sha256 {manifest.tokenizer_sha256[:12]}, not "
            f"with {tokenizer.name}, sha256 {tokenizer.sha256[:12]}; give its own --tokenizer-dir"
        )
    if eod_id is None and manifest is not None and manifest.eod_appended:
        eod_id = manifest.eod_id
    restored = Restored()

    def write(temporary: Path) -> None:
        with (
            temporary.open("wb") as file,
            Progress("detokenize", tokens.num_documents, "docs", quiet=quiet) as progress,
        ):
            for number in range(tokens.num_documents):
                first, last = map(int, tokens.document_indices[number : number + 2])
                sequences = [tokens.sequence(at).tolist() for at in range(first, last)]
                if sequences and eod_id is not None and sequences[-1][-1] == eod_id:
                    sequences[-1].pop()
                texts = [tokenizer.decode(ids, skip_special=False) for ids in sequences]
                restored.num_damaged += any(REPLACEMENT in text for text in texts)
                value = texts if len(texts) > 1 else "".join(texts)
                file.write(orjson.dumps({key: value}, option=orjson.OPT_APPEND_NEWLINE))
                restored.num_documents += 1
                progress.advance(1)

    write_atomically(output, write)
    return restored
