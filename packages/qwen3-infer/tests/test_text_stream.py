import random

import pytest

from qwen3_infer.text.text_stream import TextStream
from qwen3_model.text.tokenizer import Qwen3Tokenizer

MIXED = "Tea 茶, 👩‍👩‍👧 and 𒀀nicode: naïve café — здравствуй, हिन्दी, 東京都. <think>\n\n</think> ok"


@pytest.fixture(scope="module")
def tokenizer(qwen3_tokenizer_dir):
    return Qwen3Tokenizer.from_dir(qwen3_tokenizer_dir)


def test_pieces_are_whole_characters_and_join_to_the_text(tokenizer):
    ids = tokenizer.encode(MIXED)
    stream = TextStream(tokenizer)
    pieces = [stream.push(number) for number in ids] + [stream.finish()]
    assert "".join(pieces) == MIXED == stream.text
    assert "" in pieces, "the text was meant to have characters that span tokens"
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_of_several_tokens_waits_for_its_last(tokenizer):
    ids = tokenizer.encode("𒀀")
    assert len(ids) > 1
    stream = TextStream(tokenizer)
    assert [stream.push(number) for number in ids] == [""] * (len(ids) - 1) + ["𒀀"]


def test_random_tokens_give_the_same_text_in_pieces_as_at_once(tokenizer):
    rng = random.Random(5)
    for _ in range(20):
        ids = [rng.randrange(151643) if rng.random() < 0.5 else rng.randrange(256) for _ in range(60)]
        stream = TextStream(tokenizer)
        pieces = [stream.push(number) for number in ids] + [stream.finish()]
        assert "".join(pieces) == tokenizer.decode(ids)


def test_an_unfinished_character_at_the_end_is_a_replacement_character(tokenizer):
    ids = tokenizer.encode("茶𒀀")[:-1]
    stream = TextStream(tokenizer)
    for number in ids:
        stream.push(number)
    stream.finish()
    assert stream.text == tokenizer.decode(ids)
    assert stream.text.endswith("\ufffd")


def test_text_ends_before_a_stop_string_that_spans_tokens(tokenizer):
    ids = tokenizer.encode("one two three END four")
    stream = TextStream(tokenizer, ["ee E", "absent"])
    pieces = []
    for number in ids:
        pieces.append(stream.push(number))
        if stream.is_stopped:
            break
    assert stream.is_stopped
    assert "".join(pieces) == stream.text == "one two thr"
    assert stream.finish() == ""


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_none(tokenizer):
    stream = TextStream(tokenizer, ["\n\nQ:"])
    text = "a\n\nQ and a"
    given = ""
    for number in tokenizer.encode(text):
        given += stream.push(number)
        assert text.startswith(given)
        assert not given.endswith("\n\nQ")
    assert given + stream.finish() == text
    assert not stream.is_stopped


def test_the_first_of_several_stop_strings_counts(tokenizer):
    stream = TextStream(tokenizer, ["World", "lo"])
    for number in tokenizer.encode("Hello World"):
        stream.push(number)
    assert stream.text == "Hel"


def test_special_tokens_give_no_text(tokenizer):
    stream = TextStream(tokenizer)
    assert stream.push(tokenizer.token_id("<|im_end|>")) == ""
    assert stream.push(tokenizer.encode("a")[0]) + stream.finish() == "a"


class Counted:
    """Bytes as tokens, 256 for a special one; counts what is decoded."""

    def __init__(self):
        self.num_decoded = 0

    def decode(self, ids, skip_special=True):
        self.num_decoded += len(ids)
        return bytes(token for token in ids if token < 256).decode("utf-8", "replace")


@pytest.mark.parametrize(
    "ids",
    [
        [256] * 2000,
        [0x80] * 2000,
        [0xF0] * 1001,
        [*b"a", *[256] * 500, *"\u00e9\U0001f600".encode() * 100, *[0xE2, 0x82] * 300],
        [0xE2, *[256] * 100, 0x82, 256, 0xAC],
        [0xF0, 0x9F, 0x98, 0x80] * 300,
    ],
    ids=["special", "no character", "beginnings", "mixed", "special within one", "four tokens each"],
)  # fmt: skip
def test_text_that_does_not_grow_costs_no_more_for_each_token(ids):
    tokenizer = Counted()
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in ids]
    assert tokenizer.num_decoded < 200 * len(ids)
    pieces.append(stream.finish())
    assert "".join(pieces) == stream.text == Counted().decode(ids)
