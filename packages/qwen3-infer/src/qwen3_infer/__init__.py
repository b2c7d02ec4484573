"""Batch and chat generation with Qwen3 on MindSpore."""

__version__ = "0.1.0"
