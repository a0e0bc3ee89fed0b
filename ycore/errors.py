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
    """Text that is no UTF-8, or a compressed message that can't be inflated. Our client closes with
    it if a server sends what is no y-protocol message."""
    POLICY_VIOLATION = 1008
    """It asks for more answers than a member may: the document, or everyone's awareness."""
    MESSAGE_TOO_BIG = 1009
    """Our client, and other servers, say this to a message that is too long; see `TOO_LARGE`."""
    INTERNAL_ERROR = 1011
    TRY_AGAIN_LATER = 1013
    """The room can't be served now: it or the server is full, its store failed, or this member was
    too slow for too long."""

    # The server refuses with these what would come again with the next connection. On the codes
    # from 4400 to 4499 y-websocket does not reconnect (from 3.1), nor does our own client. On all
    # others it does, and uploads what was refused each time.

    MALFORMED = 4400
    """The bytes are no y-protocol message, or an update or awareness state in them is malformed."""
    UNAUTHORIZED = 4401
    """Who is it?"""
    FORBIDDEN = 4403
    """Whoever it is may not come in."""
    DELETED = 4410
    """The document was deleted. A client that came back would bring all of it back."""
    TOO_LARGE = 4413
    """The message is too long, or holds more than can be taken in, or more awareness than a member
    may have; or the document takes more memory than it may."""


class ProtocolError(Exception):
    """Base of the errors below. Never raised itself."""


class LocalProtocolError(ProtocolError):
    """You called the API in a way it does not allow; nothing has changed."""


class RemoteProtocolError(ProtocolError):
    """The peer's bytes break the protocol; nothing has changed.

    `close_code` is RFC 6455's code for it, `str(error)` the reason. A server answers a client with
    `refusal` instead.
    """

    def __init__(self, reason: str, close_code: CloseCode = CloseCode.INVALID_PAYLOAD) -> None:
        super().__init__(reason)
        self.close_code = close_code

    @property
    def refusal(self) -> CloseCode:
        """The close code that tells a client not to come back with the same."""
        is_big = self.close_code is CloseCode.MESSAGE_TOO_BIG
        return CloseCode.TOO_LARGE if is_big else CloseCode.MALFORMED
