"""A conversation through the chat template, cut where loss begins and ends."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from qwen3_model.conversations import Conversation, ConversationError
from qwen3_model.errors import FormatError
from qwen3_model.tokenizer import Qwen3Tokenizer

LossOn = Literal["all", "last"]
EmptyThink = Literal["train", "mask"]

START, END = "<|im_start|>", "<|im_end|>"
HEADER = "assistant\n"
NO_THOUGHT = re.compile(r"<think>\n\n</think>\n\n")
SHIELD = "\U0010fffd"
"""Put into special tokens that a message spells, so that they differ from the template's own."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the rendered text: one special token, or text between them."""

    text: str
    is_special: bool
    carries_loss: bool


class ChatRenderer:
    """Renders conversations and says which text the assistant wrote."""

    def __init__(self, tokenizer: Qwen3Tokenizer, *, loss_on: LossOn, empty_think: EmptyThink) -> None:
        self.tokenizer, self.loss_on, self.empty_think = tokenizer, loss_on, empty_think
        names = map(re.escape, tokenizer.special_tokens)
        self._special = re.compile(f"({'|'.join(names)})")

    def pieces(self, conversation: Conversation) -> list[Piece]:
        """Return the pieces of a conversation.

        Special tokens that the messages spell stay text. The assistant's words and the `<|im_end|>`
        after them carry loss, the header before them does not.

        Raises:
            ConversationError: The template refuses the messages.
        """
        try:
            text = self.tokenizer.apply_chat_template(
                self._shield(conversation.messages),
                self._shield(conversation.tools),
                add_generation_prompt=False,
            )
        except FormatError as error:
            raise ConversationError(f"does not fit the chat template: {error}") from error
        parts = [part for part in self._special.split(text) if part]
        answers = [
            number
            for number, part in enumerate(parts)
            if part.startswith(HEADER) and number and parts[number - 1] == START
        ]
        if not answers:
            raise ConversationError("has no answer of the assistant after the chat template")
        with_loss = set(answers if self.loss_on == "all" else answers[-1:])
        return list(self._cut(parts, with_loss))

    def _cut(self, parts: list[str], with_loss: set[int]) -> Iterator[Piece]:
        for number, part in enumerate(parts):
            if self._special.fullmatch(part):
                yield Piece(part, True, part == END and number - 1 in with_loss)
                continue
            part = part.replace(SHIELD, "")
            if number not in with_loss:
                yield Piece(part, False, False)
                continue
            at = len(HEADER)
            thought = NO_THOUGHT.match(part, at)
            if thought is not None and self.empty_think == "mask":
                at = thought.end()
            yield Piece(part[:at], False, False)
            if at < len(part):
                yield Piece(part[at:], False, True)

    def _shield(self, value: Any) -> Any:
        if isinstance(value, str):
            if SHIELD in value:
                raise ConversationError("holds the character U+10FFFD, which marks special tokens here")
            return self._special.sub(lambda found: found[0][0] + SHIELD + found[0][1:], value)
        if isinstance(value, list):
            return [self._shield(entry) for entry in value]
        if isinstance(value, dict):
            return {key: self._shield(entry) for key, entry in value.items()}
        return value
