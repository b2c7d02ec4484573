import pytest

from qwen3_infer.text.prompts import Prompt, read_prompts
from qwen3_model.errors import FormatError, UsageError


def test_a_text_is_one_prompt_with_new_lines_as_in_mindformers():
    assert read_prompts(["one\\ntwo"]) == [Prompt(text="one\ntwo")]


def test_several_texts_are_numbered():
    assert [prompt.where for prompt in read_prompts(["one", "two"])] == ["prompt 1", "prompt 2"]


def test_a_text_file_is_one_prompt_a_line_whatever_its_line_ends(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffone\r\ntwo\\nlines\r\n 三 \r\n".encode())
    assert [prompt.text for prompt in read_prompts([str(path)])] == ["one", "two\nlines", " 三 "]


def test_a_last_line_without_line_end_counts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"one\ntwo")
    assert len(read_prompts([str(path)])) == 2


def test_json_lines_hold_prompts_or_conversations(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "keep\\\\n this", "id": 7}\n'
        '{"messages": [{"role": "user", "content": "hi"}], "tools": [{"type": "function"}]}\n',
        "utf-8",
    )
    first, second = read_prompts([str(path)])
    assert (first.text, first.id) == ("keep\\n this", 7)
    assert second.messages == ({"role": "user", "content": "hi"},)
    assert second.tools == ({"type": "function"},)
    assert second.where == f"{path}, line 2"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"one\n\ntwo\n", "line 2 is blank; every line is a prompt, so remove it"),
        ("a.txt", b"one\n  \n", "line 2 is blank"),
        ("a.txt", b"", "is empty; write one prompt a line"),
        ("a.txt", b"one\nab\xff\n", "line 2: byte 3 (0xff) is no UTF-8; save the file as UTF-8"),
        ("a.jsonl", b'{"prompt": "x"}\n\n', "line 2 is blank"),
        ("a.jsonl", b'{"prompt": "x"\n', "line 1 is not JSON"),
        ("a.jsonl", b'["x"]\n', "line 1 must be an object"),
        (
            "a.jsonl",
            b'{"prompt": "x", "temprature": 1}\n',
            "line 1 has unknown keys temprature; known are id",
        ),
        ("a.jsonl", b"{}\n", "line 1 must have either prompt or messages"),
        ("a.jsonl", b'{"prompt": "x", "messages": []}\n', "line 1 must have either prompt or messages"),
        ("a.jsonl", b'{"prompt": 3}\n', "line 1: prompt must be a text that is not blank"),
        ("a.jsonl", b'{"prompt": "x", "id": [1]}\n', "line 1: id must be a text or a whole number"),
        ("a.jsonl", b'{"messages": "x"}\n', "line 1: messages must be a list of at least one object"),
        ("a.jsonl", b'{"messages": [{"content": "x"}]}\n', "line 1: each of messages needs a role"),
    ],
)
def test_bad_files_are_refused_with_their_line(tmp_path, name, content, sentence):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read_prompts([str(path)])
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(FormatError, match="does not exist; --input takes a text or an existing file"):
        read_prompts([str(tmp_path / "absent.txt")])
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(FormatError, match="is a folder"):
        read_prompts([str(tmp_path / "folder.txt")])


def test_no_prompt_is_a_usage_error():
    for nothing in ([], [" "]):
        with pytest.raises(UsageError, match="--input"):
            read_prompts(nothing)
