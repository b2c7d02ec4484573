"""Text in and out: prompts and messages to ids, tokens to text, answers taken apart."""
