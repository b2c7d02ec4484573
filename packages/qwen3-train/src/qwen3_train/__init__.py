"""Pretraining and fine-tuning of Qwen3 on MindSpore."""

__version__ = "0.1.0"
