"""`qwen3-infer chat` at a terminal of its own: editing, history, Ctrl-C."""

import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest

UP, CTRL_C, CTRL_D = "\x1b[A", "\x03", "\x04"


class Screen:
    """A program at a pseudo terminal, and all that it has shown."""

    def __init__(self, command, environment):
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
        )  # fmt: skip
        os.close(slave)
        self.shown, self._at = "", 0

    def wait_for(self, words, limit_s=120):
        """Read until `words`, a pattern, is shown after what was waited for before."""
        ends_s = time.monotonic() + limit_s
        while not (found := re.compile(words).search(self.shown, self._at)):
            assert time.monotonic() < ends_s, self.shown
            if select.select([self._master], [], [], 0.2)[0]:
                piece = os.read(self._master, 65536).decode("utf-8", "replace")
                if "\x1b[6n" in piece:  # the editor asks where the cursor is
                    os.write(self._master, b"\x1b[1;1R")
                self.shown += piece
            else:
                assert self.process.poll() is None, self.shown
        self._at = found.end()

    def type(self, text):
        os.write(self._master, text.encode())

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def screen(serve_dir, tmp_path):
    command = [
        sys.executable, "-m", "qwen3_infer", "chat", "--pretrained-model-dir", str(serve_dir),
        "--max-new-tokens", "1500", "--context-tokens", "2048", "--no-thinking", "--threads", "1",
    ]  # fmt: skip
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path), "TERM": "xterm"}
    screen = Screen(command, environment)
    yield screen
    screen.close()


@pytest.mark.slow
def test_a_conversation_is_edited_stopped_and_left(screen, tmp_path):
    screen.wait_for("tiny, answers at once, 2048 tokens of context")
    screen.wait_for(">")
    screen.type("/unknown\r")
    screen.wait_for("there is no command /unknown")
    screen.type("half" + CTRL_C)
    screen.wait_for("Ctrl-D or /exit leaves")
    screen.type("Good morning\r")
    screen.wait_for("Good morning")
    screen.wait_for(r"\?2004l[^\x1b]{5}")  # the editor has let go, and the answer has begun
    screen.type(CTRL_C)
    screen.wait_for(r"\d+ tokens, [\d.]+ tokens/s, stopped")
    screen.type("/clear\r")
    screen.wait_for("the conversation is forgotten")
    screen.type(UP + UP)
    screen.wait_for("Good morning")
    screen.type(CTRL_C + CTRL_D)
    assert screen.process.wait(30) == 0
    history = tmp_path / "qwen3-infer/chat_history"
    assert "Good morning" in history.read_text("utf-8")
    assert history.stat().st_mode & 0o077 == 0
