"""Weights on disk, without MindSpore: safetensors, Hugging Face folders, the files of ranks, adapters."""
