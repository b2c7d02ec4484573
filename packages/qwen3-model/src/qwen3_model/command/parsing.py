"""How every command reads its arguments: earlier names, both spellings of a switch, and what was meant."""

import copy
import difflib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from qwen3_model.command.narrow import build
from qwen3_model.command.plain_text import as_message
from qwen3_model.command.spellings import OTHER_NAMES
from qwen3_model.errors import OverrideError

if TYPE_CHECKING:
    from click.parser import _OptionParser  # OptionParser before click 8.2

TRUE, FALSE = ("true", "t", "yes", "y", "on", "1"), ("false", "f", "no", "n", "off", "0")


class Option(click.Option):
    """An option that also takes its earlier names, which neither `--help` nor completion shows."""

    def __init__(
        self,
        param_decls: Sequence[str] | None = None,
        *,
        old: tuple[str, ...] = (),
        takes_words: bool = False,
        **attributes: object,
    ) -> None:
        """Make an option.

        Args:
            param_decls: Its names, as of click.Option.
            old: Earlier names, with hyphens; those of mindformers belong here, too.
            takes_words: Whether a switch is followed by any of click's words for true and false, such as 0.
            attributes: As of click.Option.
        """
        build(super().__init__, {"param_decls": param_decls, **attributes})
        self.old, self.takes_words = old, takes_words

    def add_to_parser(self, parser: "_OptionParser", ctx: click.Context) -> None:
        super().add_to_parser(parser, ctx)
        if self.old:
            earlier = copy.copy(self)
            earlier.opts, earlier.secondary_opts, earlier.old = list(self.old), [], ()
            earlier.add_to_parser(parser, ctx)


class Command(click.Command):
    """A command whose switches are written `--x`, `--no-x`, `--x True` or `--x=False`."""

    def make_parser(self, ctx: click.Context) -> "_OptionParser":
        parser = super().make_parser(ctx)
        for option in self.params:
            if not isinstance(option, click.Option):
                continue
            if opposites := _opposites(option):
                parser.add_option(
                    obj=option, opts=opposites, dest=option.name, action="store_const", const=False
                )
        return parser

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, list(self._as_switches(args)))
        except click.NoSuchOption as error:
            close = most_alike(error.option_name, self.shown_names()) or self._find_renamed(error.option_name)
            raise click.NoSuchOption(error.option_name, ctx=ctx, message=_no_such(error, close)) from None

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except OverrideError as error:
            hint = closest(error.key, self.shown_names(), error.meant)
            message = error.message.replace(f"--{error.key}", _as_written(error.key, ctx), 1)
            raise click.UsageError(as_message(f"{message}{hint}"), ctx) from error

    def shown_names(self) -> list[str]:
        """Return the long names of the options that `--help` shows."""
        options = [each for each in self.params if isinstance(each, click.Option) and not each.hidden]
        names = [name for option in options for name in (*option.opts, *option.secondary_opts)]
        return [name for name in names if name.startswith("--")]

    def _find_renamed(self, name: str) -> list[str]:
        """Return the present name of the option with an earlier one that is most like `name`."""
        earlier = {old: option.opts[0] for option in self.params for old in getattr(option, "old", ())}
        return [earlier[each] for each in difflib.get_close_matches(name, earlier, n=1)]

    def _as_switches(self, args: list[str]) -> Iterator[str]:
        """Yield `--x True` as `--x`, and `--x False` as `--no-x`."""
        switches = {name: option for option in self.params for name in _positive_names(option)}
        rest = list(args)
        while rest:
            arg = rest.pop(0)
            if arg == "--":
                yield from (arg, *rest)
                return
            name, equals, value = arg.partition("=")
            option = switches.get(name.replace("_", "-"))
            if option is None or not (equals or rest):
                yield arg
                continue
            takes_any = equals or getattr(option, "takes_words", False)
            word = value.lower() if equals else rest[0].lower()
            if word in (TRUE if takes_any else TRUE[:1]):
                yield name
            elif word in (FALSE if takes_any else FALSE[:1]):
                yield f"--no-{name.removeprefix('--')}"
            elif equals:
                opposite = f"--no-{name.removeprefix('--')}"
                raise click.UsageError(f"{arg} is neither true nor false; write {name} or {opposite}")
            else:
                yield arg
                continue
            if not equals:
                rest.pop(0)


def closest(key: str, options: list[str], keys: tuple[str, ...]) -> str:
    """Return ` (did you mean X?)` of the option or the YAML key that `key` is most like, or nothing."""
    spelled = key.replace("_", "-")
    if (other := f"--{OTHER_NAMES.get(key, key)}".replace("_", "-")) in options:
        return f" (did you mean {other}?)"
    found = difflib.get_close_matches(f"--{spelled}", options, n=1, cutoff=0.75)
    if not found:
        return f" (did you mean {' or '.join(keys)}?)" if keys else ""
    is_key_closer = keys and _rate(spelled, keys[0].replace("_", "-")) >= _rate(spelled, found[0][2:])
    return f" (did you mean {' or '.join(keys) if is_key_closer else found[0]}?)"


def most_alike(name: str, names: list[str]) -> list[str]:
    """Return the option that `name` is most like, or the end of whose name it is like; nothing for none."""
    other = "--" + OTHER_NAMES.get(name[2:].replace("-", "_"), "").replace("_", "-")
    if other in names:
        return [other]
    ends = {f"--{full.rpartition('-')[2]}": full for full in names}
    found = difflib.get_close_matches(name, names, n=1)
    return found or [ends[end] for end in difflib.get_close_matches(name, ends, n=1, cutoff=0.75)]


def _as_written(key: str, ctx: click.Context) -> str:
    """Return the argument that says `key`, with hyphens where it has them."""
    names = [word.partition("=")[0] for word in ctx.params.get("overrides") or ()]
    return next((name for name in names if name.replace("-", "_") == f"__{key}"), f"--{key}")


def _no_such(error: click.NoSuchOption, close: list[str]) -> str:
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"No such option {error.option_name}.{hint}"


def _rate(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _positive_names(option: click.Parameter) -> list[str]:
    if not isinstance(option, click.Option) or not option.is_bool_flag:
        return []
    return [name for name in (*option.opts, *getattr(option, "old", ())) if name.startswith("--")]


def _opposites(option: click.Parameter) -> list[str]:
    """Return the names that switch `option` off, but for those that it has itself."""
    names = [f"--no-{name[2:]}" for name in _positive_names(option)]
    return [name for name in names if name not in option.secondary_opts]
