"""Stores: where rooms are kept. The interface, its errors, and two that come with ycore.

A store keeps, for each room, a sequence of updates. Merged in any order they are the document.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from types import TracebackType
from typing import Self

__all__ = [
    "FileStore",
    "MemoryStore",
    "RoomCorrupt",
    "RoomNotFound",
    "Store",
    "StoreError",
    "StoreUnavailable",
]


class StoreError(Exception):
    """Base of what a store's methods raise. The message says what was wrong, for an operator."""


class RoomNotFound(StoreError):
    """The store works, and has nothing under that name."""


class RoomCorrupt(StoreError):
    """What is stored of that room can't be trusted. It was left as it is."""


class StoreUnavailable(StoreError):
    """The store can't do it now: disk full, no permission, in use by another process, closed."""


class Store(ABC):
    """The interface. An async context manager: use it only inside.

    Calls for different rooms may overlap; calls for one room come one after the other.
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Make durable what is not yet, and let go of everything."""
        return None

    @abstractmethod
    def load(self, room: str) -> AsyncGenerator[bytes, None]:
        """The updates of a room, oldest first. Close it if you stop early (`aclosing`).

        Raises:
            RoomNotFound, RoomCorrupt, StoreUnavailable: before the first update or after some.
        """

    @abstractmethod
    async def append(self, room: str, updates: Sequence[bytes]) -> None:
        """Add updates to a room, which need not exist yet. All of them, or none.

        When it returns they are as durable as the store promises, and `load` gives them.

        Raises:
            RoomCorrupt, StoreUnavailable: none of them was stored.
        """

    @abstractmethod
    async def replace(self, room: str, update: bytes) -> None:
        """Put one update in the place of all that is stored of a room, at once or not at all.

        Raises:
            StoreUnavailable: nothing has changed.
        """

    @abstractmethod
    async def delete(self, room: str) -> None:
        """Forget a room.

        Raises:
            RoomNotFound, StoreUnavailable: nothing has changed.
        """

    @abstractmethod
    def rooms(self) -> AsyncIterator[str]:
        """The names of all rooms, in any order.

        Raises:
            StoreUnavailable
        """

    async def release(self, room: str) -> None:
        """The room is out of use for now: let go of what is held open for it.

        Raises:
            StoreUnavailable: something stored before is perhaps not durable.
        """
        return None


# Below, because they need the names above.
from .file import FileStore  # noqa: E402
from .memory import MemoryStore  # noqa: E402
