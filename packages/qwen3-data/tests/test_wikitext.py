"""WikiText becomes natural text, one record per article or paragraph."""

import json

import pytest

from qwen3_data.input.wikitext import clean

SAMPLE = "\n".join(
    (
        "",
        " = First = ",
        "",
        ' It weighs 5 @,@ 000 kg ( 3 @.@ 1 t ) . " Quoted " , it \'s well @-@ known .',
        " Second line .",
        "",
        " = = Part = = ",
        "",
        " More .",
        "",
        " = Second = ",
        "",
        " Body .",
        "",
        " = Only a heading = ",
        "",
    )
)


@pytest.mark.parametrize(
    ("tokenised", "natural"),
    [
        ("5 @,@ 000 m", "5,000 m"),
        ("3 @.@ 1 and red @-@ tipped", "3.1 and red-tipped"),
        ("a , b ; c : d . E ! F ?", "a, b; c: d. E! F?"),
        ("( x ) and [ y ]", "(x) and [y]"),
        ('say " hello there " twice " ok " .', 'say "hello there" twice "ok".'),
        ("the lobster 's claw , don 't", "the lobster's claw, don't"),
        ("the Knights ' rushing game", "the Knights' rushing game"),
        ("a ' quoted word ' here", "a 'quoted word' here"),
        ("2001 \u2013 02", "2001\u201302"),
        ("50 % of $ 7", "50% of $7"),
        ("<unk> stays", "<unk> stays"),
    ],
)
def test_moses_marks_are_undone(tokenised, natural):
    assert clean(tokenised) == natural


@pytest.fixture
def convert(run, tmp_path):
    source = tmp_path / "wiki.txt"
    source.write_text(SAMPLE)

    def run_convert(*words):
        result = run("wikitext", source, tmp_path / "out.jsonl", *words)
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]

    return run_convert


def test_articles_are_one_record_each(convert):
    records = convert()
    assert [(record["id"], record["title"]) for record in records] == [(0, "First"), (1, "Second")]
    assert records[0]["text"] == (
        '= First =\n\nIt weighs 5,000 kg (3.1 t). "Quoted", it\'s well-known.\n\nSecond line.'
        "\n\n== Part ==\n\nMore."
    )


def test_headings_can_be_dropped(convert):
    assert convert("--headings", "drop")[1]["text"] == "Body."


def test_paragraphs_are_one_record_each(convert):
    texts = [record["text"] for record in convert("--unit", "paragraph", "--headings", "drop")]
    assert texts == [
        'It weighs 5,000 kg (3.1 t). "Quoted", it\'s well-known.',
        "Second line.",
        "More.",
        "Body.",
    ]


def test_the_real_sample_converts(run, wikitext_path, tmp_path):
    result = run("wikitext", wikitext_path, tmp_path / "out.jsonl")
    assert result.exit_code == 0
    texts = [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(texts) > 20
    assert not any("@-@" in text or " , " in text for text in texts)


def test_sentences_with_an_unknown_word_are_left_out_and_counted(run, tmp_path):
    lines = (
        " = Known = ",
        ' One . Two <unk> . Three ! He said , " Go . Now <unk> . " Four . Five',
        " = = <unk> = = ",
        " All <unk> gone .",
        " = The <unk> = ",
        " <unk>",
    )
    (tmp_path / "in.txt").write_text("\n".join(lines))
    result = run("wikitext", tmp_path / "in.txt", tmp_path / "out.jsonl")
    assert result.exit_code == 0, result.output
    assert "6 sentences and headings with <unk> left out; --unk keep has them" in result.stdout
    texts = [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert texts == ["= Known =\n\nOne. Three! Four. Five"]
    assert (
        run("wikitext", tmp_path / "in.txt", tmp_path / "out.jsonl", "--unk", "keep", "--force").exit_code
        == 0
    )
    assert (tmp_path / "out.jsonl").read_text().count("<unk>") == 7


def test_the_real_sample_has_no_unknown_word_left(run, wikitext_path, tmp_path):
    assert run("wikitext", wikitext_path, tmp_path / "out.jsonl").exit_code == 0
    texts = [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert not any("<unk>" in text for text in texts)
    assert sum(map(len, texts)) > 250_000


@pytest.mark.parametrize(
    "text", ["Plain prose.\nMore of it.\n", '{"text": "a"}\n', "# Title\n\nBody.\n", "== x ==\nBody\n"]
)
def test_text_of_another_kind_is_no_wikitext(run, tmp_path, text):
    (tmp_path / "in.txt").write_text(text)
    result = run("wikitext", tmp_path / "in.txt", tmp_path / "out.jsonl")
    assert result.exit_code == 1
    assert "is no WikiText: no line of it is a title" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [(b"", "holds no article text"), (b" = Title = \n", "holds no article text"), (b"a\xff", "is not UTF-8")],
)
def test_what_is_no_wikitext_is_refused(run, tmp_path, raw, sentence):
    (tmp_path / "in.txt").write_bytes(raw)
    result = run("wikitext", tmp_path / "in.txt", tmp_path / "out.jsonl")
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_an_existing_output_is_kept(run, wikitext_path, tmp_path):
    (tmp_path / "out.jsonl").write_text("mine")
    result = run("wikitext", wikitext_path, tmp_path / "out.jsonl")
    assert result.exit_code == 1
    assert "--force" in result.stderr
    assert (tmp_path / "out.jsonl").read_text() == "mine"
