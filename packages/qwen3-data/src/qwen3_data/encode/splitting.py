"""Where a long text can be cut without changing its ids.

Qwen3's pre-tokenizer never joins a letter with what follows it unless that is a letter too, NFC composes
nothing across these borders, and no added token contains them; so the ids of the pieces, joined, are those of
the whole.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

from qwen3_model.command.narrow import as_section, as_sections, as_text, optional
from qwen3_model.errors import FormatError

QWEN3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The rule holds for this pre-tokenizer alone."""

BORDER = re.compile(r"(?<=[A-Za-z\u4e00-\u9fff])(?=[ \n,.\u3002\uff0c\u3001])")
AFTER_BORDER = " \n,.\u3002\uff0c\u3001"


def can_split(tokenizer_json: Mapping[str, object]) -> bool:
    """Return whether texts may be cut at borders for this tokenizer; not where its file has another form."""
    try:
        pre = as_section(tokenizer_json.get("pre_tokenizer") or {})
        steps = as_sections(pre.get("pretokenizers", [pre]))
        splits = [as_section(step.get("pattern", {})) for step in steps if step.get("type") == "Split"]
        normalizer = optional(as_section, tokenizer_json.get("normalizer"))
        added = as_sections(tokenizer_json.get("added_tokens", []))
        contents = [as_text(entry["content"]) for entry in added]
    except FormatError:
        return False
    return (
        [split.get("Regex") for split in splits] == [QWEN3_PATTERN]
        and all(step.get("type") in ("Split", "ByteLevel") for step in steps)
        and not any(step.get("add_prefix_space") for step in steps)
        and (normalizer is None or normalizer.get("type") == "NFC")
        and not any(entry["lstrip"] or entry["rstrip"] or entry["single_word"] for entry in added)
        and not any(letter in content for content in contents for letter in AFTER_BORDER)
    )


def split_text(text: str, size: int) -> Iterator[str]:
    """Yield `text` in pieces of about `size` characters, longer where there is no border."""
    begin = 0
    while len(text) - begin > size:
        border = BORDER.search(text, begin + size)
        if border is None:
            break
        yield text[begin : border.start()]
        begin = border.start()
    yield text[begin:]


def head_of_text(text: str, size: int) -> str:
    """Return the beginning of `text` up to the first border after `size` characters."""
    return next(split_text(text, size))


def split_stream(chunks: Iterable[str], size: int) -> Iterator[str]:
    """Yield the text of `chunks` in pieces cut at borders, holding about `size` characters and one chunk."""
    rest = ""
    for chunk in chunks:
        rest += chunk
        if len(rest) <= size:
            continue
        # The last piece may go on in the next chunk, so it waits.
        pieces = list(split_text(rest, size))
        yield from pieces[:-1]
        rest = pieces[-1]
    yield rest
