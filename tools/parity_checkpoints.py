"""Do transformers and peft open what qwen3-ckpt writes, with equal logits? Needs torch and both of them.

    PARITY_PYTHON tools/parity_checkpoints.py QWEN3_PYTHON

PARITY_PYTHON has torch and the others, QWEN3_PYTHON has qwen3-ckpt.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

# peft adds the adapter to the activations, a fused weight has it inside: another order of sums in float32.
FUSED_ATOL = 1e-5
IDS = torch.arange(2 * 24).reshape(2, 24) * 7 % 96
LAYOUTS = (("2", "1", "1"), ("1", "2", "2"), ("2", "2", "1"))


def main() -> None:
    """Run every comparison; exit 1 at the first that fails."""
    if len(sys.argv) != 2:
        sys.exit("usage: PARITY_PYTHON tools/parity_checkpoints.py QWEN3_PYTHON")
    with tempfile.TemporaryDirectory() as name:
        for tied in (False, True):
            folder = Path(name) / ("tied" if tied else "untied")
            folder.mkdir()
            model = make_model(folder / "hf", tied=tied)
            check_round_trips(folder, model)
            check_adapters(folder, model, tied=tied)
    print("transformers and peft open everything with equal logits")


def make_model(folder: Path, *, tied: bool) -> transformers.Qwen3ForCausalLM:
    """Make random weights and save them as transformers does."""
    torch.manual_seed(int(tied))
    config = transformers.Qwen3Config(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, head_dim=12, tie_word_embeddings=tied,
    )  # fmt: skip
    model = transformers.Qwen3ForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


def check_round_trips(folder: Path, model: transformers.Qwen3ForCausalLM) -> None:
    """Shard and merge, fuse and split: the logits must not change by a bit."""
    for layout in LAYOUTS:
        dp, tp, pp = layout
        run_dir, back = folder / f"run{dp}{tp}{pp}", folder / f"back{dp}{tp}{pp}"
        flags = ["--data-parallel", dp, "--model-parallel", tp, "--pipeline-stage", pp]
        ckpt("reshard", folder / "hf", run_dir, *flags)
        ckpt("merge", *merge_flags(run_dir), "--output-dir", back, "--to", "hf")
        report(f"reshard dp{dp} tp{tp} pp{pp}, merge", logits_of(model), logits_of(load(back)), atol=0)
    for qkv in ("grouped", "contiguous"):
        for mlp in ("interleaved", "contiguous"):
            fused, back = folder / f"fused-{qkv}-{mlp}", folder / f"split-{qkv}-{mlp}"
            ckpt(
                "convert",
                folder / "hf",
                fused,
                "--to",
                "mindformers",
                "--target-qkv",
                qkv,
                "--target-mlp",
                mlp,
            )
            ckpt("convert", fused, back, "--source-qkv", qkv, "--source-mlp", mlp)
            report(f"convert, {qkv} {mlp}, and back", logits_of(model), logits_of(load(back)), atol=0)


def check_adapters(folder: Path, model: transformers.Qwen3ForCausalLM, *, tied: bool) -> None:
    """An adapter of peft's, fused by us; and one that went through a checkpoint of ours, opened by peft."""
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    targets += [] if tied else ["embed_tokens"]
    adapted = get_peft_model(
        load(folder / "hf"), LoraConfig(r=3, lora_alpha=12, target_modules=targets)
    ).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    adapted.save_pretrained(folder / "adapter")
    expected = logits_of(adapted)
    moved = float((expected - logits_of(model)).abs().max())
    if moved < 0.1:
        sys.exit(f"the adapter moves the logits by {moved:.2g} only; it proves nothing")
    ckpt("lora", "fuse", folder / "hf", folder / "adapter", folder / "whole")
    report("lora fuse of peft's adapter", expected, logits_of(load(folder / "whole")), atol=FUSED_ATOL)
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    ours = {our_name(name): value for name, value in tensors.items() if "base_layer" not in name}
    save_file(ours, folder / "adapters.safetensors")
    (folder / "config.json").write_bytes((folder / "hf" / "config.json").read_bytes())
    flags = ["--model-parallel", "2", "--pipeline-stage", "2"]
    ckpt("reshard", folder / "adapters.safetensors", folder / "adapter-run", *flags)
    ckpt("lora", "export", folder / "adapter-run", folder / "exported", "--lora-alpha", "12")
    opened = PeftModel.from_pretrained(load(folder / "hf"), folder / "exported").eval()
    report("lora export of tp2 pp2 shards", expected, logits_of(opened), atol=0)


def our_name(name: str) -> str:
    """Return the name of an adapter in a checkpoint of ours."""
    bare = name.removeprefix("base_model.model.")
    for half in "AB":
        bare = bare.replace(f".lora_embedding_{half}", f".lora_{half}.weight")
    return bare


def merge_flags(run_dir: Path) -> list[str | Path]:
    """Return where a run's checkpoint is."""
    return ["--mindspore-ckpt-dir", run_dir / "checkpoint", "--src-strategy-dirs", run_dir / "strategy"]


def load(folder: Path) -> transformers.Qwen3ForCausalLM:
    """Open a folder as its user would; anything missing or unexpected is an error."""
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    if told["missing_keys"] or told["unexpected_keys"]:
        sys.exit(f"{folder}: {json.dumps({key: sorted(value) for key, value in told.items()})}")
    return model.eval()


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    """Return the logits of the same two rows of ids."""
    with torch.no_grad():
        return model(IDS).logits


def report(what: str, expected: torch.Tensor, found: torch.Tensor, *, atol: float) -> None:
    """Print the largest difference; exit 1 when it is above `atol`."""
    gap = float((expected - found).abs().max())
    print(f"{what}: largest difference of the logits {gap:.2g}, allowed {atol:g}")
    if not gap <= atol:
        sys.exit(f"{what}: the logits differ")


def ckpt(*arguments: object) -> None:
    """Run qwen3-ckpt."""
    command = [sys.argv[1], "-c", "from qwen3_ckpt.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"qwen3-ckpt {' '.join(map(str, arguments))}: {done.stderr}")


if __name__ == "__main__":
    main()
