"""One WebSocket message on its way in: read bit by bit, and checked whole before it does anything.

Reading a long update takes a while, and so may taking it in. `Room.receive` therefore accepts a
`Frame` in the place of bytes, does a small part of the work at each call, and whoever calls it
gives others a turn in between, until `Frame.done`.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, TypeAlias

from .awareness import AwarenessEntry, decode_awareness_steps
from .errors import CloseCode, RemoteProtocolError
from .messages import (
    AwarenessUpdate,
    Custom,
    QueryAwareness,
    SyncStep1,
    SyncStep2,
    Update,
    read_message,
)
from .settings import Settings
from .steps import Steps
from .updates import (
    ParsedUpdate,
    decode_state_vector_steps,
    parse_update_steps,
    parts_of,
)

__all__ = ["Content", "Frame"]

_MAX_MESSAGES: Final = 1000
"""How many messages one frame may hold. Clients put one into each, y-websocket 4 a few."""

_UPDATES: Final = (Update, SyncStep2)


Content: TypeAlias = (
    ParsedUpdate
    | dict[int, int]
    | list[AwarenessEntry]
    | QueryAwareness
    | Custom
    | Steps[list[Any]]
)
"""What a message says, ready to act on. The dict is a state vector, which asks for an answer; the
steps are that answer under way, or an update that is not settled yet, and give their effects."""


class Frame:
    """One WebSocket message, to be given to `Room.receive` until it is `done`."""

    __slots__ = ("_contents", "_data", "_reading", "done")

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = bytes(data)
        self._reading: Steps[deque[Content]] | None = None
        self._contents: deque[Content] | None = None
        self.done = False
        """Whether there is nothing left to do: it was taken in, or refused."""

    def __len__(self) -> int:
        return len(self._data)

    def read(self, settings: Settings) -> deque[Content] | None:
        """Read on. Returns what there is to do, or None as long as not all is read.

        Raises:
            RemoteProtocolError: it is malformed, or holds too much.
        """
        if self._contents is None:
            if self._reading is None:
                self._reading = _read(self._data, settings)
            try:
                next(self._reading)
            except StopIteration as stop:
                self._contents = stop.value
        return self._contents


def _read(data: bytes, settings: Settings) -> Steps[deque[Content]]:
    contents: deque[Content] = deque()
    asked: dict[int, int] | None = None
    limits = settings.update_limits
    number = pos = 0
    while pos < len(data) or pos == 0:
        message, pos = read_message(data, pos)
        number += 1
        if number > _MAX_MESSAGES:
            reason = f"more than {_MAX_MESSAGES} messages in one frame"
            raise RemoteProtocolError(reason, CloseCode.MESSAGE_TOO_BIG)
        if isinstance(message, _UPDATES):
            update = yield from parse_update_steps(message.update, limits)
            contents.extend(parts_of(update))
        elif isinstance(message, SyncStep1):
            clocks = yield from decode_state_vector_steps(message.state_vector, limits)
            asked = clocks if asked is None else _common_clocks(asked, clocks)
        elif isinstance(message, AwarenessUpdate):
            most = settings.max_awareness_entries, settings.max_awareness_bytes
            contents.append((yield from decode_awareness_steps(message.payload, *most)))
        elif isinstance(message, (QueryAwareness, Custom)):
            contents.append(message)
        # PermissionDenied is a server's word: from a client it means nothing.
    if asked is not None:
        contents.append(asked)
    return contents


def _common_clocks(a: dict[int, int], b: dict[int, int]) -> dict[int, int]:
    """What who asks twice has told both times: one answer to this answers both."""
    return {client: min(a[client], b[client]) for client in a.keys() & b.keys()}
