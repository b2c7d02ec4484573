"""A model in this process: by native kernels alone where they are there, else by MindSpore."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3_infer.device import Device
from qwen3_infer.folder.model_folder import ModelFolder
from qwen3_infer.folder.weights import open_hf_weights
from qwen3_infer.native.build import find_library, rounds_inputs
from qwen3_infer.native.model import NativeModel
from qwen3_infer.schedule.jobs import BatchLimits, tokens_needed
from qwen3_infer.schedule.requests import Request
from qwen3_infer.steps.pieces import round_up
from qwen3_model.checkpoints.adapters import AdapterSet
from qwen3_model.checkpoints.tensors import Tensors
from qwen3_model.config import Qwen3Config

if TYPE_CHECKING:  # it is imported where it computes, and takes seconds
    from qwen3_infer.engine.engine import MindSporeEngine
    from qwen3_infer.engine.models import MindSporeModel
    from qwen3_infer.native.engine import NativeEngine
    from qwen3_model.ranks.shards import Tp


def open_local(
    source: Path | ModelFolder,
    device: Device,
    *,
    quiet: bool,
    note: Callable[[str], None],
    tp: "Tp | None" = None,
) -> "NativeModel | MindSporeModel":
    """Load the weights, of which a rank reads its shard alone.

    Native kernels leave bfloat16 weights as they are stored. An adapter stays beside the weights, in float32.

    Args:
        source: A Hugging Face folder, or what `open_model_folder` has opened.
        device: Where the model runs.
        quiet: Whether progress is left out.
        note: Called with a sentence where native kernels cannot be had.
        tp: This rank among those that share the model out.

    Raises:
        BuildError: Native kernels are asked for and cannot be compiled.
    """
    if isinstance(source, ModelFolder):
        return make_local(
            source.config, source.weights, source.adapter, device, quiet=quiet, note=note, tp=tp
        )
    return make_local(
        Qwen3Config.from_dir(source), open_hf_weights(source), None, device, quiet=quiet, note=note, tp=tp
    )


def make_local(
    config: Qwen3Config,
    weights: Tensors,
    adapter: AdapterSet | None,
    device: Device,
    *,
    quiet: bool,
    note: Callable[[str], None],
    tp: "Tp | None" = None,
) -> "NativeModel | MindSporeModel":
    """Load `weights`, which fit `config`, and `adapter`; see `open_local`."""
    if (tp is None or tp.size == 1) and (library := find_library(device, note)):
        return NativeModel(
            config, weights, adapter, library, rounds_inputs=rounds_inputs(device), quiet=quiet
        )
    from qwen3_infer.engine.models import MindSporeModel, agreed_kernels

    return MindSporeModel(config, weights, adapter, agreed_kernels(device, tp, note), quiet=quiet, tp=tp)


def make_engine(
    folder: ModelFolder,
    requests: Sequence[Request],
    device: Device,
    *,
    limits: BatchLimits,
    quiet: bool,
    note: Callable[[str], None],
    tp: "Tp | None" = None,
) -> "NativeEngine | MindSporeEngine":
    """Load the weights of `folder`, or `tp`'s shard of them, and make room for the longest of `requests`.

    That is room for so many of them at once as `limits` says.

    Raises:
        BuildError: Native kernels are asked for and cannot be compiled.
    """
    model = open_local(folder, device, quiet=quiet, note=note, tp=tp)
    lengths = sorted(map(tokens_needed, requests), reverse=True)
    num_rows, num_tokens = min(limits.num_requests, len(requests)), limits.num_tokens
    if num_tokens is None and (unit := model.room_unit):
        num_tokens = sum(round_up(length, unit) for length in lengths[:num_rows])
    return model.engine(num_rows, lengths[0], num_tokens)
