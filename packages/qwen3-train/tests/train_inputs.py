"""Write token files and tiny run configurations for the tests."""

import json
import struct
from pathlib import Path

import numpy as np
import yaml

from qwen3_model.command.run_config import parse_run_config
from qwen3_train.settings.run import TrainSettings, read_settings
from qwen3_train.settings.schema import TRAIN

TINY_MODEL = {
    "vocab_size": 64,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


def write_tokens(
    prefix: Path, documents: list[list[int]], *, eod_id: int | None = None, vocab_size: int = 64
) -> Path:
    """Write one sequence per document; with `eod_id` also a manifest."""
    lengths = np.array([len(document) for document in documents], np.int32)
    pointers = np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64) * 4]).astype(np.int64)
    prefix.with_name(prefix.name + ".bin").write_bytes(np.concatenate(documents).astype(np.int32).tobytes())
    header = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 4, len(documents), len(documents) + 1)
    indices = np.arange(len(documents) + 1, dtype=np.int64)
    prefix.with_name(prefix.name + ".idx").write_bytes(
        header + lengths.tobytes() + pointers.tobytes() + indices.tobytes()
    )
    if eod_id is not None:
        manifest = {
            "version": 1, "tokenizer_name": "tiny", "tokenizer_sha256": "", "vocab_size": vocab_size,
            "eod_id": eod_id, "eod_appended": True, "num_documents": len(documents),
            "num_sequences": len(documents), "num_tokens": int(lengths.sum()), "sources": ["tiny.jsonl"],
        }  # fmt: skip
        prefix.with_name(prefix.name + ".json").write_text(json.dumps(manifest), encoding="utf-8")
    return prefix


def counting_documents(count: int, *, seed: int = 0, vocab_size: int = 64) -> list[list[int]]:
    """Return documents that count upwards from a random number and end with 1, which a model soon learns."""
    rng = np.random.default_rng(seed)
    sizes, starts = rng.integers(3, 40, count), rng.integers(0, vocab_size - 2, count)
    return [
        [*(2 + (start + np.arange(size)) % (vocab_size - 2)).tolist(), 1]
        for size, start in zip(sizes, starts, strict=True)
    ]


def tiny_run(output_dir: Path, prefix: Path | str, **changes: object) -> dict:
    """Return the YAML of a run of 6 steps of 4 samples of 16 tokens; `changes` write a__b for a.b."""
    values: dict = {
        "seed": 7,
        "output_dir": str(output_dir),
        "run_mode": "train",
        "use_parallel": False,
        "runner_config": {"epochs": 1, "batch_size": 4, "gradient_accumulation_steps": 1},
        "optimizer": {"type": "AdamW", "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
        "lr_schedule": {
            "type": "CosineWithWarmUpLR",
            "learning_rate": 0.02,
            "warmup_steps": 2,
            "total_steps": -1,
        },
        "train_dataset": {
            "data_loader": {
                "type": "BlendedMegatronDatasetDataLoader",
                "sizes": [24, 0, 0],
                "config": {"seed": 1234, "split": "90, 10, 0", "seq_length": 16, "data_path": [str(prefix)]},
            }
        },
        "context": {"device_target": "CPU"},
        "model": {"model_config": dict(TINY_MODEL)},
        "callbacks": [
            {"type": "MFLossMonitor", "per_print_times": 1},
            {"type": "CheckpointMonitor", "save_checkpoint_steps": 2, "keep_checkpoint_max": 2},
        ],
        "runner_wrapper": {"use_clip_grad": True},
    }
    for dotted, value in changes.items():
        place = values
        *sections, last = dotted.split("__")
        for section in sections:
            place = place[int(section)] if isinstance(place, list) else place.setdefault(section, {})
        place[last] = value
    return values


def write_yaml(path: Path, values: dict) -> Path:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def settings_of(values: dict, *overrides: tuple[str, str], **arguments: object) -> TrainSettings:
    """Return the checked settings of a YAML's values."""
    return read_settings(
        parse_run_config(yaml.safe_dump(values), overrides, TRAIN, where="test"), **arguments
    )
