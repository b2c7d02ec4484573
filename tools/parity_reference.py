"""Write what torch and transformers compute for tiny random Qwen3 models; `tools/parity` runs it.

Usage: parity_reference.py OUT_DIR [--seed N]

Every file carries the model's config.json and the versions that made it. The cheapest pieces come first, so
that the first comparison that fails names the culprit.
"""

import argparse
import copy
import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3 import modeling_qwen3

# head_dim * heads differs from the hidden size, as in three of the released sizes.
TINY = {
    "vocab_size": 96,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 1,
    "attn_implementation": "eager",
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS = {
    "tied": {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "untied": {"tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "yarn": {"tie_word_embeddings": False, "rope_parameters": YARN},
}
# What the released sizes use, at their head_dim: as released, and stretched as Qwen3's model cards say.
RELEASED_ROPES = {
    "rope_default": {"rope_type": "default", "rope_theta": 1e6},
    "rope_yarn": {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
    },
}
NUM_STEPS = 20
# AdamW's settings, which the test reads from the file.
ADAMW = {"lr": 3e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for variant, settings in VARIANTS.items():
        torch.manual_seed(arguments.seed)
        model = make_model(settings)
        tensors = {
            f"weights.{name}": value for name, value in model.state_dict().items() if keep(name, model)
        }
        tensors |= pieces(model) | whole_model(model) | padded(model) | cached(model) | gradients(model)
        if variant == "untied":
            tensors |= loss_curve(model)
        save(arguments.out_dir / f"{variant}.safetensors", tensors, model.config, arguments.seed)
    for variant, rope_parameters in RELEASED_ROPES.items():
        config = Qwen3Config(**copy.deepcopy(TINY | {"head_dim": 128, "rope_parameters": rope_parameters}))
        save(arguments.out_dir / f"{variant}.safetensors", far_positions(config), config, arguments.seed)


def make_model(settings: dict) -> Qwen3ForCausalLM:
    """Return a model whose weights are large enough that every term matters to the logits."""
    model = Qwen3ForCausalLM(Qwen3Config(**copy.deepcopy(TINY | settings))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return model


def keep(name: str, model: Qwen3ForCausalLM) -> bool:
    return not (name == "lm_head.weight" and model.config.tie_word_embeddings)


def pieces(model: Qwen3ForCausalLM) -> dict[str, torch.Tensor]:
    """RMSNorm, rotary tables and rotation, attention, feed-forward and one layer, each by itself."""
    layer, rotary = model.model.layers[0], model.model.rotary_emb
    x_BLD = torch.randn(2, 7, model.config.hidden_size)
    positions_BL = torch.stack([torch.arange(7), torch.arange(7) * 17])
    cos, sin = rotary(x_BLD, positions_BL)
    q_BNLH = torch.randn(2, model.config.num_attention_heads, 7, model.config.head_dim)
    turned_BNLH, _ = modeling_qwen3.apply_rotary_pos_emb(q_BNLH, q_BNLH, cos, sin)
    mask = torch.full((7, 7), float("-inf")).triu(1)[None, None]
    found = {
        "x": x_BLD,
        "positions": positions_BL.int(),
        "norm": layer.input_layernorm(x_BLD),
        "rope.frequencies": rotary.inv_freq,
        "rope.cos": cos,
        "rope.sin": sin,
        "rope.x": q_BNLH.transpose(1, 2),
        "rope.turned": turned_BNLH.transpose(1, 2),
        "mlp": layer.mlp(x_BLD),
        "attention": layer.self_attn(x_BLD, position_embeddings=(cos, sin), attention_mask=mask)[0],
        "layer": layer(x_BLD, position_embeddings=(cos, sin), attention_mask=mask),
    }
    return {f"pieces.{name}": value for name, value in found.items()}


def far_positions(config: Qwen3Config) -> dict[str, torch.Tensor]:
    """Cos and sin near the start, in the middle and at the end of the longest context."""
    positions_BL = torch.tensor([[0, 1, 2, 1000, 4095, 32767, 40959, 131071]])
    rotary = modeling_qwen3.Qwen3RotaryEmbedding(config)
    cos, sin = rotary(torch.zeros(1), positions_BL)
    return {"positions": positions_BL.int(), "frequencies": rotary.inv_freq, "cos": cos, "sin": sin}


def whole_model(model: Qwen3ForCausalLM) -> dict[str, torch.Tensor]:
    ids_BL = torch.randint(0, model.config.vocab_size, (2, 48))
    return {"model.ids": ids_BL.int(), "model.logits": model(ids_BL).logits}


def padded(model: Qwen3ForCausalLM) -> dict[str, torch.Tensor]:
    """Rows of 5, 12 and 9 tokens in a batch, filled up on the left and on the right."""
    found = {}
    for side in ("left", "right"):
        real_BL = torch.zeros(3, 12, dtype=torch.long)
        for row, length in enumerate((5, 12, 9)):
            real_BL[row, slice(12 - length, 12) if side == "left" else slice(0, length)] = 1
        ids_BL = torch.randint(2, model.config.vocab_size, (3, 12)) * real_BL
        positions_BL = (real_BL.cumsum(1) - 1).clamp(min=0)
        logits = model(ids_BL, attention_mask=real_BL, position_ids=positions_BL).logits
        found |= {
            f"padded.{side}.ids": ids_BL.int(),
            f"padded.{side}.real": real_BL.int(),
            f"padded.{side}.positions": positions_BL.int(),
            f"padded.{side}.logits": logits * real_BL[..., None],
        }
    return found


def cached(model: Qwen3ForCausalLM) -> dict[str, torch.Tensor]:
    """Greedy decoding with transformers' cache, row by row: prompts of 3 and 8 tokens, 12 more each."""
    prompts_BL = torch.randint(2, model.config.vocab_size, (2, 8))
    lengths = (3, 8)
    tokens, logits = [], []
    for row, length in enumerate(lengths):
        ids_BL, past, new, steps = prompts_BL[row : row + 1, :length], None, [], []
        for _ in range(12):
            out = model(ids_BL, cache=past, use_cache=True)
            past, last_V = out.cache, out.logits[0, -1]
            ids_BL = last_V.argmax()[None, None]
            new.append(ids_BL.item())
            steps.append(last_V)
        tokens.append(torch.tensor(new))
        logits.append(torch.stack(steps))
    return {
        "cached.prompts": prompts_BL.int(),
        "cached.lengths": torch.tensor(lengths).int(),
        "cached.tokens": torch.stack(tokens).int(),
        "cached.logits": torch.stack(logits),
    }


def gradients(model: Qwen3ForCausalLM) -> dict[str, torch.Tensor]:
    """The loss and every weight's gradient on a batch in which one row has padding at its end."""
    ids_BL = torch.randint(2, model.config.vocab_size, (2, 16))
    labels_BL = ids_BL.clone()
    labels_BL[1, 11:] = -100
    model.zero_grad()
    loss = model(ids_BL, labels=labels_BL).loss
    loss.backward()
    found = {f"gradients.{name}": parameter.grad.clone() for name, parameter in model.named_parameters()}
    return found | {"train.ids": ids_BL.int(), "train.labels": labels_BL.int(), "train.loss": loss[None]}


def loss_curve(model: Qwen3ForCausalLM) -> dict[str, torch.Tensor]:
    """Twenty steps of torch's AdamW, norms not decayed, on twenty batches of a text that can be learned."""
    model = copy.deepcopy(model)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
        lr=ADAMW["lr"],
        betas=(ADAMW["beta1"], ADAMW["beta2"]),
        eps=ADAMW["eps"],
        weight_decay=ADAMW["weight_decay"],
    )
    starts_SB = torch.randint(0, model.config.vocab_size, (NUM_STEPS, 4))
    batches_SBL = (starts_SB[..., None] + 7 * torch.arange(24)) % model.config.vocab_size
    losses = []
    for ids_BL in batches_SBL:
        optimizer.zero_grad()
        loss = model(ids_BL, labels=ids_BL).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return {"curve.ids": batches_SBL.int(), "curve.losses": torch.stack(losses)}


def save(path: Path, tensors: dict[str, torch.Tensor], model_config: Qwen3Config, seed: int) -> None:
    config = {k: v for k, v in model_config.to_dict().items() if k in CONFIG_KEYS}
    config["architectures"] = ["Qwen3ForCausalLM"]
    metadata = {
        "config": json.dumps(config),
        "adamw": json.dumps(ADAMW),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "seed": str(seed),
    }
    tensors = {name: value.detach().contiguous() for name, value in tensors.items()}
    save_file(tensors, path, metadata=metadata)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB, {len(tensors)} tensors")


CONFIG_KEYS = {
    *TINY,
    "model_type",
    "hidden_act",
    "attention_bias",
    "attention_dropout",
    "dtype",
    "initializer_range",
    "layer_types",
    "max_window_layers",
    "pad_token_id",
    "rms_norm_eps",
    "rope_parameters",
    "sliding_window",
    "tie_word_embeddings",
    "transformers_version",
    "use_cache",
    "use_sliding_window",
}


if __name__ == "__main__":
    main()
