"""The errors of the core, and the WebSocket close codes they carry.

There are two kinds, after h11's `_util.py`: *you* misused the API, or *the peer* sent garbage.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["CloseCode", "LocalProtocolError", "ProtocolError", "RemoteProtocolError"]


class CloseCode(IntEnum):
    """The WebSocket close codes ycore uses (RFC 6455 section 7.4.1 and its IANA registry)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    """The server shuts down."""
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    """A text frame: Yjs clients speak binary."""
    INVALID_PAYLOAD = 1007
    """The bytes are no y-protocol message, or an update or awareness state in them is malformed."""
    POLICY_VIOLATION = 1008
    """More awareness than a member may have, or more answers than it may ask for."""
    MESSAGE_TOO_BIG = 1009
    """The message is too long, or holds more than can be taken in."""
    INTERNAL_ERROR = 1011
    TRY_AGAIN_LATER = 1013
    """The room can't be served now: it or the server is full, its store failed, or this member was
    too slow for too long."""
    UNAUTHORIZED = 4401
    """Who is it? Like all codes from 4400 to 4499, one on which y-websocket, from 3.1, does not
    reconnect."""
    FORBIDDEN = 4403
    """Whoever it is may not come in."""
    DELETED = 4410
    """The document was deleted. A client that came back would bring all of it back."""
    DOCUMENT_FULL = 4413
    """The document takes more memory than it may. The same edits would be refused again."""


class ProtocolError(Exception):
    """Base of the errors below. Never raised itself."""


class LocalProtocolError(ProtocolError):
    """You called the API in a way it does not allow; nothing has changed."""


class RemoteProtocolError(ProtocolError):
    """The peer's bytes break the protocol; nothing has changed.

    `close_code` is the WebSocket close code to answer with, `str(error)` the reason.
    """

    def __init__(self, reason: str, close_code: CloseCode = CloseCode.INVALID_PAYLOAD) -> None:
        super().__init__(reason)
        self.close_code = close_code
