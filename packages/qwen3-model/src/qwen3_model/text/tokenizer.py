"""Qwen3's tokenizer and chat template, from the files of a Hugging Face folder."""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tokenizers import Tokenizer

from qwen3_model.command.json_file import read_json
from qwen3_model.command.small_files import INDEX_BYTES, read_small, read_small_text
from qwen3_model.errors import FormatError
from qwen3_model.text.byte_level import letter_bytes
from qwen3_model.text.chat_template import render_chat_template
from qwen3_model.text.rust_errors import rust_errors

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""What to copy along with a model, where present; only tokenizer.json is needed to encode."""

END_OF_DOCUMENT = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"


class Qwen3Tokenizer:
    """Text to ids and back, exactly as `tokenizers` does it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        settings: Mapping[str, object],
        *,
        template: str | None,
        name: str,
        sha256: str,
    ) -> None:
        self._tokenizer = tokenizer
        self._settings = settings
        self._template = template
        self._lock = threading.Lock()
        self.name = name
        self.sha256 = sha256
        """SHA-256 of tokenizer.json, in hexadecimal."""
        self.vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)
        """Entries, added tokens included."""
        self._added = tokenizer.get_added_tokens_decoder()
        self.special_tokens = {
            added.content: number for number, added in sorted(self._added.items()) if added.special
        }
        """Text and id of the tokens that raw text never means; `<think>` and the like are not among them."""
        self.eos_id = self.token_id(self._named_token("eos_token") or END_OF_TURN)
        self.pad_id = self.token_id(self._named_token("pad_token") or END_OF_DOCUMENT)

    @classmethod
    def from_dir(cls, directory: Path) -> Self:
        """Load `tokenizer.json`, and `tokenizer_config.json` and `chat_template.jinja` where present.

        Raises:
            FormatError: A file is missing or damaged.
        """
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise FormatError(
                f"{directory} holds no tokenizer.json; give the folder of a Qwen3 model or of its tokenizer"
            )
        raw = read_small(path, INDEX_BYTES)
        with rust_errors(f"{path} is no tokenizer that `tokenizers` can read"):
            tokenizer = Tokenizer.from_buffer(raw)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        settings = _read_settings(directory / "tokenizer_config.json")
        return cls(
            tokenizer,
            settings,
            template=_read_template(directory, settings),
            name=directory.resolve().name,
            sha256=hashlib.sha256(raw).hexdigest(),
        )

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Return the ids of `text`.

        Args:
            text: object text without lone surrogates.
            allow_special: Whether `<|im_end|>` and the like in the text mean the tokens; else plain text.
        """
        return self.encode_batch([text], allow_special=allow_special)[0]

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[list[int]]:
        """Return the ids of each text, on all cores.

        Raises:
            FormatError: A text holds a lone surrogate.
        """
        with self._lock:
            self._tokenizer.encode_special_tokens = not allow_special
            try:
                with rust_errors(f"the tokenizer {self.name} cannot encode"):
                    encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            except FormatError as error:
                if isinstance(error.__cause__, TypeError | UnicodeEncodeError):
                    raise _surrogate_error(texts) from error
                raise
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text of `ids`; bytes that are no UTF-8 become U+FFFD, unknown ids nothing."""
        return self._tokenizer.decode(list(map(int, ids)), skip_special_tokens=skip_special)

    def token_bytes(self, number: int) -> bytes | None:
        """Return the bytes of one token, which may be a part of a character; None for special ones.

        Those of all tokens of a text together are the text in UTF-8.
        """
        if number in self._added:
            added = self._added[number]
            return None if added.special else added.content.encode("utf-8")
        token = self._tokenizer.id_to_token(number)
        return None if token is None else bytes(letter_bytes()[letter] for letter in token)

    def token_text(self, number: int) -> str:
        r"""Return the text of one token, the bytes of a part of a character as `\xf0\x9f`."""
        raw = self.token_bytes(number)
        if raw is None:
            return self.decode([number], skip_special=False)
        return raw.decode("utf-8", "backslashreplace")

    def added_token_id(self, text: str) -> int | None:
        """Return the id of an added token such as `<think>`, None when the vocabulary has none."""
        return next((number for number, added in self._added.items() if added.content == text), None)

    def longest_token_bytes(self) -> int:
        """Return the most bytes of a token; a text has at least its bytes divided by this many tokens."""
        special = (len(text.encode("utf-8")) for text in self.special_tokens)
        others = (len(self.token_bytes(number) or b"") for number in range(self.vocab_size))
        return max(*special, *others)

    def to_json(self) -> str:
        """Return what `tokenizer.json` says, for libraries that read it themselves."""
        return self._tokenizer.to_str()

    def token_id(self, token: str) -> int:
        """Return the id of one token.

        Raises:
            FormatError: The vocabulary does not have it.
        """
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise FormatError(
                f"the tokenizer {self.name} has no token {token!r}; choose one of its vocabulary"
            )
        return number

    @property
    def has_chat_template(self) -> bool:
        """Whether there is a chat template."""
        return self._template is not None

    @property
    def chat_template(self) -> str:
        """The jinja2 text of the chat template.

        Raises:
            FormatError: There is none.
        """
        if self._template is None:
            raise FormatError(
                f"the tokenizer {self.name} has no chat template; add chat_template.jinja to its folder"
            )
        return self._template

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        add_generation_prompt: bool = True,
        enable_thinking: bool = True,
    ) -> str:
        """Return the conversation as the text that the model was trained on.

        Args:
            messages: OpenAI messages: `role`, `content`, and what the template knows besides.
            tools: JSON schemas of functions that the model may call.
            add_generation_prompt: End with the beginning of the assistant's turn.
            enable_thinking: False ends the prompt with an empty thought, so that the answer comes at once.

        Raises:
            FormatError: There is no template, or it refuses the messages.
        """
        names = {name: self._named_token(name) for name in ("bos_token", "eos_token", "pad_token")}
        return render_chat_template(
            self.chat_template,
            {
                **{name: token for name, token in names.items() if token is not None},
                "messages": list(messages),
                "tools": list(tools) if tools else None,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
                "enable_thinking": enable_thinking,
            },
        )

    def _named_token(self, name: str) -> str | None:
        value = self._settings.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if text is not None and not isinstance(text, str):
            raise FormatError(
                f"tokenizer_config.json of {self.name} has the {name} {text!r:.80}, which is no text"
            )
        return text


def _read_settings(path: Path) -> dict[str, object]:
    return read_json(path) if path.is_file() else {}


def _read_template(directory: Path, settings: Mapping[str, object]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            return read_small_text(path)
        except UnicodeDecodeError as error:
            raise FormatError(f"{path} is not UTF-8: {error}") from error
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named templates
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if template is not None and not isinstance(template, str):
        raise FormatError(f"{directory / 'tokenizer_config.json'} has a chat_template that is no text")
    return template


def _surrogate_error(texts: Sequence[str]) -> FormatError:
    for number, text in enumerate(texts):
        index = next((at for at, letter in enumerate(text) if "\ud800" <= letter <= "\udfff"), None)
        if index is not None:
            return FormatError(
                f"text {number} holds a lone surrogate U+{ord(text[index]):04X} at character {index}, which "
                "is no Unicode text; remove it"
            )
    return FormatError("only text can be encoded")
