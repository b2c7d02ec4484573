"""A plan as text for a terminal, and as values for JSON."""

from dataclasses import asdict

from qwen3_infer.plan.memory import PredictMemory, largest_cache, plan_memory, token_bytes
from qwen3_infer.plan.settings import PlanSettings
from qwen3_model.command.plain_text import counted
from qwen3_model.device.memory import gib


def plan_text(settings: PlanSettings) -> str:
    """Return the plan for a terminal."""
    model, memory = settings.model, plan_memory(settings)
    rows = {
        "weights": memory.weights,
        "cache": memory.cache,
        "a prompt's piece": memory.prompt,
        "a step of decoding": memory.decoding,
        "total": memory.total,
    }
    width = max(len(gib(value)) for value in rows.values())
    lines = [
        f"Model     {model.num_parameters():,} parameters in bfloat16, {model.num_layers} layers, "
        f"over {counted(settings.tp, 'device')}",
        f"Requests  {settings.num_requests} at once, the longest {settings.request_tokens:,} tokens; "
        f"{settings.cache_tokens:,} tokens in the cache, of {token_bytes(settings) / 2**10:,.0f} KiB",
        "",
        "Memory of a device in GiB; the larger of the two steps counts",
        *(f"  {name:19}{gib(value):>{width}}" for name, value in rows.items()),
    ]
    if memory.outside:
        lines.append(
            f"Beside it: {gib(memory.outside)} GiB for HCCL's buffers, and what kernels need while they run, "
            "which the device alone knows."
        )
    if settings.memory_bytes is None:
        return "\n".join([*lines, "No limit is given; --max-device-memory 58GB checks one."])
    if problem := misfit(settings, memory):
        return "\n".join([*lines, f"Does not fit: {problem}"])
    limit = gib(settings.memory_bytes)
    lines.append(
        f"Fits: {gib(memory.total)} of {limit} GiB; --max-tokens-in-cache can be {largest_cache(settings):,}."
    )
    return "\n".join(lines)


def misfit(settings: PlanSettings, memory: PredictMemory) -> str:
    """Return what speaks against the limit; "" for nothing."""
    if settings.memory_bytes is None or memory.total <= settings.memory_bytes:
        return ""
    most = largest_cache(settings) or 0
    remedy = (
        f"--max-tokens-in-cache can be {most:,}" if most >= settings.request_tokens else "take more devices"
    )
    return (
        f"a device needs {gib(memory.total)} GiB of max_device_memory {gib(settings.memory_bytes)} GiB; "
        f"{remedy}"
    )


def plan_values(settings: PlanSettings) -> dict[str, object]:
    """Return the plan as values for JSON; sizes in bytes."""
    memory = plan_memory(settings)
    return {
        "devices": settings.tp,
        "requests": settings.num_requests,
        "request_tokens": settings.request_tokens,
        "cache_tokens": settings.cache_tokens,
        "max_device_memory_bytes": settings.memory_bytes,
        "memory": asdict(memory) | {"total": memory.total},
        "largest_cache_tokens": largest_cache(settings),
        "problem": misfit(settings, memory) or None,
    }
