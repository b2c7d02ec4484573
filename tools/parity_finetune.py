"""Does fine-tuning here equal peft's and transformers'? Real runs of qwen3-train under a layout.

    PARITY_PYTHON tools/parity_finetune.py QWEN3_PYTHON [--seed N]

PARITY_PYTHON has torch, transformers and peft, QWEN3_PYTHON the tools. On conversations in English and
Chinese, with the ready LoRA YAML cut down to a tiny model:

* adapters of linear layers and of an embedding, tp 2: the losses of all steps are peft's, trained from the
  same start with torch's AdamW on what transformers' chat template gives; peft opens the export;
* adapters of a tied embedding, pp 2: peft opens the export, and has the logits of the fused model and the
  held-out loss that the run has measured.
"""

import argparse
import json
import random
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER, TASKS = ROOT / "tools/demo_data/tokenizer", ROOT / "tests/assets/sft"
CONFIG = ROOT / "configs/qwen3/lora_qwen3_0.6b_4k.yaml"
LENGTH, NUM_TRAIN, NUM_HELD_OUT, PER_STEP, EPOCHS = 192, 16, 6, 4, 2
RANK, ALPHA, LR = 4, 8, 0.02
# float32, sums in another order; the losses go through eight updates of AdamW.
LOSS_ATOL, LOGITS_ATOL = 1e-4, 1e-4
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FRESH = """
import sys
from pathlib import Path
import safetensors.numpy
from qwen3_model.network.lora import fresh_half
from qwen3_model.checkpoints.safetensors_file import open_safetensors
names = {n: i.shape for n, i in open_safetensors(Path(sys.argv[1])).tensors.items()}
inits = {"A": "normal", "B": "zeros"}
halves = {n: fresh_half(n, s, inits[n.split(".lora_")[1][0]], int(sys.argv[2])) for n, s in names.items()}
safetensors.numpy.save_file(halves, sys.argv[3])
"""


def main() -> None:
    """Run both comparisons; exit 1 at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("qwen3_python")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run = Runs(arguments.qwen3_python, arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        for tied in (False, True):
            folder = Path(name) / ("tied" if tied else "untied")
            folder.mkdir()
            compare(run, folder, tied=tied)
    print("peft trains, opens and evaluates adapters as qwen3-train does")


class Runs:
    """The tools in their own environment."""

    def __init__(self, python: str, seed: int) -> None:
        self.python, self.seed = python, seed

    def tool(self, module: str, *arguments: object) -> None:
        """Run a command of one of the packages."""
        self.code(f"from {module}.cli import main; main()", *arguments)

    def code(self, code: str, *arguments: object) -> None:
        """Run Python there; exit 1 when it fails."""
        words = [self.python, "-c", code, *map(str, arguments)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(words[3:])}: {done.stdout}{done.stderr}")


def compare(run: Runs, folder: Path, *, tied: bool) -> None:
    """Train adapters with the tools under a layout, and hold them to peft's."""
    tokenizer = make_base(folder / "base", run.seed, tied=tied)
    records = pick_records(tokenizer, run.seed)
    write(folder / "train.jsonl", records[:NUM_TRAIN])
    write(folder / "held_out.jsonl", records[NUM_TRAIN:])
    layout = {"pipeline_stage": 2, "micro_batch_num": PER_STEP} if tied else {"model_parallel": 2}
    launch(run, folder, layout)
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    held_out = [line["eval_loss"] for line in lines if "eval_loss" in line]
    run.tool("qwen3_ckpt", "lora", "export", folder / "run", folder / "peft")
    run.tool("qwen3_ckpt", "lora", "fuse", folder / "base", folder / "run", folder / "fused")
    opened = PeftModel.from_pretrained(load(folder / "base"), folder / "peft").eval()
    kind = "tied, pp2" if tied else "untied, tp2"
    samples = [sample_of(tokenizer, record) for record in records[NUM_TRAIN:]]
    report(f"{kind}: held-out loss at the start", [held_out[0]], [mean_loss(load(folder / "base"), samples)])
    report(f"{kind}: held-out loss of peft with the export", [held_out[-1]], [mean_loss(opened, samples)])
    if not held_out[-1] < held_out[0] - 0.1:
        sys.exit(f"{kind}: the adapters change the held-out loss by too little to prove anything")
    ids_BL = samples[0][0]
    with torch.no_grad():
        logits = [model(ids_BL).logits for model in (load(folder / "fused"), opened)]
    report(f"{kind}: logits of peft with the export and of the fused model", *logits, atol=LOGITS_ATOL)
    if not tied:
        theirs = train_with_peft(run, folder, [sample_of(tokenizer, one) for one in records[:NUM_TRAIN]])
        report(f"{kind}: losses of {len(losses)} steps, peft's and ours", losses, theirs)


def make_base(folder: Path, seed: int, *, tied: bool) -> Any:
    """Save a random model and the demo's tokenizer as transformers does; return the tokenizer."""
    torch.manual_seed(seed)
    config = transformers.Qwen3Config(
        vocab_size=4096, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=tied, initializer_range=0.1,
    )  # fmt: skip
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    for path in TOKENIZER.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return transformers.AutoTokenizer.from_pretrained(TOKENIZER)


def pick_records(tokenizer: Any, seed: int) -> list[dict[str, str]]:
    """Return short seed tasks in both languages, chosen by the seed."""
    found = []
    for path in sorted(TASKS.iterdir()):
        for line in path.read_text(encoding="utf-8").splitlines():
            task = json.loads(line)
            one = {"instruction": task["instruction"]} | {
                key: task["instances"][0][key] for key in ("input", "output")
            }
            if one["output"].strip() and sample_of(tokenizer, one)[0].shape[1] <= LENGTH:
                found.append(one)
    return random.Random(seed).sample(found, NUM_TRAIN + NUM_HELD_OUT)


def sample_of(tokenizer: Any, record: dict[str, str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and labels, (1, length), by transformers' chat template, labels not yet shifted."""
    question = "\n\n".join(part for part in (record["instruction"], record["input"]) if part)
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": record["output"]}]
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    header = [start, *tokenizer.encode("assistant\n", add_special_tokens=False)]
    first = max(at for at in range(len(ids)) if ids[at : at + len(header)] == header) + len(header)
    last = len(ids) - 1 - ids[::-1].index(end)
    labels = [-100] * first + ids[first : last + 1] + [-100] * (len(ids) - last - 1)
    return torch.tensor([ids]), torch.tensor([labels])


def launch(run: Runs, folder: Path, layout: dict[str, int]) -> None:
    """Train with the ready YAML's keys, a few of them changed."""
    pet = {
        "pet_type": "lora", "lora_rank": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0,
        "target_modules": ".*word_embeddings|.*linear_qkv|.*linear_proj|.*linear_fc1|.*linear_fc2",
    }  # fmt: skip
    chat = [{"type": "AlpacaInstructDataHandler", "seq_length": LENGTH}]
    loader = {"type": "HFDataLoader", "path": "json", "handler": chat, "cache_dir": str(folder / "cache")}
    data = {"data_loader": loader | {"data_files": str(folder / "train.jsonl")}}
    held_out = {"data_loader": loader | {"data_files": str(folder / "held_out.jsonl")}}
    keys = {
        "seed": run.seed, "output_dir": folder / "run", "pretrained_model_dir": folder / "base",
        "context.device_target": "CPU", "auto_trans_ckpt": True, "use_parallel": True,
        "parallel_config": layout, "parallel": {}, "recompute_config": {},
        "model.model_config": {"pet_config": pet},
        "train_dataset": data, "do_eval": True, "eval_dataset": held_out,
        "runner_config.epochs": EPOCHS, "runner_config.batch_size": 1,
        "runner_config.gradient_accumulation_steps": PER_STEP // layout.get("micro_batch_num", 1),
        "lr_schedule": {"type": "ConstantWarmUpLR", "learning_rate": LR, "warmup_steps": 0},
    }  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [word for key, value in keys.items() for word in (f"--{key}", _text(value))]
    workers = ("--worker-num", 2, "--master-port", port)
    run.tool("qwen3_train", "launch", "--config", CONFIG, *workers, *words)


def train_with_peft(run: Runs, folder: Path, samples: list[tuple[torch.Tensor, torch.Tensor]]) -> list[float]:
    """Return the loss of every step of peft's training from the start that the run had."""
    opened = {
        name.removeprefix("base_model.model."): value
        for name, value in load_file(folder / "peft/adapter_model.safetensors").items()
    }
    renamed = {_our_name(name): name for name in opened}
    shapes = {ours: torch.zeros_like(opened[theirs]) for ours, theirs in renamed.items()}
    save_file(shapes, folder / "shapes.safetensors")
    run.code(FRESH, folder / "shapes.safetensors", run.seed, folder / "fresh.safetensors")
    fresh = load_file(folder / "fresh.safetensors")
    targets = [*LINEAR, "embed_tokens"]
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=targets)
    model = get_peft_model(load(folder / "base"), config)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    with torch.no_grad():
        for name, weight in trained.items():
            ours = _our_name(name.removeprefix("base_model.model.").replace(".default", ""))
            weight.copy_(fresh.pop(ours))
    if fresh:
        sys.exit(f"peft does not train {', '.join(fresh)}")
    optimizer = torch.optim.AdamW(trained.values(), lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    losses = []
    for first in [*range(0, NUM_TRAIN, PER_STEP)] * EPOCHS:
        optimizer.zero_grad()
        loss = _summed_loss(model, samples[first : first + PER_STEP])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def mean_loss(model: torch.nn.Module, samples: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Return the mean over all tokens with a label."""
    with torch.no_grad():
        return float(_summed_loss(model, samples))


def load(folder: Path) -> transformers.Qwen3ForCausalLM:
    """Open a model folder in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def report(what: str, expected: Any, found: Any, *, atol: float = LOSS_ATOL) -> None:
    """Print the largest difference; exit 1 when it is above `atol`."""
    gap = float((torch.as_tensor(expected) - torch.as_tensor(found)).abs().max())
    print(f"{what}: largest difference {gap:.2g}, allowed {atol:g}", flush=True)
    if not gap <= atol:
        sys.exit(f"{what}: they differ")


def _summed_loss(model: torch.nn.Module, samples: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    # transformers takes the mean over a conversation's own tokens.
    counts = [int((labels[:, 1:] != -100).sum()) for _, labels in samples]
    losses = [model(ids, labels=labels).loss for ids, labels in samples]
    return sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)


def _our_name(name: str) -> str:
    for half in "AB":
        name = name.replace(f".lora_embedding_{half}", f".lora_{half}.weight")
    return name


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict | bool) else str(value)


def write(path: Path, records: list[dict[str, str]]) -> None:
    """Write one record a line."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
