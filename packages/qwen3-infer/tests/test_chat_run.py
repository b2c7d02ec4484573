"""A conversation with an engine that stands for a model: what it is given is the history."""

import numpy as np
import pytest

from qwen3_infer.chat.conversation import Conversation
from qwen3_infer.chat.interrupt import Interrupt
from qwen3_infer.chat.run import Chat, Terminal
from qwen3_infer.folder.model_folder import open_model_folder
from qwen3_infer.sampling.sampling import Sampling
from qwen3_infer.settings.settings import Decoding
from qwen3_infer.text.prompts import read_prompts
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
    answer = conversation.answer("Hello", pieces.append)
    assert answer.text == "Polly" == "".join(piece.text for piece in pieces)
    assert answer.num_tokens == len(engine.script)
    assert answer.finish_reason == "stop"
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


@pytest.fixture
def type_lines(talk):
    """Return what talks about given lines, and what was shown then."""

    def run(*lines, quiet=True):
        said, notes = [], []
        terminal = Terminal(
            lines=lines, say=said.append, think=said.append, note=notes.append, interrupt=Interrupt(),
            quiet=quiet,
        )  # fmt: skip
        Chat(talk[1], terminal).run()
        return "".join(said), notes

    return run


def test_a_line_that_is_no_utf8_and_a_name_that_is_no_files_are_notes(type_lines, talk):
    said, notes = type_lines("\udcff", "/system \udcff", "/save a\0b", "/save ~nobody-of-this-name/x")
    assert (said, talk[1].system) == ("", "Be brief.")
    assert notes[:2] == ["this line is no UTF-8 and is left out"] * 2
    assert [note.split(":")[0] for note in notes[2:]] == [
        "'a\\x00b' is no name of a file", "'~nobody-of-this-name/x' is no name of a file",
    ]  # fmt: skip


def test_commands_are_no_questions_and_questions_are_no_commands(type_lines, talk):
    engine, conversation = talk
    said, notes = type_lines("/help", "/unknown", "/clear", "/system Be long.", "", "/save")
    assert (said, engine.prompts) == ("", [])
    assert "/retry" in notes[0]
    assert notes[1].startswith("there is no command /unknown; /help lists them")
    assert conversation.messages == [{"role": "system", "content": "Be long."}]
    assert notes[-1] == "name a file: /save FILE"
    said, notes = type_lines("/usr/bin is what?", " /clear", "/exit", "Never read")
    assert said == "Polly\nPolly\n"
    assert [turn["content"] for turn in conversation.turns][::2] == ["/usr/bin is what?", " /clear"]


def test_retry_asks_again_and_save_writes_what_generate_reads(type_lines, talk, tmp_path):
    path = tmp_path / "talk.jsonl"
    said, notes = type_lines("/retry", "Hello", "/retry", f"/save {path}", f"/save {path}", quiet=False)
    assert said == "Polly\nPolly\n"
    assert notes[0] == "there is no question to ask again"
    assert "tokens/s" in notes[1]
    assert "already exists" in notes[-1]
    (prompt,) = read_prompts([str(path)])
    assert [message["role"] for message in prompt.messages] == ["system", "user", "assistant"]
    assert talk[0].prompts[0] == talk[0].prompts[1]


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came(talk, folder):
    engine, conversation = talk
    engine.script = [*folder.tokenizer.encode("Polly wants a cracker"), folder.tokenizer.eos_id]
    answer = conversation.answer("Hello", str, is_stopped=lambda: engine.num_said >= 2)
    assert answer.finish_reason == "interrupted"
    assert answer.num_tokens == 2
    assert 0 < len(answer.text) < len("Polly wants a cracker")
    assert conversation.turns[-1]["content"] == answer.text
    engine.script = [*folder.tokenizer.encode("Polly"), folder.tokenizer.eos_id]
    assert conversation.answer("Again", str).text == "Polly"
