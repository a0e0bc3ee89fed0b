"""The WebSocket server: anyio listeners on TCP and Unix sockets, for asyncio and trio.

A connection is read when there is something to read (`_peer` makes sense of the bytes), and what
came is done at once if it can be; a task of its own it gets only for what has to wait. Writing is
done at once and without blocking when the driver says so; only a connection whose socket is full
gets a task, until it is not. One task looks once a second for connections that are late in any way.

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
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from math import inf
from pathlib import Path
from typing import Any, Final, NamedTuple

import anyio
import anyio.abc
from anyio import lowlevel

from ycore import CloseCode, Frame, Member, State

from ._deflate import Window
from ._eventloop import EventLoop, Rest, Turn, event_loop
from ._paths import check_prefix, no_room
from ._peer import Event, Peer, PeerState, frame_message, refusal
from ._turns import Party
from .connection import without
from .driver import Driver
from .hooks import Access, Request

logger = logging.getLogger(__name__)

_OPEN: Final = PeerState.OPEN  # in Python 3.11, to look it up there takes 0.1 us
_READ_BYTES: Final = 16 * 1024
"""How much is read from a socket in one go."""
_SLICE_BYTES: Final = 2 * 1024
"""How much of that is taken apart before it is looked whether others should have a turn: perhaps
340 frames."""
_WRITE_BYTES: Final = 256 * 1024
"""How much is offered to a socket in one write: more than its buffer rarely takes."""
_WRITE_PARTS: Final = 64
"""How many parts of an outbox are offered at once. It rarely has more than one."""
_LONG: Final = 64 * 1024
"""From how many bytes on a message is not copied behind its frame's header."""
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
    """How many bytes of messages there may be in all that are still being received or taken in:
    otherwise a few dozen, each within its own limit, could use up all memory. With more, the
    address pays that keeps most (1013): of its connections, those that have kept most for longest.
    """

    message_timeout: float = 30.0
    """For how long nothing may come of a message that has begun. Then it is closed (1013)."""

    message_rate: int = 8 * 1024
    """How many bytes of it give it one of these seconds back. So it may come at this rate, or
    faster and with pauses: a slow mobile network does twice as many a second. Slower, it would
    keep for hours what has come of it."""

    max_request_bytes: int = 16 * 1024
    """How long a request line with its headers may be. Tokens in cookies and queries fit. It bounds
    what a connection can make us keep before it is accepted: 7 KB if it says nothing, 30 KB if all
    of this comes but the end. More is answered with 431."""

    max_request_headers: int = 100
    """How many headers a request may have: browsers and proxies send some twenty, and an
    application gets to see them all. More are answered with 431."""

    max_connections: int = 10_000
    """How many connections there may be in all, whatever their state. Each is a file descriptor,
    and some 4 KB while it is idle. More are answered with 503 before they are read."""

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


class _Wire(NamedTuple):
    """Messages as the bytes of their frames."""

    pieces: list[bytes]
    size: int
    bounds: list[int] | None
    """Where each message's frame begins and ends, if all are in one piece."""


class _Framing:
    """Frames messages once for all who are sent the same."""

    def __init__(self) -> None:
        self.messages: tuple[bytes, ...] = ()
        """The last ones, which nearly everyone is sent."""
        self.window: Window | None = None
        """How they were compressed."""
        self.wire = _Wire([], 0, None)
        self._wires: dict[Window | None, _Wire] = {}
        """The same for each window."""

    def turn_to(self, messages: tuple[bytes, ...], window: Window | None) -> None:
        """Make these the last ones."""
        if messages != self.messages:  # several who join may be sent the same, each by itself
            self._wires = {}
        self.messages = messages
        wire = self._wires.get(window)
        if wire is None:
            wire = self._wires[window] = _framed(messages, window)
        self.window, self.wire = window, wire

    def without(self, own: Sequence[int]) -> _Wire:
        """The last ones but for some of them."""
        bounds = self.wire.bounds
        if bounds is None:
            return _framed(without(self.messages, own), self.window)
        [whole] = self.wire.pieces
        at = 0
        parts = []
        for i in own:
            parts.append(whole[at : bounds[i]])
            at = bounds[i + 1]
        parts.append(whole[at:])
        rest = b"".join(parts)
        return _Wire([rest], len(rest), None)


def _framed(messages: Iterable[bytes], window: Window | None) -> _Wire:
    pieces: list[bytes] = []
    short: list[bytes] = []
    sizes = [0]
    for message in messages:
        head, payload = frame_message(message, window)
        sizes.append(len(head) + len(payload))
        short.append(head)
        if len(payload) < _LONG:
            short.append(payload)
        else:  # a copy would cost more than to write it in two
            pieces += [b"".join(short), payload]
            short = []
    if short:
        pieces.append(b"".join(short))
    bounds = list(accumulate(sizes))
    return _Wire(pieces, bounds[-1], bounds if len(pieces) == 1 else None)


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


class _Socket:  # a `Connection`, but that one can't be compiled, being for others to inherit
    """One accepted socket: its outbox, and what it is doing."""

    def __init__(self, server: Server, sock: socket.socket, address: str | None) -> None:
        self.server = server
        self.sock = sock
        self.address = address
        """What it is counted under."""
        self.peer = server.make_peer()
        self.waiting = self.answer = 0
        self.request: Request | None = None
        self.access: Access | None = None
        self.member: Member | None = None
        self.since = self.heard = time.monotonic()
        """When it was accepted, or began to close; and when it was last heard of."""
        self.pinged: float | None = None
        """When it was sent a ping; None if it was heard of since."""
        self.held = 0
        """How many bytes of its message are kept, unfinished or being worked on."""
        self.began = 0.0
        """Since when."""
        self._queued = 0.0
        """Since when it waits for its turn, or when that was."""
        self._came = 0
        """How much had come of a message when it was last looked at, ..."""
        self._late_at = inf
        """... and when it will be too late for what is missing, if nothing comes."""
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
        self._was_judged = False
        """Whether it was looked whether it speaks our protocol."""
        self._watch = server.loop.watch(sock, self._readable)

    # -- what the driver asks

    def send(self, frames: tuple[bytes, ...], own: Sequence[int] = ()) -> None:
        peer, framing = self.peer, self.server.framing
        if peer.state is _OPEN and not self._dead:
            if frames is not framing.messages or peer.window is not framing.window:
                framing.turn_to(frames, peer.window)
            wire = framing.without(own) if own else framing.wire
            self._outbox += wire.pieces
            self.waiting += wire.size
            if not self._dirty:
                self._dirty = True
                self.server.driver.flush_soon(self)

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
        if full:
            self._writing = True
            self.server.tasks.start_soon(self._write_rest)

    # -- reading

    def _readable(self, in_turn: bool = False) -> Rest | Turn | None:
        """Read once, and work off what came; or wait for a turn. A handshake always does, and so
        does all that comes late in a turn of the loop, before it is read: everyone may be readable
        at once, or have gone."""
        now = self._had_turn() if in_turn else time.monotonic()
        try:
            if self._answers > self.server.settings.max_answer_bytes and not self._dead:
                return self._answers_taken
            if not in_turn and (self.peer.state is not _OPEN or self.server.driver.is_late(now)):
                return Turn(self._queue, partial(self._readable, True))
            data = self.sock.recv(_READ_BYTES)
            if not data:
                raise OSError(errno.EPIPE, "the end")
            self.heard = now
            self.pinged = None
            if self.peer.state is not _OPEN or len(data) > _SLICE_BYTES:
                go_on = partial(self._go_on, data)
                return go_on() if in_turn else Turn(self._queue, go_on)
            until = now + _TURN
            rest = self._take_now(self.peer.receive(data), until)
            if rest or self.peer.has_more:
                return partial(self._work_off, rest)
            self._worked_off()
            if time.monotonic() > until:  # who costs so much is read again when others had a turn
                self.server.driver.turns.charge(self._party, _TURN)
                return Turn(self._queue, partial(self._readable, True))
        except BlockingIOError:
            pass
        except OSError:  # the connection broke, or has ended
            self._watch.stop()
            self._see_off()
        except Exception:  # a bug: it costs this connection, not the others
            logger.exception("connection failed")
            self.end()
        return None

    def _go_on(self, data: bytes) -> Rest:
        """Its turn has come: work off what was read."""
        return partial(self._work_off, [], data, self._had_turn() + _TURN)

    def _take_now(self, events: list[Event], until: float) -> list[Event | Frame]:
        """Take in messages. Returns what is left: what has to wait, and what comes after that. The
        first one has not, if it is short: that the server is late is not its fault."""
        for i, event in enumerate(events):
            if isinstance(event, Request) or len(event) > _SLICE_BYTES:
                return list(events[i:])
            if i and time.monotonic() > until:
                return list(events[i:])
            if self.member is not None:
                frame = self.server.driver.receive_now(self.member, event)
                if frame is not None:
                    return [frame, *events[i + 1 :]]
        return []

    async def _work_off(
        self, events: list[Event | Frame], data: bytes | None = None, turn_ends: float = 0.0
    ) -> None:
        """What may take longer: wait where that has to be, and let others have their turns. What
        comes meanwhile is read on, as long as the turn lasts: were each 16 KB of a long message to
        wait for a turn, it would take as many as all the others want.

        Args:
            turn_ends: when the turn ends that this connection has; 0 if it has none.
        """
        try:
            at = 0
            while True:
                for event in events:
                    turn_ends = await self._share(turn_ends)
                    await self._take(event)
                events = []
                if self.peer.has_more:
                    turn_ends = await self._share(turn_ends)
                    events += self.peer.go_on()
                elif data is not None:
                    turn_ends = await self._share(turn_ends)
                    events += self.peer.receive(data[at : at + _SLICE_BYTES])
                    at += _SLICE_BYTES
                    if at >= len(data):
                        at, data = 0, None
                else:
                    self._worked_off()
                    data = self._read_on(turn_ends)
                    if data is None:
                        break
                if self.peer.unfinished and not events:
                    self.server.hold(self, self.peer.unfinished)
            self.server.driver.turns.charge(self._party, time.monotonic() - turn_ends + _TURN)
        except OSError:  # the connection broke
            self.end()
        except Exception:  # a bug: it costs this connection, not the others
            logger.exception("connection failed")
            self.end()

    def _read_on(self, turn_ends: float) -> bytes | None:
        """What has come meanwhile, if it may be read in this turn."""
        if (
            self.peer.state is not _OPEN
            or self._answers > self.server.settings.max_answer_bytes
            or time.monotonic() > turn_ends
        ):
            return None
        with suppress(BlockingIOError):
            return self.sock.recv(_READ_BYTES) or None  # of the end the watch will tell
        return None

    async def _share(self, turn_ends: float) -> float:
        """Let the others have a turn if this one is over; return when the present one ends."""
        now = time.monotonic()
        if now <= turn_ends:
            return turn_ends
        turns = self.server.driver.turns
        if turn_ends:
            turns.charge(self._party, now - turn_ends + _TURN)
        self._waits()
        await turns.wait(self._party)
        return self._had_turn() + _TURN

    def _queue(self, call: Callable[[], None]) -> None:
        """Have something done when it has its turn."""
        self._waits()
        self.server.driver.turns.queue(self._party, call)

    def _waits(self) -> None:
        self._queued, self.busy = time.monotonic(), True

    def _had_turn(self) -> float:
        """It has its turn: the time. It was our queue: that is no time that the peer has taken."""
        now = self.heard = time.monotonic()
        self.busy = False
        if self.peer.state is PeerState.REQUEST:
            self.since += now - self._queued
            self._queued = now
        return now

    @property
    def _party(self) -> Party:
        """On whose account its work goes."""
        return self.address, None if self.member is None else self.member.room.name

    async def _take(self, event: Event | Frame) -> None:
        if isinstance(event, Request):
            await self._answer(event)
        else:
            self.server.hold(self, len(event))
            if self.member is not None:
                self.busy = True
                await self.server.driver.receive(self.member, event)
                self.busy = False
            self.server.hold(self, 0)
            self.heard = time.monotonic()

    async def _answer(self, request: Request) -> None:
        driver = self.server.driver
        request = replace(request, address=_host(self.sock))
        access = await driver.authorize(request)
        if self.peer.state is not PeerState.ASKED:
            return  # it took too long
        if self.server.is_stopping:
            self.peer.refuse(503, "the server is shutting down")
            return
        early = self.peer.accept(request.subprotocol_for(access))
        self.put_output()
        self.member = driver.admit(request, access, self)
        for event in early:
            await self._take(event)

    def _worked_off(self) -> None:
        """All that was read was taken in."""
        peer = self.peer
        if peer.has_output:
            self.put_output()
        if self.held or peer.unfinished:
            self.server.hold(self, peer.unfinished)
        if peer.state is not _OPEN:
            self.put_output()
            self.leave()
            if peer.state is PeerState.DONE:
                self.flush()
                self.end()

    def _see_off(self) -> None:
        """The peer sends nothing more."""
        try:
            self.peer.receive(b"")
            self._worked_off()
        except OSError:
            self.end()
        except Exception:  # a bug: it costs this connection, not the others
            logger.exception("connection failed")
            self.end()

    def drop(self, reason: str) -> None:
        """Close it for now, and take in nothing more of the message that it is sending."""
        self.close(CloseCode.TRY_AGAIN_LATER, reason)
        self.leave()
        self.server.hold(self, 0)

    def leave(self) -> None:
        member, self.member = self.member, None
        try:
            if member is not None:
                self.server.driver.leave(member)
        except Exception:  # a bug again
            logger.exception("leaving failed")

    def end(self) -> None:
        """The connection is over, whatever state it is in."""
        if self.server.forget(self):
            self.leave()
            self._watch.stop()
            self.abort()
            if self._writing:
                anyio.notify_closing(self.sock)
            self.sock.close()

    # -- writing

    def put_output(self) -> None:
        """Queue what the peer has to say: handshake, pongs, close."""
        if output := self.peer.take_output():
            self._answers += len(output)
            if not self._dead:
                self._outbox.append(output)
                self.waiting += len(output)
                if not self._dirty:
                    self._dirty = True
                    self.server.driver.flush_soon(self)
        if not self._ending and self.peer.state in (PeerState.CLOSING, PeerState.DONE):
            self._ending = True
            self.since = time.monotonic()
            if self.peer.refusal is not None and self.peer.refusal[0] >= 400:
                status, text = self.peer.refusal
                address = _host(self.sock)
                logger.info("refused address=%s status=%d reason=%r", address, status, text)
                if text == no_room(self.server.settings.prefix)[1]:
                    self.server.warn_of(self, "it names no room")

    def _write(self) -> bool:
        """Write what the socket takes; return whether something is left."""
        outbox = self._outbox
        try:
            while outbox:
                if len(outbox) == 1 and self.waiting <= _WRITE_BYTES:
                    written = self.sock.send(outbox[0])
                    if written == self.waiting:
                        outbox.clear()
                        self.waiting = 0
                        break
                else:
                    written = self.sock.sendmsg(_first(outbox, _WRITE_BYTES))
                self.waiting -= written
                done = 0
                while done < len(outbox) and written >= len(outbox[done]):
                    written -= len(outbox[done])
                    done += 1
                del outbox[:done]
                if written:
                    outbox[0] = memoryview(outbox[0])[written:]
        except BlockingIOError:
            return True
        if self._answers:
            self._all_taken()
        if self._ending and self.peer.has_said_all:
            self.sock.shutdown(socket.SHUT_WR)
        return False

    async def _write_rest(self) -> None:
        turns = self.server.driver.turns
        try:
            while not self._dead:
                await anyio.wait_writable(self.sock)
                await turns.wait(self._party)  # many may become writable at once
                began, before = time.monotonic(), self.waiting
                if self._dead:
                    break
                full = self._write()
                turns.charge(self._party, time.monotonic() - began)
                if self.waiting < before:  # so it reads: that is a sign of life
                    self.heard = time.monotonic()
                    self.pinged = None
                if not full:
                    break
        except (OSError, anyio.ClosedResourceError):
            self.abort()
        finally:
            self._writing = False
        if self.member is not None and not self._dead:
            self.server.driver.drained(self.member)

    def _all_taken(self) -> None:
        self._answers = 0
        if self._taken is not None:
            self._taken.set()
            self._taken = None

    async def _answers_taken(self) -> None:
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
        if self.member is not None:
            self.server.driver.lost(self.member)
        self._all_taken()
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self._watch.renew()

    # -- time

    def sweep(self, now: float) -> None:
        """Do what is due: time out, ping, give up."""
        self._watch.look()
        settings = self.server.settings
        state = self.peer.state
        if state in (PeerState.REQUEST, PeerState.ASKED):
            if now >= self.since + settings.handshake_timeout and not self.busy:
                self.peer.time_out()
                self.put_output()
        elif state is PeerState.OPEN:
            if not self._was_judged and now >= self.since + settings.handshake_timeout:
                self._was_judged = True
                member = self.member
                if member is not None and member.room.state is State.OPEN and not member.synced:
                    self.server.warn_of(self, "it does not ask for the document")
            if self._is_late(now):
                self.drop("the message came too slowly")
            elif self.busy:
                pass
            elif self.pinged is None:
                if now >= self.heard + settings.ping_interval:
                    self.probe()
            elif now >= self.pinged + settings.ping_timeout:
                self.abort()
        elif now >= self.since + settings.close_timeout:
            self.abort()

    def _is_late(self, now: float) -> bool:
        """Whether a message has begun of which too little comes. Time in which it is not read does
        not count."""
        settings = self.server.settings
        came, self._came = self._came, self.peer.unfinished
        if self.busy or self._came < max(came, 1):  # none has begun, or a new one
            self._late_at = inf
        won = (self._came - came) / settings.message_rate
        self._late_at = min(self._late_at + won, now + settings.message_timeout)
        return now >= self._late_at


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
        self.framing = _Framing()
        self.tasks: anyio.abc.TaskGroup
        self.loop: EventLoop
        self.is_stopping = False
        self._sockets: set[_Socket] = set()
        self._addresses: Counter[str | None] = Counter()
        """How many of them come from each."""
        self._held = 0
        """How much they hold in all of messages."""
        self._refused = _Refused()
        self._warned = self._warned_of_space = -inf
        self._accepting = anyio.CancelScope()
        self._patience = anyio.CancelScope()
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
            unsynced=self.driver.unsynced,
        )

    def stop(self, *, hurry: bool = False) -> None:
        """Have `serve` stop accepting, store what was accepted, send everyone away, and return.

        Args:
            hurry: wait no longer for a store that does not finish, nor for anybody's goodbye. May
                be said later, too.
        """
        if hurry:
            self._patience.cancel()
        self._accepting.cancel()

    async def serve(self) -> None:
        """Serve until `stop` is called. Closes the listeners."""
        try:
            await self._serve()
        finally:
            for sock in tuple(self._sockets):
                sock.end()

    async def _serve(self) -> None:
        async with anyio.create_task_group() as self.tasks:
            self.loop = event_loop(self.tasks)
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
        self.is_stopping = True
        drained = False
        with self._patience:
            with anyio.move_on_after(self.settings.shutdown_timeout):
                await self.driver.drain()
                drained = True
            for sock in tuple(self._sockets):
                if sock.member is None or not drained:
                    sock.abort()  # still in its handshake; or what it waits for won't come
            if self._sockets:
                with anyio.move_on_after(self.settings.shutdown_timeout):
                    await self._all_gone.wait()
        if not drained:
            logger.error("shutdown: the store did not finish in time")

    async def _accept(self, listener: socket.socket) -> None:
        until = 0.0
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
            if time.monotonic() > until:
                await lowlevel.checkpoint()
                until = time.monotonic() + _TURN

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
        self._sockets.add(_Socket(self, sock, address))
        self._addresses[address] += 1

    def warn_of(self, sock: _Socket, problem: str) -> None:
        """A WebSocket is open or was asked for, and its client waits for what will never come. Say
        so, but not of everyone."""
        now = time.monotonic()
        if now >= self._warned + _WARN_EVERY:
            self._warned = now
            logger.warning(
                "a client does not speak y-websocket (a HocuspocusProvider?) address=%s problem=%r",
                _host(sock.sock),
                problem,
            )

    def forget(self, sock: _Socket) -> bool:
        """A connection is over. Returns whether that is news."""
        if sock not in self._sockets:
            return False
        self.hold(sock, 0)
        self._sockets.discard(sock)
        self._addresses[sock.address] -= 1
        if not self._addresses[sock.address]:
            del self._addresses[sock.address]
        if self.is_stopping and not self._sockets:
            self._all_gone.set()
        return True

    def hold(self, sock: _Socket, size: int) -> None:
        """Note how much is kept of a connection's message; if all keep too much, let some go."""
        if size and not sock.held:
            sock.began = time.monotonic()
        self._held += size - sock.held
        sock.held = size
        if self._held > self.settings.max_unfinished_bytes:
            self._make_space()

    def _make_space(self) -> None:
        """Close connections that keep too much. Some more than need be: to look for them takes
        10 ms if there are many."""
        enough = self.settings.max_unfinished_bytes * 15 // 16
        now = time.monotonic()
        kept: Counter[str | None] = Counter()
        for sock in self._sockets:
            kept[sock.address] += sock.held
        [(address, _)] = kept.most_common(1)
        theirs = [sock for sock in self._sockets if sock.address == address and sock.held]
        theirs.sort(key=lambda sock: sock.held * (1 + now - sock.began), reverse=True)
        if now >= self._warned_of_space + _WARN_EVERY:
            self._warned_of_space = now
            logger.warning("messages take too much memory bytes=%d address=%s", self._held, address)
        for sock in theirs:
            if self._held <= enough:
                break
            sock.drop("the server has too much to read at once")

    async def _sweep(self) -> None:
        while True:
            await anyio.sleep(_SWEEP)
            now = time.monotonic()
            self._refused.sweep(now)
            until = now + _TURN
            for sock in tuple(self._sockets):
                if time.monotonic() > until:
                    await lowlevel.checkpoint()
                    now = time.monotonic()
                    until = now + _TURN
                if sock in self._sockets:
                    sock.sweep(now)


def _first(outbox: list[bytes | memoryview], size: int) -> list[bytes | memoryview]:
    """What is in front, up to so many bytes."""
    some = []
    for data in outbox[:_WRITE_PARTS]:
        some.append(memoryview(data)[:size] if len(data) > size else data)
        size -= len(data)
        if size <= 0:
            break
    return some
