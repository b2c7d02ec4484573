"""What each worker of `qwen3-train doctor` does: a product, a sum over all ranks, two training steps.

B batch, L length.
"""

import time
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from qwen3_model.config import Qwen3Config
from qwen3_model.device.ascend import AscendSettings
from qwen3_model.network.kernels.choice import make_kernels
from qwen3_model.network.loading import init_model
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_model.ranks.layout import Layout
from qwen3_train.data.batches import Batch
from qwen3_train.doctor.measured import Measured, MeasuredStep, MeasuredSum
from qwen3_train.parallel.grid import Grid, WorldSum, make_grid
from qwen3_train.settings.adam import AdamSettings
from qwen3_train.step.step import TrainStep
from qwen3_train.trainer.peak_memory import peak_memory_gb
from qwen3_train.trainer.trainer import set_up_device

SUM_BYTES = 16 << 20
SUM_TRIES = 3
SEED, STEPS, LR = 20, 2, 0.01
BATCH, LENGTH = 2, 64
MODEL = {
    "model_type": "qwen3", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": LENGTH, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
    "tie_word_embeddings": True, "initializer_range": 0.1,
}  # fmt: skip


def probe(device: str, rank: int, num_ranks: int, work_dir: Path) -> Measured:
    """Use the device, all ranks together, and return what was found, as JSON can hold it.

    MindSpore writes into `work_dir` by itself.
    """
    ascend = AscendSettings(work_dir=work_dir)
    set_up_device(device, ascend, graph_mode=True, is_worker=num_ranks > 1)
    config = Qwen3Config.from_hf(MODEL)
    grid = make_grid(device, config, Layout(dp=num_ranks), (), rank)
    return {
        "mindspore": ms.__version__,
        "product_error": _product_error(),
        "sum": _sum_over_ranks(grid) if num_ranks > 1 else None,
        "steps": _train(device, config, grid),
        "memory_gb": peak_memory_gb(device),
    }


def _product_error() -> float:
    """Multiply on the device what the host multiplies in float64; the largest difference, relative."""
    rng = np.random.default_rng(SEED)
    a, b = rng.standard_normal((2, 256, 256), np.float32)
    wanted = a.astype(np.float64) @ b.astype(np.float64)
    found = ops.matmul(Tensor(a), Tensor(b)).asnumpy()
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def _sum_over_ranks(grid: Grid) -> MeasuredSum:
    """Add up a large vector; every rank gives its number from 1, so that a missing one shows."""
    add, size = WorldSum(grid.world), grid.layout.num_ranks
    mine = Tensor(np.full(SUM_BYTES // 4, grid.rank + 1, np.float32))
    is_right, best_s = True, float("inf")
    for _ in range(SUM_TRIES):
        started_s = time.perf_counter()
        total = add(mine).asnumpy()
        best_s = min(best_s, time.perf_counter() - started_s)
        is_right = is_right and bool((total == size * (size + 1) / 2).all())
    return {"is_right": is_right, "seconds": best_s, "gb_per_s": SUM_BYTES / best_s / 1e9}


def _train(device: str, config: Qwen3Config, grid: Grid) -> list[MeasuredStep]:
    """Take two steps of a small model on the same tokens in every replica, which one process takes, too."""
    model = Qwen3ForCausalLM(config, make_kernels(device), tp=grid.tp, part=grid.part)
    init_model(model, SEED)
    settings = AdamSettings(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
    step = TrainStep(model, settings, max_norm=1.0, num_micro_batches=1, grid=grid)
    ids_BL = np.random.default_rng(SEED).integers(0, config.vocab_size, (BATCH, LENGTH + 1)).astype(np.int32)
    batch = Batch(
        input_ids_BL=np.ascontiguousarray(ids_BL[:, :-1]),
        labels_BL=np.ascontiguousarray(ids_BL[:, 1:]),
        weights_BL=np.full((BATCH, LENGTH), 1 / (BATCH * LENGTH * grid.layout.dp), np.float32),
        position_ids_BL=None,
        segment_ids_BL=None,
    )
    found: list[MeasuredStep] = []
    for number in range(1, STEPS + 1):
        started_s = time.perf_counter()
        result = step.run([batch], LR, number)
        found.append(
            {
                "loss": result.loss,
                "grad_norm": result.grad_norm,
                "seconds": time.perf_counter() - started_s,
            }
        )
    return found
