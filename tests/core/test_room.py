"""Rooms: scripted conversations with a virtual clock."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from build import anys, binary, gc, item, skip, text, typed, update
from explode import explode
from script import edit, plain, receivers, show, step1

from ycore import (
    AwarenessChanged,
    AwarenessEntry,
    Close,
    CloseCode,
    CustomMessage,
    Effect,
    Frame,
    LocalProtocolError,
    Member,
    Persist,
    Probe,
    RemoteProtocolError,
    Room,
    Send,
    Settings,
    State,
    StructStore,
    UpdateLimits,
    merge_updates,
)
from ycore.doc import Doc
from ycore.messages import Custom, PermissionDenied, QueryAwareness, SyncStep2

EMPTY = b"\x00\x00"
A, B, C = typed(1, "abc")


def enter(room: Room, now: float = 0, *, read_only: bool = False) -> Member:
    """Join and sync."""
    member, _ = room.join(now=now, read_only=read_only)
    room.receive(member, step1(), now=now)
    return member


def appear(room: Room, member: Member, client: int, state: str = "{}") -> None:
    """Show an awareness state, as a client does that knows the room's clock for it: 2."""
    room.receive(member, show((client, 1, state)), now=0)
    room.receive(member, show((client, 2, state)), now=0)
    assert room.awareness.entries([client]) == [(client, 2, state)]


@pytest.fixture
def room() -> Room:
    return Room("doc")


# ---- joining


def test_a_joiner_is_greeted_with_the_state_vector_and_who_is_here(room: Room) -> None:
    first, effects = room.join(now=0)
    assert plain(effects) == [("send", ("step1", {}), [first])]
    room.receive(first, edit(A), now=0)
    appear(room, first, 7)
    second, effects = room.join(now=0)
    assert plain(effects) == [
        ("send", ("step1", {1: 1}), [second]),
        ("send", ("awareness", (7, 2, "{}")), [second]),
    ]
    assert room.members == (first, second)
    assert second.room is room


def test_a_step1_is_answered_even_with_nothing(room: Room) -> None:
    member, _ = room.join(now=0)
    assert plain(room.receive(member, step1(), now=0)) == [("send", ("step2", EMPTY), [member])]
    assert plain(room.receive(member, step1({9: 9}), now=1)) == [
        ("send", ("step2", EMPTY), [member])
    ]


def test_updates_reach_a_member_from_its_snapshot_on_and_none_twice(room: Room) -> None:
    writer, reader = enter(room), room.join(now=0)[0]
    assert plain(room.receive(writer, edit(A), now=0)) == [("persist", A)]
    assert plain(room.receive(reader, step1(), now=0)) == [("send", ("step2", A), [reader])]
    assert plain(room.receive(writer, edit(B), now=0)) == [
        ("persist", B),
        ("send", ("update", B), [reader]),
    ]


# ---- editing


def test_an_edit_is_persisted_before_it_is_sent_and_not_sent_to_its_author(room: Room) -> None:
    author, other, third = enter(room), enter(room), enter(room)
    assert plain(room.receive(author, edit(A), now=0)) == [
        ("persist", A),
        ("send", ("update", A), [other, third]),
    ]


def test_an_author_who_is_not_synced_still_reaches_the_others(room: Room) -> None:
    other = enter(room)
    author, _ = room.join(now=0)
    assert plain(room.receive(author, edit(A), now=0))[1] == ("send", ("update", A), [other])


def test_a_step2_is_an_edit(room: Room) -> None:
    author, other = enter(room), enter(room)
    offline = update({(1, 0): [item(text("offline"))]}, {2: [(0, 1)]})
    assert plain(room.receive(author, SyncStep2(offline).encode(), now=0)) == [
        ("persist", offline),
        ("send", ("update", offline), [other]),
    ]


def acknowledging() -> Room:
    return Room("doc", settings=Settings(acknowledge=True))


def test_an_acknowledged_edit_costs_one_frame_for_all() -> None:
    room = acknowledging()
    author, other = enter(room), enter(room)
    effects = room.receive(author, edit(A), now=0)
    assert plain(effects) == [("persist", A), ("send", ("update", A), [author, other])]
    assert len(effects) == 2


def test_of_what_is_partly_known_the_author_hears_all_that_it_sent() -> None:
    room = acknowledging()
    author, other = enter(room), enter(room)
    room.receive(author, edit(A), now=0)
    both = merge_updates([A, B])
    assert plain(room.receive(author, edit(both), now=0)) == [
        ("persist", B),
        ("send", ("update", both), [author]),
        ("send", ("update", B), [other]),
    ]
    assert plain(room.receive(author, edit(both), now=0)) == [("send", ("update", both), [author])]
    assert room.receive(author, edit(EMPTY), now=0) == []


def test_who_is_not_synced_or_stalled_or_refused_gets_no_acknowledgement() -> None:
    room = acknowledging()
    other = enter(room)
    author, _ = room.join(now=0)
    assert plain(room.receive(author, edit(A), now=0))[1:] == [("send", ("update", A), [other])]
    room.stall(other, now=0)
    assert plain(room.receive(other, edit(B), now=0)) == [("persist", B)]
    reader = enter(room, read_only=True)
    assert plain(room.receive(reader, edit(C), now=0)) == [("send", ("denied",), [reader])]


def test_in_a_room_opened_for_reading_nobody_edits() -> None:
    room = Room("doc", loading=True)
    member, _ = room.join(now=0)
    other, _ = room.join(now=0)
    room.load(A)
    room.receive(member, edit(B), now=0)
    effects = room.opened(now=0, read_only="the disk is sick")
    [denied] = [e for e in effects if plain([e])[0][1] == ("denied",)]
    assert b"the disk is sick: the edit was refused" in denied.frame
    assert plain(room.receive(other, step1(), now=0)) == [("send", ("step2", A), [other])]
    assert room.receive(other, SyncStep2(A).encode(), now=0) == []
    assert room.counters.refused_updates == 1


def test_what_is_known_is_neither_persisted_nor_sent(room: Room) -> None:
    author, other = enter(room), enter(room)
    room.receive(author, edit(A), now=0)
    assert room.receive(other, edit(A), now=0) == []
    assert room.receive(other, SyncStep2(EMPTY).encode(), now=0) == []


def test_of_what_is_partly_known_the_news_are_sent(room: Room) -> None:
    author, other = enter(room), enter(room)
    room.receive(author, edit(A), now=0)
    both = update({(1, 0): [item(text("Xb"))]})
    assert plain(room.receive(author, edit(both), now=0)) == [
        ("persist", B),
        ("send", ("update", B), [other]),
    ]


def test_broadcasting_shares_one_tuple(room: Room) -> None:
    author, *_ = [enter(room) for _ in range(100)]
    sends = []
    for data in (A, B):
        _, send = room.receive(author, edit(data), now=0)
        assert isinstance(send, Send)
        sends.append(send)
    send, lesson = room.receive(author, show((1, 1, "{}")), now=0)  # to all, the same here
    assert isinstance(send, Send)
    assert sends[0].to is sends[1].to is send.to
    assert plain([lesson]) == [("send", ("awareness", (1, 2, "{}")), [author])]


# ---- read-only


def test_a_read_only_member_reads_and_is_seen_but_its_edits_are_refused(room: Room) -> None:
    writer, reader = enter(room), enter(room, read_only=True)
    assert plain(room.receive(writer, edit(A), now=0))[1] == ("send", ("update", A), [reader])
    assert ("send", ("awareness", (7, 2, "{}")), [writer]) in plain(
        room.receive(reader, show((7, 1, "{}")), now=0)
    )
    for message in (edit(B), SyncStep2(B).encode()):
        assert plain(room.receive(reader, message, now=0)) == [("send", ("denied",), [reader])]
    assert room.counters.refused_updates == 2
    assert room.store.encode() == A


def test_a_read_only_member_may_repeat_what_is_known(room: Room) -> None:
    writer, reader = enter(room), enter(room, read_only=True)
    room.receive(writer, edit(A), now=0)
    assert room.receive(reader, SyncStep2(A).encode(), now=0) == []
    assert room.counters.refused_updates == 0


# ---- awareness


def test_awareness_goes_to_everyone_but_its_author_synced_or_not(room: Room) -> None:
    one, two = enter(room), room.join(now=0)[0]
    appear(room, one, 7)
    assert plain(room.receive(one, show((7, 3, '"new"')), now=0)) == [
        ("send", ("awareness", (7, 3, '"new"')), [two])
    ]


def test_a_renewal_goes_out(room: Room) -> None:
    one, two = enter(room), enter(room)
    appear(room, one, 7)
    assert plain(room.receive(one, show((7, 3, "{}")), now=15)) == [
        ("send", ("awareness", (7, 3, "{}")), [two])
    ]
    assert room.awareness.next_timeout() == 45


def test_one_alone_is_told_nothing(room: Room) -> None:
    one = enter(room)
    appear(room, one, 7)
    assert room.receive(one, show((7, 3, "{}")), now=0) == []


def test_a_query_is_answered_with_all_states(room: Room) -> None:
    one, two = enter(room), enter(room)
    assert room.receive(one, QueryAwareness().encode(), now=0) == []
    appear(room, one, 7)
    assert plain(room.receive(two, QueryAwareness().encode() + b"\x00", now=0)) == [
        ("send", ("awareness", (7, 2, "{}")), [two])
    ]


def test_who_leaves_is_gone_for_the_others_at_once(room: Room) -> None:
    one, two = enter(room), enter(room)
    appear(room, one, 7)
    appear(room, one, 8)
    assert plain(room.leave(one, now=1)) == [
        ("send", ("awareness", (7, 2, None), (8, 2, None)), [two])
    ]
    assert room.leave(one, now=1) == []


def test_a_clean_farewell_comes_at_the_same_clock_and_is_not_repeated(room: Room) -> None:
    one, two = enter(room), enter(room)
    appear(room, one, 7)
    assert plain(room.receive(one, show((7, 2, None)), now=0)) == [
        ("send", ("awareness", (7, 2, None)), [two])
    ]
    assert room.leave(one, now=0) == []


def test_one_may_hide_and_show_itself_again(room: Room) -> None:
    one, two = enter(room), enter(room)
    appear(room, one, 7)
    room.receive(one, show((7, 3, None)), now=0)
    assert room.awareness.states == {}
    assert plain(room.receive(one, show((7, 4, "1")), now=0)) == [
        ("send", ("awareness", (7, 4, "1")), [two])
    ]


def test_nobody_speaks_for_anothers_id(room: Room) -> None:
    one, two = enter(room), enter(room)
    appear(room, one, 7)
    for forged, effects in [
        ((7, 2, None), []),
        ((7, 9, '"forged"'), [Probe(one)]),
        ((7, 9, None), []),
    ]:
        assert room.receive(two, show(forged), now=0) == effects
    appear(room, two, 8)
    assert room.receive(two, show((7, 9, '"forged"')), now=0) == []
    assert room.awareness.states == {7: "{}", 8: "{}"}
    assert room.counters.refused_awareness == 3
    assert plain(room.receive(one, show((7, 3, '"new"')), now=0)) == [
        ("send", ("awareness", (7, 3, '"new"')), [two])
    ]


def test_whose_id_another_claims_is_probed(room: Room) -> None:
    """Its client may be back on a new connection, and this one dead."""
    dead, watcher = enter(room), enter(room)
    appear(room, dead, 7)
    appear(room, watcher, 8)
    back = enter(room, now=1)
    assert room.receive(back, show((7, 2, "{}")), now=1) == [Probe(dead)]
    assert room.receive(watcher, show((7, 2, "{}")), now=1) == []  # an echo
    assert ("send", ("awareness", (7, 2, None)), [watcher, back]) in plain(room.leave(dead, now=5))
    # On hearing that it is gone a client counts up and says that it is not.
    assert plain(room.receive(back, show((7, 3, "{}")), now=5))[0] == (
        "send",
        ("awareness", (7, 4, "{}")),
        [watcher],
    )


def test_echoes_of_others_change_nothing(room: Room) -> None:
    """y-websocket clients send on every change of their awareness, also what they heard."""
    one, two = enter(room), enter(room)
    appear(room, one, 7)
    appear(room, two, 8)
    assert room.receive(two, show((7, 2, "{}")), now=0) == []
    room.leave(one, now=1)
    assert room.receive(two, show((7, 2, "{}")), now=1) == []  # was on its way
    assert room.receive(two, show((7, 2, None)), now=1) == []
    assert room.awareness.states == {8: "{}"}
    assert room.counters.refused_awareness == 0


def test_an_echo_of_one_who_shows_nothing_brings_nobody_back(room: Room) -> None:
    one, two = enter(room), enter(room)
    appear(room, one, 7)
    room.leave(one, now=1)
    assert room.receive(two, show((7, 2, "{}")), now=1) == []
    assert room.receive(two, show((7, 2, None)), now=1) == []
    assert room.awareness.states == {}


def test_an_id_passed_on_for_another_is_handed_over_when_its_owner_comes(room: Room) -> None:
    """Tabs of one browser hear of each other before the server does."""
    tab, watcher = enter(room), enter(room)
    appear(room, tab, 7)
    assert plain(room.receive(tab, show((8, 5, "{}")), now=0))[0] == (
        "send",
        ("awareness", (8, 6, "{}")),
        [watcher],
    )
    other_tab = enter(room)
    assert plain(room.receive(other_tab, show((8, 5, "{}")), now=0))[0] == (
        "send",
        ("awareness", (8, 7, "{}")),
        [tab, watcher],
    )
    room.leave(tab, now=0)
    assert room.awareness.states == {8: "{}"}
    assert plain(room.leave(other_tab, now=0)) == [("send", ("awareness", (8, 7, None)), [watcher])]


def test_a_new_id_goes_out_one_up_and_its_owner_is_told(room: Room) -> None:
    """The others may hold its clock from before a restart. What it repeats goes no further."""
    one, two = enter(room), enter(room)
    assert plain(room.receive(one, show((7, 3, "{}")), now=0)) == [
        ("send", ("awareness", (7, 4, "{}")), [two]),
        ("send", ("awareness", (7, 4, "{}")), [one]),
    ]
    assert room.receive(one, show((7, 4, "{}")), now=0) == []
    assert plain(room.receive(one, show((7, 5, '"new"')), now=0)) == [
        ("send", ("awareness", (7, 5, '"new"')), [two])
    ]


def test_a_clock_that_starts_at_zero_is_visible_at_once(room: Room) -> None:
    """As yrs clients' does; Yjs clients would ignore it."""
    one, two = enter(room), enter(room)
    assert plain(room.receive(one, show((7, 0, "{}")), now=0))[0] == (
        "send",
        ("awareness", (7, 1, "{}")),
        [two],
    )


def test_a_change_that_crosses_the_lesson_counts_up_too(room: Room) -> None:
    one, two = enter(room), enter(room)
    room.receive(one, show((7, 3, '"a"')), now=0)
    assert plain(room.receive(one, show((7, 4, '"b"')), now=0)) == [
        ("send", ("awareness", (7, 5, '"b"')), [two]),
        ("send", ("awareness", (7, 5, '"b"')), [one]),
    ]


def test_a_clock_far_behind_is_taught_by_one_at_a_time(room: Room) -> None:
    one, two = enter(room), enter(room)
    room.receive(one, show((7, 9, '"old"')), now=0)
    room.leave(one, now=0)
    back = enter(room, now=1)
    assert plain(room.receive(back, show((7, 8, '"x"')), now=1)) == [
        ("send", ("awareness", (7, 11, '"x"')), [two]),
        ("send", ("awareness", (7, 9, '"x"')), [back]),
    ]
    assert plain(room.receive(back, show((7, 9, '"x"')), now=0)) == [
        ("send", ("awareness", (7, 10, '"x"')), [back])
    ]
    room.receive(back, show((7, 10, '"x"')), now=0)
    assert room.receive(back, show((7, 11, '"x"')), now=0) == []
    assert plain(room.receive(back, show((7, 12, '"y"')), now=0)) == [
        ("send", ("awareness", (7, 12, '"y"')), [two])
    ]


def test_who_comes_back_is_seen_and_sees_the_others_at_once(room: Room) -> None:
    """Its client holds the clocks of all who are here, but not their states."""
    one, two = enter(room), enter(room)
    appear(room, one, 7)
    appear(room, two, 8)
    room.leave(one, now=1)
    back = enter(room, now=2)
    assert plain(room.receive(back, show((7, 2, "{}")), now=2)) == [
        ("send", ("awareness", (7, 3, "{}")), [two]),
        ("send", ("awareness", (7, 3, "{}")), [back]),
        ("send", ("awareness", (8, 3, "{}")), [back]),
        ("send", ("awareness", (8, 3, "{}")), [two]),
    ]
    # The others' states expire when they would have.
    assert plain(room.handle_timeout(now=30))[0] == (
        "send",
        ("awareness", (8, 3, None)),
        [two, back],
    )


def test_one_message_may_say_several_things_of_one_id(room: Room) -> None:
    one, two = enter(room), enter(room)
    appear(room, one, 7)
    assert plain(room.receive(one, show((7, 3, "1"), (7, 4, "2")), now=0)) == [
        ("send", ("awareness", (7, 3, "1"), (7, 4, "2")), [two])
    ]


# ---- bad bytes


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x00\x02\x05\x00",
        edit(b"\x01"),
        edit(A) + edit(b"\xff" * 9),
        show((7, 1, "{}")) + b"\x01\x01\x01",
        step1() + b"\x00\x00\x01\x05",
        b"\x01\x05\x01\x07\x02\x01{",
    ],
)
def test_bad_bytes_cost_their_sender_its_connection_and_change_nothing(
    room: Room, frame: bytes
) -> None:
    bad, good = room.join(now=0)[0], enter(room)
    appear(room, bad, 9)
    assert plain(room.receive(bad, frame, now=0)) == [
        ("close", bad, 4400),
        ("send", ("awareness", (9, 2, None)), [good]),
    ]
    assert room.store.encode() == EMPTY
    assert room.awareness.states == {}
    assert room.members == (good,)
    assert not bad.synced
    assert room.counters.bad_frames == 1


def test_after_a_close_the_member_is_out(room: Room) -> None:
    bad, good = enter(room), enter(room)
    room.receive(bad, b"", now=0)
    assert room.receive(bad, edit(A), now=0) == []
    assert room.leave(bad, now=0) == []
    assert plain(room.receive(good, edit(A), now=0)) == [("persist", A)]


# ---- messages of other kinds


def test_unknown_messages_are_counted_and_dropped() -> None:
    room = Room("doc", settings=Settings(custom_types=frozenset({102})))
    member = enter(room)
    assert room.receive(member, Custom(99, b"x").encode(), now=0) == []
    assert room.receive(member, PermissionDenied("no").encode(), now=0) == []
    assert room.counters.unknown_messages == 1
    frame = edit(A) + Custom(102, b"\x01\x05").encode()
    assert room.receive(member, frame, now=0) == [
        Persist(A, member),
        CustomMessage(member, 102, b"\x01\x05"),
    ]


def test_the_protocols_own_types_cant_be_registered() -> None:
    with pytest.raises(LocalProtocolError, match=r"\[1, 3\]"):
        Settings(custom_types=frozenset({1, 3, 99}))


# ---- loading


def test_nobody_is_answered_before_the_room_is_loaded() -> None:
    room = Room("doc", loading=True)
    one, effects = room.join(now=0)
    assert effects == []
    assert room.receive(one, step1(), now=0) == []
    assert room.receive(one, edit(C), now=0) == []
    two, effects = room.join(now=0)
    assert effects == []
    room.load(A)
    room.load(B)
    assert plain(room.opened(now=1)) == [
        ("send", ("step1", {1: 2}), [one]),
        ("send", ("step1", {1: 2}), [two]),
        ("send", ("step2", update({(1, 0): [item(text("ab"))]})), [one]),
        ("persist", C),
    ]
    assert room.state is State.OPEN


def test_who_leaves_while_loading_left_nothing() -> None:
    room = Room("doc", loading=True)
    one, _ = room.join(now=0)
    room.receive(one, edit(A), now=0)
    assert room.leave(one, now=0) == []
    assert room.opened(now=0) == []
    assert room.store.encode() == EMPTY


def test_too_much_while_loading() -> None:
    room = Room("doc", loading=True, settings=Settings(max_waiting_bytes=100))
    one, _ = room.join(now=0)
    assert room.receive(one, b"x" * 60, now=0) == []
    assert plain(room.receive(one, b"x" * 60, now=0)) == [("close", one, 1013)]
    assert room.members == ()


def test_bad_bytes_are_found_while_the_room_loads() -> None:
    room = Room("doc", loading=True)
    bad, good = room.join(now=0)[0], room.join(now=0)[0]
    assert plain(room.receive(bad, b"", now=0)) == [("close", bad, 4400)]
    assert room.receive(bad, edit(A), now=0) == []
    room.opened(now=0)
    assert room.members == (good,)
    assert room.store.encode() == EMPTY


def test_nobody_is_stalled_before_anything_was_sent() -> None:
    room = Room("doc", loading=True)
    member, _ = room.join(now=0)
    room.stall(member, now=0)
    assert plain(room.opened(now=0)) == [("send", ("step1", {}), [member])]
    assert room.resume(member) == []


def test_loading_is_for_loading_rooms(room: Room) -> None:
    with pytest.raises(LocalProtocolError, match="is open, not loading"):
        room.load(A)
    with pytest.raises(LocalProtocolError, match="is open, not loading"):
        room.opened(now=0)
    with pytest.raises(RemoteProtocolError):
        Room("doc", loading=True).load(b"\x01")


# ---- closing


def test_a_closed_room_is_closed_for_good(room: Room) -> None:
    one, two = enter(room), enter(room)
    room.receive(one, show((7, 1, "{}")), now=0)
    assert plain(room.close(CloseCode.GOING_AWAY, "bye", now=0)) == [
        ("close", one, 1001),
        ("close", two, 1001),
    ]
    assert room.receive(one, edit(A), now=0) == room.leave(one, now=0) == []
    assert room.next_timeout() is None
    assert room.handle_timeout(now=1e9) == []
    assert room.close(CloseCode.NORMAL, "", now=0) == []
    with pytest.raises(LocalProtocolError, match="is closed"):
        room.join(now=0)


def test_a_member_of_another_room_is_a_mistake(room: Room) -> None:
    stranger, _ = Room("other").join(now=0)
    with pytest.raises(LocalProtocolError, match="'other', not 'doc'"):
        room.receive(stranger, b"", now=0)
    with pytest.raises(LocalProtocolError):
        room.leave(stranger, now=0)


# ---- time


def test_members_hear_something_now_and_then(room: Room) -> None:
    """Else y-websocket clients drop the connection."""
    assert room.next_timeout() is None
    one = room.join(now=5)[0]
    two = enter(room, now=6)
    assert room.next_timeout() == 20
    assert room.handle_timeout(now=19.9) == []
    assert plain(room.handle_timeout(now=20)) == [("send", ("awareness",), [one, two])]
    assert room.next_timeout() == 35
    room.leave(one, now=21)
    room.leave(two, now=21)
    assert room.next_timeout() is None


def test_they_hear_something_while_it_loads_too() -> None:
    room = Room("doc", loading=True)
    one, _ = room.join(now=0)
    assert plain(room.handle_timeout(now=15)) == [("send", ("awareness",), [one])]


def test_awareness_expires_for_everyone() -> None:
    room = Room("doc", settings=Settings(keepalive=1000))
    one, two = enter(room), enter(room)
    appear(room, one, 7)
    assert room.next_timeout() == 30
    assert plain(room.handle_timeout(now=30)) == [("send", ("awareness", (7, 2, None)), [one, two])]
    assert plain(room.receive(one, show((7, 3, "{}")), now=31)) == [
        ("send", ("awareness", (7, 3, "{}")), [two])
    ]


def test_when_the_room_became_idle(room: Room) -> None:
    assert room.idle_since is None
    one, two = enter(room), enter(room)
    room.leave(one, now=5)
    assert room.idle_since is None
    room.leave(two, now=7)
    assert room.idle_since == 7
    enter(room, now=8)
    assert room.idle_since is None
    assert room.joins == 3


# ---- slow members


@pytest.fixture
def slow(room: Room) -> dict[str, Any]:
    """A slow member, stalled when it had "a" and had seen 7 and 8."""
    writer, slow = enter(room), enter(room)
    room.receive(writer, edit(A), now=0)
    appear(room, writer, 7)
    third = enter(room)
    appear(room, third, 8)
    room.stall(slow, now=10)
    return {"writer": writer, "slow": slow, "third": third}


def test_a_stalled_member_is_sent_nothing_until_it_is_brought_level(
    room: Room, slow: dict[str, Any]
) -> None:
    assert plain(room.receive(slow["writer"], edit(B), now=10))[1] == (
        "send",
        ("update", B),
        [slow["third"]],
    )
    room.receive(slow["writer"], edit(C) + show((7, 3, '"x"')), now=10)
    room.leave(slow["third"], now=10)
    (keepalive,) = room.handle_timeout(now=15)
    assert isinstance(keepalive, Send)
    assert receivers(keepalive) == [slow["writer"]]
    room.stall(slow["slow"], now=12)  # is so already
    assert plain(room.resume(slow["slow"])) == [
        (
            "send",
            ("update", update({(1, 1): [item(text("bc"), origin=(1, 0))]})),
            [slow["slow"]],
        ),
        ("send", ("awareness", (7, 3, '"x"')), [slow["slow"]]),
        ("send", ("awareness", (8, 2, None)), [slow["slow"]]),
    ]
    assert room.resume(slow["slow"]) == []
    d = typed(1, "d", start=3)[0]
    assert plain(room.receive(slow["writer"], edit(d), now=16))[1] == (
        "send",
        ("update", d),
        [slow["slow"]],
    )


def test_a_stalled_member_may_go_on_writing_but_gets_no_answers(
    room: Room, slow: dict[str, Any]
) -> None:
    member = slow["slow"]
    assert plain(room.receive(member, edit(B), now=10))[0] == ("persist", B)
    assert room.receive(member, step1({1: 2}), now=10) == []
    assert room.receive(member, QueryAwareness().encode(), now=10) == []
    assert plain(room.resume(member))[0] == ("send", ("step2", EMPTY), [member])


def test_a_read_only_member_that_is_stalled_is_denied_when_it_is_brought_level(room: Room) -> None:
    member = enter(room, read_only=True)
    room.stall(member, now=0)
    assert room.receive(member, edit(A) + edit(B) + show((7, 1, "{}")), now=0) == []
    assert plain(room.resume(member))[0] == ("send", ("denied",), [member])
    room.stall(member, now=0)
    assert ("send", ("denied",), [member]) not in plain(room.resume(member))


def test_one_stalled_before_it_synced(room: Room) -> None:
    writer, member = enter(room), room.join(now=0)[0]
    room.stall(member, now=0)
    room.receive(writer, edit(A), now=0)
    assert room.resume(member) == []
    room.stall(member, now=0)
    room.receive(member, step1(), now=0)
    assert plain(room.resume(member)) == [("send", ("step2", A), [member])]


def test_stalled_for_too_long(room: Room, slow: dict[str, Any]) -> None:
    assert room.settings.stall_timeout == 60
    room.handle_timeout(now=69.9)
    effects = room.handle_timeout(now=70)
    closed = [effect for effect in effects if isinstance(effect, Close)]
    assert [(close.member, close.code) for close in closed] == [(slow["slow"], 1013)]
    assert slow["slow"] not in room.members
    assert room.resume(slow["slow"]) == []
    room.stall(slow["slow"], now=71)
    assert slow["slow"] not in room.members


def test_stalled_deadline_is_a_timeout() -> None:
    room = Room("doc", settings=Settings(keepalive=1000))
    member = enter(room)
    room.stall(member, now=5)
    assert room.next_timeout() == 65


def many_authors(clock: int = 0) -> bytes:
    return update({(client, clock): [gc(1)] for client in range(1000, 21_000)})


def steps_of(room: Room, member: Any) -> tuple[list[Effect], int]:
    """All effects of bringing a member level, and in how many steps."""
    effects: list[Effect] = []
    steps = room.resume_steps(member)
    for count in range(1, 10_000):
        try:
            effects += next(steps) or []
        except StopIteration as stop:
            return effects + stop.value, count
    raise AssertionError


def test_who_missed_nothing_is_sent_nothing_of_the_document(room: Room) -> None:
    writer, member = enter(room), enter(room)
    room.receive(writer, edit(A), now=0)
    room.stall(member, now=0)
    room.receive(writer, edit(A), now=0)
    assert room.resume(member) == []


def test_those_who_stalled_at_the_same_state_are_brought_level_by_the_same_bytes(
    room: Room,
) -> None:
    """In steps, and in proportion to what came meanwhile: not to the document."""
    writer, *others = (enter(room) for _ in range(7))
    room.receive(writer, edit(many_authors()), now=0)
    for member in others[:3]:
        room.stall(member, now=0)
    room.receive(writer, edit(A), now=0)
    for member in others[3:]:
        room.stall(member, now=0)
    room.receive(writer, edit(many_authors(1)), now=0)
    levels = [steps_of(room, member) for member in others]
    assert all(len(effects) == 1 for effects, _ in levels)
    frames = [effects[0].frame for effects, _ in levels if isinstance(effects[0], Send)]
    assert frames[0] is frames[1] is frames[2]
    assert frames[3] is frames[4] is frames[5]
    assert plain(levels[0][0])[0][1][1] == merge_updates([many_authors(1), A])
    assert plain(levels[3][0])[0][1][1] == merge_updates([many_authors(1)])
    assert levels[0][1] > 20_000 // 1024
    # Who stalls again missed nothing yet; and a little is told in a few steps.
    room.stall(others[0], now=1)
    room.receive(writer, edit(B), now=1)
    effects, count = steps_of(room, others[0])
    assert plain(effects) == [("send", ("update", B), [others[0]])]
    assert count == 1


def test_deletes_that_were_missed_are_told(room: Room) -> None:
    writer, member = enter(room), enter(room)
    room.receive(writer, edit(A), now=0)
    room.receive(writer, edit(update({}, {1: [(0, 1)]})), now=0)
    room.stall(member, now=0)
    # Of this, B and the second delete are new.
    news = update({(1, 0): [item(text("ab"))]}, {1: [(0, 2)]})
    room.receive(writer, edit(news), now=0)
    room.receive(writer, edit(update({}, {2: [(5, 1)], 1: [(9, 1)]})), now=0)
    told = update({(1, 1): [item(text("b"), origin=(1, 0))]}, {2: [(5, 1)], 1: [(1, 1), (9, 1)]})
    assert plain(room.resume(member)) == [("send", ("update", told), [member])]


def fill(room: Room, writer: Any) -> None:
    """Three megabytes, by two authors, and deletes."""
    for client in (5, 6):
        for start in range(0, 1500, 500):
            items = [item(binary(bytes(1000)))] * 500
            room.receive(writer, edit(update({(client, start): items})), now=0)
    gone = {9: [(2 * i, 1) for i in range(200_000)], 8: [(0, 1)]}
    room.receive(writer, edit(update({}, gone)), now=0)


def test_a_long_answer_is_given_in_parts(room: Room) -> None:
    writer, reader = enter(room), enter(room)
    fill(room, writer)
    frame = Frame(step1({6: 5, 77: 1}))
    parts: list[Any] = []
    while not frame.done:
        effects = plain(room.receive(reader, frame, now=0))
        assert frame.has_more == bool(effects and not frame.done)
        parts += effects
    kinds = [said for _, (said, _), to in parts if to == [reader]]
    assert kinds == ["update"] * (len(kinds) - 1) + ["step2"]
    assert len(kinds) == 5
    assert max(len(part) for _, (_, part), _ in parts) < 2**20 + 2000
    whole = merge_updates([part for _, (_, part), _ in parts])
    assert whole == merge_updates([room.store.diff({6: 5})])


def test_one_that_is_stalled_for_long_is_brought_level_in_parts(room: Room) -> None:
    writer, member, other = (enter(room) for _ in range(3))
    room.receive(writer, edit(A), now=0)
    room.stall(member, now=0)
    room.stall(other, now=0)
    fill(room, writer)
    effects: list[Any] = []
    steps = room.resume_steps(member)
    with pytest.raises(StopIteration) as stop:
        while True:
            some = next(steps)
            if some is not None:
                assert len(some) == 1
                effects += plain(some)
    effects += plain(stop.value.value)
    assert len(effects) == 5
    assert merge_updates([A, *[part for _, (_, part), _ in effects]]) == room.store.encode()
    # Who leaves meanwhile is told nothing more.
    appear(room, writer, 7)
    steps = room.resume_steps(other)
    while next(steps) is None:
        pass
    room.leave(other, now=0)
    with pytest.raises(StopIteration) as stop:
        while True:
            next(steps)
    assert all(isinstance(effect, Send) and effect.frame[1] == 2 for effect in stop.value.value)


def test_a_question_of_one_that_stalls_and_resumes_meanwhile_is_answered(room: Room) -> None:
    writer, member = enter(room), enter(room)
    room.receive(writer, edit(A), now=0)
    known = step1(dict.fromkeys(range(5000, 10_000), 1))
    room.stall(member, now=0)
    frame = Frame(known)
    for _ in range(6):  # it is read, and being noted
        assert room.receive(member, frame, now=0) == []
    assert not frame.done
    assert room.resume(member) == []
    assert taken_in(room, member, frame)[0] == [("send", ("step2", A), [member])]


def test_authors_that_come_while_an_answer_is_made_are_told_by_themselves(room: Room) -> None:
    writer, member = enter(room), enter(room)
    room.receive(writer, edit(many_authors()), now=0)
    frame = Frame(step1({1000: 1}))
    assert room.receive(member, frame, now=0) == []
    assert ("send", ("update", A), [member]) in plain(room.receive(writer, edit(A), now=0))
    ((_, (kind, answer), _),) = taken_in(room, member, frame)[0]
    assert kind == "step2"
    assert merge_updates([answer, A, update({(1000, 0): [gc(1)]})]) == room.store.encode()


def test_a_room_of_many_authors_need_not_say_all_it_has(room: Room) -> None:
    """To find that out takes long: and who is asked for too much sends what is known already."""
    writer = enter(room)
    room.receive(writer, edit(many_authors()), now=0)
    greeting = room.join(now=0)[1][0]
    room.receive(writer, edit(A), now=0)
    assert room.join(now=0)[1][0].frame is not greeting
    assert room.join(now=0)[1][0].frame == greeting.frame
    long = update({(3, 0): [item(text("x" * 200_000))]})
    room.receive(writer, edit(long), now=0)
    assert plain(room.join(now=0)[1])[0][1][1] == room.store.state_vector()


# ---- floods


def test_asking_often_in_one_frame_is_answered_once(room: Room) -> None:
    """Each question takes four bytes, each answer the whole document."""
    writer, reader = enter(room), enter(room)
    room.receive(writer, edit(A) + edit(B) + edit(C), now=0)
    frame = step1({1: 3}) * 100 + step1({1: 1, 2: 5}) + step1({1: 2})
    assert plain(room.receive(reader, frame, now=1)) == [
        ("send", ("step2", update({(1, 1): [item(text("bc"), origin=(1, 0))]})), [reader])
    ]


def test_a_question_costs_what_its_answer_does(room: Room) -> None:
    """y-websocket's resyncInterval may be a tenth of a second: it asks for nothing, mostly."""
    often, query, other = enter(room), enter(room), enter(room)
    room.receive(other, edit(A), now=0)
    for tenth in range(1000):
        now = tenth / 10
        assert len(room.receive(often, step1({1: 3}), now=now)) == 1
        assert room.receive(query, QueryAwareness().encode(), now=now) == []
    assert room.members == (often, query, other)


def test_who_asks_for_too_much_is_closed() -> None:
    room = Room("doc", settings=Settings(answer_bytes=2**20))
    writer, asker = enter(room), enter(room)
    long = update({(1, 0): [item(text("x" * 2**20))]})
    room.receive(writer, edit(long), now=0)
    for now in (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        assert len(room.receive(asker, step1(), now=now)) == 1
    new = update({(2, 0): [gc(1)]})
    assert plain(room.receive(asker, step1() + edit(new), now=1)) == [
        ("persist", new),
        ("send", ("update", new), [writer]),
        ("close", asker, 1008),
    ]
    # With many authors it takes long to find out what somebody lacks, however little.
    assert len(room.receive(writer, step1({1: 2**20}), now=1)) == 1
    room.receive(writer, edit(update({(client, 0): [gc(1)] for client in range(5, 9000)})), now=2)
    sv = dict.fromkeys(range(5, 9000), 1) | {1: 2**20, 2: 1}
    asked = 0
    while writer in room.members:
        room.receive(writer, step1(sv), now=2)
        asked += 1
    assert 15 <= asked <= 22
    # Who is here is an answer, too.
    often = enter(room)
    room.receive(often, show((5, 1, "[" + "1," * 30_000 + "1]")), now=3)
    asked = 0
    while often in room.members:
        room.receive(often, QueryAwareness().encode(), now=3)
        asked += 1
    assert 15 <= asked <= 22


def test_a_long_answer_is_given_step_by_step(room: Room) -> None:
    writer, reader, slow = enter(room), enter(room), enter(room)
    many = update(
        {(client, 0): [gc(2)] for client in range(1000, 21_000)},
        {client: [(0, 1)] for client in range(1, 3001)},
    )
    room.receive(writer, edit(many), now=0)
    question = Frame(step1())
    assert room.receive(reader, question, now=1) == []
    other = Frame(step1())
    assert room.receive(slow, other, now=1) == []
    # What comes meanwhile reaches it, though its answer may hold it or not.
    assert ("send", ("update", A), [reader, slow]) in plain(room.receive(writer, edit(A), now=1))
    effects, steps = taken_in(room, reader, question)
    assert steps > 5
    (_, (_, answer), to), (_, end, _) = effects
    assert to == [reader]
    assert end == ("step2", EMPTY)
    assert merge_updates([answer, A]) == room.store.encode()
    # Who stalls before its answer is ready gets it all the same, and what came after that later.
    room.stall(slow, now=1)
    room.receive(writer, edit(B), now=1)
    (answered,) = taken_in(room, slow, other)[0][:1]
    assert merge_updates([answered[1][1], A, B]) == room.store.encode()
    assert plain(room.resume(slow)) == [("send", ("update", B), [slow])]


# ---- long frames, and limits


def taken_in(room: Room, member: Any, frame: Frame) -> tuple[list[Any], int]:
    """All effects of a frame, and in how many steps they came."""
    effects: list[Any] = []
    steps = 0
    while not frame.done:
        effects += plain(room.receive(member, frame, now=0))
        steps += 1
    return effects, steps


def test_a_short_frame_takes_one_step(room: Room) -> None:
    member = enter(room)
    assert taken_in(room, member, Frame(edit(A))) == ([("persist", A)], 1)


def test_a_long_frame_is_read_step_by_step_and_others_come_between(room: Room) -> None:
    author, other = enter(room), enter(room)
    structs = [item(text("x"), parent="t") for _ in range(10_000)]
    long = Frame(edit(update({(9, 0): structs})))
    assert len(long) > 50_000
    assert room.receive(author, long, now=0) == []
    assert not long.done
    assert plain(room.receive(other, edit(A), now=0)) == [
        ("persist", A),
        ("send", ("update", A), [author]),
    ]
    effects, steps = taken_in(room, author, long)
    assert [kind for kind, *_ in effects] == ["persist", "send"]
    assert steps > 5
    assert room.store.state_vector() == {9: 10_000, 1: 1}


def test_what_names_many_clients_is_taken_in_by_parts(room: Room) -> None:
    author, other = enter(room), enter(room)
    whole = update(
        {(client, 0): [gc(2)] for client in range(1, 5001)},
        {client: [(0, 1)] for client in range(1, 3001)} | {9999: [(2 * i, 1) for i in range(3000)]},
    )
    effects, steps = taken_in(room, author, Frame(edit(whole)))
    stored = [effect[1] for effect in effects if effect[0] == "persist"]
    sent = [effect[1][1] for effect in effects if effect[0] == "send"]
    assert stored == sent
    assert 5 < len(stored) < 12
    assert steps >= len(stored)
    assert all(len(part) < len(whole) / 2 for part in stored)
    assert merge_updates(stored) == room.store.encode() == merge_updates([whole])
    assert taken_in(room, other, Frame(edit(whole)))[0] == []


VALUE = update({(1, 0): [item(anys(1), key="k")]})


def test_values_of_a_key_that_clients_merged_are_kept(room: Room) -> None:
    """`m.set("k", 1); m.set("k", 2); m.set("x", "a"); m.set("k", 3)`, by Y.mergeUpdates."""
    merged = bytes.fromhex(
        "010407002801016d016b017d01880700017d022801016d017801770161880701017d030107010002"
    )
    author, other = enter(room), enter(room)
    assert plain(room.receive(author, edit(merged), now=0)) == [
        ("persist", merged),
        ("send", ("update", merged), [other]),
    ]
    assert Doc.view(room.store).to_json() == {"m": {"k": 3, "x": "a"}}
    assert room.receive(author, edit(merged), now=0) == []


WRONG_CLOCKS = bytes.fromhex(
    "010400080400000b002800000b0161017fc600030004046c696e6b0474727565860004046c696e6b046e756c6c00"
)
"""As Yjs 14 writes it."""


def test_structs_with_wrong_clocks_are_left_out_and_asked_for_again(room: Room) -> None:
    author, other = enter(room), enter(room)
    asked = ("send", ("step1", {}), [author])
    assert plain(room.receive(author, edit(WRONG_CLOCKS), now=0)) == [asked]
    assert room.store.encode() == EMPTY
    # The answer has them right, or is as wrong.
    assert room.receive(author, edit(WRONG_CLOCKS), now=9) == []
    assert plain(room.receive(author, edit(WRONG_CLOCKS), now=10)) == [asked]
    room.stall(other, now=10)
    assert room.receive(other, edit(WRONG_CLOCKS), now=10) == []
    right = update({(0, 0): [item(text("hello, world"))]})
    assert room.receive(author, edit(right), now=11)[0] == Persist(right, author)
    assert Doc.view(room.store).to_json() == {"t": "hello, world"}
    assert room.counters.left_out == 4 * 4
    assert room.counters.bad_frames == 0


def test_of_a_heavy_update_the_rest_is_taken(room: Room) -> None:
    author = enter(room)
    sections = {(client, 0): [gc(1)] for client in range(1, 5000)}
    bad = item(text("a"), parent=(9000, 5))
    taken_in(room, author, Frame(edit(update(sections | {(9000, 0): [bad]}))))
    assert room.store.encode() == merge_updates([update(sections)])
    assert room.counters.left_out == 1


PENDING = bytes.fromhex("0101ac0200886401017d030164010101")
"""The third value of a key, from somebody who lacks the second."""


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_value_that_waited_at_a_client_is_kept(room: Room, order: Any) -> None:
    updates = [
        update({(100, 0): [item(anys(1), parent="m", key="k")]}),
        update({(100, 1): [item(anys(2), origin=(100, 0), key="k")]}, {100: [(0, 1)]}),
        PENDING,
    ]
    author = enter(room)
    for i in order:
        assert room.receive(author, edit(updates[i]), now=0) == [Persist(updates[i], author)]
    assert Doc.view(room.store).to_json() == {"m": {"k": 3}}


def test_of_a_value_that_is_cut_only_the_last_clock_stays(room: Room) -> None:
    """All are told so before they see it cut: Yjs throws on it, once its type is collected."""
    author, other = enter(room), enter(room)
    room.receive(other, edit(VALUE), now=0)
    long = update({(2, 0): [item(text("xyz"), origin=(1, 0))]})
    assert plain(room.receive(author, edit(long), now=0)) == [
        ("persist", long),
        ("send", ("update", long), [other]),
    ]
    inside = update({(3, 0): [item(anys(7), origin=(2, 0))]})
    rest = update({}, {2: [(0, 2)]})
    assert plain(room.receive(author, edit(inside), now=0)) == [
        ("persist", rest),
        ("send", ("update", rest), [author, other]),
        ("persist", inside),
        ("send", ("update", inside), [other]),
    ]
    assert Doc.view(room.store).to_json() == {"t": {"k": 7}}


def test_a_value_that_waits_is_looked_at_when_it_can_be(room: Room) -> None:
    author = enter(room)
    cut = update({(2, 0): [item(anys(1, 2), origin=(1, 0))]}, {2: [(1, 1)]})
    assert room.receive(author, edit(cut), now=0) == [Persist(cut, author)]
    rest = update({}, {2: [(0, 1)]})
    assert plain(room.receive(author, edit(VALUE), now=0)) == [
        ("persist", rest),
        ("send", ("update", rest), [author]),
        ("persist", VALUE),
    ]


def test_what_it_wakes_is_settled_before_it_is_shown(room: Room) -> None:
    """Members have it already: shown what they wait for, they would put all of it in its place."""
    author, other = enter(room), enter(room)
    values = [item(text("ab"), origin=(1, 0) if i == 0 else (2, 2 * i - 1)) for i in range(6000)]
    inside = item(anys(9), origin=(2, 11_998))
    room.receive(author, edit(update({(2, 0): [*values, inside]})), now=0)
    frame = Frame(edit(VALUE))
    assert room.receive(author, frame, now=0) == []
    gone = update({}, {1: [(0, 1)]})
    effects = plain(room.receive(other, edit(gone), now=0))
    effects += taken_in(room, author, frame)[0]
    kinds = [effect for effect in effects if effect[0] == "persist"]
    assert kinds[-2:] == [("persist", VALUE), ("persist", gone)]
    assert explode(kinds[0][1]).deletes == {(2, 11_998)}


LONG = [item(anys(1), key="k")]
LONG += [item(text("xy"), origin=(9, max(2 * i - 1, 0))) for i in range(9000)]
LONG_UPDATE = update({(9, 0): LONG})
LONG_RESTS = {(9, 1 + 2 * i) for i in range(8999)}


def begun(room: Room, member: Any) -> Frame:
    """A long update of which a part was settled."""
    frame = Frame(edit(LONG_UPDATE))
    while not room.has_unsent:
        assert room.receive(member, frame, now=0) == []
    return frame


def check_shown(effects: list[Any], to: list[Any]) -> None:
    """It is stored before it is shown, and the rests of its values before that."""
    ends = [i for i, effect in enumerate(effects) if effect == ("persist", LONG_UPDATE)]
    assert len(ends) == 1
    before = effects[: ends[0]]
    gone = [explode(update).deletes for what, update in before[::2]]
    assert set().union(*gone) == LONG_RESTS
    assert all(what == "persist" for what, _ in before[::2])
    assert all(what == "send" for what, _, _ in before[1::2])
    shown = [effect for effect in effects[ends[0] :] if effect[0] == "send"]
    assert shown[0] == ("send", ("update", LONG_UPDATE), to)


def test_a_long_update_is_settled_step_by_step_before_it_is_shown(room: Room) -> None:
    author, other = enter(room), enter(room)
    frame = begun(room, author)
    behind = Frame(edit(A))  # somebody types meanwhile
    assert room.receive(other, behind, now=0) == []
    effects = taken_in(room, author, frame)[0]
    check_shown(effects, [other])
    assert effects[-2:] == [("persist", A), ("send", ("update", A), [author])]
    assert taken_in(room, other, behind)[0] == []
    assert explode(room.store.encode()).deletes == LONG_RESTS
    assert not room.has_unsent


def test_who_asks_meanwhile_is_answered_behind_it(room: Room) -> None:
    author, other = enter(room), enter(room)
    frame = begun(room, author)
    effects, steps = taken_in(room, other, Frame(step1()))
    assert steps >= 2
    check_shown(effects, [other])
    assert effects[-1] == ("send", ("step2", EMPTY), [other])  # as it had been before
    assert taken_in(room, author, frame)[0] == []


def test_what_is_not_stored_yet_is_not_acknowledged_either() -> None:
    room = Room("doc", settings=Settings(acknowledge=True))
    author, other = enter(room), enter(room)
    room.receive(other, edit(A), now=0)
    frame, again = begun(room, author), Frame(edit(A))
    assert room.receive(other, again, now=0) == []
    effects, steps = taken_in(room, other, Frame(edit(LONG_UPDATE)))
    assert steps >= 2
    check_shown(effects, [author, other])
    assert effects[-2:] == [
        ("send", ("update", A), [other]),
        ("send", ("update", LONG_UPDATE), [other]),
    ]
    assert taken_in(room, other, again)[0] == taken_in(room, author, frame)[0] == []


def test_who_sent_it_may_leave_meanwhile() -> None:
    room = Room("doc", settings=Settings(acknowledge=True))
    author, other = enter(room), enter(room)
    known = Frame(edit(update({(9, 0): LONG[:5]})))
    frame = begun(room, author)
    assert room.receive(author, known, now=0) == []
    room.leave(author, now=0)
    assert taken_in(room, author, frame)[0] == []
    effects: list[Any] = []
    while room.has_unsent:
        effects += plain(room.handle_timeout(now=1))
    check_shown(effects, [other])


def test_who_is_stalled_meanwhile_gets_it_when_the_others_had_it(room: Room) -> None:
    author, slow, other = enter(room), enter(room), enter(room)
    room.receive(author, edit(A), now=0)
    frame = begun(room, author)
    room.stall(slow, now=0)
    assert (room.is_stalled(slow), room.is_stalled(other)) == (True, False)
    assert room.resume(slow) == []
    room.stall(slow, now=0)
    effects, _ = taken_in(room, author, frame)
    check_shown(effects, [other])
    ((_, (_, missed), to),) = plain(room.resume(slow))
    assert to == [slow]
    assert merge_updates([A, missed]) == room.store.encode()


def test_who_is_brought_level_with_a_part_of_it_waits_for_all_of_it(room: Room) -> None:
    author, slow = enter(room), enter(room)
    room.stall(slow, now=0)
    first = plain(room.receive(author, edit(update({(9, 0): LONG[:5]})), now=0))
    frame = begun(room, author)
    effects = plain(room.resume(slow))
    stored = [effect[1] for effect in first + effects[:-1] if effect[0] == "persist"]
    assert merge_updates(stored) == room.store.encode()
    assert effects[-1][2] == [slow]
    sent = [effect[1][1] for effect in effects if effect[0] == "send"]
    assert merge_updates(sent) == room.store.encode()
    assert taken_in(room, author, frame)[0] == []


def test_a_closed_room_forgets_what_was_not_stored(room: Room) -> None:
    author = enter(room)
    begun(room, author)
    room.close(CloseCode.TRY_AGAIN_LATER, "", now=0)
    assert not room.has_unsent


def test_a_text_is_taken_in_at_once_however_long(room: Room) -> None:
    """Without keys, and with all that it is attached to, there is nothing to settle."""
    author = enter(room)
    items = [item(text("x"), origin=(1, i - 1) if i else None) for i in range(5000)]
    frame = Frame(edit(update({(1, 0): items})))
    assert taken_in(room, author, frame)[0] == [("persist", edit(update({(1, 0): items}))[5:])]
    assert not room.has_unsent


def test_a_full_document_can_still_be_emptied() -> None:
    room = Room("doc", settings=Settings(max_document_bytes=100))
    author = enter(room)
    word = {(1, 0): [item(text("ab"))]}
    room.receive(author, edit(update(word)), now=0)
    for fine in (update({}, {1: [(0, 1)]}), update(word, {1: [(1, 1)]})):
        assert plain(room.receive(author, edit(fine), now=0))[0][0] == "persist"
    for bad in (update({}, {1: [(1, 9)]}), update({}, {3: [(0, 1)]})):
        other = enter(room)
        assert plain(room.receive(other, edit(bad), now=0))[0] == ("close", other, 4413)
    new = update({(1, 2): [gc(1)]})
    assert plain(room.receive(author, edit(new), now=0))[0] == ("close", author, 4413)


def test_a_bad_end_undoes_a_long_beginning(room: Room) -> None:
    bad, good = enter(room), enter(room)
    structs = [item(text("x"), parent="t") for _ in range(10_000)]
    frame = Frame(edit(update({(9, 0): structs})) + b"\x00\x09\x00")
    assert taken_in(room, bad, frame)[0] == [("close", bad, 4400)]
    assert room.store.encode() == EMPTY
    assert room.members == (good,)


def test_who_is_gone_has_nothing_more_taken_in(room: Room) -> None:
    member = enter(room)
    frame = Frame(edit(update({(client, 0): [gc(2)] for client in range(9000)})))
    while not room.store.size:
        room.receive(member, frame, now=0)
    room.leave(member, now=0)
    assert taken_in(room, member, frame) == ([], 1)
    assert 0 < len(room.store.state_vector()) < 9000


def test_a_frame_has_only_so_many_messages(room: Room) -> None:
    fine, bad = enter(room), enter(room)
    assert room.receive(fine, edit(A) * 1000, now=0)
    assert plain(room.receive(bad, edit(B) * 1001, now=0)) == [("close", bad, 4413)]


@pytest.mark.parametrize(
    ("limits", "good", "bad"),
    [
        (UpdateLimits(structs=2), {(1, 0): [gc(1), gc(1)]}, {(1, 0): [gc(1), gc(1), gc(1)]}),
        (UpdateLimits(structs=2), {(1, 0): [gc(1)]}, {(1, 0): [gc(1), gc(1)], (2, 0): [gc(1)]}),
        (UpdateLimits(sections=1), {(1, 0): [gc(1)]}, {(1, 0): [gc(1)], (2, 0): [gc(1)]}),
        (UpdateLimits(sections=1), {(1, 0): [gc(1)]}, {(1, 0): [gc(1), skip(1), gc(1), skip(1)]}),
        (UpdateLimits(sections=1), {(1, 0): [gc(1)]}, {(1, 0): [gc(1), skip(1), gc(1)]}),
    ],
)
def test_an_update_has_only_so_much(limits: UpdateLimits, good: Any, bad: Any) -> None:
    room = Room("doc", settings=Settings(update_limits=limits))
    member = enter(room)
    assert room.receive(member, edit(update(good)), now=0)
    assert plain(room.receive(member, edit(update(bad)), now=0)) == [("close", member, 4413)]


def test_a_state_vector_names_only_so_many_clients() -> None:
    room = Room("doc", settings=Settings(update_limits=UpdateLimits(state_vector=2)))
    member, _ = room.join(now=0)
    assert room.receive(member, step1({1: 1, 2: 2}), now=0)
    bad = step1({1: 1, 2: 2, 3: 3})
    assert plain(room.receive(member, bad, now=0)) == [("close", member, 4413)]


def test_an_update_has_only_so_many_delete_ranges() -> None:
    room = Room("doc", settings=Settings(update_limits=UpdateLimits(delete_ranges=2)))
    member = enter(room)
    assert room.receive(member, edit(update({}, {1: [(0, 1), (5, 1)]})), now=0)
    bad = edit(update({}, {1: [(0, 1)], 2: [(0, 1), (5, 1)]}))
    assert plain(room.receive(member, bad, now=0)) == [("close", member, 4413)]


def test_an_update_names_only_so_many_clients_in_its_deletes() -> None:
    room = Room("doc", settings=Settings(update_limits=UpdateLimits(sections=1)))
    member = enter(room)
    bad = edit(update({}, {1: [(0, 1)], 2: [(0, 1)]}))
    assert plain(room.receive(member, bad, now=0)) == [("close", member, 4413)]


def test_a_full_document_takes_what_it_knows_and_nothing_else() -> None:
    room = Room("doc", settings=Settings(max_document_bytes=2000))
    author, other = enter(room), enter(room)
    big = update({(1, 0): [item(text("x" * 3000), parent="t")]})
    assert plain(room.receive(author, edit(big), now=0))[0] == ("persist", big)
    assert room.receive(author, edit(big), now=0) == []
    new = edit(update({(2, 0): [gc(1)]}))
    assert plain(room.receive(author, new, now=0)) == [("close", author, 4413)]
    assert room.counters.refused_updates == 1
    assert room.members == (other,)
    assert room.store.encode() == big


def test_a_room_has_only_so_many_members() -> None:
    room = Room("doc", settings=Settings(max_members=2))
    first, _ = enter(room), enter(room)
    late, effects = room.join(now=0)
    assert plain(effects) == [("close", late, 1013)]
    assert late not in room.members
    assert room.receive(late, edit(A), now=0) == []
    room.leave(first, now=0)
    assert enter(room) in room.members


def test_a_member_shows_only_so_much() -> None:
    limits = Settings(max_awareness_bytes=50, max_awareness_entries=5, max_members=2)
    room = Room("doc", settings=limits)
    one, two = enter(room), enter(room)
    state = '"' + "x" * 18 + '"'
    room.receive(one, show((1, 1, state), (2, 1, state), (3, 1, state)), now=0)
    assert list(room.awareness.states) == [1, 2]
    assert room.counters.refused_awareness == 1
    room.receive(one, show((2, 2, '"short"')), now=0)
    room.receive(one, show((3, 2, state)), now=0)
    assert list(room.awareness.states) == [1, 2, 3]
    many = show(*[(client, 1, "{}") for client in range(6)])
    assert ("close", one, 4413) in plain(room.receive(one, many, now=0))
    long = show((9, 1, '"' + "x" * 50 + '"'))
    assert plain(room.receive(two, long, now=0)) == [("close", two, 4413)]


def test_a_clock_too_high_to_count_on_from_is_ignored(room: Room) -> None:
    """But not refused: who is told of one that was just low enough may pass it on."""
    odd, good = enter(room), enter(room)
    room.receive(odd, show((7, 2**52 + 1, "{}")), now=0)
    assert room.awareness.entries() == []
    assert room.counters.refused_awareness == 1
    (told, *_) = room.receive(odd, show((7, 2**52, "{}")), now=0)
    assert isinstance(told, Send)
    assert room.awareness.entries() == [(7, 2**52 + 1, "{}")]
    room.receive(good, show((8, 1, "{}")) + told.frame, now=0)
    room.receive(odd, show((7, 2**52 + 1, '"new"')), now=0)
    assert room.members == (odd, good)
    assert room.awareness.states == {7: "{}", 8: "{}"}
    assert len(room.leave(odd, now=0)) == 1


def test_nobody_can_be_crowded_out() -> None:
    room = Room("doc", settings=Settings(max_members=3, max_awareness_entries=5))
    crowd, good = enter(room), enter(room)
    room.receive(crowd, show(*[(client, 1, "{}") for client in range(5)]), now=0)
    assert list(room.awareness.states) == [0, 1]
    room.receive(good, show((99, 1, "{}"), (98, 1, "{}")), now=0)
    assert list(room.awareness.states) == [0, 1, 99]
    (_, greeting) = room.join(now=0)[1]
    assert isinstance(greeting, Send)
    assert room.receive(good, greeting.frame, now=0) == []
    assert good in room.members


def test_a_member_has_only_so_many_ids() -> None:
    room = Room("doc", settings=Settings(max_awareness_clients=3))
    one, two = enter(room), enter(room)
    room.receive(one, show(*[(client, 1, "{}") for client in range(10)]), now=0)
    assert list(room.awareness.states) == [0, 1, 2]
    assert room.counters.refused_awareness == 7
    # One message has one member probed, once.
    forged = show(*[(client, 1, "{}") for client in range(1000)])
    effects = room.receive(two, forged, now=0)
    assert sum(isinstance(effect, Probe) for effect in effects) == 1


# ---- what the application does


def test_a_member_is_sent_away() -> None:
    room = Room("r")
    a, b = enter(room), enter(room)
    effects = room.dismiss(a, 4403, "no longer", now=1)
    assert effects == [Close(a, 4403, "no longer")]
    assert room.members == (b,)
    assert room.dismiss(a, 4403, "no longer", now=1) == []


def test_messages_of_its_own() -> None:
    room = Room("r", settings=Settings(custom_types=frozenset({100})))
    a, b = enter(room), enter(room)
    assert room.send_custom(100, b"hi") == [Send(b"\x64hi", (a, b))]
    assert room.send_custom(100, b"hi", to=b) == [Send(b"\x64hi", (b,))]
    room.leave(b, now=1)
    assert room.send_custom(100, b"hi", to=b) == []
    with pytest.raises(LocalProtocolError, match="custom_types"):
        room.send_custom(101, b"hi")


def test_it_is_told_who_is_here_if_it_wants_to_be() -> None:
    room = Room("r", settings=Settings(tell_awareness=True))
    a, b = enter(room), enter(room)
    effects = room.receive(a, show((7, 1, '{"user":"a"}')), now=1)
    assert AwarenessChanged(room, (AwarenessEntry(7, 2, '{"user":"a"}'),)) in effects
    assert room.leave(a, now=2)[-1] == AwarenessChanged(room, (AwarenessEntry(7, 2, None),))
    assert b.synced


# ---- many who join at once


def herd_of(room: Room, count: int, now: float) -> list[list[Any]]:
    """Members who come and ask for everything, and what each is answered."""
    members = [room.join(now=now)[0] for _ in range(count)]
    return [room.receive(member, step1(), now=now) for member in members]


def long_document(room: Room) -> Member:
    writer = enter(room)
    structs = [item(text("x" * 100), parent="t") for _ in range(50)]
    room.receive(writer, edit(update({(9, 0): structs})), now=0)
    return writer


def heard(frames: list[Send]) -> StructStore:
    store = StructStore()
    for effect in frames:
        _, (_, data), _ = plain([effect])[0]
        store.add(data)
    return store


def test_all_who_ask_for_the_whole_document_get_the_same_object(room: Room) -> None:
    writer = long_document(room)
    first, *others = herd_of(room, 3, now=1)
    assert heard(first).encode() == room.store.encode()
    assert all(its[0].frame is first[0].frame for its in others)
    # Others go on typing: what came since is sent again, rather than everything anew.
    typed_ = [update({(7, i): [item(text("x"), parent="t")]}) for i in range(3)]
    sent = [room.receive(writer, edit(data), now=1)[1].frame for data in typed_]
    fourth, fifth = herd_of(room, 2, now=2)
    assert [kind for _, (kind, _), _ in plain(fourth)] == ["update"] * 4 + ["step2"]
    assert [effect.frame for effect in fourth[1:4]] == sent
    assert plain(fourth)[-1][1] == ("step2", EMPTY)
    assert heard(fourth).encode() == room.store.encode()
    assert all(a.frame is b.frame for a, b in zip(fourth, fifth, strict=True))
    # Who has some of it gets the rest, and nothing else.
    reader = room.join(now=2)[0]
    assert plain(room.receive(reader, step1({9: 5000, 7: 2}), now=2)) == [
        ("send", ("step2", typed_[2]), [reader])
    ]


def test_a_snapshot_is_made_anew_when_much_came_since(room: Room) -> None:
    writer = long_document(room)
    herd_of(room, 1, now=1)
    room.receive(writer, edit(update({(7, 0): [item(text("y" * 500), parent="t")]})), now=1)
    (whole,) = herd_of(room, 1, now=1)
    assert plain(whole)[0][1] == ("step2", room.store.encode())
    for i in range(65):
        room.receive(writer, edit(update({}, {7: [(i, 1)]})), now=1)
    (whole,) = herd_of(room, 1, now=1)
    assert [message for _, message, _ in plain(whole)] == [("step2", room.store.encode())]


def test_a_snapshot_is_dropped_when_nobody_asks_any_more(room: Room) -> None:
    long_document(room)
    ((first,),) = herd_of(room, 1, now=1)
    room.handle_timeout(now=4)
    ((again,),) = herd_of(room, 1, now=5)
    assert again.frame is first.frame
    room.handle_timeout(now=9.9)
    ((again,),) = herd_of(room, 1, now=9.9)
    assert again.frame is first.frame
    room.handle_timeout(now=15)
    ((again,),) = herd_of(room, 1, now=15)
    assert again.frame == first.frame
    assert again.frame is not first.frame
    for member in room.members:
        room.leave(member, now=16)
    ((anew,),) = herd_of(room, 1, now=16)
    assert anew.frame == again.frame
    assert anew.frame is not again.frame


def test_who_waits_for_a_snapshot_makes_it_though_others_leave(room: Room) -> None:
    writer = enter(room)
    many = update({(client, 0): [gc(2)] for client in range(1000, 21_000)})
    room.receive(writer, edit(many), now=0)
    members = [room.join(now=1)[0] for _ in range(3)]
    questions = [Frame(step1()) for _ in members]
    for member, question in zip(members[:2], questions, strict=False):
        assert room.receive(member, question, now=1) == []
    news = room.receive(writer, edit(A), now=1)[1]
    assert news.to == (writer, *members[:2])
    assert room.receive(members[2], questions[2], now=1) == []
    room.leave(members[0], now=1)
    answers: dict[int, list[Any]] = {1: [], 2: []}
    steps = 0
    while not (questions[1].done and questions[2].done):
        for i in answers:
            answers[i] += room.receive(members[i], questions[i], now=1)
            steps += 1
    assert 5 < steps < 20
    assert answers[1][0].frame is answers[2][0].frame
    assert [answers[1][1]] == [Send(SyncStep2(EMPTY).encode(), (members[1],))]
    assert answers[2][1].frame is news.frame
    assert heard([*answers[1], news]).encode() == room.store.encode()
    assert heard(answers[2]).encode() == room.store.encode()


def test_all_who_come_are_told_of_everyone_by_the_same_object(room: Room) -> None:
    one, two = enter(room), enter(room)
    appear(room, one, 7)
    appear(room, two, 8, '{"a":1}')
    (_, first), (_, second) = (room.join(now=1)[1] for _ in range(2))
    assert first.frame is second.frame
    assert plain([first])[0][1] == ("awareness", (7, 2, "{}"), (8, 2, '{"a":1}'))
    assert room.receive(one, QueryAwareness().encode(), now=1)[0].frame is first.frame
    room.receive(two, show((8, 3, "2")), now=1)
    (_, third) = room.join(now=1)[1]
    assert plain([third])[0][1] == ("awareness", (7, 2, "{}"), (8, 3, "2"))
    room.leave(one, now=1)
    (_, fourth) = room.join(now=1)[1]
    assert plain([fourth])[0][1] == ("awareness", (8, 3, "2"))


def test_who_comes_back_and_is_slow_is_told_of_the_others_later(room: Room) -> None:
    other, gone = enter(room), enter(room)
    appear(room, other, 8)
    appear(room, gone, 7)
    room.leave(gone, now=1)
    back = room.join(now=2)[0]
    room.stall(back, now=2)
    told = plain(room.receive(back, show((7, 2, "1")), now=2))
    assert ("send", ("awareness", (7, 3, "1")), [other]) in told
    assert all(to == [other] for _, _, to in told)
    assert plain(room.resume(back))[-1][1] == ("awareness", (8, 3, "{}"), (7, 3, "1"))
