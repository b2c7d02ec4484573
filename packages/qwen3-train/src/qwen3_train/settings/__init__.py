"""A run's YAML as checked values; free of MindSpore."""
