"""WikiText's tokenised plain text to natural text, one record per article or paragraph."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson

from qwen3_model.command.files import write_atomically
from qwen3_model.errors import FormatError

Unit = Literal["article", "paragraph"]
Unknown = Literal["drop", "keep"]

UNKNOWN = "<unk>"
"""What WikiText puts for rare words; the raw versions have the words themselves."""
SENTENCE_END = re.compile(r"(?<= [.!?]) ")

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
    num_dropped: int
    """Sentences and headings left out, since a word of them is unknown."""


def convert_wikitext(
    source: Path, output: Path, *, unit: Unit, keep_headings: bool, unknown: Unknown = "drop"
) -> Counts:
    """Write `source` as JSON lines with `id`, `title` and `text` to `output`, whole or not at all.

    Args:
        source: A WikiText file: headings as ` = Title = `, one paragraph a line.
        output: The `.jsonl` to write.
        unit: One record per article or per paragraph.
        keep_headings: Whether headings stay in the text, as `= Title =`.
        unknown: Whether sentences and headings with `<unk>` are left out.

    Raises:
        FormatError: `source` is no UTF-8, holds no text or is no WikiText.
    """
    counts = [0, 0]
    reader = ArticleReader(keep_headings=keep_headings, unknown=unknown)

    def write(temporary: Path) -> None:
        with source.open(encoding="utf-8-sig") as lines, temporary.open("wb") as file:
            for number, (title, paragraphs) in enumerate(reader.read(lines)):
                texts = ["\n\n".join(paragraphs)] if unit == "article" else paragraphs
                for text in texts:
                    record = {"id": counts[1], "title": title, "text": text}
                    file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
                    counts[1] += 1
                counts[0] = number + 1
        if counts[1] and not reader.num_titles:
            raise FormatError(
                f"{source} is no WikiText: no line of it is a title such as ' = Title = '; a text of another "
                "kind needs no conversion, give it to preprocess as .txt or .jsonl"
            )
        if not counts[1]:
            raise FormatError(
                f"{source} holds no article text; give a WikiText file such as wiki.train.tokens"
            )

    try:
        write_atomically(output, write)
    except UnicodeDecodeError as error:
        raise FormatError(f"{source} is not UTF-8 text: {error}") from error
    return Counts(counts[0], counts[1], reader.num_dropped)


class ArticleReader:
    """Reads lines of WikiText as articles, and counts what it leaves out."""

    def __init__(self, *, keep_headings: bool, unknown: Unknown = "keep") -> None:
        self._keep_headings, self._drops = keep_headings, unknown == "drop"
        self.num_titles = 0
        self.num_dropped = 0

    def read(self, lines: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
        """Yield title and cleaned paragraphs of each article that has any, one article at a time."""
        title, paragraphs, has_body = "", [], False
        for line in lines:
            text = line.strip()
            if not text:
                continue
            heading = HEADING.fullmatch(text)
            if heading is None:
                known = clean(self._known_sentences(text))
                if known:
                    paragraphs.append(known)
                    has_body = True
                continue
            name = clean(heading["title"])
            if heading["level"] == "=":
                self.num_titles += 1
                if has_body:
                    yield title, paragraphs
                title, paragraphs, has_body = name, [], False
            if self._keep_headings and self._drops and UNKNOWN in name:
                self.num_dropped += 1
            elif self._keep_headings:
                marks = heading["level"].replace(" ", "")
                paragraphs.append(f"{marks} {name} {marks}")
        if has_body:
            yield title, paragraphs

    def _known_sentences(self, text: str) -> str:
        """Return a paragraph without its sentences that hold an unknown word; quotations stay whole."""
        if not self._drops or UNKNOWN not in text:
            return text
        kept: list[str] = []
        for sentence in _sentences(text):
            if UNKNOWN in sentence:
                self.num_dropped += 1
            else:
                kept.append(sentence)
        return " ".join(kept)


def _sentences(text: str) -> Iterator[str]:
    """Yield the sentences of tokenised text; what stands between two quotation marks is not cut."""
    quoted: list[str] = []
    is_quoted = False
    for part in SENTENCE_END.split(text):
        rest = part
        if is_quoted and part.startswith('"'):  # the mark that closes the quotation
            yield " ".join([*quoted, '"'])
            quoted, is_quoted, rest = [], False, part[1:].lstrip()
        is_quoted ^= rest.count('"') % 2 == 1
        if rest:
            quoted.append(rest)
        if quoted and not is_quoted:
            yield " ".join(quoted)
            quoted = []
    if quoted:
        yield " ".join(quoted)


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
