"""One line of the doctor's list."""

from dataclasses import dataclass

PASS, FAIL, SKIPPED = "pass", "fail", "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, and what to do."""

    what: str
    state: str
    """PASS, FAIL or SKIPPED."""
    text: str
    remedy: str = ""
    """What to do about a failure."""
