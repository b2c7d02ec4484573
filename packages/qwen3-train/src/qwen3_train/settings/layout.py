"""The grid of ranks that `parallel_config` asks for."""

from collections.abc import Mapping

from qwen3_model.command.narrow import as_int
from qwen3_model.command.run_config import RunConfig
from qwen3_model.errors import ConfigError
from qwen3_model.ranks.layout import Layout

GATHERING = "colossalai_cp"
"""mindformers' name of context parallelism that gathers keys and values of the whole sequence."""


def read_layout(config: RunConfig) -> Layout:
    """Return the grid; one rank where `use_parallel` is not True.

    Raises:
        ConfigError: A number is below 1, or something is asked for that is not implemented.
    """
    if not config.get("use_parallel", False):
        return Layout()
    section = config.section("parallel_config")
    _refuse_numbers_below_one(section)
    stages = as_int(section.get("pipeline_stage", 1))
    if stages > 1:
        _refuse_interleaved_stages(config)
    cp = _context_parallel(section)
    return Layout(
        dp=as_int(section.get("data_parallel", 1)) * cp,
        cp=cp,
        tp=as_int(section.get("model_parallel", 1)),
        pp=stages,
        sequence_parallel=bool(section.get("use_seq_parallel")),
    )


def reads_once(config: RunConfig, device: str) -> bool:
    """Return whether one replica reads a weight and sends it to the others.

    `parallel.parameter_broadcast` decides; where it is left out, Ascend does, and a CPU, with sums slower
    than its files, does not.
    """
    stated = config.get("parallel.parameter_broadcast")
    return bool(device == "Ascend" if stated is None else stated)


def _refuse_numbers_below_one(section: Mapping[str, object]) -> None:
    keys = ("data_parallel", "model_parallel", "pipeline_stage", "context_parallel", "micro_batch_num")
    values = ((key, as_int(section.get(key, 1))) for key in keys)
    if low := [f"parallel_config.{key}={value}" for key, value in values if value < 1]:
        raise ConfigError("; ".join(f"{each} must be at least 1" for each in low))


def _context_parallel(section: Mapping[str, object]) -> int:
    number, algorithm = as_int(section.get("context_parallel", 1)), section.get("context_parallel_algo")
    if number == 1:
        return 1
    if algorithm not in (None, GATHERING):
        raise ConfigError(
            f"parallel_config.context_parallel_algo={algorithm!r} is not implemented; use {GATHERING}, which "
            "gathers keys and values over the ranks that share a sequence"
        )
    return number


def _refuse_interleaved_stages(config: RunConfig) -> None:
    number = config.get("model.model_config.pp_interleave_num")
    if number is not None and number != 1:
        raise ConfigError(
            f"model.model_config.pp_interleave_num={number} is not implemented: each stage has one run of "
            "layers; leave it at 1, and let micro_batch_num be several times pipeline_stage, so that the "
            "pipeline is seldom idle (plan says how long)"
        )
