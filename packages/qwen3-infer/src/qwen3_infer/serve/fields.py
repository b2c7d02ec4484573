"""The fields of OpenAI's requests: which have a type and a range here, which only one value, which no effect.

A field that is not known is refused, as OpenAI does; those of other servers pass where they ask for nothing.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from qwen3_infer.sampling.sampling import MOST_PENALTY
from qwen3_infer.serve.errors import ApiError, invalid
from qwen3_model.command.narrow import as_int, as_number


@dataclass(frozen=True, slots=True)
class Field:
    """What values a field may have; null is always the same as leaving it out."""

    types: tuple[type, ...]
    rule: str
    accepts: Callable[[object], bool] = lambda _: True
    schema: Mapping[str, object] = field(default_factory=dict)
    """The field's JSON Schema, as far as that can state what is accepted."""


def _number(low: float, high: float) -> Field:
    return Field(
        (int, float),
        f"must be a number from {low:g} to {high:g}",
        lambda v: low <= as_number(v) <= high,
        {"type": "number", "minimum": low, "maximum": high},
    )


def _count(low: int, high: int) -> Field:
    return Field(
        (int,),
        f"must be a whole number from {low} to {high}",
        lambda v: low <= as_int(v) <= high,
        {"type": "integer", "minimum": low, "maximum": high},
    )


def _neutral(*values: object) -> Field:
    shown = " or ".join(map(repr, values))
    # True equals 1, and is another value.
    kept = [(type(value) is bool, value) for value in values]
    return Field(
        (object,),
        f"only {shown} is implemented here",
        lambda v: (type(v) is bool, v) in kept,
        {"enum": list(values)},
    )


def _one_of(*values: str) -> Field:
    return Field((str,), f"must be one of {', '.join(values)}", lambda v: v in values, {"enum": list(values)})


FLAG = Field((bool,), "must be true or false", schema={"type": "boolean"})
TEXT = Field((str,), "must be a text", schema={"type": "string"})
TABLE = Field((dict,), "must be an object", schema={"type": "object"})
ANYTHING = Field((object,), "")
LENGTH = Field(
    (int,),
    "must be a whole number of at least 1, or -1 for as many as there is room for",
    lambda v: v == -1 or 1 <= as_int(v) < 2**31,
    {"type": "integer", "minimum": -1, "maximum": 2**31 - 1},
)
NO_OR_LENGTH = Field(
    (int,),
    "must be a whole number, 0 with echo alone, or -1 for as many as there is room for",
    lambda v: -1 <= as_int(v) < 2**31,
    LENGTH.schema,
)
EFFORT = _one_of("none", "minimal", "low", "medium", "high", "xhigh")
"""All but the first two let the model think."""
SEED = Field((int,), "must be a whole number", schema={"type": "integer"})
STOP = Field(
    (str, list),
    "must be a text or a list of up to 16 texts",
    schema={"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": 16}]},
)
TOOLS = Field((list,), "must be a list of functions", schema={"type": "array", "items": {"type": "object"}})
CHOICE = Field(
    (str, dict),
    "must be a text or an object",
    schema={"anyOf": [{"enum": ["auto", "none", "required"]}, {"type": "object"}]},
)
IDS = Field(
    (list,),
    "must be a list of whole numbers",
    schema={"type": "array", "items": {"type": "integer", "minimum": 0}},
)
PROMPT = Field(
    (str, list),
    "must be a text, a list of token ids, or a list of texts or of such lists",
    schema={"anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
        {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
        {"type": "array", "minItems": 1, "items": {**IDS.schema, "minItems": 1}},
    ]},
)  # fmt: skip
MESSAGES = Field(
    (list,),
    "must be a list of at least one message",
    bool,
    {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["role"]}},
)
# Fields of other servers, at the values that change nothing here.
ELSEWHERE: dict[str, Field] = {
    "skip_special_tokens": _neutral(True), "spaces_between_special_tokens": _neutral(True, False),
    "add_generation_prompt": _neutral(True), "continue_final_message": _neutral(False),
    "add_special_tokens": _neutral(False), "include_stop_str_in_output": _neutral(False),
    "use_beam_search": _neutral(False), "best_of": _neutral(1), "length_penalty": _neutral(1),
    "early_stopping": _neutral(False), "typical_p": _neutral(1), "top_a": _neutral(0), "tfs": _neutral(1),
    "mirostat": _neutral(0), "no_repeat_ngram_size": _neutral(0), "dry_multiplier": _neutral(0),
    "xtc_probability": _neutral(0), "priority": _neutral(0), "echo": _neutral(False), "suffix": _neutral(""),
    "truncate_prompt_tokens": _neutral(-1), "prompt_logprobs": _neutral(False, 0), "documents": _neutral([]),
    "bad_words": _neutral([]), "return_token_ids": _neutral(False), "separate_reasoning": _neutral(True),
    "include_reasoning": _neutral(True), "stream_reasoning": ANYTHING, "cache_prompt": ANYTHING,
    "id_slot": ANYTHING, "keep_alive": ANYTHING, "request_id": ANYTHING, "cache_salt": ANYTHING,
    "prediction": _neutral({}), "web_search_options": _neutral({}), "timings_per_token": _neutral(False),
}  # fmt: skip

SAMPLING: dict[str, Field] = {
    "temperature": _number(0, 2), "top_p": _number(0, 1), "top_k": _count(-1, 2**31 - 1),
    "min_p": _number(0, 1), "repetition_penalty": _number(1 / MOST_PENALTY, MOST_PENALTY),
    "presence_penalty": _number(-2, 2), "frequency_penalty": _number(-2, 2),
}  # fmt: skip
"""Fields of `Sampling`, OpenAI's and our own; every request that generates takes them."""
COMMON: dict[str, Field] = ELSEWHERE | SAMPLING | {
    "model": TEXT, "stream": FLAG, "stream_options": TABLE, "n": _count(1, 128),
    "max_tokens": LENGTH, "min_tokens": _count(0, 2**31 - 1), "ignore_eos": FLAG,
    "seed": SEED, "stop": STOP,
    "logit_bias": TABLE,
    # Without effect.
    "user": ANYTHING, "metadata": ANYTHING, "store": ANYTHING, "service_tier": ANYTHING,
    "safety_identifier": ANYTHING, "prompt_cache_key": ANYTHING, "prompt_cache_retention": ANYTHING,
    # Our own.
    "stop_token_ids": IDS,
}  # fmt: skip
CHAT: dict[str, Field] = COMMON | {
    "messages": MESSAGES,
    "max_completion_tokens": LENGTH, "logprobs": FLAG, "top_logprobs": _count(0, 20),
    "tools": TOOLS, "tool_choice": CHOICE, "parallel_tool_calls": FLAG,
    "response_format": TABLE, "functions": _neutral([]), "function_call": _neutral("none"),
    "modalities": _neutral(["text"]), "verbosity": ANYTHING,
    "reasoning_effort": EFFORT,
    "enable_thinking": FLAG, "chat_template_kwargs": TABLE,
}  # fmt: skip
COMPLETION: dict[str, Field] = COMMON | {
    "max_tokens": NO_OR_LENGTH, "echo": FLAG,
    "prompt": PROMPT,
    "logprobs": _count(0, 20),
}  # fmt: skip


RESPONSES: dict[str, Field] = SAMPLING | {
    "model": TEXT, "stream": FLAG, "instructions": TEXT,
    "input": Field((str, list), "must be a text or a list of items",
                   schema={"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}),
    "max_output_tokens": LENGTH, "seed": SEED,
    "reasoning": TABLE, "text": TABLE, "tools": TOOLS, "tool_choice": CHOICE, "parallel_tool_calls": FLAG,
    "enable_thinking": FLAG, "chat_template_kwargs": TABLE,
    # Without effect, or only at the value that asks for nothing.
    "user": ANYTHING, "metadata": ANYTHING, "store": ANYTHING, "service_tier": ANYTHING, "include": ANYTHING,
    "safety_identifier": ANYTHING, "prompt_cache_key": ANYTHING, "prompt_cache_retention": ANYTHING,
    "stream_options": ANYTHING, "max_tool_calls": ANYTHING, "truncation": _neutral("disabled", "auto"),
    "background": _neutral(False), "top_logprobs": _neutral(0),
}  # fmt: skip
TOKENIZE: dict[str, Field] = {
    "model": TEXT, "prompt": TEXT, "messages": MESSAGES, "tools": TOOLS, "return_token_strs": FLAG,
    "add_special_tokens": ANYTHING, "add_generation_prompt": _neutral(True),
    "continue_final_message": _neutral(False), "enable_thinking": FLAG, "chat_template_kwargs": TABLE,
    "reasoning_effort": EFFORT,
}  # fmt: skip
DETOKENIZE: dict[str, Field] = {"model": TEXT, "tokens": IDS}


def check_fields(body: object, fields: Mapping[str, Field]) -> dict[str, object]:
    """Return the fields of a request that are given and not null.

    Raises:
        ApiError: The body is no object, or a field is unknown or has a wrong value.
    """
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    for name in body:
        if name not in fields:
            raise ApiError(
                400, f"Unrecognized request argument supplied: {name}", param=name, code="unknown_parameter"
            )
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        field = fields[name]
        # True is an int in Python, but no number in JSON.
        is_type = isinstance(value, field.types) and (
            not isinstance(value, bool) or bool in field.types or object in field.types
        )
        is_finite = not isinstance(value, float) or math.isfinite(value)
        if not (is_type and is_finite and field.accepts(value)):
            raise invalid(name, field.rule)
    return given
