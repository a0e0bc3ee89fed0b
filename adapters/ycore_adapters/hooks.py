"""The application's say: who may come in, what a new document holds, and what it hears of rooms.

The driver calls these hooks, so they are the same whichever transport a member came by. Each may be
sync or async. None of them can hurt a room: an exception is logged and counted
(`Driver.hook_errors`), and has the careful outcome: nobody is let in, no document is made.

What a room's hooks are told comes in order, one call at a time, after it was stored, and does not
hold up the room; but if they fall far behind, its members are read no further (`HookCalls`).
"""

from __future__ import annotations

import logging
from asyncio import CancelledError, current_task
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from inspect import isawaitable
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar
from urllib.parse import parse_qsl

import anyio
import anyio.abc

from ycore import AwarenessEntry, CloseCode, CustomMessage, Member, Room
from ycore.doc import Doc

logger = logging.getLogger(__name__)

T = TypeVar("T")
MaybeAsync: TypeAlias = T | Awaitable[T]


@dataclass(frozen=True, slots=True)
class Request:
    """A WebSocket wants to be opened."""

    room: str
    """From the path: without the prefix, percent-decoded."""
    path: str
    """As it was sent, without the query."""
    query: str = ""
    """As it was sent, without the question mark."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """Names in lower case."""
    address: str | None = None
    """Where it comes from: an IP address, None if it has none. Behind a proxy, the proxy's."""
    scope: Mapping[str, Any] | None = None
    """Under ASGI its scope, with what middleware has put there (user, session); else None."""

    @property
    def params(self) -> dict[str, str]:
        """The query, decoded. Of what occurs twice, the last."""
        return dict(parse_qsl(self.query, keep_blank_values=True))

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies, decoded. None if they are malformed."""
        try:
            cookies = SimpleCookie(self.header("cookie") or "")
        except CookieError:
            return {}
        return {name: morsel.value for name, morsel in cookies.items()}

    @property
    def subprotocols(self) -> tuple[str, ...]:
        """Those offered, in order of preference."""
        offered = (self.header("sec-websocket-protocol") or "").split(",")
        return tuple(stripped for name in offered if (stripped := name.strip()))

    def subprotocol_for(self, access: Access | Refused) -> str | None:
        """Which is selected: browsers fail the connection if none of those offered is, and every
        client does if another one is."""
        chosen = access.subprotocol if isinstance(access, Access) else None
        if chosen is None:
            return next(iter(self.subprotocols), None)
        return chosen if chosen in self.subprotocols else None

    def header(self, name: str) -> str | None:
        """A header's value; of a header on several lines, all, joined by commas."""
        wanted = name.lower().encode("latin-1")
        values = [value.decode("latin-1") for found, value in self.headers if found == wanted]
        return ", ".join(values) if values else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What somebody may do who was let in."""

    read_only: bool = False
    """Whether edits are refused."""
    room: str | None = None
    """Another room than `Request.room`: one for each tenant, say."""
    subprotocol: str | None = None
    """Which is selected, if it was offered; None: the first that was. Browsers can send no headers,
    and some applications offer a token as a subprotocol, which must not be the one selected."""
    data: Any = None
    """Yours: who it is, say. To be found at `member.link.access.data`."""


class Refused(Exception):
    """For `Hooks.authorize` to raise: somebody may not come in.

    Args:
        reason: for people. The client is told it in a PermissionDenied message.
        code: to close the connection with. From 4400 to 4499 y-websocket 3.1 does not come back,
            with any other it does, and gets no PermissionDenied.
    """

    def __init__(self, reason: str, code: int = CloseCode.FORBIDDEN) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code

    @property
    def is_final(self) -> bool:
        """Whether there is no point in asking again."""
        return 4400 <= self.code <= 4499


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What the application wants to decide or to hear. Leave out what you don't need."""

    authorize: Callable[[Request], MaybeAsync[Access]] | None = None
    """Who may come in: returns what they may do, or raises `Refused`. Without it, everyone may do
    everything. Any other exception refuses as well, but the client comes back (1011)."""

    seed: Callable[[str, Doc], MaybeAsync[None]] | None = None
    """Fills in a document that the store does not know, given its room's name. Called once: the
    result is stored before anyone sees it. Its client id follows from what is in it, so that
    servers that seed the same make the same document, not two in one. If it raises, nobody gets in,
    and nothing is stored."""

    on_update: Callable[[Room, bytes, Member], MaybeAsync[None]] | None = None
    """Told of each update that was stored, and whose it was."""

    on_awareness: Callable[[Room, Sequence[AwarenessEntry]], MaybeAsync[None]] | None = None
    """Told who came, changed what they show, or went."""

    on_custom: Callable[[CustomMessage], MaybeAsync[None]] | None = None
    """Told of each message of a type in `Settings.custom_types`. `Driver.send_custom` answers."""

    before_unload: Callable[[Room], MaybeAsync[None]] | None = None
    """Told that a room is idle, or that the server goes down; `room.store` still has the document.
    Somebody may come back meanwhile: then the room stays, and this is called again later."""

    metadata: Callable[[Member], bytes] | None = None
    """Makes what is stored beside each update, given its author. Not async: edits wait for it."""


def is_own_cancellation(exc: BaseException) -> bool:
    """Whether this task is being cancelled. A hook may also have waited for a task of its own that
    was, which in asyncio raises the same: that is the hook's failure, and must not end ours."""
    if isinstance(exc, Exception):
        return False
    if not isinstance(exc, CancelledError):
        return True  # trio has no such
    task = current_task()
    return task is None or task.cancelling() > 0


_CALL: Final = 500
"""What a call that waits costs at least, in bytes."""


class _Call(NamedTuple):
    name: str
    hook: Callable[..., MaybeAsync[None]]
    args: tuple[Any, ...]
    size: int


class HookCalls:
    """Calls hooks, for each room one after the other.

    Args:
        tasks: where to call them.
        errors: counts, by hook, those that raised.
    """

    def __init__(self, tasks: anyio.abc.TaskGroup, errors: Counter[str]) -> None:
        self._tasks = tasks
        self._errors = errors
        self._waiting: dict[Room, deque[_Call]] = {}
        self._sizes: Counter[Room] = Counter()
        self._progress = anyio.Event()

    def soon(
        self, room: Room, name: str, hook: Callable[..., Any] | None, *args: Any, size: int = 0
    ) -> None:
        """Have a hook called, after those before."""
        if hook is None:
            return
        calls = self._waiting.get(room)
        if calls is None:
            calls = deque()
            self._tasks.start_soon(self._work_through, room, calls)
            self._waiting[room] = calls
        calls.append(_Call(name, hook, args, size + _CALL))
        self._sizes[room] += size + _CALL

    def is_behind(self, room: Room) -> bool:
        """Whether hooks are still to be called, or being called."""
        return room in self._waiting

    def is_far_behind(self, room: Room, backlog: int) -> bool:
        """Whether more bytes of a room's updates wait for its hooks than that."""
        return room in self._waiting and self._sizes[room] > backlog

    async def caught_up(self, room: Room, backlog: int = 0) -> None:
        """Wait until no more than so many bytes of a room's updates wait for its hooks; by default
        until none is left to be called."""
        while room in self._waiting and (not backlog or self._sizes[room] > backlog):
            await self._progress.wait()

    async def contained(self, name: str, hook: Callable[..., Any] | None, *args: Any) -> None:
        """Call a hook; if it raises, only say so."""
        if hook is None:
            return
        try:
            result = hook(*args)
            if isawaitable(result):
                await result
        except (Exception, anyio.get_cancelled_exc_class()) as exc:
            if is_own_cancellation(exc):
                raise
            self._errors[name] += 1
            logger.exception("hook failed name=%s", name)

    async def _work_through(self, room: Room, calls: deque[_Call]) -> None:
        try:
            while calls:
                call = calls[0]
                await self.contained(call.name, call.hook, *call.args)
                calls.popleft()
                self._sizes[room] -= call.size
                self._made_progress()
        finally:
            del self._waiting[room]
            del self._sizes[room]
            self._made_progress()

    def _made_progress(self) -> None:
        self._progress.set()
        self._progress = anyio.Event()
