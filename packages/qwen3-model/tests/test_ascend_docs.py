"""docs/ascend.md lists every Ascend-only call of the code, and none that is not there."""

import inspect
import re
from pathlib import Path

import ascend_contracts
import pytest
from mindspore import ops

from qwen3_model.network.kernels import ascend as ascend_kernels
from qwen3_model.ranks import collectives

DOCS = Path(__file__).parents[3] / "docs/ascend.md"
# What `ascend_kernels` takes from `ops` that a CPU has, too, and runs in other tests.
ON_EVERY_DEVICE = {"MatMul", "Concat", "depend"}
# What stands for an operator of a CPU because of its kernel; docs/ascend.md has a table of its own for these.
FOR_THEIR_KERNEL = {
    "InplaceCopy", "InplaceAddExt", "InplaceMul", "InplaceZero", "InplaceScatterAdd", "SliceExt",
}  # fmt: skip
# Checked with the optimizer, by its own formula.
OPTIMIZER = {"auto_generate.AdamW"}
COLLECTIVES = {"AllReduce", "AllGather", "ReduceScatter", "Send", "Receive"}


def calls(module):
    return set(re.findall(r"\bops\.((?:auto_generate\.)?\w+)\(", inspect.getsource(module)))


@pytest.fixture(scope="module")
def table():
    if not DOCS.is_file():
        pytest.skip("the package is tested without the checkout's docs")
    rows = [
        line.split("|")[1:-1] for line in DOCS.read_text(encoding="utf-8").splitlines() if "`ops." in line
    ]
    return {row[0].strip().strip("`").removeprefix("ops."): row for row in rows if len(row) == 7}


def test_the_table_has_each_call_of_the_code(table):
    chosen = {f"auto_generate.{name}" for name in FOR_THEIR_KERNEL}
    found = calls(ascend_kernels)
    assert found >= chosen | OPTIMIZER
    fused = found - ON_EVERY_DEVICE - chosen - OPTIMIZER
    exchanged = calls(collectives) & COLLECTIVES
    assert exchanged == COLLECTIVES
    assert set(table) == fused | exchanged | OPTIMIZER
    text = DOCS.read_text(encoding="utf-8")
    assert [name for name in FOR_THEIR_KERNEL if f"`{name}`" not in text] == []
    assert {name.rpartition(".")[2] for name in fused} == set(ascend_contracts.OPERATORS)


def test_the_table_has_mindspores_argument_names(table):
    for name, (where, _) in ascend_contracts.OPERATORS.items():
        documented = "auto_generate." * (where is ops.auto_generate) + name
        named = re.search(r"`\((.*?)\)`", table[documented][1])[1].split(", ")
        known = list(inspect.signature(getattr(where, name)).parameters)
        assert [each for each in known if each in named] == named, name


def test_nothing_is_said_to_have_run_on_hardware(table):
    assert {row[-1].strip() for row in table.values()} == {"no"}
