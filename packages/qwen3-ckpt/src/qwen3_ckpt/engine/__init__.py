"""Tensors written: in threads, with their values checked on the way, as one folder of each kind."""
