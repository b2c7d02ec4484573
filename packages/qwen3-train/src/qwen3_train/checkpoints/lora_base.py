"""Which base a LoRA run's adapters belong to, and the adapter_config.json beside its checkpoints.

Free of MindSpore.
"""

import json
from pathlib import Path

from qwen3_model.checkpoints.adapter_config import CONFIG_FILE, peft_config
from qwen3_model.command.files import write_text_atomically
from qwen3_model.command.json_file import read_json
from qwen3_model.errors import ConfigError, FormatError
from qwen3_train.settings.lora import LoraSettings, peft_targets
from qwen3_train.settings.run import TrainSettings


def find_base(settings: TrainSettings, run_dir: Path | None) -> Path:
    """Return the folder or file with the weights under the adapters.

    Args:
        settings: The run's settings.
        run_dir: Folder of the run that goes on; None for one that begins.

    Raises:
        ConfigError: None is named, or a resumed run asks for other adapters than it has.
    """
    assert settings.lora is not None
    if run_dir is None:
        if settings.weights_from is None:
            raise ConfigError(
                "adapters need a base: give pretrained_model_dir with run_mode finetune, or load_checkpoint"
            )
        return settings.weights_from
    path = run_dir / CONFIG_FILE
    if not path.is_file():
        if run_dir == settings.output_dir:
            remedy = "leave pet_config out, or choose another --output_dir"
        else:
            remedy = "to begin adapters on its weights use --resume_training auto"
        raise ConfigError(f"{path} does not exist, so {run_dir} is no run of adapters; {remedy}")
    config = read_json(path)
    stated_base = config.get("base_model_name_or_path")
    if not isinstance(stated_base, str):
        raise FormatError(f"{path} does not name the adapters' base; put the run's own file back")
    wanted = _own_config(settings.lora, settings, Path(stated_base))
    changed = [key for key in wanted if config.get(key) != wanted[key]]
    if changed:
        changes = ", ".join(f"{key} {config.get(key)!r} is now {wanted[key]!r}" for key in changed)
        raise ConfigError(f"{path}: {changes}; resume with the pet_config that the run began with")
    stated = settings.hf_dir if settings.hf_dir and any(settings.hf_dir.glob("*.safetensors")) else None
    base = stated or Path(stated_base)
    if not base.exists():
        raise ConfigError(
            f"{base}, the base of the adapters in {path.parent}, does not exist; give pretrained_model_dir"
        )
    return base


def _own_config(lora: LoraSettings, settings: TrainSettings, base: Path) -> dict[str, object]:
    targets = peft_targets(lora.modules, settings.model)
    return peft_config(str(base), rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=targets)


def write_adapter_config(lora: LoraSettings, settings: TrainSettings, base: Path) -> None:
    """Write it into the run's folder, where qwen3-ckpt looks for alpha."""
    text = json.dumps(_own_config(lora, settings, base.absolute()), indent=2) + "\n"
    write_text_atomically(settings.output_dir / CONFIG_FILE, text)
