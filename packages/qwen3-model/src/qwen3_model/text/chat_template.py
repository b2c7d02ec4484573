"""Chat templates, rendered in jinja2's sandbox with the names that such templates rely on, within limits.

`template_budget` has the limits of a rendering.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import NoReturn

from jinja2 import Template, TemplateError

from qwen3_model.errors import FormatError
from qwen3_model.text.template_budget import TemplateLimitError
from qwen3_model.text.template_environment import LimitedEnvironment, render_limited

LONGEST_TEMPLATE = 2**20
"""Letters; the longest in use have some thirty thousand."""
LONGEST_DATE = 100


def render_chat_template(template: str, values: Mapping[str, object]) -> str:
    """Return the text that `template` makes of `values`.

    Raises:
        TemplateLimitError: The template is too long, or takes or makes too much.
        FormatError: The template is broken or refuses the values.
    """
    if len(template) > LONGEST_TEMPLATE:
        raise TemplateLimitError(f"the chat template has more than {LONGEST_TEMPLATE:,} letters")
    try:
        return render_limited(_compile(template), values)
    except TemplateLimitError as error:
        raise TemplateLimitError(f"the chat template goes beyond its limits: {error}") from None
    except RecursionError as error:
        raise FormatError("the chat template nests or calls itself too deep") from error
    except Exception as error:  # whatever an expression of a stranger may raise
        raise FormatError(f"the chat template refuses these messages: {error}") from error


@lru_cache(maxsize=8)
def _compile(template: str) -> Template:
    environment = LimitedEnvironment(
        {"tojson": _to_json}, {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    )
    return environment.from_string(template)


def _to_json(
    value: object,
    *,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes <, > and & for HTML, which a prompt must not have.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    if len(form) > LONGEST_DATE:
        raise TemplateLimitError(f"it asks for a date in a form of more than {LONGEST_DATE} letters")
    return datetime.now().strftime(form)
