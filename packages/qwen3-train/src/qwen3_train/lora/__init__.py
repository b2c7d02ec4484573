"""Training adapters instead of the whole model."""
