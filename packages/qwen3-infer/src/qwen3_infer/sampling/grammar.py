"""What may come next in an answer that must follow a grammar.

V vocabulary rows of the model, which may be more than the tokenizer has tokens.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qwen3_infer.sampling.restriction import Restriction
from qwen3_model.errors import FormatError, Qwen3Error
from qwen3_model.text.tokenizer import Qwen3Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MOST_COMPILED = 64
"""Grammars that are kept."""
_SOURCE_LINE = re.compile(r"\n +\d+ \|.*", re.DOTALL)


class GrammarError(Qwen3Error):
    """The grammar became too complex while an answer followed it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grammar:
    """What an answer must be."""

    text: str
    """Grammar of the whole answer, behind the thought, in llguidance's form of Lark."""
    may_think: bool
    """Whether a thought may stand before it, which follows no grammar."""
    starts_in_thought: bool
    """Whether the prompt began that thought."""


class Grammars:
    """Compiles grammars for one tokenizer; each is compiled once, on whichever thread."""

    def __init__(self, tokenizer: Qwen3Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._known: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def compile(self, text: str) -> "LLMatcher":
        """Return a matcher of its own for one answer.

        Raises:
            FormatError: The grammar cannot be followed; the message is the reason.
        """
        # Here, since it takes as long to read a tokenizer as to start all else.
        from llguidance import LLMatcher, LLTokenizer

        with self._lock:
            if text in self._compiled:
                self._compiled.move_to_end(text)
                return self._compiled[text].deep_copy()
            if self._known is None:
                self._known = LLTokenizer(self._tokenizer.to_json(), eos_token=self._tokenizer.eos_id)
            matcher = LLMatcher(self._known, text, log_level=0)
            if matcher.is_error():
                raise FormatError(_reason(matcher.get_error()))
            self._compiled[text] = matcher
            if len(self._compiled) > MOST_COMPILED:
                self._compiled.popitem(last=False)
            return matcher.deep_copy()

    def follow(self, grammar: Grammar) -> "Follower":
        """Return the state of one answer.

        Raises:
            FormatError: The grammar cannot be followed.
        """
        return Follower(self.compile(grammar.text), grammar, self._tokenizer)


def _reason(message: str) -> str:
    """Return what llguidance says, without the place in a text that the user has not written."""
    reason = _SOURCE_LINE.sub("", message).rpartition("failed to compile JSON schema: ")[2]
    return " ".join(reason.split())


class Follower:
    """One answer on its way: free inside of its thought, then as the grammar says."""

    def __init__(self, matcher: "LLMatcher", grammar: Grammar, tokenizer: Qwen3Tokenizer) -> None:
        self._matcher, self._eos_id = matcher, tokenizer.eos_id
        think, thought_end = (tokenizer.added_token_id(tag) for tag in ("<think>", "</think>"))
        self._think = think if grammar.may_think and thought_end is not None else None
        self._thought_end = thought_end
        self._is_thinking = grammar.starts_in_thought and thought_end is not None
        self._has_begun = self._is_thinking
        self._num_words = -(-tokenizer.vocab_size // 32)

    def restriction(self, stop_ids: Collection[int]) -> Restriction:
        """Return what may not follow.

        Raises:
            GrammarError: The grammar has become too complex.
        """
        if self._is_thinking:  # to end here would leave the answer out
            return Restriction(forbidden=tuple(stop_ids))
        free = (self._think,) if self._think is not None and not self._has_begun else ()
        most = max(self._eos_id, *stop_ids, *free)
        allowed = np.zeros(max(self._num_words, most // 32 + 1), np.uint32)
        self._matcher.unsafe_compute_mask_ptr(allowed.ctypes.data, 4 * self._num_words)
        if self._matcher.is_error():
            raise GrammarError(f"the grammar failed: {_reason(self._matcher.get_error())}")
        may_end = allowed[self._eos_id // 32] >> np.uint32(self._eos_id % 32) & np.uint32(1)
        for token in (*free, *(stop_ids if may_end else ())):
            allowed[token // 32] |= np.uint32(1 << token % 32)
        return Restriction(allowed=allowed)

    def accept(self, token: int, stop_ids: Collection[int]) -> None:
        """Go on behind a token that `restriction` allows."""
        if self._is_thinking:
            self._is_thinking = token != self._thought_end
        elif token == self._think and not self._has_begun:
            self._is_thinking = True
        elif token not in stop_ids:
            self._matcher.consume_token(token)
        self._has_begun = True
