"""In which order a pipeline stage computes and exchanges: one forward, one backward (1F1B).

Narayanan et al. 2021 (section 2.2). An exchange here lasts until both sides have come to it, so neighbours
must come to their common exchanges in the same order. Hence a stage receives the next input before it hands
back a gradient.
"""

from dataclasses import dataclass
from enum import Enum


class Do(Enum):
    """What a stage can do with a micro-batch."""

    TAKE_INPUT = "receive hidden states from the stage before"
    FORWARD = "compute hidden states"
    GIVE_OUTPUT = "send them to the stage after"
    TAKE_GRADIENT = "receive their gradient from there"
    BACKWARD = "compute gradients"
    GIVE_GRADIENT = "send that of the input to the stage before"


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that a stage does with one micro-batch."""

    kind: Do
    micro_batch: int


def schedule(stage: int, num_stages: int, num_micro_batches: int) -> list[Action]:
    """Return what a stage does in a step, in order.

    The last stage has no Do.FORWARD, since its BACKWARD computes the loss on the way.
    """
    is_first, is_last = stage == 0, stage == num_stages - 1
    ahead = min(num_stages - 1 - stage, num_micro_batches)
    actions: list[Action] = []

    def take_input(i: int) -> None:
        if not is_first and i < num_micro_batches:
            actions.append(Action(Do.TAKE_INPUT, i))

    def forward(i: int) -> None:
        if not is_last and i < num_micro_batches:
            actions.extend((Action(Do.FORWARD, i), Action(Do.GIVE_OUTPUT, i)))

    for i in range(ahead):
        take_input(i)
        forward(i)
    take_input(ahead)
    for i in range(num_micro_batches):
        forward(ahead + i)
        if not is_last:
            actions.append(Action(Do.TAKE_GRADIENT, i))
        actions.append(Action(Do.BACKWARD, i))
        take_input(ahead + i + 1)
        if not is_first:
            actions.append(Action(Do.GIVE_GRADIENT, i))
    return actions
