"""How far each pair of a head vector turns per position: the default rotary embedding and YaRN's stretch.

Everything is float32 in numpy, in the order of operations that gives the released models' numbers.
"""

import math

import numpy as np

from qwen3_model.config import Qwen3Config
from qwen3_model.rope_scaling import YarnScaling


def rope_frequencies(config: Qwen3Config) -> tuple[np.ndarray, float]:
    """Return the angle per position of each pair, and the scale of cos and sin.

    Returns:
        float32 of shape (head_dim / 2,) in radians per token, and 1.0 unless YaRN asks for another scale.
    Source: Su et al. 2021, section 3.4.2; Peng et al. 2023 (YaRN), sections 3.2 to 3.4.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    # The power in double precision, rounded once, agrees with torch's float32 power in nearly every bit.
    wavelengths = (config.rope_theta ** exponents.astype(np.float64)).astype(np.float32)
    if config.rope_scaling is None:
        return np.float32(1) / wavelengths, 1.0
    scaling = config.rope_scaling
    kept = np.float32(1) / wavelengths
    stretched = np.float32(1) / (np.float32(scaling.factor) * wavelengths)
    share_kept = np.float32(1) - _ramp(config, scaling)
    return stretched * (np.float32(1) - share_kept) + kept * share_kept, attention_factor(scaling)


def attention_factor(scaling: YarnScaling) -> float:
    """Return YaRN's scale of cos and sin: as stated, or 0.1 ln(factor) + 1 (Peng et al. 2023, eq. 22)."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0


def _ramp(config: Qwen3Config, scaling: YarnScaling) -> np.ndarray:
    """0 for pairs that keep their frequency, 1 for those that are stretched, a line between."""
    low = _pair_with_rotations(scaling.beta_fast, config, scaling)
    high = _pair_with_rotations(scaling.beta_slow, config, scaling)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    if low == high:
        high += 0.001
    pairs = np.arange(config.head_dim // 2, dtype=np.float32)
    return np.clip((pairs - np.float32(low)) / np.float32(high - low), np.float32(0), np.float32(1))


def _pair_with_rotations(rotations: float, config: Qwen3Config, scaling: YarnScaling) -> float:
    """Index of the pair that turns `rotations` times over the original context."""
    context = scaling.original_max_position_embeddings
    return config.head_dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_theta))
