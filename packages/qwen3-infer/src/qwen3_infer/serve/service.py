"""What a server answers with, whatever the request."""

from collections.abc import Sequence
from dataclasses import dataclass

from qwen3_infer.folder.model_folder import ModelFolder
from qwen3_infer.sampling.grammar import Grammars
from qwen3_infer.settings.settings import Decoding


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """The model that a server has, and its own settings."""

    folder: ModelFolder
    """Tokenizer and config."""
    name: str
    """The model's, for clients."""
    defaults: Decoding
    """What a request does not say."""
    thinking: bool
    """Whether the model thinks when a request does not say."""
    context_tokens: int
    """Longest prompt and completion together."""
    grammars: Grammars
    """Compiles what answers must follow."""
    token_bytes: int
    """Bytes of the longest token: a text has at least its bytes divided by this many tokens."""

    @property
    def max_prompt_bytes(self) -> int:
        """A longer text cannot fit, however it is tokenised."""
        return self.context_tokens * self.token_bytes

    def token_ids(self, values: Sequence[object]) -> list[int] | None:
        """Return `values` if each is the number of a row of the vocabulary, None otherwise."""
        vocab_size = self.folder.config.vocab_size
        ids = [
            value
            for value in values
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab_size
        ]
        return ids if len(ids) == len(values) else None
