"""y-protocols messages and their bytes, in the y-websocket dialect.

One WebSocket message (a *frame* here) holds one or more protocol messages. `decode` reads them
all; each message type has `encode()`, which gives a frame of its own, since some clients read only
the first message of a frame. What an update, a state vector or an awareness payload says is not
looked at here: see `ycore.updates` and `ycore.awareness`.

Sources: y-protocols `sync.js`, `auth.js`; y-websocket `src/y-websocket.js` (message types).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from .errors import RemoteProtocolError
from .lib0 import (
    read_var_string,
    read_var_uint,
    read_var_uint8_array,
    write_var_string,
    write_var_uint,
)

__all__ = [
    "AwarenessUpdate",
    "Custom",
    "Message",
    "PermissionDenied",
    "QueryAwareness",
    "SyncStep1",
    "SyncStep2",
    "Update",
    "decode",
    "read_message",
]

_SYNC, _AWARENESS, _AUTH, _QUERY_AWARENESS = 0, 1, 2, 3
_SYNC_STEP_1, _SYNC_STEP_2, _SYNC_UPDATE = 0, 1, 2
_AUTH_PERMISSION_DENIED = 0

BUILT_IN_TYPES: Final = frozenset({_SYNC, _AWARENESS, _AUTH, _QUERY_AWARENESS})
"""Message types an application can't register for itself."""


def _frame(head: bytes, payload: bytes) -> bytes:
    length = bytearray()
    write_var_uint(length, len(payload))
    return b"".join((head, length, payload))


@dataclass(frozen=True, slots=True)
class SyncStep1:
    """ "This is what I have, send me the rest": a state vector. Answered by a SyncStep2."""

    state_vector: bytes

    def encode(self) -> bytes:
        return _frame(b"\x00\x00", self.state_vector)


@dataclass(frozen=True, slots=True)
class SyncStep2:
    """The answer to SyncStep1: an update with what the asker lacks, and all deletes."""

    update: bytes

    def encode(self) -> bytes:
        return _frame(b"\x00\x01", self.update)


@dataclass(frozen=True, slots=True)
class Update:
    """An edit, as it happens."""

    update: bytes

    def encode(self) -> bytes:
        return _frame(b"\x00\x02", self.update)


@dataclass(frozen=True, slots=True)
class AwarenessUpdate:
    """Who is here: the payload `ycore.awareness.decode_awareness` reads."""

    payload: bytes

    def encode(self) -> bytes:
        return _frame(b"\x01", self.payload)


@dataclass(frozen=True, slots=True)
class PermissionDenied:
    """The server's word that it refuses something, with the reason."""

    reason: str

    def encode(self) -> bytes:
        out = bytearray((_AUTH, _AUTH_PERMISSION_DENIED))
        write_var_string(out, self.reason)
        return bytes(out)


@dataclass(frozen=True, slots=True)
class QueryAwareness:
    """ "Tell me all awareness states". Some clients append a payload; it means nothing."""

    def encode(self) -> bytes:
        return bytes((_QUERY_AWARENESS,))


@dataclass(frozen=True, slots=True)
class Custom:
    """A message of a type this module does not know: the application may.

    Its length is not known either, so it takes the rest of its frame.
    """

    type: int
    payload: bytes

    def encode(self) -> bytes:
        out = bytearray()
        write_var_uint(out, self.type)
        return bytes(out + self.payload)


Message: TypeAlias = (
    SyncStep1 | SyncStep2 | Update | AwarenessUpdate | PermissionDenied | QueryAwareness | Custom
)


def decode(frame: bytes) -> list[Message]:
    """Read all messages of one frame, in order.

    Raises:
        RemoteProtocolError: the frame is empty or cut short, or has an unknown kind of sync
            message.
    """
    message, pos = read_message(frame, 0)
    messages = [message]
    while pos < len(frame):
        message, pos = read_message(frame, pos)
        messages.append(message)
    return messages


def read_message(frame: bytes, pos: int) -> tuple[Message, int]:
    """`decode` for a single message: the one at `pos`, and where the next one would begin."""
    start = pos
    kind, pos = read_var_uint(frame, pos)
    if kind == _SYNC:
        step, pos = read_var_uint(frame, pos)
        payload, pos = read_var_uint8_array(frame, pos)
        if step == _SYNC_UPDATE:
            return Update(payload), pos
        if step == _SYNC_STEP_1:
            return SyncStep1(payload), pos
        if step == _SYNC_STEP_2:
            return SyncStep2(payload), pos
        raise RemoteProtocolError(f"unknown sync message {step} at byte {start}")
    if kind == _AWARENESS:
        payload, pos = read_var_uint8_array(frame, pos)
        return AwarenessUpdate(payload), pos
    if kind == _QUERY_AWARENESS:
        return QueryAwareness(), len(frame)
    if kind == _AUTH and frame[pos : pos + 1] == b"\x00":
        reason, pos = read_var_string(frame, pos + 1)
        return PermissionDenied(reason), pos
    return Custom(kind, frame[pos:]), len(frame)
