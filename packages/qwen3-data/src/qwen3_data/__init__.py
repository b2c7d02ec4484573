"""Raw text to jsonl to Megatron `.bin`/`.idx`, without MindSpore."""

__version__ = "0.1.0"
