"""Write what transformers makes of conversations for the trainer's tests; needs an environment of its own.

Usage: PYTHONPATH=packages/qwen3-model/src make_sft_golden.py TOKENIZER_DIR OUT.json [--seed N --tasks DIR]

With --tasks, thirty tasks of the files in DIR, chosen by the seed, follow the three conversations.
Ids come from transformers' chat template of TOKENIZER_DIR, labels from the places of the special tokens in
them, losses from transformers' Qwen3 with this project's random weights, which shifts the labels itself.
"""

import argparse
import json
import random
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer, Qwen3ForCausalLM
from transformers import Qwen3Config as HfConfig

from qwen3_model.checkpoints.fresh_weights import init_weights
from qwen3_model.config import Qwen3Config

SEED = 3
NUM_TASKS, LONGEST = 30, 150
MODEL = {
    "vocab_size": 4096, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "initializer_range": 0.2,
}  # fmt: skip
CONVERSATIONS = [
    [{"role": "user", "content": "Name the colour of the sky."}, {"role": "assistant", "content": "Blue."}],
    [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "And doubled?"},
        {"role": "assistant", "content": "8", "reasoning_content": "Twice 4 is 8."},
    ],
    [
        {"role": "user", "content": "\u540c\u4e49\u8bcd\n\n\u60ca\u4eba\u5730"},
        {"role": "assistant", "content": "\u4ee4\u4eba\u60ca\u5947\u5730\n\u610f\u5916\u5730"},
    ],
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer_dir")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--tasks", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer_dir)
    model = tiny_model(arguments.seed)
    samples = []
    tasks = seed_tasks(arguments.tasks, tokenizer, arguments.seed) if arguments.tasks else []
    for messages in (*CONVERSATIONS, *tasks):
        ids = encode(tokenizer, messages)
        labels = assistant_labels(tokenizer, ids)
        loss = model(torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
        samples.append({"messages": messages, "ids": ids, "labels": labels, "loss": loss})
    told = {
        "transformers": transformers.__version__, "seed": arguments.seed, "model": MODEL, "samples": samples
    }  # fmt: skip
    arguments.out.write_text(json.dumps(told) + "\n", encoding="utf-8")


def encode(tokenizer: AutoTokenizer, messages: list[dict[str, str]]) -> list[int]:
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)


def seed_tasks(folder: Path, tokenizer: AutoTokenizer, seed: int) -> list[list[dict[str, str]]]:
    found = []
    for path in sorted(folder.iterdir()):
        for task in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            one = task["instances"][0]
            question = "\n\n".join(part for part in (task["instruction"], one["input"]) if part)
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": one["output"]},
            ]
            if one["output"].strip() and len(encode(tokenizer, messages)) <= LONGEST:
                found.append(messages)
    return random.Random(seed).sample(found, NUM_TASKS)


def assistant_labels(tokenizer: AutoTokenizer, ids: list[int]) -> list[int]:
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    header = [start, *tokenizer.encode("assistant\n", add_special_tokens=False)]
    labels, at = [-100] * len(ids), 0
    while at < len(ids):
        if ids[at : at + len(header)] == header:
            first, last = at + len(header), ids.index(end, at)
            labels[first : last + 1] = ids[first : last + 1]
            at = last
        at += 1
    return labels


def tiny_model(seed: int) -> Qwen3ForCausalLM:
    theta = {"rope_type": "default", "rope_theta": 10000.0}
    model = Qwen3ForCausalLM(HfConfig(**MODEL, rope_parameters=theta, attn_implementation="eager"))
    config = Qwen3Config.from_hf(MODEL | {"rope_theta": 10000.0, "model_type": "qwen3"})
    with torch.no_grad():
        held = dict(model.named_parameters())
        for name, values in init_weights(config, seed):
            held[name].copy_(torch.from_numpy(values))
    return model.eval()


if __name__ == "__main__":
    main()
