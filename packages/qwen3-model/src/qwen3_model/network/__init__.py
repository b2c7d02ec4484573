"""The Qwen3 network as MindSpore cells, and its weights filled from disk."""
