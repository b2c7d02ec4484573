"""What a run says at its end."""

from collections.abc import Iterator

from qwen3_data.runs.preprocess_run import Result
from qwen3_model.command.plain_text import counted


def preprocess_report(result: Result) -> Iterator[str]:
    """Yield the lines of the summary."""
    totals = result.totals
    documents = counted(totals.num_documents, "document")
    if result.was_done:
        yield (
            f"{', '.join(map(str, result.prefixes))}: already whole ({documents}, "
            f"{counted(totals.num_tokens, 'token')}), nothing to resume; --force makes it anew"
        )
        return
    seconds = max(result.seconds, 1e-9)
    yield (
        f"Processed {documents} ({totals.num_documents / seconds:.1f} docs/s, "
        f"{totals.num_chars / seconds / 1e6:.2f} M characters/s), {counted(totals.num_tokens, 'token')}"
    )
    if result.engine and totals.num_checked:
        yield (
            f"Encoded with {result.engine}; {counted(totals.num_checked, 'sample')} equal those of tokenizers"
        )
    num_special = sum(totals.num_special.values())
    if totals.num_empty:
        yield f"{counted(totals.num_empty, 'empty document')} (counted, without tokens)"
    if totals.num_skipped:
        yield f"{counted(totals.num_skipped, 'bad record')} skipped"
    if num_special:
        yield (
            f"{counted(num_special, 'document')} with special tokens spelled out "
            "(encoded as plain text unless --allow-special)"
        )
    for prefix in result.prefixes:
        yield f"Wrote {prefix}.bin, .idx and .json"
