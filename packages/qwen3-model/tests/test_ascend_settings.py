"""What the YAML says of an Ascend device reaches MindSpore's own calls, as far as a CPU can show."""

import inspect
import os
import subprocess
import sys

import mindspore as ms
import pytest

from qwen3_model.command.keys import Key
from qwen3_model.command.run_config import parse_run_config
from qwen3_model.device import ascend as ascend_settings
from qwen3_model.device.ascend import CONTEXT_SCHEMA, AscendSettings, choose_device, read_ascend_settings
from qwen3_model.errors import ConfigError

SCHEMA = {
    "context": CONTEXT_SCHEMA,
    "model": {"model_config": {"compute_dtype": Key((str,), ("bfloat16", "float16", "float32"))}},
}
# The `context` of mindformers' YAML files, and what else it may hold.
CONTEXT = """
context:
  device_target: Ascend
  device_id: 3
  max_device_memory: "58GB"
  memory_optimize_level: O1
  jit_config: {jit_level: O1}
  ascend_config: {precision_mode: must_keep_origin_dtype, parallel_speed_up_json_path: x.json}
"""
ALL = AscendSettings(
    device_id=3,
    max_memory="58GB",
    memory_optimize_level="O1",
    jit_level="O1",
    precision_mode="must_keep_origin_dtype",
)


def read(text, device="Ascend", worker_num=1):
    return read_ascend_settings(parse_run_config(text, [], SCHEMA, where="x.yaml"), device, worker_num)


def test_the_context_of_a_yaml_is_read():
    assert read(CONTEXT) == ALL
    assert read("") == AscendSettings()
    assert read(CONTEXT, worker_num=2).device_id is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("context: {max_device_memory: 58}", "max_device_memory"),
        ("context: {max_device_memory: 58G}", "'58G' is no amount of memory; write it like 58GB"),
        ("context: {max_device_memory: 0GB}", "'0GB' is no amount of memory"),
        ("context: {max_device_memory: many GB}", "no amount of memory"),
        ("context: {device_id: -1}", "device_id=-1 must be at least 0"),
        ("context: {ascend_config: {precision_mode: fp8}}", "precision_mode"),
        ("context: {memory_optimize_level: O3}", "memory_optimize_level"),
        ("model: {model_config: {compute_dtype: float16}}", "not implemented on Ascend; use bfloat16"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(text, told):
    with pytest.raises(ConfigError) as error:
        read(text)
    assert told in str(error.value)


def test_a_cpu_computes_in_float32_whatever_the_yaml_says():
    assert read("model: {model_config: {compute_dtype: float16}}", device="CPU") == AscendSettings()


@pytest.fixture
def calls(monkeypatch):
    """Record the calls for Ascend, which no CPU takes, each checked against MindSpore's signature."""
    made = []

    def recorded(real, name):
        signature = inspect.signature(real)
        return lambda *given, **named: made.append((name, signature.bind(*given, **named).arguments))

    for where, name in (
        (ms, "set_device"),
        (ms.runtime, "set_memory"),
        (ms, "set_context"),
        (ms.device_context.ascend.op_precision, "precision_mode"),
    ):
        monkeypatch.setattr(where, name, recorded(getattr(where, name), name))
    ascend_settings._choose_ascend.cache_clear()
    return made


def test_all_settings_reach_the_device_once(calls):
    choose_device("Ascend", ALL)
    choose_device("Ascend", ALL)
    assert [name for name, _ in calls] == ["set_device", "set_memory", "set_context", "precision_mode"]
    assert calls[0][1] == {"device_target": "Ascend", "device_id": 3}
    assert calls[1][1] == {"max_size": "58GB", "optimize_level": "O1"}
    assert calls[2][1]["kwargs"] == {"jit_config": {"jit_level": "O1"}}
    assert calls[3][1] == {"mode": "must_keep_origin_dtype"}


def test_what_the_yaml_leaves_out_is_left_to_mindspore(calls):
    choose_device("Ascend")
    assert calls == [("set_device", {"device_target": "Ascend"})]


def test_a_mindspore_without_the_backend_is_one_sentence(calls, monkeypatch):
    def refuse(*_):
        raise RuntimeError("No backend. Please install it.\n\n---\n- C++ Call Stack")

    monkeypatch.setattr(ms, "set_device", refuse)
    with pytest.raises(
        ConfigError, match="MindSpore cannot use an Ascend: No backend; see that CANN is set up"
    ):
        choose_device("Ascend")


def test_a_cpu_is_told_nothing_of_it(calls):
    choose_device("CPU", ALL)
    assert {name for name, _ in calls} <= {"set_device"}


def test_mindspore_takes_the_values_that_a_cpu_takes_too():
    """Memory and compile level are refused or taken on a CPU as on Ascend."""
    script = """
import mindspore as ms
ms.set_device("CPU")
ms.runtime.set_memory(max_size="58GB", optimize_level="O1")
ms.set_context(jit_config={"jit_level": "O1"})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_precision_modes_are_those_of_mindspores_documentation():
    text = inspect.getdoc(ms.device_context.ascend.op_precision.precision_mode)
    # A note in it, which older versions set as an item, too, is no mode.
    items = [line.strip()[2:] for line in text.splitlines() if line.strip().startswith("- ")]
    named = {item.partition(":")[0] for item in items if ":" in item.partition(" ")[0]}
    assert named == set(ascend_settings.PRECISION_MODES)


def test_a_graph_that_does_not_compile_is_written_into_the_runs_folder(tmp_path):
    script = """
import sys
from pathlib import Path
import mindspore as ms
import numpy as np
from qwen3_model.device.ascend import AscendSettings, choose_device
choose_device("CPU", AscendSettings(work_dir=Path(sys.argv[1])))
class Wrong(ms.nn.Cell):
    @ms.jit
    def construct(self, x):
        return ms.ops.MatMul()(x, x)
Wrong()(ms.Tensor(np.ones((2, 3), np.float32)))
"""
    here, run, program = tmp_path / "here", tmp_path / "run", tmp_path / "program.py"
    here.mkdir()
    program.write_text(script, encoding="utf-8")  # MindSpore reads a graph's source from a file
    command = [sys.executable, str(program), str(run)]
    # Other tests of this process have chosen devices, which leaves the variable behind.
    environment = {name: value for name, value in os.environ.items() if name != "MS_OM_PATH"}
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert "ValueError" in done.stderr
    assert not list(here.iterdir())
    assert list(run.rglob("analyze_fail.ir"))
