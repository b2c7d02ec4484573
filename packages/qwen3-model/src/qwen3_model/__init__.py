"""What must be identical in two or more of the Qwen3 tools: config, weight names, layouts, files, the model."""

__version__ = "0.1.0"
