"""What a run's YAML asks of an Ascend device itself: which one, its memory, levels and precision.

Nothing here has run on the hardware; `docs/ascend.md` names each call. MindSpore is imported when a device
is chosen.
"""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from qwen3_model.command.keys import Key, Schema
from qwen3_model.command.narrow import as_int, as_text, optional
from qwen3_model.command.run_config import RunConfig
from qwen3_model.command.spellings import read_device
from qwen3_model.errors import ConfigError

PRECISION_MODES = (
    "force_fp16", "allow_fp32_to_fp16", "allow_mix_precision", "must_keep_origin_dtype", "force_fp32",
    "allow_fp32_to_bf16", "allow_mix_precision_fp16", "allow_mix_precision_bf16",
)  # fmt: skip
LEVELS = ("O0", "O1")

_ASCEND, _NO_EFFECT = Key(effect="ascend"), Key(effect="none")
CONTEXT_SCHEMA: Schema = {
    "device_target": Key((str,), ("CPU", "Ascend"), spelled=read_device),
    "device_id": Key((int,), effect="ascend"),
    "max_device_memory": Key((str,), effect="ascend"),
    "memory_optimize_level": Key((str,), LEVELS, effect="ascend"),
    "jit_config": {
        "jit_level": Key((str,), ("O0", "O1", "O2"), effect="ascend"),
        # Deprecated in MindSpore; our graphs need no kernel that comes with it.
        "infer_boost": Key((str,), ("on", "off"), effect="none"),
    },
    "ascend_config": {
        "precision_mode": Key((str,), PRECISION_MODES, effect="ascend"),
        "parallel_speed_up_json_path": _NO_EFFECT, "jit_compile": _NO_EFFECT, "ge_options": _NO_EFFECT,
        "matmul_allow_hf32": _NO_EFFECT, "conv_allow_hf32": _NO_EFFECT, "op_precision_mode": _NO_EFFECT,
        "op_debug_option": _NO_EFFECT, "atomic_clean_policy": _NO_EFFECT, "exception_dump": _NO_EFFECT,
        "host_scheduling_max_threshold": _NO_EFFECT, "hccl_watchdog": _NO_EFFECT,
    },
    # Deprecated in MindSpore, which says jit_level O1 instead.
    "enable_graph_kernel": _NO_EFFECT, "affinity_cpu_list": _NO_EFFECT,
    "save_graphs": _NO_EFFECT, "save_graphs_path": _NO_EFFECT, "max_call_depth": _NO_EFFECT,
}  # fmt: skip
"""The keys of `context` that training and prediction have alike."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AscendSettings:
    """Settings of the device, made before anything runs; None leaves MindSpore's own."""

    device_id: int | None = None
    """Device number of one process alone; msrun gives each worker its own."""
    max_memory: str | None = None
    """Largest memory pool, such as 58GB."""
    memory_optimize_level: str | None = None
    jit_level: str | None = None
    precision_mode: str | None = None
    float32_residual: bool = False
    """Whether the layers add to float32 and not to bfloat16."""
    work_dir: Path | None = None
    """Folder for what MindSpore otherwise writes into the working directory: rank_N, offload, graphs."""


def read_ascend_settings(
    config: RunConfig, device_target: str, worker_num: int, *, work_dir: Path | None = None
) -> AscendSettings:
    """Return what `context` says of the device.

    Args:
        config: The YAML.
        device_target: CPU or Ascend.
        worker_num: Processes of the job.
        work_dir: Folder for what MindSpore writes by itself.

    Raises:
        ConfigError: The memory is no amount, the device's number is negative, or on Ascend another compute
            type is asked for than the one that is implemented there.
    """
    memory = optional(as_text, config.get("context.max_device_memory"))
    device_id = optional(as_int, config.get("context.device_id"))
    if memory is not None and not _is_amount(memory):
        raise ConfigError(f"context.max_device_memory={memory!r} is no amount of memory; write it like 58GB")
    if device_id is not None and device_id < 0:
        raise ConfigError(f"context.device_id={device_id} must be at least 0")
    compute = config.get("model.model_config.compute_dtype", "bfloat16")
    if device_target == "Ascend" and compute != "bfloat16":
        raise ConfigError(
            f"model.model_config.compute_dtype={compute} is not implemented on Ascend; use bfloat16"
        )
    return AscendSettings(
        device_id=device_id if worker_num == 1 else None,
        max_memory=memory,
        memory_optimize_level=optional(as_text, config.get("context.memory_optimize_level")),
        jit_level=optional(as_text, config.get("context.jit_config.jit_level")),
        precision_mode=optional(as_text, config.get("context.ascend_config.precision_mode")),
        float32_residual=has_float32_residual(config),
        work_dir=work_dir,
    )


def has_float32_residual(config: RunConfig) -> bool:
    """Return what `fp32_residual_connection` says, or its older name `residual_dtype`.

    Raises:
        ConfigError: The two contradict each other.
    """
    section = "model.model_config"
    stated, dtype = config.get(f"{section}.fp32_residual_connection"), config.get(f"{section}.residual_dtype")
    if stated is not None and dtype is not None and stated != (dtype == "float32"):
        raise ConfigError(
            f"{section}: fp32_residual_connection={stated} and residual_dtype={dtype} contradict each other; "
            "give the first alone"
        )
    return bool(stated) or dtype == "float32"


def choose_device(target: str, ascend: AscendSettings | None = None) -> None:
    """Choose CPU or Ascend, the latter with its settings; again in the same process it changes nothing.

    Raises:
        ConfigError: MindSpore has no backend for Ascend, or not for that device.
    """
    import mindspore as ms

    if ascend is not None and ascend.work_dir is not None:
        # Where MindSpore writes a graph that does not compile; it has no call for it.
        os.environ.setdefault("MS_OM_PATH", str(ascend.work_dir))  # noqa: TID251
    if target == "Ascend":
        _choose_ascend(ascend or AscendSettings())
    elif ms.get_context("device_target") != target:  # MindSpore refuses the call once it has computed
        ms.set_device(target)


@cache  # MindSpore takes the memory's settings once in a process.
def _choose_ascend(ascend: AscendSettings) -> None:
    import mindspore as ms

    if ascend.work_dir is not None:
        _write_into(ascend.work_dir)
    from qwen3_model.device.ascend_gradients import add_gradients_by_add

    add_gradients_by_add()

    try:
        if ascend.device_id is None:
            ms.set_device("Ascend")
        else:
            ms.set_device("Ascend", ascend.device_id)
    except RuntimeError as error:  # its later lines are a stack of C++
        reason = str(error).strip().splitlines()[0].partition(". ")[0].rstrip(".")
        raise ConfigError(f"MindSpore cannot use an Ascend: {reason}; see that CANN is set up") from error
    memory = {"max_size": ascend.max_memory, "optimize_level": ascend.memory_optimize_level}
    if any(memory.values()):
        ms.runtime.set_memory(**{name: value for name, value in memory.items() if value})
    if ascend.jit_level is not None:
        ms.set_context(jit_config={"jit_level": ascend.jit_level})
    if ascend.precision_mode is not None:
        ms.device_context.ascend.op_precision.precision_mode(ascend.precision_mode)


def _write_into(folder: Path) -> None:
    """Keep what MindSpore writes by itself out of the working directory."""
    import mindspore as ms
    from mindspore._c_expression import OffloadContext

    ms.set_context(save_graphs_path=str(folder))
    # MindSpore makes this folder although nothing is offloaded; newer versions have no public call for it.
    OffloadContext.get_instance().set_offload_path(str(folder / "offload"))


def _is_amount(text: str) -> bool:
    number = text.removesuffix("GB")
    return text.endswith("GB") and number.replace(".", "", 1).isdecimal() and float(number) > 0
