"""Merge, convert and verify Qwen3 checkpoints, without MindSpore."""

__version__ = "0.1.0"
