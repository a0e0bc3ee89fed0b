"""A store that keeps everything in memory, for as long as the object lives."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence

from .interface import HistoryNotKept, RoomNotFound, Store, StoredUpdate

_COMPACT_FROM = 64 * 1024
"""How many bytes of updates a room has at least before they are merged."""


class _Room:
    def __init__(self) -> None:
        self.updates: list[StoredUpdate] = []
        self.size = self.snapshot_size = 0
        self.since = 0.0
        """Of what was before, only the sum is known: the first of the updates."""


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
        updates = [update for update in kept.updates if at is None or update.time <= at]
        if not updates:
            raise RoomNotFound(f"there was no room {room!r} at {at} yet")
        for update in updates:
            yield update

    async def append(self, room: str, updates: Sequence[StoredUpdate]) -> None:
        self.append_now(room, updates)

    def append_now(self, room: str, updates: Sequence[StoredUpdate]) -> bool:
        kept = self._rooms.setdefault(room, _Room())
        kept.updates.extend(updates)
        kept.size += sum(len(update.update) for update in updates)
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
        self._room(room)
        del self._rooms[room]

    async def rooms(self) -> AsyncIterator[str]:
        for room in tuple(self._rooms):
            yield room

    def outgrown(self, room: str) -> bool:
        kept = self._room(room)
        return kept.size >= max(_COMPACT_FROM, 2 * kept.snapshot_size)
