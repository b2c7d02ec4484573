"""What a command does, settled from the model's folder, the YAML and flags."""
