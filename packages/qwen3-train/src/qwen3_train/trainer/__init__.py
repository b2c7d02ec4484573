"""The run itself, from weights to the last checkpoint."""
