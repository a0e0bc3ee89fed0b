"""Awareness: the rules of y-protocols, by scripts with a virtual clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ycore import Awareness, AwarenessEntry, LocalProtocolError, RemoteProtocolError
from ycore.awareness import (
    OUTDATED_AFTER,
    RENEW_AFTER,
    decode_awareness,
    decode_awareness_steps,
    encode_awareness,
)


def entry(client: int, clock: int, state: str | None = "{}") -> AwarenessEntry:
    return AwarenessEntry(client, clock, state)


# ---- bytes


def test_long_ones_are_read_step_by_step() -> None:
    many = encode_awareness([entry(client, 1) for client in range(5000)])
    assert sum(1 for _ in decode_awareness_steps(many, 9999, 99)) == 4
    long = encode_awareness([entry(1, 1, "[" + "1," * 5000 + "1]")])
    assert sum(1 for _ in decode_awareness_steps(long, 1, 99_999)) > 3


def test_both_ways() -> None:
    entries = [entry(1, 0, '{"name":"ö"}'), entry(2**32 - 1, 300, None)]
    payload = bytes.fromhex("02" + "01000d") + '{"name":"ö"}'.encode()
    payload += bytes.fromhex("ffffffff0fac0204") + b"null"
    assert encode_awareness(entries) == payload
    assert decode_awareness(payload) == entries


def test_null_may_have_space_around_it() -> None:
    assert decode_awareness(b"\x01\x01\x01\x06 null ") == [entry(1, 1, None)]


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "runs past the end"),
        (b"\xff\xff\xff\xff\x0f", "declares 4294967295 entries"),
        (b"\x01\x01\x01", "declares 1 entries"),
        (b"\x01\x01\x01\x05{}", "runs past the end"),
        (b"\x01\x01\x01\x02{]", "JSON"),
        (b"\x01\x01\x01\x00", "JSON"),
        (b"\x01\x01\x01\x01\xff", "not UTF-8"),
        (b"\x00\x00", "left over"),
    ],
)
def test_malformed(payload: bytes, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        decode_awareness(payload)


@given(st.binary(max_size=30))
def test_random_bytes_are_read_or_refused(payload: bytes) -> None:
    try:
        entries = decode_awareness(payload)
    except RemoteProtocolError:
        return
    assert decode_awareness(encode_awareness(entries)) == entries


# ---- whether an entry counts


@pytest.mark.parametrize(
    ("known", "announced", "counts"),
    [
        (None, entry(1, 1), True),
        (None, entry(1, 0), False),  # unknown counts as clock 0
        (None, entry(1, 0, None), False),
        (entry(1, 5), entry(1, 6, '{"a":1}'), True),
        (entry(1, 5), entry(1, 5, '{"a":1}'), False),
        (entry(1, 5), entry(1, 4), False),
        (entry(1, 5), entry(1, 5, None), True),
        (entry(1, 5), entry(1, 6, None), True),
        (entry(1, 5), entry(1, 4, None), False),
        (entry(1, 5, None), entry(1, 5), False),
        (entry(1, 5, None), entry(1, 5, None), False),
        (entry(1, 5, None), entry(1, 6), True),
    ],
)
def test_entries(known: AwarenessEntry | None, announced: AwarenessEntry, *, counts: bool) -> None:
    awareness = Awareness()
    if known is not None:
        awareness.apply([entry(1, known.clock), known], now=0)
    before = awareness.entries([1])
    changed = awareness.apply([announced], now=1)
    assert changed == ([announced] if counts else [])
    assert awareness.entries([1]) == (changed or before)


def test_a_farewell_of_nobody_is_remembered_but_changes_nothing() -> None:
    awareness = Awareness()
    assert awareness.apply([entry(1, 7, None)], now=0) == []
    assert awareness.apply([entry(1, 7)], now=0) == []
    assert awareness.apply([entry(1, 8)], now=0) == [entry(1, 8)]
    assert awareness.states == {1: "{}"}


def test_entries_of_all_and_of_some() -> None:
    awareness = Awareness(9)
    awareness.apply([entry(1, 3), entry(2, 4), entry(2, 4, None)], now=0)
    assert awareness.entries() == [entry(1, 3)]
    assert awareness.entries([1, 2, 3, 9]) == [entry(1, 3), entry(2, 4, None)]


def test_removed_without_a_word() -> None:
    """`null` goes out at the same clock, once."""
    awareness = Awareness()
    awareness.apply([entry(1, 3), entry(2, 4)], now=0)
    assert awareness.remove([1, 3], now=1) == [entry(1, 3, None)]
    assert awareness.remove([1], now=1) == []
    assert awareness.apply([entry(1, 3)], now=1) == []
    assert awareness.clock(1) == 3


# ---- time


def test_states_expire_unless_renewed() -> None:
    awareness = Awareness()
    assert awareness.next_timeout() is None
    awareness.apply([entry(1, 1), entry(2, 1)], now=0)
    awareness.apply([entry(1, 2)], now=10)
    assert awareness.next_timeout() == OUTDATED_AFTER
    assert awareness.handle_timeout(OUTDATED_AFTER - 0.1) == []
    assert awareness.handle_timeout(OUTDATED_AFTER) == [entry(2, 1, None)]
    assert awareness.next_timeout() == 10 + OUTDATED_AFTER
    assert awareness.handle_timeout(1000) == [entry(1, 2, None)]
    assert awareness.next_timeout() == 1000 + OUTDATED_AFTER
    assert awareness.handle_timeout(1000 + OUTDATED_AFTER) == []
    assert awareness.next_timeout() is None


def test_the_gone_are_forgotten_in_time() -> None:
    """Then a client that begins again counts as new; and nothing is kept for ever."""
    awareness = Awareness()
    awareness.apply([entry(1, 9), entry(1, 9, None)], now=0)
    awareness.apply([entry(2, 9), entry(2, 9, None)], now=5)
    assert awareness.apply([entry(1, 1)], now=29) == []
    assert awareness.handle_timeout(OUTDATED_AFTER) == []
    assert awareness.clock(1) == 0
    assert awareness.clock(2) == 9
    assert awareness.apply([entry(1, 1)], now=31) == [entry(1, 1)]


def test_counting_up_is_no_renewal_and_renewing_counts_nothing() -> None:
    awareness = Awareness()
    awareness.apply([entry(1, 1), entry(2, 1)], now=0)
    awareness.count_up([1])
    awareness.renew(2, now=10)
    assert awareness.is_here(1, "{}")
    assert not awareness.is_here(1, "1")
    assert awareness.handle_timeout(OUTDATED_AFTER) == [entry(1, 2, None)]
    assert awareness.entries() == [entry(2, 1)]
    assert awareness.gone_since(1) == OUTDATED_AFTER
    assert awareness.gone_since(2) is None
    assert not awareness.is_here(1, "{}")


# ---- our own state


def test_our_own_state_counts_from_zero_and_up() -> None:
    awareness = Awareness(9)
    assert awareness.entries([9]) == []
    assert awareness.set_local_state(None, now=0) == []
    assert awareness.set_local_state('{"a":1}', now=0) == [entry(9, 0, '{"a":1}')]
    assert awareness.set_local_state('{"a":2}', now=0) == [entry(9, 1, '{"a":2}')]
    assert awareness.set_local_state(None, now=0) == [entry(9, 2, None)]
    assert awareness.entries([9]) == [entry(9, 2, None)]
    assert awareness.set_local_state("{}", now=0) == [entry(9, 3)]


def test_our_own_state_is_renewed_and_never_expires() -> None:
    awareness = Awareness(9)
    awareness.apply([entry(1, 1)], now=0)
    awareness.set_local_state("{}", now=1)
    assert awareness.next_timeout() == 1 + RENEW_AFTER
    assert awareness.handle_timeout(RENEW_AFTER) == []
    assert awareness.handle_timeout(1 + RENEW_AFTER) == [entry(9, 1)]
    assert awareness.handle_timeout(100) == [entry(1, 1, None), entry(9, 2)]
    assert awareness.states == {9: "{}"}


def test_nobody_else_can_say_that_we_are_gone() -> None:
    awareness = Awareness(9)
    awareness.set_local_state("{}", now=0)
    assert awareness.apply([entry(9, 5, None)], now=0) == [entry(9, 6)]
    assert awareness.states == {9: "{}"}
    assert awareness.set_local_state("{}", now=0) == [entry(9, 7)]


def test_while_we_are_not_shown_our_clock_is_kept() -> None:
    awareness = Awareness(9)
    awareness.set_local_state("{}", now=0)
    awareness.set_local_state(None, now=0)
    awareness.apply([entry(1, 1)], now=100)
    assert awareness.handle_timeout(100) == []
    assert awareness.apply([entry(9, 4, None)], now=100) == []
    assert awareness.set_local_state("{}", now=100) == [entry(9, 5)]


def test_misuse() -> None:
    with pytest.raises(LocalProtocolError, match="no awareness state of its own"):
        Awareness().set_local_state("{}", now=0)
    with pytest.raises(LocalProtocolError, match="JSON"):
        Awareness(1).set_local_state("{", now=0)


def test_who_comes_and_goes_is_not_remembered_without_end() -> None:
    awareness = Awareness()
    for client in range(30_000):
        awareness.apply([entry(client, 1)], now=client / 10_000)
        awareness.remove([client], now=client / 10_000)
    assert awareness.gone_since(9_999) is None
    assert awareness.gone_since(10_000) == 1
    awareness.handle_timeout(OUTDATED_AFTER + 2)
    assert awareness.gone_since(20_000) is None
    assert awareness.gone_since(20_001) is not None
    assert awareness.next_timeout() == 2.0001 + OUTDATED_AFTER


def test_what_is_remembered_encoded_is_what_would_be_encoded() -> None:
    awareness = Awareness()

    def check() -> None:
        changes = awareness.changes
        assert awareness.encode() == encode_awareness(awareness.entries())
        assert awareness.changes == changes

    check()
    awareness.apply([entry(client, 1) for client in (1, 2, 3)], now=0)
    check()
    before = awareness.changes
    awareness.renew(1, now=1)
    check()
    assert awareness.changes == before
    for change in (
        lambda: awareness.apply([entry(2, 2, '"new"')], now=1),
        lambda: awareness.count_up([1, 2]),
        lambda: awareness.remove([1], now=2),
        awareness.forget_others,
    ):
        change()
        assert awareness.changes > before
        before = awareness.changes
        check()
