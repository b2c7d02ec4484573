"""What a generation does, settled from three sources: the model's folder, then the YAML, then flags."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen3_infer.folder.generation_config import GenerationConfig
from qwen3_infer.folder.model_folder import ModelFolder, open_model_folder
from qwen3_infer.sampling.grammar import Grammar
from qwen3_infer.sampling.sampling import SAMPLING_TYPES, Sampling
from qwen3_infer.settings.schema import FLAG_KEYS, PREDICT
from qwen3_model.checkpoints.companions import find_companions
from qwen3_model.checkpoints.fused import FusedLayout, read_fused_layout
from qwen3_model.checkpoints.weight_files import is_distributed
from qwen3_model.command.keys import parse_dotted
from qwen3_model.command.narrow import as_flag, as_int, as_list, as_section, as_text, build, optional
from qwen3_model.command.run_config import RunConfig, load_run_config, parse_run_config, peek_values
from qwen3_model.device.ascend import AscendSettings, read_ascend_settings
from qwen3_model.device.cann import require_cann
from qwen3_model.device.simulation import default_device, read_simulation
from qwen3_model.errors import ConfigError, UsageError

DEFAULT_NEW_TOKENS = 512
DEFAULT_RESULT = "text_generation_result.txt"
MODEL_PARALLEL = "parallel_config.model_parallel"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """What the YAML and the flags say, before the model's folder is read."""

    model_dir: Path
    """The Hugging Face folder."""
    load_checkpoint: Path | None
    """Weights to take instead of that folder's: a run, a checkpoint of any layout, a merged one or a file."""
    strategy: Path | None
    """Where that checkpoint's strategy files are, when not beside it."""
    fused_layout: FusedLayout
    """Order of rows in mindformers' fused weights, should that checkpoint have them."""
    adapter: Path | None
    """A LoRA adapter: PEFT's folder, or a run that trained one."""
    model_parallel: int
    """Processes that share the model out."""
    output_dir: Path
    """Has the logs of these processes."""
    predict_data: tuple[str, ...]
    """Texts and files with prompts."""
    batch_size: int
    """Requests that run together."""
    max_tokens_in_cache: int | None
    """Room for them; None for as much as that many of the longest need."""
    result_path: Path
    """The text file with all results."""
    device_target: str
    """CPU or Ascend."""
    ascend: AscendSettings
    """Settings of the device, should it be Ascend."""
    seed: int
    """Seed of all random numbers."""
    chat: bool
    """Whether the chat template is put around the prompts."""
    thinking: bool
    """Whether the model thinks before it answers."""
    generation: Mapping[str, object]
    """The YAML's `generation` section with the flags over it."""
    notes: tuple[str, ...]
    """What to tell the user about keys without effect."""

    def sources(self) -> list[Path]:
        """Return every path that is read, prompts that are texts among them."""
        paths = (self.load_checkpoint, self.strategy, self.adapter)
        return [self.model_dir, *filter(None, paths), *map(Path, self.predict_data)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """How completions are chosen and ended."""

    sampling: Sampling
    """How a token is chosen."""
    max_new_tokens: int
    """Longest completion."""
    is_length_explicit: bool
    """Whether the user asked for that length, so that a prompt without room for it is an error."""
    stop_ids: frozenset[int]
    """Tokens that end a completion."""
    stop_strings: tuple[str, ...]
    """Texts that end a completion and are cut off."""
    num_sequences: int = 1
    """Completions of each prompt."""
    logprobs: bool = False
    """Whether the model's log-probability of each token is kept."""
    top_logprobs: int = 0
    """Number of likeliest tokens whose log-probabilities are kept as well."""
    prompt_logprobs: int | None = None
    """Number of likeliest tokens whose log-probabilities are kept at each token of the prompt, beside that
    token's own; None for neither."""
    min_tokens: int = 0
    """None of `stop_ids` is chosen before so many tokens."""
    grammar: Grammar | None = None
    """What the completion must be."""


def read_settings(
    config_path: Path | None,
    flags: Mapping[str, object],
    overrides: tuple[str, ...],
    *,
    worker_num: int = 1,
    environment: Mapping[str, str] | None = None,
) -> RunSettings:
    """Join the YAML, dotted overrides and flags; a flag that is None or () was not given.

    Args:
        config_path: The YAML, or None.
        flags: By their names in Python.
        overrides: `--section.key value`.
        worker_num: Processes that the command starts; 1 for a command that runs in one alone.
        environment: The process's environment; may ask for a dry run, see `read_simulation`.

    Raises:
        UsageError: A flag or an override is no key, or something needed is not given.
        ConfigError: The YAML is unreadable or has unknown keys or wrong values.
    """
    run = read_run_config(config_path, overrides)
    given = {FLAG_KEYS[name]: value for name, value in flags.items() if value not in (None, ())}

    def value_of(key: str, default: object = None) -> object:
        return given.get(key, run.get(key, default))

    paths = {
        key: Path(as_text(value)) if (value := value_of(key)) else None
        for key in ("pretrained_model_dir", "load_checkpoint", "src_strategy_path_or_dir", "adapter")
    }
    checkpoint = paths["load_checkpoint"]
    model_dir = paths["pretrained_model_dir"] or (find_companions(checkpoint) if checkpoint else None)
    if model_dir is None and checkpoint is not None:
        raise UsageError(
            f"there is no config.json beside {checkpoint}; give the model's folder as --pretrained-model-dir"
        )
    if model_dir is None:
        raise UsageError("give the model's folder as --pretrained-model-dir DIR")
    if checkpoint is None and is_distributed(model_dir):
        checkpoint = model_dir  # a run has its own config.json and tokenizer
    batch_size = as_int(value_of("predict_batch_size", 1))
    if batch_size < 1:
        raise UsageError(f"--predict-batch-size {batch_size} must be at least 1")
    max_tokens = optional(as_int, value_of("max_tokens_in_cache"))
    if max_tokens is not None and max_tokens < 64:
        raise UsageError(f"--max-tokens-in-cache {max_tokens} must be at least 64")
    generation, device = (
        _generation(run, given),
        _device(optional(as_text, value_of("context.device_target")), environment or {}),
    )
    return RunSettings(
        model_dir=model_dir,
        load_checkpoint=checkpoint,
        strategy=paths["src_strategy_path_or_dir"],
        fused_layout=read_fused_layout(run),
        adapter=paths["adapter"],
        model_parallel=_model_parallel(run, worker_num),
        output_dir=Path(as_text(value_of("output_dir", "output"))),
        predict_data=_texts(value_of("predict_data", ())),
        batch_size=batch_size,
        max_tokens_in_cache=max_tokens,
        result_path=Path(as_text(value_of("save_file", DEFAULT_RESULT))),
        device_target=device,
        ascend=read_ascend_settings(run, device, worker_num),
        seed=_seed(as_int(value_of("seed", 0))),
        chat=bool(generation.get("chat", False)),
        thinking=bool(generation.get("thinking", True)),
        generation=generation,
        notes=run.notes + _unused_layout(run) + _unused_mode(run),
    )


def read_run_config(config_path: Path | None, overrides: Sequence[str]) -> RunConfig:
    """Read the YAML, if any, with dotted overrides put in.

    Raises:
        UsageError: An override is no key, or the YAML is for training.
        ConfigError: The YAML is unreadable or has unknown keys or wrong values.
    """
    if overrides and Path(overrides[0]).is_dir():
        raise UsageError(
            f"unexpected argument {overrides[0]!r}; name the model's folder as --pretrained-model-dir "
            f"{overrides[0]}"
        )
    pairs = parse_dotted(overrides, PREDICT, {"device": "context.device_target"})
    mode: object = dict(pairs).get("run_mode")
    if mode is None and config_path is not None:
        values = peek_values(config_path)
        mode = values.get("run_mode") if isinstance(values, dict) else None
    if mode in ("train", "finetune"):
        given = f"--config {config_path}" if config_path else "the YAML of a run"
        raise UsageError(
            f"run_mode='{mode}' is not for this command; use qwen3-train launch or qwen3-train plan with "
            f"{given}; to generate with what a run has trained give its folder as --pretrained-model-dir"
        )
    if config_path is None:
        return parse_run_config("", pairs, PREDICT, where="the command line")
    return load_run_config(config_path, pairs, PREDICT)


def _texts(data: object) -> tuple[str, ...]:
    texts = []
    for number, value in enumerate([data] if isinstance(data, str) else as_list(data), start=1):
        if not isinstance(value, str):
            raise ConfigError(
                f"predict_data: entry {number} is {value!r}, which is no text; put a prompt or a file's name "
                "in quotes"
            )
        texts.append(value)
    return tuple(texts)


def _device(wanted: str | None, environment: Mapping[str, str]) -> str:
    """Return CPU or Ascend, which must be there unless the environment asks for a dry run."""
    simulation = read_simulation(environment)
    available = default_device(simulation)
    device = available if wanted in (None, "auto") else wanted
    if device == "Ascend" and available != "Ascend":
        raise ConfigError("context.device_target=Ascend but this machine has none; use --device cpu")
    if device == "Ascend" and simulation is None:
        require_cann(environment)
    return device


def _model_parallel(run: RunConfig, worker_num: int) -> int:
    """Return how many processes share the model out, which is all that are started."""
    if worker_num < 1:
        raise UsageError(f"--worker-num {worker_num} must be at least 1")
    is_parallel, wanted = run.get("use_parallel"), as_int(run.get(MODEL_PARALLEL, worker_num))
    if is_parallel is False and worker_num > 1:
        raise UsageError(
            f"use_parallel is False but --worker-num is {worker_num}; add --use_parallel True "
            f"--{MODEL_PARALLEL} {worker_num}"
        )
    if is_parallel is not False and wanted != worker_num:
        raise UsageError(
            f"{MODEL_PARALLEL}={wanted} needs {wanted} processes, not {worker_num}; make it and "
            "--worker-num equal, or set use_parallel to False"
        )
    return worker_num


def _unused_layout(run: RunConfig) -> tuple[str, ...]:
    wanted = as_int(run.get(MODEL_PARALLEL, 1))
    if run.get("use_parallel") is False and wanted > 1:
        return (f"{MODEL_PARALLEL}={wanted} has no effect while use_parallel is False",)
    return ()


def _unused_mode(run: RunConfig) -> tuple[str, ...]:
    if run.get("context.mode") == 1:
        return ("context.mode=1 has no effect: the model runs as compiled graphs",)
    return ()


def _generation(run: RunConfig, given: Mapping[str, object]) -> dict[str, object]:
    flags = {
        key.removeprefix("generation."): value
        for key, value in given.items()
        if key.startswith("generation.")
    }
    return {**as_section(run.get("generation", {})), **flags}


def _seed(seed: int) -> int:
    if seed < 0:
        raise UsageError(f"--seed {seed} must be at least 0")
    return seed


def open_run_folder(settings: RunSettings) -> ModelFolder:
    """Open the model that the settings name, see `open_model_folder`."""
    return open_model_folder(
        settings.model_dir,
        checkpoint=settings.load_checkpoint,
        strategy=settings.strategy,
        adapter=settings.adapter,
        fused_layout=settings.fused_layout,
    )


def make_decoding(settings: RunSettings, defaults: GenerationConfig, vocab_size: int) -> Decoding:
    """Lay the run's `generation` section over the model's defaults.

    Naming a temperature, top_k, top_p or min_p asks for sampling; `do_sample: False` and temperature 0 are
    greedy.

    Raises:
        ConfigError: A value is out of range, or greedy and sampling are asked for together.
    """
    own = settings.generation
    asked = [key for key in ("temperature", "top_k", "top_p", "min_p") if own.get(key) is not None]
    wants_greedy = own.get("do_sample") is False
    if wants_greedy and [key for key in asked if not (key == "temperature" and own[key] == 0)]:
        raise ConfigError(f"do_sample is off but {', '.join(asked)} is given; leave one of them out")
    is_random = own.get("do_sample", defaults.do_sample) or bool(asked)
    values: dict[str, object] = {
        **defaults.sampling,
        **{key: own[key] for key in SAMPLING_TYPES if key in own},
    }
    if not is_random:
        values["temperature"] = 0.0
    length = optional(as_int, own.get("max_new_tokens"))
    if length is not None and length < 1:
        raise ConfigError(f"max_new_tokens={length} must be at least 1")
    stop = own.get("stop", ())
    asked_stops = [stop] if isinstance(stop, str) else as_list(stop)
    stop_strings = tuple(text for text in asked_stops if isinstance(text, str) and text)
    if len(stop_strings) < len(asked_stops):
        raise ConfigError(f"stop={list(asked_stops)} must be texts that are not empty")
    num_sequences = as_int(own.get("num_return_sequences", 1))
    if num_sequences < 1 or (num_sequences > 1 and not values.get("temperature", 1.0)):
        raise ConfigError(
            f"num_return_sequences={num_sequences} must be at least 1, and 1 when the likeliest token is "
            "taken, which gives the same completion every time"
        )
    return Decoding(
        sampling=build(Sampling, values),
        max_new_tokens=length or defaults.max_new_tokens or DEFAULT_NEW_TOKENS,
        is_length_explicit=length is not None,
        stop_ids=frozenset(defaults.stop_ids) | _extra_stop_ids(as_list(own.get("stop_ids", ())), vocab_size),
        stop_strings=stop_strings,
        num_sequences=num_sequences,
        logprobs=as_flag(own.get("logprobs", False)),
    )


def _extra_stop_ids(values: Sequence[object], vocab_size: int) -> frozenset[int]:
    ids = set()
    for number in values:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < vocab_size:
            raise ConfigError(f"stop id {number!r} is no token of a vocabulary of {vocab_size} rows")
        ids.add(number)
    return frozenset(ids)
