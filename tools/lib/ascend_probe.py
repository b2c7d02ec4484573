"""Run one of our commands in this process; write down each graph that MindSpore compiles: name, time, memory.

    python ascend_probe.py GRAPHS.jsonl qwen3-train launch ...    or a program, PROGRAM.py ...

Started by `ascend_dry_run`, which has set the environment. A line of JSON a graph; times are of the local
clock, as MindSpore's log has them, whose lines say which kernels were made meanwhile.
"""

import json
import runpy
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mindspore.common.api import _CellGraphExecutor, _JitExecutor


class Recorder:
    """Appends a line for each new graph, once it has run for the first time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: set[str] = set()
        self.compiled: list[dict[str, object]] = []
        self.peak_bytes = self.reserved_bytes = 0

    def compile(
        self,
        original: Callable[..., object],
        executor: "_JitExecutor | _CellGraphExecutor",
        name: str,
        arguments: tuple[object, ...],
        named: Mapping[str, object],
    ) -> object:
        """Compile through `original` and keep the time if the graph is new."""
        started_s = time.time()
        entry: dict[str, object] = {"graph": name, "started_s": started_s}
        try:
            phase = original(executor, *arguments, **named)
        except Exception as error:
            self._write(entry | {"ended_s": time.time(), "error": _first_line(error)})
            raise
        key = str(phase)
        if key not in self.seen:
            self.seen.add(key)
            self.compiled.append(entry | {"ended_s": time.time()})
        return phase

    def ran(self) -> None:
        """Write down the graphs that were compiled since, with the memory of this first run."""
        if not self.compiled:
            return
        memory = self.read_memory()
        for entry in self.compiled:
            self._write(entry | memory)
        self.compiled.clear()

    def read_memory(self) -> dict[str, int]:
        """Return the bytes of the peak since the last call, without and with what fragments take."""
        import mindspore as ms

        peak, reserved = ms.runtime.max_memory_allocated(), ms.runtime.max_memory_reserved()
        self.peak_bytes, self.reserved_bytes = max(self.peak_bytes, peak), max(self.reserved_bytes, reserved)
        ms.runtime.reset_max_memory_allocated()
        ms.runtime.reset_max_memory_reserved()
        return {"peak_bytes": peak, "reserved_bytes": reserved}

    def _write(self, entry: dict[str, object]) -> None:
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(entry) + "\n")


def watch(recorder: Recorder) -> None:
    """Put `recorder` between Python and MindSpore's compilers of graphs."""
    import mindspore as ms
    from mindspore.common.api import _CellGraphExecutor, _JitExecutor

    compile_jit, call_jit = _JitExecutor.compile, _JitExecutor.__call__
    compile_cell, run_cell = _CellGraphExecutor.compile, _CellGraphExecutor.__call__
    max_memory = ms.runtime.max_memory_allocated

    def jit(executor: "_JitExecutor", *arguments: object, **named: object) -> object:
        owner = executor.obj if executor.obj is not None else getattr(executor.fn, "__self__", None)
        name = type(owner).__name__ if owner is not None else executor.fn.__qualname__
        return recorder.compile(compile_jit, executor, name, arguments, named)

    def cell(executor: "_CellGraphExecutor", obj: object, *arguments: object, **named: object) -> object:
        return recorder.compile(compile_cell, executor, type(obj).__name__, (obj, *arguments), named)

    def call(original: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object, **named: object) -> object:
            result = original(*arguments, **named)
            recorder.ran()
            return result

        return run

    _JitExecutor.compile, _JitExecutor.__call__ = jit, call(call_jit)
    _CellGraphExecutor.compile, _CellGraphExecutor.__call__ = cell, call(run_cell)
    # The command asks for the peak of the whole run.
    ms.runtime.max_memory_allocated = lambda: max(recorder.peak_bytes, max_memory())


def _first_line(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next(
        (line for line in lines if line.strip("- ") and not line.startswith("- ")), type(error).__name__
    )


def main() -> None:
    """Run the command of the command line, watched."""
    graphs, command, *arguments = sys.argv[1:]
    if command.endswith(".py"):
        watch(Recorder(Path(graphs)))
        sys.argv = [command, *arguments]
        runpy.run_path(command, run_name="__main__")
        return
    found = [entry for entry in entry_points(group="console_scripts") if entry.name == command]
    if not found:
        raise SystemExit(f"ascend_dry_run: there is no command {command} in {sys.prefix}/bin")
    watch(Recorder(Path(graphs)))
    sys.argv = [command, *arguments]
    found[0].load()()


if __name__ == "__main__":
    main()
