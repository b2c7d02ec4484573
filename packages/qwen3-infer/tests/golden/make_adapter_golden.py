"""Write a LoRA adapter of peft's and the logits it gives; needs an environment with torch and peft.

Usage: make_adapter_golden.py BASE OUT

BASE is the folder of a tiny model, OUT gets peft's own files and logits.json. The model computes in float32
from its bfloat16 weights, the adapter is in float32, as peft does by default.
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

SEED, RANK, ALPHA, LENGTH = 11, 4, 12, 40
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens"]


def main() -> None:
    """Adapt every layer at random and compute."""
    base, out = map(Path, sys.argv[1:])
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, ensure_weight_tying=True, task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn_like(weight) * 0.05)
        ids = torch.randint(model.config.vocab_size, (1, LENGTH))
        logits = adapted(ids).logits[0, -1]
        with adapted.disable_adapter():
            base_logits = adapted(ids).logits[0, -1]
    adapted.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    told = {"ids": ids[0].tolist(), "logits": logits.tolist(), "base_logits": base_logits.tolist()}
    (out / "logits.json").write_text(json.dumps(told) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
