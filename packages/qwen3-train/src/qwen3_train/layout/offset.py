"""mindformers' `offset`: how many layers more or fewer each pipeline stage has than an even share."""

from qwen3_model.errors import ConfigError


def read_offset(value: object) -> tuple[int, ...]:
    """Return mindformers' `offset` as one number per stage; 0 and nothing mean none.

    Raises:
        ConfigError: It is neither 0 nor a list of whole numbers.
    """
    if value in (None, 0):
        return ()
    if isinstance(value, list) and all(
        isinstance(shift, int) and not isinstance(shift, bool) for shift in value
    ):
        return tuple(value) if any(value) else ()
    raise ConfigError(
        f"model.model_config.offset={value!r} must be 0 or a list with one whole number for each stage"
    )
