"""Arithmetic of a training step, as counted for model FLOPs utilisation (MFU).

A product of one row with a matrix of P elements takes 2 P operations forward and twice that backward: once
for the row's gradient, once for the matrix's. Causal attention takes 2 L N H forward for each of L tokens
with N heads of size H, half of the square (Chowdhery et al. 2022, appendix B, counts the whole). Lookups,
norms, softmax and what recomputation repeats do not count.
"""

from qwen3_model.config import Qwen3Config


def layer_flops(model: Qwen3Config, seq_length: int) -> int:
    """Return the operations of a token in one decoder layer, forward."""
    matrices = [shape for shape in model.layer_weight_shapes(0).values() if len(shape) == 2]
    products = 2 * sum(outputs * inputs for outputs, inputs in matrices)
    return products + 2 * seq_length * model.num_heads * model.head_dim


def head_flops(model: Qwen3Config) -> int:
    """Return the operations of a token in the output head, forward."""
    return 2 * model.vocab_size * model.hidden_size


def training_flops(model: Qwen3Config, seq_length: int, *, adapter_parameters: int | None = None) -> int:
    """Return the operations of a token, forward and backward.

    Args:
        model: Sizes.
        seq_length: Tokens of a sample; documents packed into it are counted as one.
        adapter_parameters: Elements of the adapters that train instead of the model, whose own matrices then
            take no gradient; None where all of the model trains.
    """
    forward = model.num_layers * layer_flops(model, seq_length) + head_flops(model)
    if adapter_parameters is None:
        return 3 * forward
    return 2 * forward + 6 * adapter_parameters
