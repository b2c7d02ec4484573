"""What several test files of this package need."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))

from qwen3_data.cli import main


@pytest.fixture
def run():
    """Run `qwen3-data` with the given words; returns click's result."""

    def run_words(*words, **options):
        return CliRunner().invoke(main, [str(word) for word in words], **options)

    return run_words


@pytest.fixture
def write_jsonl(tmp_path):
    """Write records to a file of the test's folder; returns its path."""

    def write(records, name="in.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        return path

    return write


@pytest.fixture
def preprocess(run, demo_tokenizer_dir, tmp_path):
    """Run `preprocess` with the demo tokenizer; the output prefix is `out` in the test's folder."""

    def run_preprocess(source, *words, prefix="out", **options):
        return run(
            "preprocess",
            *("--input", source, "--output-prefix", tmp_path / prefix, "--tokenizer-dir", demo_tokenizer_dir),
            *words,
            **options,
        )

    return run_preprocess


@pytest.fixture
def outputs(tmp_path):
    """Return the visible files of the test's folder that belong to the prefix `out`, and hidden leftovers."""

    def list_outputs():
        return sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(("out", ".")))

    return list_outputs
