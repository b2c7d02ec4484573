"""The order of a pipeline's work: nobody waits for ever, and few micro-batches are in flight."""

import pytest

from qwen3_train.step.pipeline_schedule import Action, Do, schedule

PARTNER = {Do.GIVE_OUTPUT: (1, Do.TAKE_INPUT), Do.TAKE_GRADIENT: (1, Do.GIVE_GRADIENT)}
PARTNER |= {Do.TAKE_INPUT: (-1, Do.GIVE_OUTPUT), Do.GIVE_GRADIENT: (-1, Do.TAKE_GRADIENT)}


def run_together(schedules):
    """Let all stages go on while any can, exchanges needing both sides; return what each has done."""
    places = [0] * len(schedules)

    def at(stage):
        return schedules[stage][places[stage]] if places[stage] < len(schedules[stage]) else None

    moved = True
    while moved:
        moved = False
        for stage in range(len(schedules)):
            action = at(stage)
            if action is None:
                continue
            if action.kind in (Do.FORWARD, Do.BACKWARD):
                places[stage] += 1
                moved = True
                continue
            step, kind = PARTNER[action.kind]
            if at(stage + step) == Action(kind, action.micro_batch):
                places[stage] += 1
                places[stage + step] += 1
                moved = True
    return places


@pytest.mark.parametrize("num_stages", [2, 3, 4, 7])
@pytest.mark.parametrize("num_micro_batches", [1, 2, 3, 4, 8, 13])
def test_all_stages_finish_though_every_exchange_waits_for_both(num_stages, num_micro_batches):
    schedules = [schedule(stage, num_stages, num_micro_batches) for stage in range(num_stages)]
    assert run_together(schedules) == [len(one) for one in schedules]


@pytest.mark.parametrize("num_stages", [2, 4])
def test_each_micro_batch_goes_once_through_every_stage_and_few_are_in_flight(num_stages):
    for stage in range(num_stages):
        actions = schedule(stage, num_stages, 8)
        done = [action.micro_batch for action in actions if action.kind == Do.BACKWARD]
        assert done == list(range(8))
        in_flight, most = 0, 0
        for action in actions:
            in_flight += (action.kind == Do.FORWARD) - (action.kind == Do.BACKWARD)
            most = max(most, in_flight)
        assert most == (num_stages - stage if stage < num_stages - 1 else 0)


def test_a_pair_of_stages_by_hand():
    first = [(action.kind, action.micro_batch) for action in schedule(0, 2, 2)]
    assert first == [
        (Do.FORWARD, 0), (Do.GIVE_OUTPUT, 0), (Do.FORWARD, 1), (Do.GIVE_OUTPUT, 1), (Do.TAKE_GRADIENT, 0),
        (Do.BACKWARD, 0),        (Do.TAKE_GRADIENT, 1), (Do.BACKWARD, 1),
    ]  # fmt: skip
    last = [(action.kind, action.micro_batch) for action in schedule(1, 2, 2)]
    assert last == [
        (Do.TAKE_INPUT, 0), (Do.BACKWARD, 0), (Do.TAKE_INPUT, 1), (Do.GIVE_GRADIENT, 0),
        (Do.BACKWARD, 1), (Do.GIVE_GRADIENT, 1),
    ]  # fmt: skip
