"""Adapters in the trainer: the base loaded and frozen, adapters added."""

from qwen3_model.network.lora import LoraDropout, add_lora, init_lora
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_train.checkpoints.one_reader import OneReader
from qwen3_train.checkpoints.weights import load_weights
from qwen3_train.prepare.prepare import PreparedRun
from qwen3_train.settings.lora import LoraSettings


def start_adapters(model: Qwen3ForCausalLM, run: PreparedRun, reader: OneReader | None) -> LoraDropout | None:
    """Fill the base, add fresh adapters, freeze what does not train; before anything is compiled.

    Returns:
        The dropout's switch, or None where nothing is dropped.

    Raises:
        WeightError: The base does not fit the model.
    """
    settings, lora = run.settings, run.settings.lora
    assert lora is not None
    assert run.lora_base is not None
    load_weights(model, run.lora_base, settings, reader)
    switch = add_adapters(model, lora)
    init_lora(model, a_init=lora.a_init, b_init=lora.b_init, seed=settings.seed)
    return switch


def add_adapters(model: Qwen3ForCausalLM, lora: LoraSettings) -> LoraDropout | None:
    """Add adapters that are not yet filled and freeze what does not train; return the dropout's switch."""
    switch = add_lora(model, lora.modules, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout)
    for name, parameter in model.parameters_and_names():
        parameter.requires_grad = name in lora.trained
    return switch
