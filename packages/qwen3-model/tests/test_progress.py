import io

from qwen3_model.command.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_sees_share_speed_and_what_is_left(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress("weights", 2_000_000, "B") as progress:
        progress.advance(1_500_000, note="half way")
        progress.advance(500_000)
    text = terminal.getvalue()
    assert "weights: 100% 2.00M/2.00M" in text
    assert "s left" in text
    assert "B/s" in text
    assert text.endswith("\n")


def test_the_line_is_drawn_at_most_five_times_a_second(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress("work", None, "documents") as progress:
        for _ in range(10_000):
            progress.advance()
    assert terminal.getvalue().count("\r") <= 5


def test_quiet_and_files_see_nothing(monkeypatch):
    for stream, quiet in ((io.StringIO(), False), (Terminal(), True)):
        monkeypatch.setattr("sys.stderr", stream)
        with Progress("work", 10, "B", quiet=quiet) as progress:
            progress.advance(10)
        assert stream.getvalue() == ""
        assert progress.done == 10
