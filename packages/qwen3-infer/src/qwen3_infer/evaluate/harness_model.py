"""The model as lm_eval, EleutherAI's evaluation harness, wants it: log-likelihoods, and texts until a stop.

Requests are cut, prefixed and ended as by the harness's own transformers backend, so that results are equal.
lm_eval is not a dependency: this module is imported when it is installed.
"""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from qwen3_infer.device import Device
from qwen3_infer.folder.model_folder import open_model_folder
from qwen3_infer.native.model import NativeModel
from qwen3_infer.processes.local import open_local
from qwen3_infer.processes.remote import RemoteModel, RemoteScorer
from qwen3_infer.sampling.sampling import SAMPLING_TYPES, Sampling
from qwen3_infer.schedule.generator import generate
from qwen3_infer.schedule.requests import Request
from qwen3_infer.settings.settings import Decoding
from qwen3_infer.steps.score_engine import Scorer
from qwen3_infer.text.prompts import Prompt
from qwen3_model.command.narrow import as_number, build
from qwen3_model.command.progress import Progress
from qwen3_model.errors import ConfigError, FormatError

if TYPE_CHECKING:  # imported where it computes
    from qwen3_infer.engine.models import MindSporeModel

DEFAULT_NEW_TOKENS = 256  # as for the harness's other models
AUTO_BATCH = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """What `--model_args` may say besides the folder."""

    load_checkpoint: str | None = None
    """Weights in place of the folder's."""
    strategy: str | None = None
    """Strategy files of that checkpoint, when they are not beside it."""
    adapter: str | None = None
    """LoRA adapter beside the weights."""
    max_length: int | None = None
    """Tokens of a sequence at most; None for the model's context."""
    enable_thinking: bool = True
    """Whether the chat template asks for a thought."""
    think_end_token: str | None = None
    """Text up to which a completion is a thought that does not count, such as `</think>`."""
    device_target: str = "CPU"
    """CPU or Ascend."""
    kernels: str = "auto"
    """Operators of a CPU: native, portable, or auto for the first that works."""
    threads: int = 2
    """Threads of the native kernels."""
    cache_dir: str | None = None
    """Keeps the compiled kernels; None for ~/.cache/qwen3-infer."""
    seed: int = 0
    """Seeds the random numbers of tasks that sample."""


@register_model("qwen3")
class Qwen3LM(TemplateLM):
    """Qwen3 on MindSpore under the name `qwen3`.

    Example:
        lm_eval.simple_evaluate(model=Qwen3LM(pretrained="Qwen3-0.6B"), tasks=["hellaswag"])
    """

    shared_model: "NativeModel | MindSporeModel | RemoteModel | None" = None
    """The model where it is loaded already, in processes that share it out; lm_eval hands on texts alone."""

    def __init__(self, pretrained: str, batch_size: int | str = 1, **arguments: object) -> None:
        """Open the folder; the weights are loaded at the first request.

        Args:
            pretrained: Hugging Face folder.
            batch_size: Generations that run together; "auto" is 8. Log-likelihoods need no batch.
            arguments: Fields of `Arguments`; the harness's `device` and `max_batch_size` have no effect.

        Raises:
            ConfigError: An argument is unknown or out of range, or the folder's parts disagree.
        """
        super().__init__()
        self.own = _read_arguments(arguments)
        parts = {
            "checkpoint": self.own.load_checkpoint,
            "strategy": self.own.strategy,
            "adapter": self.own.adapter,
        }
        paths = {name: Path(value) for name, value in parts.items() if value is not None}
        self.folder = open_model_folder(
            Path(pretrained),
            checkpoint=paths.get("checkpoint"),
            strategy=paths.get("strategy"),
            adapter=paths.get("adapter"),
        )
        self.tokenizer = self.folder.tokenizer
        self.batch_size = _batch_size(batch_size)
        context = self.folder.config.max_position_embeddings
        self.max_length = self.own.max_length or context
        if not 2 <= self.max_length <= context:
            raise ConfigError(f"max_length={self.max_length} must be 2 to {context}, the model's context")
        self._scorer: Scorer | RemoteScorer | None = None

    @property
    def eot_token_id(self) -> int:
        """Return the id that ends a text, which also stands before the first token of one."""
        return self.tokenizer.eos_id

    @property
    def tokenizer_name(self) -> str:
        """Return a name for the harness's cache of requests."""
        return f"{self.tokenizer.name}-{self.tokenizer.sha256[:12]}-thinking-{self.own.enable_thinking}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
        """Return the ids of a text in which special tokens mean themselves, as chat templates need it."""
        return self.tokenizer.encode(string, allow_special=True)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the template's text, for the harness's records."""
        return self.tokenizer.chat_template if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the prompt; without `add_generation_prompt` it ends within the last message."""
        text = self.tokenizer.apply_chat_template(
            chat_history,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=self.own.enable_thinking,
        )
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"]
        at = text.rindex(last.strip())
        kept = last.lstrip()
        return text[:at] + (kept if text[at:].startswith(kept) else last.strip())

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text, in windows of `max_length` tokens."""
        windows, counts = [], []
        for (text,) in [request.args for request in requests]:
            pairs = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            found = [(("", ""), *utils.make_disjoint_window(pair)) for pair in pairs]
            windows += found
            counts.append(len(found))
        scores = iter(self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm, cached=False))
        totals = [float(sum(next(scores)[0] for _ in range(count))) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        *,
        cached: bool = True,
        **kwargs: object,
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation and whether greedy decoding gives it."""
        cuts = [((context + wanted)[-self.max_length - 1 :], len(wanted)) for _, context, wanted in requests]
        scorer = self._make_scorer(max((len(ids) for ids, _ in cuts), default=2) - 1)
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        # In this order a question's answers follow each other, and what they share is read once.
        with Progress("score", len(cuts), "request", quiet=disable_tqdm) as progress:
            for number in sorted(range(len(cuts)), key=lambda number: cuts[number][0]):
                ids, num_wanted = cuts[number]
                if num_wanted:
                    scored = scorer.score(ids, min(num_wanted, len(ids) - 1))
                    found[number] = float(scored.log_probs_T.sum()), bool(scored.is_likeliest_T.all())
                if cached:
                    self.cache_hook.add_partial("loglikelihood", requests[number][0], found[number])
                progress.advance()
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return each completion up to the first of its stop texts or the end of text."""
        if not requests:
            return []
        asked = [self._request(index, *request.args) for index, request in enumerate(requests)]
        context = max(len(each.prompt_ids) + each.max_new_tokens for each in asked)
        engine = self._model.engine(min(self.batch_size, len(asked)), context)
        texts = [""] * len(asked)
        with Progress("generate", len(asked), "request", quiet=disable_tqdm) as progress:
            for done in generate(asked, engine, self.tokenizer):
                stops = list(done.request.decoding.stop_strings)
                number = done.request.index
                texts[number] = postprocess_generated_text(done.text, stops, self.own.think_end_token)
                self.cache_hook.add_partial("generate_until", requests[number].args, texts[number])
                progress.advance()
        return texts

    def get_model_info(self) -> dict[str, object]:
        """Return what the harness writes into its results."""
        return {"model_dtype": self._model.compute_dtype, "mindspore": version("mindspore")}

    def _request(self, index: int, text: str, settings: dict[str, object]) -> Request:
        wanted = normalize_gen_kwargs(settings, DEFAULT_NEW_TOKENS)
        new_tokens = int(wanted["max_gen_toks"])
        if not 0 < new_tokens < self.max_length:
            raise ConfigError(
                f"max_gen_toks={new_tokens} leaves no room in a context of {self.max_length} tokens"
            )
        values = dict(self.folder.defaults.sampling) if wanted["do_sample"] else {}
        values |= {key: _number(key, wanted[key]) for key in SAMPLING_TYPES if wanted.get(key) is not None}
        if not wanted["do_sample"]:
            values["temperature"] = 0.0
        end = self.tokenizer.decode([self.eot_token_id], skip_special=False)
        # A thought may hold a stop text; what follows it is cut afterwards.
        stops = [] if self.own.think_end_token else handle_stop_sequences(wanted["until"], end)
        decoding = Decoding(
            sampling=build(Sampling, values),
            max_new_tokens=new_tokens,
            is_length_explicit=True,
            stop_ids=frozenset({*self.folder.defaults.stop_ids, self.eot_token_id}),
            stop_strings=tuple(filter(None, stops)),
        )
        ids = self.tok_encode(text)[-(self.max_length - new_tokens) :] or [self.eot_token_id]
        return Request(
            index=index,
            prompt=Prompt(text=text),
            prompt_ids=tuple(ids),
            max_new_tokens=new_tokens,
            decoding=decoding,
            seed=self.own.seed,
        )

    @cached_property
    def _model(self) -> "NativeModel | MindSporeModel | RemoteModel":
        if self.shared_model is not None:
            return self.shared_model
        own = self.own
        device = Device(
            target=own.device_target,
            kernels=own.kernels,
            num_threads=own.threads,
            cache_dir=Path(own.cache_dir) if own.cache_dir else Path.home() / ".cache/qwen3-infer",
        )
        return open_local(self.folder, device, quiet=True, note=logging.getLogger("lm_eval").warning)

    def _make_scorer(self, num_tokens: int) -> Scorer | RemoteScorer:
        """Return a scorer with room for `num_tokens`; each power of two is compiled once at most."""
        if self._scorer is None or self._scorer.max_tokens < num_tokens:
            room = min(max(1 << (num_tokens - 1).bit_length(), 256), self.max_length)
            self._scorer = None  # its cache goes before the next one comes
            self._scorer = self._model.scorer(room)
        return self._scorer


def _read_arguments(values: Mapping[str, object]) -> Arguments:
    known = {field.name for field in dataclasses.fields(Arguments)}
    if unknown := sorted(values.keys() - known - {"device", "max_batch_size"}):
        raise ConfigError(
            f"model_args has {', '.join(unknown)}; the model qwen3 knows {', '.join(sorted(known))}"
        )
    found = {name: value for name, value in values.items() if name in known}
    for name, value in found.items():
        kind = {"max_length": int, "threads": int, "seed": int, "enable_thinking": bool}.get(name)
        if kind is None and not isinstance(value, str | Path | None):
            raise ConfigError(f"model_args: {name}={value!r} must be a text")
        if kind is not None and type(value) is not kind:
            what = "true or false" if kind is bool else "a whole number"
            raise ConfigError(f"model_args: {name}={value!r} must be {what}")
    return build(Arguments, found)


def _number(key: str, value: object) -> float:
    try:
        return as_number(value)
    except FormatError as error:
        raise ConfigError(f"gen_kwargs: {key}: {error}") from None


def _batch_size(value: int | str) -> int:
    text = str(value)
    if text.startswith("auto"):
        return AUTO_BATCH
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"batch_size={value} must be a whole number of at least 1, or auto")
    return int(text)
