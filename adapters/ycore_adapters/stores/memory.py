"""A store that keeps everything in memory, for as long as the object lives."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence

from ._past import Until
from .interface import HistoryNotKept, RoomInUse, RoomNotFound, Store, StoredUpdate

_COMPACT_FROM = 64 * 1024
"""How many bytes of updates a room has at least before they are merged."""


class _Room:
    def __init__(self) -> None:
        self.updates: list[StoredUpdate] = []
        self.size = self.snapshot_size = 0
        self.since = 0.0
        """Of what was before, only the sum is known: the first of the updates."""
        self.is_in_use = False


class MemoryStore(Store):
    def __init__(self) -> None:
        self._rooms: dict[str, _Room] = {}

    def _room(self, name: str) -> _Room:
        try:
            return self._rooms[name]
        except KeyError:
            raise RoomNotFound(f"no room {name!r} in memory") from None

    async def load(
        self, room: str, *, at: float | None = None
    ) -> AsyncGenerator[StoredUpdate, None]:
        kept = self._room(room)
        if at is not None and at < kept.since:
            raise HistoryNotKept(f"the history of {room!r} is kept from {kept.since:.3f} on only")
        until = Until(at)
        updates = [update for update in kept.updates if until.has(update.time)]
        if not updates:
            raise RoomNotFound(f"there was no room {room!r} at {at} yet")
        for update in updates:
            yield update
        if at is None:
            kept.is_in_use = True

    async def append(self, room: str, updates: Sequence[StoredUpdate]) -> None:
        self.append_now(room, updates)

    def append_now(self, room: str, updates: Sequence[StoredUpdate]) -> bool:
        kept = self._rooms.setdefault(room, _Room())
        kept.updates.extend(updates)
        kept.size += sum(len(update.update) for update in updates)
        kept.is_in_use = True
        return True

    async def compact(self, room: str, snapshot: Callable[[], Awaitable[StoredUpdate]]) -> None:
        kept = self._room(room)
        count, size = len(kept.updates), kept.size
        made = await snapshot()
        kept.updates[:count] = [made]
        kept.since = made.time
        kept.snapshot_size = len(made.update)
        kept.size += kept.snapshot_size - size

    async def delete(self, room: str) -> None:
        if self._room(room).is_in_use:
            raise RoomInUse(room)
        del self._rooms[room]

    async def rooms(self) -> AsyncIterator[str]:
        for room in tuple(self._rooms):
            yield room

    async def release(self, room: str) -> None:
        if room in self._rooms:
            self._rooms[room].is_in_use = False

    def outgrown(self, room: str) -> bool:
        kept = self._room(room)
        return kept.size >= max(_COMPACT_FROM, 2 * kept.snapshot_size)
