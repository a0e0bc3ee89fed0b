"""The client's side of one WebSocket: bytes in, events and bytes out, no I/O. `_peer` is the other.

request() -> send it;  then, for what comes, receive(bytes) -> events
Opened, Message -> what they say;  Refused: the server answered with HTTP
ended -> over, with this close code and reason: close the socket once the output is sent
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from io import BytesIO
from typing import Final, TypeAlias

import h11
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.utilities import generate_accept_token, generate_nonce

from ycore import CloseCode

from ._deflate import Inbound
from ._handshake import elements, values

_MAX_RESPONSE_BYTES: Final = 64 * 1024
"""How long the headers of an answer may be: some servers set large cookies."""

_NO_CODE: Final = 1005
"""A close frame without a code, RFC 6455 section 7.1.5."""
_BROKEN: Final = 1006
"""No close frame at all."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The WebSocket is open."""

    subprotocol: str | None
    """Which of those offered the server has chosen."""


@dataclass(frozen=True, slots=True)
class Message:
    """One whole binary message."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """The server answered with HTTP, and no WebSocket."""

    status: int
    reason: str
    retry_after: float | None
    """Seconds after which it said to come back."""


Event: TypeAlias = Opened | Message | Refused


class ClientPeer:
    """The client's side of one connection.

    Args:
        host: for the Host header.
        target: the path and query to ask for, percent-encoded.
        headers: further ones.
        subprotocols: to offer.
        max_message_bytes: longer messages close the connection (1009) before they are read.
    """

    def __init__(
        self,
        host: str,
        target: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        subprotocols: Sequence[str] = (),
        max_message_bytes: int,
    ) -> None:
        self.ended: tuple[int, str] | None = None
        """The close code and the reason, once it is over."""
        self._subprotocols = subprotocols
        self._max_message_bytes = max_message_bytes
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_RESPONSE_BYTES)
        self._key = generate_nonce()
        ours = [
            ("Host", host),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", self._key.decode()),
            ("Sec-WebSocket-Version", "13"),
        ]
        if subprotocols:
            ours.append(("Sec-WebSocket-Protocol", ", ".join(subprotocols)))
        self._request = h11.Request(method="GET", target=target, headers=[*ours, *headers])
        self._ws: Connection | None = None
        """Once it is open."""
        self._message = BytesIO()
        """What has come of a message in fragments."""
        self._output: list[bytes] = []

    def request(self) -> bytes:
        """What is to be sent first."""
        events = self._request, h11.EndOfMessage()
        return b"".join(self._http.send(event) or b"" for event in events)

    def take_output(self) -> bytes:
        """What is to be sent, and no longer kept here."""
        output, self._output = b"".join(self._output), []
        return output

    def receive(self, data: bytes) -> list[Event]:
        """Take in bytes from the socket; b"" is its end."""
        if self.ended is not None:
            return []
        if not data:
            self.ended = (_BROKEN, "the connection broke")
            return []
        return self._receive_http(data) if self._ws is None else self._receive_websocket(data)

    # -- HTTP

    def _receive_http(self, data: bytes) -> list[Event]:
        self._http.receive_data(data)
        try:
            event = self._http.next_event()
            while isinstance(event, h11.InformationalResponse) and event.status_code != 101:
                event = self._http.next_event()  # 103 Early Hints, say
        except h11.RemoteProtocolError:
            self.ended = (CloseCode.PROTOCOL_ERROR, "the server's answer is no HTTP")
            return []
        if isinstance(event, h11.InformationalResponse):
            return self._open(event)
        if isinstance(event, h11.Response):
            return [self._refused(event)]
        return []  # NEED_DATA

    def _refused(self, response: h11.Response) -> Refused:
        status = response.status_code
        reason = f"the server answered {status} {_phrase(status)}".rstrip()
        headers = tuple(response.headers)
        if location := values(headers, b"location"):
            reason += f" to {location[0].decode('latin-1')}"
        self.ended = (status, reason)
        return Refused(status, reason, _retry_after(headers))

    def _open(self, response: h11.InformationalResponse) -> list[Event]:
        """RFC 6455 section 4.1, where it says what a client has to check."""
        headers = tuple(response.headers)
        chosen = next(iter(elements(headers, b"sec-websocket-protocol")), None)
        if (
            [*map(str.lower, elements(headers, b"upgrade"))] != ["websocket"]
            or values(headers, b"sec-websocket-accept") != [generate_accept_token(self._key)]
            or values(headers, b"sec-websocket-extensions")
            or not (chosen is None or chosen in self._subprotocols)
        ):
            self.ended = (CloseCode.PROTOCOL_ERROR, "the server's handshake is wrong")
            return []
        early, _ = self._http.trailing_data
        inbound = Inbound(self._max_message_bytes, inflates=False)
        self._ws = Connection(ConnectionType.CLIENT, [inbound])
        events: list[Event] = [Opened(chosen)]
        return events + (self._receive_websocket(early) if early else [])

    # -- WebSocket

    def _receive_websocket(self, data: bytes) -> list[Event]:
        assert self._ws is not None
        self._ws.receive_data(data)
        messages: list[Event] = []
        for event in self._ws.events():
            if isinstance(event, CloseConnection):
                self._closed(event)
                break
            if self._ws.state is not ConnectionState.OPEN:
                continue  # we have closed
            if isinstance(event, BytesMessage):
                self._message.write(event.data)
                if event.message_finished:
                    messages.append(Message(self._message.getvalue()))
                    self._message = BytesIO()
            elif isinstance(event, TextMessage):
                reason = "binary messages only"
                self.close(CloseCode.UNSUPPORTED_DATA, reason)
                self.ended = (CloseCode.UNSUPPORTED_DATA, reason)
                break
            elif isinstance(event, Ping):
                self._output.append(self._ws.send(event.response()))
        return messages

    def _closed(self, event: CloseConnection) -> None:
        """The server closed; or broke the protocol, and wsproto leaves it to us to close."""
        assert self._ws is not None
        code, reason = int(event.code), event.reason or ""
        if self._ws.state is ConnectionState.REMOTE_CLOSING:
            self._output.append(self._ws.send(event.response()))
        elif self._ws.state is ConnectionState.OPEN:
            if code == CloseCode.MESSAGE_TOO_BIG:
                reason = f"a message has more than {self._max_message_bytes} bytes"
            self._output.append(self._ws.send(CloseConnection(code, reason)))
        self.ended = (code or _NO_CODE, reason)

    def send(self, frame: bytes) -> None:
        """Send a binary message."""
        if self._ws is not None and self._ws.state is ConnectionState.OPEN:
            self._output.append(self._ws.send(BytesMessage(data=frame)))

    def ping(self) -> None:
        if self._ws is not None and self._ws.state is ConnectionState.OPEN:
            self._output.append(self._ws.send(Ping()))

    def close(self, code: CloseCode, reason: str) -> None:
        """Send our close frame. The server's answer ends it."""
        if self._ws is not None and self._ws.state is ConnectionState.OPEN:
            self._output.append(self._ws.send(CloseConnection(code, _short(reason))))


def _short(reason: str) -> str:
    """As much of it as fits into a close frame, RFC 6455 section 5.5: 125 bytes less the code."""
    return reason.encode()[:123].decode(errors="ignore")


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""


def _retry_after(headers: Sequence[tuple[bytes, bytes]]) -> float | None:
    """Seconds until then (RFC 9110 section 10.2.3): it is a number of them, or a date."""
    for value in values(headers, b"retry-after")[:1]:
        text = value.decode("latin-1").strip()
        if re.fullmatch(r"[0-9]{1,9}", text):
            return float(text)
        try:
            return parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError):
            break
    return None
