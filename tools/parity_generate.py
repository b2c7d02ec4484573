"""What transformers generates from two tiny random Qwen3 models, for the tests of qwen3-infer.

Run in an environment with torch and transformers:
    python tools/parity_generate.py packages/qwen3-infer/tests/golden
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM
from transformers.generation import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

NEW_TOKENS = 256
PROMPT_LENGTHS = (1, 5, 17, 32, 75, 130, 200)
COMMON = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
VARIANTS = {
    "tied": {"num_hidden_layers": 3, "tie_word_embeddings": True, "rope_parameters": {"rope_theta": 10000.0}},
    "yarn": {
        "num_hidden_layers": 2,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_theta": 10000.0,
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    },
}
# name: temperature, top_k, top_p, min_p, repetition_penalty
SAMPLINGS = {
    "temperature": (0.6, 0, 1.0, 0.0, 1.0),
    "top_k": (1.0, 7, 1.0, 0.0, 1.0),
    "top_p": (1.0, 0, 0.8, 0.0, 1.0),
    "min_p": (1.0, 0, 1.0, 0.1, 1.0),
    "thinking": (0.6, 20, 0.95, 0.0, 1.0),
    "everything": (1.7, 50, 0.9, 0.05, 1.3),
}


def make_model(variant: str, directory: Path) -> Qwen3ForCausalLM:
    torch.manual_seed(len(variant))
    model = Qwen3ForCausalLM(Qwen3Config(**COMMON, **VARIANTS[variant])).eval()
    with torch.no_grad():
        for weight in model.parameters():
            # Wide enough that the likeliest token changes all the time; norms differ from one.
            width = weight.shape[-1]
            values = torch.randn(weight.shape)
            weight.copy_(1 + 0.1 * values if weight.dim() == 1 else values * 2.0 / width**0.5)
            weight.copy_(weight.to(torch.bfloat16).float())
    model.to(torch.bfloat16).save_pretrained(directory)
    # Read anew: the cast above has rounded the rotary frequencies, too.
    return Qwen3ForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def greedy(model: Qwen3ForCausalLM, ids: list[int], **settings: float) -> tuple[list[int], float]:
    """Return the new tokens and the smallest lead of the likeliest over the second."""
    found = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        generation_config=GenerationConfig(
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            **settings,
        ),
    )
    best = torch.stack(found.scores)[:, 0].topk(2).values
    return found.sequences[0, len(ids) :].tolist(), float((best[:, 0] - best[:, 1]).min())


def distributions() -> dict:
    generator = torch.Generator().manual_seed(7)
    logits = (torch.randn(64, generator=generator) * 3).double()
    seen = [3, 5, 8]
    cases = {}
    for name, (temperature, top_k, top_p, min_p, repetition) in SAMPLINGS.items():
        steps = [RepetitionPenaltyLogitsProcessor(repetition), TemperatureLogitsWarper(temperature)]
        steps += [TopKLogitsWarper(top_k)] if top_k else []
        steps += [TopPLogitsWarper(top_p)] if top_p < 1 else []
        steps += [MinPLogitsWarper(min_p)] if min_p else []
        scores = LogitsProcessorList(steps)(torch.tensor([seen]), logits[None].clone())
        cases[name] = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition,
            "probs": [float(f"{value:.9g}") for value in scores.softmax(-1)[0].tolist()],
        }
    return {"logits": logits.tolist(), "seen": seen, "cases": cases}


def main() -> None:
    out = Path(sys.argv[1])
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    for variant in VARIANTS:
        model = make_model(variant, out / variant)
        generator = torch.Generator().manual_seed(1)
        cases = []
        for length in PROMPT_LENGTHS:
            ids = torch.randint(0, COMMON["vocab_size"], (length,), generator=generator).tolist()
            tokens, lead = greedy(model, ids)
            penalised, penalised_lead = greedy(model, ids, repetition_penalty=1.2)
            print(variant, length, len(set(tokens)), lead, len(set(penalised)), penalised_lead)
            cases.append({"prompt": ids, "greedy": tokens, "repetition_penalty_1.2": penalised})
        text = json.dumps({"versions": versions, "cases": cases})
        (out / variant / "generations.json").write_text(text + "\n", encoding="utf-8")
        (out / variant / "generation_config.json").unlink(missing_ok=True)
    text = json.dumps({"versions": versions, **distributions()})
    (out / "distributions.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
