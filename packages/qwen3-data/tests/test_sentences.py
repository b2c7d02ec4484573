"""Sentences are sequences, documents stay documents."""

from itertools import pairwise

import pytest
from tokenizers import Tokenizer

from qwen3_data.encode.sentences import split_sentences
from qwen3_model.text.tokens import open_tokens, read_manifest


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ('He said "Go." Then left.', ['He said "Go."', "Then left."]),
        (
            "Dr. Smith met J. R. Jones, e.g. Monday. Good.",
            ["Dr. Smith met J. R. Jones, e.g. Monday.", "Good."],
        ),
        ("It costs 3.50 now. 4 remain.", ["It costs 3.50 now.", "4 remain."]),
        ("lower. case goes on", ["lower. case goes on"]),
        (
            "\u597d\u3002\u5417\uff1f\u300c\u662f\u3002\u300d\u5b8c",
            ["\u597d\u3002", "\u5417\uff1f", "\u300c\u662f\u3002\u300d", "\u5b8c"],
        ),
        ("Title\n\nBody one. Body two.", ["Title", "Body one.", "Body two."]),
        ("  \n ", []),
        ("", []),
    ],
)
def test_sentences_end_where_a_reader_would_end_them(text, sentences):
    assert split_sentences(text, keep_newlines=False) == sentences


@pytest.mark.parametrize(
    "text", ["A. B.\n\n\nC?  D", "  lead. Then\n\n", "\u597d\u3002\n\u5417", "x\n\n\n\ny. Z"]
)
def test_with_newlines_kept_the_sentences_are_the_text(text):
    assert "".join(split_sentences(text, keep_newlines=True)) == text


def test_each_sentence_is_a_sequence_and_the_last_ends_with_eod(preprocess, write_jsonl, tmp_path):
    texts = ["One two. Three.", "", "Four.", "Yes it is. No it is not. "]
    result = preprocess(write_jsonl([{"text": text} for text in texts]), "--split-sentences")
    assert result.exit_code == 0, result.output
    assert "1 empty document" in result.stdout
    tokens = open_tokens(tmp_path / "out_text_sentence")
    manifest = read_manifest(tmp_path / "out_text_sentence")
    indices = tokens.document_indices.tolist()
    assert indices == [0, 2, 2, 3, 5]
    ends = {last - 1 for first, last in pairwise(indices) if last > first}
    for number in range(5):
        assert (tokens.sequence(number)[-1] == manifest.eod_id) == (number in ends)
    assert (manifest.num_documents, manifest.num_sequences) == (4, 5)


def test_mindformers_flags_that_say_nothing_new_are_named(preprocess, write_jsonl, tmp_path):
    words = ("--partitions", 2, "--log_interval", 10, "--trust-remote-code", "--lang", "english")
    result = preprocess(write_jsonl([{"text": "a"}]), *words)
    assert result.exit_code == 0, result.output
    assert "--partitions is not needed here: one run uses all cores" in result.stderr
    assert "--trust-remote-code is not needed here" in result.stderr


def test_an_array_is_a_document_of_sequences_as_megatrons_tool_takes_it(
    preprocess, write_jsonl, demo_tokenizer_dir, tmp_path
):
    tokenizer = Tokenizer.from_file(str(demo_tokenizer_dir / "tokenizer.json"))
    documents = [["One two. Three", "four", ""], [], ["", ""], ["<|im_end|> five"]]
    assert preprocess(write_jsonl([{"text": text} for text in documents])).exit_code == 0
    prefix = tmp_path / "out_text_document"
    tokens, manifest = open_tokens(prefix), read_manifest(prefix)
    assert tokens.document_indices.tolist() == [0, 2, 2, 2, 3]
    tokenizer.encode_special_tokens = True
    ids = [tokenizer.encode(text).ids for text in ("One two. Three", "four", "<|im_end|> five")]
    ids[1].append(manifest.eod_id)
    ids[2].append(manifest.eod_id)
    assert [tokens.sequence(number).tolist() for number in range(3)] == ids
    assert manifest.num_special_texts == 1
    # Already cut: --split-sentences leaves the entries whole.
    assert preprocess(tmp_path / "in.jsonl", "--split-sentences").exit_code == 0
    sentences = open_tokens(tmp_path / "out_text_sentence")
    assert [sentences.sequence(number).tolist() for number in range(3)] == ids
