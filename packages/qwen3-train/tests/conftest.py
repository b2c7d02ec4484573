import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # train_inputs.py


@pytest.fixture(scope="module")
def share_graphs() -> Iterator[None]:
    """Let a module's runs in this process share compiled graphs where their settings are equal."""
    from kept_graphs import kept_graphs

    with kept_graphs():
        yield
