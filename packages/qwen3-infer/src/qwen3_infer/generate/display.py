"""What the terminal shows of completions: prompt and completion, or in a chat the answer alone."""

from collections.abc import Callable

from qwen3_infer.generate.results import answer_of, full_text
from qwen3_infer.schedule.jobs import Completion
from qwen3_infer.schedule.requests import Request
from qwen3_infer.text.output import ChatOutput
from qwen3_infer.text.prompt import ends_in_thought
from qwen3_model.text.tokenizer import Qwen3Tokenizer


class Display:
    """Shows completions on a terminal."""

    def __init__(
        self,
        tokenizer: Qwen3Tokenizer,
        *,
        chat: bool,
        say: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        """Show texts with `say`, and with `note` that a streamed answer begins with a thought."""
        self._tokenizer, self._chat, self._say, self._note = tokenizer, chat, say, note
        self._output: ChatOutput | None = None
        self._has_thought = False

    def whole(self, completion: Completion) -> None:
        """Show a completion that is done."""
        if self._chat:
            self._say(f"{answer_of(completion, self._tokenizer)[1]}\n")
        else:
            self._say(f"{full_text(completion, self._tokenizer)}\n")

    def piece(self, request: Request, text: str) -> None:
        """Show the next piece of the only request."""
        if not self._chat:
            self._say(text)
            return
        if self._output is None:
            starts = ends_in_thought(self._tokenizer, request.prompt_ids)
            self._output = ChatOutput(has_tools=False, starts_in_thought=starts)
        self._show(text)

    def end(self) -> None:
        """Show the undecided end of the only request's text, and end its line."""
        self._show("", is_last=True)
        self._say("\n")

    def _show(self, text: str, *, is_last: bool = False) -> None:
        for part in self._output.push(text, is_last=is_last) if self._output else ():
            if part.kind == "content":
                self._say(part.text)
            elif not self._has_thought:
                self._has_thought = True
                self._note("thinking ...")
