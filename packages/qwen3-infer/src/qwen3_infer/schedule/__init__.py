"""Requests, and whose tokens the model computes next."""
