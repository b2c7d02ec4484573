"""Write what torch and transformers compute for the trainer's tests; needs an environment of its own.

Usage: make_golden.py OUT.safetensors

adamw.*: five updates of torch.optim.AdamW of two tensors, one that decays and one that does not.
curve.*, weights.*, after.*: twenty steps of a tiny Qwen3 with clipping and a cosine schedule with warm-up.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM, get_cosine_schedule_with_warmup

STEPS, WARMUP, BATCH, LENGTH = 20, 4, 4, 16
ADAM = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "max_norm": 0.5}
MODEL = {
    "vocab_size": 64, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}  # fmt: skip


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tensors = adamw() | curve()
    metadata = {
        "adam": json.dumps(ADAM), "model": json.dumps(MODEL | {"rope_theta": 10000.0}),
        "warmup": str(WARMUP), "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip
    save_file({name: value.contiguous() for name, value in tensors.items()}, Path(sys.argv[1]), metadata)


def optimizer_of(parameters: list[torch.nn.Parameter]) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=ADAM["lr"],
        betas=(ADAM["beta1"], ADAM["beta2"]),
        eps=ADAM["eps"],
        weight_decay=ADAM["weight_decay"],
    )


def adamw() -> dict[str, torch.Tensor]:
    # Gradients of very different sizes: eps matters to the smallest.
    parameters = [torch.nn.Parameter(torch.randn(8, 6)), torch.nn.Parameter(torch.ones(6))]
    tensors = {f"adamw.start.{i}": p.detach().clone() for i, p in enumerate(parameters)}
    optimizer = optimizer_of(parameters)
    for step in range(5):
        for i, p in enumerate(parameters):
            p.grad = torch.randn_like(p) * 10.0 ** torch.randint(-9, 2, p.shape)
            tensors[f"adamw.gradient.{step}.{i}"] = p.grad.clone()
        optimizer.step()
        tensors |= {f"adamw.after.{step}.{i}": p.detach().clone() for i, p in enumerate(parameters)}
    return tensors


def curve() -> dict[str, torch.Tensor]:
    theta = {"rope_type": "default", "rope_theta": 10000.0}
    model = Qwen3ForCausalLM(Qwen3Config(**MODEL, rope_parameters=theta, attn_implementation="eager"))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(1 + 0.1 * torch.randn_like(p) if p.ndim == 1 else 0.1 * torch.randn_like(p))
    tensors = {f"weights.{n}": p.detach().clone() for n, p in model.named_parameters()}
    optimizer = optimizer_of(list(model.parameters()))
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, STEPS)
    starts = torch.randint(0, 64, (STEPS, BATCH, 1))
    text = (starts + torch.arange(LENGTH + 1) * torch.randint(1, 4, (STEPS, BATCH, 1))) % 64
    losses, norms, rates = [], [], []
    for ids in text:
        optimizer.zero_grad()
        logits = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 64), ids[:, 1:].reshape(-1))
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), ADAM["max_norm"]))
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    tensors |= {f"after.{n}": p.detach().clone() for n, p in model.named_parameters()}
    return tensors | {
        "curve.text": text.int(), "curve.losses": torch.stack(losses),
        "curve.norms": torch.stack(norms).detach(),
        "curve.rates": torch.tensor(rates, dtype=torch.float64),
    }  # fmt: skip


main()
