"""One HTTP connection that may become a WebSocket: bytes in, events and bytes out, no I/O.

h11 reads the request; wsproto speaks WebSocket once it was accepted. Plain requests are answered
here, each with a short text and `Connection: close`.

    receive(bytes) -> events;  then send what `take_output()` gives
    Request -> answer with accept() or refuse()
    Message -> one whole binary message
    state   -> DONE: close the socket once the output is sent
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Final, TypeAlias
from urllib.parse import unquote_to_bytes

import h11
import wsproto
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    TextMessage,
)
from wsproto.frame_protocol import FrameProtocol
from wsproto.utilities import RemoteProtocolError

from ycore import CloseCode

MAX_REQUEST_BYTES: Final = 16 * 1024
"""How long a request line with its headers may be. Tokens in cookies and queries fit."""


class PeerState(Enum):
    REQUEST = "request"
    """The request is being read."""
    ASKED = "asked"
    """It was, and waits for `accept` or `refuse`."""
    OPEN = "open"
    CLOSING = "closing"
    """We sent our close frame, or an HTTP answer. What still comes is ignored."""
    DONE = "done"
    """Both sides have said all."""


@dataclass(frozen=True, slots=True)
class Request:
    """A WebSocket wants to be opened."""

    room: str
    """From the path: without the prefix, percent-decoded."""
    path: str
    """As it was sent, without the query."""
    query: str
    """As it was sent, without the question mark."""
    headers: tuple[tuple[bytes, bytes], ...]
    """Names in lower case."""


@dataclass(frozen=True, slots=True)
class Message:
    """One whole binary message."""

    data: bytes


Event: TypeAlias = Request | Message


class Peer:
    """The server's side of one connection.

    Args:
        prefix: what the path must begin with, "/" at both ends; the rest of it names the room.
        max_message_bytes: longer messages close the connection (1009) before they are read whole.
    """

    def __init__(self, *, prefix: str = "/", max_message_bytes: int = 64 * 2**20) -> None:
        self.state = PeerState.REQUEST
        self._prefix = prefix
        self._max_message_bytes = max_message_bytes
        self._http: h11.Connection | None = h11.Connection(
            h11.SERVER, max_incomplete_event_size=MAX_REQUEST_BYTES
        )
        self._ws: wsproto.WSConnection | None = None
        self._subprotocols: list[str] = []
        self._wants_body = True
        self._message = bytearray()
        """What has come of a message in fragments."""
        self._output: list[bytes] = []

    @property
    def has_said_all(self) -> bool:
        """Whether nothing will follow the output so far, nor an answer of the peer be read."""
        return self.state is PeerState.DONE or (self.state is PeerState.CLOSING and not self._ws)

    def take_output(self) -> bytes:
        """What is to be sent, and no longer kept here."""
        output, self._output = b"".join(self._output), []
        return output

    def receive(self, data: bytes) -> list[Event]:
        """Take in bytes from the socket; b"" is its end."""
        if not data:
            self.state = PeerState.DONE
        if self.state is PeerState.DONE:
            return []
        if self.state is PeerState.REQUEST:
            return self._receive_http(data)
        if self._ws is not None:
            return self._receive_websocket(data)
        return []

    # -- HTTP

    def _receive_http(self, data: bytes) -> list[Event]:
        assert self._http is not None
        self._http.receive_data(data)
        try:
            event = self._http.next_event()
        except h11.RemoteProtocolError as exc:
            self._answer(exc.error_status_hint, "malformed request")
            return []
        if not isinstance(event, h11.Request):
            return []  # NEED_DATA
        path, _, query = event.target.decode("ascii").partition("?")
        headers = tuple(event.headers)
        self._wants_body = event.method != b"HEAD"
        # h11's own limit only holds for what comes in pieces.
        if len(event.target) + sum(len(a) + len(b) + 4 for a, b in headers) > MAX_REQUEST_BYTES:
            self._answer(431, "the request is too long")
            return []
        if not any(name == b"upgrade" and b"websocket" in value.lower() for name, value in headers):
            self._answer_plain(event.method, path)
            return []
        if event.method != b"GET":
            self._answer(405, "only GET", [(b"Allow", b"GET, HEAD")])
            return []
        if event.http_version < b"1.1":
            self._answer(400, "a WebSocket needs HTTP/1.1")
            return []
        if any(name in (b"content-length", b"transfer-encoding") for name, _ in headers):
            self._answer(400, "a WebSocket request has no body")
            return []
        room = self._room_of(path)
        if room is None:
            return []
        ws = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        try:
            ws.initiate_upgrade_connection(list(headers), event.target.decode("ascii"))
            request = next(iter(ws.events()))
        except RemoteProtocolError as exc:
            hint = exc.event_hint
            status = hint.status_code if isinstance(hint, RejectConnection) else 400
            extra = list(hint.headers) if isinstance(hint, RejectConnection) else []
            self._answer(status, str(exc), extra)
            return []
        except ValueError:  # wsproto decodes some headers without a net
            self._answer(400, "malformed request")
            return []
        assert isinstance(request, wsproto.events.Request)
        self._ws = ws
        self._subprotocols = request.subprotocols
        self.state = PeerState.ASKED
        return [Request(room, path, query, headers)]

    def _room_of(self, path: str) -> str | None:
        """The room a path names; answers and returns None if it names none."""
        if not path.startswith(self._prefix) or path == self._prefix:
            self._answer(404, f"no room here: connect to {self._prefix}your-room-name")
            return None
        try:
            return unquote_to_bytes(path[len(self._prefix) :]).decode()
        except UnicodeDecodeError:
            self._answer(400, "the room name is not UTF-8")
            return None

    def _answer_plain(self, method: bytes, path: str) -> None:
        if method not in (b"GET", b"HEAD"):
            self._answer(405, "only GET", [(b"Allow", b"GET, HEAD")])
        elif path == "/health":
            self._answer(200, "ok")
        elif path.startswith(self._prefix) and path != self._prefix:
            self._answer(426, "connect with a WebSocket", [(b"Upgrade", b"websocket")])
        else:
            self._answer(404, "nothing here")

    def _answer(
        self, status: int, text: str, extra: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        assert self._http is not None
        body = f"{text}\n".encode()
        headers = [
            (b"Content-Type", b"text/plain; charset=utf-8"),
            (b"Content-Length", str(len(body)).encode()),
            (b"Connection", b"close"),
            *(extra or []),
        ]
        reason = HTTPStatus(status).phrase.encode()
        response = h11.Response(status_code=status, headers=headers, reason=reason)
        self._output.append(self._http.send(response) or b"")
        if self._wants_body:
            self._output.append(self._http.send(h11.Data(data=body)) or b"")
        self._http = None
        self.state = PeerState.CLOSING

    def accept(self) -> list[Event]:
        """Open the WebSocket. Returns what the peer sent already."""
        assert self._ws is not None
        assert self._http is not None
        # Browsers fail the connection if none of the subprotocols they offer is selected.
        subprotocol = next(filter(None, self._subprotocols), None)
        self._output.append(self._ws.send(AcceptConnection(subprotocol=subprotocol)))
        self.state = PeerState.OPEN
        early, _ = self._http.trailing_data
        self._http = None
        return self._receive_websocket(early) if early else []

    def refuse(self, status: int, reason: str) -> None:
        """Answer the request with an HTTP status."""
        self._ws = None
        self._answer(status, reason)

    def time_out(self) -> None:
        """The request took too long."""
        if self._http is not None:
            self._answer(408, "the request took too long")

    # -- WebSocket

    def _receive_websocket(self, data: bytes) -> list[Event]:
        assert self._ws is not None
        self._ws.receive_data(data)
        messages: list[Event] = []
        ping: Ping | None = None
        for event in self._ws.events():
            if isinstance(event, CloseConnection):
                self._closed_by_peer(event)
                break
            if self.state is not PeerState.OPEN:
                continue
            if isinstance(event, BytesMessage):
                self._message += event.data
                if len(self._message) > self._max_message_bytes:
                    limit = f"a message is at most {self._max_message_bytes} bytes"
                    self.close(CloseCode.MESSAGE_TOO_BIG, limit)
                elif event.message_finished:
                    messages.append(Message(bytes(self._message)))
                    self._message = bytearray()
            elif isinstance(event, TextMessage):
                self.close(CloseCode.UNSUPPORTED_DATA, "binary messages only")
            elif isinstance(event, Ping):
                ping = event
        if ping is not None and self.state is PeerState.OPEN:
            # The latest of several is enough (RFC 6455 section 5.5.3).
            self._output.append(self._ws.send(ping.response()))
        return messages

    def _closed_by_peer(self, event: CloseConnection) -> None:
        assert self._ws is not None
        if self._ws.state is ConnectionState.REMOTE_CLOSING:
            self._output.append(self._ws.send(event.response()))
        elif self._ws.state is ConnectionState.OPEN:
            # A protocol error: wsproto says how to close, and leaves it to us.
            self._output.append(self._ws.send(CloseConnection(event.code, event.reason)))
            self._ws = None
            self.state = PeerState.CLOSING
            return
        self.state = PeerState.DONE

    def close(self, code: CloseCode, reason: str) -> None:
        """Send our close frame. The peer's answer makes it DONE."""
        if self.state is PeerState.OPEN:
            assert self._ws is not None
            self._output.append(self._ws.send(CloseConnection(code, reason)))
            self._message = bytearray()
            self.state = PeerState.CLOSING

    def ping(self) -> None:
        if self.state is PeerState.OPEN:
            assert self._ws is not None
            self._output.append(self._ws.send(wsproto.events.Ping()))


_framer = FrameProtocol(client=False, extensions=[])


def frame_message(data: bytes) -> bytes:
    """A binary message as the bytes of one WebSocket frame: the same for every receiver, since
    servers don't mask and we negotiate no extension."""
    return bytes(_framer.send_data(data, fin=True))
