"""Training samples out of token files and instruction data, and which step takes which."""
