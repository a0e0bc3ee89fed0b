"""Which updates and state vectors are well-formed."""

from __future__ import annotations

from contextlib import suppress
from random import Random
from typing import Any
from unittest.mock import patch

import pytest
from build import (
    anys,
    binary,
    deleted,
    doc,
    embed,
    format_,
    gc,
    item,
    json,
    skip,
    string,
    text,
    type_,
    uint,
    update,
)
from hypothesis import given
from hypothesis import strategies as st
from mutator import mutate

from ycore import RemoteProtocolError, check_update
from ycore.lib0 import MAX_SAFE_INTEGER, UNDEFINED, BigInt
from ycore.steps import Steps, finish
from ycore.updates import (
    UpdateLimits,
    decode_state_vector,
    decode_state_vector_steps,
    encode_state_vector,
    parse_update,
    parse_update_steps,
    parts_of,
)
from ycore.updates._deletes import coalesce

LONG = "x" * 200
CONTENTS = [
    deleted(3),
    json("1", "undefined", '{"a":[null]}'),
    binary(b"\x00\xff"),
    text("a"),
    text("hé😀"),
    text(LONG),
    embed('{"image":"x"}'),
    format_("bold", "true"),
    format_("link", "null"),
    type_(0),
    type_(2),
    type_(3, "p"),
    type_(5, "hook"),
    type_(6),
    anys(1, UNDEFINED, None, 0.5, BigInt(7), "s", b"b", [1, {"a": []}]),
    doc("guid", {}),
    doc("guid", {"meta": {"autoLoad": True}}),
]
GOOD = [
    update(),
    *[update({(1, 0): [item(content)]}) for content in CONTENTS],
    *[update({(1, 5): [item(content, origin=(1, 4))]}) for content in CONTENTS],
    *[update({(1, 5): [item(content, right=(9, 40))]}) for content in CONTENTS],
    update({(1, 1): [item(text("a"), origin=(1, 0), right=(2**32 - 1, 2**40))]}),
    update({(1, 1): [item(anys(1), parent=(1, 0), key="k")]}),
    update({(1, 0): [item(anys(1), parent="m", key="k"), item(anys(2), origin=(1, 0), key="k")]}),
    update({(1, 0): [gc(5), item(text("a"), parent=(7, 0)), skip(2), gc(1)]}),
    update({(1, 0): [skip(4)]}),
    update({(1, 3): [gc(1)], (0, 0): [gc(1)], (MAX_SAFE_INTEGER, 0): [gc(1)]}),
    update({(1, MAX_SAFE_INTEGER - 1): [gc(1)]}),
    update({}, {1: [(0, 1), (5, 2)], 0: [(9, 1)]}),
    update({}, {1: [(5, 2), (0, 9), (5, 2)]}),  # neither sorted nor disjoint
    bytes.fromhex("8100" + "01" + "8100" + "00" + "0001" + "00"),  # overlong varUints
]


@pytest.mark.parametrize("data", GOOD, ids=bytes.hex)
def test_well_formed(data: bytes) -> None:
    check_update(data)


@pytest.mark.parametrize("data", GOOD, ids=bytes.hex)
def test_cut_short_anywhere(data: bytes) -> None:
    for end in range(len(data)):
        with pytest.raises(RemoteProtocolError):
            check_update(data[:end])


@pytest.mark.parametrize("data", GOOD, ids=bytes.hex)
def test_bytes_left_over(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="1 bytes left over"):
        check_update(data + b"\x00")


BAD_STRUCTS = [
    (b"\x80\x01\x00\x01", "info byte 0x80"),
    (b"\x20\x01", "info byte 0x20"),
    (b"\x0b\x01\x01t", "info byte 0x0b"),
    (b"\x14\x01\x01t\x01a", "info byte 0x14"),
    (b"\x8a\x01", "info byte 0x8a"),
    (b"\x04\x02\x01t\x01a", "neither 0 nor 1"),
    (item(b"\x04\x01\xff"), "not UTF-8"),
    (item(b"\x04\x02\xc3\x28"), "not UTF-8"),
    (item(text("a"), parent="t").replace(b"\x01t", b"\x01\xff"), "not UTF-8"),
    (item(embed("{")), "JSON"),
    (item(embed("undefined")), "JSON"),
    (item(format_("b", "NaN")), "JSON"),
    (item(json("1", "'a'")), "JSON"),
    (item(type_(7, "x")), "unknown shared type 7"),
    (item(doc("g", None)), "are no object"),
    (item(doc("g", [])), "are no object"),
    (item(b"\x08\xff\xff\x03"), "values declared"),
    (item(b"\x02\xff\xff\x03"), "values declared"),
    (item(b"\x08\x01\x60"), "unknown tag"),
    (item(text("a"), origin=(1, 5)), "not before its own"),
    (item(text("a"), right=(1, 5)), "not before its own"),
    (item(text("a"), parent=(1, 5)), "not before its own"),
]


@pytest.mark.parametrize(("struct", "why"), BAD_STRUCTS)
def test_malformed_struct(struct: bytes, why: str) -> None:
    """Each at clock 5 of client 1, behind a good one."""
    with pytest.raises(RemoteProtocolError, match=why):
        check_update(update({(1, 4): [gc(1), struct]}))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "runs past the end"),
        (b"\x01\xff\xff\xff\xff\x0f\x01\x00\x00\x01\x00", "declares 4294967295 structs"),
        (update({(1, 0): [gc(1)]}) * 2, "left over"),
        (update({(1, MAX_SAFE_INTEGER): [gc(1)]}), "above 2\\^53-1"),
        (update({(1, 1): [gc(MAX_SAFE_INTEGER)]}), "above 2\\^53-1"),
        (update({}, {1: [(3, 0)]}), "is empty"),
        (update({}, {1: [(MAX_SAFE_INTEGER, 1)]}), "ends too far"),
        (b"\x00\x01\x01\xff\xff\xff\xff\x0f\x00\x01", "declares 4294967295 delete ranges"),
        (b"\x00\x02" + b"\x01\x01\x00\x01" * 2, "twice in one delete set"),
    ],
)
def test_malformed_update(data: bytes, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        check_update(data)


# What aborts, crashes or corrupts y-py 0.6.2, as it came out of fuzzing it.
FATAL_AND_MALFORMED = [
    "ffffffff0f00",
    "01ffffffff0f0100",
    "000101ffffffff0f",
    "0101010008010161ffffffff0f",
    "01010100080101610175808080808020",
    "0101010002010161ffffffff07",
    "01010100040101740568656cfd6f00",
    "0101010008010161010000",
    "0101010004000105016100",
    "0101010004070174016100",
    "01010100040102c328016100",
    "010101008401050161" + "00",
    "0101010014010174016100",
    "000105010300",
]
FATAL_AND_WELL_FORMED = [
    "010201000a0504010174016100",  # a Skip
    "010101002901016d01730167760000",  # a subdocument
    "0102010000ffffffff0f00ffffffff0f00",  # a clock above 32 bits
    "010101000401017404f09f988000",  # an emoji, of which then a half is deleted
    "000101010001",
]


@pytest.mark.parametrize("repro", FATAL_AND_MALFORMED)
def test_what_kills_other_engines_is_refused(repro: str) -> None:
    with pytest.raises(RemoteProtocolError):
        check_update(bytes.fromhex(repro))


@pytest.mark.parametrize("repro", FATAL_AND_WELL_FORMED)
def test_what_kills_other_engines_may_be_honest(repro: str) -> None:
    """Yjs can produce these, so we take them; an engine behind us has to be shielded itself."""
    check_update(bytes.fromhex(repro))


def test_nothing_recurses() -> None:
    deep = b"\x75\x01" * 100_000 + b"\x7e"
    with pytest.raises(RemoteProtocolError, match="deeper"):
        check_update(update({(1, 0): [item(b"\x08\x01" + deep)]}))
    with pytest.raises(RemoteProtocolError, match="deeper"):
        check_update(update({(1, 0): [item(embed("[" * 100_000))]}))


def test_sections_are_split_at_skips() -> None:
    parsed = parse_update(
        update({(1, 2): [gc(1), item(text("abc")), skip(4), item(text("d")), skip(1)]})
    )
    first, second = parsed.sections
    assert (first.client, first.start, first.ends) == (1, 2, [3, 6])
    assert (second.client, second.start, second.ends) == (1, 10, [11])
    assert parsed.data[first.begin + first.offsets[1] : first.stop] == item(text("abc"))


@given(
    st.dictionaries(
        st.integers(0, 5),
        st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), min_size=1, max_size=9),
        max_size=3,
    )
)
def test_delete_ranges_are_put_in_order(deletes: dict[int, list[tuple[int, int]]]) -> None:
    parsed = parse_update(update({}, deletes))
    assert parsed.deletes == {
        client: coalesce((start, start + length) for start, length in ranges)
        for client, ranges in deletes.items()
    }
    told = {
        client: [(start, start + length) for start, length in ranges]
        for client, ranges in deletes.items()
    }
    assert parsed.tidy == (parsed.deletes == told)


def test_many_delete_ranges_in_the_worst_order() -> None:
    some = [(2 * i, 1) for i in range(5000)]
    expected = [(start, start + 1) for start, _ in some]
    assert parse_update(update({}, {1: some[::-1]})).deletes == {1: expected}
    assert parse_update(update({}, {1: [(0, 1)] * 5000})).deletes == {1: [(0, 1)]}
    covered = [(i, 10_000 - 2 * i) for i in range(5000)]
    assert parse_update(update({}, {1: covered})).deletes == {1: [(0, 10_000)]}


def pauses(steps: Steps[Any]) -> int:
    return sum(1 for _ in steps)


MANY = 5000


@pytest.mark.parametrize(
    "data",
    [
        update({(client, 0): [gc(1)] for client in range(MANY)}),
        update({(1, 0): [gc(1)] * MANY}),
        update({}, {1: [(2 * i, 1) for i in range(MANY)]}),
        update({}, {client: [(0, 1)] for client in range(MANY)}),
        update({(1, 0): [item(b"\x08" + uint(MANY) + b"\x7e" * MANY)]}),
        update({(1, 0): [item(b"\x02" + uint(MANY) + b"\x010" * MANY)]}),
        update({(1, 0): [item(b"\x02" + uint(1) + string("[" + "1," * MANY + "1]"))]}),
        update({(1, 0): [item(embed("[" + "1," * MANY + "1]"))]}),
        update({(1, 0): [item(format_("key", "[" + "1," * MANY + "1]"))]}),
    ],
)
def test_long_updates_are_read_step_by_step(data: bytes) -> None:
    assert 3 < pauses(parse_update_steps(data)) < 30


def test_long_state_vectors_are_read_step_by_step() -> None:
    long = encode_state_vector(dict.fromkeys(range(MANY), 1))
    assert 3 < pauses(decode_state_vector_steps(long)) < 30


def test_what_is_short_is_not_taken_apart() -> None:
    parsed = parse_update(update({(1, 0): [gc(1)] * MANY}, {1: [(0, 1)]}))
    assert list(parts_of(parsed)) == [parsed]


@given(st.binary(max_size=60))
def test_random_bytes_raise_nothing_else(data: bytes) -> None:
    for read in (check_update, decode_state_vector):
        with suppress(RemoteProtocolError):
            read(data)


@given(st.data())
def test_mutated_updates_raise_nothing_else(data: st.DataObject) -> None:
    good = bytearray(data.draw(st.sampled_from(GOOD)))
    for _ in range(data.draw(st.integers(1, 3))):
        if good:
            good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with suppress(RemoteProtocolError):
        check_update(bytes(good))


@given(st.dictionaries(st.integers(0, MAX_SAFE_INTEGER), st.integers(0, MAX_SAFE_INTEGER)))
def test_state_vectors_both_ways(clocks: dict[int, int]) -> None:
    encoded = encode_state_vector(clocks)
    assert decode_state_vector(encoded) == clocks
    assert list(decode_state_vector(encoded)) == sorted(clocks, reverse=True)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "runs past the end"),
        (b"\xff\xff\xff\xff\x0f", "declares 4294967295 clients"),
        (b"\x01\x01", "declares 1 clients"),
        (b"\x02\x01\x01\x01\x02", "twice in one state vector"),
        (b"\x00\x00", "left over"),
        (uint(1) + b"\x80\x80", "runs past the end"),
    ],
)
def test_malformed_state_vector(data: bytes, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        decode_state_vector(data)


A, B = item(text("a")), item(text("b"), origin=(7, 0))


@pytest.mark.parametrize(
    "empty",
    [
        gc(0),
        skip(0),
        item(deleted(0)),
        item(text("")),
        item(json()),
        item(anys()),
        item(text(""), origin=(7, 0), right=(7, 0)),  # as pycrdt writes it
        item(deleted(0), origin=(1, 4), key="k"),
    ],
)
def test_structs_of_no_length_are_left_out(empty: bytes) -> None:
    deletes = {1: [(5, 1), (7, 1)], 2: [(0, 1)]}
    clean = update({(1, 5): [A, skip(2), B, gc(1)], (2, 0): [A]}, deletes)
    assert parse_update(clean).data is clean
    for first in (
        [empty, A, skip(2), B, gc(1)],
        [A, empty, empty, skip(2), empty, B, empty, gc(1), empty],
        [empty, skip(0), A, skip(2), empty, empty, B, gc(1), skip(0), empty],
    ):
        parsed = parse_update(update({(1, 5): first, (2, 0): [empty, A]}, deletes))
        assert parsed.data == clean
        assert parsed.tidy
    parsed = parse_update(update({(1, 5): first, (9, 0): [empty] * 2, (2, 0): [A]}, deletes))
    assert parsed.data == clean
    late = item(text(""), origin=(1, 99), right=(1, 98))  # of Yjs 14: it refers to anything
    assert (
        parse_update(update({(1, 5): [A, late, skip(2), B, gc(1)], (2, 0): [A]}, deletes)).data
        == clean
    )
    parsed = parse_update(update({(2, 3): [empty]}))
    assert (parsed.data, parsed.sections) == (update(), [])
    with pytest.raises(RemoteProtocolError, match="left over"):
        parse_update(update({(2, 3): [empty]}) + b"\0")


def test_an_item_is_not_left_of_itself() -> None:
    """As yrs has it, which took a struct of no length for its neighbour."""
    sent = bytes.fromhex("0101c0869bb70f18c4c0869bb70f17c0869bb70f1808f09f87a9f09f87aa00")
    taken = bytes.fromhex("0101c0869bb70f1884c0869bb70f1708f09f87a9f09f87aa00")
    parsed = parse_update(sent)
    assert (parsed.data, parsed.is_amended) == (taken, True)
    assert not parse_update(taken).is_amended
    odd = item(text("ab"), origin=(1, 0), right=(1, 1))
    rest = [
        item(text("")),
        item(text("c"), origin=(1, 2)),
        item(text("d"), origin=(7, 0), right=(1, 4)),
    ]
    parsed = parse_update(update({(1, 0): [A, odd, *rest], (2, 0): [B]}))
    assert parsed.data == update(
        {
            (1, 0): [
                A,
                item(text("ab"), origin=(1, 0)),
                item(text("c"), origin=(1, 2)),
                item(text("d"), origin=(7, 0)),
            ],
            (2, 0): [B],
        }
    )


@pytest.mark.parametrize(
    "bad",
    [
        item(text("a"), origin=(1, 3)),
        item(text("a"), origin=(1, 9)),
        item(text("a"), right=(1, 3)),
        item(text("a"), parent=(1, 3)),
        item(text("a"), origin=(1, 0), right=(1, 4)),
        item(text("a"), origin=(1, 3), right=(1, 3)),
        b"\x84\x81\x00\x03\x01a",  # the own client, overlong
    ],
)
def test_structs_of_a_client_whose_clocks_are_wrong_are_left_out(bad: bytes) -> None:
    """An id that is not before the struct's own, at clock 3, shows it. The rest is taken."""
    deletes = {1: [(0, 2)]}
    parsed = parse_update(
        update({(3, 0): [A], (1, 0): [A, skip(1), A, bad, A, skip(1), A], (2, 5): [A]}, deletes)
    )
    assert (parsed.left_out, parsed.data) == (7, update({(3, 0): [A], (2, 5): [A]}, deletes))
    assert [(section.client, section.start) for section in parsed.sections] == [(3, 0), (2, 5)]
    assert parsed.deletes == {1: [(0, 2)]}
    assert parse_update(update({(1, 0): [A, bad, bad]})).data == update({})
    assert parse_update(update({(1, 0): [A]})).left_out == 0


def test_what_is_left_out_is_checked_all_the_same() -> None:
    bad = item(text("a"), parent=(1, 9))
    with pytest.raises(RemoteProtocolError, match="not UTF-8"):
        parse_update(update({(1, 0): [bad, item(b"\x04\x01\xff")]}))
    with pytest.raises(RemoteProtocolError, match="more than 3 clients and holes"):
        finish(
            parse_update_steps(update({(1, 0): [bad, *[A, skip(1)] * 4]}), UpdateLimits(sections=3))
        )


MERGED = bytes.fromhex(
    "04028bb3cb9e070041800100048480010003efbfbd01a8cdd9d40514c4a8cdd9d40504a8cdd9d405050178018001000401"
    "017403efbfbd028bb3cb9e070041800100048480010003efbfbd018bb3cb9e07010004"
)
"""By Y.mergeUpdates, of updates in which Yjs 13.0 did not sort the clients: one comes twice."""


def test_a_client_may_be_named_twice_or_for_nothing() -> None:
    parsed = parse_update(MERGED)
    assert len(parsed.sections) == 4
    assert not parsed.tidy
    fine = update({(1, 0): [A]})
    for odd in (
        b"\x02\x00\x05\x00" + fine[1:],
        b"\x02" + fine[1:-1] + b"\x00\x05\x07\x00",
        fine[:-1] + b"\x01\x05\x00",
        fine[:-1] + b"\x02\x05\x00\x06\x01\x00\x01",
    ):
        parsed = parse_update(odd)
        assert [(s.client, s.start, [*s.ends]) for s in parsed.sections] == [(1, 0, [1])]
        assert not parsed.tidy
        assert parsed.deletes == ({6: [(0, 1)]} if odd.endswith(b"\x01") else {})
    # With something cut out they are written one after the other, as they came.
    empty = item(text(""))
    raw = b"\x02" + update({(1, 5): [A, empty]})[1:-1] + update({(1, 0): [A]})[1:]
    parsed = parse_update(raw)
    assert [(s.client, s.start) for s in parsed.sections] == [(1, 5), (1, 0)]
    assert not parsed.tidy


def test_many_structs_of_no_length_are_left_out_in_steps() -> None:
    structs = {(1, 0): [A, item(text(""), origin=(1, 0))] * 3000}
    steps = parse_update_steps(update(structs, {1: [(2 * i, 1) for i in range(2000)]}))
    turns = 0
    with pytest.raises(StopIteration) as end:
        while True:
            next(steps)
            turns += 1
    assert end.value.value.data == update(
        {(1, 0): [A] * 3000}, {1: [(2 * i, 1) for i in range(2000)]}
    )
    assert turns >= 3000 * 3 // 1024 + 2 * 2000 // 1024


def test_what_an_item_depends_on_is_noted() -> None:
    structs = [
        item(text("a"), origin=(7, 3), right=(8, 0)),
        item(text("b"), origin=(7, 1), right=(1, 0)),
        item(text("c"), parent=(9, 4)),
        item(text("d"), right=(7, 2)),
    ]
    assert parse_update(update({(1, 0): structs})).neighbours == {7: 3, 8: 0, 9: 4}
    some = [item(text("a"), origin=(7 + i, 0)) for i in range(1024)]
    assert len(parse_update(update({(1, 0): some})).neighbours or ()) == 1024
    assert parse_update(update({(1, 0): [*some, item(text("a"), right=(3, 0))]})).neighbours is None


def outcome(data: bytes) -> object:
    """All that reading an update gives, or how it fails."""
    try:
        parsed = parse_update(data)
    except RemoteProtocolError as exc:
        return str(exc)
    return (
        [(s.client, s.start, s.begin, s.stop, [*s.ends], [*s.offsets]) for s in parsed.sections],
        parsed.deletes,
        parsed.tidy,
        parsed.weight,
        parsed.neighbours,
        parsed.data,
    )


@given(st.integers(0, 2**32), st.integers(1, 3))
def test_it_does_not_matter_where_a_step_ends(seed: int, step: int) -> None:
    """Steps of a struct or two, so that all kinds of content are "long": same results and errors,
    for updates that are well-formed, and that are mutated or cut short."""
    random = Random(seed)
    sections = {
        (client, random.choice([0, 5, 300])): [
            item(
                random.choice(CONTENTS),
                origin=random.choice([None, (1, 2), (2, 299)]),
                right=random.choice([None, None, (3, 1)]),
                key=random.choice([None, None, "k"]),
            )
            if random.random() < 0.8
            else random.choice([gc(2), skip(3)])
            for _ in range(random.randint(1, 6))
        ]
        for client in random.sample([1, 2, 3, 3_000_000_000], random.randint(0, 3))
    }
    deletes = {
        client: [(random.randint(0, 20), random.randint(1, 3)) for _ in range(random.randint(1, 5))]
        for client in random.sample([1, 2, 3], random.randint(0, 2))
    }
    data = update(sections, deletes)
    some = [data, mutate(data, random, [data]), data[: random.randint(0, len(data))]]
    expected = [outcome(each) for each in some]
    with patch("ycore.updates._grammar.STEP", step), patch("ycore.lib0.STEP", step):
        assert [outcome(each) for each in some] == expected
