"""Messages so far, and the next answer to them; the history stays in the model's cache."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qwen3_infer.folder.model_folder import ModelFolder
from qwen3_infer.schedule.engine import Engine
from qwen3_infer.schedule.requests import PromptForm, Request, make_requests
from qwen3_infer.schedule.scheduler import Scheduler
from qwen3_infer.settings.settings import Decoding
from qwen3_infer.text.output import ChatOutput, Part
from qwen3_infer.text.prompt import ends_in_thought
from qwen3_infer.text.prompts import Prompt
from qwen3_infer.text.utf8 import to_json
from qwen3_model.errors import ConfigError

RETRY_STEP = 1_000_003
"""Between the seeds of two answers to one question."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the model has said to a question."""

    text: str
    """The answer with its thought, as the model wrote it."""
    num_tokens: int
    """Generated."""
    seconds: float
    """Seconds from the question to the last token."""
    finish_reason: str
    """"stop", "length", or "interrupted"."""


class Conversation:
    """A system message, questions and answers."""

    def __init__(
        self,
        folder: ModelFolder,
        engine: Engine,
        decoding: Decoding,
        *,
        system: str | None,
        thinking: bool,
        seed: int,
        context_tokens: int,
    ) -> None:
        self._folder, self._decoding = folder, decoding
        self._scheduler = Scheduler(engine, folder.tokenizer)
        self._form = PromptForm(chat=True, thinking=thinking, allow_special=False)
        self._seed, self._context_tokens = seed, context_tokens
        self._num_retries = 0
        self.system = system or ""
        """The system message, "" for none."""
        self.turns: list[Mapping[str, str]] = []
        """Questions and answers."""

    @property
    def messages(self) -> list[Mapping[str, str]]:
        """All of it, as the chat template takes it."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.turns]

    def clear(self) -> None:
        """Forget everything but the system message."""
        self.turns = []
        self._num_retries = 0

    def record(self) -> str:
        """Return the conversation as a line of JSON, as `generate --chat` reads it."""
        return to_json({"messages": self.messages}) + "\n"

    def retry(
        self, on_part: Callable[[Part], None], is_stopped: Callable[[], bool] = lambda: False
    ) -> Answer:
        """Answer the last question once more, by other random numbers.

        Raises:
            ConfigError: There is none.
        """
        asked = [number for number, turn in enumerate(self.turns) if turn["role"] == "user"]
        if not asked:
            raise ConfigError("there is no question yet")
        turns = self.turns
        self.turns, question = turns[: asked[-1]], turns[asked[-1]]["content"]
        self._num_retries += 1
        try:
            return self._answer(question, on_part, is_stopped)
        except BaseException:
            self.turns = turns
            raise

    def answer(
        self, text: str, on_part: Callable[[Part], None], is_stopped: Callable[[], bool] = lambda: False
    ) -> Answer:
        """Return what the model says to `text`; the history keeps both, or neither when it is refused.

        Args:
            text: The question.
            on_part: Is given each piece of the thought and of the answer.
            is_stopped: Whether to end the answer after the present token, and to keep what there is.

        Raises:
            ConfigError: The conversation has become too long.
        """
        self._num_retries = 0
        return self._answer(text, on_part, is_stopped)

    def _answer(self, text: str, on_part: Callable[[Part], None], is_stopped: Callable[[], bool]) -> Answer:
        started_s = time.monotonic()
        turns = [*self.turns, {"role": "user", "content": text}]
        request = self._request([*self.messages, turns[-1]])
        output = ChatOutput(
            has_tools=False,
            starts_in_thought=ends_in_thought(self._folder.tokenizer, request.prompt_ids),
        )
        said, num_tokens, reason = self._run(request, output, on_part, is_stopped)
        self.turns = [*turns, {"role": "assistant", "content": said}]
        return Answer(
            text=said,
            num_tokens=num_tokens,
            seconds=time.monotonic() - started_s,
            finish_reason=reason,
        )

    def _request(self, messages: list[Mapping[str, str]]) -> Request:
        (request,) = make_requests(
            [Prompt(messages=tuple(messages), where="the conversation")],
            self._folder,
            self._decoding,
            self._form,
            # Every turn draws other numbers.
            seed=self._seed + len(messages) + RETRY_STEP * self._num_retries,
            context_tokens=self._context_tokens,
        )
        return request

    def _run(
        self,
        request: Request,
        output: ChatOutput,
        on_part: Callable[[Part], None],
        is_stopped: Callable[[], bool],
    ) -> tuple[str, int, str]:
        """Return the text, its tokens and why it ended."""
        job = self._scheduler.submit(request)
        text = reason = ""
        try:
            while not reason:
                pieces = []
                for event in self._scheduler.advance():
                    if event.error:
                        raise event.error
                    pieces.append(event.piece)
                    reason = event.completion.finish_reason if event.completion else reason
                if not reason and is_stopped():
                    reason = "interrupted"
                    pieces.append(job.stream.finish())
                text += "".join(pieces)
                for part in output.push("".join(pieces), is_last=bool(reason)):
                    on_part(part)
        finally:
            self._scheduler.cancel(job)
        return text, len(job.ids), reason
