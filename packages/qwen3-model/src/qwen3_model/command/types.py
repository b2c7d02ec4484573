"""Kinds of values that options of several commands take: dtypes, bytes, devices, seconds."""

import math

import click

from qwen3_model.command.spellings import parse_memory, read_bytes, read_device, read_dtype


class Dtype(click.ParamType):
    """An element type of weights: bf16 or bfloat16, fp16 or float16, fp32 or float32, in any case."""

    name = "dtype"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "[bfloat16|float16|float32]"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        dtype = read_dtype(str(value))
        if dtype is None:
            self.fail(f"{value!r} is not one of bfloat16, float16, float32 (bf16, fp16, fp32)", param, ctx)
        return dtype


class Bytes(click.ParamType):
    """A number of bytes: 1000000, 256M, 2GiB, 1.5GB; GB is 10^9 bytes, GiB and G are 2^30."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = read_bytes(str(value))
        if found is None:
            self.fail(
                f"{value!r} is no size such as 5GB, 512MiB or a number of bytes "
                "(GB is 10^9 bytes, GiB and G are 2^30)",
                param,
                ctx,
            )
        return found


class DeviceMemory(click.ParamType):
    """Memory of a device as MindSpore writes it, where a GB has 2^30 bytes: 58GB."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return value if isinstance(value, int) else parse_memory(str(value))


class Device(click.ParamType):
    """A device: cpu, ascend or auto, in any case; converted to MindSpore's names CPU and Ascend, or auto."""

    name = "device"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "[auto|cpu|ascend]"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        device = read_device(str(value))
        if device is None:
            self.fail(f"{value!r} is not one of cpu, ascend, auto", param, ctx)
        return device


class RenamedChoice(click.Choice):
    """A choice in any case, some of whose values had other names, which are still taken."""

    def __init__(self, choices: list[str], old: dict[str, str]) -> None:
        super().__init__(choices, case_sensitive=False)
        self.old = old

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return super().convert(self.old.get(str(value).lower(), value), param, ctx)


class Seconds(click.FloatRange):
    """A time above 0 in seconds; a whole number stays one."""

    name = "seconds"

    def __init__(self, *, min_open: bool = True) -> None:
        super().__init__(0, min_open=min_open)

    def convert(self, value: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number", param, ctx)
        return int(number) if number.is_integer() else number


DTYPE, BYTES, DEVICE_MEMORY, DEVICE, SECONDS = Dtype(), Bytes(), DeviceMemory(), Device(), Seconds()
