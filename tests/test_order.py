"""Does a search see all items on its first rung, whichever of its questions one looks at?"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.drivers.scalarised import default_weights
from optimizer.rungs.order import TURNS, Order, first_blocks


def turns(size: int, first: int, seed: int = 0, evaluator: str = "t") -> Order:
    return Order(TURNS, size, (first,), seed, evaluator, partial(np.zeros, (0, size)))


def seen(order: Order, numbers: range) -> set[int]:
    return {place for number in numbers for place in order.block(number, 0)}


@pytest.mark.parametrize(
    ("size", "first", "every"),
    [
        (100, 20, len(default_weights(2))),  # a driver of one objective asks for these preferences in turn
        (200, 20, len(default_weights(2))),
        (150, 10, len(default_weights(2))),
        (120, 20, 3),  # scouts of `auto`
        (40, 10, 2),
    ],
)
def test_questions_that_come_at_equal_distances_see_all_items(size: int, first: int, every: int) -> None:
    order = turns(size, first)
    for start in range(every):
        assert len(seen(order, range(start, 200 * every, every))) == size


@given(size=st.integers(2, 200), first=st.integers(1, 60), seed=st.integers(0, 9), around=st.integers(0, 10**12))
def test_each_block_has_its_turn_once_a_round(size: int, first: int, seed: int, around: int) -> None:
    first = min(first, size - 1)
    order, again = turns(size, first, seed), turns(size, first, seed)
    blocks = [tuple(block.tolist()) for block in first_blocks(size, first, seed, "t")]
    numbers = range(around * len(blocks), (around + 1) * len(blocks))
    assert sorted(order.block(number, 0) for number in numbers) == sorted(blocks)
    for number in reversed(numbers):  # a resume asks for others before, or for none
        for rung in (0, 1):
            assert again.block(number, rung) == order.block(number, rung)
        assert sorted(order.block(number, 0) + order.block(number, 1)) == list(range(size))


def test_rounds_and_evaluators_have_orders_of_their_own() -> None:
    one, other = (turns(100, 10, evaluator=name) for name in ("one", "other"))

    def order(of: Order, around: int) -> tuple[int, ...]:
        firsts = [of.block(number, 0)[0] for number in range(10)]
        return tuple(firsts.index(of.block(number, 0)[0]) for number in range(10 * around, 10 * around + 10))

    assert len({order(one, around) for around in range(20)}) > 15
    assert [order(one, around) for around in range(20)] != [order(other, around) for around in range(20)]
