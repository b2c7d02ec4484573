"""`python -m qwen3_infer` is the command qwen3-infer."""

from qwen3_infer.cli import main

main(prog_name="qwen3-infer")
