"""How prompts are cut and batches filled up: to few lengths and sizes, so that there are few graphs."""

from collections.abc import Iterator, Sequence

# A long piece costs least per token; a short one wastes least on the rest of a prompt.
PIECES = (128, 32)
ALIGN = PIECES[-1]
"""Pieces begin at multiples of the shortest."""
# An accelerator reads all weights for each piece, however short; its cache has blocks of 128 tokens.
DEVICE_PIECES = (512, 128)


def cut(num_tokens: int, start: int = 0, pieces: Sequence[int] = PIECES) -> Iterator[tuple[int, int]]:
    """Yield the start and the length of each piece of a prompt; the last may reach beyond the prompt."""
    while start < num_tokens:
        length = next((piece for piece in pieces if piece <= num_tokens - start), pieces[-1])
        yield start, length
        start += length


def round_up(number: int, unit: int) -> int:
    """Return the smallest multiple of `unit` that is at least `number`."""
    return -(-number // unit) * unit


def batch_size(num_requests: int) -> int:
    """Return the number of rows that a batch is computed with: few sizes, and few idle rows."""
    return num_requests if num_requests <= 2 else round_up(num_requests, 4)
