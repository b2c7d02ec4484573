"""What torch and transformers computed, as `tools/parity` wrote it; QWEN3_GOLDEN_DIR names another run's."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from qwen3_model.checkpoints.safetensors_file import open_safetensors
from qwen3_model.config import Qwen3Config

sys.path.insert(0, str(Path(__file__).parent))  # ascend_formulas.py
GOLDEN_DIR = Path(os.environ.get("QWEN3_GOLDEN_DIR", Path(__file__).parent / "golden"))


def read_golden(variant: str) -> SimpleNamespace:
    file = open_safetensors(GOLDEN_DIR / f"{variant}.safetensors")
    tensors = {name: file.raw(name) for name in file.tensors}
    config = Qwen3Config.from_hf(json.loads(file.metadata["config"]))
    return SimpleNamespace(
        config=config, tensors=tensors, metadata=file.metadata, weights=_part(tensors, "weights.")
    )


def _part(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@pytest.fixture(scope="module", autouse=True)
def op_by_op() -> None:
    """Start each file op by op: in graph mode, which a file before may leave, each call compiles."""
    if "mindspore" in sys.modules:
        import mindspore as ms

        ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], SimpleNamespace]:
    """Return the reader of one golden file: config, tensors, weights by Hugging Face name, metadata."""
    return read_golden


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    """Return a comparison that says where and how far two arrays differ at most."""

    def compare(
        ours: np.ndarray, theirs: np.ndarray, *, atol: float, rtol: float = 0.0, what: str = ""
    ) -> None:
        assert ours.shape == theirs.shape, f"{what}: {ours.shape} against {theirs.shape}"
        difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
        allowed = atol + rtol * np.abs(theirs.astype(np.float64))
        if not (difference <= allowed).all():
            place = np.unravel_index(int(np.argmax(difference - allowed)), ours.shape)
            raise AssertionError(
                f"{what}: {ours[place]} against {theirs[place]} at {place}, "
                f"largest difference {difference.max():.3g}"
            )

    return compare


@pytest.fixture(scope="session")
def make_model() -> Callable:
    """Return a maker of a MindSpore model with a golden file's weights; one model per file and session."""
    made: dict[str, object] = {}

    def make(variant: str):
        if variant not in made:
            from qwen3_model.network.loading import fill_weights
            from qwen3_model.network.model import Qwen3ForCausalLM

            found = read_golden(variant)
            model = Qwen3ForCausalLM(found.config)
            fill_weights(model, {name: ("F32", value) for name, value in found.weights.items()}, variant)
            made[variant] = model
        return made[variant]

    return make
