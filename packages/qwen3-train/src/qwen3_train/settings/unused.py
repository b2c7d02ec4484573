"""Keys of a YAML that do nothing because of another key, said by `launch` and `plan` alike."""

from collections.abc import Iterator, Sequence

from qwen3_model.command.narrow import as_int, as_text
from qwen3_model.command.run_config import RunConfig
from qwen3_model.errors import UsageError
from qwen3_train.settings.profiling import KEYS as PROFILE_KEYS

CALLBACK_KEYS = {
    "MFLossMonitor": ("per_print_times",),
    "CheckpointMonitor": (
        "prefix", "save_checkpoint_steps", "keep_checkpoint_max", "checkpoint_format", "integrated_save",
        "async_save", "remove_redundancy", "save_trainable_params", "save_network_params", "exception_save",
        "directory", "keep_best",
    ),
    "TrainCallBack": ("stop_step",),
    "EarlyStopping": ("patience", "min_delta"),
    "OnRequestExit": ("config_file", "save_ckpt", "save_mindir", "file_name", "directory", "sig"),
}  # fmt: skip
PAIRS = (
    ("lr_schedule.warmup_ratio", "lr_schedule.warmup_steps"),
    ("lr_schedule.decay_ratio", "lr_schedule.decay_steps"),
    ("lr_schedule.decay_start_ratio", "lr_schedule.decay_start_steps"),
    ("lr_schedule.learning_rate", "lr_schedule.base_lr"),
)
"""Two spellings of one thing; of two in a YAML the first counts, as in mindformers."""


def with_winning_overrides(overrides: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Take the other spelling of what the command line states out of the YAML.

    Raises:
        UsageError: The command line has both.
    """
    stated, added = {key for key, value in overrides if value not in ("null", "~", "")}, []
    for pair in PAIRS:
        if stated.issuperset(pair):
            raise UsageError(f"--{pair[0]} and --{pair[1]} say the same thing in two ways; give one of them")
        for one, other in (pair, pair[::-1]):
            if one in stated:
                added.append((other, "null"))
    return [*added, *overrides]


def unused_keys(config: RunConfig) -> list[str]:
    """Return a sentence for each key or group of keys that has no effect beside the others."""
    return [*_spellings(config), *_sequence(config), *_conditions(config), *_callbacks(config)]


def _spellings(config: RunConfig) -> Iterator[str]:
    for first, second in PAIRS:
        if config.get(first) is not None and config.get(second) is not None:
            yield f"{second} has no effect beside {first}; take one of them out"
    if config.get("lr_schedule") and config.get("optimizer.learning_rate") is not None:
        yield "optimizer.learning_rate has no effect beside lr_schedule, which has the learning rate"


def _sequence(config: RunConfig) -> Iterator[str]:
    own = config.get("train_dataset.data_loader.config.seq_length")
    if own is None:
        handlers = config.sections("train_dataset.data_loader.handler")
        own = next((handler["seq_length"] for handler in handlers if handler.get("seq_length")), None)
    stated = config.get("model.model_config.seq_length")
    if stated is not None and own is not None and stated != own:
        yield f"model.model_config.seq_length={stated} has no effect: the data's seq_length is {own}"


def _conditions(config: RunConfig) -> Iterator[str]:
    for is_off, why, keys in (*_parallel(config), *_switches(config), *_sources(config)):
        found = [key for key in keys if _says_something(config.get(key))]
        if is_off and found:
            yield f"without effect, since {why}: {', '.join(found)}"


Rule = tuple[bool, str, tuple[str, ...]]


def _parallel(config: RunConfig) -> Iterator[Rule]:
    is_parallel = bool(config.get("use_parallel", False))
    section = config.section("parallel_config")

    def size(key: str) -> int:
        return as_int(section.get(key) or 1) if is_parallel else 1

    grid = (
        "data_parallel",
        "model_parallel",
        "context_parallel",
        "pipeline_stage",
        "micro_batch_num",
        "use_seq_parallel",
    )
    of_replicas = ("parallel.enable_parallel_optimizer", "parallel.parameter_broadcast")
    yield (
        not is_parallel,
        "use_parallel is not True, so parallel_config is not used",
        (*(f"parallel_config.{key}" for key in grid), *of_replicas),
    )
    if is_parallel:
        yield size("model_parallel") == 1, "model_parallel is 1", ("parallel_config.use_seq_parallel",)
        replicas = size("data_parallel") * size("context_parallel")
        yield replicas == 1, "data_parallel is 1", of_replicas
        yield size("pipeline_stage") == 1, "pipeline_stage is 1", ("parallel_config.micro_batch_num",)
    yield (
        size("context_parallel") == 1,
        "no ranks share a sequence",
        ("parallel_config.context_parallel_algo",),
    )
    of_stages = ("model.model_config.offset", "model.model_config.pp_interleave_num")
    yield size("pipeline_stage") == 1, "there is one pipeline stage", of_stages


def _switches(config: RunConfig) -> Iterator[Rule]:
    held_out = ("eval_step_interval", "eval_dataset", "train_dataset.data_loader.config.valid_data_path")
    thresholds = ("global_norm_spike_threshold", "global_norm_spike_count_threshold")
    yield not config.get("do_eval"), "do_eval is not True", held_out
    yield (
        not config.get("runner_wrapper.use_clip_grad"),
        "use_clip_grad is not True",
        ("runner_wrapper.max_grad_norm",),
    )
    yield (
        not config.get("use_skip_data_by_global_norm"),
        "use_skip_data_by_global_norm is not True",
        tuple(f"monitor_config.{key}" for key in thresholds),
    )
    yield (
        not config.get("use_skip_data_by_global_norm"),
        "a loss that is no number stops the run anyway",
        ("check_for_nan_in_loss_and_grad",),
    )
    yield (
        config.get("recompute_config.recompute") is True,
        "recompute is True for all layers",
        ("recompute_config.select_recompute",),
    )
    yield not config.get("profile"), "profile is not True", PROFILE_KEYS
    yield True, "no part is tested", ("train_dataset.data_loader.config.test_data_path",)
    yield (
        bool(config.get("train_dataset.data_loader.config.train_data_path")),
        "train_data_path names the files of each part",
        ("train_dataset.data_loader.config.split",),
    )
    yield (
        not config.get("train_dataset.data_loader.shuffle"),
        "train_dataset.data_loader.shuffle is not True",
        ("train_dataset.seed",),
    )


def _sources(config: RunConfig) -> Iterator[Rule]:
    yield (
        config.get("train_dataset.data_loader.type") != "HFDataLoader",
        "token files and samples made before need no cache",
        ("train_dataset.data_loader.cache_dir",),
    )
    layouts = (
        "use_contiguous_weight_layout", "use_contiguous_weight_layout_attention",
        "use_interleaved_weight_layout_mlp",
    )  # fmt: skip
    yield (
        not config.get("load_checkpoint"),
        "no load_checkpoint is given",
        ("src_strategy_path_or_dir", *(f"model.model_config.{key}" for key in layouts)),
    )
    yield (
        bool(config.get("load_checkpoint")) or not config.get("pretrained_model_dir"),
        "weights of any layout are read as they are",
        ("auto_trans_ckpt",),
    )


def _callbacks(config: RunConfig) -> Iterator[str]:
    seen: set[str] = set()
    for number, callback in enumerate(config.sections("callbacks")):
        if "type" not in callback:
            yield f"callbacks.{number} has no type, so it does nothing"
            continue
        kind = as_text(callback["type"])
        if kind == "OnRequestExit" and config.get("use_graceful_exit") is False:
            yield f"callbacks.{number} has no effect, since use_graceful_exit is False"
        if kind in seen:
            yield f"callbacks.{number} is a second {kind}, of which the first counts"
        seen.add(kind)
        foreign = [key for key in callback if key != "type" and key not in CALLBACK_KEYS[kind]]
        if foreign:
            yield f"callbacks.{number}: {', '.join(foreign)} means nothing to {kind}"


def _says_something(value: object) -> bool:
    """Return whether a value would change anything; in mindformers' YAMLs many switch something off."""
    return value not in (None, False, 0, "", [], {})
