"""A client: keeps a document level with a room of a server, over a WebSocket, on asyncio and trio.

    async with connect("ws://127.0.0.1:1234", doc, room="my room") as client:
        await client.synced()
        doc.get_text("text").append("Hello")
        client.state = {"user": {"name": "Ada"}}
        await client.flush()

The connection is made in the background, and made again whenever it breaks; edits may be made at
any time, and go out when there is one. The document belongs to the event loop's thread: edit it
there and nowhere else, since edits are sent as they are made. What to say and when to come back is
decided in `ycore.provider`; here are the sockets.
"""

from __future__ import annotations

import logging
import os
import random
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from math import inf
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import anyio
import anyio.abc

from ycore import CloseCode, Document, Provider, ProviderSettings
from ycore.provider import (
    CloseConnection,
    Effect,
    Event,
    Flushed,
    GaveUp,
    OpenConnection,
    SendFrame,
    SendPing,
    Status,
)

from ._client_peer import ClientPeer, Message, Opened, Refused

__all__ = [
    "Client",
    "ClientError",
    "DeniedError",
    "DisconnectedError",
    "GaveUpError",
    "connect",
]

logger = logging.getLogger(__name__)

_READ_BYTES: Final = 64 * 1024
_OUTBOX_BYTES: Final = 256 * 1024
"""How many bytes may wait for the socket. With more, edits are no longer sent one by one: what they
come to is sent at once when the socket has taken all."""
_CLOSE_TIMEOUT: Final = 2.0
"""Seconds a server may take to answer our close frame."""
_LEAVE_TIMEOUT: Final = 2.0
"""Seconds it may take to store what was edited last, when the client is left."""
_PATH_CHARACTERS: Final = "/!$&'()*+,;=:@~"
"""What is not percent-encoded in a room's name. The slash is among them because y-websocket's
server takes the name as it was sent, and its clients don't encode it."""
_BAD_CERTIFICATE: Final = 1015
_BROKEN: Final = 1006


class ClientError(Exception):
    """Base of the errors below. Never raised itself."""


class GaveUpError(ClientError):
    """The server won't have us, and trying again is of no use (`ycore.provider.is_final`).

    `code` is that of its close frame, or the status of HTTP with which it refused to open a
    WebSocket. `Client.connect` tries again all the same.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}".rstrip())
        self.code = code
        self.reason = reason


class DeniedError(ClientError):
    """The server refused edits: the connection is read-only, say. It has told the `reason`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DisconnectedError(ClientError):
    """`Client.disconnect` was called, so what is waited for won't happen."""


class _Place:
    """Where a server is, and what to ask it for."""

    def __init__(
        self,
        url: str,
        *,
        room: str | None,
        params: Mapping[str, str],
        ssl_context: ssl.SSLContext | None,
        unix_socket: str | os.PathLike[str] | None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise ValueError(f"not a URL of a WebSocket: {url!r}")
        if parts.username is not None or parts.fragment:
            raise ValueError(f"neither a user nor a fragment may be in the URL: {url!r}")
        self.host = parts.hostname
        self.port = parts.port or (443 if parts.scheme == "wss" else 80)
        self.host_header = parts.netloc.encode("idna").decode()
        path = quote(parts.path, safe=_PATH_CHARACTERS + "%")
        if room is not None:
            path = f"{path.rstrip('/')}/{quote(room, safe=_PATH_CHARACTERS)}"
        query = "&".join(filter(None, (parts.query, urlencode(params))))
        self.url = f"{parts.scheme}://{parts.netloc}{path}"
        self.target = (path or "/") + (f"?{query}" if query else "")
        self.unix_socket = unix_socket
        self.ssl_context = None
        if parts.scheme == "wss":
            self.ssl_context = ssl_context or ssl.create_default_context()

    async def open(self) -> anyio.abc.ByteStream:
        """Open a socket.

        Raises:
            OSError: that can't be done.
        """
        if self.unix_socket is not None:
            return await anyio.connect_unix(self.unix_socket)
        if self.ssl_context is None:
            return await anyio.connect_tcp(self.host, self.port)
        return await anyio.connect_tcp(
            self.host,
            self.port,
            ssl_context=self.ssl_context,
            # WebSocket has a goodbye of its own; few servers say that of TLS.
            tls_standard_compatible=False,
        )


class _Connection:
    """One attempt to have a WebSocket, until its end."""

    def __init__(self, client: Client, place: _Place, peer: ClientPeer) -> None:
        self._client = client
        self._place = place
        self._peer = peer
        self.closing = False
        """Whether it is over for the provider."""
        self.retry_after: float | None = None
        self._scope = anyio.CancelScope()
        self.was_open = False
        """Whether there was a WebSocket."""
        self._outbox: list[bytes] = []
        self._waiting = 0
        """How many bytes the socket has not taken."""
        self._more = anyio.Event()
        """Set when there is something to write, or will not be any more."""
        self._finishing = False

    # -- what the provider asks

    def send(self, frame: bytes) -> None:
        self._peer.send(frame)
        self._put_output()
        if self._waiting > _OUTBOX_BYTES:
            self._client.provider.stall()

    def ping(self) -> None:
        self._peer.ping()
        self._put_output()

    def close(self, code: CloseCode, reason: str) -> None:
        self.closing = True
        if self.was_open:
            self._peer.close(code, reason)
            self._put_output()
            self._scope.deadline = anyio.current_time() + _CLOSE_TIMEOUT
        else:
            self._scope.cancel()

    # -- the socket

    async def run(self) -> tuple[int, str]:
        """Have the connection; return the code and the reason of its end."""
        with self._scope:
            try:
                stream = await self._place.open()
            except ssl.SSLCertVerificationError as exc:
                return _BAD_CERTIFICATE, exc.verify_message
            except (OSError, anyio.BrokenResourceError, anyio.EndOfStream) as exc:
                return _BROKEN, str(exc) or "the connection could not be opened"
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._write, stream, tasks.cancel_scope)
                    self._put(self._peer.request())
                    await self._read(stream)
                    self._finishing = True
                    self._more.set()
                    self._scope.deadline = anyio.current_time() + _CLOSE_TIMEOUT
            finally:
                await anyio.aclose_forcefully(stream)
        return self._peer.ended or (_BROKEN, "the connection broke")

    async def _read(self, stream: anyio.abc.ByteStream) -> None:
        client, peer = self._client, self._peer
        while peer.ended is None:
            try:
                data = await stream.receive(_READ_BYTES)
            except (OSError, anyio.EndOfStream, anyio.BrokenResourceError):
                data = b""
            if data and not self.closing:
                client.provider.heard(now=anyio.current_time())
            for event in peer.receive(data):
                if self.closing:
                    break
                now = anyio.current_time()
                if isinstance(event, Message):
                    client.carry_out(client.provider.receive(event.data, now=now))
                elif isinstance(event, Opened):
                    self.was_open = True
                    client.subprotocol = event.subprotocol
                    client.carry_out(client.provider.connected(now=now))
                elif isinstance(event, Refused):
                    self.retry_after = event.retry_after
            self._put_output()

    def _put_output(self) -> None:
        self._put(self._peer.take_output())

    def _put(self, data: bytes) -> None:
        if data:
            self._outbox.append(data)
            self._waiting += len(data)
            self._more.set()

    async def _write(self, stream: anyio.abc.ByteStream, reading: anyio.CancelScope) -> None:
        try:
            while True:
                while not self._outbox:
                    if self._finishing:
                        return
                    self._more = anyio.Event()
                    await self._more.wait()
                data = b"".join(self._outbox)
                self._outbox.clear()
                await stream.send(data)
                self._waiting -= len(data)
                if not self._waiting and not self.closing:
                    client = self._client
                    client.carry_out(client.provider.drained(now=anyio.current_time()))
        except (OSError, anyio.BrokenResourceError):
            reading.cancel()


class Client:
    """A document's connection to a room. Made by `connect`.

    Everything here is for the event loop's thread.
    """

    def __init__(self, provider: Provider, dial: Callable[[Client], _Connection], url: str) -> None:
        self.provider = provider
        """The conversation. Its updates have it as their origin."""
        self.url = url
        """Where the room is, without the query, which may have a token in it."""
        self.subprotocol: str | None = None
        """Which of those offered the server chose for the latest connection."""
        self._dial = dial
        self._connection: _Connection | None = None
        self._wanted = False
        """Whether a connection is to be opened, once the one before is closed."""
        self._gave_up: GaveUp | None = None
        self._flushed = Flushed(0, None)
        self._observers: dict[object, Callable[[Event], None]] = {}
        self._effects: deque[Effect] = deque()
        self._is_busy = False
        self._alarm = inf
        """When `_keep_time` will look next."""
        self._changed = anyio.Event()
        """Set when anything happened, and replaced by another one."""
        self._earlier = anyio.Event()
        self._scope = anyio.CancelScope(shield=True)
        self._is_over = False

    # -- how it stands

    @property
    def status(self) -> Status:
        return self.provider.status

    @property
    def state(self) -> Any:
        """What we show of ourselves to the others: any JSON value, such as
        `{"user": {"name": "Ada"}}`, which editors show; None if nothing. Assign it anew to change
        it."""
        return self.provider.state

    @state.setter
    def state(self, state: Any) -> None:
        self.carry_out(self.provider.set_state(state, now=anyio.current_time()))

    @property
    def peers(self) -> dict[int, Any]:
        """What the others show who are here, by client id."""
        return self.provider.peers

    @property
    def states(self) -> dict[int, Any]:
        """What all show who are here, by client id: `peers`, and ourselves if we show anything."""
        return self.provider.states

    def observe(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Have `callback(event)` called for each event (see `ycore.provider`), such as
        `PresenceChanged` or `Lost`. Returns what ends that. It must not raise: that would end the
        client."""
        key = object()
        self._observers[key] = callback
        return lambda: self._observers.pop(key, None) and None

    # -- waiting

    async def synced(self) -> None:
        """Wait until the document has what the server has.

        Raises:
            GaveUpError, DisconnectedError: it won't.
        """
        while self.status is not Status.SYNCED:
            self._check()
            await self._changed.wait()

    async def flush(self) -> None:
        """Wait until the server has stored all edits up to now, across reconnections if need be.

        ycore's server answers when its store has them; others, when they have taken them in.

        Raises:
            DeniedError: it refused some on this connection.
            GaveUpError, DisconnectedError: it won't.
        """
        number, effects = self.provider.flush(now=anyio.current_time())
        self.carry_out(effects)
        while self._flushed.number < number:
            self._check()
            await self._changed.wait()
        if self._flushed.denied is not None:
            raise DeniedError(self._flushed.denied)

    async def disconnected(self) -> None:
        """Wait until there is no connection and none is tried: `disconnect` was called.

        Raises:
            GaveUpError: the server won't have us.
        """
        while self.status is not Status.DISCONNECTED:
            if self.status is Status.GAVE_UP:
                self._check()
            await self._changed.wait()

    def _check(self) -> None:
        if self.status is Status.GAVE_UP:
            assert self._gave_up is not None
            raise GaveUpError(self._gave_up.code, self._gave_up.reason)
        if self.status is Status.DISCONNECTED:
            raise DisconnectedError("the client was told to disconnect")

    # -- by hand

    def connect(self) -> None:
        """Have a connection again, after `disconnect` or a `GaveUpError`; or try at once, rather
        than when it is time."""
        self.carry_out(self.provider.connect(now=anyio.current_time()))

    def disconnect(self) -> None:
        """Say goodbye, and have no connection until `connect`."""
        self.carry_out(self.provider.disconnect(now=anyio.current_time()))

    # -- inside

    def carry_out(self, effects: list[Effect]) -> None:
        """Do what the provider wants. What an observer brings about meanwhile comes after it."""
        self._effects += effects
        if self._is_busy:
            return
        self._is_busy = True
        try:
            while self._effects:
                self._carry_out(self._effects.popleft())
        finally:
            self._is_busy = False
        self._changed.set()
        self._changed = anyio.Event()
        due = self.provider.next_timeout()
        if due is not None and due < self._alarm:
            self._earlier.set()

    def _carry_out(self, effect: Effect) -> None:
        connection = self._connection
        if isinstance(effect, SendFrame):
            if connection is not None:
                connection.send(effect.frame)
        elif isinstance(effect, SendPing):
            if connection is not None:
                connection.ping()
        elif isinstance(effect, OpenConnection):
            self._wanted = True
        elif isinstance(effect, CloseConnection):
            if self._wanted:
                self._wanted = False
            elif connection is not None:
                connection.close(effect.code, effect.reason)
        else:
            if isinstance(effect, GaveUp):
                self._gave_up = effect
            elif isinstance(effect, Flushed):
                self._flushed = effect
            for observer in tuple(self._observers.values()):
                observer(effect)

    def on_update(self, update: bytes, origin: object) -> None:
        """The document changed."""
        if origin is not self.provider:
            self.carry_out(self.provider.local_update(update))

    async def work(self) -> None:
        """Keep the connection until told to stop by `leave`, even if all around is cancelled."""
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._keep_time)
                    await self._keep_connected()
        finally:
            self._is_over = True

    async def leave(self) -> None:
        """Have the last edits stored, and say goodbye, if that can be done soon."""
        if not self._is_over:
            with anyio.move_on_after(_LEAVE_TIMEOUT, shield=True):
                while (
                    self.provider.unconfirmed
                    and self.status in (Status.SYNCING, Status.SYNCED)
                    and self.provider.denied is None
                ):
                    await self._flush_while_connected()
            self.disconnect()
            with anyio.move_on_after(2 * _CLOSE_TIMEOUT, shield=True):
                while self._connection is not None and not self._is_over:
                    await self._changed.wait()
        self._scope.cancel()

    async def _flush_while_connected(self) -> None:
        number, effects = self.provider.flush(now=anyio.current_time())
        self.carry_out(effects)
        while self._flushed.number < number and self.status in (Status.SYNCING, Status.SYNCED):
            await self._changed.wait()

    async def _keep_connected(self) -> None:
        failed = False
        while True:
            while not self._wanted:
                await self._changed.wait()
            self._wanted = False
            connection = self._connection = self._dial(self)
            code, reason = await connection.run()
            self._connection = None
            if connection.was_open:
                failed = False
            elif not connection.closing:
                # Once in a row of failures; `observe` hears of each.
                level = logging.INFO if failed else logging.WARNING
                logger.log(level, "can't connect url=%s code=%d reason=%r", self.url, code, reason)
                failed = True
            effects: list[Effect] = []
            if not connection.closing:
                effects = self.provider.connection_lost(
                    code, reason, now=anyio.current_time(), retry_after=connection.retry_after
                )
            self.carry_out(effects)

    async def _keep_time(self) -> None:
        while True:
            due = self.provider.next_timeout()
            self._alarm = inf if due is None else due
            self._earlier = anyio.Event()
            with anyio.CancelScope(deadline=self._alarm):
                await self._earlier.wait()
            self.carry_out(self.provider.handle_timeout(now=anyio.current_time()))


@asynccontextmanager
async def connect(
    url: str,
    doc: Document,
    *,
    room: str | None = None,
    params: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    subprotocols: Sequence[str] = (),
    ssl_context: ssl.SSLContext | None = None,
    unix_socket: str | os.PathLike[str] | None = None,
    settings: ProviderSettings | None = None,
    max_message_bytes: int = 256 * 2**20,
) -> AsyncIterator[Client]:
    """Connect a document to a room, for as long as the context lasts.

    Does not wait for the connection: see `Client.synced`. While there is no server, it tries again
    and again, and logs a warning at the first time. At the end, the last edits are stored if
    there is a connection (2 s are given to that), the others are told that we are gone, and the
    connection is closed.

    Args:
        url: of the server, `ws://` or `wss://`; with the room, if `room` is not given.
        room: its name, as it is: it is percent-encoded here, but for slashes.
        params: for the query, such as a token.
        headers: for the request, such as Authorization or Origin.
        subprotocols: to offer.
        ssl_context: for `wss://`, another than the system's defaults.
        unix_socket: connect there, and not to the URL's host.
        settings: of the conversation: backoff, timeouts.
        max_message_bytes: a longer message is final (1009). A whole document may come in one;
            ycore's server lets it grow to 256 MB.

    Raises:
        ValueError: the URL is none of a WebSocket.
    """
    place = _Place(
        url, room=room, params=params or {}, ssl_context=ssl_context, unix_socket=unix_socket
    )

    def dial(client: Client) -> _Connection:
        peer = ClientPeer(
            place.host_header,
            place.target,
            headers=tuple((headers or {}).items()),
            subprotocols=subprotocols,
            max_message_bytes=max_message_bytes,
        )
        return _Connection(client, place, peer)

    provider = Provider(doc, random=random.random, settings=settings)
    client = Client(provider, dial, place.url)
    dial(client)  # so that a header that is none is an error here
    failed: Exception | None = None
    unsubscribe = doc.observe_updates(client.on_update)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.work)
            client.connect()
            try:
                yield client
            except Exception as exc:  # raised below, as it is and not in a group
                failed = exc
            finally:
                await client.leave()
    finally:
        unsubscribe()
    if failed is not None:
        raise failed
