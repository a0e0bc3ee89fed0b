"""One HTTP connection that may become a WebSocket: bytes in, events and bytes out, no I/O.

h11 reads the request, `_handshake` judges it, and wsproto speaks WebSocket once it was accepted.
Plain requests are answered here, each with a short text and `Connection: close`.

    receive(bytes) -> events;  then send what `take_output()` gives
    has_more -> go_on() -> events, when others have had a turn
    Request -> answer with accept() or refuse()
    bytes   -> one whole binary message
    state   -> DONE: close the socket once the output is sent

What comes is worked off at once, in time linear in its bytes, but that a compressed message is
inflated a little at a time. What is kept of it is bounded: of a request by `max_request_bytes`, of
a message by `max_message_bytes`. Of what is to be sent only pongs add up: of the pings that come
together a few are answered, and the caller stops reading when too many answers wait.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from enum import Enum
from http import HTTPStatus
from io import BytesIO
from typing import Final, TypeAlias
from urllib.parse import unquote_to_bytes

import h11
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage
from wsproto.frame_protocol import CloseReason

from ycore import CloseCode

from ._deflate import Inbound, Window, deflate, negotiate
from ._handshake import (
    BadRequest,
    accept_headers,
    check_request,
    check_subprotocols,
    elements,
    split_target,
    wants_websocket,
)
from ._paths import in_prefix, no_room, plain_answer
from .hooks import Request

_FIN_BINARY: Final = 0x82
_PING: Final = 0x89
_PONG: Final = 0x8A
_PONGS: Final = 10
"""How many pings that come together are answered each, since who sends a few may count. Of more,
only the latest is (RFC 6455 section 5.5.3)."""

_INFLATE_BYTES: Final = 512
"""How much is inflated in one go: to 528 KB at most."""
_INFLATED: Final = 256 * 1024
"""After how many inflated bytes others get a turn."""
_COMPRESS_FROM: Final = 256
_COMPRESS_UPTO: Final = 512 * 1024
"""Messages of how many bytes are compressed. Less is not worth the trouble, and nothing is found in
a keystroke at all; more would hold up everyone else while it is done: 1 MB takes 12 to 23 ms."""


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


Event: TypeAlias = Request | bytes


class Peer:
    """The server's side of one connection.

    Args:
        prefix: what the path must begin with, "/" at both ends; the rest of it names the room.
        max_message_bytes: longer messages close the connection (4413) before they are read.
        max_request_bytes, max_request_headers: longer requests are answered with 431.
        compression: whether permessage-deflate is negotiated with who offers it.
    """

    def __init__(
        self,
        *,
        prefix: str = "/",
        max_message_bytes: int = 64 * 2**20,
        max_request_bytes: int = 16 * 1024,
        max_request_headers: int = 100,
        compression: bool = False,
        health: Callable[[], str | None] = lambda: None,
        unsynced: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.state = PeerState.REQUEST
        self.refusal: tuple[int, str] | None = None
        """The HTTP status and the text with which a request was answered, if no WebSocket came of
        it."""
        self.window: Window | None = None
        """How to compress messages to it, if at all: see `frame_message`."""
        self._prefix = prefix
        self._max_message_bytes = max_message_bytes
        self._max_request_bytes = max_request_bytes
        self._max_request_headers = max_request_headers
        self._compression = compression
        self._health = health
        """Says what is wrong with the server, if something is."""
        self._unsynced = unsynced
        """Says for how many seconds a power cut has been able to take something."""
        self._http: h11.Connection | None = h11.Connection(
            h11.SERVER, max_incomplete_event_size=max_request_bytes
        )
        self._wants_body = True
        self._acceptance: list[tuple[bytes, bytes]] = []
        """The headers of the answer that opens the WebSocket, once it was asked for."""
        self._ws: Connection | None = None
        """Once it is needed: most connections have nothing but plain frames."""
        self._inbound: Inbound | None = None
        """Of that, too."""
        self._is_open = False
        """Whether frames are still read: what answers our close frame, too."""
        self._header = b""
        """The beginning of a frame whose header has not come as a whole, or of a ping or pong."""
        self._more = b""
        """What has come and was not taken apart yet."""
        self._due = 0
        """How many bytes are still to come of the frame that is being received."""
        self._mask: bytes | None = None
        """Of that frame, if it is a plain one; otherwise wsproto is given it."""
        self._in_message = False
        """Whether a message has begun in fragments, and not ended."""
        self._message: BytesIO | None = None
        """What has come of a message, if not all has. It is handed on without another copy."""
        self._output: list[bytes] = []

    @property
    def has_said_all(self) -> bool:
        """Whether nothing will follow the output so far, nor an answer of the peer be read."""
        return self.state is PeerState.DONE or (
            self.state is PeerState.CLOSING and not self._is_open
        )

    @property
    def unfinished(self) -> int:
        """How many bytes of a message have come whose end has not."""
        return self._message.tell() if self._message is not None else 0

    @property
    def has_output(self) -> bool:
        """Whether there is something to be sent."""
        return bool(self._output)

    @property
    def has_more(self) -> bool:
        """Whether some of what came was not taken apart yet, for that others may have a turn."""
        return bool(self._more)

    def go_on(self) -> list[Event]:
        """Take apart some more of it."""
        more, self._more = self._more, b""
        return self._receive_websocket(more)

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
        if self._is_open:
            return self._receive_websocket(data)
        if self.state is PeerState.ASKED and self._http is not None:
            self._http.receive_data(data)  # for `accept`; who waits with the answer reads no more
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
        headers = tuple(event.headers)
        self._wants_body = event.method != b"HEAD"
        # h11's own limit only holds for what comes in pieces.
        size = len(event.method) + len(event.target)
        size += sum(len(name) + len(value) + 4 for name, value in headers)
        if size > self._max_request_bytes or len(headers) > self._max_request_headers:
            self._answer(431, "the request is too long")
            return []
        try:
            check_request(event.method, event.http_version, headers)
            path, query = split_target(event.target.decode("ascii"))
            if not wants_websocket(headers):
                method = event.method.decode()
                problem = self._health()
                self._answer(*plain_answer(method, path, self._prefix, problem, self._unsynced()))
                return []
            answer = accept_headers(event.method, event.http_version, headers)
            room = self._room_of(path)
            check_subprotocols(headers)
        except BadRequest as exc:
            self._answer(exc.status, exc.text, exc.headers)
            return []
        if self._compression:
            offers = elements(headers, b"sec-websocket-extensions")
            if (agreed := negotiate(offers)) is not None:
                self.window, extension = agreed
                answer.append((b"Sec-WebSocket-Extensions", extension.encode()))
        self._acceptance = answer
        self.state = PeerState.ASKED
        return [Request(room, path, query, headers)]

    def _room_of(self, path: str) -> str:
        room = in_prefix(path, self._prefix)
        if room is None:
            status, text, _ = no_room(self._prefix)
            raise BadRequest(text, status=status)
        try:
            return unquote_to_bytes(room).decode()
        except UnicodeDecodeError:
            raise BadRequest("the room name is not UTF-8") from None

    def _answer(
        self, status: int, text: str, extra: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        assert self._http is not None
        self.refusal = status, text
        headers, body = _plain_answer(text, extra or ())
        reason = HTTPStatus(status).phrase.encode()
        response = h11.Response(status_code=status, headers=headers, reason=reason)
        self._output.append(self._http.send(response) or b"")
        if self._wants_body:
            self._output.append(self._http.send(h11.Data(data=body)) or b"")
        self._http = None
        self.state = PeerState.CLOSING

    def accept(self, subprotocol: str | None = None) -> list[Event]:
        """Open the WebSocket. Returns what the peer sent already."""
        assert self.state is PeerState.ASKED
        if subprotocol is not None:
            self._acceptance.append((b"Sec-WebSocket-Protocol", subprotocol.encode()))
        assert self._http is not None
        self._http.next_event()  # the end of the request: only now may the protocol be switched
        phrase = HTTPStatus.SWITCHING_PROTOCOLS.phrase.encode()
        answer = h11.InformationalResponse(status_code=101, headers=self._acceptance, reason=phrase)
        self._output.append(self._http.send(answer))
        early, _ = self._http.trailing_data
        self._http = None
        self._acceptance = []
        self._is_open = True
        self.state = PeerState.OPEN
        return self._receive_websocket(early) if early else []

    def refuse(self, status: int, reason: str) -> None:
        """Answer the request with an HTTP status."""
        self._answer(status, reason)

    def time_out(self) -> None:
        """The request took too long."""
        if self._http is not None:
            self._answer(408, "the request took too long")

    # -- WebSocket

    def _wsproto(self) -> Connection:
        if self._ws is None:
            inbound = Inbound(self._max_message_bytes, inflates=self.window is not None)
            self._ws = Connection(ConnectionType.SERVER, [inbound])
            self._inbound = inbound
        return self._ws

    def _receive_websocket(self, data: bytes) -> list[Event]:
        """Take frames apart: whole messages in one frame, pings and pongs, nearly all there are,
        here, where it takes a tenth of the time; all else, right or wrong, by wsproto, frame by
        frame."""
        if self._more or self._header:
            data = self._header + self._more + data
            self._header = self._more = b""
        if self._inbound is not None:
            self._inbound.inflated = 0
        messages: list[Event] = []
        size = len(data)
        pos = pings = latest = 0
        while pos < size and self._is_open and self.state is not PeerState.DONE:
            if self._due:
                due = self._due
                if self.window is not None and self._mask is None:
                    due = min(due, _INFLATE_BYTES)
                part = data[pos : pos + due]
                pos += len(part)
                self._due -= len(part)
                if self._mask is None:
                    messages += self._receive_by_wsproto(part)
                    if self._inbound is not None and self._inbound.inflated >= _INFLATED:
                        self._more = data[pos:]
                        break
                else:
                    self._receive_part(part, self._mask, messages)
                continue
            # RFC 6455 section 5.2
            second = data[pos + 1] if pos + 1 < size else 0
            length = second & 0x7F
            begin = pos + 2
            shortest = 0
            if length >= 126:
                begin, shortest = (begin + 2, 126) if length == 126 else (begin + 8, 2**16)
                length = int.from_bytes(data[pos + 2 : begin])
            if begin > size:
                self._header = data[pos:]
                break
            first = data[pos]
            is_masked = second >= 0x80
            if is_masked:
                begin += 4
            end = begin + length
            if (
                first == _FIN_BINARY
                and is_masked
                and shortest <= length <= self._max_message_bytes
                and not self._in_message
            ):
                if begin > size:
                    self._header = data[pos:]
                    break
                mask = data[begin - 4 : begin]
                if end <= size:
                    if self.state is PeerState.OPEN:
                        messages.append(_unmask(data[begin:end], mask))
                    pos = end
                else:
                    self._mask, self._due = mask, length
                    self._message = BytesIO()
                    pos = begin
                continue
            if first in (_PING, _PONG) and is_masked and length < 126:
                if end > size:
                    self._header = data[pos:]
                    break
                if first == _PING and self.state is PeerState.OPEN:
                    if pings < _PONGS:
                        pings += 1
                        latest = len(self._output)
                        self._output.append(b"")
                    payload = _unmask(data[begin:end], data[begin - 4 : begin])
                    self._output[latest] = _header(_PONG, length) + payload
                pos = end
                continue
            if first & 0x0F < 8:
                self._in_message = first < 0x80
            self._mask, self._due = None, end - pos
        return messages

    def _receive_part(self, part: bytes, mask: bytes, messages: list[Event]) -> None:
        """A part of a plain frame came."""
        if self.state is PeerState.OPEN and self._message is not None:
            at = self._message.tell() % 4
            self._message.write(_unmask(part, mask[at:] + mask[:at]))
            if not self._due:
                messages.append(self._message.getvalue())
                self._message = None

    def _receive_by_wsproto(self, data: bytes) -> list[Event]:
        ws = self._wsproto()
        ws.receive_data(data)
        messages: list[Event] = []
        for event in ws.events():
            if isinstance(event, CloseConnection):
                self._closed_by_peer(event)
                break
            if self.state is not PeerState.OPEN:
                continue
            if isinstance(event, BytesMessage):
                if self._message is None:
                    self._message = BytesIO()
                self._message.write(event.data)
                if event.message_finished:
                    messages.append(self._message.getvalue())
                    self._message = None
            elif isinstance(event, TextMessage):
                self._take_text(event)
        return messages

    def _take_text(self, event: TextMessage) -> None:
        """A piece of a text message came. A seam for tests, which echo it."""
        self.close(CloseCode.UNSUPPORTED_DATA, "binary messages only")

    def _closed_by_peer(self, event: CloseConnection) -> None:
        ws = self._wsproto()
        if ws.state is ConnectionState.REMOTE_CLOSING:
            self._output.append(ws.send(event.response()))
        elif ws.state is ConnectionState.OPEN:
            # An error: wsproto says how to close, and leaves it to us.
            code, reason = event.code, event.reason
            if code == CloseReason.MESSAGE_TOO_BIG:
                code = CloseCode.TOO_LARGE
                assert self._inbound is not None
                reason = self._inbound.too_big
            self._output.append(ws.send(CloseConnection(code, reason)))
            self._is_open = False
            self._message = None
            self.state = PeerState.CLOSING
            return
        self.state = PeerState.DONE

    def close(self, code: int, reason: str) -> None:
        """Send our close frame. The peer's answer makes it DONE."""
        if self.state is PeerState.OPEN:
            self._output.append(self._wsproto().send(CloseConnection(code, reason)))
            self._message = None
            self.state = PeerState.CLOSING

    def ping(self) -> None:
        if self.state is PeerState.OPEN:
            self._output.append(_header(_PING, 0))


def _plain_answer(
    text: str, extra: Iterable[tuple[bytes, bytes]]
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of a short answer after which the connection ends."""
    body = f"{text}\n".encode()
    headers = [
        (b"Content-Type", b"text/plain; charset=utf-8"),
        (b"Content-Length", str(len(body)).encode()),
        (b"Connection", b"close"),
        *extra,
    ]
    return headers, body


def refusal(status: int, text: str, *, retry_after: int) -> bytes:
    """The answer to a connection whose request is not even read."""
    extra = [(b"Retry-After", str(retry_after).encode())]
    headers, body = _plain_answer(text, extra)
    start = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()
    return b"\r\n".join([start, *(b": ".join(header) for header in headers), b"", body])


def frame_message(data: bytes, window: Window | None = None) -> tuple[bytes, bytes]:
    """A binary message as one WebSocket frame, its header and its payload, the same for every
    receiver of the same window (None: without compression), since servers don't mask.

    It is compressed only if that makes it smaller: RFC 7692 section 6 lets each message choose.
    """
    if window is not None and _COMPRESS_FROM <= len(data) <= _COMPRESS_UPTO:
        deflated = deflate(data, window)
        if len(deflated) < len(data):
            return _header(0xC2, len(deflated)), deflated  # FIN, RSV1, binary
    return _header(_FIN_BINARY, len(data)), data


def _unmask(payload: bytes, mask: bytes) -> bytes:
    """RFC 6455 section 5.3."""
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    plain = int.from_bytes(payload, "little") ^ int.from_bytes(key, "little")
    return plain.to_bytes(size, "little")


def _header(first: int, size: int) -> bytes:
    """RFC 6455 section 5.2."""
    if size < 126:
        return bytes((first, size))
    if size < 2**16:
        return struct.pack("!BBH", first, 126, size)
    return struct.pack("!BBQ", first, 127, size)
