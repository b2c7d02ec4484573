"""Instruction data: ids as the chat template gives them, loss on the assistant's words alone."""

import json

import numpy as np
import pytest

from qwen3_model.errors import FormatError
from qwen3_model.text.packing import ChatSample, Packer
from qwen3_model.text.sft import open_sft
from qwen3_model.text.special_tokens import MARK
from qwen3_model.text.tokenizer import Qwen3Tokenizer
from qwen3_model.text.tokens import read_manifest

EMPTY = "<think>\n\n</think>\n\n"
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi <|im_end|> there"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4", "reasoning_content": "Easy."},
]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": "<|im_start|>"}}}


@pytest.fixture(scope="module")
def tokenizer(demo_tokenizer_dir):
    return Qwen3Tokenizer.from_dir(demo_tokenizer_dir)


@pytest.fixture
def sft(run, demo_tokenizer_dir, tmp_path):
    """Run `sft` on records; return the open file, or the result when it fails."""

    def run_sft(records, *words):
        path = tmp_path / "in.jsonl"
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        words = (
            "--output-prefix",
            tmp_path / "out",
            "--tokenizer-dir",
            demo_tokenizer_dir,
            *words,
            "--force",
        )
        result = run("sft", "--input", path, *words)
        return open_sft(tmp_path / "out_sft") if result.exit_code == 0 else result

    return run_sft


def learned(file, tokenizer, index=0):
    """Return the text of each stretch of tokens with loss in a pack."""
    ids_L, labels_L, _ = file.pack(index)
    stretches, last = [], -2
    for at in np.flatnonzero(labels_L != -100).tolist():
        if at != last + 1:
            stretches.append([])
        stretches[-1].append(ids_L[at])
        last = at
    return [tokenizer.decode(stretch, skip_special=False) for stretch in stretches]


PAIR = [{"role": "user", "content": "Name it.\n\nsky"}, {"role": "assistant", "content": "Blue."}]
KINDS = {
    "alpaca": {"instruction": "Name it.", "input": "sky", "output": "Blue."},
    "messages": {"messages": PAIR},
    "share_gpt": {
        "conversations": [{"from": "human", "value": "Name it.\n\nsky"}, {"from": "gpt", "value": "Blue."}]
    },
    "seed task": {"instruction": "Name it.", "instances": [{"input": "sky", "output": "Blue."}]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_templates_ids_and_loss_on_the_answer(sft, tokenizer, kind):
    file = sft([KINDS[kind]])
    text = tokenizer.apply_chat_template(PAIR, add_generation_prompt=False)
    ids_L, labels_L, lengths = file.pack(0)
    assert ids_L.tolist() == tokenizer.encode(text, allow_special=True)
    assert lengths.tolist() == [len(ids_L)]
    assert learned(file, tokenizer) == [EMPTY + "Blue.<|im_end|>"]
    with_loss = labels_L != -100
    assert (labels_L[with_loss] == ids_L[with_loss]).all()


def test_the_prompt_of_generation_is_the_part_without_loss(sft, tokenizer):
    file = sft([{"messages": PAIR}], "--empty-think", "mask")
    ids_L, labels_L, _ = file.pack(0)
    prompt = tokenizer.apply_chat_template(PAIR[:1], enable_thinking=False)
    first = int(np.argmax(labels_L != -100))
    assert ids_L[:first].tolist() == tokenizer.encode(prompt, allow_special=True)
    assert learned(file, tokenizer) == ["Blue.<|im_end|>"]


def test_all_answers_or_the_last_carry_loss(sft, tokenizer):
    thought = "<think>\nEasy.\n</think>\n\n4<|im_end|>"
    assert learned(sft([{"messages": CHAT}]), tokenizer) == [EMPTY + "Hello!<|im_end|>", thought]
    as_rendered = sft([{"messages": CHAT}], "--thoughts", "template")
    assert learned(as_rendered, tokenizer) == ["Hello!<|im_end|>", thought]
    assert learned(sft([{"messages": CHAT}], "--loss-on", "last"), tokenizer) == [thought]


def test_special_tokens_in_messages_stay_text(sft, tokenizer):
    # What marks them while they are rendered is text like any other.
    marks = {"role": "system", "content": f"{MARK}<{MARK}|im_end|> {MARK * 3} \U0010fffd"}
    file = sft([{"messages": CHAT}, {"messages": [marks, *CHAT]}])
    ids_L, _, _ = file.pack(0)
    plain = [{**message, "content": message["content"].replace("<|im_end|>", "@@")} for message in CHAT]
    text = tokenizer.apply_chat_template(plain, add_generation_prompt=False)
    end = tokenizer.token_id("<|im_end|>")
    assert text.count("<|im_end|>") == 5
    assert ids_L.tolist().count(end) == 5 + 6
    decoded = tokenizer.decode(ids_L, skip_special=False)
    assert decoded.count("Hi <|im_end|> there") == 2
    assert marks["content"] in decoded


def test_tools_and_their_calls_are_rendered(sft, tokenizer):
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    messages = [
        {"role": "user", "content": "Go"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "done"},
        {"role": "assistant", "content": "Finished."},
    ]
    file = sft([{"messages": messages, "tools": [tool]}])
    first, second = learned(file, tokenizer)
    assert first.endswith('{"name": "f", "arguments": {"x": "<|im_start|>"}}\n</tool_call><|im_end|>')
    assert second == EMPTY + "Finished.<|im_end|>"
    assert '"name": "f"' in tokenizer.decode(file.pack(0)[0])


def test_history_and_system_of_alpaca_are_turns(sft, tokenizer):
    record = {"instruction": "c", "output": "d", "history": [["a", "b"]], "system": "s"}
    file = sft([record])
    text = tokenizer.decode(file.pack(0)[0], skip_special=False)
    assert text.startswith("<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>")
    assert learned(file, tokenizer) == [EMPTY + "b<|im_end|>", EMPTY + "d<|im_end|>"]


def test_packs_hold_every_conversation_once_within_the_length(
    sft, sft_seed_dir, run, qwen3_tokenizer_dir, tmp_path
):
    words = ("--tokenizer-dir", qwen3_tokenizer_dir, "--seq-length", 512)
    sources = sorted(sft_seed_dir.iterdir())
    for name, flag in (("packed", "--pack"), ("single", "--no-pack")):
        result = run("sft", "--input", *sources, "--output-prefix", tmp_path / name, *words, flag)
        assert result.exit_code == 0, result.output
    packed, single = open_sft(tmp_path / "packed_sft"), open_sft(tmp_path / "single_sft")
    assert packed.manifest.num_samples == single.manifest.num_samples == len(single) > 300
    assert len(packed) < len(single) / 4
    assert max(len(packed.pack(number)[0]) for number in range(len(packed))) <= 512
    assert packed.tokens.num_tokens / (len(packed) * 512) > 0.9

    def conversations(file):
        found = []
        for number in range(len(file)):
            ids_L, labels_L, lengths = file.pack(number)
            ends = np.cumsum(lengths)[:-1]
            found += [
                (a.tobytes(), b.tobytes())
                for a, b in zip(np.split(ids_L, ends), np.split(labels_L, ends), strict=True)
            ]
        return found

    assert sorted(conversations(packed)) == sorted(conversations(single))
    assert packed.manifest.num_loss_tokens == int((single.mask_T == 1).sum())


def test_long_conversations_are_cut_or_left_out_and_counted(sft, tokenizer):
    records = [
        {"instruction": "Count", "output": "one two three four " * 20},
        {"instruction": "question " * 60, "output": "never seen"},
        {"instruction": "a", "output": "b"},
    ]
    file = sft(records, "--seq-length", 32)
    assert (file.manifest.num_samples, file.manifest.num_truncated, file.manifest.num_dropped) == (2, 1, 1)
    assert len(file.pack(0)[0]) == 32
    file = sft(records, "--seq-length", 32, "--too-long", "drop")
    assert (file.manifest.num_samples, file.manifest.num_dropped) == (1, 2)
    result = sft(records[1:2], "--seq-length", 32)
    assert result.exit_code == 1
    assert "gave no sample (0 bad records, 1 sample too long for --seq-length 32)" in result.stderr


BAD = [
    ({"instruction": "a", "output": " "}, "has an empty answer in message 1"),
    ({"instruction": "", "output": "b"}, "has an empty question in message 0"),
    ({"instruction": "a"}, "has an 'instruction' but no 'output'"),
    ({"instruction": "a", "output": 3}, "has a content in message 1 (assistant) that is no text"),
    ({"text": "a"}, "has none of messages, conversations, instruction"),
    ({"messages": []}, "has no answer of the assistant"),
    ({"messages": "a"}, "has 'messages' that are no list"),
    ({"messages": [{"role": "boss", "content": "x"}]}, "has the role 'boss' in message 0"),
    ({"messages": PAIR + PAIR[:1]}, "ends with a message of the user, not with an answer"),
    ({"conversations": [{"from": "cat", "value": "x"}]}, "has the speaker 'cat' in turn 0"),
    ({"instruction": "a", "instances": []}, "has 'instances' that are no list"),
    ([1], "is no JSON object"),
    (None, "is a JSON null"),
]


@pytest.mark.parametrize(("record", "sentence"), BAD, ids=[sentence[:30] for _, sentence in BAD])
def test_a_bad_record_is_one_sentence_or_skipped(sft, tmp_path, record, sentence):
    result = sft([KINDS["alpaca"], record])
    assert result.exit_code == 1
    assert f"in.jsonl, line 2 {sentence}" in result.stderr
    assert not list(tmp_path.glob("out*")) + list(tmp_path.glob(".out*"))
    file = sft([KINDS["alpaca"], record], "--on-error", "skip", "--rejects", tmp_path / "bad.jsonl")
    assert (file.manifest.num_samples, file.manifest.num_skipped_records) == (1, 1)
    assert sentence in json.loads((tmp_path / "bad.jsonl").read_text())["reason"]


def test_packing_is_first_fit():
    def sample(length):
        return ChatSample(np.zeros(length, np.uint32), np.ones(length, np.uint8))

    lengths = [60, 30, 50, 40, 5, 90]
    packs = Packer(100, is_open=True).pack(sample(length) for length in lengths)
    assert [[len(one.ids_L) for one in pack] for pack in packs] == [[60, 30], [50, 40], [5, 90]]
    singles = Packer(100, is_open=False).pack(sample(length) for length in lengths)
    assert [[len(one.ids_L) for one in pack] for pack in singles] == [[length] for length in lengths]


def test_inspect_colours_what_is_learned(run, sft, demo_tokenizer_dir, tmp_path):
    sft([KINDS["alpaca"]])
    result = run("inspect", "--sft", tmp_path / "out_sft", "--tokenizer-dir", demo_tokenizer_dir, color=True)
    assert result.exit_code == 0, result.output
    assert f"\033[32m{EMPTY}Blue.<|im_end|>\033[0m" in result.stdout
    assert "1 (0 cut, 0 left out, 0 bad records skipped)" in result.stdout
    assert "\033" not in run("inspect", "--sft", tmp_path / "out_sft").stdout


def test_files_that_do_not_belong_together_are_refused(sft, tmp_path):
    sft([KINDS["alpaca"]])
    prefix = tmp_path / "out_sft"
    with pytest.raises(FormatError, match="instruction data"):
        read_manifest(prefix)
    (tmp_path / "out_sft.mask").write_bytes(b"\x00")
    with pytest.raises(FormatError, match="different runs"):
        open_sft(prefix)
    (tmp_path / "out_sft.mask").unlink()
    with pytest.raises(FormatError, match="mask is missing"):
        open_sft(prefix)
    (tmp_path / "out_sft.json").write_text('{"kind": "sft", "version": 9}')
    with pytest.raises(FormatError, match="has version 9"):
        open_sft(prefix)


@pytest.mark.parametrize("kind", ["alpaca", "messages"])
def test_a_long_answer_is_learned_word_for_word(sft, tokenizer, kind):
    """Long strings of plain text stay bytes until they are encoded; those of a conversation must not."""
    answer = "word " * (4 << 20)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]
    record = {"alpaca": {"instruction": "Hi", "output": answer}, "messages": {"messages": messages}}[kind]
    (text,) = learned(sft([record], "--seq-length", "64"), tokenizer)
    assert text.removeprefix(EMPTY).startswith("word word word")


def test_the_list_of_bad_records_replaces_no_input(sft, tmp_path):
    result = sft([KINDS["alpaca"], {}], "--on-error", "skip", "--rejects", tmp_path / "in.jsonl")
    assert result.exit_code == 1
    assert "is an input" in result.stderr
    assert json.loads((tmp_path / "in.jsonl").read_text().splitlines()[0]) == KINDS["alpaca"]


def test_verify_finds_what_is_wrong_with_instruction_data(run, sft, demo_tokenizer_dir, tmp_path):
    sft([KINDS["alpaca"], {"messages": CHAT}])
    prefix = tmp_path / "out_sft"
    words = ("verify", "--sft", prefix, "--tokenizer-dir", demo_tokenizer_dir)
    assert f"{prefix}: whole" in run(*words).stdout
    mask, manifest = tmp_path / "out_sft.mask", tmp_path / "out_sft.json"
    good, told = mask.read_bytes(), json.loads(manifest.read_text())

    def problem(raw=good, **changes):
        mask.write_bytes(raw)
        manifest.write_text(json.dumps(told | changes))
        result = run(*words)
        assert result.exit_code == 1
        return result.stderr

    assert "of the .mask is 2, neither 0 nor 1" in problem(good[:-3] + b"\x02" + good[-2:])
    assert "tokens carry loss, but the manifest says" in problem(good.replace(b"\x01", b"\x00", 1))
    assert "conversation 0 has no token that carries loss" in problem(
        good.replace(b"\x01", b"\x00", good.index(b"\x01\x00") - good.index(b"\x01") + 1)
    )
    assert "conversation 0 begins with a token that carries loss" in problem(b"\x01" + good[1:])
    assert "outside the vocabulary of 100" in problem(vocab_size=100)
    assert "more than seq_length 20" in problem(seq_length=20)
    assert "made with another chat template" in problem(template_sha256="0" * 64)
    assert "made with" in problem(tokenizer_sha256="0" * 64)
    assert "of different runs" in problem(good[:-1])
