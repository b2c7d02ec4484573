"""A run's YAML as checked values; free of MindSpore, so that every refusal is quick."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from qwen3_model.checkpoints.fused import FusedLayout, read_fused_layout
from qwen3_model.command.narrow import as_int, as_number, as_text, optional
from qwen3_model.command.run_config import RunConfig
from qwen3_model.device.ascend import AscendSettings, read_ascend_settings
from qwen3_model.device.simulation import Simulation, default_device
from qwen3_model.errors import ConfigError
from qwen3_model.ranks.layout import Layout
from qwen3_train.layout.checks import layout_problems, process_problems
from qwen3_train.settings.adam import AdamSettings, read_adam
from qwen3_train.settings.common import CommonSettings, collect, length_problems, read_common
from qwen3_train.settings.conversation_blend import BlendSettings
from qwen3_train.settings.datasets import Conversations, read_dataset, read_eval_dataset
from qwen3_train.settings.exit_file import read_exit_file
from qwen3_train.settings.hf_loader import HfDataSettings
from qwen3_train.settings.layout import reads_once
from qwen3_train.settings.lora import refuse_empty_stages
from qwen3_train.settings.resume import ResumeSettings
from qwen3_train.settings.token_files import DataSettings
from qwen3_train.settings.values import callback_of, lr_section


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings(CommonSettings):
    """Everything that a run needs to know."""

    seed: int
    """Seeds random weights."""
    output_dir: Path
    device: str
    """CPU or Ascend."""
    ascend: AscendSettings
    """Settings of the device, should it be Ascend."""
    weights_from: Path | None
    """A Hugging Face folder or a checkpoint to start from; None for random weights."""
    strategy_from: Path | None
    """Strategy files of that checkpoint, where they are not beside it."""
    fused_layout: FusedLayout
    """Order of rows in mindformers' fused weights, should the checkpoint be mindformers'."""
    stop_step: int | None
    """Stop after this step although the schedule goes on; None for never."""
    adam: AdamSettings
    lr_schedule: Mapping[str, object]
    max_grad_norm: float | None
    """Clip the global norm to this; None for no clipping."""
    data: DataSettings | Conversations
    eval_data: Conversations | None
    """Held-out conversations; None for none, or where token files are split."""
    do_eval: bool
    eval_every: int | None
    """Steps between evaluations; None for only before the first and after the last step."""
    log_every: int
    prefix: str
    """Beginning of checkpoint file names."""
    save_every: int | None
    """Steps between checkpoints; None for only after the last step."""
    keep_max: int
    """Checkpoints to keep."""
    graceful_exit: bool
    """Save and end when SIGTERM or SIGUSR1 asks for it; else end at once."""
    exit_file: Path | None
    """JSON file that asks the run to save and end; None for none."""
    broadcasts: bool
    """One of the replicas reads a weight from its file and sends it to the others."""
    async_save: bool
    """Write checkpoints in a thread while training goes on."""

    @property
    def tokenizer_dir(self) -> Path | None:
        """Folder of the tokenizer that the run's folder gets a copy of."""
        own = self.data.tokenizer_dir if isinstance(self.data, HfDataSettings | BlendSettings) else None
        return own or self.hf_dir


def read_settings(
    config: RunConfig, *, worker_num: int = 1, simulation: Simulation | None = None
) -> TrainSettings:
    """Turn a YAML that the schema has passed into settings.

    Args:
        config: The YAML.
        worker_num: Processes of the job.
        simulation: The dry run that this is; None for a real run.

    Raises:
        ConfigError: Values that cannot work; all that can be found at once are named.
    """
    problems: list[str] = []
    data = collect(problems, read_dataset, config.section("train_dataset"))
    eval_data = collect(problems, read_eval_dataset, config, data) if data is not None else None
    common = read_common(config, problems)
    available = default_device(simulation)
    device = as_text(config.get("context.device_target", available))
    output_dir = Path(as_text(config.get("output_dir") or "./output"))
    problems += _mode_problems(config, available)
    ascend = collect(problems, _read_ascend, config, device, worker_num, output_dir)
    if common is not None:
        problems += _process_problems(config, common.layout, worker_num)
    if common is not None and data is not None:
        problems += _length_problems(common, data.seq_length)
    if problems:
        raise ConfigError("; ".join(problems))
    assert data is not None
    assert common is not None
    assert ascend is not None
    if common.lora is not None:
        refuse_empty_stages(common.lora, common.model, common.layout, common.offset)
    common = replace(common, parallel_optimizer=common.parallel_optimizer and common.layout.dp > 1)
    monitor = callback_of(config, "CheckpointMonitor")
    return TrainSettings(
        **{field.name: getattr(common, field.name) for field in fields(CommonSettings)},
        seed=as_int(config.get("seed", 0)),
        output_dir=output_dir,
        device=device,
        ascend=ascend,
        weights_from=weights_source(config, common.hf_dir, common.resume),
        strategy_from=_path_or_none(config.get("src_strategy_path_or_dir")),
        fused_layout=read_fused_layout(config),
        stop_step=optional(as_int, callback_of(config, "TrainCallBack").get("stop_step")),
        adam=read_adam(config.section("optimizer")),
        lr_schedule=lr_section(config),
        max_grad_norm=_clipping_norm(config),
        data=data,
        eval_data=eval_data,
        do_eval=bool(config.get("do_eval", False)),
        eval_every=_count_or_none(config.get("eval_step_interval", 0)),
        log_every=as_int(callback_of(config, "MFLossMonitor").get("per_print_times", 1)),
        prefix=as_text(monitor.get("prefix") or "qwen3"),
        save_every=_count_or_none(monitor.get("save_checkpoint_steps", 0)),
        keep_max=as_int(monitor.get("keep_checkpoint_max", 1)),
        async_save=bool(monitor.get("async_save")),
        graceful_exit=bool(config.get("use_graceful_exit", True)),
        exit_file=read_exit_file(config),
        broadcasts=reads_once(config, device),
    )


def _clipping_norm(config: RunConfig) -> float | None:
    """Return the norm that gradients are clipped to, 1 unless stated; None where clipping is off."""
    if not config.get("runner_wrapper.use_clip_grad"):
        return None
    return float(as_number(config.get("runner_wrapper.max_grad_norm", 1.0)))


def _read_ascend(config: RunConfig, device: str, worker_num: int, output_dir: Path) -> AscendSettings:
    return read_ascend_settings(config, device, worker_num, work_dir=output_dir / "mindspore")


def _process_problems(config: RunConfig, layout: Layout, worker_num: int) -> list[str]:
    """Return a sentence where the layout is for another number of processes than the job has."""
    if config.get("use_parallel", False):
        return process_problems(layout, worker_num)
    if worker_num == 1:
        return []
    return [
        f"use_parallel is False but --worker-num is {worker_num}; set use_parallel to True and "
        "parallel_config to a layout of that many processes"
    ]


def _length_problems(common: CommonSettings, seq_length: int) -> list[str]:
    """Return sentences on why rows of `seq_length` tokens do not fit the model or the layout."""
    return length_problems(seq_length, common.model) + layout_problems(
        common.model,
        common.layout,
        seq_length=seq_length,
        offset=common.offset,
        micro_batch_num=common.micro_batch_num,
    )


def _mode_problems(config: RunConfig, available: str) -> list[str]:
    """Return sentences on a mode that is not training or lacks weights, and on a device that is not there."""
    problems = []
    mode = config.get("run_mode", "train")
    if mode not in ("train", "finetune"):
        problems.append(
            f"run_mode={mode!r} is not for this command; use train or finetune (predict: qwen3-infer)"
        )
    if mode == "finetune" and not (config.get("load_checkpoint") or config.get("pretrained_model_dir")):
        problems.append("run_mode=finetune needs weights; give pretrained_model_dir or load_checkpoint")
    if config.get("context.device_target") == "Ascend" and available != "Ascend":
        problems.append("context.device_target=Ascend but this machine has none; use --device cpu")
    return problems


def weights_source(config: RunConfig, hf_dir: Path | None, resume: ResumeSettings) -> Path | None:
    """Return the folder or checkpoint whose weights the run starts from; None for random weights."""
    # A checkpoint that is resumed has the state of a run; it is no source of weights alone.
    if config.get("load_checkpoint") and resume.mode != "always":
        return _path_or_none(config.get("load_checkpoint"))
    # As in mindformers: a run from scratch takes the folder's config and tokenizer only.
    wanted = config.get("run_mode", "train") == "finetune" or config.get("auto_trans_ckpt", False)
    return hf_dir if wanted else None


def _count_or_none(value: object) -> int | None:
    """Return a number of steps; None for 0 or -1, as mindformers writes never."""
    count = as_int(value)
    return count if count > 0 else None


def _path_or_none(text: object) -> Path | None:
    return Path(as_text(text)) if text else None
