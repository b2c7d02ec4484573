"""Adapters in the trainer: the base loaded and frozen, adapters added, their strategy written."""

from qwen3_model.layout import Layout
from qwen3_model.lora import LoraDropout, add_lora, init_lora
from qwen3_model.model import Qwen3ForCausalLM
from qwen3_model.strategy import write_strategy
from qwen3_train.prepare import PreparedRun
from qwen3_train.strategy_files import MOMENTS, tensor_layout
from qwen3_train.weights import load_weights


def start_adapters(model: Qwen3ForCausalLM, run: PreparedRun) -> LoraDropout | None:
    """Fill the base, add fresh adapters, freeze what does not train; before anything is compiled.

    Returns:
        The dropout's switch, or None where nothing is dropped.

    Raises:
        WeightError: The base does not fit the model.
    """
    settings, lora = run.settings, run.settings.lora
    assert lora is not None
    assert run.lora_base is not None
    load_weights(model, run.lora_base)
    switch = add_lora(model, lora.modules, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout)
    init_lora(model, a_init=lora.a_init, b_init=lora.b_init, seed=settings.seed)
    for name, parameter in model.parameters_and_names():
        parameter.requires_grad = name in lora.trained
    return switch


def write_adapter_strategy(run: PreparedRun, rank: int) -> None:
    """Write `strategy/ckpt_strategy_rank_R.ckpt` for the trained weights and their moments."""
    settings, lora = run.settings, run.settings.lora
    assert lora is not None
    layout: Layout = settings.layout
    layouts = {name: tensor_layout(name, layout) for name in lora.trained}
    layouts |= {f"{moment}{name}": cut for moment in MOMENTS for name, cut in list(layouts.items())}
    path = settings.output_dir / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_strategy(path, layout.place(rank)[0], layouts)
