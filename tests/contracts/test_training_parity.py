"""The trainer's own step against torch's AdamW, on the model's golden tensors."""

import json
import os
from pathlib import Path

import numpy as np

from qwen3_model.checkpoints.safetensors_file import open_safetensors
from qwen3_model.config import Qwen3Config
from qwen3_model.network.loading import fill_weights
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_train.data.batches import Batch
from qwen3_train.settings.adam import AdamSettings
from qwen3_train.step.step import TrainStep

ROOT = Path(__file__).resolve().parents[2]
GOLDEN_DIR = Path(os.environ.get("QWEN3_GOLDEN_DIR", ROOT / "packages/qwen3-model/tests/golden"))
ATOL_LOSS = 1e-3


def test_twenty_steps_of_the_trainer_follow_torchs_loss_curve():
    file = open_safetensors(GOLDEN_DIR / "untied.safetensors")
    settings = json.loads(file.metadata["adamw"])
    lr = settings.pop("lr")
    model = Qwen3ForCausalLM(Qwen3Config.from_hf(json.loads(file.metadata["config"])))
    weights = {name: ("F32", file.raw(f"weights.{name}")) for name, _ in model.parameters_and_names()}
    fill_weights(model, weights, "the golden file")
    step = TrainStep(model, AdamSettings(**settings), max_norm=None, num_micro_batches=1)
    theirs, ours = file.raw("curve.losses"), []
    for number, ids_BL in enumerate(file.raw("curve.ids"), start=1):
        inputs_BL, labels_BL = np.ascontiguousarray(ids_BL[:, :-1]), np.ascontiguousarray(ids_BL[:, 1:])
        weights_BL = np.full(labels_BL.shape, 1 / labels_BL.size, np.float32)
        ours.append(step.run([Batch(inputs_BL, labels_BL, weights_BL, None, None)], lr, number).loss)
    assert theirs[-1] < theirs[0] - 1, "the comparison needs a model that learns"
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=ATOL_LOSS)
