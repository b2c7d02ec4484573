"""Tiny models with what transformers generates from them, as `tools/parity` wrote it, and a demo folder.

QWEN3_GENERATIONS_DIR names another run's golden files.
"""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from qwen3_infer.prompts import Prompt
from qwen3_infer.requests import Request
from qwen3_infer.sampling import Sampling
from qwen3_infer.settings import Decoding
from qwen3_model.config import Qwen3Config
from qwen3_model.safetensors_file import TensorPlan, write_safetensors

GOLDEN_DIR = Path(os.environ.get("QWEN3_GENERATIONS_DIR", Path(__file__).parent / "golden"))


@pytest.fixture(scope="session")
def golden_distributions():
    """Return logits and what transformers' logits processors make of them."""
    return json.loads((GOLDEN_DIR / "distributions.json").read_text("utf-8"))


@pytest.fixture(scope="session", params=["tied", "yarn"])
def golden(request):
    """Return one tiny model's folder, config and golden generations."""
    directory = GOLDEN_DIR / request.param
    cases = json.loads((directory / "generations.json").read_text("utf-8"))["cases"]
    return SimpleNamespace(dir=directory, config=Qwen3Config.from_dir(directory), cases=cases)


@pytest.fixture
def make_request():
    """Return a maker of requests from ids; greedy unless a `sampling` is given."""

    def make(ids, *, index=0, new_tokens=8, seed=0, stop_ids=(), stop_strings=(), **sampling):
        decoding = Decoding(
            sampling=Sampling(**(sampling or {"temperature": 0.0})),
            max_new_tokens=new_tokens,
            is_length_explicit=True,
            stop_ids=frozenset(stop_ids),
            stop_strings=tuple(stop_strings),
        )
        return Request(
            index=index,
            prompt=Prompt(text="prompt"),
            prompt_ids=tuple(ids),
            max_new_tokens=new_tokens,
            decoding=decoding,
            seed=seed,
        )

    return make


@pytest.fixture
def make_demo_folder(tmp_path, demo_tokenizer_dir):
    """Return a maker of model folders with the demo's tokenizer and random weights."""

    def make(name="model", **changes):
        directory = tmp_path / name
        shutil.copytree(demo_tokenizer_dir, directory)
        raw = {
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 4096,
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 256,
            "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": True,
            "torch_dtype": "float32",
        } | changes  # fmt: skip
        (directory / "config.json").write_text(json.dumps(raw), "utf-8")
        rng = np.random.default_rng(3)
        tensors = []
        for weight, shape in Qwen3Config.from_hf(raw).weight_shapes().items():
            values = rng.standard_normal(shape).astype(np.float32)
            values = 1 + values / 10 if len(shape) == 1 else values / np.float32(shape[-1]) ** 0.5 * 2
            tensors.append((TensorPlan(weight, "F32", shape), [values.astype(np.float32).tobytes()]))
        write_safetensors(directory / "model.safetensors", tensors, {"format": "pt"})
        return directory

    return make
