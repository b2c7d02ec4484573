"""Which tokens are predicted from which: a long document in windows that overlap.

Every token but the first is predicted once. The first window predicts all of its own; each later one ends
`stride` tokens further and predicts those, so that `window - stride` tokens at least stand before them. The
last window is as long as the others. lm_eval cuts likewise for its perplexity, with a stride of a window.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """The model reads ids `start` to `end` - 1 and predicts ids `first` to `end`."""

    start: int
    first: int
    end: int

    @property
    def num_targets(self) -> int:
        """Tokens that are predicted."""
        return self.end - self.first + 1

    @property
    def num_read(self) -> int:
        """Tokens that the model reads."""
        return self.end - self.start


def cut_windows(num_tokens: int, window: int, stride: int) -> Iterator[Window]:
    """Yield the windows of a document of `num_tokens` ids, each of at most `window` ids that are read."""
    last = num_tokens - 1  # what is read ends before the last id
    if last < 1:
        return
    end = min(window, last)
    yield Window(0, 1, end)
    while end < last:
        first, end = end + 1, min(end + stride, last)
        yield Window(end - window, first, end)


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How well a model predicts a text, or several together."""

    num_tokens: int
    """Tokens that were predicted."""
    num_bytes: int
    """Bytes of the text in UTF-8, those of a first token that was not predicted included."""
    nll: float
    """Negative log-likelihood of the predicted tokens, in nats."""

    @property
    def perplexity(self) -> float | None:
        """Return e to the mean negative log-likelihood of a token, at most e^700; None without tokens."""
        return math.exp(min(self.nll / self.num_tokens, 700.0)) if self.num_tokens else None

    @property
    def bits_per_byte(self) -> float | None:
        """Return the negative log-likelihood in bits for each byte; None without bytes or tokens."""
        return self.nll / math.log(2) / self.num_bytes if self.num_bytes and self.num_tokens else None

    def __add__(self, other: "Score") -> "Score":
        """Return the score of both texts together."""
        return Score(
            num_tokens=self.num_tokens + other.num_tokens,
            num_bytes=self.num_bytes + other.num_bytes,
            nll=self.nll + other.nll,
        )
