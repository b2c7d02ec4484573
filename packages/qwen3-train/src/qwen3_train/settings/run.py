"""A run's YAML as checked values; free of MindSpore, so that every refusal is quick."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3_model.checkpoints.fused import FusedLayout, read_fused_layout
from qwen3_model.command.run_config import RunConfig
from qwen3_model.config import Qwen3Config
from qwen3_model.device.ascend import AscendSettings, read_ascend_settings
from qwen3_model.device.simulation import Simulation, default_device
from qwen3_model.errors import ConfigError
from qwen3_model.ranks.layout import Layout
from qwen3_train.layout.checks import layout_problems, process_problems
from qwen3_train.layout.offset import read_offset
from qwen3_train.settings.adam import AdamSettings
from qwen3_train.settings.conversation_blend import BlendSettings
from qwen3_train.settings.datasets import Conversations, read_dataset, read_eval_dataset
from qwen3_train.settings.exit_file import read_exit_file
from qwen3_train.settings.hf_loader import HfDataSettings
from qwen3_train.settings.layout import read_layout
from qwen3_train.settings.lora import LoraSettings, read_lora, refuse_empty_stages
from qwen3_train.settings.model import read_model
from qwen3_train.settings.profiling import ProfileSettings, read_profile
from qwen3_train.settings.recompute import Recompute, read_recompute
from qwen3_train.settings.resume import ResumeSettings, read_resume
from qwen3_train.settings.skip import SkipSettings, read_skip
from qwen3_train.settings.token_files import DataSettings
from qwen3_train.settings.validation import ValidationSettings, read_validation
from qwen3_train.settings.values import check_schedule, lr_section, number_problems


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """Everything that a run needs to know."""

    seed: int
    """Of random weights."""
    output_dir: Path
    device: str
    """CPU or Ascend."""
    ascend: AscendSettings
    """What the device is told, should it be Ascend."""
    layout: Layout
    offset: tuple[int, ...]
    """Shift of the number of layers of each pipeline stage; empty for none."""
    micro_batch_num: int
    """Micro-batches that go through the pipeline together; 1 without a pipeline."""
    parallel_optimizer: bool
    """Share the optimizer's moments out over the replicas (ZeRO-1)."""
    model: Qwen3Config
    hf_dir: Path | None
    """Folder whose config, tokenizer and generation config the run takes over."""
    weights_from: Path | None
    """A Hugging Face folder or a checkpoint to start from; None for random weights."""
    strategy_from: Path | None
    """Strategy files of that checkpoint, where they are not beside it."""
    fused_layout: FusedLayout
    """Order of rows in mindformers' fused weights, should the checkpoint be mindformers'."""
    resume: ResumeSettings
    batch_size: int
    """Rows of a forward pass on each replica."""
    accumulation: int
    """Times that the micro-batches of a step are gathered anew."""
    epochs: int
    stop_step: int | None
    """Stop after this step although the schedule goes on; None for never."""
    adam: AdamSettings
    lr_schedule: Mapping[str, Any]
    max_grad_norm: float | None
    """Clip the global norm to this; None for no clipping."""
    skip: SkipSettings | None
    """Which steps not to apply; None to apply all."""
    data: DataSettings | Conversations
    eval_data: Conversations | None
    """Held-out conversations; None for none, or where token files are split."""
    do_eval: bool
    eval_every: int | None
    """Steps between evaluations; None for only before the first and after the last step."""
    validation: ValidationSettings
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
    """JSON file that asks it to save and end; None for none."""
    shares_writing: bool
    """Whether ranks that hold equal slices share out the writing of a checkpoint (remove_redundancy)."""
    async_save: bool
    """Write checkpoints in a thread while training goes on."""
    profile: ProfileSettings | None
    """Steps that MindSpore's profiler records; None for none."""
    recompute: Recompute
    graph_cache: Path | None
    """Folder that keeps compiled graphs from one run to the next; None for none."""
    lora: LoraSettings | None
    """Adapters, which then train instead of the model; None for none."""

    @property
    def tokenizer_dir(self) -> Path | None:
        """Folder of the tokenizer that the run's folder gets a copy of."""
        own = self.data.tokenizer_dir if isinstance(self.data, HfDataSettings | BlendSettings) else None
        return own or self.hf_dir

    @property
    def passes(self) -> int:
        """Forward passes of a step on each replica."""
        return self.accumulation * self.micro_batch_num


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
    hf_dir = _path(config.get("pretrained_model_dir"))
    data = _collect(problems, read_dataset, config.get("train_dataset") or {})
    model = None
    if hf_dir is not None and not hf_dir.is_dir():
        problems.append(f"pretrained_model_dir={hf_dir} is not a folder; give a Hugging Face model folder")
    else:
        model = _collect(problems, read_model, config.get("model.model_config") or {}, hf_dir)
    eval_data = _collect(problems, read_eval_dataset, config, data) if data is not None else None
    layout = _collect(problems, _layout, config, worker_num)
    offset = _collect(problems, read_offset, config.get("model.model_config.offset"))
    recompute = _collect(
        problems, read_recompute, config.get("recompute_config"), layout.pp if layout is not None else 1
    )
    available = default_device(simulation)
    problems += number_problems(config) + _mode_problems(config, available)
    _collect(problems, check_schedule, config)
    skip = _collect(problems, read_skip, config)
    resume = _collect(problems, read_resume, config)
    validation = _collect(problems, read_validation, config)
    profile = _collect(problems, read_profile, config)
    device = config.get("context.device_target") or available
    output_dir = Path(config.get("output_dir") or "./output")
    ascend = _collect(problems, _ascend, config, device, worker_num, output_dir)
    if model is not None and layout is not None and data is not None and offset is not None:
        pipes = layout.pp > 1
        offset, micro_batch_num = offset if pipes else (), _micro_batch_num(config) if pipes else 1
        problems += layout_problems(
            model, layout, seq_length=data.seq_length, offset=offset, micro_batch_num=micro_batch_num
        )
    pet_config = config.get("model.model_config.pet_config")
    lora = _collect(problems, read_lora, pet_config, model) if pet_config and model is not None else None
    if problems:
        raise ConfigError("; ".join(problems))
    assert data is not None
    assert model is not None
    assert layout is not None
    assert ascend is not None
    assert resume is not None
    if lora is not None:
        refuse_empty_stages(lora, model, layout, offset)
    monitor = callback_of(config, "CheckpointMonitor")
    wrapper = config.get("runner_wrapper") or {}
    return TrainSettings(
        seed=config.get("seed", 0),
        output_dir=output_dir,
        device=device,
        ascend=ascend,
        layout=layout,
        offset=offset,
        micro_batch_num=micro_batch_num,
        parallel_optimizer=bool(config.get("parallel.enable_parallel_optimizer", False)) and layout.dp > 1,
        model=model,
        hf_dir=hf_dir,
        weights_from=_weights(config, hf_dir, resume),
        strategy_from=_path(config.get("src_strategy_path_or_dir")),
        fused_layout=read_fused_layout(config),
        resume=resume,
        batch_size=config.get("runner_config.batch_size", 1),
        accumulation=config.get("runner_config.gradient_accumulation_steps", 1),
        epochs=config.get("runner_config.epochs", 1),
        stop_step=callback_of(config, "TrainCallBack").get("stop_step"),
        adam=_adam(config.get("optimizer") or {}),
        lr_schedule=lr_section(config),
        max_grad_norm=float(wrapper.get("max_grad_norm") or 1.0) if wrapper.get("use_clip_grad") else None,
        skip=skip,
        data=data,
        eval_data=eval_data,
        do_eval=bool(config.get("do_eval", False)),
        eval_every=_positive(config.get("eval_step_interval")),
        validation=validation,
        log_every=callback_of(config, "MFLossMonitor").get("per_print_times") or 1,
        prefix=monitor.get("prefix") or "qwen3",
        save_every=_positive(monitor.get("save_checkpoint_steps")),
        keep_max=monitor.get("keep_checkpoint_max") or 1,
        graceful_exit=bool(config.get("use_graceful_exit", True)),
        exit_file=read_exit_file(config),
        shares_writing=bool(monitor.get("remove_redundancy")),
        async_save=bool(monitor.get("async_save")),
        profile=profile,
        recompute=recompute,
        graph_cache=_graph_cache(config),
        lora=lora,
    )


def _ascend(config: RunConfig, device: str, worker_num: int, output_dir: Path) -> AscendSettings:
    return read_ascend_settings(config, device, worker_num, work_dir=output_dir / "mindspore")


def _micro_batch_num(config: RunConfig) -> int:
    value = config.get("parallel_config.micro_batch_num")
    return 1 if value is None else int(value)


def _layout(config: RunConfig, worker_num: int) -> Layout:
    if not config.get("use_parallel", False):
        if worker_num > 1:
            raise ConfigError(
                f"use_parallel is False but --worker-num is {worker_num}; set use_parallel to True and "
                "parallel_config to a layout of that many processes"
            )
        return Layout()
    layout = read_layout(config)
    if problems := process_problems(layout, worker_num):
        raise ConfigError("; ".join(problems))
    return layout


def _mode_problems(config: RunConfig, available: str) -> list[str]:
    problems = []
    mode = config.get("run_mode", "train")
    if mode not in ("train", "finetune"):
        problems.append(
            f"run_mode={mode!r} is not for this command; use train or finetune (predict: qwen3-infer)"
        )
    if mode == "finetune" and not (config.get("load_checkpoint") or config.get("pretrained_model_dir")):
        problems.append("run_mode=finetune needs weights; give pretrained_model_dir or load_checkpoint")
    if config.get("context.device_target") == "Ascend" and available != "Ascend":
        problems.append(
            "context.device_target=Ascend but this machine has none; use --context.device_target CPU"
        )
    return problems


def _adam(section: Mapping[str, Any]) -> AdamSettings:
    beta1, beta2 = section.get("betas") or (0.9, 0.999)
    return AdamSettings(
        beta1=float(beta1),
        beta2=float(beta2),
        eps=float(section.get("eps") or 1e-8),
        weight_decay=float(section.get("weight_decay") or 0.0),
    )


def _weights(config: RunConfig, hf_dir: Path | None, resume: ResumeSettings) -> Path | None:
    # What is to be resumed has the state of a run, not only weights to begin with.
    if config.get("load_checkpoint") and resume.mode != "always":
        return _path(config.get("load_checkpoint"))
    # As in mindformers: a run from scratch takes the folder's config and tokenizer only.
    wanted = config.get("run_mode", "train") == "finetune" or config.get("auto_trans_ckpt", False)
    return hf_dir if wanted else None


def callback_of(config: RunConfig, kind: str) -> dict[str, Any]:
    """Return the section of the callback `kind`; empty where the YAML has none."""
    return next((item for item in config.get("callbacks") or [] if item.get("type") == kind), {})


def _positive(value: int | None) -> int | None:
    return value if value is not None and value > 0 else None


def _graph_cache(config: RunConfig) -> Path | None:
    if not config.get("context.enable_compile_cache"):
        return None
    return _path(config.get("context.compile_cache_path")) or Path.home() / ".cache/qwen3-train"


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _collect(problems: list[str], read: Any, *arguments: Any) -> Any:
    try:
        return read(*arguments)
    except ConfigError as error:
        problems.append(str(error))
        return None
