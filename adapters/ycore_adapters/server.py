"""The WebSocket server: anyio listeners on TCP and Unix sockets, for asyncio and trio.

One task reads each connection (`_peer` makes sense of the bytes). Writing is done at once and
without blocking when the driver says so; only a connection whose socket is full gets a second task,
until it is not. One task looks once a second for connections that are late in any way.

Whatever comes from the network costs its sender the connection and nothing else. What one
connection may cost, in memory and in the others' time, is bounded by `ServerSettings`.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.abc
from anyio import lowlevel

from ycore import CloseCode, Member

from ._deflate import Window
from ._paths import check_prefix
from ._peer import Event, Message, Peer, PeerState, frame_message, refusal
from .driver import Connection, Driver
from .hooks import Request

logger = logging.getLogger(__name__)

_READ_BYTES: Final = 16 * 1024
"""How much is read from a socket in one go."""
_SLICE_BYTES: Final = 2 * 1024
"""How much of that is taken apart before it is looked whether others should have a turn: perhaps
340 frames, or 2 MB that were compressed."""
_WRITE_BYTES: Final = 256 * 1024
"""How much is offered to a socket in one write: more than its buffer rarely takes."""
_TURN: Final = 0.002
"""Seconds one connection's messages are worked on before others get a turn: a single read may
bring thousands."""
_SWEEP: Final = 1.0
_RETRY_AFTER: Final = 10
"""Seconds after which one who was refused is told to come back. y-websocket does not ask."""
_LINGERING: Final = 256
"""How many sockets that were refused are kept open for a moment: one that is closed before the
request came resets the connection, and the answer is lost."""
_WARN_EVERY: Final = 60.0
"""Seconds between two warnings that connections are refused for the same reason."""
_ACCEPT_PAUSE: Final = 0.1
"""Seconds to wait when the process has run out of file descriptors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What can be set about the server. Times are in seconds."""

    prefix: str = "/"
    """What paths must begin with; the rest names the room."""

    handshake_timeout: float = 10.0
    """How long a request may take to arrive: what a connection costs before it is accepted."""

    ping_interval: float = 20.0
    """A peer from which nothing came for so long is sent a WebSocket ping."""

    ping_timeout: float = 10.0
    """How long after that it is given up as dead, if still nothing came."""

    close_timeout: float = 5.0
    """How long a peer may take to answer our close frame, or to close after an HTTP answer."""

    shutdown_timeout: float = 10.0
    """How long `Server.serve` waits, once stopped, for the store and then for the members."""

    max_message_bytes: int = 64 * 2**20
    """The longest WebSocket message: a whole document, when a client comes with a new one."""

    max_unfinished_bytes: int = 512 * 2**20
    """How many bytes of messages there may be in all that are still being received or taken in.
    With more, the connection with the longest one is closed (1013): otherwise a few dozen, each
    within its own limit, could use up all memory."""

    max_request_bytes: int = 16 * 1024
    """How long a request line with its headers may be. Tokens in cookies and queries fit. It bounds
    what a connection can make us keep before it is accepted: 7 KB if it says nothing, 30 KB if all
    of this comes but the end. More is answered with 431."""

    max_request_headers: int = 100
    """How many headers a request may have: browsers and proxies send some twenty, and an
    application gets to see them all. More are answered with 431."""

    max_connections: int = 10_000
    """How many connections there may be in all, whatever their state. Each is a file descriptor,
    and some 10 KB while it is idle. More are answered with 503 before they are read."""

    max_connections_per_address: int = 1_000
    """How many may come from one address (of IPv6, one /64 network, which is what one customer
    has): one machine shall not use up the others' connections. More are answered with 429 before
    they are read. Behind a proxy all have the proxy's address: set it to `max_connections` there,
    and let the proxy count. Unix sockets have no address, and are not counted."""

    max_answer_bytes: int = 64 * 1024
    """How many bytes of pongs may wait for a peer that does not read them, before it is not read
    any further either. No honest one sends hundreds of pings without reading."""

    compression: bool = False
    """Whether permessage-deflate is negotiated with clients that offer it; all browsers do. Off,
    since what is sent most gains nothing: a keystroke is some 30 bytes, of which deflate saves 4,
    so messages below 256 bytes are not tried. A document of 100 KB is halved, for 1.2 ms of CPU
    that everyone waits for, where a plain frame takes 2 µs; reading it takes 0.3 ms. Memory: 40 KB
    for a connection while a compressed message of its own is under way, else none, as no context
    is kept (it would be 280 KB). It pays where links are slow and documents large."""

    backlog: int = 1024
    """Connections the system holds until they are accepted: a restart brings everyone at once."""

    def __post_init__(self) -> None:
        check_prefix(self.prefix)


async def listen_tcp(host: str, port: int, *, backlog: int = 1024) -> list[socket.socket]:
    """Listen on all addresses of `host`, with port 0 on one free port.

    Raises:
        OSError: the port is in use, the host unknown, ...
    """
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    failed: OSError | None = None
    try:
        for family, address in dict.fromkeys((info[0], info[4]) for info in found):
            if family not in (socket.AF_INET, socket.AF_INET6):
                continue
            chosen = (address[0], port or (listeners[0].getsockname()[1] if listeners else 0))
            try:
                listener = socket.create_server(chosen, family=family, backlog=backlog)
            except OSError as exc:
                # A name such as localhost may have an address of a family that is switched off.
                if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                failed = exc
                continue
            listener.setblocking(False)
            listeners.append(listener)
        if not listeners and failed is not None:
            raise failed
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


async def listen_unix(path: str | os.PathLike[str], *, backlog: int = 1024) -> socket.socket:
    """Listen on a Unix socket, in the place of one that nobody listens on any more.

    Raises:
        OSError: somebody does, it is no socket, the directory is not there, ...
    """
    path = os.fspath(path)
    if Path(path).exists() and not Path(path).is_socket():
        raise OSError(errno.EEXIST, "there is something else of that name", path)
    if Path(path).exists():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
            else:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        listener.listen(backlog)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


class _FrameCache:
    """Remembers the frames of the last message, so that a broadcast makes each kind once."""

    def __init__(self) -> None:
        self._message = b""
        self._frames: dict[Window | None, bytes] = {}

    def __call__(self, message: bytes, window: Window | None) -> bytes:
        if message is not self._message:
            self._message, self._frames = message, {}
        frame = self._frames.get(window)
        if frame is None:
            frame = self._frames[window] = frame_message(message, window)
        return frame


class _Refused:
    """Connections that are one too many: answered unread, and closed a moment later."""

    def __init__(self) -> None:
        self._lingering: deque[tuple[float, socket.socket]] = deque()
        self._unsaid: Counter[str] = Counter()
        """By setting: how many were refused since the last warning."""
        self._warned: dict[str, float] = {}

    def __call__(self, sock: socket.socket, status: int, setting: str, limit: int) -> None:
        with suppress(OSError):  # gone already
            sock.send(refusal(status, "too many connections", retry_after=_RETRY_AFTER))
            sock.shutdown(socket.SHUT_WR)
        now = time.monotonic()
        self._lingering.append((now, sock))
        self._unsaid[setting] += 1
        if setting not in self._warned or now >= self._warned[setting] + _WARN_EVERY:
            self._warned[setting] = now
            count = self._unsaid.pop(setting)
            logger.warning("connections refused setting=%s=%d count=%d", setting, limit, count)
        self.sweep(now)

    def sweep(self, now: float) -> None:
        """Close those that had their moment, or are too many to wait for."""
        lingering = self._lingering
        while lingering and (now >= lingering[0][0] + _SWEEP or len(lingering) > _LINGERING):
            lingering.popleft()[1].close()

    def close(self) -> None:
        for _, sock in self._lingering:
            sock.close()
        self._lingering.clear()


def _address(family: int, address: Any) -> str | None:
    """What connections from this address are counted under."""
    if family == socket.AF_UNIX:
        return None
    host = ipaddress.ip_address(address[0].partition("%")[0])
    if isinstance(host, ipaddress.IPv6Address):
        if host.ipv4_mapped is not None:
            return str(host.ipv4_mapped)
        return str(ipaddress.ip_network((int(host), 64), strict=False))
    return str(host)


def _host(sock: socket.socket) -> str | None:
    """The peer's IP address, if it has one and is still there."""
    with suppress(OSError):
        if sock.family != socket.AF_UNIX:
            host: str = sock.getpeername()[0]
            return host.removeprefix("::ffff:")
    return None


class _Socket(Connection):
    """One accepted socket: its outbox, and what it is doing."""

    def __init__(self, server: Server, sock: socket.socket, address: str | None) -> None:
        self.server = server
        self.sock = sock
        self.address = address
        """What it is counted under."""
        self.peer = server.make_peer()
        self.member: Member | None = None
        self.since = self.heard = time.monotonic()
        """When it was accepted, or began to close; and when it was last heard of."""
        self.pinged: float | None = None
        """When it was sent a ping; None if it was heard of since."""
        self.held = 0
        """How many bytes of its message are kept, unfinished or being worked on."""
        self.busy = False
        """Whether it is not read just now, since what it sent before has to wait."""
        self._outbox: list[bytes | memoryview] = []
        self._dirty = False
        self._writing = False
        """Whether a task waits for the socket to take more."""
        self._answers = 0
        """At most so many of the bytes in the outbox answer what it sent."""
        self._taken: anyio.Event | None = None
        """Set once the outbox is empty, if someone waits for it."""
        self._ending = False
        self._dead = False

    # -- what the driver asks

    def send(self, frame: bytes) -> None:
        if self.peer.state is PeerState.OPEN:
            self._put(self.server.framed(frame, self.peer.window))

    def close(self, code: int, reason: str) -> None:
        self.peer.close(code, reason)
        self.put_output()

    def probe(self) -> None:
        if self.pinged is None:
            self.pinged = time.monotonic()
            self.peer.ping()
            self.put_output()

    def flush(self) -> None:
        self._dirty = False
        if self._writing or self._dead:
            return
        try:
            full = self._write()
        except OSError:
            self.abort()
            return
        if full and not self._writing:  # a resume may have got here first
            self._writing = True
            self.server.tasks.start_soon(self._write_rest)

    # -- writing

    def put_output(self) -> None:
        """Queue what the peer has to say: handshake, pongs, close."""
        if output := self.peer.take_output():
            self._answers += len(output)
            self._put(output)
        if not self._ending and self.peer.state in (PeerState.CLOSING, PeerState.DONE):
            self._ending = True
            self.since = time.monotonic()

    def _put(self, data: bytes) -> None:
        if self._dead:
            return
        self._outbox.append(data)
        self.waiting += len(data)
        if not self._dirty:
            self._dirty = True
            self.server.driver.flush_soon(self)

    def _write(self) -> bool:
        """Write what the socket takes; return whether something is left."""
        outbox = self._outbox
        while outbox:
            if len(outbox) == 1 or len(outbox[0]) >= _WRITE_BYTES:
                data = outbox[0]
                count = 1
            else:
                size = count = 0
                while count < len(outbox) and size < _WRITE_BYTES:
                    size += len(outbox[count])
                    count += 1
                data = b"".join(outbox[:count])
            try:
                written = self.sock.send(data[:_WRITE_BYTES])
            except BlockingIOError:
                return True
            self.waiting -= written
            if written == len(data):
                del outbox[:count]
            else:
                outbox[:count] = [memoryview(data)[written:]]
        self._all_taken()
        if self.member is not None:
            self.server.driver.drained(self.member)
        if self.peer.has_said_all and not outbox:
            self.sock.shutdown(socket.SHUT_WR)
        return bool(outbox)

    async def _write_rest(self) -> None:
        try:
            while not self._dead:
                await anyio.wait_writable(self.sock)
                before = self.waiting
                if not self._write():
                    return
                if self.waiting < before:  # so it reads: that is a sign of life
                    self.heard = time.monotonic()
                    self.pinged = None
        except (OSError, anyio.ClosedResourceError):
            self.abort()
        finally:
            self._writing = False

    def _all_taken(self) -> None:
        self._answers = 0
        if self._taken is not None:
            self._taken.set()
            self._taken = None

    async def answers_taken(self) -> None:
        """Wait until not too many answers wait. A peer that takes none is given up by `sweep`."""
        while self._answers > self.server.settings.max_answer_bytes and not self._dead:
            if self._taken is None:
                self._taken = anyio.Event()
            await self._taken.wait()

    def abort(self) -> None:
        """Give the connection up: its reader wakes to the end of the stream."""
        self._dead = True
        self._outbox.clear()
        self.waiting = 0
        self._all_taken()
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    # -- time

    def sweep(self, now: float) -> None:
        """Do what is due: time out, ping, give up."""
        settings = self.server.settings
        state = self.peer.state
        if state in (PeerState.REQUEST, PeerState.ASKED):
            if now >= self.since + settings.handshake_timeout:
                self.peer.time_out()
                self.put_output()
        elif state is PeerState.OPEN:
            if self.busy:
                pass
            elif self.pinged is None:
                if now >= self.heard + settings.ping_interval:
                    self.probe()
            elif now >= self.pinged + settings.ping_timeout:
                self.abort()
        elif now >= self.since + settings.close_timeout:
            self.abort()


class Server:
    """Serves a driver's rooms on listening sockets.

    Args:
        driver: an entered driver.
        listeners: non-blocking sockets, as `listen_tcp` and `listen_unix` give them.
    """

    def __init__(
        self,
        driver: Driver,
        listeners: Sequence[socket.socket],
        *,
        settings: ServerSettings | None = None,
    ) -> None:
        self.driver = driver
        self.listeners = listeners
        self.settings = settings or ServerSettings()
        self.framed = _FrameCache()
        self.tasks: anyio.abc.TaskGroup
        self._sockets: set[_Socket] = set()
        self._addresses: Counter[str | None] = Counter()
        """How many of them come from each."""
        self._held = 0
        """How much they hold in all."""
        self._refused = _Refused()
        self._accepting = anyio.CancelScope()
        self._stopping = False
        self._all_gone = anyio.Event()

    def make_peer(self) -> Peer:
        """One for each connection. A seam for tests, which echo what comes."""
        settings = self.settings
        return Peer(
            prefix=settings.prefix,
            max_message_bytes=settings.max_message_bytes,
            max_request_bytes=settings.max_request_bytes,
            max_request_headers=settings.max_request_headers,
            compression=settings.compression,
            health=self.driver.health,
        )

    def stop(self) -> None:
        """Have `serve` stop accepting, store what was accepted, send everyone away, and return."""
        self._accepting.cancel()

    async def serve(self) -> None:
        """Serve until `stop` is called. Closes the listeners."""
        async with anyio.create_task_group() as self.tasks:
            self.tasks.start_soon(self._sweep)
            try:
                with self._accepting:
                    async with anyio.create_task_group() as accepting:
                        for listener in self.listeners:
                            accepting.start_soon(self._accept, listener)
            finally:
                for listener in self.listeners:
                    listener.close()
                self._refused.close()
            await self._shut_down()
            self.tasks.cancel_scope.cancel()

    async def _shut_down(self) -> None:
        self._stopping = True
        with anyio.move_on_after(self.settings.shutdown_timeout) as scope:
            await self.driver.drain()
        if scope.cancelled_caught:
            logger.error("shutdown: the store did not finish in time")
        for sock in tuple(self._sockets):
            if sock.member is None or scope.cancelled_caught:
                sock.abort()  # still in its handshake; or what it waits for won't come
        if self._sockets:
            with anyio.move_on_after(self.settings.shutdown_timeout):
                await self._all_gone.wait()

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, peername = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                await anyio.wait_readable(listener)
                continue
            except OSError as exc:
                logger.error("accept failed error=%r", str(exc))
                await anyio.sleep(_ACCEPT_PAUSE)
                continue
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                with suppress(OSError):  # gone already
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._admit(sock, _address(sock.family, peername))
            await lowlevel.checkpoint()

    def _admit(self, sock: socket.socket, address: str | None) -> None:
        settings = self.settings
        if len(self._sockets) >= settings.max_connections:
            self._refused(sock, 503, "max_connections", settings.max_connections)
            return
        if address is not None and (
            self._addresses[address] >= settings.max_connections_per_address
        ):
            limit = settings.max_connections_per_address
            self._refused(sock, 429, "max_connections_per_address", limit)
            return
        admitted = _Socket(self, sock, address)
        self._sockets.add(admitted)
        self._addresses[address] += 1
        self.tasks.start_soon(self._serve_socket, admitted)

    async def _serve_socket(self, sock: _Socket) -> None:
        try:
            await self._read(sock)
        except OSError:
            pass  # the connection broke
        except Exception:  # a bug: it costs this connection, not the others
            logger.exception("connection failed")
        finally:
            self._forget(sock)
            if sock.member is not None:
                self._leave(sock)
            sock.abort()
            anyio.notify_closing(sock.sock)
            sock.sock.close()

    def _forget(self, sock: _Socket) -> None:
        self._hold(sock, 0)
        self._sockets.discard(sock)
        self._addresses[sock.address] -= 1
        if not self._addresses[sock.address]:
            del self._addresses[sock.address]
        if self._stopping and not self._sockets:
            self._all_gone.set()

    async def _read(self, sock: _Socket) -> None:
        while sock.peer.state is not PeerState.DONE:
            await sock.answers_taken()
            await anyio.wait_readable(sock.sock)
            await self._receive(sock)
        sock.flush()

    async def _receive(self, sock: _Socket) -> None:
        """Work off one read. Apart from `_read`, so that nothing of it is kept while that waits."""
        try:
            data = sock.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        sock.heard = time.monotonic()
        sock.pinged = None
        turn_ends = sock.heard + _TURN
        for at in range(0, len(data) or 1, _SLICE_BYTES):
            for event in sock.peer.receive(data[at : at + _SLICE_BYTES]):
                if isinstance(event, Request):
                    await self._answer(sock, event)
                else:
                    await self._take(sock, event)
                turn_ends = await _share(self.driver, turn_ends)
            turn_ends = await _share(self.driver, turn_ends)
        sock.put_output()
        self._hold(sock, sock.peer.unfinished)
        if sock.peer.state is not PeerState.OPEN and sock.member is not None:
            self._leave(sock)

    def _hold(self, sock: _Socket, size: int) -> None:
        """Note how much is kept of a connection's message; if all keep too much, let one go."""
        self._held += size - sock.held
        sock.held = size
        if self._held > self.settings.max_unfinished_bytes:
            largest = max(self._sockets, key=lambda sock: sock.held)
            logger.warning("messages take too much memory bytes=%d", self._held)
            largest.close(CloseCode.TRY_AGAIN_LATER, "the server has too much to read at once")
            self._leave(largest)  # so that no more of its message is taken in
            self._hold(largest, 0)

    def _leave(self, sock: _Socket) -> None:
        member, sock.member = sock.member, None
        try:
            if member is not None:
                self.driver.leave(member)
        except Exception:  # a bug again
            logger.exception("leaving failed")

    async def _answer(self, sock: _Socket, request: Request) -> None:
        request = replace(request, address=_host(sock.sock))
        access = await self.driver.authorize(request)
        if sock.peer.state is not PeerState.ASKED:
            return  # it took too long
        if self._stopping:
            sock.peer.refuse(503, "the server is shutting down")
            return
        early = sock.peer.accept(request.subprotocol_for(access))
        sock.put_output()
        sock.member = self.driver.admit(request, access, sock)
        for event in early:
            await self._take(sock, event)

    async def _take(self, sock: _Socket, event: Event) -> None:
        if isinstance(event, Message):
            self._hold(sock, len(event.data))
            if sock.member is not None:
                sock.busy = True
                await self.driver.receive(sock.member, event.data)
                sock.busy = False
            self._hold(sock, 0)
            sock.heard = time.monotonic()

    async def _sweep(self) -> None:
        while True:
            await anyio.sleep(_SWEEP)
            now = time.monotonic()
            for sock in tuple(self._sockets):
                sock.sweep(now)
            self._refused.sweep(now)


async def _share(driver: Driver, turn_ends: float) -> float:
    """Let the others have a turn if this one is over; return when the present one ends."""
    if time.monotonic() <= turn_ends:
        return turn_ends
    await driver.my_turn()
    return time.monotonic() + _TURN
