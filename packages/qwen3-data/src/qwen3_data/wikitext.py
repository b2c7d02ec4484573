"""WikiText's tokenised plain text to natural text, one record per article or paragraph."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson

from qwen3_model.errors import FormatError
from qwen3_model.files import write_atomically

Unit = Literal["article", "paragraph"]

HEADING = re.compile(r"(?P<level>=(?: =){0,5}) (?P<title>.+?) (?P=level)")

# Moses splits punctuation off words and marks what stood inside a word with @ on both sides.
INSIDE_WORD = re.compile(r" @([-,./:])@ ")
BEFORE = re.compile(r" (?=(?:[,.;:!?%)\]}]|\.\.\.)(?:[\s\"'\u201d),.;:!?]|$))")
AFTER_OPENING = re.compile(r"(?<=[(\[{$\u00a3\u20ac]) ")
CONTRACTION = re.compile(r" (?='(?:s|t|m|d|ve|re|ll)\b)", re.IGNORECASE)
PAIRED_DOUBLE = re.compile(r'" ([^"]*?) "')
POSSESSIVE = re.compile(r"(?<=s) ' (?=[a-z<])")
PAIRED_SINGLE = re.compile(r"(?<=\s)' ([^']*?) '(?=\s|$)")
DASH_IN_RANGE = re.compile(r"(?<=\d) \u2013 (?=\d)")
SPACES = re.compile(r"[ \t]{2,}")


@dataclass(frozen=True, slots=True)
class Counts:
    """What a conversion wrote."""

    num_articles: int
    num_records: int


def convert_wikitext(source: Path, output: Path, *, unit: Unit, keep_headings: bool) -> Counts:
    """Write `source` as JSON lines with `id`, `title` and `text` to `output`, whole or not at all.

    Args:
        source: A WikiText file: headings as ` = Title = `, one paragraph a line.
        output: The `.jsonl` to write.
        unit: One record per article or per paragraph.
        keep_headings: Whether headings stay in the text, as `= Title =`.

    Raises:
        FormatError: `source` is no UTF-8 or holds no text.
    """
    counts = [0, 0]

    def write(temporary: Path) -> None:
        with source.open(encoding="utf-8-sig") as lines, temporary.open("wb") as file:
            for number, (title, paragraphs) in enumerate(read_articles(lines, keep_headings=keep_headings)):
                texts = ["\n\n".join(paragraphs)] if unit == "article" else paragraphs
                for text in texts:
                    record = {"id": counts[1], "title": title, "text": text}
                    file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
                    counts[1] += 1
                counts[0] = number + 1
        if not counts[1]:
            raise FormatError(
                f"{source} holds no article text; give a WikiText file such as wiki.train.tokens"
            )

    try:
        write_atomically(output, write)
    except UnicodeDecodeError as error:
        raise FormatError(f"{source} is not UTF-8 text: {error}") from error
    return Counts(*counts)


def read_articles(lines: Iterable[str], *, keep_headings: bool) -> Iterator[tuple[str, list[str]]]:
    """Yield title and cleaned paragraphs of each article that has any; one article is held at a time."""
    title, paragraphs, has_body = "", [], False
    for line in lines:
        text = line.strip()
        if not text:
            continue
        heading = HEADING.fullmatch(text)
        if heading is None:
            paragraphs.append(clean(text))
            has_body = True
            continue
        name = clean(heading["title"])
        if heading["level"] == "=":
            if has_body:
                yield title, paragraphs
            title, paragraphs, has_body = name, [], False
        if keep_headings:
            marks = heading["level"].replace(" ", "")
            paragraphs.append(f"{marks} {name} {marks}")
    if has_body:
        yield title, paragraphs


def clean(text: str) -> str:
    """Undo Moses tokenisation: `5 @,@ 000 m ( 3 @.@ 1 mi )` becomes `5,000 m (3.1 mi)`."""
    text = INSIDE_WORD.sub(r"\1", text)
    text = PAIRED_DOUBLE.sub(r'"\1"', text)
    text = POSSESSIVE.sub("' ", text)
    text = PAIRED_SINGLE.sub(r"'\1'", text)
    text = CONTRACTION.sub("", text)
    text = AFTER_OPENING.sub("", text)
    text = BEFORE.sub("", text)
    text = DASH_IN_RANGE.sub("\u2013", text)
    return SPACES.sub(" ", text).strip()
