"""The interface of a store: what keeps rooms, and how it says that it can't.

A store keeps, for each room, a sequence of updates. Merged in any order they are the document.
To write one of your own, subclass `Store` and run `ycore_adapters.stores.testing` against it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self

__all__ = [
    "HistoryNotKept",
    "RoomCorrupt",
    "RoomInUse",
    "RoomNotFound",
    "Store",
    "StoreError",
    "StoreUnavailable",
    "StoredUpdate",
]


class StoreError(Exception):
    """Base of what a store's methods raise. The message says what was wrong, for an operator."""


class RoomNotFound(StoreError):
    """The store works, and has nothing under that name (or had nothing at that time)."""


class RoomCorrupt(StoreError):
    """Something of what is stored of that room can't be read. It was left as it is.

    Args:
        lost: how many bytes that are, if the store can tell.
    """

    def __init__(self, message: str = "", lost: int = 0) -> None:
        super().__init__(message)
        self.lost = lost


class HistoryNotKept(StoreError):
    """What the room was at that time can't be told any more: it was compacted since."""


class StoreUnavailable(StoreError):
    """The store can't do it now: disk full, no permission, in use by another process, closed."""


class RoomInUse(StoreUnavailable):
    """The room was loaded or appended to, and not released since. Whoever has it open would go on
    as if what is to be deleted were still stored."""

    def __init__(self, room: str) -> None:
        super().__init__(f"the room {room!r} is in use: release it first, or use `Driver.delete`")


class StoredUpdate(NamedTuple):
    """An update, and what is kept beside it."""

    update: bytes
    time: float
    """When it was made or came, in seconds since 1970. Kept to the millisecond."""
    metadata: bytes = b""
    """The application's own: who made it, say. Compaction drops it, unless history is kept."""


class Store(ABC):
    """What keeps rooms. An async context manager: use it only inside.

    Calls for different rooms may overlap. Calls for one room come one after the other, except that
    `append` and `load` may be called while `compact` is under way.
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
    def load(self, room: str, *, at: float | None = None) -> AsyncGenerator[StoredUpdate, None]:
        """The updates of a room, oldest first; with `at` (seconds since 1970), those up to then,
        which end before the first that is later: a clock may have been set back.

        Close it if you stop early (`aclosing`). What can't be read is never skipped unsaid: the
        error comes after all that can be.

        Raises:
            RoomNotFound, StoreUnavailable: before the first update or after some.
            RoomCorrupt: after the last update that can be read.
            HistoryNotKept: only with `at`.
        """

    @abstractmethod
    async def append(self, room: str, updates: Sequence[StoredUpdate]) -> None:
        """Add updates to a room, which need not exist yet. All of them, or none.

        When it returns they are as durable as the store promises, and `load` gives them. Whoever
        was told that they were not stored may try again: an update that is stored twice does no
        harm. While a driver has a room open, nobody else may append to it: what the driver does not
        know of, it compacts away (`Driver.document` is how to edit it then).

        Raises:
            RoomCorrupt, StoreUnavailable: none of them was stored.
        """

    @abstractmethod
    async def compact(self, room: str, snapshot: Callable[[], Awaitable[StoredUpdate]]) -> None:
        """Put one update in the place of all that was appended before, at once or not at all.

        Args:
            snapshot: makes that update. It is called once, after the store has taken note of what
                there is; what is appended from then on stays.

        Raises:
            RoomNotFound, RoomCorrupt, StoreUnavailable: nothing has changed.
        """

    @abstractmethod
    async def delete(self, room: str) -> None:
        """Forget a room, and all that was kept of it.

        Raises:
            RoomInUse: it was loaded or appended to, and not released since.
            RoomNotFound, StoreUnavailable: nothing has changed.
        """

    @abstractmethod
    def rooms(self) -> AsyncIterator[str]:
        """The names of all rooms, in any order.

        Raises:
            StoreUnavailable
        """

    # -- what a store may leave as it is

    def append_now(self, room: str, updates: Sequence[StoredUpdate]) -> bool:
        """`append`, if nothing has to be waited for: a write that the system takes at once, say.
        Returns whether it was done; if not, or if it raises, nothing was stored, and `append` is
        called with the same updates. Spares each keystroke a task."""
        return False

    async def release(self, room: str) -> None:
        """The room is out of use for now: let go of what is held open for it.

        Raises:
            StoreUnavailable: something stored before is perhaps not durable. Calling it again tries
                again.
        """
        return None

    def outgrown(self, room: str) -> bool:
        """Whether `compact` would pay for a room now. Asked after each `append`; when one is tried
        again that failed is the driver's affair."""
        return False

    def problems(self) -> Mapping[str, str]:
        """What is wrong at the moment, by room: for whoever watches over the server."""
        return {}

    def unsynced(self) -> float:
        """For how many seconds now something is stored that a power cut would take: the age of the
        oldest edit that is not synced yet. 0 if there is none, or if no sync was promised."""
        return 0.0

    async def check_history(self, room: str) -> list[str]:
        """What is wrong, in words, with the history that is kept of a room: with what it was before
        it was compacted, which `load` without a time does not read.

        Raises:
            StoreUnavailable
        """
        return []

    async def nameless(self) -> list[str]:
        """What is stored of rooms whose names can't be told, in words.

        Raises:
            StoreUnavailable
        """
        return []

    async def repair(self, room: str, keep: Callable[[bytes], bool]) -> str:
        """Make a room whose `load` fails usable again, of the updates that can still be read and
        that `keep` says yes to. What was stored is put aside; returns where.

        Raises:
            RoomNotFound, StoreUnavailable: nothing has changed.
        """
        raise StoreUnavailable("this store can't repair rooms")
