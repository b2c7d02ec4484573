"""How prompts are cut: into pieces of two lengths, so that a model is compiled for those and no other."""

from collections.abc import Iterator

# A long piece costs least per token; a short one wastes least on the rest of a prompt.
PIECES = (128, 32)
ALIGN = PIECES[-1]
"""Pieces begin at multiples of this."""


def cut(num_tokens: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """Yield the start and the length of each piece of a prompt; the last may reach beyond the prompt."""
    while start < num_tokens:
        length = next((piece for piece in PIECES if piece <= num_tokens - start), ALIGN)
        yield start, length
        start += length


def round_up(number: int, unit: int) -> int:
    """Return the smallest multiple of `unit` that is at least `number`."""
    return -(-number // unit) * unit
