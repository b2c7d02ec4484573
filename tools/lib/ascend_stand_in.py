"""Build stand-ins for CANN's libraries, with which MindSpore's Ascend backend runs on a plain machine.

The wheel lacks nothing but CANN. Which of CANN's functions it needs is read from the wheel itself: symbols
that the plugin leaves undefined, and names that it looks up at run time. `ascend_stand_in.cc` has those that
must answer something; here a body is generated for each of the others.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from qwen3_model.command.private_files import SharedFileError, cache_home, make_private, require_private

TOOLS = {"gcc": "gcc", "g++": "g++", "nm": "binutils", "strings": "binutils", "readelf": "binutils"}
"""Programs that are needed and the Debian package that has each."""
SOURCE = Path(__file__).with_name("ascend_stand_in.cc")
IDLE, IDLE_LIBRARY = SOURCE.with_name("ascend_idle.cc"), "libqwen3_idle.so"
OPENED = (
    "opapi", "opapi_nn", "opapi_math", "opapi_transformer", "cust_opapi", "acl_op_compiler",
    "acl_tdt_channel", "acl_tdt_queue", "ascend_hal", "runtime", "nnopbase", "profapi", "msprof", "dcmi",
    "error_manager", "unified_dlog", "tiling_api", "aicpu_engine_common", "hccl", "atb",
)  # fmt: skip
"""Libraries that are opened at run time; those that are linked against are read from the wheel."""
LOOKED_UP = re.compile(
    r"acl[a-zA-Z]*[A-Z]\w+|Hccl\w+|Hcom\w+|rt[A-Z]\w+|Msprof\w+|hal[A-Z]\w+|drv\w+|InitHugeMem\w+|UnInit\w+"
    r"|ReleaseHuge\w+|PTA\w+|CanUse\w+"
)
NOT_CANN = (
    "Py", "_Py", "_ZNSt", "_ZNKSt", "_ZSt", "_ZTI", "_ZTVN10__cxxabi", "_ITM", "__gmon", "__cxa",
    "_ZN2ge13StatusFactory",
)  # fmt: skip
SYSTEM = ("libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libgomp.so.1")
SHARED = re.compile(
    r"_ZN2ge(10TensorDesc|10TensorType|5Shape|6Tensor|12AscendString|5Graph|11GraphBuffer|7Promote|5GNode)C[12]E"
)
"""Constructors of classes that are one shared pointer, or smaller."""
RETURNS_SHARED = (
    "GetOriginShapeEv", "TensorDesc8GetShapeEv", "GetTensorDescEv", "GetOutputDesc",
    "GetCompiledGraphSummary",
)  # fmt: skip
RETURNS_LIST = ("NodesEv", "NodesAndPortIndexs", "GetDirectNodeEv", "Shape7GetDimsEv")
WORKSPACE = "GetWorkspaceSize"


def missing_tools() -> list[str]:
    """Return what to install before stand-ins can be built."""
    return sorted({package for name, package in TOOLS.items() if shutil.which(name) is None})


def mindspore_folder() -> Path:
    """Return the package of the MindSpore that is installed beside the running interpreter."""
    found = importlib.util.find_spec("mindspore")
    if found is None or found.origin is None:
        raise SystemExit("ascend_dry_run: MindSpore is not installed; run tools/setup")
    return Path(found.origin).parent


def stand_in() -> Path:
    """Return the folder of the stand-ins for the installed MindSpore, built at first use.

    It has cann/lib64 and python, and appears whole or not at all, also when two processes build it.
    """
    try:
        return _stand_in(make_private(cache_home(os.environ) / "qwen3-ascend-dry-run"))
    except SharedFileError as error:
        raise SystemExit(f"ascend_dry_run: {error}") from None


def _stand_in(cache: Path) -> Path:
    sources = SOURCE.read_bytes() + IDLE.read_bytes() + Path(__file__).read_bytes()
    version = importlib.metadata.version("mindspore")
    folder = cache / f"{version}-{platform.machine()}-{hashlib.sha256(sources).hexdigest()[:12]}"
    if folder.is_dir():
        return require_private(folder)
    if missing := missing_tools():
        raise SystemExit(f"ascend_dry_run: needs {' and '.join(missing)}; install them")
    building = Path(tempfile.mkdtemp(prefix="building-", dir=cache))  # 0700
    try:
        _build(building, mindspore_folder() / "lib")
        building.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was quicker
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def stand_in_environment(folder: Path, mindspore: Path) -> dict[str, str]:
    """Return what a process needs to find the stand-ins, and the wheel's own kernels that link to them."""
    own = mindspore / "lib/plugin/ascend"
    libraries = (
        folder / "cann/lib64",
        own / "ms_kernels_internal/asdops/lib",
        own / "ms_kernels_symmetric_memory/shmem/shmem/lib",
    )
    return {
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "LD_PRELOAD": str(folder / "cann/lib64" / IDLE_LIBRARY),
        "PYTHONPATH": str(folder / "python"),
        "ASCEND_HOME_PATH": str(folder / "cann"),
        "ASCEND_OPP_PATH": str(folder / "cann/opp"),
    }


def _build(folder: Path, libraries: Path) -> None:
    target = folder / "cann/lib64"
    target.mkdir(parents=True)
    users = _users(libraries)
    generated = folder / "generated.cc"
    generated.write_text(_bodies(_symbols(libraries, users)), encoding="ascii")
    # The wheel is built with the older layout of std::string.
    compiler = ("g++", "-shared", "-fPIC", "-w", "-O0", "-D_GLIBCXX_USE_CXX11_ABI=0")
    _run(*compiler, SOURCE, generated, "-o", target / "libascendcl.so", "-Wl,-soname,libascendcl.so")
    _run("g++", "-shared", "-fPIC", "-O1", IDLE, "-o", target / IDLE_LIBRARY)
    for name in sorted(_linked(libraries, users) | {f"lib{name}.so" for name in OPENED}):
        _run(
            "gcc", "-shared", "-fPIC", "-x", "c", os.devnull, "-o", target / name, "-L", target,
            "-Wl,--no-as-needed", "-lascendcl", f"-Wl,-soname,{name}",
        )  # fmt: skip
    generated.unlink()
    (folder / "python/hccl").mkdir(parents=True)
    (folder / "python/hccl/__init__.py").touch()
    (folder / "python/hccl/sys_version.py").write_text('__sys_version__ = "8.3.0"\n', encoding="ascii")


def _run(*words: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"ascend_dry_run: {words[0]} failed: {done.stderr.strip()[-600:]}")
    return done.stdout


def _users(libraries: Path) -> list[Path]:
    """Return the wheel's libraries that call CANN."""
    plugin = libraries / "plugin"
    found = [*plugin.glob("libmindspore_*ascend*.so*"), *plugin.glob("ascend/**/*.so")]
    kernels = ("so_kernels", "custom_", "dvpp", "aarch64", "libmindspore_cpu_kernels")
    return [path for path in found if not any(part in str(path) for part in kernels)]


def _linked(libraries: Path, users: Iterable[Path]) -> set[str]:
    """Return the libraries that `users` are linked against and that neither wheel nor system have."""
    needed = {name for path in users for name in re.findall(r"NEEDED.*\[(.+)\]", _run("readelf", "-d", path))}
    here = {path.name for path in libraries.rglob("*.so*")}
    return {
        name for name in needed - here - {"libascendcl.so"} if name.endswith(".so") and "cpython" not in name
    }


def _symbols(libraries: Path, users: list[Path]) -> set[str]:
    """Return the names of functions that CANN would have."""
    here = {name for path in (*users, *libraries.glob("*.so*")) for name in _names(path, "--defined-only")}
    needed = {name for path in users for name in _names(path, "--undefined-only") if "@" not in name}
    system = {name.split("@")[0] for path in _system_libraries() for name in _names(path, "--defined-only")}
    looked_up = {
        word
        for path in (*users, *libraries.glob("libmindspore_*.so"))
        for word in _run("strings", "-n", "4", path).split("\n")
        if LOOKED_UP.fullmatch(word)
    }
    # An aclnn operator is two functions, of which the wheel holds the name of one.
    looked_up |= {
        word + WORKSPACE for word in looked_up if word.startswith("aclnn") and WORKSPACE not in word
    }
    own = set(re.findall(r"\b(\w+)\(", SOURCE.read_text(encoding="ascii")))
    names = ({name.split("@")[0] for name in needed} - here | looked_up) - system - own
    return {name for name in names if not name.startswith(NOT_CANN) and "mindspore" not in name}


def _names(path: Path, kind: str) -> set[str]:
    done = subprocess.run(["nm", "-D", kind, path], capture_output=True, text=True, check=False)
    return {line.split()[-1] for line in done.stdout.splitlines() if line.split()}


def _system_libraries() -> list[Path]:
    listed = _run("/sbin/ldconfig", "-p")
    lines = (line.split(" => ") for line in listed.splitlines() if " => " in line)
    return [Path(path) for name, path in lines if name.split()[0] in SYSTEM]


def _bodies(names: Iterable[str]) -> str:
    """Return C++ with a body for each name, which says what the function has to leave behind."""
    lines = [
        "extern int note_aclnn(bool *noted, const char *name);",
        "struct Shared { void *object, *count; ~Shared() {} };",  # a destructor: returned through memory
        "struct List { void *begin, *end, *room; ~List() {} };",
        "static void idle() {}",
        "static void (*table[18])() = {0, 0, " + "idle, " * 16 + "};",  # of virtual functions
        "static const char nothing[16] = {};",
    ]
    for number, name in enumerate(sorted(names)):
        result, body = _body(name)
        arguments = "void **self" if "self" in body else ""
        lines.append(f'{result} f{number}({arguments}) __asm__("{name}");')
        lines.append(f"{result} f{number}({arguments}) {{ {body} }}")
    return "\n".join([*lines, ""])


def _body(name: str) -> tuple[str, str]:
    if name.startswith("aclnn") and name.endswith(WORKSPACE):
        function = name.removesuffix(WORKSPACE)
        return "int", f'static bool noted; return note_aclnn(&noted, "{function}");'
    if "AscendString9GetStringEv" in name:
        return "const char *", "return nothing;"
    if "ge8OperatorC" in name:
        return "void *", "self[0] = table + 2; self[1] = self[2] = 0; return self;"
    if SHARED.match(name):
        return "void *", "self[0] = self[1] = 0; return self;"
    if "CreateOperator" in name:
        return "List", "return {table + 2, 0, 0};"
    if any(part in name for part in RETURNS_LIST):
        return "List", "return {0, 0, 0};"
    if any(part in name for part in RETURNS_SHARED):
        return "Shared", "return {0, 0};"
    return "long", "return 0;"
