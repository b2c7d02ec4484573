"""A conversation with an engine that stands for a model: what it is given is the history."""

import numpy as np
import pytest

from qwen3_infer.chat.run import Conversation
from qwen3_infer.engine.sampling import Sampling
from qwen3_infer.model_folder import open_model_folder
from qwen3_infer.settings import Decoding
from qwen3_model.errors import ConfigError


class Parrot:
    """Says the same two tokens, then the end."""

    num_rows, num_tokens, unit, shares_beginnings = 1, 512, 512, False
    pieces = (128, 32)

    def __init__(self, answer, end):
        self.script = [*answer, end]
        self.prompts = []
        self.num_said = 0

    def read(self, start, ids, position, length):
        self.prompts.append([*self.prompts.pop(), *ids] if position else list(ids))
        self.num_said = 0
        return self.decode(None, None, None)[0]

    def decode(self, starts, tokens, positions):
        logits = np.zeros((1, 4096), np.float32)
        logits[0, self.script[self.num_said]] = 1.0
        self.num_said += 1
        return logits


@pytest.fixture
def folder(make_demo_folder):
    return open_model_folder(make_demo_folder())


@pytest.fixture
def talk(folder):
    tokenizer = folder.tokenizer
    engine = Parrot(tokenizer.encode("Polly"), tokenizer.eos_id)
    decoding = Decoding(
        sampling=Sampling(temperature=0.0),
        max_new_tokens=20,
        is_length_explicit=True,
        stop_ids=frozenset([tokenizer.eos_id]),
        stop_strings=(),
    )
    return engine, Conversation(
        folder, engine, decoding, system="Be brief.", thinking=True, seed=0, context_tokens=120
    )


def test_each_turn_sees_the_turns_before_it(talk, folder):
    engine, conversation = talk
    pieces = []
    assert conversation.answer("Hello", pieces.append) == "Polly" == "".join(pieces)
    conversation.answer("Again", pieces.append)
    text = folder.tokenizer.decode(engine.prompts[1], skip_special=False)
    assert [message["role"] for message in conversation.messages] == [
        "system", "user", "assistant", "user", "assistant",
    ]  # fmt: skip
    order = [text.index(word) for word in ("Be brief.", "Hello", "Polly", "Again")]
    assert order == sorted(order)
    shared = len(engine.prompts[0])
    assert engine.prompts[1][: shared - 1] == engine.prompts[0][: shared - 1]


def test_clear_keeps_the_system_message_alone(talk):
    _, conversation = talk
    conversation.answer("Hello", str)
    conversation.clear()
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]


def test_a_question_that_does_not_fit_leaves_the_history_as_it_was(talk):
    _, conversation = talk
    conversation.answer("Hello", str)
    before = list(conversation.messages)
    with pytest.raises(ConfigError, match=r"the conversation has .* exceeds the context of 120"):
        conversation.answer("word " * 100, str)
    assert conversation.messages == before
