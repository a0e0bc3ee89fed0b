"""A small WebSocket client for tests: wsproto over an anyio stream, with nothing automatic."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import anyio
import wsproto
from anyio.abc import SocketAttribute, SocketStream
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    Request,
)
from wsproto.extensions import Extension

Address: TypeAlias = tuple[str, int] | str
"""Of a TCP socket, or the path of a Unix one."""


class Closed(Exception):
    """The server closed the connection; without a close frame, the code is 1006."""

    def __init__(self, code: int, reason: str | None) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code


class Refused(Exception):
    """The server did not open a WebSocket."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


async def connect_stream(address: Address) -> SocketStream:
    if isinstance(address, str):
        return await anyio.connect_unix(address)
    return await anyio.connect_tcp(*address)


class WsClient:
    """An open WebSocket. Made by `connect`."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self.answers_pings = True
        self.pings = 0
        """How many were read."""
        self._ws = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self._events: list[Event] = []
        self._parts: list[bytes] = []

    async def open(
        self,
        path: str,
        *,
        subprotocols: list[str] | None = None,
        extensions: list[Extension] | None = None,
        headers: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        request = Request(
            host="test",
            target=path,
            subprotocols=subprotocols or [],
            extensions=list(extensions or []),
            extra_headers=headers or [],
        )
        await self.stream.send(self._ws.send(request))
        answer = await self._next()
        if isinstance(answer, RejectConnection):
            raise Refused(answer.status_code)
        assert isinstance(answer, AcceptConnection), answer

    async def _next(self) -> Event:
        while not self._events:
            try:
                data = await self.stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                raise Closed(1006, None) from None
            self._ws.receive_data(data)
            self._events += self._ws.events()
        return self._events.pop(0)

    async def send(self, *frames: bytes) -> None:
        """Send messages, in one write."""
        await self.stream.send(
            b"".join(self._ws.send(BytesMessage(data=frame)) for frame in frames)
        )

    async def receive(self) -> bytes:
        """The next message. Pings before it are answered.

        Raises:
            Closed: there is none.
        """
        while True:
            event = await self._next()
            if isinstance(event, BytesMessage):
                self._parts.append(bytes(event.data))
                if event.message_finished:
                    message, self._parts = b"".join(self._parts), []
                    return message
            else:
                await self._react(event)

    async def pinged(self) -> None:
        """Wait for a ping, and answer it. What comes before it is lost."""
        while not isinstance(event := await self._next(), Ping):
            pass
        await self._react(event)

    async def _react(self, event: Event) -> None:
        if isinstance(event, Ping):
            self.pings += 1
            if self.answers_pings:
                await self.stream.send(self._ws.send(event.response()))
        elif isinstance(event, CloseConnection):
            if self._ws.state is ConnectionState.REMOTE_CLOSING:
                await self.stream.send(self._ws.send(event.response()))
            raise Closed(event.code, event.reason)

    async def until(self, is_it: Callable[[bytes], bool]) -> bytes:
        """Read on until this message."""
        while True:
            message = await self.receive()
            if is_it(message):
                return message

    async def closed(self) -> int:
        """Read on until the server closes; return the code."""
        try:
            while True:
                await self.receive()
        except Closed as exc:
            return exc.code

    async def close(self) -> None:
        """Close in order."""
        await self.stream.send(self._ws.send(CloseConnection(code=1000)))
        await self.closed()

    def kill(self) -> None:
        """Let the connection break, as when a machine vanishes that is reset later."""
        raw: socket.socket = self.stream.extra(SocketAttribute.raw_socket)
        if raw.family != socket.AF_UNIX:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@asynccontextmanager
async def connect(
    address: Address,
    path: str = "/r",
    *,
    subprotocols: list[str] | None = None,
    extensions: list[Extension] | None = None,
    headers: list[tuple[bytes, bytes]] | None = None,
) -> AsyncIterator[WsClient]:
    """Open a WebSocket. At the end the connection is dropped without a word."""
    async with await connect_stream(address) as stream:
        client = WsClient(stream)
        await client.open(path, subprotocols=subprotocols, extensions=extensions, headers=headers)
        yield client


async def ask(address: Address, data: bytes, *, half_close: bool = False) -> bytes:
    """Send these bytes, and read all that comes."""
    received = b""
    async with await connect_stream(address) as stream:
        await stream.send(data)
        if half_close:
            await stream.send_eof()
        async for piece in stream:
            received += piece
    return received
