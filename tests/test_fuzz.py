"""The readers of `tools/fuzz` raise nothing but sentences: on seeds, on what it found, and on some more."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools/lib"))

from fuzz import feed
from fuzz_targets import SEEDS, Target, targets

NUM_EXAMPLES = 60
TARGETS = {target.name: target for target in targets()}


def test_every_reader_has_seeds_and_no_seed_is_without_a_reader():
    assert TARGETS.keys() == {path.name for path in SEEDS.iterdir()}
    assert sum(path.stat().st_size for path in SEEDS.rglob("*")) < 300_000


@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_raises_nothing_but_sentences(name):
    for raw in TARGETS[name].seeds:
        TARGETS[name].try_to_read(raw)
    count, failing, reason = feed(TARGETS[name], NUM_EXAMPLES, number=1)
    assert failing is None, reason
    assert count >= NUM_EXAMPLES


def test_a_reader_that_fails_is_found_and_its_input_shrunk():
    def read(raw: bytes) -> None:
        if b"\xff" in raw:
            raise IndexError("beyond the end")

    _, failing, reason = feed(Target("safetensors", read, is_json=False), 500, number=1)
    assert failing is not None
    assert b"\xff" in failing
    assert "IndexError: beyond the end" in reason
