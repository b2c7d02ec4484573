"""`qwen3-infer serve`: OpenAI's HTTP interface over the scheduler."""
