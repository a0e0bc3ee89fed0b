"""The client's side: what it says to a server, and to its application, and when."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from build import item, text, typed, update
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from script import edit, receivers, show, step1
from storedoc import StoreDoc

from ycore import (
    Close,
    CloseCode,
    LocalProtocolError,
    Member,
    Provider,
    ProviderSettings,
    Room,
    Send,
    Settings,
)
from ycore import Effect as RoomEffect
from ycore.awareness import OUTDATED_AFTER, RENEW_AFTER, decode_awareness
from ycore.messages import (
    AwarenessUpdate,
    Custom,
    PermissionDenied,
    QueryAwareness,
    SyncStep1,
    SyncStep2,
    Update,
    decode,
)
from ycore.provider import (
    CloseConnection,
    Denied,
    Effect,
    Flushed,
    GaveUp,
    Lost,
    OpenConnection,
    PresenceChanged,
    SendFrame,
    SendPing,
    Status,
    StatusChanged,
    is_final,
)
from ycore.updates import decode_state_vector

EMPTY = b"\x00\x00"
A, B, C = typed(1, "abc")
OURS = update({(5, 0): [item(text("x"))]})
"""What client 5 types first."""


def step2(data: bytes = EMPTY) -> bytes:
    return SyncStep2(data).encode()


def plain(effects: list[Effect]) -> list[Any]:
    """Effects as tuples to compare with, frames decoded."""
    return [_plain(effect) for effect in effects]


def _plain(effect: Effect) -> Any:
    if isinstance(effect, StatusChanged):
        return effect.status
    if isinstance(effect, CloseConnection):
        return ("close", int(effect.code))
    if not isinstance(effect, SendFrame):
        return effect
    (message,) = decode(effect.frame)
    if isinstance(message, SyncStep1):
        return ("step1", decode_state_vector(message.state_vector))
    if isinstance(message, SyncStep2):
        return ("step2", message.update)
    if isinstance(message, Update):
        return ("update", message.update)
    assert isinstance(message, AwarenessUpdate)
    return ("awareness", *map(tuple, decode_awareness(message.payload)))


def make(**options: Any) -> Provider:
    """A provider of client 5, who waits as long as may be before it comes back."""
    return Provider(StoreDoc(5), random=lambda: 1.0, settings=ProviderSettings(**options))


def typing(provider: Provider) -> list[Effect]:
    assert isinstance(provider.doc, StoreDoc)
    return provider.local_update(provider.doc.type())


def online(provider: Provider, now: float = 0.0) -> Provider:
    """Connect it to an empty room."""
    provider.connect(now=now)
    provider.connected(now=now)
    provider.receive(step1(), now=now)
    provider.receive(step2(), now=now)
    assert provider.status is Status.SYNCED
    return provider


# ---- a conversation


def test_connect_and_sync() -> None:
    provider = make()
    assert provider.status is Status.DISCONNECTED
    assert provider.next_timeout() is None
    assert plain(provider.connect(now=1)) == [OpenConnection(), Status.CONNECTING]
    assert provider.connect(now=1) == []
    assert plain(provider.connected(now=2)) == [Status.SYNCING, ("step1", {})]
    assert provider.connected(now=2) == []
    assert plain(provider.receive(step1(), now=2)) == [("step2", EMPTY)]
    assert plain(provider.receive(step2(A), now=2)) == [Status.SYNCED]
    assert provider.receive(edit(B), now=2) == []
    assert provider.doc.encode() == update({(1, 0): [item(text("ab"))]})
    assert isinstance(provider.doc, StoreDoc)
    assert provider.doc.origins == [provider, provider]
    assert not provider.unconfirmed


def test_offline_edits_go_out_with_the_answer_to_the_servers_question() -> None:
    provider = make()
    assert typing(provider) == []
    provider.connect(now=0)
    assert typing(provider) == []
    assert plain(provider.connected(now=0)) == [Status.SYNCING, ("step1", {5: 2})]
    assert typing(provider) == []
    both = update({(5, 1): [item(text("xx"), origin=(5, 0))]})
    assert plain(provider.receive(step1({5: 1}), now=0)) == [("step2", both)]
    assert plain(typing(provider)) == [
        ("update", update({(5, 3): [item(text("x"), origin=(5, 2))]}))
    ]
    provider.connection_lost(1006, "", now=0)
    assert typing(provider) == []


def test_several_messages_in_a_frame() -> None:
    provider = make()
    provider.connect(now=0)
    provider.connected(now=0)
    frame = step1() + step2(A) + edit(B) + show((7, 1, '"here"'))
    assert plain(provider.receive(frame, now=0)) == [
        ("step2", EMPTY),
        Status.SYNCED,
        PresenceChanged((7,), (), ()),
    ]


def test_what_means_nothing_to_a_client_is_ignored() -> None:
    provider = online(make())
    for frame in (Custom(100, b"payload").encode(), show(), Custom(2, b"\x01").encode()):
        assert provider.receive(frame, now=1) == []
    assert provider.receive(step2(A), now=1) == []  # answers nothing, but is an update
    assert provider.doc.encode() == A


def test_a_denial_is_told() -> None:
    provider = online(make())
    frame = PermissionDenied("read-only").encode()
    assert provider.receive(frame, now=1) == [Denied("read-only")]
    assert provider.denied == "read-only"


# ---- malformed


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"", id="empty"),
        pytest.param(edit(A)[:-1], id="cut short"),
        pytest.param(edit(A + b"\x00"), id="bytes left over"),
        pytest.param(step1()[:-1] + b"\x01", id="state vector"),
        pytest.param(show((7, 1, "no JSON")), id="awareness"),
        pytest.param(b"\x00\x03\x00", id="unknown sync message"),
    ],
)
@pytest.mark.parametrize("first", [b"", edit(A), show((8, 1, "1")), step1()])
def test_malformed_bytes_change_nothing_and_cost_the_connection(first: bytes, bad: bytes) -> None:
    provider = online(make())
    frame = first + bad if bad else bad
    close, lost, status = provider.receive(frame, now=1)
    assert isinstance(close, CloseConnection)
    assert isinstance(lost, Lost)
    assert close.code == lost.code == CloseCode.INVALID_PAYLOAD
    assert close.reason == lost.reason
    assert lost.retry_in == pytest.approx(0.2)
    assert status == StatusChanged(Status.WAITING)
    assert provider.doc.encode() == EMPTY
    assert provider.states == {}
    assert provider.receive(edit(A), now=1) == []  # of the old connection
    assert provider.connection_lost(1006, "", now=1) == []
    assert provider.doc.encode() == EMPTY


# ---- the end of a connection


@pytest.mark.parametrize(
    ("final", "codes"),
    [
        (False, [1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1010, 1011, 1012, 1013, 1014]),
        (True, [1009, 1015, 4400, 4401, 4403, 4404, 4413, 4499]),
        (False, [3000, 4000, 4205, 4399, 4500, 4999]),
        (True, [200, 301, 307, 400, 401, 403, 404, 410, 426, 431]),
        (False, [408, 429, 500, 502, 503, 504, 505, 599]),
    ],
)
def test_what_is_final(final: bool, codes: list[int]) -> None:
    for code in codes:
        assert is_final(code) is final, code
        provider = online(make())
        effects = provider.connection_lost(code, "why", now=1)
        if final:
            assert plain(effects) == [GaveUp(code, "why"), Status.GAVE_UP]
            assert provider.next_timeout() is None
        else:
            assert plain(effects) == [Lost(code, "why", 0.2), Status.WAITING]
            assert provider.next_timeout() == 1.2


def test_who_gave_up_can_be_told_to_try_again() -> None:
    provider = make()
    provider.connect(now=0)
    assert plain(provider.connection_lost(403, "", now=0))[0] == GaveUp(403, "")
    assert provider.handle_timeout(now=1000) == []
    assert plain(provider.connect(now=1000)) == [OpenConnection(), Status.CONNECTING]
    online_again = [Status.SYNCING, ("step1", {})]
    assert plain(provider.connected(now=1000)) == online_again


def test_backoff_doubles_up_to_its_most() -> None:
    provider = make(backoff_first=0.5, backoff_most=7.0)
    provider.connect(now=0)
    now, waits = 0.0, []
    for _ in range(7):
        lost = provider.connection_lost(1006, "refused", now=now)[0]
        assert isinstance(lost, Lost)
        waits.append(lost.retry_in)
        due = provider.next_timeout()
        assert due == now + lost.retry_in
        assert provider.handle_timeout(now=due - 0.01) == []
        assert provider.handle_timeout(now=due)[0] == OpenConnection()
        now = due
    assert waits == [0.5, 1, 2, 4, 7, 7, 7]
    provider._attempts = 10**6
    assert provider.connection_lost(1006, "", now=now)[0] == Lost(1006, "", 7.0)


def test_backoff_is_any_time_up_to_that() -> None:
    draws = iter([0.0, 0.25, 0.5])
    provider = Provider(StoreDoc(5), random=lambda: next(draws))
    waits = []
    for _ in range(3):
        provider.connect(now=100)
        lost = provider.connection_lost(1013, "full", now=100)[0]
        assert isinstance(lost, Lost)
        waits.append(lost.retry_in)
    assert waits == [0.0, 0.05, 0.1]  # `connect` begins anew with the shortest


@pytest.mark.parametrize(
    ("way", "waits"),
    [
        ("open", [0.2, 0.4, 0.8]),
        ("synced", [0.2, 0.4, 0.8]),
        ("stable", [0.2, 0.2, 0.2]),
    ],
)
def test_only_a_sync_that_lasts_makes_the_next_wait_short(way: str, waits: list[float]) -> None:
    provider = make()
    provider.connect(now=0)
    now, found = 0.0, []
    for _ in range(3):
        provider.connected(now=now)
        if way != "open":
            provider.receive(step2(), now=now)
        now += 5.0 if way == "stable" else 4.9
        lost = provider.connection_lost(1006, "", now=now)[0]
        assert isinstance(lost, Lost)
        found.append(lost.retry_in)
        now += lost.retry_in
        provider.handle_timeout(now=now)
    assert found == pytest.approx(waits)


@pytest.mark.parametrize(
    ("retry_after", "wait"), [(None, 0.2), (7.0, 7.2), (-3.0, 0.2), (1e9, 300.2)]
)
def test_a_server_may_say_when_to_come_back(retry_after: float | None, wait: float) -> None:
    provider = make()
    provider.connect(now=0)
    effects = provider.connection_lost(503, "", now=0, retry_after=retry_after)
    assert effects[0] == Lost(503, "", wait)
    assert plain(provider.connect(now=1)) == [OpenConnection(), Status.CONNECTING]  # by hand: now


def test_disconnect() -> None:
    provider = make()
    assert provider.disconnect(now=0) == []
    provider.set_state({"name": "x"}, now=0)
    online(provider)
    provider.receive(show((7, 1, "1")), now=0)
    assert plain(provider.disconnect(now=1)) == [
        ("awareness", (5, 2, None)),
        ("close", 1000),
        Status.DISCONNECTED,
        PresenceChanged((), (), (7,)),
    ]
    assert provider.state == {"name": "x"}
    assert provider.receive(edit(A), now=1) == []
    assert provider.connection_lost(1000, "", now=1) == []
    assert provider.handle_timeout(now=5) == []
    assert provider.disconnect(now=5) == []
    provider.connect(now=6)
    assert plain(provider.connected(now=6))[2] == ("awareness", (5, 3, '{"name": "x"}'))


def test_disconnect_while_connecting_or_waiting() -> None:
    provider = make()
    provider.connect(now=0)
    assert plain(provider.disconnect(now=0)) == [("close", 1000), Status.DISCONNECTED]
    assert provider.connected(now=0) == []
    provider.connect(now=0)
    provider.connection_lost(1006, "", now=0)
    assert plain(provider.disconnect(now=0)) == [Status.DISCONNECTED]
    assert provider.next_timeout() is None


# ---- time


def test_a_connection_that_does_not_open_in_time() -> None:
    provider = make()
    provider.connect(now=0)
    assert provider.next_timeout() == 10
    assert provider.handle_timeout(now=9.9) == []
    assert plain(provider.handle_timeout(now=10)) == [
        ("close", 1001),
        Lost(1006, "not open after 10 s", 0.2),
        Status.WAITING,
    ]


def test_silence_is_pinged_and_then_given_up() -> None:
    provider = online(make())
    assert provider.next_timeout() == 15
    assert provider.handle_timeout(now=14.9) == []
    assert provider.handle_timeout(now=15) == [SendPing()]
    assert provider.next_timeout() == 30
    provider.heard(now=16)  # the pong
    assert provider.next_timeout() == 31
    assert provider.handle_timeout(now=31) == [SendPing()]
    assert provider.handle_timeout(now=32) == []
    assert plain(provider.handle_timeout(now=46)) == [
        ("close", 1001),
        Lost(1006, "nothing was heard for 30 s", 0.2),
        Status.WAITING,
    ]
    with pytest.raises(LocalProtocolError, match="answered"):
        ProviderSettings(ping_interval=30)


# ---- flush


def test_flush_is_done_when_what_was_asked_after_it_is_answered() -> None:
    provider = online(make())
    assert plain(typing(provider)) == [("update", OURS)]
    assert provider.unconfirmed
    number, effects = provider.flush(now=1)
    assert plain(effects) == [("step1", {5: 1})]
    again, effects = provider.flush(now=1)  # one question at a time
    assert effects == []
    assert plain(provider.receive(step2(), now=1)) == [Flushed(number, None), ("step1", {5: 1})]
    assert not provider.unconfirmed
    typing(provider)
    assert plain(provider.receive(step2(), now=1)) == [Flushed(again, None)]
    assert provider.unconfirmed  # as it was edited since


def test_flush_without_a_connection_is_done_after_the_next_one_was_made() -> None:
    provider = make()
    typing(provider)
    number, effects = provider.flush(now=0)
    assert effects == []
    provider.connect(now=0)
    provider.connected(now=0)
    assert plain(provider.receive(step2(), now=0)) == [Status.SYNCED]  # answers another question
    assert provider.unconfirmed
    assert plain(provider.receive(step1(), now=0)) == [("step2", OURS), ("step1", {5: 1})]
    provider.connection_lost(1006, "", now=0)
    provider.handle_timeout(now=1)
    provider.connected(now=1)
    assert plain(provider.receive(step1({5: 1}), now=1)) == [("step2", EMPTY)]
    assert plain(provider.receive(step2(), now=1)) == [Status.SYNCED, ("step1", {5: 1})]
    assert plain(provider.receive(step2(), now=1)) == [Flushed(number, None)]


def test_flush_tells_what_was_denied() -> None:
    provider = online(make())
    typing(provider)
    number, _ = provider.flush(now=0)
    provider.receive(PermissionDenied("read-only").encode(), now=0)
    assert provider.receive(step2(), now=0) == [Flushed(number, "read-only")]


def test_questions_are_not_asked_too_often_for_a_server() -> None:
    provider = online(make())
    room = Room("doc")
    member, _ = room.join(now=0)
    asked, now, most = 1, 0.0, 0
    while asked < 40:
        _, effects = provider.flush(now=now)
        if not effects:
            due = provider.next_timeout()
            assert due is not None
            assert due > now
            now = due
            effects = provider.handle_timeout(now=now)
        for effect in effects:
            assert isinstance(effect, SendFrame)
            assert not any(
                isinstance(e, Close) for e in room.receive(member, effect.frame, now=now)
            )
            asked += 1
        most = max(most, asked if now == 0 else 0)
        while provider.receive(step2(), now=now)[1:]:
            room.receive(member, step1(), now=now)
            asked += 1
    assert most == 8
    assert now == pytest.approx(40 - 8, abs=1)


def test_a_slow_clients_diff_is_not_taken_for_the_answer_to_its_flush() -> None:
    provider, room = make(), Room("doc")
    member, _ = room.join(now=0)
    provider.connect(now=0)
    for effect in provider.connected(now=0):
        if isinstance(effect, SendFrame):
            room.receive(member, effect.frame, now=0)
    provider.receive(step1(), now=0)
    provider.receive(step2(), now=0)
    typing(provider)
    number, question = provider.flush(now=0)
    room.stall(member, now=0)
    for send in room.resume(member):
        assert isinstance(send, Send)
        assert provider.receive(send.frame, now=0) == []
    assert isinstance(question[0], SendFrame)
    (answer,) = room.receive(member, question[0].frame, now=0)
    assert isinstance(answer, Send)
    assert provider.receive(answer.frame, now=0) == [Flushed(number, None)]


# ---- a slow connection


def test_a_full_outbox_gets_one_update_when_it_is_empty() -> None:
    provider = online(make())
    assert provider.drained(now=0) == []
    provider.set_state(1, now=0)
    typing(provider)
    provider.stall()
    provider.stall()  # is so already
    for _ in range(3):
        assert typing(provider) == []
    assert plain(provider.set_state(2, now=0)) == [PresenceChanged((), (5,), ())]
    number, effects = provider.flush(now=0)
    assert effects == []
    assert provider.receive(QueryAwareness().encode(), now=0) == []
    assert provider.next_timeout() == 15
    assert plain(provider.drained(now=0)) == [
        ("update", update({(5, 1): [item(text("xxx"), origin=(5, 0))]})),
        ("awareness", (5, 2, "2")),
        ("step1", {5: 4}),
    ]
    assert provider.receive(step2(), now=0) == [Flushed(number, None)]


def test_a_full_outbox_without_edits() -> None:
    provider = online(make())
    provider.stall()
    provider.receive(edit(A), now=0)
    assert provider.drained(now=0) == []


def test_a_question_that_comes_while_the_outbox_is_full() -> None:
    provider = make()
    provider.stall()  # without a connection there is no outbox
    provider.connect(now=0)
    provider.connected(now=0)
    typing(provider)
    provider.stall()
    assert provider.receive(step1(), now=0) == []
    assert plain(provider.drained(now=0)) == [("step2", OURS)]


# ---- awareness


def test_our_state() -> None:
    provider = make()
    assert provider.state is None
    assert plain(provider.set_state(None, now=0)) == []
    assert plain(provider.set_state({"name": "Ada"}, now=0)) == [PresenceChanged((5,), (), ())]
    provider.connect(now=0)
    # Its clock is not 0, which clients would ignore, and higher than one they may have seen.
    assert plain(provider.connected(now=0))[1:] == [
        ("step1", {}),
        ("awareness", (5, 2, '{"name": "Ada"}')),
    ]
    assert plain(provider.set_state([1, None], now=0)) == [
        ("awareness", (5, 3, "[1, null]")),
        PresenceChanged((), (5,), ()),
    ]
    assert provider.state == [1, None]
    assert plain(provider.set_state([1, None], now=0)) == [("awareness", (5, 4, "[1, null]"))]
    assert plain(provider.receive(QueryAwareness().encode(), now=0)) == [
        ("awareness", (5, 4, "[1, null]"))
    ]
    assert plain(provider.set_state(None, now=0)) == [
        ("awareness", (5, 5, None)),
        PresenceChanged((), (), (5,)),
    ]
    assert plain(provider.disconnect(now=0)) == [("close", 1000), Status.DISCONNECTED]


def test_the_first_state_shown_is_one_that_clients_take() -> None:
    provider = online(make())
    assert plain(provider.set_state("x", now=0))[0] == ("awareness", (5, 1, '"x"'))


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), b"bytes"])
def test_a_state_that_is_no_json(value: Any) -> None:
    provider = online(make())
    with pytest.raises(LocalProtocolError, match="JSON"):
        provider.set_state(value, now=0)
    nested: list[Any] = []
    for _ in range(200_000):
        nested = [nested]
    with pytest.raises(LocalProtocolError, match="JSON"):
        provider.set_state(nested, now=0)
    assert provider.states == {}


def test_who_is_here() -> None:
    provider = online(make())
    provider.set_state("me", now=0)
    seven = '{"name": "Béla", "big": ' + "9" * 5000 + "}"
    effects = provider.receive(show((7, 1, seven), (8, 1, '"c"')), now=0)
    assert effects == [PresenceChanged((7, 8), (), ())]
    assert provider.peers == {7: {"name": "Béla", "big": float("inf")}, 8: "c"}
    assert provider.states == {5: "me", **provider.peers}
    effects = provider.receive(show((7, 2, seven), (8, 2, "12")), now=1)
    assert effects == [PresenceChanged((), (8,), ())]  # 7 was only renewed
    assert provider.peers[8] == 12
    assert provider.receive(show((8, 2, None)), now=1) == [PresenceChanged((), (), (8,))]
    assert provider.receive(show((8, 2, None)), now=1) == []
    effects = provider.connection_lost(1006, "", now=2)
    assert effects[-1] == PresenceChanged((), (), (7,))
    assert provider.states == {5: "me"}
    # The next connection counts from the start: the server repeats what it knows.
    provider.connect(now=3)
    provider.connected(now=3)
    assert provider.receive(show((7, 2, "7")), now=3) == [PresenceChanged((7,), (), ())]


def test_states_are_renewed_and_expire() -> None:
    provider = online(make(ping_interval=100, silence_timeout=200))
    provider.set_state("me", now=1)
    provider.receive(show((7, 1, "7")), now=2)
    assert provider.next_timeout() == 1 + RENEW_AFTER
    assert plain(provider.handle_timeout(now=1 + RENEW_AFTER)) == [("awareness", (5, 2, '"me"'))]
    provider.handle_timeout(now=1 + 2 * RENEW_AFTER)
    assert provider.next_timeout() == 2 + OUTDATED_AFTER
    assert provider.handle_timeout(now=2 + OUTDATED_AFTER) == [PresenceChanged((), (), (7,))]


def test_what_the_server_says_of_us() -> None:
    provider = online(make())
    provider.set_state("me", now=0)
    assert provider.receive(show((5, 2, '"me"')), now=0) == []  # a lesson: our clock is 2 now
    assert plain(provider.receive(show((5, 2, None)), now=0)) == [("awareness", (5, 3, '"me"'))]
    assert plain(provider.set_state("you", now=0))[0] == ("awareness", (5, 4, '"you"'))


# ---- an application that acts while a message is taken in


def test_one_who_disconnects_because_of_an_edit() -> None:
    provider = online(make())
    provider.doc.observe_updates(lambda update, origin: effects.extend(provider.disconnect(now=1)))
    for frame in (edit(A) + edit(B), step2(C) + show((7, 1, "1"))):
        effects: list[Effect] = []
        online(provider)
        provider.flush(now=1)
        assert provider.receive(frame, now=1) == []
        assert plain(effects) == [("close", 1000), Status.DISCONNECTED]
        assert provider.peers == {}
    assert provider.doc.encode_state_vector() == step1({1: 1})[3:]


class Picky(StoreDoc):
    """Takes less than the grammar of updates allows, and disconnects when it does not."""

    provider: Provider

    def apply(self, update: bytes, origin: object = None) -> None:
        self.provider.disconnect(now=1)
        super().apply(b"", origin)


def test_a_document_that_disconnects_and_refuses() -> None:
    doc = Picky(5)
    doc.provider = online_provider = make()
    online_provider.doc = doc
    online_provider.connect(now=0)
    online_provider.connected(now=0)
    assert online_provider.receive(edit(A), now=1) == []
    assert online_provider.status is Status.DISCONNECTED


# ---- with a room


class Line:
    """A provider and, while it is connected, a member of the room."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.doc = StoreDoc(number)
        self.provider = Provider(self.doc, random=lambda: 0.5)
        self.member: Member | None = None
        self.to_server: deque[bytes] = deque()
        self.to_client: deque[bytes] = deque()
        self.flushed: dict[int, bytes] = {}
        """By number: the document when a flush was asked for."""

        def on_update(data: bytes, origin: object) -> None:
            if origin is not self.provider:
                self.do(self.provider.local_update(data))

        self.doc.observe_updates(on_update)

    def do(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, SendFrame):
                assert self.member is not None, "a frame without a connection"
                self.to_server.append(effect.frame)
            elif isinstance(effect, CloseConnection):
                self.cut()
            elif isinstance(effect, Flushed):
                for number in [n for n in self.flushed if n <= effect.number]:
                    known = StoreDoc(0)
                    known.apply(self.world.room.store.encode())
                    known.apply(self.flushed.pop(number))
                    assert known.encode() == self.world.room.store.encode(), "not all is there"

    def cut(self) -> None:
        """The connection is no more. What was on its way is lost."""
        if self.member is not None:
            member, self.member = self.member, None
            self.to_server.clear()
            self.to_client.clear()
            self.world.do(self.world.room.leave(member, now=self.world.now))

    def accept(self) -> None:
        if self.provider.status is Status.CONNECTING:
            self.member, effects = self.world.room.join(now=self.world.now)
            self.member.link = self
            self.do(self.provider.connected(now=self.world.now))
            self.world.do(effects)

    def server_hears(self) -> None:
        if self.member is not None and self.to_server:
            frame = self.to_server.popleft()
            self.world.do(self.world.room.receive(self.member, frame, now=self.world.now))

    def client_hears(self) -> None:
        if self.to_client:
            self.do(self.provider.receive(self.to_client.popleft(), now=self.world.now))


CLIENTS = 3
which = st.integers(0, CLIENTS - 1)


class World(RuleBasedStateMachine):
    """Providers and a room, with every message on its way for as long as the machine likes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.room = Room("doc", settings=Settings(acknowledge=True))
        self.lines = [Line(self, number + 1) for number in range(CLIENTS)]
        for i, line in enumerate(self.lines[:-1]):  # the last one is late
            self.connect(i)
            self.accept(i)
            while line.to_server or line.to_client:
                line.server_hears()
                line.client_hears()

    def do(self, effects: list[RoomEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                for member in receivers(effect):
                    if member.link.member is member:
                        member.link.to_client.append(effect.frame)
            elif isinstance(effect, Close):
                assert effect.code == CloseCode.TRY_AGAIN_LATER, effect.reason
                line = effect.member.link
                line.cut()
                line.do(line.provider.connection_lost(effect.code, "", now=self.now))

    @rule(i=which)
    def connect(self, i: int) -> None:
        self.lines[i].do(self.lines[i].provider.connect(now=self.now))

    @rule(i=which)
    def accept(self, i: int) -> None:
        self.lines[i].accept()

    @rule(i=which)
    def disconnect(self, i: int) -> None:
        self.lines[i].do(self.lines[i].provider.disconnect(now=self.now))

    @rule(i=which)
    def cut(self, i: int) -> None:
        line = self.lines[i]
        if line.member is not None:
            line.cut()
            line.do(line.provider.connection_lost(1006, "", now=self.now))

    @rule(i=which)
    def type(self, i: int) -> None:
        self.lines[i].doc.type()

    @rule(i=which, j=which)
    def delete(self, i: int, j: int) -> None:
        self.lines[i].doc.delete(j + 1, 0)

    @rule(i=which)
    def show(self, i: int) -> None:
        self.lines[i].do(self.lines[i].provider.set_state(f"at {self.now}", now=self.now))

    @rule(i=which)
    def flush(self, i: int) -> None:
        line = self.lines[i]
        number, effects = line.provider.flush(now=self.now)
        line.flushed[number] = line.doc.encode()
        line.do(effects)

    @rule(i=which)
    def outbox_is_full(self, i: int) -> None:
        self.lines[i].provider.stall()

    @rule(i=which)
    def outbox_is_empty(self, i: int) -> None:
        self.lines[i].do(self.lines[i].provider.drained(now=self.now))

    @rule(i=which)
    def stall(self, i: int) -> None:
        member = self.lines[i].member
        if member is not None:
            self.room.stall(member, now=self.now)

    @rule(i=which)
    def resume(self, i: int) -> None:
        member = self.lines[i].member
        if member is not None:
            self.do(self.room.resume(member))

    @rule(i=which, count=st.integers(1, 5))
    def server_hears(self, i: int, count: int) -> None:
        for _ in range(count):
            self.lines[i].server_hears()

    @rule(i=which, count=st.integers(1, 5))
    def client_hears(self, i: int, count: int) -> None:
        for _ in range(count):
            self.lines[i].client_hears()

    @rule(seconds=st.sampled_from([0.1, 1, 5, 20]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for line in self.lines:
            due = line.provider.next_timeout()
            effects = line.provider.handle_timeout(now=self.now)
            assert not effects or (due is not None and due <= self.now)
            if line.provider.status in (Status.SYNCING, Status.SYNCED):
                line.provider.heard(now=self.now)
            line.do(effects)
        self.do(self.room.handle_timeout(now=self.now))

    def teardown(self) -> None:
        """Connect everyone, and let everything come to rest: then all have the same."""
        for i, line in enumerate(self.lines):
            self.connect(i)
            self.accept(i)
            self.outbox_is_empty(i)
            self.resume(i)
            assert line.member is not None
        for _ in range(40):
            for line in self.lines:
                while line.to_server or line.to_client:
                    line.server_hears()
                    line.client_hears()
            self.wait(1)
        for line in self.lines:
            assert line.provider.status is Status.SYNCED
            assert line.doc.encode() == self.room.store.encode()
            assert not line.flushed
            shown = {
                other.provider.client_id: other.provider.state
                for other in self.lines
                if other.provider.state is not None
            }
            assert line.provider.states == shown


World.TestCase.settings = settings(
    max_examples=max(150, settings().max_examples), stateful_step_count=60, deadline=None
)
TestWorld = World.TestCase
