"""The delete set, against plain sets."""

from __future__ import annotations

from itertools import pairwise
from unittest.mock import patch

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


@given(st.lists(ranges.filter(bool).map(coalesce), max_size=8), st.booleans())
def test_adding_and_covering(batches: list[list[Range]], few: bool) -> None:
    deletes = ClientDeletes()
    model: set[int] = set()
    for batch in batches:
        new = clocks(batch) - model
        assert deletes.covers(batch) == (not new)
        with patch("ycore.updates._deletes._SWALLOWED", 2 if few else 4096):
            told = deletes.add(batch)
        assert told == coalesce(told)
        assert bool(told) == bool(new)
        assert new <= clocks(told) <= clocks(batch) if few else clocks(told) == new
        model |= new
        assert deletes.covers(batch)
    expected = bytearray((7, len(coalesce([(clock, clock + 1) for clock in model]))))
    for start, end in coalesce([(clock, clock + 1) for clock in model]):
        expected += bytes((start, end - start))
    assert finish(deletes.encode_steps(7)) == expected
    assert finish(deletes.encode_steps(7)) is finish(deletes.encode_steps(7))


def test_few_ranges_among_many() -> None:
    deletes = ClientDeletes()
    many = [(clock, clock + 1) for clock in range(0, 2000, 2)]
    assert deletes.add(many) == many
    few = [(1, 2), (999, 1003), (1999, 2005)]
    assert deletes.add(few) == [(1, 2), (999, 1000), (1001, 1002), (1999, 2005)]
    assert deletes.add(few) == []
    assert deletes.covers([(998, 1003)])


def test_what_takes_the_place_of_very_many_is_new_as_a_whole() -> None:
    deletes = ClientDeletes()
    many = [(clock, clock + 1) for clock in range(0, 20_000, 2)]
    deletes.add(many)
    assert deletes.add([(5, 20_005)]) == [(5, 20_005)]
    assert finish(deletes.encode_steps(7)) == b"\x07\x03\x00\x01\x02\x01\x04\xa1\x9c\x01"


@given(ranges.map(coalesce), st.integers(0, 69), st.integers(1, 9))
def test_what_is_touched(some: list[Range], start: int, length: int) -> None:
    deletes = ClientDeletes()
    if some:
        deletes.add(some)
    its = set(range(start, start + length))
    assert deletes.touches(start, start + length) == bool(clocks(some) & its)
    assert deletes.within(start, start + length) == [
        (a, b) for a, b in some if clocks([(a, b)]) & its
    ]


def test_a_copy_stays_as_it_is() -> None:
    deletes = ClientDeletes()
    many = [(clock, clock + 1) for clock in range(0, 6000, 2)]
    deletes.add(many)
    copy = deletes.copy()
    deletes.add([(0, 7000)])
    parts = list(copy.parts())
    assert [len(part) for part in parts] == [1024, 1024, 952]
    assert [each for part in parts for each in part] == many


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
