"""Compiling C++ at its first use: once, for its owner alone, and told in one sentence when it fails."""

import ctypes
import os
import shutil
import stat
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from qwen3_model.device.native_build import BuildError, compiled_library

NO_COMPILER = r"^there is no C\+\+ compiler; install g\+\+$"

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")


@pytest.fixture
def sources(tmp_path):
    (tmp_path / "three.h").write_text("constexpr int three = 3;\n", "ascii")
    (tmp_path / "kernels.cc").write_text(
        '#include "three.h"\nextern "C" int f() { return three; }\n', "ascii"
    )
    return [tmp_path / "kernels.cc", tmp_path / "three.h"]


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def make_compiler(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return [str(path)]


@needs_compiler
def test_the_library_is_compiled_once(sources, cache):
    first = compiled_library(sources, cache)
    made = first.stat().st_mtime_ns
    assert ctypes.CDLL(str(first)).f() == 3
    assert compiled_library(sources, cache, compilers=["no-compiler"]) == first
    assert first.stat().st_mtime_ns == made
    assert [path.name for path in cache.iterdir()] == [first.name]


@needs_compiler
@pytest.mark.parametrize("changed", ["header", "flags"])
def test_another_source_or_flag_is_another_library(sources, cache, changed):
    first = compiled_library(sources, cache)
    if changed == "header":
        sources[1].write_text("constexpr int three = 4;\n", "ascii")
        assert ctypes.CDLL(str(compiled_library(sources, cache))).f() == 4
    else:
        assert compiled_library(sources, cache, flags=["-shared", "-fPIC"]) != first


def test_without_a_compiler_the_reason_is_one_sentence(sources, cache):
    with pytest.raises(BuildError, match=NO_COMPILER):
        compiled_library(sources, cache, compilers=["no-compiler"])


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(sources, cache, tmp_path):
    compilers = make_compiler(tmp_path / "compiler", "echo 'unknown flag' >&2\nexit 3")
    with pytest.raises(BuildError, match="cannot compile the native kernels: unknown flag"):
        compiled_library(sources, cache, compilers=compilers)
    assert list(cache.iterdir()) == []


def test_a_compiler_that_takes_too_long_ends_with_all_that_it_started(sources, cache, tmp_path):
    alive = tmp_path / "alive"
    script = f'(while :; do date +%s%N > "{alive}"; sleep 0.05; done) &\nwait'
    compilers = make_compiler(tmp_path / "compiler", script)
    with pytest.raises(BuildError, match="took more than 2 s for the native kernels"):
        compiled_library(sources, cache, compilers=compilers, timeout_s=2)
    last = alive.read_text("ascii")
    time.sleep(0.3)
    assert alive.read_text("ascii") == last
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_one_sentence(sources, tmp_path):
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(BuildError, match="the native kernels cannot be kept or loaded"):
        compiled_library(sources, tmp_path / "file" / "cache")


@needs_compiler
def test_the_library_is_the_owners_alone_whatever_the_umask(sources, cache):
    before = os.umask(0)
    try:
        library = compiled_library(sources, cache)
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (library, library.parent)] == [0o700, 0o700]


@needs_compiler
def test_a_library_that_others_could_have_written_is_not_loaded(sources, cache):
    compiled_library(sources, cache).chmod(0o666)
    with pytest.raises(BuildError, match="can be written by others"):
        compiled_library(sources, cache)


@needs_compiler
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_library_that_another_user_planted_does_not_run(sources):
    shared = Path(tempfile.mkdtemp())
    shared.chmod(0o1777)
    try:
        name = compiled_library(sources, shared / "own").name
        body = f'__attribute__((constructor)) void f() {{ fopen("{shared}/RAN", "w"); }}'
        (shared / "evil.c").write_text(f"#include <stdio.h>\n{body}\n", "ascii")
        command = f"umask 022; mkdir cache && cc -shared -fPIC -o cache/{name} evil.c"
        subprocess.run(["/bin/sh", "-c", command], check=True, user=65534, group=65534, cwd=shared)
        with pytest.raises(BuildError, match="belongs to another user"):
            compiled_library(sources, shared / "cache")
        assert not (shared / "RAN").exists()
        ctypes.CDLL(str(shared / "cache" / name))
        assert (shared / "RAN").exists()  # it would have
    finally:
        shutil.rmtree(shared)
