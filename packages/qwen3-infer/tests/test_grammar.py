"""Which tokens a grammar allows: behind a thought, in a padded vocabulary, with the model's ends."""

import json

import numpy as np
import pytest

from qwen3_infer.sampling.grammar import Grammar, Grammars
from qwen3_infer.serve.structured import write_grammar
from qwen3_model.errors import FormatError
from qwen3_model.text.tokenizer import Qwen3Tokenizer

ROWS = 4096 + 67
"""More than there are tokens, as in the released models."""
NUMBER = {"type": "integer", "minimum": 0, "maximum": 9}


@pytest.fixture(scope="module")
def tokenizer(demo_tokenizer_dir):
    return Qwen3Tokenizer.from_dir(demo_tokenizer_dir)


@pytest.fixture(scope="module")
def follow(tokenizer):
    grammars = Grammars(tokenizer)

    def make(schema=NUMBER, *, may_think=False, starts_in_thought=False):
        text = write_grammar(
            tokenizer, schema=schema, tools=(), several=True, follows_thought=may_think or starts_in_thought
        )
        return grammars.follow(Grammar(text=text, may_think=may_think, starts_in_thought=starts_in_thought))

    return make


def allowed(follower, ends):
    """Return the allowed ids."""
    return set(
        np.flatnonzero(np.isfinite(follower.restriction(ends).apply(np.zeros(ROWS, np.float32)))).tolist()
    )


def test_digits_then_every_end_and_never_a_row_without_a_token(follow, tokenizer):
    ends = {tokenizer.eos_id, tokenizer.pad_id}
    follower = follow()
    digits = {tokenizer.encode(str(digit))[0] for digit in range(10)}
    assert allowed(follower, ends) == digits
    follower.accept(min(digits), ends)
    assert allowed(follower, ends) == ends


def test_a_thought_is_free_but_for_its_end(follow, tokenizer):
    ends = {tokenizer.eos_id}
    think, thought_end = (tokenizer.added_token_id(tag) for tag in ("<think>", "</think>"))
    follower = follow(may_think=True)
    first = allowed(follower, ends)
    assert think in first
    assert thought_end not in first
    follower.accept(think, ends)
    assert allowed(follower, ends) == set(range(ROWS)) - ends
    follower.accept(tokenizer.encode("x")[0], ends)
    follower.accept(thought_end, ends)
    behind = allowed(follower, ends)
    assert think not in behind
    for text in ("\n\n", "7"):
        (number,) = tokenizer.encode(text)
        assert number in behind
    begun = follow(starts_in_thought=True)
    assert len(allowed(begun, ends)) == ROWS - 1
    begun.accept(thought_end, ends)
    assert allowed(begun, ends) == behind


def test_answers_do_not_share_their_state(follow, tokenizer):
    ends = {tokenizer.eos_id}
    one, other = follow(), follow()
    one.accept(tokenizer.encode("3")[0], ends)
    assert allowed(other, ends) != allowed(one, ends) == ends


def test_random_choices_make_the_schema(follow, tokenizer):
    schema = {
        "type": "object", "required": ["a", "b"], "additionalProperties": False,
        "properties": {"a": {"type": "string", "maxLength": 8}, "b": {"type": ["boolean", "null"]}},
    }  # fmt: skip
    ends, rng = {tokenizer.eos_id}, np.random.default_rng(1)
    for _ in range(20):
        follower, ids = follow(schema), []
        while True:
            token = int(follower.restriction(ends).apply(rng.standard_normal(ROWS, np.float32)).argmax())
            if token in ends:
                break
            follower.accept(token, ends)
            ids.append(token)
        value = json.loads(tokenizer.decode(ids))
        assert len(value["a"]) <= 8
        assert value["b"] in (True, False, None)


def test_a_schema_that_cannot_be_met_is_refused(follow):
    with pytest.raises(FormatError, match=r"^Unsatisfiable schema: minimum .* maximum .*$"):
        follow({"type": "integer", "minimum": 3, "maximum": 2})
