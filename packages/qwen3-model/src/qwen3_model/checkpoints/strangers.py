"""What a folder holds that is no weights this project reads, and what its owner should do."""

from pathlib import Path

WANTED = "give a run, a checkpoint, or a folder with model.safetensors"
PICKLES = ("pytorch_model*.bin", "model*.bin", "*.pt", "*.pth")


def explain(folder: Path) -> str | None:
    """Return how a sentence goes on that begins with the folder's name: what was found, and the remedy.

    None where nothing was recognised.
    """
    if snapshots := sorted((folder / "snapshots").glob("*/")):
        named = folder / "refs" / "main"
        main = folder / "snapshots" / named.read_text().strip() if named.is_file() else snapshots[-1]
        return f"is a cache folder of the Hugging Face hub; give the snapshot in it, such as {main}"
    if caches := sorted(folder.glob("models--*/snapshots")):
        return f"is the cache of the Hugging Face hub; give a snapshot below {caches[0]}"
    adapters = sorted({path.parent for path in folder.glob("*/adapter_model.safetensors")})
    if adapters:
        listed = ", ".join(map(str, adapters))
        return f"holds adapters in folders of their own: {listed}; give one of them"
    if (folder / "adapter_model.bin").is_file():
        return _pickle("adapter_model.bin", "an adapter", "PeftModel.from_pretrained(...)")
    if (folder / "adapter_config.json").is_file() and not any(folder.glob("*.safetensors")):
        return "holds adapter_config.json but no adapter_model.safetensors; give a PEFT adapter folder"
    if pickles := [path.name for ending in PICKLES for path in sorted(folder.glob(ending))]:
        return _pickle(pickles[0], "weights", "AutoModelForCausalLM.from_pretrained(...)")
    if gguf := sorted(folder.glob("*.gguf")):
        return f"holds {gguf[0].name}, a GGUF file, which is read by llama.cpp alone; {WANTED}"
    if (found := sorted(folder.glob("*.safetensors"))) and (folder / "config.json").is_file():
        return (
            f"holds {found[0].name} but no model.safetensors.index.json that lists it; download the index, "
            "or name the one file"
        )
    if runs := sorted(path.parent for path in folder.glob("*/checkpoint")):
        return f"has no rank_0 of its own, but holds runs: {', '.join(map(str, runs[:5]))}; give one of them"
    return None


def _pickle(name: str, what: str, opened: str) -> str:
    return (
        f"holds {name}, {what} as PyTorch's pickle, which can run code and is never opened here; save it as "
        f"safetensors where PyTorch is installed: {opened}.save_pretrained(folder, safe_serialization=True)"
    )
