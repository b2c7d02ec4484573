"""From gradients to new weights: their exchange, clipping and the optimizer."""
