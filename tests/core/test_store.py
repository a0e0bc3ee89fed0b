"""The struct store: scripts for each rule, and a machine that compares it with a naive model."""

from __future__ import annotations

from itertools import permutations
from random import Random
from unittest.mock import patch

import pytest
from build import (
    Id,
    anys,
    binary,
    deleted,
    doc,
    format_,
    gc,
    item,
    json,
    skip,
    text,
    type_,
    typed,
    update,
)
from explode import Unit, explode
from hypothesis import given, settings
from hypothesis import strategies as st

from ycore import (
    RemoteProtocolError,
    StructStore,
    diff_update,
    encode_state_vector_from_update,
    merge_updates,
)
from ycore.steps import STEP, Steps, finish
from ycore.updates import Place, decode_state_vector, encode_state_vector, parse_update
from ycore.updates._deletes import ClientDeletes
from ycore.updates._runs import run_of

EMPTY = bytes.fromhex("0000")


def filled(*updates: bytes) -> StructStore:
    store = StructStore()
    for data in updates:
        store.add(data)
    return store


# ---- snapshots

FULL = (
    update({(1, 0): [item(text("ab"))], (3, 5): [gc(2)]}, {2: [(0, 3)], 9: [(1, 2), (4, 5)]}),
    update({(1, 4): [gc(1)], (7, 0): [gc(1)]}, {2: [(9, 10)]}),
)


def test_a_snapshot_is_all_there_is() -> None:
    store = filled(*FULL)
    assert finish(store.snapshot_steps()) == store.encode()
    assert finish(StructStore().snapshot_steps()) == EMPTY


def test_what_comes_while_a_snapshot_is_made_does_no_harm() -> None:
    news = [update({(client, 0): [gc(1)]}, {client: [(5, 6)]}) for client in (1, 50, 51)]
    pauses = sum(1 for _ in filled(*FULL).snapshot_steps())
    assert pauses > 1
    for before in range(pauses + 1):
        store = filled(*FULL)
        whole = store.encode()
        steps = store.snapshot_steps()
        for _ in range(before):
            next(steps)
        for new in news:
            store.add(new)
        assert filled(finish(steps)).add(whole) is None


def _many_clients() -> StructStore:
    return filled(update({(client, 0): [gc(1)] for client in range(1, 3000)}))


def test_a_snapshot_of_many_clients_pauses() -> None:
    steps = _many_clients().snapshot_steps()
    pauses = sum(1 for _ in steps)
    assert pauses >= 4


@pytest.mark.source
@pytest.mark.parametrize(
    "wrong",
    [
        EMPTY,
        b"\xff",
        EMPTY + b"\x00",
        FULL[0],
        filled(*FULL, update({}, {2: [(3, 9)]})).encode()[:-1] + b"\x00",
        filled(FULL[1], update({(1, 0): [item(text("ab"))], (3, 5): [gc(1)]})).encode(),
        filled(FULL[1], update({(1, 0): [item(text("ab"))], (3, 5): [gc(2)]})).encode(),
    ],
)
def test_a_snapshot_that_lacks_something_is_none(
    wrong: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(*FULL)

    def steps(self: StructStore, known: object) -> Steps[bytes]:
        yield
        return wrong

    monkeypatch.setattr(StructStore, "diff_steps", steps)
    with pytest.raises(RuntimeError, match="snapshot"):
        finish(store.snapshot_steps())


# ---- what is new


def test_new_is_the_update_itself_and_known_is_none() -> None:
    store = StructStore()
    first = update({(1, 0): [item(text("ab"))]}, {2: [(0, 3)]})
    assert store.add(first) is first
    assert store.add(first) is None
    assert store.add(EMPTY) is None
    assert store.encode() == first


def test_malformed_changes_nothing() -> None:
    store = filled(update({(1, 0): [gc(1)]}))
    with pytest.raises(RemoteProtocolError):
        store.add(update({(2, 0): [gc(1)], (1, 1): [b"\x0b\x01"]}))
    assert store.encode() == update({(1, 0): [gc(1)]})


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_other_kinds_of_bytes_are_copied(kind: type) -> None:
    data = bytearray(update({(1, 0): [item(text("ab"))]}))
    store = filled(kind(data))
    before = store.encode()
    data[-2] = 0x7A
    assert store.encode() == before


def test_the_first_content_for_an_id_wins_and_only_the_news_is_passed_on() -> None:
    store = filled(update({(1, 0): [item(text("ab"))]}))
    overlap = update({(1, 0): [item(text("XYc")), item(text("d"), origin=(1, 2))], (2, 0): [gc(1)]})
    assert store.add(overlap) == update(
        {
            (2, 0): [gc(1)],
            (1, 2): [item(text("c"), origin=(1, 1)), item(text("d"), origin=(1, 2))],
        }
    )
    assert store.encode() == update(
        {(2, 0): [gc(1)], (1, 0): [item(text("abc")), item(text("d"), origin=(1, 2))]}
    )


def test_of_deletes_too_only_the_news_is_passed_on() -> None:
    store = filled(update({}, {1: [(5, 5)]}))
    assert store.add(update({(3, 0): [gc(1)]}, {1: [(0, 20)], 7: [(1, 1)]})) == update(
        {(3, 0): [gc(1)]}, {7: [(1, 1)], 1: [(0, 5), (10, 10)]}
    )
    assert store.add(update({}, {1: [(6, 2), (4, 3)]})) is None


def test_knows_tells_without_adding() -> None:
    store = filled(update({(1, 0): [gc(4)]}, {1: [(1, 2)]}))
    for data, known in [
        (EMPTY, True),
        (update({(1, 1): [gc(2)]}, {1: [(2, 1)]}), True),
        (update({(1, 1): [gc(4)]}), False),
        (update({(2, 0): [gc(1)]}), False),
        (update({}, {1: [(0, 1)]}), False),
        (update({}, {1: [(2, 2)]}), False),
        (update({}, {2: [(2, 2)]}), False),
    ]:
        assert store.knows(parse_update(data)) is known, data.hex()
        assert (store.add(data) is None) is known
        store = filled(update({(1, 0): [gc(4)]}, {1: [(1, 2)]}))


# ---- holes


def test_structs_behind_a_hole_are_kept_and_written_behind_a_skip() -> None:
    a, b, c = typed(1, "abc")
    store = filled(a)
    assert store.add(c) is c
    assert store.state_vector() == {1: 1}
    assert store.encode() == update(
        {(1, 0): [item(text("a")), skip(1), item(text("c"), origin=(1, 1))]}
    )
    assert store.diff({1: 1}) == c
    assert store.diff({1: 2}) == c
    assert store.diff({1: 3}) == EMPTY
    assert store.add(b) is b
    assert store.encode() == update({(1, 0): [item(text("abc"))]})
    assert store.state_vector() == {1: 3}


def test_what_begins_behind_a_hole_is_in_no_state_vector() -> None:
    store = filled(*typed(1, "b", start=1), *typed(2, "x"))
    assert store.state_vector() == {2: 1}
    assert store.encode_state_vector() == encode_state_vector({2: 1})
    assert decode_state_vector(encode_state_vector_from_update(store.encode())) == {2: 1}


def test_a_hole_is_filled_by_what_overlaps_both_its_ends() -> None:
    store = filled(
        update({(1, 0): [item(text("ab"))]}), update({(1, 5): [item(text("fg"), origin=(1, 4))]})
    )
    new = store.add(update({(1, 1): [item(text("bcdefgh"), origin=(1, 0))]}))
    assert new == update({(1, 2): [item(text("cdefgh"), origin=(1, 1))]})
    assert (
        explode(store.encode()).units == explode(update({(1, 0): [item(text("abcdefgh"))]})).units
    )


@pytest.mark.parametrize(
    ("known", "incoming", "kept"),
    [
        # An emoji, then the same by somebody who has its halves apart: what fills the hole wins.
        ([("😀", 1)], ("a\ufffd\ufffd", 0), "a\ufffd\ufffd"),
        ([("\ufffd\ufffd", 1)], ("a😀", 0), "a😀"),
        # Behind the hole too, where it begins earlier; else what was there first.
        ([("😀x", 5)], ("a\ufffd\ufffdx", 4), "    a\ufffd\ufffdx"),
        # But not if it goes on further: taking it apart might cost more than was sent.
        ([("😀x", 5)], ("a\ufffd\ufffd", 4), "    a😀x"),
        ([("a😀", 4)], ("\ufffd\ufffdx", 5), "    a😀x"),
        ([("a😀", 4)], ("b\ufffd\ufffd", 4), "    a😀"),
        # The half of an emoji, and all of it: the same, and yet not.
        ([("\ufffdb", 2)], ("a😀b", 0), "a😀b"),
        ([("a\ufffd", 1)], ("xa😀b", 0), "xa😀b"),
        # No hole before it.
        ([("a😀", 0)], ("a\ufffd\ufffd", 0), "a😀"),
        ([("a", 0), ("😀", 1)], ("a\ufffd\ufffdx", 0), "a😀x"),
        # Several pieces.
        ([("b", 1), ("😀", 3), ("z", 9)], ("abc\ufffd\ufffde", 0), "abc\ufffd\ufffde   z"),
    ],
)
def test_which_copy_is_kept(
    known: list[tuple[str, int]], incoming: tuple[str, int], kept: str
) -> None:
    def written(word: str, clock: int) -> bytes:
        return update({(1, clock): [item(text(word), origin=(1, clock - 1) if clock else None)]})

    store = filled(*(written(*piece) for piece in known))
    before = explode(store.encode()).units
    new = store.add(written(*incoming))
    units = explode(store.encode()).units
    raw = kept.encode("utf-16-le")
    assert {clock: unit.content for (_, clock), unit in units.items()} == {
        i // 2: raw[i : i + 2] for i in range(0, len(raw), 2) if raw[i : i + 2] != b" \x00"
    }
    changed = {id_ for id_, unit in units.items() if before.get(id_) != unit}
    assert (explode(new).units.keys() if new else set()) >= changed
    assert store.add(written(*incoming)) is None
    for piece in known:
        assert store.add(written(*piece)) is None


def test_the_worst_order_costs_no_more_than_a_few_structs() -> None:
    """Runs that touch are joined as they grow, and squashed where they meet."""
    word = "abcdefgh" * 8
    store = filled(*reversed(typed(1, word)))
    assert explode(store.encode()).structs <= 8
    assert explode(store.encode()).units == explode(filled(*typed(1, word)).encode()).units
    assert store.state_vector() == {1: len(word)}


# ---- squashing


SQUASHED = [
    ([item(text("a"))], [item(text("b"), origin=(1, 0))], [item(text("ab"))]),
    (
        [item(text("x" * 127), right=(2, 3))],
        [item(text("y"), origin=(1, 126), right=(2, 3))],
        [item(text("x" * 127 + "y"), right=(2, 3))],
    ),
    ([item(anys(1), parent=(5, 6))], [item(anys("a", None), origin=(1, 0))],
     [item(anys(1, "a", None), parent=(5, 6))]),
    ([item(json("1"))], [item(json("undefined"), origin=(1, 0))], [item(json("1", "undefined"))]),
    ([item(deleted(3))], [item(deleted(200), origin=(1, 2))], [item(deleted(203))]),
    ([gc(100)], [gc(28)], [gc(128)]),
    (
        [item(format_("b", "1")), item(text("a"), origin=(1, 0))],
        [item(text("b"), origin=(1, 1)), item(type_(0), origin=(1, 2))],
        [item(format_("b", "1")), item(text("ab"), origin=(1, 0)), item(type_(0), origin=(1, 2))],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("first", "then", "together"), SQUASHED)
def test_squashed(first: list[bytes], then: list[bytes], together: list[bytes]) -> None:
    length = len(explode(update({(1, 0): first})).units)
    store = filled(update({(1, 0): first}), update({(1, length): then}))
    assert store.encode() == update({(1, 0): together})


NOT_SQUASHED = [
    ([item(text("a"))], [item(text("b"), origin=(2, 0))]),  # another origin
    ([item(text("a"))], [item(text("b"))]),  # none
    ([item(text("ab"))], [item(text("b"), origin=(1, 0))]),  # inside
    ([item(text("a"), right=(2, 0))], [item(text("b"), origin=(1, 0))]),  # another right origin
    ([item(text("a"))], [item(text("b"), origin=(1, 0), right=(2, 0))]),
    ([item(text("a"))], [item(anys("b"), origin=(1, 0))]),  # another kind
    ([item(deleted(1))], [gc(1)]),
    ([item(type_(2))], [item(text("b"), origin=(1, 0))]),
    ([item(doc("g", {}))], [item(doc("h", {}), origin=(1, 0))]),
    ([item(anys(1), key="k")], [item(anys(2), origin=(1, 0), key="k")]),  # values of a key
]


@pytest.mark.parametrize(("first", "then"), NOT_SQUASHED)
def test_not_squashed(first: list[bytes], then: list[bytes]) -> None:
    length = len(explode(update({(1, 0): first})).units)
    store = filled(update({(1, 0): first}), update({(1, length): then}))
    assert store.encode() == update({(1, 0): first + then})


def test_typing_squashes_on_and_on() -> None:
    """The size field grows in place, whatever others do meanwhile."""
    store = StructStore()
    units = 0
    for i, letter in enumerate("hello wörld 😀 " * 40):
        store.add(
            update({(1, units): [item(text(letter), origin=(1, units - 1) if units else None)]})
        )
        units += len(letter.encode("utf-16-le")) // 2
        if i % 50 == 0:
            store.add(update({(2, i): [item(text("x"), origin=(1, 0))]}, {1: [(i, 1)]}))
    assert explode(store.diff({2: 10_000})).structs == 1
    assert store.state_vector() == {1: units, 2: 1}


# ---- cutting


@pytest.mark.parametrize(
    ("struct", "low", "high", "expected"),
    [
        (gc(5), 11, 13, gc(2)),
        (item(deleted(5)), 11, 13, item(deleted(2), origin=(1, 10))),
        (item(text("abcde")), 11, 13, item(text("bc"), origin=(1, 10))),
        (item(text("abcde")), 10, 13, item(text("abc"))),
        (item(text("abcde"), origin=(7, 7)), 10, 13, item(text("abc"), origin=(7, 7))),
        (
            item(text("abcde"), origin=(7, 7), right=(8, 8)),
            12,
            15,
            item(text("cde"), origin=(1, 11), right=(8, 8)),
        ),
        (item(text("abcde"), parent=(3, 3)), 12, 15, item(text("cde"), origin=(1, 11))),
        (item(text("a😀b")), 11, 13, item(text("😀"), origin=(1, 10))),
        (item(text("a😀b")), 10, 12, item(text("a\ufffd"))),
        (item(text("a😀b")), 12, 14, item(text("\ufffdb"), origin=(1, 11))),
        (item(text("😀😀")), 11, 13, item(text("\ufffd\ufffd"), origin=(1, 10))),
        (item(anys(1, [2, {}], "3", None)), 11, 13, item(anys([2, {}], "3"), origin=(1, 10))),
        (item(anys(1, 2), key="k"), 11, 12, item(anys(2), origin=(1, 10), key="k")),
        (item(json("1", "2", "3")), 11, 12, item(json("2"), origin=(1, 10))),
        (item(json("1", "2", "3")), 10, 12, item(json("1", "2"))),
    ],
)
def test_cut(struct: bytes, low: int, high: int, expected: bytes) -> None:
    parsed = parse_update(update({(1, 10): [struct]}))
    run = run_of(parsed.data, parsed.sections[0]).cut(low, high)
    assert run.raw == expected
    assert (run.start, list(run.ends), list(run.offsets)) == (low, [high], [0])


def test_a_diff_cuts_the_first_struct() -> None:
    store = filled(
        update({(1, 0): [item(text("abc")), item(format_("b", "1"), origin=(1, 2)), gc(3)]})
    )
    whole = store.encode()
    assert store.diff({}) == store.diff({1: 0}) == store.diff({2: 9}) == whole
    assert store.diff({1: 1}) == update(
        {(1, 1): [item(text("bc"), origin=(1, 0)), item(format_("b", "1"), origin=(1, 2)), gc(3)]}
    )
    assert store.diff({1: 3}) == update({(1, 3): [item(format_("b", "1"), origin=(1, 2)), gc(3)]})
    assert store.diff({1: 4}) == update({(1, 4): [gc(3)]})
    assert store.diff({1: 6}) == update({(1, 6): [gc(1)]})
    assert store.diff({1: 7}) == store.diff({1: 99}) == EMPTY
    assert store.diff(encode_state_vector({1: 6})) == store.diff({1: 6})
    with pytest.raises(RemoteProtocolError):
        store.diff(b"\x01")


def test_a_diff_has_all_deletes() -> None:
    store = filled(update({(1, 0): [gc(1)]}, {9: [(4, 1)], 1: [(0, 1)]}))
    assert store.diff({1: 1}) == update({}, {9: [(4, 1)], 1: [(0, 1)]})


def test_higher_clients_come_first() -> None:
    store = filled(update({(1, 0): [gc(1)]}, {1: [(0, 1)], 3: [(0, 1)]}), update({(2, 0): [gc(1)]}))
    store.encode()
    store.add(update({(3, 0): [gc(1)]}))
    assert store.encode() == update(
        {(3, 0): [gc(1)], (2, 0): [gc(1)], (1, 0): [gc(1)]}, {3: [(0, 1)], 1: [(0, 1)]}
    )


# ---- the functions


def test_merge_updates() -> None:
    assert merge_updates([]) == EMPTY
    assert merge_updates(typed(1, "abc")) == update({(1, 0): [item(text("abc"))]})


def test_diff_update() -> None:
    whole = merge_updates(typed(1, "abc"))
    assert diff_update(whole, encode_state_vector({1: 2})) == typed(1, "abc")[2]


def test_encode_state_vector_from_update() -> None:
    assert encode_state_vector_from_update(EMPTY) == b"\x00"
    assert encode_state_vector_from_update(merge_updates(typed(1, "abc"))) == b"\x01\x01\x03"


# ---- against a model


class Truth:
    """What three clients have written, unit by unit, and every update that can be cut from it."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.structs: list[tuple[int, int, int, bytes]] = []
        for client in (1, 2, 300):
            clock = 0
            for _ in range(draw(st.integers(1, 6))):
                body, length = draw(contents)
                origin = draw(st.sampled_from([None, (client, clock - 1)])) if clock else None
                right = draw(st.sampled_from([None, (7, 7)]))
                struct = gc(length) if body is None else item(body, origin=origin, right=right)
                self.structs.append((client, clock, length, struct))
                clock += length
        self.units: dict[Id, Unit] = {}
        for client, clock, _, struct in self.structs:
            self.units |= explode(update({(client, clock): [struct]})).units


contents = st.one_of(
    st.text("abcé中", min_size=1, max_size=6).map(lambda s: (text(s), len(s))),
    st.lists(st.integers(0, 9), min_size=1, max_size=4).map(lambda v: (anys(*v), len(v))),
    st.lists(st.sampled_from(["1", "undefined"]), min_size=1, max_size=4).map(
        lambda v: (json(*v), len(v))
    ),
    st.integers(1, 200).map(lambda n: (deleted(n), n)),
    st.integers(1, 200).map(lambda n: (None, n)),
    st.just((format_("b", "true"), 1)),
)


@st.composite
def histories(draw: st.DrawFn) -> tuple[dict[Id, Unit], list[bytes]]:
    truth = Truth(draw)
    updates = []
    for _ in range(draw(st.integers(1, 12))):
        source = StructStore()
        for client, clock, _, struct in draw(st.lists(st.sampled_from(truth.structs), max_size=4)):
            source.add(update({(client, clock): [struct]}))
        deletes = draw(
            st.dictionaries(
                st.sampled_from([1, 300]),
                st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), min_size=1, max_size=5),
            )
        )
        source.add(update({}, deletes))
        known = draw(st.dictionaries(st.sampled_from([1, 2, 300]), st.integers(0, 40)))
        updates.append(source.diff(known))
    return truth.units, updates


@settings(max_examples=max(400, settings().max_examples))
@given(histories())
def test_agrees_with_the_model(history: tuple[dict[Id, Unit], list[bytes]]) -> None:
    truth, updates = history
    store = StructStore()
    units: dict[Id, Unit] = {}
    deletes: set[Id] = set()
    relayed = StructStore()
    for data in updates:
        exploded = explode(data)
        news = exploded.units.keys() - units.keys()
        new_deletes = exploded.deletes - deletes
        knew = store.knows(parse_update(data))
        added = store.add(data)
        assert knew == (added is None) == (not news and not new_deletes)
        if added is not None:
            # Behind a hole it may tell again what was known there; see `_make_way`.
            assert news <= explode(added).units.keys() <= exploded.units.keys()
            assert explode(added).deletes == new_deletes
            relayed.add(added)
        units |= exploded.units
        deletes |= exploded.deletes
        assert store.add(data) is None
        runs = [run.size for its in store._clients.values() for run in its]
        assert store.size == sum(runs) + sum(its.size for its in store._deletes.values())

    whole = explode(store.encode())
    assert whole.units == {id_: truth[id_] for id_ in units}
    assert whole.deletes == deletes
    assert explode(relayed.encode()) == whole

    clocks = store.state_vector()
    for client in (1, 2, 300):
        clock = clocks.get(client, 0)
        assert all((client, below) in units for below in range(clock))
        assert (client, clock) not in units
    for known in ({1: 3}, {300: 10, 2: 5}, clocks):
        diff = explode(store.diff(known))
        assert diff.units.keys() == {id_ for id_ in units if id_[1] >= known.get(id_[0], 0)}
        assert all(diff.units[id_].content == truth[id_].content for id_ in diff.units)
        assert diff.deletes == deletes

    again = StructStore()
    assert again.add(store.encode()) is not None or (not units and not deletes)
    assert explode(again.encode()) == whole
    assert explode(merge_updates(updates)) == whole


def test_many_holes_cost_no_more_than_they_take_to_say() -> None:
    """Quadratic work would take minutes here."""
    store = filled(update({(1, 0): [gc(1), skip(1)] * 50_000}))
    for clock in range(1, 2000, 2):
        assert store.add(update({(1, clock): [gc(1)]})) is not None
    assert store.state_vector() == {1: 2001}
    assert store.add(update({(2, 1): [gc(1)], (1, 0): [gc(100_000)]})) is not None
    assert store.state_vector() == {1: 100_000}
    assert explode(store.encode()).structs <= 4


# ---- settling: whose key an item has


V = anys(0)
KEYED = {
    # What is attached, however indirectly, to an item that names its key.
    "to the origin": [(1, item(V, key="k")), (2, item(V, origin=(1, 0), key="k"))],
    "to the right origin": [(1, item(V, key="k")), (2, item(V, right=(1, 0), key="k"))],
    "one's own": [(1, item(V, key="k")), (1, item(V, origin=(1, 0), key="k"))],
    "in a chain": [
        (3, item(V, key="k")),
        (2, item(V, origin=(3, 0), key="k")),
        (4, item(V, origin=(2, 0), right=(3, 0), key="k")),
        (1, item(V, right=(4, 0), key="k")),
    ],
    "the origin counts": [
        (1, item(V, key="k")),
        (2, item(V)),
        (3, item(V, origin=(1, 0), right=(2, 0), key="k")),
        (4, item(V, origin=(2, 0), right=(1, 0))),
    ],
    "not to collected ones": [(1, gc(2)), (2, item(V, origin=(1, 1)))],
    "in a type": [
        (1, item(type_(1))),
        (2, item(V, parent=(1, 0), key="k")),
        (2, item(V, origin=(2, 0), key="k")),
        (1, item(text("ab"), parent=(1, 0))),
        (1, item(text("cd"), origin=(1, 1))),
    ],
    "in texts": [
        (1, item(text("ab"))),
        (1, item(text("cd"), origin=(1, 0), right=(1, 1))),
        (2, item(text("ef"), origin=(1, 3))),
        (3, item(V, key="k")),
    ],
}


def spread(
    structs: list[tuple[int, bytes]],
) -> tuple[list[bytes], dict[tuple[int, int], list[bytes]]]:
    """An update for each struct, and all as one client's after the other."""
    ends: dict[int, int] = {}
    updates = []
    sections: dict[tuple[int, int], list[bytes]] = {}
    for client, struct in structs:
        clock = ends.get(client, 0)
        updates.append(update({(client, clock): [struct]}))
        ends[client] = clock + len(explode(updates[-1]).units)
        sections.setdefault((client, 0), []).append(struct)
    return updates, dict(sorted(sections.items(), reverse=True))


def with_hints(structs: list[tuple[int, bytes]], random: Random) -> list[tuple[int, bytes]]:
    """Some of the items that have neighbours with the bit the other way."""
    return [
        (client, bytes((raw[0] ^ random.choice([0, 0x20]),)) + raw[1:] if raw[0] & 0xC0 else raw)
        for client, raw in structs
    ]


@pytest.mark.parametrize("structs", KEYED.values(), ids=KEYED)
def test_an_item_has_its_neighbours_key_whatever_it_says(structs: list[tuple[int, bytes]]) -> None:
    """However it says so, in whatever order they come, and whether it waits meanwhile."""
    _, sections = spread(structs)
    random = Random(1)
    for order in permutations(range(len(structs))):
        updates, _ = spread(with_hints(structs, random))
        store = filled(*[updates[i] for i in order])
        assert store.encode() == update(sections)
        assert (store.behind(), store.own_deletes()) == ({}, [])
        assert filled(merge_updates(updates)).encode() == update(sections)


LONG = [(1, item(anys(1, 2, 3, 4), key="k"))]
INHERITS = [(1, item(V, key="k")), (2, item(text("abcd"), origin=(1, 0)))]


@pytest.mark.parametrize(
    ("structs", "deletes", "own"),
    [
        # whole, or nothing of it left
        (LONG, {}, {}),
        (LONG, {1: [(0, 4)]}, {}),
        (LONG, {1: [(0, 9)], 2: [(1, 1)]}, {}),
        ([*LONG, (2, item(V, origin=(1, 3)))], {}, {}),
        ([*LONG, (2, item(V, right=(1, 0)))], {}, {}),
        ([*LONG, (2, item(V, origin=(1, 3), right=(1, 0)))], {}, {}),
        ([(1, item(deleted(4), key="k")), (2, item(V, origin=(1, 1)))], {1: [(0, 1)]}, {}),
        (INHERITS, {}, {}),
        # cut by a delete
        (LONG, {1: [(0, 1)]}, {1: [(1, 2)]}),
        (LONG, {1: [(1, 1)]}, {1: [(0, 1), (2, 1)]}),
        (LONG, {1: [(3, 1)]}, {1: [(0, 3)]}),
        (LONG, {1: [(2, 9)]}, {1: [(0, 2)]}),
        ([(1, item(json("1", "2"), key="k"))], {1: [(1, 1)]}, {1: [(0, 1)]}),
        (INHERITS, {2: [(1, 1)]}, {2: [(0, 1), (2, 1)]}),
        # cut by an item
        ([*LONG, (2, item(V, origin=(1, 0)))], {}, {1: [(0, 3)]}),
        ([*LONG, (2, item(V, right=(1, 3)))], {}, {1: [(0, 3)]}),
        ([*LONG, (2, item(V, origin=(1, 3), right=(1, 2)))], {}, {1: [(0, 3)]}),
        ([(3, item(V)), *LONG, (2, item(V, origin=(3, 0), right=(1, 1)))], {}, {1: [(0, 3)]}),
        ([*INHERITS, (3, item(V, origin=(2, 1)))], {}, {2: [(0, 3)]}),
        ([*LONG, (2, item(V, origin=(1, 1))), (2, item(V, origin=(1, 2)))], {}, {1: [(0, 3)]}),
        # no value
        ([(1, item(anys(1, 2))), (2, item(text("ab"), origin=(1, 0), key="k"))], {2: [(1, 1)]}, {}),
        ([(1, item(text("ab"))), (2, item(V, origin=(1, 0)))], {1: [(0, 1)]}, {}),
    ],
)
def test_of_a_value_that_is_cut_only_the_last_clock_stays(
    structs: list[tuple[int, bytes]],
    deletes: dict[int, list[tuple[int, int]]],
    own: dict[int, list[tuple[int, int]]],
) -> None:
    for order in permutations([*spread(structs)[0], update({}, deletes)]):
        store = filled(*order)
        news = b"".join(store.own_deletes())
        assert (explode(news).deletes if news else set()) >= explode(update({}, own)).deletes
        assert bool(news) >= bool(own)
        assert store.own_deletes() == []
        expected = explode(update({}, deletes)).deletes | explode(update({}, own)).deletes
        assert explode(store.encode()).deletes == expected


def test_many_long_values_of_one_client() -> None:
    values = [item(anys(1, 2), parent="m", key=str(i)) for i in range(100)]
    store = filled(update({(1, 0): values}), update({}, {1: [(21, 1), (60, 2), (81, 20)]}))
    assert store.own_deletes() == [update({}, {1: [(20, 1), (80, 1)]})]


def test_who_is_behind() -> None:
    store = filled(
        update({(1, 0): [item(text("ab"))], (2, 3): [gc(2)], (3, 0): [item(V, origin=(1, 4))]}),
        update({(3, 1): [gc(1)], (4, 0): [gc(1), item(V, parent=(3, 1)), skip(2), gc(5)]}),
    )
    assert store.behind() == {2: 0, 3: 0, 4: 1}
    store.add(update({(1, 2): [gc(9)]}))
    assert store.behind() == {2: 0, 4: 2}
    store.add(update({(2, 0): [gc(3)], (4, 2): [gc(2)]}))
    assert store.behind() == {}


@given(st.data())
def test_the_order_does_not_matter(data: st.DataObject) -> None:
    """Random structs of a few clients, each attached to any that come before it."""
    random = Random(data.draw(st.integers(0, 2**32)))
    ids: list[tuple[int, int]] = []
    ends: dict[int, int] = {}
    structs: list[tuple[int, bytes]] = []
    for _ in range(random.randint(1, 12)):
        client = random.choice([1, 2, 300])
        content = random.choice([V, anys(1, 2), text("ab"), type_(1), deleted(2)])
        places = [None, None, *ids[-6:]]
        key = random.choice([None, "k"])
        origin, right = random.choice(places), random.choice(places)
        parent = random.choice(["t", *ids[-3:]])
        structs.append((client, item(content, origin=origin, right=right, parent=parent, key=key)))
        clock = ends.get(client, 0)
        ends[client] = clock + len(explode(update({(client, clock): [structs[-1][1]]})).units)
        ids += [(client, each) for each in range(clock, ends[client])]
    updates, sections = spread(structs)
    expected = explode(filled(update(sections)).encode())
    for _ in range(3):
        random.shuffle(updates)
        with patch("ycore.updates._store._SETTLED_AT_ONCE", random.choice([1, 2, 5000])):
            store = filled(*updates)
            # What waited may have been joined with what it continues, and is then deleted as one.
            assert explode(store.encode()).units == expected.units
            assert store.behind() == {}
            again = filled(*updates, store.encode())
            assert again.encode() == store.encode()


def test_who_is_behind_is_said_once_all_is_settled() -> None:
    chain = [item(V), *[item(V, origin=(1, i)) for i in range(9999)]]
    store = filled(update({(1, 1): chain[1:]}), update({(2, 0): [item(V, origin=(1, 10_000))]}))
    store.add(update({(1, 0): chain[:1]}))
    assert store.behind() == {2: 0}


def test_long_work_is_done_in_steps() -> None:
    chain = [item(V, key="k")] + [
        item(text("ab"), origin=(1, max(2 * i - 1, 0))) for i in range(9999)
    ]
    lacking = update({(2, 0): [item(V, right=(1, 0))]})
    store = filled(update({(1, 1): chain[1:]}), lacking)
    first = update({(1, 0): chain[:1]})
    assert store.add(first) == first
    assert not store.is_settled
    turns = 1
    while store.settle():
        turns += 1
    assert turns >= 2
    assert store.is_settled
    own = [explode(update).deletes for update in store.own_deletes()]
    assert len(own) >= 2
    assert set().union(*own) == {(1, 1 + 2 * i) for i in range(9998)}
    assert store.behind() == {}


@pytest.mark.source
def test_all_that_is_left_of_values_is_deleted_at_once_in_each_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One by one, each would move all deletes behind it: the worst order is from the last on."""
    adds: list[int] = []
    add = ClientDeletes.add

    def count(self: ClientDeletes, ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
        adds.append(len(ranges))
        return add(self, ranges)

    monkeypatch.setattr(ClientDeletes, "add", count)
    many = 9000
    values = [item(text("ab"), parent="m", key=str(i)) for i in range(many)]
    store = filled(update({(1, 0): values}))
    store.add(update({(2, 0): [item(V, origin=(1, 2 * i)) for i in range(many)][::-1]}))
    steps = 1
    while store.settle():
        steps += 1
    assert len(adds) <= steps
    assert sum(adds) == many
    own = [explode(update).deletes for update in store.own_deletes()]
    assert max(map(len, own)) <= 3 * STEP
    assert set().union(*own) == {(1, 2 * i) for i in range(many)}
    assert explode(store.encode()).deletes == {(1, 2 * i) for i in range(many)}


def test_many_who_wait_are_woken_in_steps() -> None:
    others = [update({(client, 0): [item(V, origin=(1, 0))]}) for client in range(2, 9000)]
    store = filled(*others)
    assert len(store.behind()) == 8998
    store.add(update({(1, 0): [item(V, key="k")]}))
    turns = 1
    while store.settle():
        turns += 1
    assert turns >= 3
    assert store.behind() == {}
    kinds = [unit.kind for unit in explode(store.encode()).units.values()]
    assert kinds == [0x28] * 8999  # values of a key, all of them


# ---- in parts


def parts_of_diff(store: StructStore, known: dict[int, int], most: int) -> list[bytes]:
    parts = []
    place: Place | None = Place(2**64, 0, False)
    while place is not None:
        part, place = finish(store.diff_part_steps(known, place, most))
        parts.append(part)
    return parts


def test_parts_are_as_long_as_they_may_be() -> None:
    store = StructStore()
    items = [item(binary(bytes(50)))] * 40
    store.add(update({(1, 0): [gc(3)], (2, 0): [gc(1), *items], (3, 7): [gc(1)]}))
    store.add(update({(2, 50): [item(text("x" * 50))]}))
    store.add(update({}, {4: [(2 * i, 1) for i in range(100)], 5: [(1, 1)], 6: [(1, 1)]}))
    for known in ({}, {2: 1}, {2: 7}, {2: 40, 1: 3}):
        for most in (1, 60, 100, 500, 10_000):
            parts = parts_of_diff(store, known, most)
            assert merge_updates(parts) == merge_updates([store.diff(known)])
            assert max(map(len, parts)) < most + 120
    assert len(parts_of_diff(store, {}, 10_000)) == 1


def test_a_diff_that_pauses_keeps_no_run_from_growing() -> None:
    store = StructStore()
    store.add(update({(1, 0): [item(binary(b"x"))] * 5}, {2: [(2 * i, 1) for i in range(5000)]}))
    diff = store.diff_steps({1: 2})
    next(diff)
    store.add(update({(1, 5): [item(binary(b"y"))]}))
    assert finish(diff)


def with_holes(count: int) -> StructStore:
    structs = [part for i in range(count) for part in (item(text("ab"), parent="t"), skip(1))]
    return filled(update({(1, 0): structs, (2, 0): [gc(1)]}))


def test_a_client_with_many_holes_is_sent_in_steps() -> None:
    store = with_holes(5000)
    whole = store.encode()
    steps = store.diff_steps({})
    turns = sum(1 for _ in steps)
    assert turns >= 5000 // STEP
    assert explode(whole).units.keys() == explode(filled(whole).encode()).units.keys()
    assert filled(whole).encode() == whole
    for clock in (1, 2, 3, 7_000, 14_998, 14_999, 20_000):
        assert store.diff({1: clock, 2: 1}) == diff_update(
            whole, encode_state_vector({1: clock, 2: 1})
        )
        lacks = {unit for unit in explode(whole).units if unit > (1, clock - 1) and unit[0] == 1}
        assert explode(store.diff({1: clock, 2: 1})).units.keys() == lacks
    assert merge_updates(parts_of_diff(store, {}, 5000)) == whole


def test_holes_are_filled_while_they_are_sent() -> None:
    store = with_holes(5000)
    before = explode(store.encode()).units.keys()
    steps = store.diff_steps({})
    snapshot = store.snapshot_steps()
    next(steps)
    next(snapshot)
    for clock in range(2, 12_000, 3):  # of those before and behind where it is
        store.add(update({(1, clock): [gc(1)]}))
    sent = finish(steps)
    assert explode(sent).units.keys() >= before
    assert filled(sent).encode() == sent
    assert explode(finish(snapshot)).units.keys() == explode(store.encode()).units.keys()


def test_of_an_overlapping_section_the_parts_in_between_are_taken() -> None:
    """Of the first struct and of the last, or of the only one, just what is new."""
    store = filled(update({(1, 0): [gc(2)], (2, 8): [item(text("ij"))]}))
    store.add(update({(2, 0): [gc(3)]}))
    structs = [item(text("cde")), gc(2), item(text("h"))]
    assert store.add(update({(2, 2): [*structs, item(text("ijk"), origin=(2, 7))]})) is not None
    units = explode(store.encode()).units
    assert [units[2, clock].content for clock in range(3, 8)] == [
        b"d\0",
        b"e\0",
        None,
        None,
        b"h\0",
    ]
    assert store.state_vector() == {1: 2, 2: 11}
    assert store.add(update({(3, 0): [gc(1)], (1, 2): [gc(1)]})) is not None
    store = filled(update({(1, 5): [gc(3)]}))
    news = store.add(update({(1, 3): [item(text("d")), item(text("efg"), origin=(1, 3))]}))
    assert explode(news or b"").units.keys() == {(1, 3), (1, 4)}


def test_what_is_long_is_sent_whole_to_who_has_a_part_of_it() -> None:
    """To cut it would take long, for a question of some bytes. Yjs cuts it itself."""
    long = item(anys(*range(50_000)))
    store = filled(update({(8, 0): [gc(3), long, gc(1)]}))
    assert store.diff({8: 3 + 40_000}) == update({(8, 3): [long, gc(1)]})
    assert store.diff({8: 3 + 50_000}) == update({(8, 50_003): [gc(1)]})
    short = item(anys(*range(10)))
    assert filled(update({(8, 0): [short]})).diff({8: 9}) == update(
        {(8, 9): [item(anys(9), origin=(8, 8))]}
    )


def test_a_snapshot_of_many_deletes_is_made_in_steps() -> None:
    store = filled(update({}, {client: [(0, 1)] for client in range(3000)}))
    assert finish(store.snapshot_steps()) == store.encode()
