"""The constants of AdamW; free of MindSpore."""

from collections.abc import Mapping
from dataclasses import dataclass

from qwen3_model.command.narrow import as_list, as_number, is_number

TYPES = ("AdamW", "FusedAdamW")
"""Values of `optimizer.type`, of one meaning; mindformers has both."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamSettings:
    """The constants of AdamW (Loshchilov and Hutter 2019, algorithm 2)."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float


def read_adam(section: Mapping[str, object]) -> AdamSettings:
    """Read the keys of `optimizer`, which `optimizer_problems` has checked."""
    beta1, beta2 = as_list(section.get("betas") or (0.9, 0.999))
    return AdamSettings(
        beta1=float(as_number(beta1)),
        beta2=float(as_number(beta2)),
        eps=float(as_number(section.get("eps") or 1e-8)),
        weight_decay=float(as_number(section.get("weight_decay") or 0.0)),
    )


def optimizer_problems(section: Mapping[str, object]) -> list[str]:
    """Say which keys of `optimizer` cannot be meant."""
    problems = []
    if (kind := section.get("type") or "AdamW") not in TYPES:
        problems.append(f"optimizer.type={kind!r} is not implemented; use AdamW")
    betas = as_list(section.get("betas") or [0.9, 0.999])
    if len(betas) != 2 or not all(_is_beta(beta) for beta in betas):
        problems.append(f"optimizer.betas={betas} must be two numbers from 0 to below 1")
    if not as_number(section.get("eps", 1e-8)) > 0:
        problems.append(f"optimizer.eps={section['eps']} must be above 0")
    if as_number(section.get("weight_decay") or 0.0) < 0:
        problems.append(f"optimizer.weight_decay={section['weight_decay']} must be at least 0")
    return problems


def _is_beta(value: object) -> bool:
    return is_number(value) and 0 <= value < 1
