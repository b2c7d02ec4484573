"""What qwen3-data writes is what qwen3-train reads: docs/formats, from both ends."""

import json
from itertools import chain, permutations

from click.testing import CliRunner

from qwen3_data.cli import main as data
from qwen3_model.text.tokenizer import Qwen3Tokenizer
from qwen3_model.text.tokens import open_tokens, read_manifest
from qwen3_train.data.gpt_dataset import build_dataset
from qwen3_train.settings.blend import Blend

TEXTS = [
    "The lobster is blue.",
    "It may grow to 60 cm (24 in).",
    "西班牙语 and naïve text.\n\nNew paragraph.",
]


def _preprocess(tmp_path, tokenizer_dir):
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    flags = ["--input", source, "--output-prefix", tmp_path / "out/tokens", "--tokenizer-dir", tokenizer_dir]
    result = CliRunner().invoke(data, ["preprocess", *map(str, flags), "--append-eod", "--quiet"])
    assert result.exit_code == 0, result.output
    return tmp_path / "out/tokens_text_document"


def test_reader_and_manifest_agree_with_the_tokenizer(tmp_path, demo_tokenizer_dir):
    prefix = _preprocess(tmp_path, demo_tokenizer_dir)
    tokenizer, tokens, manifest = (
        Qwen3Tokenizer.from_dir(demo_tokenizer_dir),
        open_tokens(prefix),
        read_manifest(prefix),
    )
    for number, text in enumerate(TEXTS):
        ids = tokens.sequence(number, 0, int(tokens.sequence_lengths[number])).tolist()
        assert ids == [*tokenizer.encode(text), tokenizer.pad_id]
    assert manifest.eod_id == tokenizer.pad_id == tokenizer.token_id("<|endoftext|>")
    assert manifest.tokenizer_sha256 == tokenizer.sha256
    assert manifest.vocab_size == tokenizer.vocab_size
    assert (manifest.num_documents, manifest.num_tokens) == (len(TEXTS), tokens.num_tokens)


def test_training_samples_are_windows_over_the_documents_in_some_order(tmp_path, demo_tokenizer_dir):
    prefix, length = _preprocess(tmp_path, demo_tokenizer_dir), 8
    tokens = open_tokens(prefix)
    documents = [tokens.sequence(n, 0, int(k)).tolist() for n, k in enumerate(tokens.sequence_lengths)]
    blend = Blend((str(prefix),), None)
    samples = build_dataset(blend, None, "train", seq_length=length, num_samples=None, seed=1)
    read = sorted(samples.text(number).tolist() for number in range(len(samples)))
    orders = [list(chain.from_iterable(order)) for order in permutations(documents)]
    starts = range(0, tokens.num_tokens - length, length)
    assert read in [sorted(order[start : start + length + 1] for start in starts) for order in orders]
