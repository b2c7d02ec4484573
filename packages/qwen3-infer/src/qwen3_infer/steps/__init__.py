"""What every engine computes alike: pieces of prompts, regions of the cache, scores."""
