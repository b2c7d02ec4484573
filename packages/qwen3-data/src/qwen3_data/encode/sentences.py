"""Texts cut into sentences, for `--split-sentences`.

A rule of its own, not NLTK's trained one: a sentence ends after `.`, `!` or `?` before a space and a capital,
digit or quote, but not after common abbreviations and initials; after a Chinese or Japanese full stop; and at
an empty line.
"""

import re
from collections.abc import Iterator

CLOSING = "\"')\\]\u201d\u2019\u300d\u300f\uff09"
# A run of marks or white space is looked at from its beginning alone and as a whole, which keeps the time in
# proportion to the text where a run has thousands.
END = re.compile(
    rf"(?<![.!?])[.!?]++[{CLOSING}]*+(?=\s++[\"'(\[\u201c\u2018]*+[A-Z0-9\u00c0-\u00de\u0400-\u042f])"
    rf"|[\u3002\uff01\uff1f]++[{CLOSING}]*+"
    r"|(?<!\s)(?=[^\S\n]*+\n[^\S\n]*+\n)"
)
ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|Mt|vs|etc|al|cf|No|Nos|Fig|Figs|Vol|pp|ca|Inc|Ltd|Co|Corp|Gen|Col|Lt"
    r"|Sgt|Rev|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec|e\.g|i\.e)|\b[A-Z])\.\Z"
)
LOOK_BACK = 12
"""Characters in which an abbreviation is sought."""


def split_sentences(text: str, *, keep_newlines: bool) -> list[str]:
    """Return the sentences of a text, none empty.

    Args:
        text: A document.
        keep_newlines: Whether white space after a sentence stays with it, so that the sentences joined are
            the text; else it is left out.
    """
    sentences = []
    begin = 0
    for end in _find_ends(text):
        part = text[begin:end]
        if part.strip():
            sentences.append(part if keep_newlines else part.strip())
            begin = end
    if keep_newlines and sentences:
        sentences[-1] += text[begin:]
    return sentences


def _find_ends(text: str) -> Iterator[int]:
    """Yield where sentences end, the white space after them included."""
    for found in END.finditer(text):
        is_mark = found.end() > found.start()
        if is_mark and ABBREVIATION.search(text, max(0, found.end() - LOOK_BACK), found.end()):
            continue
        at = found.end()
        while at < len(text) and text[at].isspace():
            at += 1
        yield at
    yield len(text)
