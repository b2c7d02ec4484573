"""Settings for the planner's tests: one device, bfloat16 on fused kernels, 4096 tokens."""

from qwen3_model.config import SIZES
from qwen3_model.ranks.layout import Layout
from qwen3_train.plan.settings import PlanSettings


def make_settings(size="0.6B", **changes):
    values = {
        "model": SIZES[size],
        "layout": Layout(),
        "offset": (),
        "batch_size": 1,
        "micro_batch_num": 1,
        "accumulation": 1,
        "seq_length": 4096,
        "epochs": 1,
        "num_samples": 8000,
        "recompute": "none",
        "parallel_optimizer": False,
        "is_fused": True,
        "compute_bytes": 2,
        "adapters": None,
        "shares_writing": False,
        "broadcasts": False,
        "reads_weights": False,
        "num_files": 1,
        "keeps_indexes": False,
        "separate_documents": False,
    }
    values |= changes
    return PlanSettings(**({"residual_bytes": values["compute_bytes"]} | values))
