"""Ids and chat renderings equal those of transformers (golden/tokenizer.json says its version)."""

import json
from pathlib import Path

import pytest

from qwen3_model.errors import FormatError
from qwen3_model.text.tokenizer import Qwen3Tokenizer

GOLDEN = json.loads((Path(__file__).parent / "golden" / "tokenizer.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer(qwen3_tokenizer_dir):
    return Qwen3Tokenizer.from_dir(qwen3_tokenizer_dir)


@pytest.mark.parametrize("chat", GOLDEN["chats"], ids=lambda chat: chat["name"])
def test_chats_render_as_in_transformers(tokenizer, chat):
    text = tokenizer.apply_chat_template(
        chat["messages"],
        chat["tools"],
        add_generation_prompt=chat["add_generation_prompt"],
        enable_thinking=chat["enable_thinking"],
    )
    assert text == chat["text"]
    assert tokenizer.encode(text, allow_special=True) == chat["ids"]


def test_texts_encode_as_in_transformers(tokenizer):
    texts = [entry["text"] for entry in GOLDEN["texts"]]
    assert tokenizer.encode_batch(texts) == [entry["ids"] for entry in GOLDEN["texts"]]
    assert [tokenizer.encode(text) for text in texts] == [entry["ids"] for entry in GOLDEN["texts"]]


def test_special_tokens_in_text_are_plain_text_unless_allowed(tokenizer):
    special = GOLDEN["special"]
    assert tokenizer.encode(special["text"]) == special["as_text"]
    assert tokenizer.encode(special["text"], allow_special=True) == special["as_tokens"]
    assert tokenizer.encode(special["text"]) == special["as_text"]


def test_the_named_ids_are_those_of_qwen3(tokenizer):
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id) == (151669, 151645, 151643)
    assert tokenizer.token_id("</think>") == 151668
    assert tokenizer.special_tokens["<|im_start|>"] == 151644
    assert "<think>" not in tokenizer.special_tokens


def test_decode_inverts_encode_and_can_keep_special_tokens(tokenizer):
    text = "Grüße, 世界 👋"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([151644, 9707, 151645]) == "Hello"
    assert tokenizer.decode([151644, 9707, 151645], skip_special=False) == "<|im_start|>Hello<|im_end|>"


def test_the_bytes_of_tokens_join_to_the_text(tokenizer):
    text = "Gr\u00fc\u00dfe\x00\x7f\u00a0, \u4e16\u754c \U00020bb7 \U0001f469\u200d\U0001f469 <think>"
    ids = tokenizer.encode(text)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode("utf-8")
    assert any(tokenizer.decode([number]) == "\ufffd" for number in ids)  # a part of a character alone
    assert tokenizer.token_bytes(151645) is tokenizer.token_bytes(151935) is None
    every = {tokenizer.token_bytes(number) for number in range(256)}
    assert every == {bytes([number]) for number in range(256)}


def test_a_lone_surrogate_is_named(tokenizer):
    with pytest.raises(FormatError, match=r"text 1 holds a lone surrogate U\+D800 at character 2"):
        tokenizer.encode_batch(["fine", "ab\ud800"])


def test_an_unknown_token_is_named(tokenizer):
    with pytest.raises(FormatError, match="has no token '<nothing>'"):
        tokenizer.token_id("<nothing>")


def test_a_template_that_refuses_says_why(demo_tokenizer_dir, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((demo_tokenizer_dir / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(FormatError, match="roles must alternate"):
        Qwen3Tokenizer.from_dir(tmp_path).apply_chat_template([])


def test_a_template_file_wins_and_may_ask_for_the_date(demo_tokenizer_dir, tmp_path):
    for file in demo_tokenizer_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ strftime_now('%Y') | length }}{{ eos_token }}")
    assert Qwen3Tokenizer.from_dir(tmp_path).apply_chat_template([]) == "4<|im_end|>"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"holds no tokenizer\.json"):
        Qwen3Tokenizer.from_dir(tmp_path)


def test_a_damaged_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(FormatError, match="is no tokenizer"):
        Qwen3Tokenizer.from_dir(tmp_path)
