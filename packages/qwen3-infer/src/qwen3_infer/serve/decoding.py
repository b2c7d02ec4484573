"""How a request's fields change the way its tokens are chosen."""

from collections.abc import Mapping
from dataclasses import replace

from qwen3_infer.sampling.sampling import Sampling
from qwen3_infer.serve.errors import invalid
from qwen3_infer.serve.fields import SAMPLING
from qwen3_infer.serve.service import Service
from qwen3_infer.settings.settings import Decoding
from qwen3_model.command.narrow import as_int, as_list, as_section, build, is_number


def read_decoding(given: Mapping[str, object], service: Service) -> Decoding:
    """Lay a request's fields over the server's defaults, as flags go over generation_config.json.

    Raises:
        ApiError: A stop text, a stop id or a bias is none.
    """
    base, folder = service.defaults, service.folder
    values: dict[str, object] = {name: getattr(base.sampling, name) for name in SAMPLING}
    values |= {name: given[name] for name in SAMPLING if name in given}
    values["logit_bias"] = _logit_bias(as_section(given.get("logit_bias", {})), service)
    values["top_k"] = max(0, as_int(values["top_k"]))  # -1 is vLLM's for all
    if values["top_p"] == 0:  # the likeliest token alone, as elsewhere
        values["top_p"], values["top_k"] = 1.0, 1
    asks = any(name in given for name in ("top_p", "top_k", "min_p"))
    if asks and base.sampling.is_greedy and "temperature" not in given:
        values["temperature"] = folder.defaults.sampling.get("temperature", 1.0)
    stop_texts = _stop_texts(given)
    stop_ids = service.token_ids(as_list(given.get("stop_token_ids", [])))
    if stop_ids is None:
        raise invalid("stop_token_ids", f"must be whole numbers below {folder.config.vocab_size}")
    return replace(
        base,
        sampling=build(Sampling, values),
        stop_strings=(*base.stop_strings, *stop_texts),
        stop_ids=frozenset(stop_ids) | (frozenset() if given.get("ignore_eos") else base.stop_ids),
        num_sequences=1,
        min_tokens=as_int(given.get("min_tokens", 0)),
    )


def _stop_texts(given: Mapping[str, object]) -> list[str]:
    stop = given.get("stop") or []
    asked = as_list([stop] if isinstance(stop, str) else stop)
    texts = [text for text in asked if isinstance(text, str) and 0 < len(text) <= 1000]
    if len(asked) > 16 or len(texts) < len(asked):
        raise invalid("stop", "must be a text or up to 16 texts, of 1 to 1000 characters each")
    return texts


def _logit_bias(given: Mapping[str, object], service: Service) -> tuple[tuple[int, float], ...]:
    biases, vocab_size = [], service.folder.config.vocab_size
    for name, bias in given.items():
        token = int(name) if name.isascii() and name.isdigit() and len(name) < 10 else -1
        if not 0 <= token < vocab_size or not is_number(bias) or not -100 <= bias <= 100:
            raise invalid(
                "logit_bias", f"must have token ids below {vocab_size}, and numbers from -100 to 100"
            )
        biases.append((token, float(bias)))
    return tuple(sorted(biases))
