import pytest

from qwen3_train.data.batch_plan import BatchPlan, Start


def plan_of(global_batch, *, num_samples=23, num_epochs=3, start=Start()):  # noqa: B008
    return BatchPlan(
        micro_batch=global_batch, num_micro_batches=1, num_samples=num_samples, num_epochs=num_epochs,
        start=start,
    )  # fmt: skip


def test_every_epoch_takes_its_whole_steps_in_order():
    plan = plan_of(4)
    assert (plan.num_steps, plan.steps_per_epoch, plan.steps_of(1), plan.steps_of(3)) == (15, 5, 5, 5)
    taken = [number for step in range(1, 16) for number in plan.samples(step)]
    assert taken == list(range(20)) * 3
    assert [plan.epoch_and_step(step) for step in (1, 5, 6, 15)] == [(1, 1), (1, 5), (2, 1), (3, 5)]


@pytest.mark.parametrize("changed_at", range(1, 15))
@pytest.mark.parametrize("new_batch", [1, 2, 4, 7, 8])
def test_a_changed_batch_takes_each_sample_of_an_epoch_at_most_once_in_order(changed_at, new_batch):
    before = plan_of(4)
    plan = plan_of(new_batch, start=before.after(changed_at))
    steps = range(changed_at + 1, plan.num_steps + 1)
    places = [before.epoch_and_step(step) for step in range(1, changed_at + 1)]
    places += [plan.epoch_and_step(step) for step in steps]
    # Names of checkpoints go up, without a gap within an epoch.
    assert places == sorted(set(places))
    assert [step for _, step in places] == [n + 1 for e in (1, 2, 3) for n in range(plan_steps(places, e))]
    taken = {1: [], 2: [], 3: []}
    for step in range(1, changed_at + 1):
        taken[before.epoch_and_step(step)[0]] += before.samples(step)
    for step in steps:
        taken[plan.epoch_and_step(step)[0]] += plan.samples(step)
    for numbers in taken.values():
        assert numbers == list(range(len(numbers)))
        assert 23 - len(numbers) < max(4, new_batch)  # no whole step is left out
    epoch = changed_at // 5 + 1 if changed_at % 5 else changed_at // 5
    assert plan.steps_of(epoch) == plan_steps(places, epoch)


def plan_steps(places, epoch):
    return sum(each == epoch for each, _ in places)


def test_a_batch_can_change_twice():
    first = plan_of(4)
    second = plan_of(8, start=first.after(2))
    third = plan_of(5, start=second.after(3))
    assert second.samples(3) == range(8, 16)
    assert third.start == Start(steps=3, epoch=0, samples=16, steps_in_epoch=3)
    assert [third.samples(step) for step in (4, 5)] == [range(16, 21), range(5)]
    assert third.num_steps == 4 + 2 * 4
