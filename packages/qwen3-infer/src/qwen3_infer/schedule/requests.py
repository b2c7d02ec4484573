"""Requests ready to run: prompts as ids that fit into the model's context."""

from collections.abc import Sequence
from dataclasses import dataclass

from qwen3_infer.folder.model_folder import ModelFolder
from qwen3_infer.settings.settings import Decoding
from qwen3_infer.text.messages import read_messages
from qwen3_infer.text.prompt import encode_conversation
from qwen3_infer.text.prompts import Prompt
from qwen3_model.command.plain_text import counted
from qwen3_model.errors import ConfigError, FormatError
from qwen3_model.text.tokenizer import Qwen3Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt and how to complete it."""

    index: int
    """Index of the prompt in the input, from 0."""
    sample: int = 0
    """Which of the completions of that prompt."""
    prompt: Prompt
    """The prompt's text as the user wrote it."""
    prompt_ids: tuple[int, ...]
    """What the model reads."""
    max_new_tokens: int
    """Longest completion in tokens, the end-of-text token counted."""
    decoding: Decoding
    """How tokens are chosen and when to stop."""
    seed: int
    """Seed of the run; the request's random numbers depend on it, `index` and `sample` alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptForm:
    """How prompts become ids."""

    chat: bool
    """Whether the chat template is put around them."""
    thinking: bool
    """Whether the template asks the model to think first."""
    allow_special: bool
    """Whether `<|im_end|>` and the like in a plain text are tokens."""


def make_requests(
    prompts: Sequence[Prompt],
    folder: ModelFolder,
    decoding: Decoding,
    form: PromptForm,
    *,
    seed: int,
    truncate: bool = False,
    context_tokens: int | None = None,
) -> list[Request]:
    """Tokenise all prompts and check their lengths.

    Args:
        prompts: What to complete.
        folder: The model's tokenizer and context.
        decoding: How to complete.
        form: How prompts become ids.
        seed: Seed of the run.
        truncate: Whether a prompt that is too long loses its beginning instead of being refused.
        context_tokens: Room for prompt and completion; the model's context when left out.

    Raises:
        ConfigError: A prompt is too long for the context; the numbers are in the message.
        FormatError: A prompt is empty or is no Unicode text, or a conversation is not asked for with --chat.
    """
    requests: list[Request] = []
    for index, prompt in enumerate(prompts):
        ids = encode_prompt(prompt, folder.tokenizer, form)
        ids, max_new_tokens = _fit(
            ids,
            decoding,
            context_tokens or folder.config.max_position_embeddings,
            prompt.where,
            truncate=truncate,
        )
        requests.extend(
            Request(
                index=index,
                sample=sample,
                prompt=prompt,
                prompt_ids=tuple(ids),
                max_new_tokens=max_new_tokens,
                decoding=decoding,
                seed=seed,
            )
            for sample in range(decoding.num_sequences)
        )
    return requests


def encode_prompt(prompt: Prompt, tokenizer: Qwen3Tokenizer, form: PromptForm) -> list[int]:
    """Return the ids of one prompt."""
    try:
        if form.chat:
            messages = prompt.messages or ({"role": "user", "content": prompt.text},)
            read = read_messages(messages)
            return encode_conversation(tokenizer, read, prompt.tools, thinking=form.thinking)
        ids = tokenizer.encode(prompt.text or "", allow_special=form.allow_special)
    except FormatError as error:
        raise FormatError(f"{prompt.where}: {error}") from None
    if prompt.messages or prompt.tools:
        raise FormatError(f"{prompt.where} has messages or tools, which need the chat template; add --chat")
    if not ids:
        raise FormatError(f"{prompt.where} is empty; the model needs at least one token to go on from")
    return ids


def special_texts(prompts: Sequence[Prompt], tokenizer: Qwen3Tokenizer) -> list[str]:
    """Return the special tokens that occur as text in plain prompts."""
    return [
        token
        for token in tokenizer.special_tokens
        if any(prompt.text and token in prompt.text for prompt in prompts)
    ]


def _fit(
    ids: list[int], decoding: Decoding, context: int, where: str, *, truncate: bool
) -> tuple[list[int], int]:
    """Return the ids and the length of the completion that fit into `context` tokens."""
    wanted = decoding.max_new_tokens if decoding.is_length_explicit else 1
    if wanted >= context:
        raise ConfigError(f"max_new_tokens={wanted} leaves no room in a context of {context} tokens")
    if len(ids) + wanted > context:
        if not truncate:
            raise ConfigError(
                f"{where} has {counted(len(ids), 'token')}, which with {wanted} new ones exceeds the "
                "context of "
                f"{context}; shorten it or pass --truncate to keep its last "
                f"{counted(context - wanted, 'token')}"
            )
        ids = ids[len(ids) + wanted - context :]
    return ids, min(decoding.max_new_tokens, context - len(ids))
