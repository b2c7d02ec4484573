"""MindSpore's own Ascend backend takes every kind of graph that we ship, without CANN and without an NPU."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools/lib"))

import ascend_report  # noqa: E402
import ascend_stand_in  # noqa: E402
from ascend_cases import A2, Case, all_cases, small_cases  # noqa: E402
from ascend_dry_run import real_cann  # noqa: E402
from ascend_inputs import Inputs  # noqa: E402
from ascend_matrix import functions_of, run_case  # noqa: E402

ELSEWHERE = (
    "sequence parallel, full recomputation",  # with adapters; of whole weights with context parallel
    "packed conversations, sequence parallel",  # context parallel has them, other cases sequence parallel
    f"prefill and decode of small, 1 ranks, {A2}",  # as on an A3
)
"""Cases of --small whose graphs the others have."""
CASES = [case for case in small_cases() if case.name not in ELSEWHERE]
MISSING = ascend_stand_in.missing_tools()
needs_compiler = pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}")
TOOL = ROOT / "tools/ascend_dry_run"
LOG = (
    "[INFO] DEVICE(7,7f36,python):{} [mindspore/ccsrc/plugin/ascend/kernel_executor/ascend_kernel_executor.cc"
    ":175] GenerateKernelMod] kernel opname:{}, kernel type:{}\n"
)
"""A line of MindSpore 2.10's log."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return Inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_mindspores_backend_takes_the_graphs_of(case: Case, inputs, tmp_path):
    report = run_case(case, inputs, tmp_path / "case")
    assert report.problems == []
    assert sum(graph.count("aclnn") for graph in report.graphs) > 20
    assert any(graph.count("hccl") for graph in report.graphs) == (case.ranks > 1)
    assert max(graph.peak_bytes or 0 for graph in report.graphs) > 0
    for graph in report.graphs:
        assert_no_forward_pass_too_many(graph, is_full="full recomputation" in case.name)


def assert_no_forward_pass_too_many(graph, *, is_full):
    """Each layer that a graph differentiates is computed once in it, and once more by full recomputation.

    The backward graph of a stage has no forward pass of its own, but the one that it makes again.
    """
    kernels = graph.kernels.get("aclnn", {})
    if layers := kernels.get("FlashAttentionScoreGrad", 0):
        is_anew = graph.name == "Backward"
        assert kernels["FlashAttentionScore"] == layers * (2 if is_full and not is_anew else 1)
        if is_anew:
            # Seven products have two gradients each; the last one's own result is not needed again.
            assert kernels["MatMul"] == layers * (6 + 14)


@pytest.mark.slow
@needs_compiler
def test_mindspore_calls_functions_of_the_list(inputs, tmp_path):
    """Which it calls for an operator, the log of a dry run does not say."""
    (case,) = [case for case in small_cases() if case.name == "sequence parallel, full recomputation"]
    called = functions_of(case, inputs, tmp_path / "case")
    assert len(called) > 20
    assert called <= ascend_report.known_functions()


def test_each_function_of_the_list_is_in_the_wheel_and_documented():
    known = ascend_report.known_operators()
    library = ascend_stand_in.mindspore_folder() / "lib/plugin/libmindspore_ops_ascend.so"
    words = set(re.findall(rb"aclnn[A-Z]\w+", library.read_bytes()))
    for (kind, operator), (function, where) in known.items():
        assert kind in ("aclnn", "aclop", "internal"), operator
        assert where, operator
        if kind == "aclnn":
            assert function.encode() in words, function
            document = where.partition(" ")[2]
            assert function in re.split(r"[/&.]", document), f"{where} is not of {function}"
    assert ("aclnn", "ReshapeAndCache") not in known  # CANN has no such function


def a_report(tmp_path, kernels, *, exit_code=0, graphs=None):
    """Return the report of a run whose only graph was compiled from 10:00:00 to 10:00:09."""
    from datetime import datetime

    start_s = datetime(2026, 1, 2, 10).timestamp()
    path, log = tmp_path / "graphs.jsonl", tmp_path / "log/rank_0/logs"
    log.mkdir(parents=True)
    entry = {"graph": "_WholeStep", "started_s": start_s, "ended_s": start_s + 9, "peak_bytes": 3 << 30}
    path.write_text("".join(json.dumps(each) + "\n" for each in (graphs or [entry])), encoding="utf-8")
    lines = [LOG.format(f"2026-01-02-10:00:{second:02}.123.456", *names) for second, *names in kernels]
    lines.append("Used peak memory usage (without fragments): 100M\n")
    lines.append("Actual peak memory usage (with fragments): 130M\n")
    (log / "mindspore.host.user.log.INFO.20260102-095950.7").write_text("".join(lines), encoding="utf-8")
    facts = {"exit_code": exit_code, "seconds": 12.0, "cpu_seconds": 9.0}
    return ascend_report.make_report(facts, path, tmp_path / "log")


def test_kernels_are_counted_by_kind_in_the_graph_whose_compilation_made_them(tmp_path):
    report = a_report(
        tmp_path,
        [
            (1, "MatMul", "opapi_kernel"), (2, "MatMul", "opapi_kernel"), (3, "Reshape", "rt_kernel"),
            (4, "AllReduce", "hccl_kernel"), (30, "Add", "opapi_kernel"),
        ],
    )  # fmt: skip
    graph, elsewhere = report.graphs
    assert (elsewhere.name, elsewhere.kernels) == ("(elsewhere)", {"aclnn": {"Add": 1}})
    assert graph.kernels == {"aclnn": {"MatMul": 2}, "hccl": {"AllReduce": 1}, "view": {"Reshape": 1}}
    assert (graph.name, graph.seconds, graph.peak_bytes) == ("WholeStep", 9.0, 3 << 30)
    assert report.memory == {"peak_bytes": 100 << 20, "peak_with_fragments_bytes": 130 << 20}
    assert not report.problems
    written = report.to_json()
    assert written["graphs"][0]["kernels"]["aclnn"] == {"MatMul": 2}
    assert written["peak_with_fragments_bytes"] == 130 << 20


def test_what_the_list_does_not_have_is_a_problem(tmp_path):
    kernels = [(1, "ReshapeAndCache", "opapi_kernel"), (2, "Gather", "acl_kernel"), (3, "X", "atb_kernel")]
    assert a_report(tmp_path, kernels).problems == [
        "internal kernels that ascend_operators.tsv does not have: X",
        "aclnn kernels that ascend_operators.tsv does not have: ReshapeAndCache",
        "aclop kernels that ascend_operators.tsv does not have: Gather",
    ]


def test_a_command_or_graph_that_fails_is_a_problem(tmp_path):
    entry = {"graph": "Receive", "started_s": 1.0, "ended_s": 2.0, "error": "Invalid data type size"}
    report = a_report(tmp_path, [], exit_code=1, graphs=[entry])
    assert report.problems == [
        "the command ended with exit code 1", "Receive does not compile: Invalid data type size",
    ]  # fmt: skip
    assert "problem: Receive does not compile" in ascend_report.text_of(report)


def test_every_yaml_and_kind_of_rank_has_a_case():
    cases = list(all_cases())
    names = [case.name for case in cases]
    assert len(names) == len(set(names))
    assert set(ELSEWHERE) < set(names)
    yamls = {path.stem for path in (ROOT / "configs/qwen3").glob("*_4k.yaml")}
    assert yamls <= {case.yaml for case in cases}
    stages = {case.name for case in cases if case.yaml == "pretrain_qwen3_32b_4k" and "stage" in case.name}
    assert {f"pretrain_qwen3_32b_4k, {kind} stage" for kind in ("first", "middle", "last")} <= stages


def test_without_a_compiler_the_tool_says_what_to_install(tmp_path):
    environment = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    command = [sys.executable, "-s", ROOT / "tools/lib/ascend_dry_run.py", "make"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "ascend_dry_run: needs binutils and g++ and gcc; install them\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give a command after --, or make"),
        (["--rank", "2", "--ranks", "2", "--", "qwen3-train"], "--rank 2 is none of --ranks 2"),
    ],
)
def test_a_wrong_command_line_is_a_sentence(arguments, sentence):
    done = subprocess.run(
        [TOOL, *arguments], env=os.environ | {"QWEN3_VENV": sys.prefix}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert sentence in done.stderr


def test_a_cann_whose_environment_is_set_is_used(tmp_path):
    assert real_cann({}) is None
    assert real_cann({"ASCEND_HOME_PATH": str(tmp_path)}) is None
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64/libascendcl.so").touch()
    assert real_cann({"ASCEND_HOME_PATH": str(tmp_path)}) == str(tmp_path)


@needs_compiler
def test_stand_ins_are_built_once_and_for_their_owner_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(ascend_stand_in, "_build", lambda folder, libraries: (folder / "built").touch())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = ascend_stand_in.stand_in()
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(ascend_stand_in, "_build", lambda folder, libraries: pytest.fail("built again"))
    assert ascend_stand_in.stand_in() == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    shutil.rmtree(folder)

    def fails(folder, libraries):
        raise SystemExit("g++ failed")

    monkeypatch.setattr(ascend_stand_in, "_build", fails)
    with pytest.raises(SystemExit):
        ascend_stand_in.stand_in()
    assert not list(tmp_path.glob("*/*"))
