"""A room: the members of one document, and their conversation.

Theory of operation
-------------------
A room is a pure state machine. Its inputs are methods (`join`, `receive`, `leave`, ...); each
returns a list of *effects* for the caller to carry out, in order, after those returned before.
That order is what keeps the promises: a `Persist` stands before every `Send` that shows its update
to anyone, so whoever waits for each `Persist` to be durable before going on never shows an edit
that could still be lost.

A room that is opened from a store begins LOADING: members may join and their frames are kept, but
nobody is answered before `opened`, and nothing can be persisted. Then it is OPEN. `close` makes it
CLOSED for good.

Frames are read, and long ones taken in, step by step, so that nobody has to wait for somebody's
long one; see `ycore.frame`.

A member is greeted with the room's state vector (a SyncStep1, which fetches its offline edits) and
with who is here. From the moment its own SyncStep1 is answered it is *synced*: that answer holds
all there is, and every update after it reaches the member. Members who left, or whom a `Close`
effect has sent away, are out at once: nothing is sent to them, and what still comes from them
does nothing.

A member too slow to take what is sent is *stalled* by the caller, in whose hands the outboxes are:
the room then sends it nothing, and `resume` brings it level with one diff of what it missed. What
that is, the room notes while somebody is stalled (`_Missed`): so to stall a member costs nothing,
however large the document is, and to bring it level costs in proportion to what came meanwhile.

Answers that are not shared by many are given in parts if they are long, for the caller to go on
with when the member has taken the part before: see `Frame.has_more` and `resume_steps`.

Awareness ids belong to the member that announced them; see `_vouch`.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Any, Final, NamedTuple

from .awareness import Awareness, AwarenessEntry, encode_awareness
from .effects import (
    AwarenessChanged,
    Close,
    CustomMessage,
    Effect,
    EffectSteps,
    Persist,
    Probe,
    Send,
)
from .errors import CloseCode, LocalProtocolError, RemoteProtocolError
from .frame import Frame
from .messages import (
    AwarenessUpdate,
    Custom,
    PermissionDenied,
    SyncStep1,
    SyncStep2,
    Update,
)
from .settings import Settings
from .steps import Steps
from .updates import (
    ParsedUpdate,
    Place,
    Since,
    StructStore,
    decode_state_vector_steps,
    parse_update,
)

__all__ = ["Member", "Room", "State"]


class Member:
    """One connection to a room. Made by `Room.join`; its attributes are to be read, but `link`."""

    __slots__ = (
        "_asked_at",
        "_asks_until",
        "_clocks",
        "_waiting",
        "_waiting_bytes",
        "joined_at",
        "link",
        "read_only",
        "room",
        "synced",
    )

    def __init__(self, room: Room, *, joined_at: float, read_only: bool) -> None:
        self.room = room
        self.joined_at = joined_at
        self.read_only = read_only
        self.link: Any = None
        """Yours: what you need to find from a member, such as its connection."""
        self.synced = False
        """Whether its SyncStep1 was answered: from then on it gets every update."""
        self._clocks: dict[int, int] = {}
        """The awareness ids it owns, with the clock it last announced for each. The first one is
        its own; further ones it may be passing on for others."""
        self._asked_at = -inf
        """When it was asked again for what its updates had wrong."""
        self._asks_until = -inf
        """When it will have been given no more answers than it may, if it asks nothing before."""
        self._waiting: list[Frame] = []
        """Frames that came while the room was loading."""
        self._waiting_bytes = 0


# ---- the room


class State(Enum):
    """Where a room is in its life; see the top of this module."""

    LOADING = "loading"
    OPEN = "open"
    CLOSED = "closed"


@dataclass(slots=True)
class Counters:
    """What a room refused, for whoever watches over it."""

    bad_frames: int = 0
    """Malformed messages, each of which cost its sender the connection."""
    unknown_messages: int = 0
    """Messages of types that nobody registered."""
    refused_updates: int = 0
    """Updates of read-only members."""
    left_out: int = 0
    """Structs that were left out of updates since their clocks are wrong. Their senders were asked
    for them again: see the top of `ycore.updates._grammar`."""
    refused_awareness: int = 0
    """Awareness entries for ids that belong to somebody else."""


_KEEPALIVE: Final = AwarenessUpdate(encode_awareness([])).encode()
"""The shortest message that no client reacts to: awareness of nobody."""

_MAX_CLOCK: Final = 2**52
"""The highest awareness clock a member may announce: far above what anyone counts up to, and far
enough below the highest that can be written that a room can count on from it."""

_ANSWERS_AHEAD: Final = 10.0
"""For how many seconds a member may have been given answers in advance."""

_LEAST_ANSWER: Final = 16 * 1024
"""As how many bytes any answer counts at least, for the work of giving it."""

_ANSWER_PER_AUTHOR: Final = 64
"""How many bytes an answer counts besides for each author of the document, whose structs have to be
looked at. `Settings.answer_bytes` tells of both."""

_SNAPSHOT_KEPT: Final = 5.0
"""For how many seconds at least the whole document, encoded, is kept for more who ask for it. Those
who lost a server come back at about the same time. A room at rest does without a second copy: it is
dropped at the first timeout after that, which the keepalive sees to, or when nobody is left."""

_SNAPSHOT_SINCE: Final = 64
"""How many updates may follow a snapshot: to send more costs more than to make a new one."""

_SNAPSHOT_SHARE: Final = 16
"""How many times as long as all of these a snapshot has to be. A short one is made anew at once."""

_PART: Final = 2**20
"""From about how many bytes on what is sent to one member alone is given in parts. What a slow one
costs is in proportion to that; but a client takes in many parts in more time than the whole."""

_ASK_AGAIN: Final = 10.0
"""For how many seconds a member is not asked again: the answer may be as wrong."""

_NO_MORE: Final = SyncStep2(b"\x00\x00").encode()

_READ_ONLY: Final = "this connection is read-only"


class _Encoding:
    """Bytes that several wait for: each who does makes them, as anyone may leave."""

    __slots__ = ("_result", "_steps")

    def __init__(self, steps: Steps[tuple[bytes, Place | None]]) -> None:
        self._steps = steps
        self._result: tuple[bytes, Place | None] | None = None

    @property
    def result(self) -> bytes | None:
        """None while they are being made."""
        return None if self._result is None else self._result[0]

    def steps(self) -> Steps[tuple[bytes, Place | None]]:
        while self._result is None:
            try:
                next(self._steps)
            except StopIteration as stop:
                self._result = stop.value
            else:
                yield
        return self._result


class _Missed:
    """What was sent to others while members were stalled.

    All that stalled at the same state share one. Who stalls later begins the next: so there are no
    more of them than stalled members, and they hold no more than what came meanwhile. Those that
    nobody needs any more, nobody refers to.
    """

    __slots__ = ("_level", "_level_of", "next", "since")

    def __init__(self) -> None:
        self.since = Since()
        self.next: _Missed | None = None
        self._level: tuple[Since, _Encoding] | None = None
        """What brings them level, and how many updates had been sent then."""
        self._level_of = -1

    def level(self, store: StructStore, sent: int) -> tuple[Since, _Encoding]:
        """All that was missed from here on, and the first part of it as a message.

        Args:
            sent: how many updates were sent so far: those who are brought level at the same state
                get the same bytes.
        """
        if self._level is None or self._level_of != sent:
            since = Since()
            self._level = since, _Encoding(self._level_steps(store, since))
            self._level_of = sent
        return self._level

    def _level_steps(self, store: StructStore, since: Since) -> Steps[tuple[bytes, Place | None]]:
        missed: _Missed | None = self
        while missed is not None:
            yield from since.join_steps(missed.since)
            missed = missed.next
        part, place = yield from store.since_part_steps(since, most=_PART)
        return Update(part).encode(), place

    @property
    def is_empty(self) -> bool:
        """Whether nothing was missed from here on."""
        missed: _Missed | None = self
        while missed is not None:
            if missed.since:
                return False
            missed = missed.next
        return True


@dataclass(slots=True)
class _Stalled:
    """What a stalled member is to be told."""

    since: float
    missed: _Missed
    clients: tuple[int, ...]
    """Whose awareness states there were."""
    denied: str | None = None
    """Why edits were refused meanwhile."""
    asked: tuple[bytes, float] | None = None
    """What it said that it has in its last SyncStep1 since then, and when that came."""


class _Unsent(NamedTuple):
    """An update that was added, and that nobody may be shown yet."""

    member: Member
    update: ParsedUpdate
    new: bytes | None


class _Snapshot:
    """The whole document, encoded once for all who ask for it at about the same time.

    Whoever gets it gets the updates that came in since as well: so a thousand who join share a few
    objects, even while others type.
    """

    __slots__ = ("_encoding", "_frame", "_since", "_since_bytes", "wanted_at")

    def __init__(self, store: StructStore) -> None:
        self._encoding = _Encoding(store.diff_part_steps({}))
        self._frame: bytes | None = None
        self._since: list[bytes] = []
        """The frames that were broadcast since it was begun. It may have them or not."""
        self._since_bytes = 0
        self.wanted_at = -inf
        """When it was last asked for."""

    def frames_steps(self) -> Steps[list[bytes]]:
        """What to send to one who lacks all that there is at the first step.

        That is a SyncStep2; or if something came since, an Update, then that, and an empty
        SyncStep2 last: it tells clients that this is all there is, and they may act upon that.
        """
        since = self._since[:]
        update, _ = yield from self._encoding.steps()
        if self._frame is None:
            message = Update(update) if self._since else SyncStep2(update)
            self._frame = message.encode()
        return [self._frame, *since, _NO_MORE] if self._since else [self._frame]

    def add(self, frame: bytes) -> bool:
        """Something new is sent to all. Returns whether this is still worth keeping."""
        if not self._since:
            self._frame = None  # from now on it is an Update
        self._since.append(frame)
        self._since_bytes += len(frame)
        update = self._encoding.result
        return len(self._since) <= _SNAPSHOT_SINCE and (
            update is None or self._since_bytes * _SNAPSHOT_SHARE <= len(update)
        )


class Room:
    """The members of one document, and the document's structs.

    Args:
        name: any string; the room itself makes nothing of it.
        loading: begin LOADING, for a caller with a store. Otherwise the room is open and empty.
    """

    def __init__(
        self, name: str, *, settings: Settings | None = None, loading: bool = False
    ) -> None:
        self.name = name
        self.settings = settings or Settings()
        self.state = State.LOADING if loading else State.OPEN
        self.store = StructStore()
        """The document. Read it; add to it only through the room, or nobody is told."""
        self.awareness = Awareness()
        self.counters = Counters()
        self._members: dict[Member, None] = {}
        """In the order they joined."""
        self._stalled: dict[Member, _Stalled] = {}
        self._missed: _Missed | None = None
        """Where is noted what the stalled ones miss; None if there are none."""
        self._sent = 0
        """How many updates were sent to all."""
        self._clients_here: tuple[int, tuple[int, ...]] = 0, ()
        """Whose awareness states there are, and as of which `Awareness.changes`."""
        self._present: tuple[Member, ...] | None = None
        self._synced: tuple[Member, ...] | None = None
        self._everyone = 0, b""
        """The frame that shows who is here, and as of which `Awareness.changes`."""
        self._owners: dict[int, Member] = {}
        """Awareness id -> the member that owns it."""
        self._unsent: list[_Unsent] = []
        """Updates that are too long to be settled at once: see `_flush_steps`."""
        self._snapshot: _Snapshot | None = None
        self._keepalive_at: float | None = None
        self.joins = 0
        """How many have ever joined: by this an unload can tell that it comes too late."""
        self.idle_since: float | None = None
        """When the last member left; None while there are members, or before there was one."""
        self.read_only: str | None = None
        """Why nobody may edit, whatever their own permission; None if they may."""

    @property
    def members(self) -> tuple[Member, ...]:
        """Everyone in the room, in the order they joined."""
        return tuple(self._members)

    # Broadcasts go to tuples that are made once and shared until somebody comes or goes.

    def _audience_changed(self) -> None:
        self._present = self._synced = None

    def _who_is_present(self) -> tuple[Member, ...]:
        """Who gets awareness and keepalives: all but the stalled."""
        if self._present is None:
            self._present = tuple(m for m in self._members if m not in self._stalled)
        return self._present

    def _who_is_synced(self) -> tuple[Member, ...]:
        """Who gets updates."""
        if self._synced is None:
            present = self._who_is_present()
            synced = tuple(m for m in present if m.synced)
            # Whoever carries effects out may join those with the same members.
            self._synced = present if len(synced) == len(present) else synced
        return self._synced

    # -- coming and going

    def join(self, *, now: float, read_only: bool = False) -> tuple[Member, list[Effect]]:
        """Let a member in. It is greeted at once, or when the room has loaded.

        Raises:
            LocalProtocolError: the room is closed.
        """
        if self.state is State.CLOSED:
            raise LocalProtocolError(f"the room {self.name!r} is closed")
        if len(self._members) >= self.settings.max_members:
            return self.refuse(CloseCode.TRY_AGAIN_LATER, "the room is full", now=now)
        member = Member(self, joined_at=now, read_only=read_only)
        self._members[member] = None
        self.joins += 1
        self.idle_since = None
        self._audience_changed()
        if self._keepalive_at is None:
            self._keepalive_at = now + self.settings.keepalive
        return member, self._greet(member) if self.state is State.OPEN else []

    def refuse(self, code: CloseCode, reason: str, *, now: float) -> tuple[Member, list[Effect]]:
        """Turn somebody away who wants to join: told why, and never in the room."""
        member = Member(self, joined_at=now, read_only=True)
        return member, [Close(member, code, reason)]

    def leave(self, member: Member, *, now: float) -> list[Effect]:
        """A member's connection is gone. The others no longer see it. Does nothing if it left."""
        if not self._is_in(member):
            return []
        del self._members[member]
        self._unstall(member)
        self._audience_changed()
        if not self._members:
            self._snapshot = None
            self._keepalive_at = None
            self.idle_since = now
        for client in member._clocks:
            del self._owners[client]
        return self._tell_awareness(self.awareness.remove(member._clocks, now))

    def receive(self, member: Member, frame: bytes | Frame, *, now: float) -> list[Effect]:
        """Take in one WebSocket message. Does nothing if the member has left.

        Of a `Frame`, only a small part of the work is done: call again until it is `done`, and
        take in nothing else of this member meanwhile. If it `has_more`, call when the member has
        taken what it was sent.

        Malformed bytes change nothing, and cost the member its connection: the effects are then
        its `Close` and what its leaving means for the others.
        """
        if isinstance(frame, Frame):
            return self._receive(member, frame, now)
        frame = Frame(frame)
        effects: list[Effect] = []
        while not frame.done:
            effects += self._receive(member, frame, now)
        return effects

    def _receive(self, member: Member, frame: Frame, now: float) -> list[Effect]:
        frame.has_more = False
        if not self._is_in(member):
            frame.done = True
            return []
        try:
            contents = frame.read(self.settings)
        except RemoteProtocolError as exc:
            frame.done = True
            self.counters.bad_frames += 1
            return self._dismiss(member, exc.refusal, str(exc), now)
        if contents is None:
            return []
        if self.state is State.LOADING:
            frame.done = True
            return self._keep_waiting(member, frame, now)
        effects: list[Effect] = []
        if contents:
            content = contents[0]
            if isinstance(content, ParsedUpdate):
                if not self._take_update(member, content, now, effects):
                    contents[0] = self._flush_steps()
                    return effects
            elif isinstance(content, list):
                self._take_awareness(member, content, now, effects)
            elif isinstance(content, Custom):
                self._take_custom(member, content, effects)
            elif isinstance(content, Generator):
                try:
                    some = next(content)
                except StopIteration as stop:
                    effects += stop.value
                else:
                    frame.has_more = some is not None
                    return some or []
            else:
                if member._asks_until > now + _ANSWERS_AHEAD:
                    frame.done = True
                    reason = "asks for the whole document or awareness too often"
                    return self._dismiss(member, CloseCode.POLICY_VIOLATION, reason, now)
                if isinstance(content, dict):
                    contents[0] = self._answer(member, content, now)
                    return self._receive(member, frame, now)
                self._send_all_awareness(member, effects)
                self._charge(member, sum(len(e.frame) for e in effects if isinstance(e, Send)), now)
            contents.popleft()
        frame.done = not contents
        return effects

    def dismiss(self, member: Member, code: int, reason: str, *, now: float) -> list[Effect]:
        """Send a member away. Does nothing if it has left."""
        return self._dismiss(member, code, reason, now) if self._is_in(member) else []

    def send_custom(self, type_: int, payload: bytes, *, to: Member | None = None) -> list[Effect]:
        """Send a message of a type of the application's own to one member, or to all.

        Raises:
            LocalProtocolError: the type is not in `Settings.custom_types`.
        """
        if type_ not in self.settings.custom_types:
            raise LocalProtocolError(f"message type {type_} is not in Settings.custom_types")
        effects: list[Effect] = []
        audience = self._who_is_present()
        if to is not None:
            audience = (to,) if to in audience else ()
        self._broadcast(Custom(type_, payload).encode(), audience, None, effects)
        return effects

    def close(self, code: CloseCode, reason: str, *, now: float) -> list[Effect]:
        """Send everyone away, for good: the room is CLOSED."""
        self.state = State.CLOSED
        effects: list[Effect] = [Close(member, code, reason) for member in self._members]
        self._members.clear()
        self._stalled.clear()
        self._missed = None
        self._audience_changed()
        self._owners.clear()
        self._everyone = 0, b""
        self._unsent.clear()
        self._snapshot = None
        self._keepalive_at = None
        self.idle_since = now
        self.awareness = Awareness()
        return effects

    # -- loading

    def load(self, update: bytes | ParsedUpdate) -> None:
        """Take in an update from the store, before anyone is answered.

        `ycore.updates` has what it takes to do that with a long one step by step.

        Raises:
            LocalProtocolError: the room is not loading.
            RemoteProtocolError: the update is malformed.
        """
        if self.state is not State.LOADING:
            raise LocalProtocolError(f"the room {self.name!r} is {self.state.value}, not loading")
        self.store.add(update)

    def opened(self, *, now: float, read_only: str | None = None) -> list[Effect]:
        """All is loaded: greet those who wait, and take in what they sent meanwhile.

        Args:
            read_only: why nobody may edit, in words for people: the document is damaged, say.

        Raises:
            LocalProtocolError: the room is not loading.
        """
        if self.state is not State.LOADING:
            raise LocalProtocolError(f"the room {self.name!r} is {self.state.value}, not loading")
        self.state = State.OPEN
        self.read_only = read_only
        effects: list[Effect] = []
        waiting = self.members
        for member in waiting:
            effects += self._greet(member)
        for member in waiting:
            frames, member._waiting = member._waiting, []
            for frame in frames:
                frame.done = False
                while not frame.done:
                    effects += self._receive(member, frame, now)
        return effects

    # -- slow members

    def stall(self, member: Member, *, now: float) -> None:
        """Send a member nothing more until `resume`: its outbox is full.

        What was returned for it before still has to reach it. While the room is loading nothing
        was, and this does nothing.
        """
        if self.state is State.OPEN and self._is_in(member) and member not in self._stalled:
            before = self._missed
            if before is None or before.since:
                self._missed = _Missed()
                if before is not None:
                    before.next = self._missed
            assert self._missed is not None
            changes, clients = self._clients_here
            if changes != self.awareness.changes:
                clients = tuple(self.awareness.states)
                self._clients_here = self.awareness.changes, clients
            self._stalled[member] = _Stalled(now, self._missed, clients)
            self._audience_changed()

    def _unstall(self, member: Member) -> _Stalled | None:
        stalled = self._stalled.pop(member, None)
        if not self._stalled:
            self._missed = None
        return stalled

    def is_stalled(self, member: Member) -> bool:
        """Whether it waits for `resume`."""
        return member in self._stalled

    def resume(self, member: Member) -> list[Effect]:
        """A stalled member has taken all that was sent to it: bring it level."""
        effects: list[Effect] = []
        steps = self.resume_steps(member)
        while True:
            try:
                some = next(steps)
                effects += some or []
            except StopIteration as stop:
                effects += stop.value
                return effects

    def resume_steps(self, member: Member) -> EffectSteps:
        """`resume` in steps. After each that gives effects, go on when the member has taken what it
        was sent. Updates that are new reach it from the first step on."""
        if not self._is_in(member):
            return []
        stalled = self._unstall(member)
        if stalled is None:
            return []
        self._audience_changed()
        effects: list[Effect] = []
        if stalled.denied is not None:
            effects.append(Send(PermissionDenied(stalled.denied).encode(), (member,)))
        # A SyncStep2 is an answer and nothing else: who asked takes it for one, which says that all
        # it sent before it asked is stored.
        if stalled.asked is not None:
            packed, now = stalled.asked
            clocks = yield from decode_state_vector_steps(packed)
            effects += yield from self._answer(member, clocks, now)
        elif member.synced and not stalled.missed.is_empty:
            since, encoding = stalled.missed.level(self.store, self._sent)
            frame, place = yield from encoding.steps()
            while True:
                # It may hold a part of what nobody may be shown yet.
                effects += yield from self._flush_steps()
                effects.append(Send(frame, (member,)))
                if place is None:
                    break
                yield effects
                effects = []
                part, place = yield from self.store.since_part_steps(since, place, _PART)
                frame = Update(part).encode()
        if self._is_in(member):
            self._send_all_awareness(member, effects)
            here = self.awareness.states
            gone = [client for client in stalled.clients if client not in here]
            self._send_awareness(member, gone, effects)
        return effects

    # -- time

    def next_timeout(self) -> float | None:
        """When `handle_timeout` has something to do next; None if never."""
        times = [self._keepalive_at, self.awareness.next_timeout()]
        times += [stalled.since + self.settings.stall_timeout for stalled in self._stalled.values()]
        return min((time for time in times if time is not None), default=None)

    def handle_timeout(self, *, now: float) -> list[Effect]:
        """Do what is due by `now`; too early, nothing."""
        effects = self._tell_awareness(self.awareness.handle_timeout(now))
        if self._unsent and not self.store.settle():  # whoever sent it has left
            effects += self._announce_unsent()
        for member, stalled in list(self._stalled.items()):
            if now >= stalled.since + self.settings.stall_timeout:
                reason = f"too slow for {self.settings.stall_timeout:g} s"
                effects += self._dismiss(member, CloseCode.TRY_AGAIN_LATER, reason, now)
        if self._keepalive_at is not None and now >= self._keepalive_at:
            effects.append(Send(_KEEPALIVE, self._who_is_present()))
            self._keepalive_at = now + self.settings.keepalive
        if self._snapshot is not None and now >= self._snapshot.wanted_at + _SNAPSHOT_KEPT:
            self._snapshot = None
        return effects

    # -- what messages do

    def _is_in(self, member: Member) -> bool:
        if member.room is not self:
            raise LocalProtocolError(f"that is a member of {member.room.name!r}, not {self.name!r}")
        return member in self._members

    def _greet(self, member: Member) -> list[Effect]:
        effects: list[Effect] = []
        self._ask(member, effects)
        self._send_all_awareness(member, effects)
        return effects

    def _ask(self, member: Member, effects: list[Effect]) -> None:
        """Ask a member for what it has and the room lacks."""
        state_vector = SyncStep1(self.store.rough_state_vector())
        effects.append(Send(state_vector.encode(), (member,)))

    def _keep_waiting(self, member: Member, frame: Frame, now: float) -> list[Effect]:
        member._waiting_bytes += len(frame)
        if member._waiting_bytes > self.settings.max_waiting_bytes:
            reason = "too much was sent before the room was loaded"
            return self._dismiss(member, CloseCode.TRY_AGAIN_LATER, reason, now)
        member._waiting.append(frame)
        return []

    def _dismiss(self, member: Member, code: int, reason: str, now: float) -> list[Effect]:
        return [Close(member, code, reason), *self.leave(member, now=now)]

    def _take_custom(self, member: Member, message: Custom, effects: list[Effect]) -> None:
        if message.type in self.settings.custom_types:
            effects.append(CustomMessage(member, message.type, message.payload))
        else:
            self.counters.unknown_messages += 1

    def _answer(self, member: Member, clocks: dict[int, int], now: float) -> EffectSteps:
        """A SyncStep1: what does the member lack who has the structs below these clocks?

        From the first step on it gets what is new; what the answer has of that, it gets twice.
        """
        if not member.synced:
            member.synced = True
            self._audience_changed()
        if member in self._stalled:
            packed = yield from self.store.pack_clocks_steps(clocks)
            stalled = self._stalled.get(member)
            if stalled is not None:
                stalled.asked = packed, now
                return []
        if not clocks:
            frames = yield from self._snapshot_steps(now)
            self._charge(member, sum(map(len, frames)), now)
            effects = yield from self._flush_steps()
            return [*effects, *[Send(frame, (member,)) for frame in frames]]
        part, place = yield from self.store.diff_part_steps(clocks, most=_PART)
        packed = b""
        while True:
            self._charge(member, len(part), now)
            # The answer may hold a part of what nobody may be shown yet.
            effects = yield from self._flush_steps()
            if place is None:
                return [*effects, Send(SyncStep2(part).encode(), (member,))]
            effects.append(Send(Update(part).encode(), (member,)))
            # The member may take its time: nothing large is to be kept for it.
            if not packed:
                packed = yield from self.store.pack_clocks_steps(clocks)
            clocks, part = {}, b""
            yield effects
            effects = []
            clocks = yield from decode_state_vector_steps(packed)
            part, place = yield from self.store.diff_part_steps(clocks, place, _PART)

    def _charge(self, member: Member, size: int, now: float) -> None:
        """A member was given an answer of so many bytes."""
        cost = max(size, _LEAST_ANSWER) + _ANSWER_PER_AUTHOR * self.store.authors
        # One answer alone, however long, is never too much.
        ahead = min(cost / self.settings.answer_bytes, _ANSWERS_AHEAD)
        member._asks_until = max(member._asks_until, now) + ahead

    def _snapshot_steps(self, now: float) -> Steps[list[bytes]]:
        if self._snapshot is None:
            self._snapshot = _Snapshot(self.store)
        self._snapshot.wanted_at = now
        return (yield from self._snapshot.frames_steps())

    def _take_update(
        self, member: Member, update: ParsedUpdate, now: float, effects: list[Effect]
    ) -> bool:
        """An edit, or the offline edits of a SyncStep2: they differ in nothing here. Returns
        whether that was all; otherwise the rest is for `_flush_steps`."""
        why = _READ_ONLY if member.read_only else self.read_only
        if why is not None:
            # The answer to our SyncStep1 repeats what it knows; that is no edit.
            if not self.store.knows(update):
                self.counters.refused_updates += 1
                reason = f"{why}: the edit was refused"
                if member in self._stalled:
                    self._stalled[member].denied = reason
                else:
                    effects.append(Send(PermissionDenied(reason).encode(), (member,)))
            return True
        limit = self.settings.max_document_bytes
        if self.store.size > limit and not self.store.only_deletes(update):
            self.counters.refused_updates += 1
            reason = f"the document is full: it takes more than {limit} bytes"
            effects += self._dismiss(member, CloseCode.TOO_LARGE, reason, now)
            return True
        if update.left_out:
            self._ask_again(member, update.left_out, now, effects)
        new = self.store.add(update)
        if self.store.is_settled and not self._unsent:
            self._announce(member, update, new, effects)
            return True
        self._unsent.append(_Unsent(member, update, new))
        return False

    def _ask_again(self, member: Member, count: int, now: float, effects: list[Effect]) -> None:
        """Structs of an update were left out: the answer to a SyncStep1 has them right."""
        self.counters.left_out += count
        if now >= member._asked_at + _ASK_AGAIN and member not in self._stalled:
            member._asked_at = now
            self._ask(member, effects)

    def _announce(
        self, member: Member, update: ParsedUpdate, new: bytes | None, effects: list[Effect]
    ) -> None:
        """An update was added: have stored what was new, and tell everyone."""
        for own in self.store.own_deletes():
            effects.append(Persist(own, member))
            self._show(own, None, None, effects)
        if new is not None:
            effects.append(Persist(new, member))
        author: Member | None = member
        if self.settings.acknowledge and member.synced and member not in self._stalled:
            if new is update.data:
                author = None  # it hears what all hear
            elif (update.sections or update.deletes) and member in self._members:
                # Of what was known some may be on its way into the store: then this waits too.
                effects.append(Send(Update(update.data).encode(), (member,)))
        if new is not None:
            self._show(new, update, author, effects)

    def _show(
        self,
        new: bytes,
        update: ParsedUpdate | None,
        author: Member | None,
        effects: list[Effect],
    ) -> None:
        """Send what was new to everyone but its author. It may have been read already: `update`."""
        frame = Update(new).encode()
        if self._missed is not None:
            self._sent += 1
            if update is None or new is not update.data:
                update = parse_update(new)
            self._missed.since.note(update)
        self._broadcast(frame, self._who_is_synced(), author, effects)
        if self._snapshot is not None and not self._snapshot.add(frame):
            self._snapshot = None

    # A client throws on what the store has not settled yet, if it was made by an attacker (see
    # `StructStore`). So a long update is settled first, step by step, and stored and shown after
    # that. Whoever sent it may leave meanwhile, and then whoever comes next does the rest: somebody
    # with another such update, or who asks for the document, or `handle_timeout`.

    def _flush_steps(self) -> Steps[list[Effect]]:
        """Settle all there is, and have stored and shown what was waiting for that."""
        while self.store.settle():
            yield
        return self._announce_unsent()

    def _announce_unsent(self) -> list[Effect]:
        effects: list[Effect] = []
        unsent, self._unsent = self._unsent, []
        for member, update, new in unsent:
            self._announce(member, update, new, effects)
        return effects

    @property
    def has_unsent(self) -> bool:
        """Whether there are updates that were not stored and shown yet."""
        return bool(self._unsent)

    # -- awareness
    #
    # A client takes another's state only if its clock went up, and when its connection breaks it
    # forgets the others' states but not their clocks. So whoever comes back with its old id and
    # clock would stay invisible until it renews its state, half a minute at worst, and so would
    # the others for it; the same for everyone after a restart of the server. Therefore the room
    # counts clocks up itself where that happens, and tells the owner so (`_teach`), that the clocks
    # of both agree again and the next server can count on from there.

    def _take_awareness(
        self, member: Member, entries: list[AwarenessEntry], now: float, effects: list[Effect]
    ) -> None:
        changed: list[AwarenessEntry] = []
        came_back = probed = False
        for entry in entries:
            client, clock, state = entry
            is_new = client not in member._clocks
            returns = not member._clocks and self.awareness.gone_since(client) is not None
            owner = self._owners.get(client)
            if state is not None and not self._has_space(member, client, state):
                self.counters.refused_awareness += 1
                continue
            if not self._vouch(member, entry):
                if state is not None and owner and not (member._clocks or probed):
                    effects.append(Probe(owner))
                    probed = True
                continue
            known = self.awareness.clock(client)
            if state is None:
                announced = known
            elif is_new:
                announced = max(clock, known) + 1
                came_back |= returns
            elif clock <= known and self.awareness.is_here(client, state):
                self.awareness.renew(client, now)  # it repeats what it was taught
                continue
            else:
                announced = max(clock, known + 1)
            changed += self.awareness.apply([AwarenessEntry(client, announced, state)], now)
        effects += self._tell_awareness(changed, skip=member)
        self._teach(member, effects)
        if came_back:
            others = [client for client in self.awareness.states if client not in member._clocks]
            self.awareness.count_up(others)
            self._send_awareness(member, others, effects)
            for owner in {self._owners[client]: None for client in others}:
                self._teach(owner, effects)

    def _has_space(self, member: Member, client: int, state: str) -> bool:
        """Whether this state and those of the member's other ids are short enough.

        A state of less than an id's share always is, so that looking at the others costs little
        for each byte.
        """
        settings = self.settings
        share = settings.max_awareness_bytes // settings.max_awareness_clients
        if 4 * len(state) <= share:  # a character has four bytes at most
            return True
        others = [other for other in member._clocks if other != client]
        shown = [entry.state or "" for entry in self.awareness.entries(others)]
        return sum(len(text.encode()) for text in (state, *shown)) <= settings.max_awareness_bytes

    def _vouch(self, member: Member, entry: AwarenessEntry) -> bool:
        """Whether what a member says of an id counts. If so, it owns the id.

        An id belongs to the member that announced it first, until that one leaves. But clients
        also pass on what they heard of others (y-websocket sends every change of its awareness to
        the server), so an id which is not the first a member announced is held only until the
        member comes whose first it is; and who has left is brought back only by a higher clock, or
        by somebody who joined later and so was not told of it.
        """
        client, clock, state = entry
        owner = self._owners.get(client)
        if owner is member:
            last = member._clocks[client]
            counts = _MAX_CLOCK >= clock > last or (clock == last and state is None)
        else:
            known = self.awareness.clock(client)
            is_first = not member._clocks
            if owner is not None:
                may = is_first and next(iter(owner._clocks)) != client
            else:
                since = self.awareness.gone_since(client)
                may = clock > known or (is_first and (since is None or since < member.joined_at))
            counts = may and state is not None and self._may_own(member, clock)
            if not counts:
                self.counters.refused_awareness += clock > known
            elif owner is not None:
                del owner._clocks[client]
        if counts:
            self._owners[client] = member
            member._clocks[client] = clock
        return counts

    def _may_own(self, member: Member, clock: int) -> bool:
        """Whether a member may own one more id. Its first one it may, whatever the others have:
        nobody can keep it from being here."""
        if clock > _MAX_CLOCK or len(member._clocks) >= self.settings.max_awareness_clients:
            return False
        spare = self.settings.max_awareness_entries - self.settings.max_members
        return not member._clocks or len(self.awareness) < spare

    def _teach(self, member: Member, effects: list[Effect]) -> None:
        """Bring a member's own clock up to the room's, by one at a time.

        By more, its client might take an older state of its own for the newer one: it compares
        clocks only, and may have counted up since.
        """
        own = next(iter(member._clocks), None)
        if own is None or self.awareness.clock(own) <= member._clocks[own]:
            return
        for client, _, state in self.awareness.entries([own]):
            if state is not None and member not in self._stalled:
                entry = AwarenessEntry(client, member._clocks[client] + 1, state)
                lesson = AwarenessUpdate(encode_awareness([entry]))
                effects.append(Send(lesson.encode(), (member,)))

    def _tell_awareness(
        self, entries: list[AwarenessEntry], skip: Member | None = None
    ) -> list[Effect]:
        effects: list[Effect] = []
        if entries:
            frame = AwarenessUpdate(encode_awareness(entries)).encode()
            self._broadcast(frame, self._who_is_present(), skip, effects)
            if self.settings.tell_awareness:
                effects.append(AwarenessChanged(self, tuple(entries)))
        return effects

    def _send_all_awareness(self, member: Member, effects: list[Effect]) -> None:
        if len(self.awareness) > 0 and member not in self._stalled:
            changes, frame = self._everyone
            if changes != self.awareness.changes:
                frame = AwarenessUpdate(self.awareness.encode()).encode()
                self._everyone = self.awareness.changes, frame
            effects.append(Send(frame, (member,)))

    def _send_awareness(self, member: Member, clients: list[int], effects: list[Effect]) -> None:
        if member in self._stalled:
            return
        entries = self.awareness.entries(clients)
        if entries:
            effects.append(Send(AwarenessUpdate(encode_awareness(entries)).encode(), (member,)))

    def _broadcast(
        self, frame: bytes, to: tuple[Member, ...], skip: Member | None, effects: list[Effect]
    ) -> None:
        if to and to != (skip,):
            effects.append(Send(frame, to, skip))
