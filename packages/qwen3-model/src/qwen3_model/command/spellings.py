"""How a dtype, an amount of bytes and a device are written, on the command line and in YAML."""

import re

from qwen3_model.errors import UsageError

DTYPES = {
    "bf16": "bfloat16", "bfloat16": "bfloat16", "fp16": "float16", "f16": "float16", "float16": "float16",
    "fp32": "float32", "f32": "float32", "float32": "float32",
}  # fmt: skip
"""Spellings of the element types, in lower case, and the name that the code uses."""
DEVICES = {"cpu": "CPU", "ascend": "Ascend", "npu": "Ascend", "auto": "auto"}
"""Spellings of the devices, in lower case, and MindSpore's names; auto is Ascend where there is one."""
OTHER_NAMES = {
    "model": "pretrained_model_dir", "model_dir": "pretrained_model_dir",
    "model_path": "pretrained_model_dir", "model_name_or_path": "pretrained_model_dir",
    "prompt": "input", "prompts": "input", "file": "input",
    "temp": "temperature", "max_tokens": "max_new_tokens", "tokenizer": "tokenizer_dir",
    "lr": "learning_rate", "resume": "resume_training", "dp": "data_parallel", "tp": "model_parallel",
    "train_dataset_dir": "train_dataset.data_loader.config.data_path",
    "num_samples": "train_dataset.data_loader.sizes", "strategy_load_checkpoint": "src_strategy_path_or_dir",
    "tensor_parallel": "model_parallel", "pp": "pipeline_stage", "pipeline_parallel": "pipeline_stage",
}  # fmt: skip
"""What an option or a key is called by other tools, with underscores, and here; a hint names the latter."""
POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
AMOUNT = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?(?:E[0-9]{1,2})?)\s*(?:([KMGT]?)(I?)(B?))\s*")


def read_dtype(text: str) -> str | None:
    """Return bfloat16, float16 or float32, or None for another text."""
    return DTYPES.get(text.strip().lower())


def read_device(text: str) -> str | None:
    """Return CPU, Ascend or auto, or None for another text."""
    return DEVICES.get(text.strip().lower())


def read_bytes(text: str, *, is_mindspore: bool = False) -> int | None:
    """Return the bytes that an amount means, or None when it is none above 0.

    GB is 10^9, GiB and G are 2^30, and K, M, T likewise, as GNU's tools count; 1e9 counts bytes.

    Args:
        text: The amount, in any case, with or without a space before the unit.
        is_mindspore: Whether GB is 2^30, as in MindSpore's max_device_memory.
    """
    found = AMOUNT.fullmatch(text.upper())
    if found is None or (found[3] and not found[2]) or not float(found[1]):
        return None
    base = 1000 if found[4] and not found[3] and not is_mindspore else 1024
    return max(1, int(float(found[1]) * base ** POWERS[found[2]]))


def parse_memory(text: str) -> int:
    """Return the bytes of mindformers' `58GB`; a GB counts 2^30 bytes, as in MindSpore.

    Raises:
        UsageError: It is no positive number with a unit.
    """
    found = read_bytes(text, is_mindspore=True)
    if found is None or text.strip()[-1:].isdecimal():
        raise UsageError(f"{text!r} is no amount of memory; write it like 58GB")
    return found
