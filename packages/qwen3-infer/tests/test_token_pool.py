"""Regions of the cache: where they lie, what stays of them, who gives way."""

from qwen3_infer.steps.token_pool import TokenPool


def filled(pool, num_tokens, *ids):
    region = pool.allocate(num_tokens)
    region.ids.extend(ids)
    return region


def test_regions_lie_side_by_side_in_multiples_of_the_unit():
    pool = TokenPool(320, 32)
    regions = [pool.allocate(number) for number in (1, 33, 64)]
    assert [(each.start, each.end) for each in regions] == [(0, 32), (32, 96), (96, 160)]
    assert pool.num_used == 160


def test_there_is_no_room_until_a_region_is_left():
    pool = TokenPool(96, 32)
    first = filled(pool, 64, 7)
    assert pool.allocate(64) is None
    pool.release(first)
    second = pool.allocate(64)
    assert second.start == 0
    assert not first.is_valid


def test_what_was_left_longest_goes_first_and_what_is_kept_last():
    pool = TokenPool(96, 32)
    old, kept, new = (filled(pool, 32, number) for number in range(3))
    for region in (old, kept, new):
        pool.release(region)
    pool.renew(old)
    assert pool.allocate(32, keep=kept).start == new.start
    assert (old.is_valid, kept.is_valid, new.is_valid) == (True, True, False)
    assert pool.allocate(64, keep=kept).start == 0
    assert not kept.is_valid


def test_a_region_that_was_left_grows_over_others_that_were_but_not_over_one_in_use():
    pool = TokenPool(160, 32)
    first, second, third = (filled(pool, 32, number) for number in range(3))
    pool.release(first)
    pool.release(second)
    assert not pool.reuse(first, 96)
    assert pool.reuse(first, 64)
    assert (first.size, second.is_valid, third.is_valid) == (64, False, True)
    assert pool.num_used == 96


def test_a_region_that_holds_nothing_is_not_kept():
    pool = TokenPool(64, 32)
    region = pool.allocate(32)
    pool.release(region)
    assert not region.is_valid
    assert list(pool.regions) == []


def test_nothing_is_given_up_for_a_request_that_has_no_room_even_so():
    pool = TokenPool(160, 32)
    left, used, other = (filled(pool, 32, number) for number in range(3))
    pool.release(left)
    pool.release(other)
    assert pool.allocate(128, keep=left) is None
    assert (left.is_valid, other.is_valid) == (True, True)
    pool.release(used)
    assert pool.allocate(128) is not None
