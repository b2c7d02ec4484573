"""Prompts as ids: plain text, or a conversation in which only the template can put special tokens."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qwen3_model.tokenizer import Qwen3Tokenizer

# Breaks special tokens that a user wrote; a private-use character, doubled where a text has it.
MARK = "\ue0f3"


def encode_conversation(
    tokenizer: Qwen3Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    thinking: bool = True,
) -> list[int]:
    """Return the ids of a conversation that ends where the assistant's answer begins.

    `<|im_end|>` and the like inside of a message are text; the template's own are tokens.

    Raises:
        FormatError: The tokenizer has no template, or it refuses the messages.
    """
    special = sorted(tokenizer.special_tokens, key=len, reverse=True)
    hidden = [_map_texts(message, lambda text: _hide(text, special)) for message in messages]
    hidden_tools = [_map_texts(tool, lambda text: _hide(text, special)) for tool in tools]
    rendered = tokenizer.apply_chat_template(hidden, hidden_tools or None, enable_thinking=thinking)
    if not special:
        return tokenizer.encode(_show(rendered))
    ids: list[int] = []
    for piece in re.split(f"({'|'.join(map(re.escape, special))})", rendered):
        if piece in tokenizer.special_tokens:
            ids.append(tokenizer.special_tokens[piece])
        elif piece:
            ids.extend(tokenizer.encode(_show(piece)))
    return ids


def _hide(text: str, special: Sequence[str]) -> str:
    """Break every special token in `text` by a mark after its first character."""
    text = text.replace(MARK, MARK + MARK)
    for token in special:
        text = text.replace(token, f"{token[0]}{MARK}{token[1:]}")
    return text


def _show(text: str) -> str:
    """Undo `_hide`."""
    return re.sub(f"{MARK}({MARK}?)", r"\1", text)


def _map_texts(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map_texts(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_map_texts(inner, change) for inner in value]
    return value
