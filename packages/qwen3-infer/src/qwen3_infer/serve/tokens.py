"""Text to tokens and back, as vLLM's paths of the same names do it."""

from qwen3_infer.serve.errors import ApiError, invalid
from qwen3_infer.serve.fields import DETOKENIZE, TOKENIZE, check_fields
from qwen3_infer.serve.requests import check_model, thinking_of, too_long
from qwen3_infer.serve.service import Service
from qwen3_infer.text.messages import MessageError, read_messages, read_tools
from qwen3_infer.text.prompt import TooLongError, check_length, encode_conversation
from qwen3_model.command.narrow import as_list, as_text
from qwen3_model.errors import Qwen3Error


def tokenize(body: object, service: Service) -> dict[str, object]:
    """Return the ids of a text, or of messages with the chat template around them.

    Raises:
        ApiError: Something in the body is wrong.
    """
    given = check_fields(body, TOKENIZE)
    check_model({"model": service.name} | given, service)
    if ("prompt" in given) == ("messages" in given):
        raise invalid("prompt", "either prompt or messages must be there")
    tokenizer = service.folder.tokenizer
    try:
        if "prompt" in given:
            text = as_text(given["prompt"])
            check_length(text, service.max_prompt_bytes)
            ids = tokenizer.encode(text)
        else:
            messages = read_messages(as_list(given["messages"]))
            tools = read_tools(as_list(given.get("tools", [])))
            ids = encode_conversation(
                tokenizer, messages, tools, thinking=thinking_of(given, service),
                max_bytes=service.max_prompt_bytes,
            )  # fmt: skip
    except TooLongError as error:
        raise too_long(error, "prompt" if "prompt" in given else "messages", service) from None
    except MessageError as error:
        raise invalid(error.where, error.rule) from None
    except (Qwen3Error, RecursionError) as error:
        raise ApiError(400, str(error), param="prompt") from None
    texts = [tokenizer.token_text(number) for number in ids] if given.get("return_token_strs") else None
    return {"count": len(ids), "max_model_len": service.context_tokens, "tokens": ids, "token_strs": texts}


def detokenize(body: object, service: Service) -> dict[str, object]:
    """Return the text of ids, special tokens included.

    Raises:
        ApiError: Something in the body is wrong.
    """
    given = check_fields(body, DETOKENIZE)
    check_model({"model": service.name} | given, service)
    if "tokens" not in given:
        raise invalid("tokens", "is missing")
    ids = service.token_ids(as_list(given["tokens"]))
    if ids is None:
        raise invalid("tokens", f"must be whole numbers below {service.folder.config.vocab_size}")
    return {"prompt": service.folder.tokenizer.decode(ids, skip_special=False)}
