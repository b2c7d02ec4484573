"""What must be identical in two or more of the tools: config, weight names, layouts, files, the model."""

__version__ = "0.1.0"
