"""Where a run's weights come from: random numbers, a Hugging Face folder, or a checkpoint."""

from collections.abc import Mapping
from pathlib import Path

from mindspore import Parameter

from qwen3_model.errors import WeightError
from qwen3_model.loading import fill, init_model, load_hf
from qwen3_model.model import Qwen3ForCausalLM
from qwen3_model.safetensors_file import SafetensorsFile, open_safetensors
from qwen3_train.checkpoint import choose_checkpoint, read_state
from qwen3_train.settings import TrainSettings
from qwen3_train.step import TrainStep

SHOWN_PROBLEMS = 5


def start_weights(model: Qwen3ForCausalLM, settings: TrainSettings) -> str:
    """Fill the model as the settings say, before anything is compiled, and say from where.

    Raises:
        WeightError: The weights do not fit the model.
    """
    source = settings.weights_from
    if source is None:
        init_model(model, settings.seed)
        return f"random, seed {settings.seed}"
    return load_weights(model, source)


def load_weights(model: Qwen3ForCausalLM, source: Path) -> str:
    """Fill the model from a Hugging Face folder, a run or a checkpoint file, and say from where.

    Raises:
        WeightError: The weights do not fit the model.
    """
    if source.is_dir() and (source / "config.json").is_file() and not (source / "checkpoint").is_dir():
        load_hf(model, source)
        return str(source)
    path = source if source.is_file() else choose_checkpoint(source, 1, None)[0][0]
    _assign(dict(model.parameters_and_names()), open_safetensors(path))
    return str(path)


def resume_weights(step: TrainStep, path: Path) -> int:
    """Fill weights and moments from a checkpoint, before anything is compiled, and return the steps it took.

    Raises:
        WeightError: The checkpoint does not fit the model.
    """
    file = open_safetensors(path)
    _assign(step.weights | step.moments(), file)
    return read_state(file).global_step


def _assign(parameters: Mapping[str, Parameter], file: SafetensorsFile) -> None:
    problems = []
    for name, parameter in parameters.items():
        if name not in file.tensors:
            problems.append(f"{name} is missing")
        elif tuple(file.tensors[name].shape) != tuple(parameter.shape):
            held = tuple(file.tensors[name].shape)
            problems.append(f"{name} has shape {held}, the model's has {tuple(parameter.shape)}")
    if problems:
        more = f"; and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise WeightError(f"{file.path} does not fit the model: {'; '.join(problems[:SHOWN_PROBLEMS])}{more}")
    for name, parameter in parameters.items():
        fill(parameter, file.tensors[name].dtype, file.raw(name))
