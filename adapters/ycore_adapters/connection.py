"""What the driver asks of a transport."""

from __future__ import annotations

from abc import ABC, abstractmethod

from .hooks import Access, Request


class Connection(ABC):
    """What the driver asks of a transport, for one member. Nothing here may block or raise."""

    waiting = 0
    """How many bytes were sent and not yet taken by the socket."""
    request: Request | None = None
    """What it asked for, once it was admitted."""
    access: Access | None = None
    """What it may do, once it was admitted."""

    @abstractmethod
    def send(self, frames: tuple[bytes, ...]) -> None:
        """Queue binary WebSocket messages, at least one, and see to `Driver.flush_soon`. The same
        object comes for everyone who is sent the same."""

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
