"""Floods of connections and requests against a server of our own, and what others see of it."""

import argparse
import http.client
import json
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from measures import private_bytes

NUM_SILENT, NUM_SLOW, NUM_HUGE = 10_000, 1_000, 12
SLOW_S = 30
HUGE_BYTES = 4_000_000
AT_ONCE = 16
MOST_HEALTH_S = 0.2
MOST_GROWTH_BYTES = 64_000_000
PATIENCE_S = 120


@dataclass
class Others:
    """What clients see that are no part of a flood."""

    port: int
    health_s: list[float] = field(default_factory=list)
    answer_s: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)

    def ask_health(self) -> None:
        """Ask /health twenty times a second."""
        while not self.is_over.wait(0.05):
            started_s = time.monotonic()
            status, _ = request(self.port, "/health")
            self.health_s.append(time.monotonic() - started_s)
            if status != 200:
                self.refused.append(f"/health {status}")

    def ask_completions(self) -> None:
        """Ask for one completion after the other."""
        while not self.is_over.wait(0.2):
            started_s = time.monotonic()
            status, body = request(self.port, "/v1/completions", {"prompt": "The game", "max_tokens": 4})
            self.answer_s.append(time.monotonic() - started_s)
            if status != 200:
                self.refused.append(f"{status} {body[:100]!r}")


def request(port: int, path: str, fields: dict[str, object] | None = None) -> tuple[int, bytes]:
    """Ask once; return status and body, or 0 and the reason."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        if fields is None:
            connection.request("GET", path)
        else:
            body = json.dumps({"model": "model", **fields})
            connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except OSError as error:
        return 0, repr(error).encode()
    finally:
        connection.close()


def silent(port: int) -> dict[str, object]:
    """Open connections that never send a byte, while the server closes those that wait longest."""
    with ExitStack() as stack:
        for _ in range(NUM_SILENT):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S))
        time.sleep(5)
    return {"connections": NUM_SILENT}


def slow(port: int) -> dict[str, object]:
    """Send the head of a request a byte a second on many connections."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * SLOW_S
    closed = 0
    with ExitStack() as stack:
        wires = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S))
            for _ in range(NUM_SLOW)
        ]
        for number in range(SLOW_S):
            closed = 0
            for wire in wires:
                try:
                    wire.sendall(head[number : number + 1])
                except OSError:
                    closed += 1
            time.sleep(1)
    return {"connections": NUM_SLOW, "closed_by_the_server": closed}


def huge(port: int) -> dict[str, object]:
    """Send prompts that are far too long, all at once."""
    text = "word " * (HUGE_BYTES // 5)
    with ThreadPoolExecutor(NUM_HUGE) as pool:
        asked = [pool.submit(request, port, "/v1/completions", {"prompt": text}) for _ in range(NUM_HUGE)]
        return {"statuses": sorted(each.result()[0] for each in asked)}


def quick(port: int, number: int) -> dict[str, object]:
    """Ask many short questions."""
    fields: dict[str, object] = {"prompt": "The game", "max_tokens": 1}
    started_s = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        statuses = list(pool.map(lambda _: request(port, "/v1/completions", fields)[0], range(number)))
    seconds = time.monotonic() - started_s
    return {"requests": number, "answered": statuses.count(200), "per_s": round(number / seconds, 1)}


def measure(
    name: str, server: subprocess.Popen[bytes], log: Path, port: int, flood: Callable[[], dict[str, object]]
) -> bool:
    """Run one flood, print a line of what was seen, and return whether all was well."""
    others, before_bytes = Others(port), private_bytes(server.pid)
    lines = log.read_bytes().count(b"\n")
    threads = [threading.Thread(target=each) for each in (others.ask_health, others.ask_completions)]
    for thread in threads:
        thread.start()
    facts = flood()
    others.is_over.set()
    for thread in threads:
        thread.join()
    time.sleep(2)
    grown = private_bytes(server.pid) - before_bytes
    health_s = sorted(others.health_s)
    told = {
        "flood": name,
        **facts,
        "health_asked": len(health_s),
        "health_median_s": round(health_s[len(health_s) // 2], 4),
        "health_slowest_s": round(health_s[-1], 4),
        "completions": len(others.answer_s),
        "slowest_completion_s": round(max(others.answer_s), 3),
        "refused": others.refused[:3],
        "memory_before_mb": before_bytes // 1_000_000,
        "memory_grown_mb": grown // 1_000_000,
        "log_lines": log.read_bytes().count(b"\n") - lines,
    }
    print(json.dumps(told), flush=True)
    return not others.refused and health_s[-1] < MOST_HEALTH_S and grown < MOST_GROWTH_BYTES


def main() -> None:
    """Start the server, run the floods, end it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--quick", type=int, default=10_000)
    parser.add_argument("--only", choices=("silent", "slow", "huge", "quick"))
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    folder = tempfile.TemporaryDirectory(prefix="flood-serve-")
    log = Path(folder.name) / "log"
    program = Path(sys.executable).with_name("qwen3-infer")
    command = [
        program,
        "serve",
        "--pretrained-model-dir",
        options.model,
        "--port",
        "0",
        "--model-name",
        "model",
    ]
    with log.open("wb") as lines:
        server = subprocess.Popen(list(map(str, command)), stdout=lines, stderr=lines)
    try:
        port = _port(server, log)
        for _ in range(50):  # what is made at first use
            request(port, "/v1/completions", {"prompt": "The game", "max_tokens": 4})
        floods: dict[str, Callable[[], dict[str, object]]] = {
            "silent": lambda: silent(port),
            "slow": lambda: slow(port),
            "huge": lambda: huge(port),
            "quick": lambda: quick(port, options.quick),
        }
        wanted = {options.only} if options.only else set(floods)
        results = [measure(name, server, log, port, floods[name]) for name in floods if name in wanted]
    finally:
        server.terminate()
        server.wait()
        folder.cleanup()
    raise SystemExit(0 if all(results) else 1)


def _port(server: subprocess.Popen[bytes], log: Path) -> int:
    while server.poll() is None:
        for line in log.read_text(encoding="utf-8").splitlines():
            if line.startswith("serving "):
                return int(line.rpartition(":")[2])
        time.sleep(0.2)
    raise SystemExit(log.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
