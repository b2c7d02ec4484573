"""Fixtures for every package's tests: real text and two tokenizers, all from this checkout."""

import gzip
import os
import shutil
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
DEMO_DATA = ROOT / "tools/demo_data"

# Pytest's workers share the cores: one thread each, or they spend their time waiting for each other.
# MindSpore and numpy read these when they are first imported, which no conftest does.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# Each process that a test starts would compile MindSpore's Python sources anew, two of its four seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("GLOG_v", "3")  # MindSpore: errors only
os.environ.setdefault("MPLBACKEND", "Agg")

# Under nohup, or in the background of a script, this process ignores signals; what tests start would, too.
for _number, _handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first, those across packages before others, so that workers end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, ROOT / "tests" not in item.path.parents))


@pytest.fixture(scope="session")
def demo_tokenizer_dir() -> Path:
    """Return the folder of the demo's tokenizer: Qwen3's in everything but the vocabulary, which has 4096."""
    return DEMO_DATA / "tokenizer"


@pytest.fixture(scope="session")
def wikitext_path() -> Path:
    """Return the validation text of WikiText-2, 1.1 MB of English Wikipedia."""
    return DEMO_DATA / "wikitext2_valid.txt"


@pytest.fixture(scope="session")
def qwen3_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with Qwen3's own tokenizer.json and tokenizer_config.json, for tests on real ids.

    Each pytest-xdist worker unpacks its own copy: 12 MB and a tenth of a second, and nothing to share.
    """
    source = ROOT / "tests/assets/qwen3-tokenizer"
    directory = tmp_path_factory.mktemp("assets") / "qwen3-tokenizer"
    directory.mkdir()
    with gzip.open(source / "tokenizer.json.gz") as packed, (directory / "tokenizer.json").open("wb") as out:
        shutil.copyfileobj(packed, out)
    shutil.copy(source / "tokenizer_config.json", directory)
    return directory


@pytest.fixture(scope="session")
def sft_seed_dir() -> Path:
    """Return the folder with 175 English and 175 Chinese seed tasks (json lines)."""
    return ROOT / "tests/assets/sft"
