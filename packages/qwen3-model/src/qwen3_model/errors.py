"""The errors that a user can cause; each message says what failed, where, the rule and the remedy."""


class Qwen3Error(Exception):
    """Anything that a command reports as one sentence with exit code 1."""


class ConfigError(Qwen3Error):
    """A key, value or combination of settings that cannot work."""


class WeightError(Qwen3Error):
    """Weights that do not fit the model or are damaged."""


class FormatError(Qwen3Error):
    """A file that is not what its name or folder says."""


class OutputExistsError(Qwen3Error):
    """An output that is already there and may not be replaced without `--force`."""


class UsageError(Qwen3Error):
    """A command line that cannot be meant; reported with exit code 2."""


class OverrideError(UsageError):
    """An argument `--key value` that no key of the YAML takes; an option of the command may be meant."""

    def __init__(self, message: str, key: str, meant: tuple[str, ...] = ()) -> None:
        """Make the error.

        Args:
            message: What is wrong, without what may be meant.
            key: As it was written, without hyphens at its beginning.
            meant: Keys of the YAML that are most like it, dotted.
        """
        super().__init__(f"{message} (did you mean {' or '.join(meant)}?)" if meant else message)
        self.message, self.key, self.meant = message, key, meant
