"""mindformers' fused weights: their names, shapes, and how rows of q, k, v, gate and up lie in them.

Attention: for each key/value group, its query heads' rows, then its key rows, then its value rows
("grouped"), or all of q, then k, then v ("contiguous"). Feed-forward: rows of gate and up in turn
("interleaved"), or all of gate, then up ("contiguous"). Shapes cannot tell one from the other; mindformers'
training default is grouped and interleaved (`use_contiguous_weight_layout_attention: False`,
`use_interleaved_weight_layout_mlp: True`).
"""

import re
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qwen3_model.config import Qwen3Config
from qwen3_model.rank_tensors import RankTensors, Slices
from qwen3_model.safetensors_file import SafetensorsFile

TO_FUSED_TOP = {
    "model.embed_tokens.weight": "embedding.word_embeddings.weight",
    "model.norm.weight": "decoder.final_layernorm.weight",
    "lm_head.weight": "output_layer.weight",
}
TO_FUSED_LAYER = {
    "input_layernorm": "input_layernorm",
    "self_attn.o_proj": "self_attention.linear_proj",
    "self_attn.q_norm": "self_attention.q_layernorm",
    "self_attn.k_norm": "self_attention.k_layernorm",
    "post_attention_layernorm": "pre_mlp_layernorm",
    "mlp.down_proj": "mlp.linear_fc2",
}
QKV, FC1 = "self_attention.linear_qkv", "mlp.linear_fc1"
FUSED_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)\.weight")
MOMENTS = ("adam_m.", "adam_v.")


@dataclass(frozen=True, slots=True)
class Run:
    """Rows start, start + step, ... below stop."""

    start: int
    stop: int
    step: int = 1

    def __len__(self) -> int:
        return len(range(self.start, self.stop, self.step))


@dataclass(frozen=True, slots=True)
class FusedLayout:
    """Which of the row orders a checkpoint has."""

    contiguous_qkv: bool = False
    """q, k, v one below the other instead of grouped."""
    interleaved_mlp: bool = True
    """gate and up row by row instead of one below the other."""


class Tensors(Protocol):
    """Tensors under their names, of which any part can be read; see `RankTensors`."""

    first: SafetensorsFile

    def __contains__(self, name: str) -> bool: ...

    def names(self) -> list[str]:
        """Return the names of all tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the whole tensor."""

    def dtype(self, name: str) -> str:
        """Return safetensors' dtype."""

    def release(self, name: str) -> None:
        """Take what was read of a tensor out of this process's memory again."""

    def read(self, name: str, wanted: Slices) -> tuple[str, NDArray[Any]]:
        """Return safetensors' dtype and the wanted part."""


class UnfusedTensors:
    """mindformers' weights and their moments, whole or cut by ranks, under the model's own names."""

    def __init__(self, tensors: RankTensors, config: Qwen3Config, layout: FusedLayout) -> None:
        self._tensors, self.first = tensors, tensors.first
        parts: dict[str, list[Run]] = qkv_runs(config, layout)
        parts |= {part: [run] for part, run in mlp_runs(config, layout).items()}
        self._sources: dict[str, tuple[str, list[Run] | None]] = {}
        for theirs in tensors.names():
            moment = next((prefix for prefix in MOMENTS if theirs.startswith(prefix)), "")
            ours = split_name(theirs.removeprefix(moment))
            for name in ours:
                self._sources[moment + name] = theirs, parts[_part(name)] if len(ours) > 1 else None

    def __contains__(self, name: str) -> bool:
        return name in self._sources

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self._sources)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the whole tensor."""
        theirs, runs = self._sources[name]
        shape = self._tensors.shape(theirs)
        return shape if runs is None else (sum(len(run) for run in runs), *shape[1:])

    def dtype(self, name: str) -> str:
        """Return safetensors' dtype."""
        return self._tensors.dtype(self._sources[name][0])

    def release(self, name: str) -> None:
        """Take what was read of a tensor, and of what lies with it, out of this process's memory again."""
        self._tensors.release(self._sources[name][0])

    def read(self, name: str, wanted: Slices) -> tuple[str, NDArray[Any]]:
        """Return safetensors' dtype and the wanted part, which lies in one or several runs of rows.

        Raises:
            FormatError: A part is in none of the files.
        """
        theirs, runs = self._sources[name]
        if runs is None:
            return self._tensors.read(theirs, wanted)
        pieces, dtype, first = [], "", 0
        for run in runs:
            begin, end = max(wanted[0].start, first) - first, min(wanted[0].stop, first + len(run)) - first
            first += len(run)
            if begin < end:
                rows = slice(run.start + begin * run.step, run.start + (end - 1) * run.step + 1)
                dtype, piece = self._tensors.read(theirs, (rows, *wanted[1:]))
                pieces.append(piece[:: run.step])
        return dtype, pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _part(name: str) -> str:
    return name.split(".")[-2].removesuffix("_proj")


def unfused(tensors: RankTensors, config: Qwen3Config, layout: FusedLayout) -> Tensors:
    """Return the tensors under the model's own names, if mindformers named them; else as they are."""
    is_fused = any(FUSED_LAYER.fullmatch(name) for name in tensors.names())
    return UnfusedTensors(tensors, config, layout) if is_fused else tensors


def fused_shapes(config: Qwen3Config) -> dict[str, tuple[int, ...]]:
    """Return mindformers' names and shapes for the model, in its order."""
    shapes = config.weight_shapes()
    hidden, group = config.hidden_size, (config.num_heads // config.num_kv_heads + 2) * config.head_dim
    fused = {}
    for name, shape in shapes.items():
        if name in TO_FUSED_TOP:
            fused[TO_FUSED_TOP[name]] = shape
    for layer in range(config.num_layers):
        for ours, theirs in TO_FUSED_LAYER.items():
            fused[f"decoder.layers.{layer}.{theirs}.weight"] = shapes[f"model.layers.{layer}.{ours}.weight"]
        fused[f"decoder.layers.{layer}.{QKV}.weight"] = (group * config.num_kv_heads, hidden)
        fused[f"decoder.layers.{layer}.{FC1}.weight"] = (2 * config.intermediate_size, hidden)
    return fused


def split_name(fused_name: str) -> list[str]:
    """Return the names of ours that a name of mindformers' covers; an unknown name covers itself."""
    for ours, theirs in TO_FUSED_TOP.items():
        if fused_name == theirs:
            return [ours]
    match = FUSED_LAYER.fullmatch(fused_name)
    if not match:
        return [fused_name]
    leaves = [ours for ours, theirs in TO_FUSED_LAYER.items() if theirs == match[2]]
    if match[2] == QKV:
        leaves = [f"self_attn.{part}_proj" for part in "qkv"]
    elif match[2] == FC1:
        leaves = ["mlp.gate_proj", "mlp.up_proj"]
    return [f"model.layers.{match[1]}.{leaf}.weight" for leaf in leaves] or [fused_name]


def qkv_runs(config: Qwen3Config, layout: FusedLayout) -> dict[str, list[Run]]:
    """Return, for q, k and v, their rows in the fused weight, in order."""
    head, kv = config.head_dim, config.num_kv_heads
    q_rows = config.num_heads // kv * head  # of one group
    if layout.contiguous_qkv:
        q, k = q_rows * kv, head * kv
        return {"q": [Run(0, q)], "k": [Run(q, q + k)], "v": [Run(q + k, q + 2 * k)]}
    group = q_rows + 2 * head
    starts = range(0, group * kv, group)
    return {
        "q": [Run(start, start + q_rows) for start in starts],
        "k": [Run(start + q_rows, start + q_rows + head) for start in starts],
        "v": [Run(start + q_rows + head, start + group) for start in starts],
    }


def mlp_runs(config: Qwen3Config, layout: FusedLayout) -> dict[str, Run]:
    """Return the rows of gate and up in the fused weight."""
    width = config.intermediate_size
    if layout.interleaved_mlp:
        return {"gate": Run(0, 2 * width, 2), "up": Run(1, 2 * width, 2)}
    return {"gate": Run(0, width), "up": Run(width, 2 * width)}
