"""Instruction data for people: which tokens are learned."""

from collections.abc import Iterator

from qwen3_model.command.plain_text import counted, without_controls
from qwen3_model.text.sft import IGNORED_LABEL, SftFile
from qwen3_model.text.tokenizer import Qwen3Tokenizer

LEARNED, PLAIN, RESET = "\033[32m", "\033[2m", "\033[0m"


def describe_sft(file: SftFile) -> list[str]:
    """Return the lines that `qwen3-data inspect --sft` prints first."""
    manifest = file.manifest
    share = manifest.num_loss_tokens / max(1, manifest.num_tokens)
    fill = manifest.num_tokens / max(1, manifest.num_packs * manifest.seq_length)
    return [
        f"{file.tokens.prefix}",
        f"  sequences      {manifest.num_packs:,} of at most {counted(manifest.seq_length, 'token', ',')}, "
        f"{fill:.1%} full",
        f"  conversations  {manifest.num_samples:,} ({manifest.num_truncated:,} cut, "
        f"{manifest.num_dropped:,} left out, {manifest.num_skipped_records:,} bad records skipped)",
        f"  tokens         {manifest.num_tokens:,}, {share:.1%} carry loss ({manifest.loss_on} answers, "
        f"empty thought: {manifest.empty_think}, earlier thoughts: {manifest.thoughts})",
        f"  tokenizer      {manifest.tokenizer_name}, sha256 {manifest.tokenizer_sha256[:12]}",
    ]


def show_pack(file: SftFile, index: int, tokenizer: Qwen3Tokenizer | None) -> Iterator[str]:
    """Yield the conversations of a sequence; tokens that carry loss are green, the others dim.

    Without a tokenizer the ids are shown.
    """
    ids_L, labels_L, lengths = file.pack(index)
    yield f"sequence {index}: {counted(len(lengths), 'conversation')}, {len(ids_L)} tokens"
    begin = 0
    for number, length in enumerate(lengths.tolist()):
        part = slice(begin, begin + length)
        begin += length
        spans = _spans(labels_L[part].tolist())
        ids = ids_L[part].tolist()
        yield f"-- conversation {number}, {counted(length, 'token')}"
        text = ""
        for first, last, is_learned in spans:
            if tokenizer is None:
                shown = " ".join(map(str, ids[first:last])) + " "
            else:
                shown = without_controls(tokenizer.decode(ids[first:last], skip_special=False))
            text += (LEARNED if is_learned else PLAIN) + shown + RESET
        yield text


def _spans(labels: list[int]) -> Iterator[tuple[int, int, bool]]:
    """Yield begin, end and whether it is learned of each stretch of like tokens."""
    first = 0
    for at in range(1, len(labels) + 1):
        is_learned = labels[first] != IGNORED_LABEL
        if at == len(labels) or (labels[at] != IGNORED_LABEL) != is_learned:
            yield first, at, is_learned
            first = at
