"""Make inputs out of seeds with hypothesis, for some minutes, and keep what a reader fails on."""

import argparse
import hashlib
import itertools
import json
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fuzz_targets import SEEDS, Target, targets
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

LONGEST_S = 20
"""For one input; longer is a finding."""
MOST_CHANGES = 8
EXAMPLES_A_ROUND = 100
STRANGE = (
    b"\x00",
    b"\xff" * 8,
    b"\x7f" + b"\xff" * 7,
    b"\x80",
    b"\n",
    b"\xed\xa0\x80",
    b"{{",
    b"%}",
    b"[" * 2000,
    b"</think>",
)
NUMBERS = st.sampled_from(
    [0, -1, 1, 2**31, 2**63 - 1, 2**64, -(2**63), 10**400, 1e308, float("nan"), float("inf"), -0.0]
)
LEAVES = (
    st.none()
    | st.booleans()
    | NUMBERS
    | st.text(max_size=8)
    | st.sampled_from(
        ["\ud800", "\x00", "\x1b[31m\n", "<|im_end|>", "<think>", "x" * 3000, "..", "/etc/passwd", ""]
    )
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
Draw = st.DrawFn


@st.composite
def changed_bytes(draw: Draw, seeds: list[bytes]) -> bytes:
    """Return a seed with some stretches replaced, cut out, doubled or from another seed."""
    raw = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, MOST_CHANGES))):
        at = draw(st.integers(0, len(raw)))
        end = min(len(raw), at + draw(st.sampled_from([0, 1, 2, 4, 8, 64])))
        kind = draw(st.integers(0, 4))
        if kind == 0:
            raw[at:end] = draw(st.binary(max_size=8))
        elif kind == 1:
            raw[at:end] = draw(st.sampled_from(STRANGE))
        elif kind == 2:
            raw[at:at] = raw[at:end] * draw(st.integers(1, 3))
        elif kind == 3:
            del raw[at:end]
        else:
            other = draw(st.sampled_from(seeds))
            raw[at:end] = other[draw(st.integers(0, len(other))) :][:64]
    return bytes(raw)


@st.composite
def changed_json(draw: Draw, seeds: list[object]) -> bytes:
    """Return a seed with some of its values replaced, taken out, or put under other keys."""
    value = json.loads(json.dumps(draw(st.sampled_from(seeds))))
    for _ in range(draw(st.integers(1, MOST_CHANGES))):
        value = _change(draw, value)
    return json.dumps(value, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


def _change(draw: Draw, value: object) -> object:
    """Return a value changed somewhere inside."""
    kind = draw(st.integers(0, 5))
    if not isinstance(value, dict | list) or not value or kind == 0:
        return [value] if kind == 1 else draw(ANYTHING)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw(st.sampled_from(keys))
    if kind == 1:
        del value[key]
    elif kind == 2 and isinstance(value, dict):
        value[draw(st.text(max_size=6) | st.sampled_from(keys))] = value[key]
    elif kind == 2 and isinstance(value, list):
        value.append(value[key])
    else:
        value[key] = _change(draw, value[key])
    return value


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Return what a target is fed with."""
    seeds = target.seeds
    made = changed_bytes(seeds)
    values = [value for raw in seeds for value in _values(raw)] if target.is_json else []
    return changed_json(values) | made if values else made


def _values(raw: bytes) -> Iterator[object]:
    try:
        yield json.loads(raw)
    except (ValueError, RecursionError):
        return


@contextmanager
def limited() -> Iterator[None]:
    """Raise TimeoutError when the block takes too long."""

    def give_up(number: int, frame: object) -> None:
        raise TimeoutError(f"took more than {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LONGEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def feed(target: Target, num_examples: int, number: int) -> tuple[int, bytes | None, str]:
    """Feed a target; return how many inputs it had, and the shrunk one that it failed on with the reason."""
    count, failing = 0, b""

    @seed(number)
    @settings(
        max_examples=num_examples, deadline=None, database=None,
        phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(inputs(target))
    def run(raw: bytes) -> None:
        nonlocal count, failing
        count, failing = count + 1, raw
        with limited():
            target.try_to_read(raw)

    try:
        run()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return count, failing, "".join(traceback.format_exception(error)[-6:])
    return count, None, ""


def main() -> None:
    """Feed all targets in turn until the time is over."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--only", action="append")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = parser.parse_args()
    chosen = [each for each in targets() if not options.only or each.name in options.only]
    counts, found = dict.fromkeys((each.name for each in chosen), 0), dict[str, int]()
    end_s = time.monotonic() + 60 * options.minutes
    for number in itertools.count(options.seed):
        for target in chosen:
            if time.monotonic() > end_s:
                _tell(counts, found, options.seed)
            count, raw, reason = feed(target, EXAMPLES_A_ROUND, number)
            counts[target.name] += count
            if raw is not None:
                path, is_new = _keep(target, raw)
                found[target.name] = found.get(target.name, 0) + is_new
                if is_new:
                    print(f"{target.name}: {raw[:200]!r} (kept as {path})\n{reason}", flush=True)


def _keep(target: Target, raw: bytes) -> tuple[Path, bool]:
    """Keep an input beside the seeds; return where, and whether it was not there."""
    path = SEEDS / target.name / f"found-{hashlib.sha256(raw).hexdigest()[:8]}"
    is_new = not path.exists()
    path.write_bytes(raw)
    return path, is_new


def _tell(counts: dict[str, int], found: dict[str, int], number: int) -> None:
    print(json.dumps({"inputs": sum(counts.values()), "of": counts, "findings": found, "seed": number}))
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
