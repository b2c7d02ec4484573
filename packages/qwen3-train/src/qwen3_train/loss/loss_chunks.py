"""Into how many rows at a time the loss of a micro-batch is cut; free of MindSpore."""

MOST_LOGITS = 1 << 27
"""Logits that are there at once: 512 MiB in float32, and far below the 2^31 elements that indices reach."""


def rows_of_chunk(rows: int, width: int, most: int = MOST_LOGITS) -> int:
    """Return how many rows of logits to compute at a time; all of them where that is little.

    Chunks are equal, but for the last one.

    Args:
        rows: Tokens of a micro-batch on this rank.
        width: This rank's share of the vocabulary.
        most: Elements of logits that may be there at once.
    """
    num_chunks = -(-rows * width // most)
    return -(-rows // max(num_chunks, 1))
