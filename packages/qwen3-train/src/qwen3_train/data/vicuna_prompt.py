"""The prompt of mindformers' alpaca handler, in place of the chat template."""

from collections.abc import Mapping

from qwen3_model.text.chat_pieces import Piece
from qwen3_model.text.conversations import ConversationError, read_conversations
from qwen3_model.text.tokenizer import Qwen3Tokenizer

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


class VicunaPrompt:
    """The prompt of mindformers' alpaca handler, its ids one for one; loss on what follows `ASSISTANT:`.

    It ends in the text `</s>`, which is no special token of Qwen3.
    """

    num_without_thought = 0

    def __init__(self, tokenizer: Qwen3Tokenizer) -> None:
        self._header = tuple(tokenizer.encode("ASSISTANT:"))

    def samples_of(self, record: Mapping[str, object]) -> list[list[Piece]]:
        """Return the pieces of the one sample of a record.

        Raises:
            ConversationError: The record is none to learn from.
        """
        plain = {key: record[key] for key in ("instruction", "input", "output") if key in record}
        read_conversations(plain)
        if record.get("history") or record.get("system"):
            raise ConversationError("has a history or a system prompt, which prompt_style vicuna cannot hold")
        form = WITH_INPUT if plain.get("input") else WITHOUT_INPUT
        prompt = form.format(instruction=plain["instruction"], input=plain.get("input", ""))
        answer = Piece(f"ASSISTANT: {plain['output']}</s>", False, True, self._header)
        return [[Piece(f"{SYSTEM} ", False, False), Piece(f"USER: {prompt} ", False, False), answer]]
