"""A conversation through the chat template, cut where loss begins and ends."""

import re
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from typing import Literal

from qwen3_model.command.narrow import as_text
from qwen3_model.errors import FormatError
from qwen3_model.text.conversations import Conversation, ConversationError, Message, read_conversations
from qwen3_model.text.special_tokens import SpecialTokens, reveal
from qwen3_model.text.tokenizer import Qwen3Tokenizer

LossOn = Literal["all", "last"]
EmptyThink = Literal["train", "mask"]
Thoughts = Literal["keep", "split", "template"]
"""What becomes of the thoughts of answers before the last, which Qwen3's template takes out."""

START, END = "<|im_start|>", "<|im_end|>"
HEADER = "assistant\n"
NO_THOUGHT = re.compile(r"<think>\n\n</think>\n\n")
QUESTION: Message = {"role": "user", "content": "?"}


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the rendered text: one special token, or text between them."""

    text: str
    is_special: bool
    carries_loss: bool
    unlearned_ids: tuple[int, ...] = ()
    """Ids that carry no loss where the piece begins with them."""


class ChatRenderer:
    """Renders conversations and says which text the assistant wrote."""

    def __init__(
        self,
        tokenizer: Qwen3Tokenizer,
        *,
        loss_on: LossOn,
        empty_think: EmptyThink,
        thoughts: Thoughts = "keep",
    ) -> None:
        self.tokenizer, self.loss_on, self.empty_think = tokenizer, loss_on, empty_think
        self.thoughts = thoughts
        self.num_without_thought = 0
        """Answers that are learned without the thought of their record; only with "template"."""
        self._special = SpecialTokens(tokenizer.special_tokens)

    def samples_of(self, record: object) -> list[list[Piece]]:
        """Return the pieces of the samples that a record makes.

        Raises:
            ConversationError: The record is none to learn from.
        """
        return [sample for one in read_conversations(record) for sample in self.samples(one)]

    def samples(self, conversation: Conversation) -> list[list[Piece]]:
        """Return the pieces of the samples of a conversation: one, or with "split" up to one an answer.

        Special tokens that the messages spell stay text. The assistant's words and the `<|im_end|>`
        after them carry loss, the header before them does not.

        Raises:
            ConversationError: The template refuses the messages.
        """
        hidden = replace(
            conversation,
            messages=self._special.hide_each(conversation.messages),
            tools=None if conversation.tools is None else self._special.hide_each(conversation.tools),
        )
        answers = [n for n, message in enumerate(hidden.messages) if message["role"] == "assistant"]
        wanted = [
            n for n in (answers if self.loss_on == "all" else answers[-1:]) if n not in hidden.unlearned
        ]
        if not wanted:
            raise ConversationError(
                "has no last answer that is to be learned: its weight, loss or train says so"
            )
        if self.thoughts == "split":
            return self._split(hidden, answers, wanted)
        turns = _Turns(self._parts(hidden, len(hidden.messages)), answers)
        has_question = any(message["role"] == "user" for message in hidden.messages)
        for number in wanted:
            # After a question, the last answer stands there as it is given.
            if not has_question or number != answers[-1]:
                self._restore_thought(turns, hidden, number)
        return [list(self._cut(turns.parts, turns.parts_of(wanted)))]

    def _restore_thought(self, turns: "_Turns", conversation: Conversation, number: int) -> None:
        """Render an answer as it is given: with its thought, or an empty one."""
        if self.thoughts == "template" and not _has_thought(conversation.messages[number]):
            return
        alone = Conversation([QUESTION, conversation.messages[number]])
        given = _Turns(self._parts(alone, 2), [1])
        text, part = given.parts[given.part_of[1]], turns.part_of[number]
        if self.thoughts == "keep":
            turns.parts[part] = text
        else:
            self.num_without_thought += turns.parts[part] != text

    def _split(self, conversation: Conversation, answers: list[int], wanted: list[int]) -> list[list[Piece]]:
        """Return samples in which every wanted answer follows what the model sees when it gives it.

        A sample ends with an answer, and teaches the answers before it that stand there as they were given.
        """
        samples = []
        left = list(wanted)
        ends = {number: self._parts(conversation, number + 1) for number in wanted}
        while left:
            last = left[-1]
            parts = ends[last]
            turns = _Turns(parts, [number for number in answers if number <= last])
            fits = [number for number in left if parts[: len(ends[number])] == ends[number]]
            samples.append(list(self._cut(parts, turns.parts_of(fits))))
            left = [number for number in left if number not in fits]
        return samples[::-1]

    def _parts(self, conversation: Conversation, count: int) -> list[str]:
        """Return the rendering of the first `count` messages, cut at special tokens."""
        try:
            text = self.tokenizer.apply_chat_template(
                conversation.messages[:count], conversation.tools, add_generation_prompt=False
            )
        except FormatError as error:
            raise ConversationError(f"does not fit the chat template: {error}") from error
        return self._special.cut(text)

    def _cut(self, parts: list[str], with_loss: Set[int]) -> Iterator[Piece]:
        for number, part in enumerate(parts):
            if part in self.tokenizer.special_tokens:
                yield Piece(part, True, part == END and number - 1 in with_loss)
                continue
            part = reveal(part)
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


class _Turns:
    """A rendering in parts, and which of them are the assistant's turns."""

    def __init__(self, parts: list[str], answers: list[int]) -> None:
        self.parts = parts
        found = [n for n, part in enumerate(parts) if n and part.startswith(HEADER) and parts[n - 1] == START]
        if len(found) != len(answers):
            raise ConversationError(
                f"has {len(answers)} answers of the assistant, {len(found)} after the chat template"
            )
        self.part_of = dict(zip(answers, found, strict=True))

    def parts_of(self, answers: list[int]) -> Set[int]:
        return {self.part_of[number] for number in answers}


def _has_thought(message: Message) -> bool:
    return bool(message.get("reasoning_content")) or "</think>" in as_text(message["content"])
