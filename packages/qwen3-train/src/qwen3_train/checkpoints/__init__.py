"""What a run reads and writes: weights, checkpoints, strategy files, where to go on."""
