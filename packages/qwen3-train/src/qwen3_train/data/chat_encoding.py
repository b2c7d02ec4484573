"""Conversations to token ids and the mask of what is to be predicted, in one of two prompt styles."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qwen3_model.chat_pieces import ChatRenderer
from qwen3_model.conversations import ConversationError, read_conversations
from qwen3_model.packing import ChatSample
from qwen3_model.tokenizer import Qwen3Tokenizer
from qwen3_train.settings.hf_loader import ChatSettings

# The words of Vicuna's and Alpaca's prompts, which models were trained on; mindformers joins the two.
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions."
)
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n### Response:"
)

Stretch = tuple[str, bool, bool]
"""Text, whether it is one special token, whether it carries loss."""


class QwenChat:
    """The tokenizer's own chat template; loss on the assistant's words and the `<|im_end|>` after them."""

    def __init__(self, tokenizer: Qwen3Tokenizer, chat: ChatSettings) -> None:
        self._renderer = ChatRenderer(tokenizer, loss_on=chat.loss_on, empty_think=chat.empty_think)
        self.tokenizer = tokenizer

    def stretches(self, record: Mapping[str, Any]) -> list[list[Stretch]]:
        """Return the pieces of each conversation of a record.

        Raises:
            ConversationError: The record is none to learn from.
        """
        return [
            [(piece.text, piece.is_special, piece.carries_loss) for piece in self._renderer.pieces(one)]
            for one in read_conversations(dict(record))
        ]

    def unlearned(self, ids: list[int]) -> int:
        """Return how many ids at the beginning of a stretch with loss carry none after all."""
        return 0


class VicunaPrompt:
    """The prompt of mindformers' alpaca handler, its ids one for one; loss on what follows `ASSISTANT:`.

    It ends in the text `</s>`, which is no special token of Qwen3.
    """

    def __init__(self, tokenizer: Qwen3Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._header = tokenizer.encode("ASSISTANT:")

    def stretches(self, record: Mapping[str, Any]) -> list[list[Stretch]]:
        """Return the one conversation of a record.

        Raises:
            ConversationError: The record is none to learn from.
        """
        plain = {key: record[key] for key in ("instruction", "input", "output") if key in record}
        read_conversations(plain)
        if record.get("history") or record.get("system"):
            raise ConversationError("has a history or a system prompt, which prompt_style vicuna cannot hold")
        form = WITH_INPUT if plain.get("input") else WITHOUT_INPUT
        prompt = form.format(instruction=plain["instruction"], input=plain.get("input", ""))
        texts = (f"{SYSTEM} ", f"USER: {prompt} ", f"ASSISTANT: {plain['output']}</s>")
        return [[(text, False, number == len(texts) - 1) for number, text in enumerate(texts)]]

    def unlearned(self, ids: list[int]) -> int:
        """Return the tokens of `ASSISTANT:`."""
        return len(self._header) if ids[: len(self._header)] == self._header else 0


def encode_conversations(
    style: QwenChat | VicunaPrompt, conversations: Sequence[Sequence[Stretch]]
) -> list[ChatSample]:
    """Encode many conversations with one call of the tokenizer."""
    tokenizer = style.tokenizer
    texts = [text for one in conversations for text, is_special, _ in one if not is_special]
    encoded = iter(tokenizer.encode_batch(texts))
    samples = []
    for one in conversations:
        ids: list[int] = []
        mask: list[int] = []
        for text, is_special, carries_loss in one:
            part = [tokenizer.special_tokens[text]] if is_special else next(encoded)
            unlearned = style.unlearned(part) if carries_loss else len(part)
            ids += part
            mask += [0] * unlearned + [1] * (len(part) - unlearned)
        samples.append(ChatSample(np.array(ids, np.int32), np.array(mask, np.uint8)))
    return samples
