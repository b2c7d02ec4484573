"""Documents to token ids, in processes that work ahead."""
