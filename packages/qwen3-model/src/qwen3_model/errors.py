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
