"""Measure `qwen3-data preprocess` beside two other ways to make the same bytes, paired in one run.

The others are written here after what they do, not run from their packages: Megatron-LM's preprocess_data.py
hands one line at a time to a pool of processes, each with a tokenizer, and writes one document at a time;
"encode_batch" is the shortest program around `tokenizers`' batch call. "Encoding alone" is fastokens on texts
that are in memory. gigatoken takes part where it is installed, in the way of Megatron-LM's newer script:
the whole file is encoded into one array in memory. It closes empty documents with an end-of-document id too;
the other tools give them no token, so its file is compared without those ids.
All times are wall times of a new process, start and tokenizer load included. The first run of qwen3-data
is reported by itself.
"""

import argparse
import gzip
import importlib.util
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from itertools import islice
from multiprocessing import Pool
from pathlib import Path

from measures import cpu_seconds_of_children

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 2
EOD = "<|endoftext|>"
DOCUMENT_LINES = 60


def main() -> None:
    if len(sys.argv) > 2 and sys.argv[1] == "--one":
        run_one(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=60)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--input", type=Path, help="JSON lines with the key text, instead of the made corpus")
    parser.add_argument("--tokenizer-dir", type=Path, help="instead of Qwen3's from the checkout")
    parser.add_argument("--folder", type=Path, default=Path("bench_data"), help="new; removed at the end")
    parser.add_argument("--only", help="comma-separated names of the tools to run")
    options = parser.parse_args()
    options.folder.mkdir()
    try:
        bench(options)
    finally:
        shutil.rmtree(options.folder)


def bench(options: argparse.Namespace) -> None:
    tokenizer_dir = options.tokenizer_dir or unpack_tokenizer(options.folder / "tokenizer")
    source = options.input or make_corpus(options.folder / "corpus.jsonl", options.megabytes * 1e6)
    megabytes = source.stat().st_size / 1e6
    print(f"{source}: {megabytes:.1f} MB, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    names = options.only.split(",") if options.only else list(TOOLS)
    if importlib.util.find_spec("gigatoken") is not None and not options.only:
        names.append("gigatoken")
    results: dict[str, list[dict]] = {name: [] for name in names}
    for repeat in range(options.repeats):
        for name in names if repeat % 2 == 0 else reversed(names):
            output = options.folder / name
            words = [sys.executable, __file__, "--one", name, str(source), str(tokenizer_dir), str(output)]
            begin_s, before_s = time.perf_counter(), cpu_seconds_of_children()
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
            wall_s, cpu_s = time.perf_counter() - begin_s, cpu_seconds_of_children() - before_s
            results[name].append(
                {"wall_s": wall_s, "cpu_s": cpu_s, **json.loads(done.stdout.splitlines()[-1])}
            )
            print(f"  {name:16} {wall_s:8.2f} s", flush=True)
    report(results, megabytes)
    if not same_bytes(options.folder, [name for name in names if name != "encoding-alone"], source):
        sys.exit(1)


def report(results: dict[str, list[dict]], megabytes: float) -> None:
    best = {name: min(runs, key=lambda run: run["wall_s"]) for name, runs in results.items()}
    ours = best.get("qwen3-data", {"wall_s": float("nan")})["wall_s"]
    print(
        "\ntool              best wall s    MB/s   times qwen3-data   least CPU s   peak MB (largest process)"
    )
    for name, run in best.items():
        wall_s, peak_mb = run["wall_s"], run["peak_mb"]
        cpu_s = min(run["cpu_s"] for run in results[name])
        line = f"{name:16} {wall_s:12.2f} {megabytes / wall_s:7.1f} {wall_s / ours:18.2f}"
        print(f"{line} {cpu_s:13.2f} {peak_mb:10.0f}")
    if "qwen3-data" in results:
        first_s = results["qwen3-data"][0]["wall_s"]
        print(f"qwen3-data's first run, with cold files: {first_s:.2f} s")
    for name, run in best.items():
        parts = run.get("parts_s")
        if parts:
            print(f"{name}: " + ", ".join(f"{part} {seconds:.2f} s" for part, seconds in parts.items()))


def same_bytes(folder: Path, names: list[str], source: Path) -> bool:
    """Say of each tool whether its `.bin` equals qwen3-data's (the first one's, where that did not run)."""
    empty_places = places_of_empty_documents(source)
    contents = {}
    for name in names:
        raw = (folder / f"{name}_text_document.bin").read_bytes()
        contents[name] = without_empty_documents(raw, empty_places) if name == "gigatoken" else raw
    first, *others = names
    print(f"{first}: {len(contents[first]) // 4} tokens, {len(empty_places)} empty documents without one")
    all_same = True
    for name in others:
        same = contents[name] == contents[first]
        all_same = all_same and same
        apart = ", apart from the end of each empty document" if name == "gigatoken" else ""
        print(f"{name}: {'the same bytes' if same else difference(contents[first], contents[name])}{apart}")
    return all_same


def places_of_empty_documents(source: Path) -> list[int]:
    with source.open(encoding="utf-8") as lines:
        return [place for place, line in enumerate(lines) if not json.loads(line)["text"]]


def without_empty_documents(raw: bytes, places: list[int]) -> bytes:
    """Return the ids without the lone end-of-document ids of the empty documents at `places`."""
    import numpy as np

    ids = np.frombuffer(raw, dtype="<i4")
    ends = np.flatnonzero(ids == ids[-1])
    return np.delete(ids, ends[places]).tobytes()


def difference(one: bytes, other: bytes) -> str:
    import numpy as np

    left, right = (np.frombuffer(raw, dtype="<i4") for raw in (one, other))
    num = min(len(left), len(right))
    unlike = np.flatnonzero(left[:num] != right[:num])
    place = int(unlike[0]) if len(unlike) else num
    return (
        f"DIFFERENT from token {place} on ({len(left)} and {len(right)} tokens): "
        f"{left[place : place + 8].tolist()} and {right[place : place + 8].tolist()}"
    )


def run_one(name: str, source: str, tokenizer_dir: str, output: str) -> None:
    facts = {**TOOLS, "gigatoken": run_gigatoken}[name](Path(source), Path(tokenizer_dir), Path(output)) or {}
    usages = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({"peak_mb": max(usages) / 1e3, **facts}))


def run_ours(source: Path, tokenizer_dir: Path, output: Path) -> dict:
    begin_s = time.perf_counter()
    from qwen3_data.runs.preprocess import preprocess
    from qwen3_data.runs.preprocess_settings import Settings

    import_s = time.perf_counter() - begin_s
    result = preprocess(
        Settings(
            inputs=(str(source),),
            output_prefix=output,
            tokenizer_dir=tokenizer_dir,
            force=True,
            dtype="int32",
        )
    )
    parts = {"import": import_s, **{f"{stage} (overlapping)": busy for stage, busy in result.busy_s.items()}}
    parts["all but import"] = result.seconds
    return {"parts_s": parts}


def run_encoding_alone(source: Path, tokenizer_dir: Path, output: Path) -> dict:
    import fastokens

    texts = [json.loads(line)["text"] for line in source.open(encoding="utf-8")]
    begin_s = time.perf_counter()
    tokenizer = fastokens.Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    loaded_s = time.perf_counter()
    for first in range(0, len(texts), 1000):
        tokenizer.encode_batch_flat(texts[first : first + 1000], False, True)
    return {"parts_s": {"load": loaded_s - begin_s, "encode": time.perf_counter() - loaded_s}}


def run_encode_batch(source: Path, tokenizer_dir: Path, output: Path) -> None:
    import numpy as np

    tokenizer = load_tokenizer(tokenizer_dir)
    eod = [tokenizer.token_to_id(EOD)]
    with source.open(encoding="utf-8") as lines, open_bin(output) as file:
        while batch := list(islice(lines, 1000)):
            texts = [json.loads(line)["text"] for line in batch]
            for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
                if encoding.ids:
                    file.write(np.array(encoding.ids + eod, dtype=np.int32).tobytes())


def run_line_pool(source: Path, tokenizer_dir: Path, output: Path) -> None:
    import numpy as np

    with (
        source.open(encoding="utf-8") as lines,
        open_bin(output) as file,
        Pool(WORKERS, initializer=_start_worker, initargs=(tokenizer_dir,)) as pool,
    ):
        for ids in pool.imap(_encode_line, lines, 32):
            if ids:
                file.write(np.array(ids, dtype=np.int32).tobytes(order="C"))


def _start_worker(tokenizer_dir: Path) -> None:
    global worker_tokenizer, worker_eod
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    worker_tokenizer = load_tokenizer(tokenizer_dir)
    worker_eod = worker_tokenizer.token_to_id(EOD)


def _encode_line(line: str) -> list[int]:
    ids = worker_tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids
    return [*ids, worker_eod] if ids else []


def run_gigatoken(source: Path, tokenizer_dir: Path, output: Path) -> None:
    import awkward
    import numpy as np
    from gigatoken import JsonlFileSource, Tokenizer

    tokenizer = Tokenizer(tokenizer_dir / "tokenizer.json")
    ids = tokenizer.encode_files(JsonlFileSource([str(source)], field="text"))
    stops = np.cumsum(awkward.to_numpy(awkward.num(ids)))
    flat = awkward.to_numpy(awkward.flatten(ids))
    with open_bin(output) as file:
        file.write(np.insert(flat, stops, tokenizer.encode(EOD)[0]).astype(np.int32).tobytes())


TOOLS = {
    "qwen3-data": run_ours,
    "encoding-alone": run_encoding_alone,
    "encode_batch": run_encode_batch,
    "line-pool": run_line_pool,
}


def load_tokenizer(tokenizer_dir: Path):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


def open_bin(output: Path):
    return output.with_name(output.name + "_text_document.bin").open("wb")


def unpack_tokenizer(folder: Path) -> Path:
    folder.mkdir()
    packed = ROOT / "tests/assets/qwen3-tokenizer/tokenizer.json.gz"
    (folder / "tokenizer.json").write_bytes(gzip.decompress(packed.read_bytes()))
    return folder


def make_corpus(path: Path, size_bytes: float) -> Path:
    """Mix code of Python's library with shuffled English lines and Chinese clauses of the checkout."""
    rng = random.Random(0)
    english = (ROOT / "tools/demo_data/wikitext2_valid.txt").read_text(encoding="utf-8").splitlines()
    clauses = chinese_clauses()
    code = sorted(Path(os.__file__).parent.rglob("*.py"))
    rng.shuffle(code)
    written, number = 0, 0
    with path.open("w", encoding="utf-8") as file:
        while written < size_bytes:
            if number % 3 == 0:
                text = code[number // 3 % len(code)].read_text(encoding="utf-8", errors="ignore")[:50_000]
            elif number % 3 == 1:
                text = "\n".join(rng.sample(english, DOCUMENT_LINES))
            else:
                # Halves of clauses, since whole ones would soon all stand in the tokenizers' caches of words.
                halves = zip(rng.choices(clauses, k=400), rng.choices(clauses, k=400), strict=True)
                text = "\uff0c".join(one[: len(one) // 2] + other[len(other) // 2 :] for one, other in halves)
            line = json.dumps({"text": text}, ensure_ascii=False) + "\n"
            file.write(line)
            written += len(line.encode())
            number += 1
    return path


def chinese_clauses() -> list[str]:
    texts = []
    for line in (ROOT / "tests/assets/sft/belle_zh_seed_tasks.json").read_text(encoding="utf-8").splitlines():
        task = json.loads(line)
        texts += [task["instruction"], *(instance["output"] for instance in task["instances"])]
    return [clause for text in texts for clause in re.split("[\uff0c\u3002\n]", text) if len(clause) > 3]


if __name__ == "__main__":
    main()
