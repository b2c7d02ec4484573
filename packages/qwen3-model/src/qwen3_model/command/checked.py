"""The type of values that a program checks as it reads them, where mypy cannot see the check.

A value that nobody has looked at yet is an `object`.
"""

from typing import Any, TypeAlias

Checked: TypeAlias = Any
"""A value of a YAML, a JSON file, a request or a command line, of the type that its reader states."""
