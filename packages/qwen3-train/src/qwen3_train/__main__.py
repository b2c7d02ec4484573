"""`python -m qwen3_train`, which is how workers start the command with their launcher's interpreter."""

from qwen3_train.cli import main

main(prog_name="qwen3-train")
