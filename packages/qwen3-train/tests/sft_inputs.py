"""Write instruction data and runs on them for the tests."""

import json
from pathlib import Path

from train_inputs import tiny_run

RECORDS = [
    {"instruction": f"Say {word}.", "input": "", "output": f"{word}, as you wish."}
    for word in ("one", "two", "three", "four", "five", "six")
]


def write_records(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return path


def loader(data_files: Path, cache_dir: Path, *, pack: str | None = "pack", steps=(), **chat: object) -> dict:
    """Return a `train_dataset` section; `chat` sets keys of the AlpacaInstructDataHandler."""
    chat = {"seq_length": 128} | chat
    handlers = [*steps, {"type": "AlpacaInstructDataHandler", **chat}]
    if pack:
        handlers.append({"type": "PackingHandler", "seq_length": chat["seq_length"], "pack_strategy": pack})
    return {
        "data_loader": {
            "type": "HFDataLoader", "load_func": "load_dataset", "path": "json",
            "data_files": str(data_files), "cache_dir": str(cache_dir), "handler": handlers,
        }
    }  # fmt: skip


def sft_run(output_dir: Path, tokenizer_dir: Path, section: dict, **changes: object) -> dict:
    """Return the YAML of a run on instruction data, of a model for the demo's tokenizer."""
    values = tiny_run(
        output_dir, "", pretrained_model_dir=str(tokenizer_dir), model__model_config__vocab_size=4096,
        model__model_config__max_position_embeddings=512, runner_config__batch_size=1,
    )  # fmt: skip
    values["train_dataset"] = section
    for dotted, value in changes.items():
        place = values
        *sections, last = dotted.split("__")
        for part in sections:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[last] = value
    return values
