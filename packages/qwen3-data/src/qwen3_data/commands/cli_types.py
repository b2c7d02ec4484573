"""Kinds of values on the command line."""

from pathlib import Path

import click

from qwen3_model.command.parsing import Command


class OutputPrefix(click.ParamType):
    """The beginning of output paths: a folder, if any, and the beginning of names."""

    name = "path"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        text = str(value)
        if text.rpartition("/")[2] in ("", ".", ".."):
            self.fail(f"{text!r} ends in no name; write for example data/corpus", param, ctx)
        return Path(text)


class TokenizerType(click.ParamType):
    """Megatron-LM's name of the one kind of tokenizer that Qwen3 has."""

    name = "name"
    known = "HuggingFaceTokenizer"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value != self.known:
            self.fail(
                f"{value} would encode otherwise than Qwen3's tokenizer, which --tokenizer-dir holds as "
                f"tokenizer.json; write {self.known} or leave the option out",
                param,
                ctx,
            )
        return self.known


class ManyValues(Command):
    """Command whose `--input a b` and `--json-keys a b` take several values, as mindformers' script does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spelled: list[str] = []
        option = ""
        for arg in args:
            if arg.startswith("-") and arg != "-":
                name = arg.replace("_", "-")
                option = name if name in ("--input", "--json-keys") else ""
                spelled += [] if option else [arg]
            elif option:
                spelled += [option, arg]
            else:
                spelled.append(arg)
        return super().parse_args(ctx, spelled)
