"""From whatever names, extras and habits a checkpoint has to exactly the model's own weights, in order."""

import math
import re
from collections.abc import Iterator, Mapping

from qwen3_model.checkpoints.fused import MOMENTS, FusedLayout, fused_shapes, is_fused, split_fused, weight_of
from qwen3_model.checkpoints.rows import LazyTensor, cast, equal_rows
from qwen3_model.checkpoints.safetensors_file import FLOAT_DTYPES
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import WeightError

MAX_NAMED = 8
EMBEDDING, TIED_HEAD = "model.embed_tokens.weight", "lm_head.weight"
ADAPTER = re.compile(r"(.+)\.lora_([AB])\.weight")
# torch.compile, FSDP and DDP put these before parts of a name.
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "module.")
# Computed from the config at each start; transformers and vLLM skip them, too.
BUFFERS = re.compile(r"(?:.*\.)?rotary_emb\.(?:inv_freq|original_inv_freq|cos_cached|sin_cached)")


def model_weights(
    tensors: Mapping[str, LazyTensor],
    config: Qwen3Config,
    layout: FusedLayout = FusedLayout(),  # noqa: B008
) -> dict[str, LazyTensor]:
    """Return exactly the model's weights under Hugging Face's names, in the model's order.

    Left out are optimizer state and counters, rotary buffers, and a tied model's output layer where it equals
    the embedding. Names with a wrapper's prefix, or without the prefix `model.`, are put right.

    Raises:
        WeightError: Weights are missing, unknown, of the wrong shape or of no float type, or tied ones
            differ; they are named.
    """
    weights, problems = find_weights(tensors, config, layout)
    if problems:
        raise WeightError(f"the weights are not those of the model: {some(problems, '; ')}")
    return weights


def find_weights(
    tensors: Mapping[str, LazyTensor], config: Qwen3Config, layout: FusedLayout
) -> tuple[dict[str, LazyTensor], list[str]]:
    """Return the model's weights that are there, in its order, and a sentence for each fault."""
    weights = plain_names(tensors)
    if is_fused(weights):
        weights = split_fused(weights, config, layout)
    weights = {name: tensor for name, tensor in weights.items() if not _is_run_state(name, tensor)}
    if adapters := [name for name in weights if ADAPTER.fullmatch(name)]:
        raise WeightError(
            f"the checkpoint holds adapters, such as {adapters[0]}, not a whole model; add them to their "
            "base with `qwen3-ckpt lora fuse BASE ADAPTER OUTPUT`, or give them to PEFT with "
            "`qwen3-ckpt lora export SOURCE OUTPUT`, where ADAPTER and SOURCE are what was named here"
        )
    shapes = config.weight_shapes()
    problems = list(_problems(weights, config, shapes))
    return {name: weights[name] for name in shapes if name in weights}, problems


def _is_run_state(name: str, tensor: LazyTensor) -> bool:
    """Return whether a tensor is a moment, or a counter such as global_step."""
    return name.startswith(MOMENTS) or ("." not in name and math.prod(tensor.plan.shape) == 1)


def plain_names(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return the tensors without buffers, under names without wrappers' prefixes and with `model.`.

    Raises:
        WeightError: Two tensors would have one name.
    """
    bare: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        new = name
        for wrapper in WRAPPERS:
            new = new.replace(f".{wrapper}", ".").removeprefix(wrapper)
        if BUFFERS.fullmatch(new):
            continue
        if new in bare:
            raise WeightError(f"{name} and {bare[new].plan.name} mean the same weight; keep one of them")
        bare[new] = tensor if new == name else tensor.renamed(new)
    # Qwen3Model saved without its head, as embedding models are released, has names without `model.`.
    if EMBEDDING not in bare and EMBEDDING.removeprefix("model.") in bare:
        headless = {
            name if name.startswith(("model.", "lm_head.")) else f"model.{name}": tensor
            for name, tensor in bare.items()
        }
        return {name: tensor.renamed(name) for name, tensor in headless.items()}
    return bare


def _problems(
    weights: dict[str, LazyTensor], config: Qwen3Config, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    head = weights.pop(TIED_HEAD, None) if config.tie_word_embeddings else None
    missing = [name for name in shapes if name not in weights]
    if missing == [TIED_HEAD]:
        yield (
            "lm_head.weight is missing, as in models of embeddings without a head; where the head is the "
            "embedding, config.json must say tie_word_embeddings true"
        )
    else:
        yield from (f"{name} is missing, of shape {shapes[name]}" for name in missing)
    if head and EMBEDDING in weights and not _equal(head, weights[EMBEDDING]):
        yield "config.json ties the head to the embedding, but lm_head.weight differs from it"
    own = {name: weights[name] for name in shapes if name in weights}
    yield from _find_misshapen(own, shapes)
    for name, tensor in own.items():
        if (dtype := tensor.plan.dtype) not in FLOAT_DTYPES:
            yield f"{_locate(name, tensor)} has dtype {dtype}, expected one of {', '.join(FLOAT_DTYPES)}"
    for name in sorted(weights.keys() - shapes.keys()):
        yield f"{_locate(name, weights[name])} is no weight of this model"


def _find_misshapen(
    tensors: Mapping[str, LazyTensor], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    """Yield a sentence for each weight, or moment of one, that has another shape than the model's."""
    for name, tensor in tensors.items():
        wanted = shapes.get(weight_of(name), tensor.plan.shape)
        if tensor.plan.shape != wanted:
            yield f"{_locate(name, tensor)} has shape {tensor.plan.shape}, config.json says {wanted}"


def _locate(name: str, tensor: LazyTensor) -> str:
    return f"{name} in {next(tensor.rows.files())[0].path.name}"


def _equal(a: LazyTensor, b: LazyTensor) -> bool:
    if a.plan.dtype != b.plan.dtype and {a.plan.dtype, b.plan.dtype} <= set(FLOAT_DTYPES):
        a, b = cast(a, "F32"), cast(b, "F32")
    return (a.plan.dtype, a.plan.shape) == (b.plan.dtype, b.plan.shape) and equal_rows(a.rows, b.rows)


def some(names: list[str], separator: str = ", ") -> str:
    """Return a text that names the first few."""
    shown = separator.join(names[:MAX_NAMED])
    return shown if len(names) <= MAX_NAMED else f"{shown} and {len(names) - MAX_NAMED} more"


def check_shapes(tensors: Mapping[str, LazyTensor], config: Qwen3Config) -> None:
    """Compare weights and moments, under our names or mindformers', with the model's; a wrong strategy shows.

    Raises:
        WeightError: Shapes differ; the tensors are named.
    """
    wrong = list(_find_misshapen(tensors, config.weight_shapes() | fused_shapes(config)))
    if wrong:
        raise WeightError(
            f"the merged weights do not fit the model: {some(wrong, '; ')}; the strategy or the config is of "
            "another run"
        )
