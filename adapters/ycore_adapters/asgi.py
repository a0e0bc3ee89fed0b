"""An ASGI application: the rooms in Starlette, FastAPI, Litestar, Quart, Django, or by itself under
uvicorn or hypercorn (asyncio and trio).

    app = ASGIApp(FileStore("data"), prefix="/ws/", http=other_app)    # runs by itself, or
    async with app: ...                                # in the lifespan of whom it is mounted in

It has to be started and stopped, because it opens the store and runs tasks. An ASGI server does so
(by the lifespan protocol) if this is the outermost application. Frameworks do not pass that on to
what is mounted in them: enter the application in the framework's own lifespan.

What ASGI has no words for is left to the ASGI server:

    pings           uvicorn finds dead peers (--ws-ping-interval, --ws-ping-timeout). Hypercorn only
                    sends pings, if websocket_ping_interval is set: TCP gives up after a while
    long messages   refused before they are read whole: uvicorn --ws-max-size, hypercorn's
                    websocket_max_message_size, both 16 MB unless set
    connections     how many: uvicorn --limit-concurrency

Each connection is read by the task it came in, and written by a second one, so that who does not
read holds up nobody.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeAlias
from urllib.parse import quote, unquote_to_bytes

import anyio
import anyio.abc

from ycore import CloseCode, LocalProtocolError, Member, Settings

from ._paths import Answer, check_prefix, in_prefix, no_room, plain_answer
from .connection import Connection, without
from .driver import Driver, DriverSettings
from .hooks import Access, Hooks, Refused, Request
from .stores import Store, StoreError

__all__ = ["ASGIApp", "ASGISettings"]

logger = logging.getLogger(__name__)

Scope: TypeAlias = MutableMapping[str, Any]
Event: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Event]]
Send: TypeAlias = Callable[[Event], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_TURN: Final = 0.002
"""Seconds of one connection's messages that are worked on before others get a turn: an ASGI server
hands on at once what it has read, which may be thousands."""
_MAX_REASON: Final = 123
"""Bytes of the reason in a WebSocket close."""
_HOW_TO_START: Final = (
    "the ycore app was not started. Enter it (`async with app`) in the lifespan of the application "
    "it is mounted in, or make it the outermost one (`ASGIApp(..., http=yours)`) under an ASGI "
    "server whose lifespan support is not off"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ASGISettings:
    """What can be set about the connections. Times are in seconds."""

    max_message_bytes: int = 64 * 2**20
    """The longest WebSocket message, as in `ServerSettings`. The ASGI server's own limit should be
    no higher: here a message is seen only when all of it is in memory."""

    close_timeout: float = 5.0
    """How long a peer may take to read what was sent before a close, and to answer it."""

    shutdown_timeout: float = 10.0
    """How long stopping waits for the store, and then for the members."""


class _NoRoom(Exception):
    def __init__(self, answer: Answer) -> None:
        self.answer = answer


class ASGIApp:
    """The rooms of a store, as an ASGI application and an async context manager.

    Args:
        store: opened when this starts, and closed when it stops.
        prefix: what paths must begin with, "/" at both ends; the rest names the room. Without what
            it is mounted under, if the framework tells that by `root_path`.
        http: the application that gets everything that is not ours: all HTTP, and WebSockets
            outside of the prefix. It is told of startup (when ours is done) and shutdown (before
            ours), if it wants to know. Without it `/health` is answered as by `ycore serve`.
        hooks, settings, limits: as for `Driver`.
        asgi: what can be set about the connections.

    Raises:
        ValueError: the prefix is no good one.
    """

    def __init__(
        self,
        store: Store,
        *,
        prefix: str = "/",
        http: App | None = None,
        hooks: Hooks | None = None,
        settings: Settings | None = None,
        limits: DriverSettings | None = None,
        asgi: ASGISettings | None = None,
    ) -> None:
        check_prefix(prefix)
        self.asgi = asgi or ASGISettings()
        self._store = store
        self._prefix = prefix
        self._http = http
        self._hooks = hooks
        self._settings = settings
        self._limits = limits
        self._driver: Driver | None = None
        self._sockets: set[_Socket] = set()
        self._none_left = anyio.Event()
        self._stack = AsyncExitStack()

    @property
    def driver(self) -> Driver:
        """What runs the rooms, while this is started: to edit on the server, to send someone away.

        Raises:
            LocalProtocolError: it is not.
        """
        if self._driver is None:
            raise LocalProtocolError(_HOW_TO_START)
        return self._driver

    # -- starting and stopping

    async def __aenter__(self) -> Self:
        """Open the store. Leave in the same task.

        Raises:
            StoreError: it can't be opened.
            LocalProtocolError: this was started already.
        """
        if self._driver is not None:
            raise LocalProtocolError("the ycore app was started twice: leave one of the two out")
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(self._store)
            driver = Driver(store, settings=self._settings, limits=self._limits, hooks=self._hooks)
            self._driver = await stack.enter_async_context(driver)
            stack.push_async_callback(self._shut_down, driver)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Store what was accepted, send everyone away, and close the store."""
        await self._stack.__aexit__(exc_type, exc, traceback)

    async def _shut_down(self, driver: Driver) -> None:
        try:
            with anyio.move_on_after(self.asgi.shutdown_timeout) as scope:
                await driver.drain()
            if scope.cancelled_caught:
                logger.error("shutdown: the store did not finish in time")
            for socket in tuple(self._sockets):
                if socket.member is None or scope.cancelled_caught:
                    socket.abort()  # refused anyway; or what it waits for won't come
            if self._sockets:
                self._none_left = anyio.Event()
                with anyio.move_on_after(self.asgi.shutdown_timeout):
                    await self._none_left.wait()
        finally:
            self._driver = None
            for socket in tuple(self._sockets):
                socket.abort()

    # -- ASGI

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        kind = scope["type"]
        if kind == "lifespan":
            await self._lifespan(scope, receive, send)
        elif kind == "websocket":
            await self._websocket(scope, receive, send)
        elif self._http is not None:
            await self._http(scope, receive, send)
        elif kind == "http":
            await self._plain(scope, send)
        else:
            raise NotImplementedError(f"ycore knows no ASGI scope of type {kind!r}")

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        startup = await receive()
        try:
            await self.__aenter__()
        except Exception as exc:
            if not isinstance(exc, StoreError):  # which says all there is to say
                logger.exception("startup failed")
            message = f"ycore could not start: {exc}"
            await send({"type": "lifespan.startup.failed", "message": message})
            return
        last: Event = {"type": "lifespan.shutdown.complete"}
        try:
            inner = _InnerLifespan(startup, receive, send)
            if self._http is not None:
                await inner.run(self._http, scope)
            if inner.failed:
                return
            if not inner.started:
                await send({"type": "lifespan.startup.complete"})
            if not inner.stopping:
                await receive()  # lifespan.shutdown
            last = inner.last or last
        finally:
            await self.__aexit__(None, None, None)
        await send(last)

    async def _plain(self, scope: Scope, send: Send) -> None:
        driver = self._driver
        problem = _HOW_TO_START if driver is None else driver.health()
        unsynced = 0.0 if driver is None else driver.unsynced()
        answer = plain_answer(scope["method"], _path(scope), self._prefix, problem, unsynced)
        with_body = scope["method"] != "HEAD"
        await _answer(send, answer, "http.response", with_body=with_body)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = _path(scope)
        if self._http is not None and not path.startswith(self._prefix):
            await self._http(scope, receive, send)
            return
        await receive()  # websocket.connect
        try:
            request = self._request(scope, path)
        except _NoRoom as exc:
            status, text, _ = exc.answer
            logger.info("refused address=%s status=%d reason=%r", _address(scope), status, text)
            await _refuse(scope, send, exc.answer)
            return
        driver = self._driver
        access: Access | Refused
        if driver is None:
            logger.error("websocket refused room=%r: %s", request.room, _HOW_TO_START)
            access = Refused("the server is not ready", CloseCode.TRY_AGAIN_LATER)
        else:
            access = await driver.authorize(request)
        socket = _Socket(self, receive, send, request.address)
        self._sockets.add(socket)
        try:
            await socket.serve(driver, request, access)
        finally:
            self._sockets.discard(socket)
            if not self._sockets:
                self._none_left.set()

    def _request(self, scope: Scope, path: str) -> Request:
        room = in_prefix(path, self._prefix)
        if room is None:
            raise _NoRoom(no_room(self._prefix))
        raw: bytes | None = scope.get("raw_path")
        try:
            # The path was decoded already, and what is not UTF-8 in it was replaced.
            unquote_to_bytes(raw or b"").decode()
        except UnicodeDecodeError:
            raise _NoRoom((400, "the room name is not UTF-8", [])) from None
        if not raw and "\ufffd" in path:
            raise _NoRoom((400, "the room name is not UTF-8", []))
        headers = [(bytes(name).lower(), bytes(value)) for name, value in scope["headers"]]
        offered = ", ".join(scope.get("subprotocols", ())).encode("latin-1")
        if offered and all(name != b"sec-websocket-protocol" for name, _ in headers):
            headers.append(
                (b"sec-websocket-protocol", offered)
            )  # uvicorn with wsproto takes it out
        return Request(
            room,
            raw.decode("latin-1") if raw else quote(scope["path"]),
            scope.get("query_string", b"").decode("latin-1"),
            tuple(headers),
            _address(scope),
            scope,
        )


class _InnerLifespan:
    """The lifespan of the application inside: its startup after ours, its shutdown before ours.

    Args:
        startup: the event that was received already, for it to receive.
    """

    def __init__(self, startup: Event, receive: Receive, send: Send) -> None:
        self.started = self.failed = self.stopping = False
        self.last: Event | None = None
        """Its answer to the shutdown: to be sent when ours is done as well."""
        self._startup: Event | None = startup
        self._receive_outer = receive
        self._send_outer = send

    async def run(self, app: App, scope: Scope) -> None:
        try:
            await app(scope, self._receive, self._send)
        except Exception as exc:
            if self.started or self.failed:
                raise
            # What ASGI has an application do that knows no lifespans; Django's does.
            logger.info("the application inside has no lifespan error=%r", str(exc))

    async def _receive(self) -> Event:
        if self._startup is not None:
            event, self._startup = self._startup, None
            return event
        event = await self._receive_outer()
        self.stopping = True
        return event

    async def _send(self, event: Event) -> None:
        kind = event["type"]
        if kind.startswith("lifespan.shutdown."):
            self.last = event
            return
        self.started = kind == "lifespan.startup.complete"
        self.failed = not self.started
        await self._send_outer(event)


class _Socket(Connection):
    """One WebSocket: what waits to be sent on it, and the two tasks of it."""

    def __init__(self, app: ASGIApp, receive: Receive, send: Send, address: str | None) -> None:
        self.member: Member | None = None
        self._app = app
        self._receive = receive
        self._send = send
        self.address = address
        self._driver: Driver | None = None
        self._tasks = anyio.create_task_group()
        self._outbox: deque[bytes] = deque()
        self._closing: tuple[int, str] | None = None
        self._over = False
        self._idle: anyio.Event | None = None
        """Set to wake the writer, if it sleeps."""

    # -- what the driver asks

    def send(self, frames: tuple[bytes, ...], own: Sequence[int] = ()) -> None:
        if self._closing is None and not self._over:
            frames = without(frames, own)
            self._outbox.extend(frames)
            self.waiting += sum(map(len, frames))
            self.flush()

    def close(self, code: int, reason: str) -> None:
        if self._closing is None:
            self._closing = (code, reason)
            self.flush()
            deadline = anyio.current_time() + self._app.asgi.close_timeout
            self._tasks.cancel_scope.deadline = deadline

    def probe(self) -> None:
        """ASGI has no pings. The ASGI server has, and says so when they are not answered."""

    def flush(self) -> None:
        """Wake the writer: it runs when whoever wakes it has queued all that comes in this turn."""
        if self._idle is not None:
            self._idle.set()

    # -- the tasks

    async def serve(
        self, driver: Driver | None, request: Request, access: Access | Refused
    ) -> None:
        """Accept it, and see to it until it is over."""
        try:
            async with self._tasks:
                subprotocol = request.subprotocol_for(access)
                if not await self._sent({"type": "websocket.accept", "subprotocol": subprotocol}):
                    return
                self._tasks.start_soon(self._write)
                if driver is not None:
                    self._driver = driver
                    self.member = driver.admit(request, access, self)
                elif isinstance(access, Refused):
                    self.close(access.code, access.reason)
                await self._read()
                self._tasks.cancel_scope.cancel()
        except Exception:  # a bug: it costs this connection, not the others
            logger.exception("connection failed")
        finally:
            self._leave()
            self.abort()

    def abort(self) -> None:
        """Give the connection up: both tasks end."""
        self._over = True
        self._outbox.clear()
        self.waiting = 0
        self._tasks.cancel_scope.cancel()

    async def _read(self) -> None:
        """Until the peer has closed, or answered our close."""
        worked = 0.0
        room = None if self.member is None else self.member.room.name
        while (event := await self._receive())["type"] == "websocket.receive":
            began = time.monotonic()
            await self._take(event.get("bytes"))
            worked += time.monotonic() - began
            if worked > _TURN and self._driver is not None:
                party = self.address, room
                self._driver.turns.charge(party, worked)
                await self._driver.turns.wait(party)
                worked = 0.0

    async def _take(self, message: bytes | None) -> None:
        if message is None:
            self.close(CloseCode.UNSUPPORTED_DATA, "binary messages only")
            self._leave()
        elif len(message) > self._app.asgi.max_message_bytes:
            reason = f"a message is at most {self._app.asgi.max_message_bytes} bytes"
            self.close(CloseCode.TOO_LARGE, reason)
            self._leave()
        elif self.member is not None and self._driver is not None:
            await self._driver.receive(self.member, message)

    def _leave(self) -> None:
        member, self.member = self.member, None
        try:
            if member is not None and self._driver is not None:
                self._driver.leave(member)
        except Exception:  # a bug again
            logger.exception("leaving failed")

    async def _write(self) -> None:
        while True:
            while self._outbox:
                frame = self._outbox.popleft()
                if not await self._sent({"type": "websocket.send", "bytes": frame}):
                    self.abort()
                    return
                self.waiting -= len(frame)
            if self.member is not None and self._driver is not None:
                self._driver.drained(self.member)
                if self._outbox:
                    continue
            if self._closing is not None:
                code, reason = self._closing
                # No more fits into the frame, and not every ASGI server cuts it.
                reason = reason.encode(errors="replace")[:_MAX_REASON].decode(errors="ignore")
                if not await self._sent(
                    {"type": "websocket.close", "code": int(code), "reason": reason}
                ):
                    self.abort()
                return
            self._idle = anyio.Event()
            await self._idle.wait()
            self._idle = None

    async def _sent(self, event: Event) -> bool:
        """Send; whether it could be. What is raised if the peer is gone differs from one ASGI
        server to the other."""
        try:
            await self._send(event)
        except Exception as exc:
            logger.info("connection lost type=%s error=%r", event["type"], exc)
            return False
        return True


def _path(scope: Scope) -> str:
    """The path, decoded, without what we are mounted under. Some frameworks cut that off."""
    path: str = scope["path"]
    root = scope.get("root_path", "").rstrip("/")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def _address(scope: Scope) -> str | None:
    """The client's IP address, if it has one."""
    host: str | None = scope["client"][0] if scope.get("client") else None
    return host.removeprefix("::ffff:") if host else None


async def _refuse(scope: Scope, send: Send, answer: Answer) -> None:
    """Open no WebSocket. Only some servers let us say why."""
    if "websocket.http.response" in scope.get("extensions", {}):
        await _answer(send, answer, "websocket.http.response", with_body=True)
    else:
        await send({"type": "websocket.close", "code": 1000, "reason": answer[1]})


async def _answer(send: Send, answer: Answer, kind: str, *, with_body: bool) -> None:
    status, text, extra = answer
    body = f"{text}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        *((name.lower(), value) for name, value in extra if name != b"Upgrade"),  # HTTP/2 has none
    ]
    await send({"type": f"{kind}.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.body", "body": body if with_body else b""})
