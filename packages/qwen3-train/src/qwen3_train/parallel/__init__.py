"""One model and one step on many ranks: their groups, gradients, pipeline stages and shared moments."""
