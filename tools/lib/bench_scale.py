"""The work behind tools/bench_scale: series of growing size, each with the law that fits it.

Times are CPU seconds, which other work on the machine changes little. Files are sparse or tiny: what grows
here is their number, not their bytes.
"""

import argparse
from collections.abc import Callable, Iterator

import bench_scale_data
import bench_scale_ranks
import bench_scale_serve
from bench_scale_series import Series

Rows = Callable[[argparse.Namespace], Iterator[Series]]
ROWS: dict[str, Rows] = {
    "resume": lambda options: bench_scale_ranks.resume(options.ranks),
    "checkpoint": lambda options: bench_scale_ranks.checkpoint(options.ranks),
    "merge": lambda options: bench_scale_ranks.merge(options.ranks),
    "fresh": lambda _: bench_scale_ranks.fresh(),
    "index": lambda _: bench_scale_data.index(),
    "blend": lambda _: bench_scale_data.blend(),
    "step": lambda _: bench_scale_data.step(),
    "files": lambda options: bench_scale_data.files(options.files),
    "shards": lambda _: bench_scale_data.shards(),
    "stream": lambda _: bench_scale_serve.stream(),
    "queue": lambda _: bench_scale_serve.queue(),
}


def main() -> None:
    """Measure what is named and print a table in Markdown."""
    parser = argparse.ArgumentParser(
        prog="tools/bench_scale",
        description="How costs grow with ranks, files, samples, tokens and requests.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"what to measure: {', '.join(ROWS)}  [default: all]"
    )
    parser.add_argument("--ranks", type=int, default=128, help="largest number of ranks  [default: 128]")
    parser.add_argument("--files", type=int, default=16_000, help="largest number of files  [default: 16000]")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in ROWS]:
        parser.error(f"{unknown[0]} is nothing to measure; name some of {', '.join(ROWS)}")
    if options.ranks < 2 * bench_scale_ranks.TP * bench_scale_ranks.PP:
        parser.error(
            f"--ranks {options.ranks} must be at least {2 * bench_scale_ranks.TP * bench_scale_ranks.PP}"
        )
    if options.files < 1000:
        parser.error(f"--files {options.files} must be at least 1000")
    print("| What | Unit | Measured | Law | At size |\n|---|---|---|---|---|")
    for name in options.names or ROWS:
        for series in ROWS[name](options):
            print(series.line(), flush=True)


if __name__ == "__main__":
    main()
