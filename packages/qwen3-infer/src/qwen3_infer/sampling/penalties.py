"""What a request changes of its logits: biases, and penalties for tokens that are there already.

V vocabulary.
"""

from collections.abc import Collection

import numpy as np

from qwen3_infer.sampling.sampling import Sampling


class GrowingArray:
    """Numbers in a row whose address C++ has; there is room for more numbers."""

    def __init__(self, values: Collection[float], kind: type) -> None:
        self._room: np.ndarray = np.array(list(values), kind)
        self.count = len(self._room)
        self.address: int = self._room.__array_interface__["data"][0]

    @property
    def values(self) -> np.ndarray:
        """Return them, (count,)."""
        return self._room[: self.count]

    def append(self, value: float) -> None:
        """Add one at the end."""
        if self.count == len(self._room):
            self._room = np.resize(self._room, 2 * self.count + 64)
            self.address = self._room.__array_interface__["data"][0]
        self._room[self.count] = value
        self.count += 1


class Penalties:
    """The changes of one request's logits, kept up to date token by token.

    Sources: Keskar et al. 2019 (CTRL), section 4.1, with transformers' treatment of negative logits; OpenAI's
    reference for presence and frequency.
    """

    def __init__(self, sampling: Sampling, prompt_ids: Collection[int] = ()) -> None:
        """Begin behind a prompt, whose tokens count for the repetition penalty alone."""
        self.sampling = sampling
        self._repeats = sampling.repetition_penalty != 1
        self._counts = sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        self.biased = GrowingArray([token for token, _ in sampling.logit_bias], np.int64)
        self.biases = GrowingArray([bias for _, bias in sampling.logit_bias], np.float32)
        self._known = set(prompt_ids) if self._repeats else set()
        self.seen = GrowingArray(self._known, np.int64)
        """Tokens of the prompt and the completion, each once, if there is a repetition penalty."""
        self._indexes: dict[int, int] = {}
        self._times: list[int] = []
        self.counted = GrowingArray((), np.int64)
        """Tokens of the completion, each once, if there is another penalty."""
        self.subtracted = GrowingArray((), np.float32)
        """What is subtracted from the logit of each of these."""
        self.is_empty = not (self._repeats or self._counts or sampling.logit_bias)
        """Whether no logit is ever changed."""

    def add(self, token: int) -> None:
        """Count a token of the completion."""
        if self._repeats and token not in self._known:
            self._known.add(token)
            self.seen.append(token)
        if not self._counts:
            return
        index = self._indexes.setdefault(token, len(self._times))
        if index == len(self._times):
            self._times.append(0)
            self.counted.append(token)
            self.subtracted.append(0)
        self._times[index] += 1
        sampling = self.sampling
        self.subtracted.values[index] = (
            sampling.presence_penalty + sampling.frequency_penalty * self._times[index]
        )

    def apply(self, logits_V: np.ndarray) -> np.ndarray:
        """Return the logits, float32, after all changes; the input is not changed."""
        if self.is_empty:
            return logits_V
        logits_V = logits_V.copy()
        for token, bias in zip(self.biased.values, self.biases.values, strict=True):
            logits_V[token] += bias
        seen, penalty = self.seen.values, np.float32(self.sampling.repetition_penalty)
        found = logits_V[seen]
        logits_V[seen] = np.where(found > 0, found / penalty, found * penalty)
        logits_V[self.counted.values] -= self.subtracted.values
        return logits_V
