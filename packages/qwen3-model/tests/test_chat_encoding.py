"""Conversations as ids: equal to TRL's training template, or to what the model sees; flags count."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from qwen3_model.text.chat_encoding import FitCounts, encode_samples, encode_with, fit_samples
from qwen3_model.text.chat_pieces import ChatRenderer
from qwen3_model.text.conversations import ConversationError, read_conversations
from qwen3_model.text.packing import ChatSample
from qwen3_model.text.tokenizer import Qwen3Tokenizer

# tools/parity names a file that TRL has just made.
FILE = os.environ.get("QWEN3_TRL_GOLDEN", Path(__file__).parent / "golden/trl.json")
GOLDEN = json.loads(Path(FILE).read_text(encoding="utf-8"))["samples"]
EMPTY = "<think>\n\n</think>\n\n"


@pytest.fixture(scope="module")
def tokenizer(demo_tokenizer_dir):
    return Qwen3Tokenizer.from_dir(demo_tokenizer_dir)


@pytest.fixture
def encode(tokenizer):
    """Return the samples of a record."""

    def make(record, *, loss_on="all", empty_think="train", thoughts="keep"):
        renderer = ChatRenderer(tokenizer, loss_on=loss_on, empty_think=empty_think, thoughts=thoughts)
        return encode_samples(renderer.samples_of(record), encode_with(tokenizer), tokenizer.special_tokens)

    return make


def learned(sample, tokenizer):
    """Return the text of each stretch with loss."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], sample.mask_L, [0]])))
    return [
        tokenizer.decode(sample.ids_L[begin:end], skip_special=False)
        for begin, end in zip(edges[::2], edges[1::2], strict=True)
    ]


def thinker(number):
    return {"role": "assistant", "content": f"answer {number}", "reasoning_content": f"thought {number}"}


def question(number):
    return {"role": "user", "content": f"question {number}"}


TURNS = [question(1), thinker(1), question(2), thinker(2), question(3), thinker(3)]
GIVEN = [f"<think>\nthought {number}\n</think>\n\nanswer {number}<|im_end|>" for number in (1, 2, 3)]


@pytest.mark.parametrize("number", range(len(GOLDEN)))
def test_kept_thoughts_give_the_ids_and_the_loss_of_trls_training_template(encode, tokenizer, number):
    golden = GOLDEN[number]
    (sample,) = encode({"messages": golden["messages"], "tools": golden["tools"]})
    assert sample.ids_L.tolist() == golden["ids"]
    ids, wanted = np.array(golden["ids"]), np.array(golden["mask"])
    # TRL also learns the line end after an answer, which is never generated.
    after_end = np.concatenate([[False], ids[:-1] == tokenizer.token_id("<|im_end|>")])
    assert sample.mask_L.tolist() == np.where(after_end, 0, wanted).tolist()


def test_every_thought_is_learned_when_it_is_kept(encode, tokenizer):
    (sample,) = encode({"messages": TURNS})
    assert learned(sample, tokenizer) == GIVEN
    (sample,) = encode({"messages": TURNS}, loss_on="last")
    assert learned(sample, tokenizer) == GIVEN[-1:]
    # What is not learned stands there as the model sees it later: without its thought.
    assert "thought 1" not in tokenizer.decode(sample.ids_L)


@pytest.mark.parametrize("golden", GOLDEN, ids=range(len(GOLDEN)))
def test_split_answers_follow_exactly_what_the_model_sees_when_it_gives_them(encode, tokenizer, golden):
    messages, tools = golden["messages"], golden["tools"]
    samples = encode({"messages": messages, "tools": tools}, thoughts="split")
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    seen = []
    for sample in samples:
        text = tokenizer.decode(sample.ids_L, skip_special=False)
        for number in answers:
            whole = tokenizer.apply_chat_template(messages[: number + 1], tools, add_generation_prompt=False)
            # The template takes no conversation of nothing.
            prompt = "<|im_start|>assistant\n"
            if number:
                prompt = tokenizer.apply_chat_template(messages[:number], tools)
            begin = len(tokenizer.encode(prompt, allow_special=True))
            end = len(tokenizer.encode(whole, allow_special=True)) - 1  # the line end
            if text.startswith(whole) and sample.mask_L[begin:end].all() and begin < len(sample.ids_L):
                assert sample.mask_L[end] == 0
                seen.append(number)
        assert text == tokenizer.apply_chat_template(
            messages[: seen[-1] + 1], tools, add_generation_prompt=False
        )
    assert seen == answers


def test_split_makes_a_sample_per_answer_only_where_the_template_changes_what_came_before(encode, tokenizer):
    assert [learned(sample, tokenizer) for sample in encode({"messages": TURNS}, thoughts="split")] == [
        [text] for text in GIVEN
    ]
    # The thoughts of a chain of calls stay, so one sample teaches them all.
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    chain = [question(1), {**thinker(1), "tool_calls": [call]}, {"role": "tool", "content": "x"}, thinker(2)]
    (sample,) = encode({"messages": chain}, thoughts="split")
    assert len(learned(sample, tokenizer)) == 2


def test_the_template_takes_earlier_thoughts_out_which_is_counted(tokenizer):
    renderer = ChatRenderer(tokenizer, loss_on="all", empty_think="train", thoughts="template")
    (pieces,) = renderer.samples_of({"messages": TURNS})
    assert [piece.text for piece in pieces if piece.carries_loss and not piece.is_special] == [
        "answer 1", "answer 2", "<think>\nthought 3\n</think>\n\nanswer 3",
    ]  # fmt: skip
    assert renderer.num_without_thought == 2


@pytest.mark.parametrize(
    "flag", [{"weight": 0}, {"weight": 0.0}, {"loss": False}, {"train": False}, {"train": 0}]
)
@pytest.mark.parametrize("thoughts", ["keep", "split", "template"])
def test_an_answer_that_is_not_to_be_learned_carries_no_loss(encode, tokenizer, flag, thoughts):
    messages = [question(1), {**thinker(1), **flag}, question(2), {**thinker(2), "weight": 1}]
    samples = encode({"messages": messages}, thoughts=thoughts)
    assert [text for sample in samples for text in learned(sample, tokenizer)] == GIVEN[1:2]
    assert "answer 1" in tokenizer.decode(samples[-1].ids_L)
    turns = [{"from": "human", "value": "question 1"}, {"from": "gpt", "value": "answer 1", **flag}]
    turns += [{"from": "human", "value": "question 2", **flag}, {"from": "gpt", "value": "answer 2"}]
    samples = encode({"conversations": turns}, thoughts=thoughts)
    assert [text for sample in samples for text in learned(sample, tokenizer)] == [
        f"{EMPTY}answer 2<|im_end|>"
    ]


A, Q = {"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}
CALL = {"function": {"name": "f", "arguments": {}}}
BAD = [
    ({"messages": [Q, {**A, "weight": 0}]}, "has no answer that is to be learned"),
    ({"messages": [Q, {**A, "weight": 0.5}]}, "has weight 0.5 in message 1 (assistant); only 0 and 1"),
    ({"messages": [Q, {**A, "weight": "0"}]}, "has weight '0' in message 1 (assistant)"),
    ({"messages": [Q, {**A, "loss": "no"}]}, "has loss 'no' in message 1"),
    ({"messages": [Q, {**A, "loss": [1]}]}, "has loss [1] in message 1"),
    ({"messages": [Q, {**A, "weight": 1, "train": False}]},
     "has weight and train in message 1 (assistant) that contr"),
    ({"messages": [{**Q, "train": True}, A]}, "has train in message 0 (user), which would be learned"),
    ({"messages": [Q, {**A, "loss_scale": 2}]},
     "has the key 'loss_scale' in message 1 (assistant), which is not known"),
    ({"messages": [Q, {**A, "reasoning": "x"}]}, "has the key 'reasoning' in message 1"),
    ({"messages": [{**Q, "name": "Ann"}, A]},
     "has the key 'name' in message 0 (user), which is not rendered"),
    ({"messages": [{**Q, "reasoning_content": "x"}, A]},
     "has the key 'reasoning_content' in message 0 (user)"),
    ({"messages": [Q, {**A, "reasoning_content": 5}]},
     "has a reasoning_content in message 1 (assistant) that is no"),
    ({"messages": [Q, {**A, "tool_calls": "f()"}]},
     "has tool_calls in message 1 (assistant) that are no functions"),
    ({"messages": [Q, {**A, "tool_calls": [{"name": "f"}]}]}, "has tool_calls in message 1"),
    ({"messages": [Q, {**A, "tool_calls": 1}]}, "has tool_calls in message 1"),
    ({"messages": [Q, {**A, "tool_calls": {"name": "f", "arguments": {}}}]}, "has tool_calls in message 1"),
    ({"messages": [Q, {**A, "tool_calls": [{"function": {"arguments": {}}}]}]},
     "has tool_calls in message 1"),
    ({"messages": [Q, {"role": ["assistant"], "content": "a"}]}, "has the role ['assistant'] in message 1"),
    ({"messages": [Q, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]},
     "that is no text"),
    ({"messages": [Q, A], "tools": ["f"]}, "has 'tools' that are no list of objects"),
    ({"messages": [Q, A], "tools": {"f": 1}}, "has 'tools' that are no list of objects"),
    ({"conversations": [{"from": ["human"], "value": "q"}, A]}, "has the speaker ['human'] in turn 0"),
    ({"conversations": [{"from": {}, "value": "q"}, A]}, "has the speaker {} in turn 0"),
    ({"conversations": [{"from": None, "value": "q"}, A]}, "has the speaker None in turn 0"),
    ({"conversations": [{"from": "human", "role": "user", "value": "q"}, A]},
     "has both 'from' and 'role' in turn 0"),
    ({"conversations": [{"from": "human", "value": "q", "content": "r"}, A]},
     "has both 'value' and 'content'"),
    ({"conversations": [{"from": "human", "value": "q", "markdown": "x"}, A]},
     "has the key 'markdown' in message 0"),
    ({"conversations": [{"from": "human", "value": 5}, A]},
     "has a content in message 0 (user) that is no text"),
    ({"conversations": [Q, A], "system": 0}, "has under 'system' 0, which is no text"),
    ({"instruction": "q", "output": "a", "system": ["s"]}, "has under 'system' ['s'], which is no text"),
    ({"instruction": "q", "output": "a", "history": {}}, "has a 'history' that is no list"),
    ({"instruction": "q", "output": "a", "history": [["q", 5]]}, "has a content in message 1"),
    ({"instruction": 5, "output": "a"}, "has a content in message 0 (user) that is no text"),
    *(
        ({"instruction": "q", "output": "a", "input": value}, f"has under 'input' {value!r}, which is no")
        for value in (5, 0, 0.5, False, ["a"], {"a": 1})
    ),
    ({"instruction": "q", "instances": [{"input": 5, "output": "a"}]},
     "has under 'input' 5, which is no text"),
    ({"instruction": "q", "instances": [{"output": 5}]},
     "has a content in message 1 (assistant) that is no text"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "sentence"), BAD, ids=[f"{n} {s[:25]}" for n, (_, s) in enumerate(BAD)])
def test_what_would_be_lost_or_learned_otherwise_is_a_bad_record(record, sentence):
    with pytest.raises(ConversationError) as caught:
        read_conversations(record)
    assert str(caught.value).startswith(sentence) or sentence in str(caught.value)


NOTHING = {"weight": None, "tool_calls": [], "function_call": None, "annotations": [], "refusal": None}


def test_keys_that_say_nothing_are_as_if_absent():
    told = read_conversations({"messages": [{**Q, **NOTHING}, {**A, **NOTHING}], "tools": ""})
    assert told == read_conversations({"messages": [Q, A]})
    for value in (None, ""):
        record = {"instruction": "q", "input": value, "output": "a", "system": value, "history": value}
        assert read_conversations(record) == read_conversations({"messages": [Q, A]})


def test_a_tools_answer_may_name_its_call():
    tool = {"role": "tool", "content": "x", "tool_call_id": "1", "name": "f"}
    (told,) = read_conversations({"messages": [Q, {**A, "tool_calls": [CALL]}, tool, A]})
    assert [message["role"] for message in told.messages] == ["user", "assistant", "tool", "assistant"]


def test_a_last_answer_that_is_not_to_be_learned_leaves_nothing_of_the_last(encode):
    messages = [Q, A, Q, {**A, "weight": 0}]
    with pytest.raises(ConversationError, match="has no last answer that is to be learned"):
        encode({"messages": messages}, loss_on="last")


def test_samples_are_cut_or_left_out_and_counted():
    def sample(length, first_loss):
        mask = np.zeros(length, np.uint8)
        mask[first_loss:] = 1
        return ChatSample(np.arange(length, dtype=np.int32), mask)

    samples, places = [sample(4, 2), sample(9, 2), sample(9, 6), sample(6, 0)], list("abcd")
    counts = FitCounts()
    kept = list(fit_samples(samples, places, counts, limit=6, drop=False))
    assert [len(one.ids_L) for one in kept] == [4, 6, 6]
    assert (counts.num_samples, counts.num_loss_tokens, counts.num_truncated) == (3, 2 + 4 + 6, 1)
    assert (counts.num_dropped, counts.dropped) == (1, ["c (9 tokens)"])
    counts = FitCounts()
    assert len(list(fit_samples(samples, places, counts, limit=6, drop=True))) == 2
    assert counts.num_dropped == 2
    assert len(list(fit_samples(samples, places, FitCounts(), limit=None, drop=False))) == 4
