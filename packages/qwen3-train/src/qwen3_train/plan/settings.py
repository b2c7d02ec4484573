"""What decides memory, communication and steps, read from a run's YAML without its data or device."""

from dataclasses import dataclass, fields

from qwen3_model.command.narrow import as_text
from qwen3_model.command.run_config import RunConfig
from qwen3_model.device.ascend import has_float32_residual
from qwen3_model.errors import ConfigError
from qwen3_train.layout.lora_shapes import Adapters
from qwen3_train.settings.common import StepSettings, collect, length_problems, read_common
from qwen3_train.settings.datasets import read_samples
from qwen3_train.settings.layout import reads_once
from qwen3_train.settings.run import weights_source

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanSettings(StepSettings):
    """What the planner needs to know about a run."""

    seq_length: int
    """Tokens of a row."""
    num_samples: int | None
    """Samples of an epoch; None when only the data know."""
    recompute: str
    """none, selective or full."""
    is_fused: bool
    """Ascend's fused kernels; else the plain ones of a CPU."""
    compute_bytes: int
    """Bytes of an activation's element: 2 for bfloat16, 4 for float32."""
    residual_bytes: int
    """Bytes of an element of what the layers add to, which stages send each other."""
    adapters: Adapters | None
    """LoRA adapters, which then alone are trained."""
    broadcasts: bool
    """One of the replicas reads a weight from its file and sends it to the others."""
    reads_weights: bool
    """Whether the run begins with weights of a folder or file, not with random ones."""
    num_files: int
    """Token files; 0 for conversations."""
    keeps_indexes: bool
    """Whether indexes of samples are kept for other processes and starts (path_to_cache)."""
    separate_documents: bool
    """No attention from one document or conversation of a row to another."""

    @property
    def rows(self) -> int:
        """Tokens of a micro-batch on one rank, M."""
        return self.batch_size * self.seq_length // self.layout.cp

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
    def global_batch(self) -> int:
        """Samples of a step."""
        return self.layout.data_parallel * self.batch_size * self.passes

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step."""
        return self.global_batch * self.seq_length

    @property
    def steps_per_epoch(self) -> int | None:
        """Whole steps that an epoch gives, or None when its samples are unknown."""
        return None if self.num_samples is None else self.num_samples // self.global_batch


def read_plan_settings(config: RunConfig) -> PlanSettings:
    """Turn a run's YAML into the planner's settings, by the readers that `launch` has.

    Raises:
        ConfigError: A value cannot work; all that can be found at once are named.
    """
    problems: list[str] = []
    samples = collect(problems, read_samples, config)
    common = read_common(config, problems)
    if samples is not None and common is not None:
        problems += length_problems(samples.seq_length, common.model)
    if common is not None and common.recompute.kind is None:
        problems.append(
            f"recompute_config={config.get('recompute_config')} differs from layer to layer, which is not "
            "planned; use True or False for recompute and for select_recompute"
        )
    if problems:
        raise ConfigError("; ".join(problems))
    assert samples is not None
    assert common is not None
    assert common.recompute.kind is not None
    device = as_text(config.get("context.device_target", "Ascend"))
    is_fused = device == "Ascend"
    compute = as_text(config.get("model.model_config.compute_dtype", "bfloat16"))
    compute_bytes = ITEM_BYTES[compute] if is_fused else 4
    lora = common.lora
    return PlanSettings(
        **{field.name: getattr(common, field.name) for field in fields(StepSettings)},
        seq_length=samples.seq_length,
        num_samples=samples.num_train,
        recompute=common.recompute.kind,
        is_fused=is_fused,
        compute_bytes=compute_bytes,
        residual_bytes=4 if has_float32_residual(config) else compute_bytes,
        adapters=None if lora is None else Adapters(lora.rank, lora.target_modules),
        broadcasts=reads_once(config, device),
        reads_weights=config.get("run_mode") == "finetune"
        or weights_source(config, common.hf_dir, common.resume) is not None,
        num_files=samples.num_files,
        keeps_indexes=samples.keeps_indexes,
        separate_documents=samples.separate_documents,
    )
