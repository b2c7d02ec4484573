"""`qwen3-infer generate`: prompts in, completions out, in one process or many."""
