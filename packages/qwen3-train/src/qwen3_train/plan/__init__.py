"""What a run will need, before it starts: memory, communication, other layouts; free of MindSpore."""
