"""From the body of an HTTP request to requests that the scheduler takes."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

from qwen3_infer.sampling.grammar import Grammar
from qwen3_infer.schedule.requests import Request
from qwen3_infer.serve.decoding import read_decoding
from qwen3_infer.serve.errors import ApiError, invalid
from qwen3_infer.serve.fields import CHAT, COMPLETION, check_fields
from qwen3_infer.serve.service import Service
from qwen3_infer.serve.structured import read_response_format, read_tool_choice, write_grammar
from qwen3_infer.settings.settings import Decoding
from qwen3_infer.text.messages import MessageError, read_messages, read_tools
from qwen3_infer.text.prompt import TooLongError, check_length, encode_conversation, ends_in_thought
from qwen3_infer.text.prompts import Prompt
from qwen3_model.command.narrow import as_int, as_list, as_section, optional
from qwen3_model.errors import FormatError, Qwen3Error

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's own default for completions."""
MOST_SEQUENCES = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiRequest:
    """A request of a client, understood."""

    is_chat: bool
    """Whether messages are answered, not a text continued."""
    requests: tuple[Request, ...]
    """One for each choice, in their order."""
    stream: bool
    """Whether pieces are sent as they come."""
    include_usage: bool
    """Whether the stream ends with the counts."""
    continuous_usage: bool
    """Whether each chunk has those so far."""
    has_tools: bool
    """Whether `<tool_call>` in the answer is a call."""
    starts_in_thought: bool
    """Whether the prompt ends with an open `<think>`."""
    echo: bool = False
    """Whether the answer begins with the prompt."""
    is_prompt_alone: bool = False
    """Whether the answer is no more than that; the token that a request always makes is dropped."""

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        return sum(len(request.prompt_ids) for request in self.requests if request.sample == 0)


def read_chat(body: object, service: Service) -> ApiRequest:
    """Understand a request for a chat completion.

    Raises:
        ApiError: Something in it is wrong or not implemented.
    """
    given = check_fields(body, CHAT)
    check_model(given, service)
    if "messages" not in given:
        raise invalid("messages", "is missing")
    if given.get("top_logprobs") and not given.get("logprobs"):
        raise invalid("top_logprobs", "needs logprobs: true")
    try:
        messages = read_messages(as_list(given["messages"]))
        tools = read_tools(as_list(given.get("tools", []))) if given.get("tool_choice") != "none" else ()
        forced = read_tool_choice(given.get("tool_choice"), tools)
        schema = read_response_format(given.get("response_format")) if not forced else None
        thinking = thinking_of(given, service)
        ids = encode_conversation(
            service.folder.tokenizer, messages, tools, thinking=thinking,
            max_bytes=service.max_prompt_bytes,
        )  # fmt: skip
    except TooLongError as error:
        raise too_long(error, "messages", service) from None
    except MessageError as error:
        raise invalid(error.where, error.rule) from None
    except Qwen3Error as error:
        raise ApiError(400, str(error), param="messages") from None
    except RecursionError:
        raise ApiError(400, "messages or tools are nested too deeply", param="messages") from None
    in_thought = ends_in_thought(service.folder.tokenizer, ids)
    grammar = None
    if forced or schema is not None:
        text = write_grammar(
            service.folder.tokenizer,
            schema=schema,
            tools=forced or tools,
            several=bool(given.get("parallel_tool_calls", True))
            and not isinstance(given.get("tool_choice"), dict),
            follows_thought=thinking or in_thought,
        )
        grammar = Grammar(text=text, may_think=thinking, starts_in_thought=in_thought)
        _check_grammar(grammar, "tool_choice" if forced else "response_format", service)
    decoding = replace(
        read_decoding(given, service),
        logprobs=bool(given.get("logprobs")),
        top_logprobs=as_int(given.get("top_logprobs", 0)),
        grammar=grammar,
    )
    if grammar:  # behind a whole answer nothing else may follow, also with ignore_eos
        ends = decoding.stop_ids | {service.folder.tokenizer.eos_id}
        decoding = replace(decoding, stop_ids=ends)
    length = optional(as_int, given.get("max_completion_tokens", given.get("max_tokens")))
    return ApiRequest(
        is_chat=True,
        requests=_requests([ids], given, decoding, length, service),
        stream=bool(given.get("stream")),
        **_usage_wanted(given),
        has_tools=bool(tools),
        starts_in_thought=in_thought,
    )


def read_completion(body: object, service: Service) -> ApiRequest:
    """Understand a request for a completion.

    Raises:
        ApiError: Something in it is wrong or not implemented.
    """
    given = check_fields(body, COMPLETION)
    check_model(given, service)
    if "prompt" not in given:
        raise invalid("prompt", "is missing")
    num_likeliest = optional(as_int, given.get("logprobs"))
    decoding = replace(
        read_decoding(given, service), logprobs=num_likeliest is not None, top_logprobs=num_likeliest or 0
    )
    prompts = _prompt_ids(given["prompt"], service)
    length = as_int(given.get("max_tokens", DEFAULT_COMPLETION_TOKENS))
    echo = bool(given.get("echo"))
    if length == 0 and not echo:
        raise invalid("max_tokens", "must be at least 1 without echo")
    if echo:
        decoding = replace(decoding, prompt_logprobs=num_likeliest)
    return ApiRequest(
        is_chat=False,
        requests=_requests(prompts, given, decoding, length or 1, service),
        stream=bool(given.get("stream")),
        **_usage_wanted(given),
        has_tools=False,
        starts_in_thought=False,
        echo=echo,
        is_prompt_alone=length == 0,
    )


def _check_grammar(grammar: Grammar, param: str, service: Service) -> None:
    """Raise when an answer cannot be made to follow `grammar`."""
    try:
        service.grammars.compile(grammar.text)
    except FormatError as error:
        raise invalid(param, f"the JSON schema cannot be followed: {error}") from None


def check_model(given: Mapping[str, object], service: Service) -> None:
    """Raise ApiError unless the request names the model that is here."""
    if "model" not in given:
        raise invalid("model", "is missing")
    if given["model"] != service.name:
        raise ApiError(
            404,
            f"The model {given['model']!r} does not exist; this server has {service.name!r}",
            param="model",
            code="model_not_found",
        )


def thinking_of(given: Mapping[str, object], service: Service) -> bool:
    """Return whether the model shall think."""
    settings = as_section(given.get("chat_template_kwargs", {}))
    named_keys = {key for key, value in settings.items() if value is not None}
    if unknown := sorted(named_keys - {"enable_thinking"}):
        raise invalid("chat_template_kwargs", f"knows enable_thinking alone, not {', '.join(unknown)}")
    named = given.get("enable_thinking", settings.get("enable_thinking"))
    if named is None and "reasoning_effort" in given:
        named = given["reasoning_effort"] not in ("none", "minimal")
    if not isinstance(named, bool | None):
        raise invalid("chat_template_kwargs", "enable_thinking must be true or false")
    return service.thinking if named is None else named


def _usage_wanted(given: Mapping[str, object]) -> dict[str, bool]:
    """Return when a stream tells the counts, as arguments of `ApiRequest`."""
    options = as_section(given.get("stream_options", {}))
    if unknown := sorted(options.keys() - {"include_usage", "include_obfuscation", "continuous_usage_stats"}):
        raise invalid("stream_options", f"has no {', '.join(unknown)}")
    if not all(isinstance(value, bool | None) for value in options.values()):
        raise invalid("stream_options", "must hold true or false alone")
    is_wanted = bool(options.get("include_usage"))
    return {
        "include_usage": is_wanted,
        "continuous_usage": is_wanted and bool(options.get("continuous_usage_stats")),
    }


def _prompt_ids(prompt: object, service: Service) -> list[list[int]]:
    """Return the ids of each prompt; special tokens spelled in a text are text."""
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and isinstance(prompt[0], int)):
        prompt = [prompt]
    prompts = as_list(prompt)
    if not prompts or len(prompts) > MOST_SEQUENCES:
        raise invalid("prompt", f"must be 1 to {MOST_SEQUENCES} prompts")
    texts = [text for text in prompts if isinstance(text, str)]
    if len(texts) == len(prompts):
        found = _encode_texts(texts, service)
    else:
        lists = [service.token_ids(each) if isinstance(each, list) else None for each in prompts]
        found = [ids for ids in lists if ids is not None]
        if len(found) < len(lists):
            raise invalid(
                "prompt", f"must be texts, or lists of token ids below {service.folder.config.vocab_size}"
            )
    if not all(found):
        raise invalid("prompt", "is empty; the model needs at least one token to go on from")
    return found


def _encode_texts(texts: list[str], service: Service) -> list[list[int]]:
    try:
        for text in texts:
            check_length(text, service.max_prompt_bytes)
        return service.folder.tokenizer.encode_batch(texts)
    except TooLongError as error:
        raise too_long(error, "prompt", service) from None
    except Qwen3Error as error:
        raise ApiError(400, str(error), param="prompt") from None


def too_long(error: TooLongError, param: str, service: Service) -> ApiError:
    """Return the answer to a prompt that is not worth tokenising."""
    fewest = -(-error.num_bytes // service.token_bytes)
    return ApiError(
        400,
        f"a request has room for {service.context_tokens} tokens, but the prompt has {error.num_bytes} "
        f"bytes, which are at least {fewest} tokens; shorten it",
        param=param,
        code="context_length_exceeded",
    )


def _requests(
    prompts: list[list[int]],
    given: Mapping[str, object],
    decoding: Decoding,
    length: int | None,
    service: Service,
) -> tuple[Request, ...]:
    num_samples = as_int(given.get("n", 1))
    if len(prompts) * num_samples > MOST_SEQUENCES:
        raise invalid("n", f"times the number of prompts must be at most {MOST_SEQUENCES}")
    length = None if length == -1 else length
    fewest = max(length or 1, decoding.min_tokens)
    if length and decoding.min_tokens > length:
        raise invalid("min_tokens", f"is more than the {length} tokens that may be made")
    seed = as_int(given["seed"]) % 2**64 if "seed" in given else secrets.randbits(64)
    made = []
    for index, ids in enumerate(prompts):
        room = service.context_tokens - len(ids)
        if room < fewest:
            raise ApiError(
                400,
                f"a request has room for {service.context_tokens} tokens, but the prompt has {len(ids)} and "
                f"{fewest} are to follow; shorten one of them",
                param="messages" if "messages" in given else "prompt",
                code="context_length_exceeded",
            )
        request = Request(
            index=index,
            prompt=Prompt(),
            prompt_ids=tuple(ids),
            max_new_tokens=length or min(room, max(decoding.max_new_tokens, fewest)),
            decoding=decoding,
            seed=seed,
        )
        made += [replace(request, sample=sample) for sample in range(num_samples)]
    return tuple(made)
