"""Tokenizer, chat template, conversations, packing, and the readers of token files."""
