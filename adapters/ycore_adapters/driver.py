"""The driver: carries out the core's effects against a store and the members' connections.

Every transport shares it. A transport makes a `Connection` for each of its sockets, calls `join`,
`receive` and `leave`, and is called back to send, to close and to flush.

Each room has a queue of effects, carried out in order. Most can be carried out at once. One that
has to wait for the store (`Persist`, `Load`, `Unload`) starts a task which works through the queue
until it is empty, and what comes meanwhile lines up behind. So nothing is sent before what it shows
is stored, and while one append is under way, further updates gather and are stored in one go.

A store that fails is tried again for a while, in which its room stands still: what was accepted is
kept, nobody is shown any of it, and soon nobody is read any further. Then the room is given up.

When the store says that a room has outgrown its document, the room's state is written out in its
place (`_compact`), after it was checked that it decodes to the same state.

Sending only queues. At the end of each turn of the event loop (`_end_turn`) all that has come in it
is worked off, room by room: updates are stored in one go, what goes to the same members is given to
each of them in one go, and each connection that was sent something is asked to write it out. So
there is one write a member, whatever came together in that turn. A turn of a busy room ends later:
see `_is_to_wait`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from functools import partial
from inspect import isawaitable
from types import TracebackType
from typing import Final, Self, TypeAlias, TypeVar

import anyio
import anyio.abc

from ycore import (
    AwarenessChanged,
    Close,
    CloseCode,
    CustomMessage,
    Effect,
    Frame,
    Hub,
    Load,
    LocalProtocolError,
    Member,
    Persist,
    Probe,
    RemoteProtocolError,
    Room,
    Send,
    Settings,
    State,
    Unload,
)
from ycore.doc import Doc
from ycore.effects import EffectSteps
from ycore.messages import PermissionDenied
from ycore.steps import Steps
from ycore.updates import ParsedUpdate, parse_update_steps, parts_of

from ._document import DocumentClosed, open_document
from ._eventloop import EventLoop, event_loop
from ._files import within
from ._origins import check_origin
from ._turns import Party, Turns, Work
from .connection import Connection
from .hooks import Access, HookCalls, Hooks, Refused, Request, is_own_cancellation
from .stores import (
    RoomCorrupt,
    RoomNotFound,
    Store,
    StoredUpdate,
    StoreError,
    StoreUnavailable,
)

__all__ = ["Connection", "DocumentClosed", "Driver", "DriverSettings"]

logger = logging.getLogger(__name__)

_TICK: Final = 1.0
"""Seconds between looks at what is due, if the hub names no earlier time: deadlines that arise
meanwhile are noticed this late at worst."""
_LONG: Final = 16 * 1024
"""From how many bytes on a stored update is taken in step by step, and what is written to a member
waits for what is shorter."""
_LATE: Final = 0.01
"""For how many seconds what is short is done as it comes: reading, and then writing. In a turn that
has taken longer it waits for its turn like all else: many short messages are long work, and a
crowd's are one for each."""
_FLUSHED_AT_ONCE: Final = 32
"""After how many writes it is looked whether that took so long."""
_PATIENCE: Final = 0.001
"""For how many seconds a busy room waits for more to send in one go, and since when it must have
had something to do to be busy."""
_RETRY_FIRST: Final = 0.1
_RETRY_MOST: Final = 2.0
"""Seconds between two tries of a store that fails; each time twice as long, up to that."""
_UNSYNCED_LATE: Final = 10.0
"""How old in seconds an edit may get that is not synced, before that is a problem: it should be a
second or so."""
_SLOW: Final = 5.0
"""After how many seconds without an answer a store is said to fail."""
_COMPACT_AGAIN: Final = 60.0
"""Seconds until a compaction that failed is tried again: the disk may have been full."""
_DAMAGED: Final = "this document is damaged on the server's disk, and can only be read"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverSettings:
    """What can be set about the driver."""

    max_outbox_bytes: int = 4 * 2**20
    """How much may wait for one member's socket, besides the longest answer to itself, before the
    member is stalled. Bounds the memory a slow reader costs, and lets a fast one be a few round
    trips late."""

    max_backlog_bytes: int = 16 * 2**20
    """How much may wait in one room, for the store or behind what does, before its members are read
    no further."""

    store_patience: float = 20.0
    """For how many seconds a store that says it is unavailable is tried again. Meanwhile nothing is
    sent in that room; after half a minute of that y-websocket would drop its connections anyway.
    Then everyone in it is sent away (1013), and comes back with what could not be stored."""

    open_damaged: bool = False
    """Whether a room of which not everything can be read any more is opened with what can, for
    reading only. Otherwise who wants to join is sent away (1013) until it is repaired."""

    allowed_origins: frozenset[str] | None = None
    """From which web pages clients may come, such as "https://example.org"; None: from all.
    Browsers name the page in `Origin`, and send cookies whatever the page: set this if
    `Hooks.authorize` trusts cookies. Who sends no Origin is no browser, and is let pass."""

    authorize_timeout: float = 5.0
    """For how many seconds `Hooks.authorize` may think. Then the client is sent away (1013)."""

    def __post_init__(self) -> None:
        for origin in self.allowed_origins or ():
            check_origin(origin)


@dataclass(frozen=True, slots=True)
class _Release:
    """The hooks have caught up with a room that is to be unloaded."""

    unload: Unload


_Todo: TypeAlias = Effect | _Release

_CHANGES: Final = (Load, Unload, _Release)
"""What changes a room's state: nothing behind it may be begun before."""
_WAITS: Final = (Persist, *_CHANGES)
"""What has to wait for the store."""


class _Work:
    """What is still to be carried out in one room."""

    __slots__ = ("_progress", "added", "backlog", "effects", "seen", "since", "taken")

    def __init__(self, since: float) -> None:
        self.effects: list[_Todo] = []
        self.added = self.taken = 0
        """How many there have been, and how many were carried out."""
        self.backlog = 0
        """Bytes of updates and frames in them."""
        self.since = since
        """When the first came."""
        self.seen = 0
        """How many there had been at the end of a turn."""
        self._progress: anyio.Event | None = None
        """Set when some of it is done, if somebody waits for that."""

    def add(self, effects: Sequence[_Todo]) -> None:
        self.effects += effects
        self.added += len(effects)
        self.backlog += _size(effects)

    def take(self, count: int) -> list[_Todo]:
        """The first so many, which are to be carried out now."""
        taken = self.effects[:count]
        del self.effects[:count]
        self.taken += count
        self.backlog -= _size(taken)
        return taken

    async def progress(self) -> None:
        """Wait until some of it is done."""
        if self._progress is None:
            self._progress = anyio.Event()
        await self._progress.wait()

    def progressed(self) -> None:
        if self._progress is not None:
            self._progress.set()
            self._progress = None


class _Deletion:
    """What becomes of a room that is being deleted."""

    __slots__ = ("ended", "error")

    def __init__(self) -> None:
        self.ended = anyio.Event()
        self.error: Exception | None = LocalProtocolError("the driver has ended")
        """Why it was not deleted; None if it was."""


def _size(effects: Sequence[_Todo]) -> int:
    size = 0
    for effect in effects:
        if isinstance(effect, Send):
            size += len(effect.frame)
        elif isinstance(effect, Persist):
            size += len(effect.update)
    return size


def _party(member: Member) -> Party:
    """On whose account what is done for a member goes."""
    connection = member.link
    return None if connection is None else connection.address, member.room.name


class _Who:
    """Somebody in the log; put into words only if that is written."""

    __slots__ = ("_connection", "_room")

    def __init__(self, room: str, connection: Connection) -> None:
        self._room = room
        self._connection = connection

    def __str__(self) -> str:
        request = self._connection.request
        return f"room={self._room!r} address={None if request is None else request.address}"


def _load_steps(room: Room, update: bytes) -> Generator[None, None, None]:
    """Have a room load a stored update. Pauses at least once; stops if the room is closed."""
    parts: Iterable[bytes | ParsedUpdate] = (update,)
    if len(update) >= _LONG:
        parts = parts_of((yield from parse_update_steps(update)))
    for part in parts:
        if room.state is not State.LOADING:
            return
        room.load(part)
        yield


class Driver:
    """Runs a hub. An async context manager: use it only inside.

    Args:
        store: an open store. The driver does not close it.
        settings, limits: of the rooms, and of the driver itself. Unless `Settings.max_rooms` was
            set, there are no more rooms than the open files suffice for that the system allows.
        hooks: the application's.
        clock: monotonic seconds.
        wall_clock: seconds since 1970, for what is stored.
    """

    def __init__(
        self,
        store: Store,
        *,
        settings: Settings | None = None,
        limits: DriverSettings | None = None,
        hooks: Hooks | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.hooks = hooks or Hooks()
        tells = self.hooks.on_awareness is not None
        self.hub = Hub(replace(within(settings or Settings()), tell_awareness=tells))
        self.limits = limits or DriverSettings()
        self.clock = clock
        self.hook_errors: Counter[str] = Counter()
        """By hook, how often it raised."""
        self._store = store
        self._wall_clock = wall_clock
        self._work: dict[Room, _Work] = {}
        self._problems: dict[Room, str] = {}
        """What the store said last, for rooms that wait for it."""
        self._asked: dict[Room, float] = {}
        """Rooms that wait for the store, and since when for its next answer."""
        self._compacting: dict[Room, anyio.Event] = {}
        """Rooms that are being compacted, with what is set at the end of that."""
        self._compact_at: dict[Room, float] = {}
        """Rooms whose compaction failed, and when it is to be tried again."""
        self._deleting: dict[str, _Deletion] = {}
        """Rooms that are being deleted."""
        self._draining = False
        self._fresh: list[tuple[Room, _Work]] = []
        """Rooms that have got something to do in this turn."""
        self._dirty: list[Connection] = []
        """Connections that were sent something in this turn."""
        self._turn_ends = False
        """Whether the end of this turn is under way."""
        self._turn_began = 0.0
        """When the first came of what is to be done at the end of it."""
        self._worked_off: dict[Room, float] = {}
        """When a room last had something to do; of long ago not kept."""
        self._untaken: dict[Member, anyio.Event] = {}
        """Members that something waits for until they have taken what they were sent."""
        self.turns = Turns(clock)
        self._is_over = False
        self._stack = AsyncExitStack()
        self._tasks: anyio.abc.TaskGroup
        self._calls: HookCalls
        self._loop: EventLoop

    async def __aenter__(self) -> Self:
        self._tasks = await self._stack.enter_async_context(anyio.create_task_group())
        self._stack.callback(self._tasks.cancel_scope.cancel)
        self._calls = HookCalls(self._tasks, self.hook_errors)
        self._loop = event_loop(self._tasks)
        self._tasks.start_soon(self.turns.run)
        self._tasks.start_soon(self._tick)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._stack.__aexit__(exc_type, exc, traceback)
        finally:
            self._is_over = True
            self.turns.stop()
            for work in self._work.values():  # nobody does it any more, nor shall wait for it
                work.progressed()
            for deletion in self._deleting.values():
                deletion.ended.set()
            self._work.clear()
            self._deleting.clear()
            self._fresh.clear()

    # -- for transports

    async def authorize(self, request: Request) -> Access | Refused:
        """Find out what somebody may do who asks to be let in."""
        origin = request.header("origin")
        allowed = self.limits.allowed_origins
        if allowed is not None and origin is not None and origin not in allowed:
            return Refused(f"pages of {origin} may not connect here")
        if self.hooks.authorize is None:
            return Access()
        try:
            with anyio.fail_after(self.limits.authorize_timeout):
                access = self.hooks.authorize(request)
                access = await access if isawaitable(access) else access
            if isinstance(access, Access):
                return access
            raise TypeError(f"authorize must return an Access, not {access!r}")
        except Refused as refused:
            return refused
        except TimeoutError:
            code, reason = CloseCode.TRY_AGAIN_LATER, "it took too long to find out who you are"
            logger.error("hook takes too long name=authorize")
        except (Exception, anyio.get_cancelled_exc_class()) as exc:
            if is_own_cancellation(exc):
                raise
            code, reason = CloseCode.INTERNAL_ERROR, "the server could not find out who you are"
            logger.exception("hook failed name=authorize")
        self.hook_errors["authorize"] += 1
        return Refused(reason, code)

    def admit(
        self, request: Request, access: Access | Refused, connection: Connection
    ) -> Member | None:
        """A connection was accepted, and `authorize` has said what it may do: let it join, or tell
        it why not, which gives None. Nobody may once `drain` was called.
        """
        connection.request = request
        if self._draining:
            access = Refused("the server is shutting down", CloseCode.GOING_AWAY)
        if isinstance(access, Access):
            connection.access = access
            room = request.room if access.room is None else access.room
            return self.join(room, connection, read_only=access.read_only)
        who = _Who(request.room, connection)
        logger.info("refused %s code=%d reason=%r", who, access.code, access.reason)
        if access.is_final:
            connection.send((PermissionDenied(access.reason).encode(),))
        connection.close(access.code, access.reason)
        return None

    def join(self, room: str, connection: Connection, *, read_only: bool = False) -> Member:
        """A connection was accepted into a room, by whoever has no requests to `admit`.

        Raises:
            LocalProtocolError: `drain` was called: what is being stored must not be loaded again.
        """
        if self._draining:
            raise LocalProtocolError("the driver drains: nobody can join any more")
        now = self.clock()
        if room in self._deleting:
            nowhere = Room(room, settings=self.hub.settings)
            reason = "the document is being deleted, try again later"
            member, effects = nowhere.refuse(CloseCode.TRY_AGAIN_LATER, reason, now=now)
        else:
            member, effects = self.hub.join(room, now=now, read_only=read_only)
        member.link = connection
        if not any(isinstance(effect, Close) for effect in effects):
            logger.info("joined %s read_only=%s", _Who(room, connection), read_only)
        while effects and isinstance(unload := effects[0], Unload):  # another room gives way
            self._carry_out(unload.room, [unload])
            del effects[0]
        self._carry_out(member.room, effects)
        return member

    def receive_now(self, member: Member, data: bytes) -> Frame | None:
        """A WebSocket message came from a member: take it in at once, if nothing has to be waited
        for. Otherwise returns what is left to be done of it, for `receive`.
        """
        frame = Frame(data)
        room = member.room
        work = self._work.get(room)
        if (
            (work is not None and work.backlog > self.limits.max_backlog_bytes)
            or room.state is State.LOADING
            or self._calls.is_far_behind(room, self.limits.max_backlog_bytes)
        ):
            return frame
        if effects := room.receive(member, frame, now=self.clock()):
            self._carry_out(room, effects)
        return None if frame.done else frame

    async def receive(
        self, member: Member, message: bytes | Frame, *, throttled: bool = True
    ) -> None:
        """A WebSocket message came from a member. Returns when the next may be read.

        Args:
            message: or what `receive_now` has left of it.
            throttled: whether to wait for the store and the hooks if they are far behind. A hook
                that does would wait for itself.
        """
        room = member.room
        while room.state is State.LOADING and room in self._work:
            await self._work[room].progress()
        frame = message if isinstance(message, Frame) else Frame(message)
        work: Work | None = None
        while True:
            if work is not None:
                work.begin()
            self._carry_out(room, room.receive(member, frame, now=self.clock()))
            if work is not None:
                work.end()
            if throttled:
                await self._keep_up(room)
            if frame.done:
                if work is not None:
                    work.over()
                return
            if frame.has_more:
                await self._taken(member)
            if work is None:  # most messages take one step
                work = Work(self.turns, _party(member))
            await work.pause()

    async def _keep_up(self, room: Room) -> None:
        while (work := self._work.get(room)) and work.backlog > self.limits.max_backlog_bytes:
            await work.progress()
        await self._calls.caught_up(room, self.limits.max_backlog_bytes)

    def take(self, member: Member, frame: bytes) -> None:
        """`receive` for what comes from this process itself: all of it at once."""
        self._carry_out(member.room, member.room.receive(member, frame, now=self.clock()))

    def leave(self, member: Member) -> None:
        """A member's connection is gone."""
        connection, member.link = member.link, None
        self.lost(member)
        self._carry_out(member.room, member.room.leave(member, now=self.clock()))
        if connection is not None:  # otherwise it was sent away before
            logger.info("left %s", _Who(member.room.name, connection))

    def is_late(self, now: float) -> bool:
        """Whether so much was done in this turn, which the first who asks begins, that what is
        short has to wait as well."""
        if not self._turn_ends:
            self._end_turn_soon()
            return False
        return now > self._turn_began + _LATE

    def flush_soon(self, connection: Connection) -> None:
        """Have `connection.flush` called at the end of this turn of the event loop."""
        self._dirty.append(connection)
        if not self._turn_ends:
            self._end_turn_soon()

    def drained(self, member: Member) -> None:
        """Nothing waits for this member's socket any more."""
        self.lost(member)
        room = member.room
        if room.is_stalled(member):
            steps = room.resume_steps(member)
            try:
                effects = next(steps)
            except StopIteration as stop:  # it was not much
                self._carry_out(room, stop.value)
            else:
                self._carry_out(room, effects or [])
                self._tasks.start_soon(self._bring_level, member, steps, effects is not None)

    def lost(self, member: Member) -> None:
        """What waited for this member's socket never will be taken: nobody waits for that."""
        if (taken := self._untaken.pop(member, None)) is not None:
            taken.set()

    async def _bring_level(self, member: Member, steps: EffectSteps, has_more: bool) -> None:
        """Go on with what brings a member level."""
        work = Work(self.turns, _party(member))
        try:
            while True:
                if has_more:
                    await self._taken(member)
                await work.pause()
                if member.link is None:
                    return
                work.begin()
                effects = next(steps)
                self._carry_out(member.room, effects or [])
                work.end()
                has_more = effects is not None
        except StopIteration as stop:
            self._carry_out(member.room, stop.value)
            work.end()
            work.over()
        except Exception:  # a bug: it costs this member, nobody else
            logger.exception("resume failed room=%r", member.room.name)
            self.dismiss(member, CloseCode.INTERNAL_ERROR, "something went wrong on the server")

    async def _taken(self, member: Member) -> None:
        """Wait until a member has taken what it was sent. One that takes too long is sent away."""
        connection = member.link
        if connection is None:
            return
        if connection.waiting:
            connection.flush()
        timeout = self.hub.settings.stall_timeout
        with anyio.move_on_after(timeout) as scope:
            while connection.waiting and member.link is connection:
                if member not in self._untaken:
                    self._untaken[member] = anyio.Event()
                await self._untaken[member].wait()
        if scope.cancelled_caught:
            self.dismiss(member, CloseCode.TRY_AGAIN_LATER, f"too slow for {timeout:g} s")

    # -- for applications

    def document(self, room: str) -> AbstractAsyncContextManager[Doc]:
        """A room's document, to edit and to follow here: in `async with driver.document(room) as
        doc`. What others do shows in it, and each of its transactions is checked, stored and sent
        to the others like anyone's edit. Leaving waits until its edits are stored.

        Raises:
            DocumentClosed: from an edit, the room refuses it; from the `async with`, the room's
                store failed, or the server goes down. What is under way in it is cancelled then.
            LocalProtocolError: `drain` was called.
        """
        return open_document(self, self._tasks, room)

    async def stored(self, room: str) -> None:
        """Wait until all edits that a room has taken in up to now are stored, or it was given up
        (see `problems`)."""
        open_room = self.hub.rooms.get(room)
        work = None if open_room is None else self._work.get(open_room)
        if open_room is not None and work is not None:
            until = work.added
            while work.taken < until and self._work.get(open_room) is work:
                await work.progress()

    async def delete(self, room: str) -> None:
        """Delete a room for good: store what it has taken in, send everyone in it away (4410), and
        have the store forget it and all its history. Who wants to join meanwhile is sent away
        (1013); who joins after it finds a new document. Cancelling this only ends the waiting.

        Whoever has the document brings it back with their next connection: with 4410 our clients,
        and y-websocket from 3.1 on, make none by themselves, but older ones do, and so does a page
        opened anew that has a copy (y-indexeddb). If it has to stay deleted, note that before, and
        refuse them in `Hooks.authorize`.

        Raises:
            RoomNotFound: the store has nothing of it.
            StoreUnavailable: it was not deleted. Try again.
            LocalProtocolError: `drain` was called.
        """
        while (earlier := self._deleting.get(room)) is not None:
            await earlier.ended.wait()
        if self._draining or self._is_over:
            raise LocalProtocolError("the driver drains: nothing can be deleted any more")
        deletion = self._deleting[room] = _Deletion()
        self._tasks.start_soon(self._delete, room, deletion)
        await deletion.ended.wait()
        if deletion.error is not None:
            raise deletion.error

    async def _delete(self, name: str, deletion: _Deletion) -> None:
        try:
            if (room := self.hub.rooms.get(name)) is not None:
                reason, now = "the document was deleted", self.clock()
                self._carry_out(room, self.hub.close(room, CloseCode.DELETED, reason, now=now))
            await self._at_rest(name)
            await self._store.release(name)
            await self._store.delete(name)
            deletion.error = None
        except Exception as exc:
            deletion.error = exc
        finally:
            del self._deleting[name]
            deletion.ended.set()

    async def _at_rest(self, name: str) -> None:
        """Wait until nothing more is done in rooms of that name, all of which are closed."""
        while True:
            for room, work in self._work.items():
                if room.name == name:
                    await work.progress()
                    break
            else:
                for room, compacted in self._compacting.items():
                    if room.name == name:
                        await compacted.wait()
                        break
                else:
                    return

    def dismiss(self, member: Member, code: int, reason: str) -> None:
        """Send a member away: it may no longer be here, say. Does nothing if it has left."""
        now = self.clock()
        self._carry_out(member.room, member.room.dismiss(member, code, reason, now=now))

    def send_custom(
        self, room: str, type_: int, payload: bytes, *, to: Member | None = None
    ) -> None:
        """Send a message of the application's own to one member of a room, or to all. Does nothing
        if the room is not in use.

        Raises:
            LocalProtocolError: the type is not in `Settings.custom_types`.
        """
        if (open_room := self.hub.rooms.get(room)) is not None:
            self._carry_out(open_room, open_room.send_custom(type_, payload, to=to))

    def problems(self) -> dict[str, str]:
        """What is wrong with the storing of rooms at the moment, by name: for operators."""
        problems = dict(self._store.problems())
        for room, since in self._asked.items():
            if (seconds := self.clock() - since) >= _SLOW:
                problems[room.name] = f"the store has not answered for {seconds:.0f} s"
        problems.update((room.name, problem) for room, problem in self._problems.items())
        return problems

    def health(self) -> str | None:
        """What is wrong, in words that tell nobody the names of rooms; None if nothing is."""
        if failing := len(self.problems()):
            return f"rooms that can't be stored at the moment: {failing}"
        if (age := self.unsynced()) > _UNSYNCED_LATE:
            return f"the disk does not keep up: oldest unsynced edit: {age:.1f} s"
        return None

    def unsynced(self) -> float:
        """How old the oldest edit is that is stored and not synced yet, in seconds; 0 if there is
        none, or the store promises no syncing."""
        return self._store.unsynced()

    async def drain(self) -> None:
        """Store what was accepted, then send everyone away (1001): the server goes down."""
        self._draining = True
        now = self.clock()
        rooms = tuple(self.hub.rooms.values())
        for room in rooms:
            reason = "the server is shutting down"
            self._carry_out(room, self.hub.close(room, CloseCode.GOING_AWAY, reason, now=now))
        while self._work:
            await next(iter(self._work.values())).progress()
        for room in rooms:
            self._calls.soon(room, "before_unload", self.hooks.before_unload, room)
        for room in rooms:
            await self._calls.caught_up(room)

    # -- effects

    def _carry_out(self, room: Room, effects: Sequence[_Todo]) -> None:
        work = self._work.get(room)
        if work is None:
            for i, effect in enumerate(effects):
                if isinstance(effect, _WAITS):
                    if self._is_over:
                        raise LocalProtocolError("the driver has ended: nothing can be stored")
                    work = self._work[room] = _Work(self.clock())
                    self._fresh.append((room, work))
                    self._end_turn_soon()
                    self._do(effects[:i])
                    effects = effects[i:]
                    break
            else:
                self._do(effects)
                return
        work.add(effects)

    def _work_now(self, room: Room, work: _Work) -> bool:
        """Work through the queue if nothing in it has to be waited for. Returns whether it did."""
        while work.effects:
            count, updates = self._batch(work)
            if not count:
                return False
            try:
                if updates and not self._store.append_now(room.name, updates):
                    return False
            except Exception:
                return False  # `_work_through` comes upon it as well, and knows what to do
            self._stored(room, work, count, updates)
        del self._work[room]
        work.progressed()
        return True

    async def _work_through(self, room: Room, work: _Work, failed: Exception | None = None) -> None:
        try:
            if failed is not None:
                raise failed
            while work.effects:
                effect = work.effects[0]
                if isinstance(effect, _CHANGES):
                    work.take(1)
                    if isinstance(effect, Load):
                        await self._load(room)
                    elif isinstance(effect, _Release):
                        await self._release(effect.unload)
                    else:
                        await self._unload(effect)
                else:
                    await self._persist(room, work)
                work.progressed()
        except Exception as exc:  # whatever a store may raise costs this room its members, no more
            await self._give_up(room, work, exc)
        finally:
            self._work.pop(room, None)
            work.progressed()

    async def _persist(self, room: Room, work: _Work) -> None:
        """Store all updates that wait, and send them."""
        count, updates = self._batch(work)
        if updates:
            await self._patiently(room, lambda: self._store.append(room.name, updates))
        self._stored(room, work, count, updates)

    def _batch(self, work: _Work) -> tuple[int, list[StoredUpdate]]:
        """The updates that wait, up to a change of the room's state, and how many effects it are
        with what is between them."""
        count = 0
        now = self._wall_clock()
        updates = []
        for effect in work.effects:
            if isinstance(effect, Persist):
                metadata = b"" if self.hooks.metadata is None else self._metadata_of(effect.author)
                updates.append(StoredUpdate(effect.update, now, metadata))
            elif isinstance(effect, _CHANGES):
                break
            count += 1
        return count, updates

    def _stored(self, room: Room, work: _Work, count: int, updates: list[StoredUpdate]) -> None:
        """So many effects can be carried out, now that their updates are stored."""
        self._do(work.take(count))
        if updates and self._store.outgrown(room.name) and room not in self._compact_at:
            self._compact_soon(room)

    def _compact_soon(self, room: Room) -> None:
        if room not in self._compacting:
            self._compacting[room] = anyio.Event()
            self._tasks.start_soon(self._compact, room)

    def _metadata_of(self, author: Member) -> bytes:
        assert self.hooks.metadata is not None
        try:
            return self.hooks.metadata(author)
        except Exception:  # no reason to lose an edit
            self.hook_errors["metadata"] += 1
            logger.exception("hook failed name=metadata")
            return b""

    async def _patiently(self, room: Room, do: Callable[[], Awaitable[None]]) -> None:
        """Have the store do something, again and again while it is unavailable, for a while."""
        wait = _RETRY_FIRST
        give_up_at = self.clock() + self.limits.store_patience
        try:
            while True:
                try:
                    await self._ask(room, do)
                    break
                except StoreUnavailable as exc:
                    if self.clock() >= give_up_at:
                        raise
                    if room not in self._problems:
                        logger.error("store fails room=%r error=%r", room.name, str(exc))
                    self._problems[room] = str(exc)
                await anyio.sleep(wait)
                wait = min(2 * wait, _RETRY_MOST)
            if room in self._problems:
                logger.warning("store works again room=%r", room.name)
        finally:
            self._problems.pop(room, None)

    async def _ask(self, room: Room, do: Callable[[], Awaitable[None]]) -> None:
        """Have the store do something, and note since when it has not answered."""
        self._asked[room] = self.clock()
        try:
            await do()
        finally:
            del self._asked[room]

    async def _load(self, room: Room) -> None:
        damage = None
        work = Work(self.turns, _party(room.members[0]) if room.members else (None, room.name))
        try:
            async with aclosing(self._store.load(room.name)) as updates:
                async for update in updates:
                    try:
                        work.begin()
                        for _ in _load_steps(room, update.update):
                            work.end()
                            await work.pause()
                            work.begin()
                        work.end()
                    except RemoteProtocolError as exc:
                        damage = RoomCorrupt(f"a stored update is malformed: {exc}")
                    if room.state is not State.LOADING:
                        return  # closed meanwhile
        except RoomNotFound:
            await self._seed(room)
        except RoomCorrupt as exc:
            damage = exc
        if damage is not None:
            if not self.limits.open_damaged:
                raise damage
            logger.error("damaged, opened read-only room=%r error=%r", room.name, str(damage))
        if room.state is State.LOADING:
            read_only = None if damage is None else _DAMAGED
            self._work[room].add(room.opened(now=self.clock(), read_only=read_only))

    async def _seed(self, room: Room) -> None:
        """Have the application fill in a new document, and store that before anyone sees it."""
        if self.hooks.seed is None:
            return
        doc = Doc(0)
        try:
            seeding = self.hooks.seed(room.name, doc)
            if isawaitable(seeding):
                await seeding
            update = doc.seeded()
        except (Exception, anyio.get_cancelled_exc_class()) as exc:
            if is_own_cancellation(exc):
                raise
            self.hook_errors["seed"] += 1
            logger.exception("hook failed name=seed")
            raise StoreError(f"the new document could not be filled in: {exc!r}") from exc
        if doc.store.size:
            stored = StoredUpdate(update, self._wall_clock())
            await self._patiently(room, lambda: self._store.append(room.name, [stored]))
            if room.state is State.LOADING:
                room.load(update)

    async def _unload(self, effect: Unload) -> None:
        room = effect.room
        self._calls.soon(room, "before_unload", self.hooks.before_unload, room)
        if self._calls.is_behind(room):
            # Somebody may come back before the hooks have caught up, and needs the room.
            self._tasks.start_soon(self._release_after_hooks, effect)
        else:
            await self._release(effect)

    async def _release_after_hooks(self, effect: Unload) -> None:
        room = effect.room
        await self._calls.caught_up(room)
        if self.hub.rooms.get(room.name) is room:
            self._carry_out(room, [_Release(effect)])

    async def _release(self, effect: Unload) -> None:
        room = effect.room
        if room.joins != effect.generation:
            return  # somebody came back
        while room in self._compacting:
            await self._compacting[room].wait()
        self._compact_at.pop(room, None)
        await self._patiently(room, lambda: self._store.release(room.name))
        self.hub.unloaded(room, effect.generation, now=self.clock())

    async def _compact(self, room: Room) -> None:
        async def snapshot() -> StoredUpdate:
            # What the room holds is all that is stored, but only as long as it is the open one.
            if self.hub.rooms.get(room.name) is not room:
                raise StoreError("the room was closed meanwhile")
            update = await self.in_slices(room.store.snapshot_steps(), room.name)
            return StoredUpdate(update, self._wall_clock())

        is_done = False
        try:
            await self._store.compact(room.name, snapshot)
            is_done = True
        except StoreError as exc:
            logger.warning("compaction failed room=%r error=%r", room.name, str(exc))
        except Exception:
            logger.exception("compaction failed room=%r", room.name)
        finally:
            self._compacting.pop(room).set()
        if not is_done and self.hub.rooms.get(room.name) is room:
            self._compact_at[room] = self.clock() + _COMPACT_AGAIN

    async def in_slices(self, steps: Steps[T], room: str | None = None) -> T:
        """Do something long for a room, and let others have their turns."""
        work = Work(self.turns, (None, room))
        while True:
            work.begin()
            try:
                next(steps)
            except StopIteration as stop:
                work.end()
                work.over()
                result: T = stop.value
                return result
            work.end()
            await work.pause()

    async def _give_up(self, room: Room, work: _Work, exc: Exception) -> None:
        """The store failed. Nobody may see what it did not take, so the room goes: its members
        come back with their edits, and it is loaded anew. Of what waits, only those who are out
        already still have to be told."""
        logger.error(
            "store failed room=%r members=%d error=%r",
            room.name,
            len(room.members),
            str(exc),
            exc_info=None if isinstance(exc, StoreError) else exc,
        )
        try:
            await self._store.release(room.name)
        except Exception as release_exc:
            logger.error("release failed room=%r error=%r", room.name, str(release_exc))
        left: list[Effect] = [effect for effect in work.effects if isinstance(effect, Close)]
        work.effects.clear()
        reason = "the document's store failed, try again later"
        self._do(left + self.hub.close(room, CloseCode.TRY_AGAIN_LATER, reason, now=self.clock()))

    def _do(self, effects: Sequence[_Todo]) -> None:
        """Carry out effects whose updates are stored."""
        burst: list[Send] = []
        for effect in effects:
            if isinstance(effect, Send):
                if burst and effect.to is not burst[0].to:
                    self._send(burst)
                    burst = []
                burst.append(effect)
            elif isinstance(effect, Persist):
                if (hook := self.hooks.on_update) is not None:
                    update, author = effect.update, effect.author
                    args = author.room, update, author
                    self._calls.soon(author.room, "on_update", hook, *args, size=len(update))
            else:
                if burst:
                    self._send(burst)
                    burst = []
                self._do_rarer(effect)
        if burst:
            self._send(burst)

    def _send(self, burst: list[Send]) -> None:
        """Send frames that are for the same members, but for their authors."""
        frames = tuple([send.frame for send in burst])
        size = sum(map(len, frames))
        alone = len(burst[0].to) == 1
        authors: dict[Member, list[int]] = {}
        for i, send in enumerate(burst):
            if send.skip is not None:
                authors.setdefault(send.skip, []).append(i)
        for member in burst[0].to:
            connection = member.link
            if connection is None:
                continue
            if not connection.waiting:
                connection.answer = 0
            if alone and size > connection.answer:
                connection.answer = size
            overflows = connection.waiting and connection.waiting + size > self._most(connection)
            own = authors.get(member)
            if own is None:
                connection.send(frames)
            elif len(own) < len(frames):
                connection.send(frames, own)
            if overflows:
                self._overflowed(member, connection)

    def _do_rarer(self, effect: _Todo) -> None:
        if isinstance(effect, Close):
            connection = effect.member.link
            if connection is not None:
                effect.member.link = None
                self.lost(effect.member)
                connection.close(effect.code, effect.reason)
                who = _Who(effect.member.room.name, connection)
                logger.info("sent away %s code=%d reason=%r", who, effect.code, effect.reason)
        elif isinstance(effect, Probe):
            connection = effect.member.link
            if connection is not None:
                connection.probe()
        elif isinstance(effect, CustomMessage):
            self._calls.soon(
                effect.member.room,
                "on_custom",
                self.hooks.on_custom,
                effect,
                size=len(effect.payload),
            )
        elif isinstance(effect, AwarenessChanged):
            on_awareness = self.hooks.on_awareness
            size = sum(len(entry.state or "") for entry in effect.entries)
            self._calls.soon(
                effect.room, "on_awareness", on_awareness, effect.room, effect.entries, size=size
            )

    def _overflowed(self, member: Member, connection: Connection) -> None:
        connection.flush()  # perhaps nothing is wrong but that much came in this one turn
        if connection.waiting > self._most(connection):
            member.room.stall(member, now=self.clock())

    def _most(self, connection: Connection) -> int:
        """How much may wait for a member. What brings it level may be long every time: all deletes
        are in it, and all structs that follow a hole. Were the member stalled for that, it would be
        sent the same again as soon as it has taken it, and so on for ever."""
        return self.limits.max_outbox_bytes + connection.answer

    # -- the end of a turn

    def _end_turn_soon(self) -> None:
        if not self._turn_ends:
            self._turn_ends = True
            self._turn_began = self.clock()
            self._loop.soon(self._end_turn)

    def _end_turn(self) -> None:
        fresh, self._fresh = self._fresh, []
        now = self.clock()
        for room, work in fresh:
            if self._is_to_wait(room, work, now):
                self._fresh.append((room, work))
                continue
            failed = None
            try:
                if self._work_now(room, work):
                    continue
            except Exception as exc:  # a bug: it costs this room its members, no more
                failed = exc
            self._tasks.start_soon(self._work_through, room, work, failed)
        self._flush_dirty(now + _LATE)
        now = self.clock()
        for room, _ in fresh:
            self._worked_off[room] = now
        self._turn_ends = False
        if self._fresh or self._dirty:
            self._end_turn_soon()

    def _is_to_wait(self, room: Room, work: _Work, now: float) -> bool:
        """Whether more is coming in a busy room, and so it pays to wait for the next turn: a write
        to each member costs more than all else, however much is written. In a calm room nothing
        waits."""
        if now > work.since + _PATIENCE or now > self._worked_off.get(room, 0.0) + _PATIENCE:
            return False
        seen, work.seen = work.seen, work.added
        return seen < work.added

    def _flush_dirty(self, until: float) -> None:
        """Write out what is short, as far as there is time in this turn. The rest waits for turns:
        many may be sent something, or much."""
        dirty, self._dirty = self._dirty, []
        is_late = False
        for turn, connection in enumerate(dirty, 1):
            if is_late or connection.waiting > _LONG:
                self.turns.queue((connection.address, None), partial(self._flush, connection))
                continue
            try:
                connection.flush()
            except Exception:  # a bug: it costs this connection's member, nobody else
                logger.exception("flush failed")
            if not turn % _FLUSHED_AT_ONCE:
                is_late = self.clock() > until

    def _flush(self, connection: Connection) -> None:
        try:
            connection.flush()
        except Exception:  # as above
            logger.exception("flush failed")

    # -- time
    # A task that waits, perhaps for long, holds no room or connection in a variable.

    def _do_what_is_due(self) -> None:
        now = self.clock()
        self._worked_off = {
            room: then for room, then in self._worked_off.items() if now <= then + _PATIENCE
        }
        for room, effects in self.hub.handle_timeout(now=now):
            self._carry_out(room, effects)
        for room in [room for room, again in self._compact_at.items() if now >= again]:
            del self._compact_at[room]
            if self.hub.rooms.get(room.name) is room:
                self._compact_soon(room)

    async def _tick(self) -> None:
        while True:
            due = self.hub.next_timeout()
            wait = _TICK if due is None else min(_TICK, max(0.1, due - self.clock()))
            await anyio.sleep(wait)
            try:
                self._do_what_is_due()
            except Exception:  # a bug: what is due is late, and everything else goes on
                logger.exception("tick failed")
