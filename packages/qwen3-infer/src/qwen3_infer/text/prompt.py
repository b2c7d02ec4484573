"""Prompts as ids: plain text, or a conversation in which only the template can put special tokens."""

from collections.abc import Mapping, Sequence

from qwen3_model.errors import FormatError
from qwen3_model.text.special_tokens import SpecialTokens, reveal
from qwen3_model.text.tokenizer import Qwen3Tokenizer


class TooLongError(Exception):
    """A text is too long to be worth tokenising."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__(f"the text has {num_bytes} bytes")
        self.num_bytes = num_bytes


def encode_conversation(
    tokenizer: Qwen3Tokenizer,
    messages: Sequence[Mapping[str, object]],
    tools: Sequence[Mapping[str, object]] = (),
    *,
    thinking: bool = True,
    max_bytes: int | None = None,
) -> list[int]:
    """Return the ids of a conversation that ends where the assistant's answer begins.

    `<|im_end|>` and the like inside of a message are text; the template's own are tokens.

    Args:
        tokenizer: The model's.
        messages: As `read_messages` returns them.
        tools: That the model may call.
        thinking: Whether the template asks the model to think first.
        max_bytes: A longer text is not tokenised.

    Raises:
        TooLongError: It is longer than `max_bytes`.
        FormatError: The tokenizer has no template, or it refuses the messages or makes no text of them.
    """
    special = SpecialTokens(tokenizer.special_tokens)
    hidden, hidden_tools = special.hide_each(messages), special.hide_each(tools)
    rendered = tokenizer.apply_chat_template(hidden, hidden_tools or None, enable_thinking=thinking)
    if max_bytes is not None:
        check_length(rendered, max_bytes)
    ids: list[int] = []
    for part in special.cut(rendered):
        if part in tokenizer.special_tokens:
            ids.append(tokenizer.special_tokens[part])
        else:
            ids.extend(tokenizer.encode(reveal(part)))
    if not ids:
        raise FormatError(
            "the chat template makes no text of these messages; a prompt has at least one token"
        )
    return ids


def check_length(text: str, max_bytes: int) -> None:
    """Raise TooLongError when `text` has more bytes."""
    # No letter has more than four bytes.
    if 4 * len(text) > max_bytes and (size := len(text.encode("utf-8", "replace"))) > max_bytes:
        raise TooLongError(size)


def ends_in_thought(tokenizer: Qwen3Tokenizer, ids: Sequence[int]) -> bool:
    """Return whether a prompt ends with an open `<think>`, so that the answer begins in the thought."""
    return tokenizer.decode(ids[-8:], skip_special=False).rstrip().endswith("<think>")
