"""The model's folder: config, weights, adapter and generation defaults, without MindSpore."""
