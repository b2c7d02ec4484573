"""Lets `python -m qwen3_model` run the command line."""

from qwen3_model.cli import main

main(prog_name="qwen3-model")
