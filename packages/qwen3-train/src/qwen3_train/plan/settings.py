"""What decides memory, communication and steps, read from a run's YAML without its data or device."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3_model.command.run_config import Key, RunConfig
from qwen3_model.config import Qwen3Config
from qwen3_model.device.ascend import has_float32_residual
from qwen3_model.errors import ConfigError
from qwen3_model.ranks.layout import Layout
from qwen3_train.layout.lora_shapes import Adapters
from qwen3_train.layout.offset import read_offset
from qwen3_train.settings.datasets import TOKENS
from qwen3_train.settings.layout import read_layout
from qwen3_train.settings.model import read_model
from qwen3_train.settings.recompute import read_recompute
from qwen3_train.settings.run import callback_of
from qwen3_train.settings.schema import MODEL_CONFIG, TRAIN
from qwen3_train.settings.values import value_problems

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PLAN_SCHEMA: dict[str, Any] = TRAIN | {
    "model": TRAIN["model"] | {"model_config": MODEL_CONFIG | {"pet_config": Key()}},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanSettings:
    """What the planner needs to know about a run."""

    model: Qwen3Config
    layout: Layout
    offset: tuple[int, ...]
    """Shift of the number of layers of each stage; empty for none."""
    micro_batch: int
    """Rows of one forward pass on each replica."""
    micro_batch_num: int
    """Micro-batches that go through the pipeline together; 1 without a pipeline."""
    accumulation: int
    """Gradient accumulation steps."""
    seq_length: int
    """Tokens of a row."""
    epochs: int
    num_samples: int | None
    """Samples of an epoch; None when only the data know."""
    recompute: str
    """none, selective or full."""
    parallel_optimizer: bool
    """Shard the optimizer's state over the replicas (ZeRO-1)."""
    is_fused: bool
    """Ascend's fused kernels; else the plain ones of a CPU."""
    compute_bytes: int
    """Bytes of an activation's element: 2 for bfloat16, 4 for float32."""
    residual_bytes: int
    """Bytes of an element of what the layers add to, which stages send each other."""
    adapters: Adapters | None
    """LoRA adapters, which then alone are trained."""
    shares_writing: bool
    """Whether ranks that hold equal slices share out the writing of a checkpoint (remove_redundancy)."""
    separate_documents: bool
    """No attention from one document or conversation of a row to another."""

    @property
    def rows(self) -> int:
        """Tokens of a micro-batch on one rank, M."""
        return self.micro_batch * self.seq_length // self.layout.cp

    @property
    def queries_by_keys(self) -> tuple[int, int]:
        """Queries of a sample on one rank that share their keys, and all keys that these look at.

        With context parallelism the queries are those of one of two chunks, and the keys those of both.
        """
        if self.layout.cp == 1:
            return self.seq_length, self.seq_length
        chunk = self.seq_length // (2 * self.layout.cp)
        return chunk, (2 * self.layout.cp + 1) * chunk

    @property
    def sequence_split(self) -> int:
        """Ranks among which sequence parallelism shares the rows between the split weights."""
        return self.layout.tp if self.layout.sequence_parallel else 1

    @property
    def passes(self) -> int:
        """Forward passes of a step on each replica."""
        return self.micro_batch_num * self.accumulation

    @property
    def global_batch(self) -> int:
        """Samples of a step."""
        return self.layout.data_parallel * self.micro_batch * self.passes

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step."""
        return self.global_batch * self.seq_length

    @property
    def steps_per_epoch(self) -> int | None:
        """Whole steps that an epoch gives, or None when its samples are unknown."""
        return None if self.num_samples is None else self.num_samples // self.global_batch


def read_plan_settings(config: RunConfig) -> PlanSettings:
    """Turn a YAML that `PLAN_SCHEMA` has passed into the planner's settings.

    Raises:
        ConfigError: A size is missing or out of range; all that can be found at once are named.
    """
    problems = _range_problems(config) + value_problems(config)
    seq_length = config.get("train_dataset.data_loader.config.seq_length")
    if seq_length is None:
        handlers = config.get("train_dataset.data_loader.handler") or []
        stated = [handler["seq_length"] for handler in handlers if handler.get("seq_length")]
        seq_length = stated[0] if stated else config.get("model.model_config.seq_length")
    if not seq_length or seq_length < 1:
        problems.append(f"train_dataset.data_loader.config.seq_length={seq_length} must be at least 1")
    if problems:
        raise ConfigError("; ".join(problems))
    model = read_model(config.get("model.model_config") or {}, _folder(config))
    if seq_length > model.max_position_embeddings:
        raise ConfigError(
            f"seq_length={seq_length} is longer than "
            f"max_position_embeddings={model.max_position_embeddings}; shorten one or raise the other"
        )
    layout, offset = read_layout(config), read_offset(config.get("model.model_config.offset"))
    recompute = read_recompute(config.get("recompute_config"), layout.pp).kind
    if recompute is None:
        raise ConfigError(
            f"recompute_config={config.get('recompute_config')} differs from layer to layer, which is not "
            "planned; use True or False for recompute and for select_recompute"
        )
    is_fused = config.get("context.device_target", "Ascend") == "Ascend"
    compute = config.get("model.model_config.compute_dtype", "bfloat16")
    compute_bytes = ITEM_BYTES[compute] if is_fused else 4
    return PlanSettings(
        model=model,
        layout=layout,
        offset=offset if layout.pp > 1 else (),
        micro_batch=config.get("runner_config.batch_size", 1),
        micro_batch_num=config.get("parallel_config.micro_batch_num", 1) if layout.pp > 1 else 1,
        accumulation=config.get("runner_config.gradient_accumulation_steps", 1),
        seq_length=seq_length,
        epochs=config.get("runner_config.epochs", 1),
        num_samples=_num_samples(config),
        recompute=recompute,
        parallel_optimizer=config.get("parallel.enable_parallel_optimizer", False),
        is_fused=is_fused,
        compute_bytes=compute_bytes,
        residual_bytes=4 if has_float32_residual(config) else compute_bytes,
        adapters=read_adapters(config.get("model.model_config.pet_config")),
        shares_writing=bool(callback_of(config, "CheckpointMonitor").get("remove_redundancy")),
        separate_documents=_separates_documents(config),
    )


def read_adapters(section: Any) -> Adapters | None:
    """Return the adapters that `pet_config` asks for, with mindformers' defaults.

    Raises:
        ConfigError: The section asks for another method or a rank below 1.
    """
    if not section:
        return None
    if not isinstance(section, dict):
        raise ConfigError(f"model.model_config.pet_config={section!r} must be a section with keys")
    if (kind := section.get("pet_type", "lora")) != "lora":
        raise ConfigError(f"pet_config.pet_type={kind!r} is not implemented; use lora")
    rank = section.get("lora_rank", 8)
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ConfigError(f"pet_config.lora_rank={rank!r} must be a whole number of at least 1")
    return Adapters(rank, section.get("target_modules") or ".*")


def _separates_documents(config: RunConfig) -> bool:
    """Token files are separated where their keys say so, conversations in any case."""
    loader = config.get("train_dataset.data_loader") or {}
    if (loader.get("type") or TOKENS) != TOKENS:
        return True
    keys = ("reset_attention_mask", "create_compressed_eod_mask")
    return any(config.get(f"train_dataset.data_loader.config.{key}") for key in keys)


def _range_problems(config: RunConfig) -> list[str]:
    keys = (
        "parallel_config.data_parallel", "parallel_config.model_parallel", "parallel_config.pipeline_stage",
        "parallel_config.context_parallel", "parallel_config.micro_batch_num", "runner_config.batch_size",
        "runner_config.gradient_accumulation_steps", "runner_config.epochs",
    )  # fmt: skip
    values = ((key, config.get(key, 1)) for key in keys)
    return [f"{key}={value} must be at least 1" for key, value in values if value < 1]


def _num_samples(config: RunConfig) -> int | None:
    sizes = config.get("train_dataset.data_loader.sizes") or [None]
    return sizes[0] if isinstance(sizes[0], int) and sizes[0] > 0 else None


def _folder(config: RunConfig) -> Path | None:
    text = config.get("pretrained_model_dir")
    return Path(text) if text else None
