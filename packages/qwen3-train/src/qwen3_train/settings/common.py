"""What `launch` and `plan` read of a run's YAML alike: the model, its layout, and what a step does.

Needs neither the data nor MindSpore.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from qwen3_model.command.narrow import as_int, as_text
from qwen3_model.command.run_config import RunConfig
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import ConfigError
from qwen3_model.ranks.layout import Layout
from qwen3_train.layout.offset import read_offset
from qwen3_train.settings.layout import read_layout
from qwen3_train.settings.lora import LoraSettings, read_lora
from qwen3_train.settings.model import read_model
from qwen3_train.settings.profiling import ProfileSettings, read_profile
from qwen3_train.settings.recompute import Recompute, read_recompute
from qwen3_train.settings.resume import ResumeSettings, read_resume
from qwen3_train.settings.skip import SkipSettings, read_skip
from qwen3_train.settings.validation import ValidationSettings, read_validation
from qwen3_train.settings.values import callback_of, check_schedule, number_problems

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSettings:
    """The model, its layout and the size of a step: what a run and its plan state alike."""

    model: Qwen3Config
    layout: Layout
    offset: tuple[int, ...]
    """Shift of the number of layers of each pipeline stage; empty for none."""
    micro_batch_num: int
    """Micro-batches that go through the pipeline together; 1 without a pipeline."""
    parallel_optimizer: bool
    """Shard the optimizer's moments over the replicas (ZeRO-1)."""
    batch_size: int
    """Rows of a forward pass on each replica."""
    accumulation: int
    """Times that the micro-batches of a step are gathered anew."""
    epochs: int
    shares_writing: bool
    """Whether ranks that hold equal slices share out the writing of a checkpoint (remove_redundancy)."""

    @property
    def passes(self) -> int:
        """Forward passes of a step on each replica."""
        return self.accumulation * self.micro_batch_num


@dataclass(frozen=True, kw_only=True, slots=True)
class CommonSettings(StepSettings):
    """What `launch` and `plan` read and check alike."""

    hf_dir: Path | None
    """Folder whose config, tokenizer and generation config the run takes over."""
    recompute: Recompute
    lora: LoraSettings | None
    """Adapters, which then train instead of the model; None for none."""
    resume: ResumeSettings
    skip: SkipSettings | None
    """Which steps not to apply; None to apply all."""
    validation: ValidationSettings
    profile: ProfileSettings | None
    """Steps that MindSpore's profiler records; None for none."""


def read_common(config: RunConfig, problems: list[str]) -> CommonSettings | None:
    """Read the sections that do not depend on the data, the device or the number of processes.

    Args:
        config: A YAML that the schema has passed.
        problems: Receives a sentence for each value that cannot work.

    Returns:
        The settings, which count only while `problems` is empty; None where a section cannot be read.
    """
    hf_dir = Path(as_text(folder)) if (folder := config.get("pretrained_model_dir")) else None
    model = None
    if hf_dir is not None and not hf_dir.is_dir():
        problems.append(f"pretrained_model_dir={hf_dir} is not a folder; give a Hugging Face model folder")
    else:
        model = collect(problems, read_model, config.section("model.model_config"), hf_dir)
    layout = collect(problems, read_layout, config)
    offset = collect(problems, read_offset, config.get("model.model_config.offset"))
    num_stages = layout.pp if layout is not None else 1
    recompute = collect(problems, read_recompute, config.section("recompute_config"), num_stages)
    problems += number_problems(config)
    collect(problems, check_schedule, config)
    skip = collect(problems, read_skip, config)
    resume = collect(problems, read_resume, config)
    validation = collect(problems, read_validation, config)
    profile = collect(problems, read_profile, config)
    pet_config = config.section("model.model_config.pet_config")
    lora = collect(problems, read_lora, pet_config, model) if pet_config and model is not None else None
    if model is None or layout is None or offset is None:
        return None
    if recompute is None or resume is None or validation is None:
        return None
    micro_batch_num = as_int(config.get("parallel_config.micro_batch_num", 1))
    return CommonSettings(
        model=model,
        hf_dir=hf_dir,
        layout=layout,
        offset=offset if num_stages > 1 else (),
        micro_batch_num=micro_batch_num if num_stages > 1 else 1,
        parallel_optimizer=bool(config.get("parallel.enable_parallel_optimizer", False)),
        batch_size=as_int(config.get("runner_config.batch_size", 1)),
        accumulation=as_int(config.get("runner_config.gradient_accumulation_steps", 1)),
        epochs=as_int(config.get("runner_config.epochs", 1)),
        recompute=recompute,
        lora=lora,
        shares_writing=bool(callback_of(config, "CheckpointMonitor").get("remove_redundancy")),
        resume=resume,
        skip=skip,
        validation=validation,
        profile=profile,
    )


def length_problems(seq_length: int, model: Qwen3Config) -> list[str]:
    """Say when the rows are longer than the model's positions."""
    if seq_length <= model.max_position_embeddings:
        return []
    return [
        f"seq_length={seq_length} is longer than max_position_embeddings={model.max_position_embeddings}; "
        "shorten one or raise the other"
    ]


def collect(problems: list[str], read: Callable[..., Value], *arguments: object) -> Value | None:
    """Return what `read` returns; None where it refuses, with its sentence added to `problems`."""
    try:
        return read(*arguments)
    except ConfigError as error:
        problems.append(str(error))
        return None
