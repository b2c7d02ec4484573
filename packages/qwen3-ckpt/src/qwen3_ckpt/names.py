"""From whatever names a checkpoint has to the model's own, complete and in order."""

from qwen3_ckpt.diff import largest_difference
from qwen3_ckpt.fused import split_fused
from qwen3_ckpt.placements import ADAPTER
from qwen3_ckpt.rows import LazyTensor
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import WeightError
from qwen3_model.fused import FUSED_LAYER, FusedLayout

MAX_NAMED = 8
EMBEDDING = "model.embed_tokens.weight"
OPTIMIZER_PREFIXES = ("adam_m.", "adam_v.")


def is_fused(tensors: dict[str, LazyTensor]) -> bool:
    """Return whether the names are mindformers'."""
    return any(FUSED_LAYER.fullmatch(name) for name in tensors)


def hf_tensors(
    tensors: dict[str, LazyTensor],
    config: Qwen3Config,
    layout: FusedLayout = FusedLayout(),  # noqa: B008
) -> dict[str, LazyTensor]:
    """Return exactly the model's weights under Hugging Face's names, in the model's order.

    Optimizer state is left out, and a tied model's output layer when it equals the embedding.

    Raises:
        WeightError: Weights are missing, unknown, or of the wrong shape, or tied ones differ; they are named.
    """
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(OPTIMIZER_PREFIXES)}
    if is_fused(weights):
        weights = split_fused(weights, config, layout)
    adapters = [name for name in weights if ADAPTER.fullmatch(name)]
    if adapters:
        raise WeightError(
            f"the checkpoint holds adapters, such as {adapters[0]}, not a whole model; add them to their "
            "base with `qwen3-ckpt lora fuse`, or give them to PEFT with `qwen3-ckpt lora export`"
        )
    head = weights.pop("lm_head.weight", None) if config.tie_word_embeddings else None
    shapes = config.weight_shapes()
    problems = [f"{name} is missing" for name in shapes if name not in weights]
    if head and EMBEDDING in weights and not _equal(head, weights[EMBEDDING]):
        problems.append("lm_head.weight is not the embedding, to which config.json ties it")
    problems += [f"{name} is unknown" for name in weights if name not in shapes]
    problems += [
        f"{name} is {weights[name].plan.shape}, config.json says {shape}"
        for name, shape in shapes.items()
        if name in weights and weights[name].plan.shape != shape
    ]
    if problems:
        more = f" and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        raise WeightError(f"the weights are not those of the model: {'; '.join(problems[:MAX_NAMED])}{more}")
    return {name: weights[name] for name in shapes}


def _equal(a: LazyTensor, b: LazyTensor) -> bool:
    return a.plan.shape == b.plan.shape and largest_difference(a, b)[0] == 0
