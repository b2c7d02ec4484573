"""Twenty steps of AdamW, computed here in numpy from MindSpore's gradients, against torch's loss curve."""

import json

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from qwen3_model.network.loading import fill_weights
from qwen3_model.network.model import Qwen3ForCausalLM

ATOL_LOSS = 1e-3


def test_twenty_steps_follow_torchs_loss_curve(golden, assert_close):
    found = golden("untied")
    batches_SBL, losses_S = found.tensors["curve.ids"], found.tensors["curve.losses"]
    model = Qwen3ForCausalLM(found.config)
    fill_weights(model, {name: ("F32", value) for name, value in found.weights.items()}, "untied")
    width = found.config.vocab_size

    def loss_of(ids_BL):
        return ops.cross_entropy(model(ids_BL)[:, :-1].reshape(-1, width), ids_BL[:, 1:].reshape(-1))

    parameters = model.trainable_params()
    loss_and_gradients = ms.jit(ms.value_and_grad(loss_of, None, parameters))
    optimizer = AdamW(parameters, **json.loads(found.metadata["adamw"]))
    ours = []
    for ids_BL in batches_SBL:
        loss, gradients = loss_and_gradients(Tensor(np.ascontiguousarray(ids_BL)))
        ours.append(float(loss))
        optimizer.step([gradient.asnumpy() for gradient in gradients])
    assert losses_S[-1] < losses_S[0] - 1, "the comparison needs a model that learns"
    assert_close(np.array(ours), losses_S, atol=ATOL_LOSS)


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2); norms are not decayed."""

    def __init__(self, parameters, *, lr, beta1, beta2, eps, weight_decay):
        self.parameters, self.lr, self.betas, self.eps, self.decay = (
            parameters,
            lr,
            (beta1, beta2),
            eps,
            weight_decay,
        )
        self.first = [np.zeros(p.shape) for p in parameters]
        self.second = [np.zeros(p.shape) for p in parameters]
        self.steps = 0

    def step(self, gradients):
        self.steps += 1
        beta1, beta2 = self.betas
        for parameter, gradient, m, v in zip(
            self.parameters, gradients, self.first, self.second, strict=True
        ):
            m += (1 - beta1) * (gradient - m)
            v += (1 - beta2) * (gradient.astype(np.float64) ** 2 - v)
            value = parameter.asnumpy().astype(np.float64)
            if value.ndim > 1:
                value *= 1 - self.lr * self.decay
            corrected = np.sqrt(v / (1 - beta2**self.steps)) + self.eps
            value -= self.lr / (1 - beta1**self.steps) * m / corrected
            ops.assign(parameter, Tensor(value.astype(np.float32)))
