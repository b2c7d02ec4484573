"""The first-run checklist: real workers on the CPU, an Ascend's folders made up."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from qwen3_model.ranks.msrun.checks import LaunchSettings
from qwen3_model.ranks.msrun.cli_options import free_port
from qwen3_train.doctor import checks as doctor_checks
from qwen3_train.doctor import doctor
from qwen3_train.doctor.ascend import ASCEND_CHECKS, accepted_versions
from qwen3_train.doctor.checks import machine_findings
from qwen3_train.doctor.finding import FAIL, PASS, SKIPPED

LONGEST_S = 300
PROGRAM = "from qwen3_train.cli import main; main()"
ON_DEVICE = ("device", "collective", "step")
FOUND = {
    "mindspore": "2.10.0",
    "product_error": 1e-7,
    "sum": {"is_right": True, "seconds": 0.1, "gb_per_s": 0.17},
    "steps": [{"loss": loss, "grad_norm": doctor.GRAD_NORM, "seconds": 1.0} for loss in doctor.LOSSES],
    "memory_gb": 0.5,
}


def run_doctor(tmp_path, *options):
    command = [sys.executable, "-c", PROGRAM, "doctor", "--json", "--device", "CPU", *options]
    done = subprocess.run(
        [*command, "--output-dir", str(tmp_path / "out")],
        capture_output=True, text=True, check=False, timeout=LONGEST_S,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return done, {line["what"]: line for line in lines}


def launch(tmp_path, **changes):
    one = LaunchSettings(worker_num=1, local_worker_num=1, log_dir=tmp_path / "log")
    return replace(one, **changes)


def states(findings):
    return {finding.what: finding.state for finding in findings}


@pytest.mark.slow
def test_two_workers_add_up_and_train_to_the_known_losses(tmp_path):
    port = free_port()
    done, found = run_doctor(tmp_path, "--worker-num", "2", "--master-port", str(port))
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(found[what]["state"] == PASS for what in (*ON_DEVICE, "ports", "mindspore", "disk"))
    assert all(found[what]["state"] == SKIPPED for what in ("npu", "driver", "cann", "hccl"))
    assert "over 2 ranks" in found["collective"]["text"]
    assert "GB/s" in found["collective"]["text"]


@pytest.mark.slow
def test_one_process_trains_to_the_same_losses(tmp_path):
    done, found = run_doctor(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [found[what]["state"] for what in ON_DEVICE] == [PASS, SKIPPED, PASS]


def test_a_port_in_use_fails_before_any_worker_starts(tmp_path):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        done, found = run_doctor(tmp_path, "--worker-num", "2", "--master-port", port)
    assert done.returncode == 1
    assert found["ports"]["state"] == FAIL
    assert "is in use; choose another" in found["ports"]["remedy"]
    assert all(found[what]["state"] == SKIPPED for what in ON_DEVICE)


def test_a_device_that_stands_still_is_given_up(tmp_path):
    # Importing MindSpore alone takes longer than a second.
    done, found = run_doctor(tmp_path, "--time-out", "1")
    assert done.returncode == 1
    assert found["device"]["state"] == FAIL
    assert "did not end within 1 s" in found["device"]["text"]


def test_a_process_that_dies_is_named_with_its_last_words(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "machine_findings", lambda *_: iter(()))
    environment = dict(os.environ) | {"RANK_ID": "none"}
    found = list(doctor.examine("CPU", launch(tmp_path), tmp_path, environment, time_out_s=LONGEST_S))
    assert [each.state for each in found] == [FAIL, SKIPPED, SKIPPED]
    assert "ended with exit code 1: ValueError: invalid literal" in found[0].text


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({}, set()),
        ({"product_error": 0.1}, {"device"}),
        ({"sum": {"is_right": False, "seconds": 0.1, "gb_per_s": 0.1}}, {"collective"}),
        ({"steps": [FOUND["steps"][0], FOUND["steps"][1] | {"loss": doctor.LOSSES[1] + 0.1}]}, {"step"}),
        ({"steps": [FOUND["steps"][0] | {"grad_norm": 4.0}, FOUND["steps"][1]]}, {"step"}),
        ({"steps": [FOUND["steps"][0], FOUND["steps"][1] | {"loss": float("nan")}]}, {"step"}),
    ],
)
@pytest.mark.parametrize("device", ["CPU", "Ascend"])
def test_what_the_workers_found_is_judged(device, change, failing):
    findings = list(doctor._judge(device, 2, FOUND | change))
    assert {each.what for each in findings if each.state == FAIL} == failing
    assert all(each.remedy for each in findings if each.state == FAIL)


@pytest.fixture
def ascend(tmp_path, monkeypatch):
    """An Ascend machine as far as files go; returns its environment."""
    cann, tools = tmp_path / "cann", tmp_path / "bin"
    (cann / "x86_64-linux/lib64").mkdir(parents=True)
    tools.mkdir()
    version = f"{accepted_versions()[0]}.RC1"
    (cann / "x86_64-linux/ascend_toolkit_install.info").write_text(f"package_name=x\nversion={version}\n")
    for package in ("hccl", "te"):
        (tmp_path / f"packages/{package}").mkdir(parents=True)
        (tmp_path / f"packages/{package}/__init__.py").touch()
    (cann / "x86_64-linux/lib64/libhccl.so").touch()
    (tools / "npu-smi").write_text("#!/bin/sh\necho '| npu-smi 24.1 Version: 24.1.rc2 |'\n")
    (tools / "npu-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return {
        "ASCEND_HOME_PATH": str(cann), "ASCEND_RT_VISIBLE_DEVICES": "0,1",
        "PYTHONPATH": str(tmp_path / "packages"),
    }  # fmt: skip


def test_an_ascend_machine_that_has_everything_passes(tmp_path, ascend):
    found = {each.what: each for each in machine_findings("Ascend", launch(tmp_path), tmp_path, ascend)}
    assert all(found[what].state == PASS for what in ASCEND_CHECKS)
    assert found["cann"].text.startswith(f"{accepted_versions()[0]}.RC1 at")
    assert found["driver"].text == "npu-smi 24.1.rc2"


def test_what_an_ascend_machine_lacks_fails_with_a_remedy(tmp_path, ascend, monkeypatch):
    found = states(machine_findings("Ascend", launch(tmp_path, local_worker_num=8), tmp_path, ascend))
    assert found["npu"] == FAIL
    (tmp_path / "cann/x86_64-linux/lib64/libhccl.so").unlink()
    (tmp_path / "bin/npu-smi").write_text("#!/bin/sh\nexit 3\n")
    findings = list(machine_findings("Ascend", launch(tmp_path), tmp_path, ascend))
    assert [states(findings)[what] for what in ("driver", "cann", "hccl")] == [FAIL, PASS, FAIL]
    monkeypatch.setattr("qwen3_model.device.cann.CANN_DIR", tmp_path / "cann")
    without = {"ASCEND_RT_VISIBLE_DEVICES": "0"}
    found = {each.what: each for each in machine_findings("Ascend", launch(tmp_path), tmp_path, without)}
    assert found["cann"].state == FAIL
    assert "set_env.sh" in found["cann"].remedy


def test_a_cann_that_this_mindspore_does_not_accept_fails(tmp_path, ascend):
    assert all(re.fullmatch(r"\d\.\d", version) for version in accepted_versions())
    (tmp_path / "cann/compiler").mkdir()
    (tmp_path / "cann/compiler/version.info").write_text("Version=7.0.0.1\n")  # MindSpore's own place
    found = {each.what: each for each in machine_findings("Ascend", launch(tmp_path), tmp_path, ascend)}
    assert found["cann"].state == FAIL
    assert "7.0.0.1 at" in found["cann"].text
    assert accepted_versions()[0] in found["cann"].remedy


def test_a_package_of_cann_that_cannot_be_imported_fails_with_pythons_words(tmp_path, ascend):
    (tmp_path / "packages/te/__init__.py").write_text("raise OSError('libtvm.so: cannot open')")
    found = {each.what: each for each in machine_findings("Ascend", launch(tmp_path), tmp_path, ascend)}
    assert (found["import hccl"].state, found["import te"].state) == (PASS, FAIL)
    assert found["import te"].text == "OSError: libtvm.so: cannot open"
    assert "set_env.sh" in found["import te"].remedy
    shutil.rmtree(tmp_path / "packages/hccl")
    found = {each.what: each for each in machine_findings("Ascend", launch(tmp_path), tmp_path, ascend)}
    assert found["import hccl"].text == "ModuleNotFoundError: No module named 'hccl'"


def test_a_dry_run_asks_for_no_device(tmp_path, ascend):
    dry = ascend | {"MS_SIMULATION_LEVEL": "1"}
    found = states(machine_findings("Ascend", launch(tmp_path), tmp_path, dry))
    assert all(found[what] == SKIPPED for what in ASCEND_CHECKS)


@pytest.mark.parametrize(
    ("mindspore", "numpy", "failing"),
    [
        ("2.8.0", "1.26.4", set()),
        ("2.7.2", "1.26.4", {"mindspore"}),
        ("2.11.0", "2.1.0", {"mindspore", "numpy"}),
        (None, "1.26.4", {"mindspore"}),
    ],
)
def test_versions_outside_the_range_fail(tmp_path, monkeypatch, mindspore, numpy, failing):
    versions = {"mindspore": mindspore, "numpy": numpy}
    monkeypatch.setattr(doctor_checks, "_version", lambda name: versions.get(name, "0.1.0"))
    found = states(machine_findings("CPU", launch(tmp_path), tmp_path, {}))
    assert {what for what in ("mindspore", "numpy", "packages") if found[what] == FAIL} == failing


def test_too_little_room_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_checks, "LEAST_DISK_GB", 1e9)
    monkeypatch.setattr(doctor_checks, "LEAST_MEMORY_GB", 1e9)
    found = states(machine_findings("CPU", launch(tmp_path), tmp_path / "not/yet/there", {}))
    assert (found["disk"], found["memory"]) == (FAIL, FAIL)


def test_a_folder_that_cannot_be_written_to_is_a_line_with_a_remedy_and_no_end_of_the_list(tmp_path):
    (tmp_path / "file").write_text("a folder is wanted")
    done, found = run_doctor(tmp_path / "file")
    assert done.returncode == 1, done.stdout + done.stderr
    assert found["disk"]["state"] == FAIL
    assert "cannot be written to: Not a directory" in found["disk"]["text"]
    assert "choose another --output-dir" in found["disk"]["remedy"]
    assert found["device"]["state"] == FAIL
    assert {found[what]["state"] for what in ("collective", "step")} == {SKIPPED}
