"""What must divide before tensor parallelism can split a model."""

from qwen3_model.config import Qwen3Config

TP = "parallel_config.model_parallel"


def split_problems(config: Qwen3Config, tp: int) -> list[str]:
    """Say, in a sentence for each, what of a model cannot be split into `tp` equal shards."""
    split = {
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size,
        "intermediate_size": config.intermediate_size,
    }
    return [
        f"{key}={size} does not divide by {TP}={tp}; use one of {near_divisors(size, tp)}"
        for key, size in split.items()
        if size % tp
    ]


def near_divisors(size: int, wanted: int) -> str:
    """Return the divisors of `size` nearest to what was asked for."""
    found = [number for number in range(1, min(size, 4 * wanted) + 1) if size % number == 0]
    found.sort(key=lambda number: abs(number - wanted))
    return ", ".join(str(number) for number in sorted(found[:3]))
