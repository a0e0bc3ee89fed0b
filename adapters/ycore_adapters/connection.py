"""What the driver asks of a transport."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

from .hooks import Access, Request


class Connection(Protocol):
    """What the driver asks of a transport, for one member. Nothing here may block or raise."""

    waiting: int = 0
    """How many bytes were sent and not yet taken by the socket."""
    answer: int = 0
    """How many bytes the longest answer has that was sent to this member alone, and may still wait.
    However long it is, that is no sign of a slow member."""
    address: str | None = None
    """Where it comes from, if that is known: work for those of one address waits for that of others
    who asked for less."""
    request: Request | None = None
    """What it asked for, once it was admitted."""
    access: Access | None = None
    """What it may do, once it was admitted."""

    @abstractmethod
    def send(self, frames: tuple[bytes, ...], own: Sequence[int] = ()) -> None:
        """Queue binary WebSocket messages, at least one, and see to `Driver.flush_soon`.

        Args:
            frames: the same object for everyone who is sent the same.
            own: which of them, by rising indices, came from this member, and are not sent back.
                See `without`.
        """

    @abstractmethod
    def close(self, code: int, reason: str) -> None:
        """Close in order: behind what was sent. Nothing will be sent after."""

    @abstractmethod
    def probe(self) -> None:
        """Find out whether the peer is alive; if it is not, the transport calls `Driver.leave`."""

    @abstractmethod
    def flush(self) -> None:
        """Write as much as the socket takes now. If something has to wait, write it as soon as
        the socket takes more, and call `Driver.drained` when nothing waits any more."""


def without(frames: tuple[bytes, ...], own: Sequence[int]) -> tuple[bytes, ...]:
    """All of the frames but those with these indices."""
    return tuple([frame for i, frame in enumerate(frames) if i not in own]) if own else frames
