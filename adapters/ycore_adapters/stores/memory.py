"""A store that keeps everything in memory, for as long as the object lives."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from . import RoomNotFound, Store


class MemoryStore(Store):
    def __init__(self) -> None:
        self._rooms: dict[str, list[bytes]] = {}

    async def load(self, room: str) -> AsyncGenerator[bytes, None]:
        if room not in self._rooms:
            raise RoomNotFound(f"no room {room!r} in memory")
        for update in tuple(self._rooms[room]):
            yield update

    async def append(self, room: str, updates: Sequence[bytes]) -> None:
        self._rooms.setdefault(room, []).extend(updates)

    async def replace(self, room: str, update: bytes) -> None:
        self._rooms[room] = [update]

    async def delete(self, room: str) -> None:
        if self._rooms.pop(room, None) is None:
            raise RoomNotFound(f"no room {room!r} in memory")

    async def rooms(self) -> AsyncIterator[str]:
        for room in tuple(self._rooms):
            yield room
