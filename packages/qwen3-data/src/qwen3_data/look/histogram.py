"""The histogram of sequence lengths as a picture."""

import importlib
from pathlib import Path

from qwen3_data.look.inspect import Inspection
from qwen3_model.command.files import write_atomically
from qwen3_model.command.plain_text import counted
from qwen3_model.errors import ConfigError


def draw_lengths(inspection: Inspection, path: Path) -> None:
    """Draw how many sequences have which length, both axes logarithmic.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ConfigError(
            f"--output needs matplotlib ({error}): pip install 'qwen3-data[plot]', or leave --output out"
        ) from error
    figure = figures.Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    lows, highs = inspection.bounds[:-1], inspection.bounds[1:]
    axes.bar(lows, inspection.counts, width=highs - lows, align="edge", edgecolor="white")
    if len(lows):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
    axes.set_xlabel("tokens of a sequence")
    axes.set_ylabel("sequences")
    axes.set_title(f"{inspection.tokens.prefix.name}: {counted(inspection.tokens.num_tokens, 'token', ',')}")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
