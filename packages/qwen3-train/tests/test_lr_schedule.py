import pytest

from qwen3_model.errors import ConfigError
from qwen3_train.settings.lr_schedule import SCHEDULES, make_schedule


def rates(steps, **section):
    schedule = make_schedule(section, run_steps=section.pop("run_steps", 10))
    return [schedule(step) for step in steps]


def constant(**keys):
    return {"type": "ConstantWarmUpLR", "learning_rate": 8.0} | keys


def cosine(**keys):
    return {"type": "CosineWithWarmUpLR", "learning_rate": 8.0} | keys


HAND = [
    # Steps 0 to 3 climb 0, 1/4, 2/4, 3/4 of the way; step 4 has arrived.
    (constant(warmup_steps=4), {0: 0, 1: 2, 3: 6, 4: 8, 99: 8}),
    (constant(warmup_ratio=0.4, warmup_lr_init=4.0), {0: 4, 2: 6, 4: 8}),
    (constant(learning_rate=1e-6, warmup_ratio=0, total_steps=-1), {0: 1e-6, 9: 1e-6}),
    (
        {"type": "LinearWithWarmUpLR", "learning_rate": 8.0, "warmup_steps": 2},
        {0: 0, 1: 4, 2: 8, 6: 4, 9: 1, 10: 0, 11: 0},
    ),
    (cosine(warmup_steps=2), {1: 4, 2: 8, 6: 4, 10: 0, 50: 0}),
    (cosine(learning_rate=9.0, lr_end=1.0, total_steps=4), {0: 9, 2: 5, 4: 1, 5: 1}),
    # A third of a half wave: cos(60 degrees) = 1/2.
    (cosine(decay_steps=3), {1: 6, 2: 2, 3: 0}),
    (
        {
            "type": "CosineWithRestartsAndWarmUpLR",
            "learning_rate": 8.0,
            "total_steps": 8,
            "num_cycles": 2,
            "lr_end": 1.0,
        },
        {0: 8, 2: 4.5, 4: 8, 6: 4.5, 8: 1},
    ),
    (
        {
            "type": "PolynomialWithWarmUpLR",
            "learning_rate": 9.0,
            "lr_end": 1.0,
            "power": 2.0,
            "warmup_steps": 2,
        },
        {1: 4.5, 2: 9, 6: 3, 10: 1, 20: 1},
    ),
    (
        {
            "type": "ConstantWithCoolDownLR",
            "learning_rate": 9.0,
            "warmup_steps": 1,
            "keep_steps": 2,
            "decay_steps": 4,
            "lr_end1": 1.0,
            "final_steps": 2,
            "lr_end2": 0.5,
        },
        {0: 0, 1: 9, 2: 9, 3: 9, 5: 5, 7: 1, 8: 1, 9: 0.5, 30: 0.5},
    ),
    (
        {
            "type": "WarmUpStableDecayLR",
            "learning_rate": 9.0,
            "lr_end": 1.0,
            "warmup_steps": 1,
            "decay_start_ratio": 0.6,
        },
        {0: 0, 1: 9, 5: 9, 6: 9, 8: 5, 10: 1, 12: 1},
    ),
    # Decay from the first step; a cool-down that states no length spans all steps (10), as in mindformers.
    (
        {"type": "WarmUpStableDecayLR", "learning_rate": 10.0, "lr_end": 0.0, "decay_start_ratio": 0},
        {0: 10, 1: 9, 5: 5, 9: 1},
    ),
    (
        {"type": "WarmUpStableDecayLR", "learning_rate": 10.0, "lr_end": 0.0, "decay_start_steps": 0},
        {0: 10, 1: 9, 9: 1},
    ),
    ({"type": "ConstantWithCoolDownLR", "learning_rate": 8.0, "keep_steps": 5}, {0: 8, 5: 8, 10: 4, 15: 0}),
    ({"type": "CosineAnnealingLR", "base_lr": 8.0, "t_max": 4}, {0: 8, 2: 4, 4: 0, 8: 8}),
    (
        {"type": "CosineAnnealingWarmRestarts", "base_lr": 8.0, "t_0": 2, "t_mult": 2},
        {0: 8, 1: 4, 2: 8, 4: 4, 6: 8, 10: 4},
    ),
]


@pytest.mark.parametrize(("section", "expected"), HAND)
def test_rates_equal_numbers_worked_out_by_hand(section, expected):
    assert rates(expected, **section) == pytest.approx(list(expected.values()), abs=1e-12)


def test_every_type_is_worked_out_above():
    assert {section["type"] for section, _ in HAND} == set(SCHEDULES)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"type": "CosineLR", "learning_rate": 1.0}, "none of ConstantWarmUpLR"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0 must be a number of at least 0"),
        (
            {"warmup_ratio": 1.5, "warmup_lr_init": -1},
            "lacks learning_rate; warmup_ratio=1.5 .*warmup_lr_init=-1",
        ),
        ({"learning_rate": 1.0, "total_steps": 0}, "total_steps=0 must be at least 1"),
        ({"learning_rate": 1.0, "t_max": 3}, "has no use for t_max"),
        ({"type": "CosineAnnealingLR", "base_lr": 1.0}, "lacks t_max"),
        (
            {"type": "WarmUpStableDecayLR", "learning_rate": 1.0},
            "lacks decay_start_steps or decay_start_ratio",
        ),
        (
            {"type": "PolynomialWithWarmUpLR", "learning_rate": 1.0, "lr_end": 2.0},
            "lr_end=2.0 must be smaller",
        ),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
    ],
)
def test_wrong_values_are_named(section, message):
    with pytest.raises(ConfigError, match=message):
        make_schedule(section, 10)
