"""One training step, alone and as a stage of a pipeline."""
