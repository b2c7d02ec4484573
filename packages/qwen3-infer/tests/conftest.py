"""Tiny models with what transformers generates from them, as `tools/parity` wrote it, and a demo folder.

QWEN3_GENERATIONS_DIR names another run's golden files.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from qwen3_infer.sampling.sampling import Sampling
from qwen3_infer.schedule.requests import Request
from qwen3_infer.settings.settings import Decoding
from qwen3_infer.text.prompts import Prompt
from qwen3_model.checkpoints.safetensors_file import TensorPlan, write_safetensors
from qwen3_model.command.private_files import cache_home
from qwen3_model.config import Qwen3Config

sys.path.insert(0, str(Path(__file__).parent))  # weight_samples.py
GOLDEN_DIR = Path(os.environ.get("QWEN3_GENERATIONS_DIR", Path(__file__).parent / "golden"))


@pytest.fixture(scope="session")
def cache_dir():
    """Return the folder where this user's `qwen3-infer` keeps its kernels, which compile ten seconds."""
    return cache_home(os.environ) / "qwen3-infer"


@pytest.fixture(scope="session")
def golden_distributions():
    """Return logits and what transformers' logits processors make of them."""
    return json.loads((GOLDEN_DIR / "distributions.json").read_text("utf-8"))


@pytest.fixture(scope="session")
def golden_dir():
    """Return the folder of what transformers and peft have computed."""
    return GOLDEN_DIR


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
        return write_demo_folder(tmp_path / name, demo_tokenizer_dir, **changes)

    return make


@pytest.fixture(scope="session")
def demo_folder_writer():
    """Return `write_demo_folder`, for a folder that lives longer than a test."""
    return write_demo_folder


def write_demo_folder(directory, tokenizer_dir, **changes):
    """Write a model folder with that tokenizer and random weights, and return it."""
    shutil.copytree(tokenizer_dir, directory)
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


@pytest.fixture(scope="session")
def serve_dir(tmp_path_factory, demo_tokenizer_dir):
    """Return a model folder with random weights and a context of 2048 tokens, for servers."""
    directory = tmp_path_factory.mktemp("serve") / "tiny"
    write_demo_folder(directory, demo_tokenizer_dir, hidden_size=32, max_position_embeddings=2048)
    return directory


class Server:
    """A running `qwen3-infer serve`, or another program that says where it serves."""

    def __init__(self, command):
        self.lines = []
        self.process = subprocess.Popen(
            [sys.executable, *command], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._found = threading.Event()
        self.url = None
        self._reader.start()
        assert self._found.wait(300), "".join(self.lines)
        assert self.url, "".join(self.lines)
        self.port = int(self.url.rpartition(":")[2])

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line)
            if line.startswith("serving "):
                self.url = line.split()[-1]
                self._found.set()
        self._found.set()

    def records(self):
        """Return the log lines of requests."""
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    def metrics(self, key=None):
        """Return the values of /metrics by their names with labels."""
        request = urllib.request.Request(f"{self.url}/metrics")
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        with urllib.request.urlopen(request) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, value in (x.rsplit(" ", 1) for x in lines if x[0] != "#")}

    def resident_bytes(self):
        """Return the memory of the process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text("utf-8").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def end(self, number=signal.SIGTERM):
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(60)
        self.close()
        return code

    def close(self):
        """Let go of an ended process."""
        self._reader.join(10)
        self.process.stderr.close()


@pytest.fixture(scope="module")
def start_server():
    """Return a maker of servers, which end with the module."""
    servers = []

    def start(*command):
        servers.append(Server(command))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        server.close()


@pytest.fixture
def wait_until():
    """Return a function that waits until a condition holds, and says after how many seconds it did."""

    def wait(condition, limit_s=30):
        started_s = time.monotonic()
        while not condition():
            assert time.monotonic() - started_s < limit_s, "it never happened"
            time.sleep(0.01)
        return time.monotonic() - started_s

    return wait
