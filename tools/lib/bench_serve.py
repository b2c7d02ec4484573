"""Let the server and its rivals answer the same requests in turns, and print ratios and percentiles."""

import argparse
import asyncio
import contextlib
import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import openai
from measures import cpu_seconds

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
AT_ONCE, MODEL = 32, "bench"
CACHE_TOKENS = 16384
# Without a number of blocks its cache takes most of the machine's memory.
TORCH_WAYS = {
    "in turn": (),
    "continuous batching": (
        "--continuous-batching", "--cb-block-size", "32", "--cb-num-blocks", str(CACHE_TOKENS // 32),
        "--cb-max-batch-tokens", "512",
    ),
}  # fmt: skip
TINY = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 4096, "hidden_size": 128,
    "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    prompt: str
    new_tokens: int


def main() -> None:
    parser = argparse.ArgumentParser(description="The server beside the generator and transformers serve.")
    parser.add_argument("--only", choices=["0.6B/4", "tiny"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--torch-bin", type=Path, help="folder with the program transformers")
    parser.add_argument("--torch-requests", type=int, default=16, help="of the 32, since it takes long")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the blocks that end the servers
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "GLOG_v": "3"}
    if options.child:
        generate_in_turns(options.child)
        return
    with tempfile.TemporaryDirectory(prefix="bench_serve.") as scratch:
        for name in [options.only] if options.only else ["0.6B/4", "tiny"]:
            compare(name, make_model(name, Path(scratch) / name.replace("/", "-")), options)


def make_model(name: str, directory: Path) -> Path:
    """Write random weights with a tokenizer and return their folder."""
    tokenizer = directory / "tokenizer"
    if name == "tiny":
        shutil.copytree(ROOT / "tools/demo_data/tokenizer", tokenizer)
        config = TINY
    else:
        source = ROOT / "tests/assets/qwen3-tokenizer"
        tokenizer.mkdir(parents=True)
        with (
            gzip.open(source / "tokenizer.json.gz") as packed,
            (tokenizer / "tokenizer.json").open("wb") as out,
        ):
            shutil.copyfileobj(packed, out)
        shutil.copy(source / "tokenizer_config.json", tokenizer)
        from qwen3_model.config import SIZES

        config = SIZES["0.6B"].to_hf() | {"num_hidden_layers": 4, "max_window_layers": 4}
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    command = [
        sys.executable, "-m", "qwen3_model", "init", directory / "config.json", directory / MODEL,
        "--tokenizer-dir", tokenizer, "--quiet",
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return directory / MODEL


def mixed_jobs(number: int) -> list[Job]:
    """Return 32 requests, a few words to 200 with 8 to 64 new tokens.

    None begins like one of another number, which the server's cache might still hold.
    """
    words = (ROOT / "tools/demo_data/wikitext2_valid.txt").read_text("utf-8").split()
    rng = np.random.default_rng(0)
    jobs = []
    for _ in range(AT_ONCE):
        start, length = int(rng.integers(0, len(words) - 300)), int(rng.integers(4, 200))
        jobs.append(Job(" ".join([str(number), *words[start : start + length]]), int(rng.integers(8, 65))))
    return jobs


def compare(name: str, model_dir: Path, options: argparse.Namespace) -> None:
    jobs = mixed_jobs(0)
    num_new = sum(job.new_tokens for job in jobs)
    print(
        f"{name}: {AT_ONCE} requests, {num_new} new tokens, load {os.getloadavg()[0]:.1f} at the start",
        flush=True,
    )
    with our_server(model_dir) as server, generator(model_dir) as ask_generator:
        rounds = []
        server.answer_all(jobs)
        for number in range(1, options.rounds + 1):
            rounds.append((server.answer_all(mixed_jobs(number)), ask_generator()))
        show(num_new, "generator", rounds)
        first_tokens(server, jobs)
        if options.torch_bin and (options.torch_bin / "transformers").exists():
            sets = [mixed_jobs(100 + number)[: options.torch_requests] for number in range(options.rounds)]
            num_some = sum(job.new_tokens for job in sets[0])
            for what, flags in TORCH_WAYS.items():
                with torch_server(options.torch_bin, model_dir, flags) as other:
                    pairs = [(server.answer_all(some), other.answer_all(some)) for some in sets]
                show(num_some, f"transformers serve, {what}, {len(sets[0])} requests,", pairs)
        else:
            print("  transformers serve is left out: tools/parity makes its environment", file=sys.stderr)


def show(num_new: int, rival: str, pairs: Sequence[tuple[tuple[float, float], tuple[float, float]]]) -> None:
    """Print each pair of measurements and the middle of their ratios, by wall and by CPU seconds."""
    for ours, theirs in pairs:
        texts = [f"{num_new / wall:7.1f} tokens/s ({cpu:.2f} CPU s)" for wall, cpu in (ours, theirs)]
        print(f"  server {texts[0]}, {rival} {texts[1]}")
    wall, cpu = (sorted(theirs[i] / ours[i] for ours, theirs in pairs) for i in range(2))
    shown = ", ".join(f"{ratio:.2f}" for ratio in wall)
    print(
        f"  ratio {wall[len(wall) // 2]:.2f} ({shown}), by CPU seconds {cpu[len(cpu) // 2]:.2f}", flush=True
    )


def first_tokens(server: "Server", jobs: Sequence[Job]) -> None:
    """Print how long a short request waits for its first token, alone and beside a long prompt."""
    words = " ".join(job.prompt for job in jobs).split()[:2500]
    alone, beside, long_s = asyncio.run(server.first_token_times(" ".join(words)))
    for what, times in (("alone", alone), (f"while {len(words)} words are read in {long_s:.1f} s", beside)):
        shown = ", ".join(f"p{p} {1e3 * np.percentile(times, p):.0f}" for p in (50, 90, 99))
        print(f"  first token of a short request {what}: {shown} ms over {len(times)}", flush=True)


class Server:
    """A server process and a client of it."""

    def __init__(self, process: subprocess.Popen, url: str, model: str) -> None:
        self.process, self.url, self.model = process, url, model

    def answer_all(self, jobs: Sequence[Job]) -> tuple[float, float]:
        """Send all requests at once; return wall seconds and the process's CPU seconds."""
        return timed(self.process.pid, lambda: asyncio.run(self._answer_all(jobs)))

    async def _answer_all(self, jobs: Sequence[Job]) -> None:
        async with self._client() as client:
            answers = await asyncio.gather(*(self._ask(client, job) for job in jobs))
        counts = [answer.usage.completion_tokens for answer in answers]
        assert counts == [job.new_tokens for job in jobs], "an answer has another length"

    def _client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=3600)

    def _ask(self, client: openai.AsyncOpenAI, job: Job, **fields: object) -> object:
        return client.completions.create(
            model=self.model, prompt=job.prompt, max_tokens=job.new_tokens, temperature=0, **fields
        )

    async def first_token_times(self, long_prompt: str) -> tuple[list[float], list[float], float]:
        async with self._client() as client:
            alone = [await self._first_token_s(client, number) for number in range(30)]
            beside, long_times, number = [], [], 1000
            while len(beside) < 30 and len(long_times) < 20:
                # The number in front keeps its beginning from being in the cache already.
                job = Job(f"{len(long_times)} {time.time()} {long_prompt}", 1)
                started_s = time.perf_counter()
                long = asyncio.ensure_future(self._ask(client, job))
                await asyncio.sleep(0.02)
                while not long.done():
                    number += 1
                    found = await self._first_token_s(client, number)
                    if not long.done():
                        beside.append(found)
                await long
                long_times.append(time.perf_counter() - started_s)
        return alone, beside, float(np.median(long_times))

    async def _first_token_s(self, client: openai.AsyncOpenAI, number: int) -> float:
        started_s = time.perf_counter()
        stream = await self._ask(client, Job(f"{number} short questions are", 2), stream=True)
        await anext(aiter(stream))
        found = time.perf_counter() - started_s
        await stream.close()
        return found


@contextlib.contextmanager
def our_server(model_dir: Path) -> Iterator[Server]:
    command = [
        sys.executable, "-m", "qwen3_infer", "serve", "--pretrained-model-dir", str(model_dir), "--port", "0",
        "--max-requests", str(AT_ONCE), "--max-tokens-in-cache", str(CACHE_TOKENS), "--quiet",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    with ended(process):
        for line in process.stderr:
            if line.startswith("serving "):
                break
        else:
            sys.exit("the server did not start")
        # Its log lines must not fill the pipe.
        drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        yield Server(process, line.split()[-1], MODEL)
    drain.wait()


@contextlib.contextmanager
def torch_server(torch_bin: Path, model_dir: Path, flags: Sequence[str]) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        torch_bin / "transformers",
        "serve",
        str(model_dir),
        "--device",
        "cpu",
        "--port",
        str(port),
        *flags,
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    with ended(process):
        url = f"http://localhost:{port}"
        while process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health"):
                break
            time.sleep(0.5)
        server = Server(process, url, str(model_dir))
        server.answer_all([Job("Warm up", 2)])
        yield server


@contextlib.contextmanager
def generator(model_dir: Path) -> Iterator[object]:
    """Start the batch generator; what is yielded lets it answer all requests once."""
    process = subprocess.Popen(
        [sys.executable, str(HERE), "--child", str(model_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask() -> tuple[float, float]:
        process.stdin.write("go\n")
        process.stdin.flush()
        return tuple(json.loads(process.stdout.readline()))

    with ended(process):
        process.stdout.readline()  # it is ready
        yield ask


@contextlib.contextmanager
def ended(process: subprocess.Popen) -> Iterator[None]:
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def generate_in_turns(model_dir: Path) -> None:
    """Be the generator: answer all requests for each line of the input."""
    from qwen3_infer.device import Device
    from qwen3_infer.folder.model_folder import open_model_folder
    from qwen3_infer.processes.local import open_local
    from qwen3_infer.sampling.sampling import Sampling
    from qwen3_infer.schedule.generator import generate
    from qwen3_infer.schedule.requests import Request
    from qwen3_infer.settings.settings import Decoding
    from qwen3_infer.text.prompts import Prompt

    threads = int(os.environ["OMP_NUM_THREADS"])
    cache_dir = Path.home() / ".cache/qwen3-infer"
    device = Device(target="CPU", kernels="native", num_threads=threads, cache_dir=cache_dir)
    folder = open_model_folder(model_dir)
    engine = open_local(folder, device, quiet=True, note=print).serve_engine(AT_ONCE, CACHE_TOKENS, 4096)
    tokenizer = folder.tokenizer
    decoding = Decoding(
        sampling=Sampling(temperature=0.0),
        max_new_tokens=64,
        is_length_explicit=True,
        stop_ids=frozenset(),
        stop_strings=(),
    )

    def answer_all(number: int) -> None:
        jobs = mixed_jobs(number)
        ids = tokenizer.encode_batch([job.prompt for job in jobs])
        requests = [
            Request(
                index=index, prompt=Prompt(), prompt_ids=tuple(ids[index]), max_new_tokens=job.new_tokens,
                decoding=decoding, seed=0,
            )
            for index, job in enumerate(jobs)
        ]  # fmt: skip
        assert len(list(generate(requests, engine, tokenizer))) == AT_ONCE

    answer_all(0)
    print("ready", flush=True)
    for number, _ in enumerate(sys.stdin, start=1):
        print(json.dumps(timed(os.getpid(), partial(answer_all, number))), flush=True)


def timed(pid: int, work: object) -> tuple[float, float]:
    """Return the wall seconds of `work` and the CPU seconds that a process took meanwhile."""
    before_s, started_s = cpu_seconds(pid), time.perf_counter()
    work()
    return time.perf_counter() - started_s, cpu_seconds(pid) - before_s


if __name__ == "__main__":
    main()
