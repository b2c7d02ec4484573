"""The model that runs: loading, caches, and which request's tokens come next."""
