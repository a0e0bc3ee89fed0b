"""The delete set, against plain sets."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ycore.steps import finish
from ycore.updates._deletes import ClientDeletes, Range, coalesce, subtract

ranges = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 9)).map(lambda r: (r[0], r[0] + r[1])), max_size=12
)


def clocks(ranges: list[Range]) -> set[int]:
    return {clock for start, end in ranges for clock in range(start, end)}


@given(ranges)
def test_coalesce(some: list[Range]) -> None:
    joined = coalesce(some)
    assert clocks(joined) == clocks(some)
    assert all(a[1] < b[0] for a, b in pairwise(joined))


@given(ranges, ranges)
def test_subtract(some: list[Range], known: list[Range]) -> None:
    left = subtract(coalesce(some), coalesce(known))
    assert clocks(left) == clocks(some) - clocks(known)
    assert left == coalesce(left)


@given(st.lists(ranges.filter(bool).map(coalesce), max_size=8))
def test_adding_and_covering(batches: list[list[Range]]) -> None:
    deletes = ClientDeletes()
    model: set[int] = set()
    for batch in batches:
        new = clocks(batch) - model
        assert deletes.covers(batch) == (not new)
        assert clocks(deletes.add(batch)) == new
        model |= new
        assert deletes.covers(batch)
    expected = bytearray((7, len(coalesce([(clock, clock + 1) for clock in model]))))
    for start, end in coalesce([(clock, clock + 1) for clock in model]):
        expected += bytes((start, end - start))
    assert finish(deletes.encode_steps(7)) == expected
    assert finish(deletes.encode_steps(7)) is finish(deletes.encode_steps(7))


def test_few_ranges_among_many() -> None:
    """They are added in halves, and come out the same."""
    deletes = ClientDeletes()
    many = [(clock, clock + 1) for clock in range(0, 2000, 2)]
    assert deletes.add(many) == many
    few = [(1, 2), (999, 1003), (1999, 2005)]
    assert deletes.add(few) == [(1, 2), (999, 1000), (1001, 1002), (1999, 2005)]
    assert deletes.add(few) == []
    assert deletes.covers([(998, 1003)])


def test_what_changes_while_it_is_encoded_is_encoded_anew() -> None:
    deletes = ClientDeletes()
    many = [(clock, clock + 1) for clock in range(0, 6000, 2)]
    deletes.add(many)
    steps = deletes.encode_steps(1)
    next(steps)
    deletes.add([(1, 2)])
    before = finish(steps)
    after = finish(deletes.encode_steps(1))
    assert before.startswith(b"\x01\xb8\x17\x00\x01\x02\x01")
    assert after.startswith(b"\x01\xb7\x17\x00\x03\x04\x01")
    assert finish(deletes.encode_steps(1)) is after
