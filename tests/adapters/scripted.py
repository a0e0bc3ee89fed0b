"""A store whose every call waits until the test lets it go on, and fails when the test wants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence

import anyio
from ycore_adapters.stores import RoomNotFound, Store


class ScriptedStore(Store):
    """Keeps everything in memory; `calls` says what was asked of it, in order."""

    def __init__(self, **rooms: list[bytes]) -> None:
        self.rooms_kept = rooms
        self.calls: list[tuple[str, str]] = []
        self.batches: list[list[bytes]] = []
        """What each append was given."""
        self.fails: dict[str, Exception] = {}
        """Method -> what it raises."""
        self._held: dict[str, anyio.Event] = {}
        self._called: defaultdict[str, anyio.Event] = defaultdict(anyio.Event)

    def hold(self, method: str) -> None:
        """Have calls of this method wait."""
        self._held[method] = anyio.Event()
        self._called.pop(method, None)

    async def called(self, method: str) -> None:
        """Wait until the method was called, since it was held."""
        with anyio.fail_after(10):
            await self._called[method].wait()

    def let_go(self, method: str) -> None:
        self._held.pop(method).set()

    async def _call(self, method: str, room: str) -> None:
        self.calls.append((method, room))
        self._called[method].set()
        if method in self._held:
            await self._held[method].wait()
        if method in self.fails:
            raise self.fails[method]

    async def load(self, room: str) -> AsyncIterator[bytes]:
        await self._call("load", room)
        if room not in self.rooms_kept:
            raise RoomNotFound(room)
        for update in tuple(self.rooms_kept[room]):
            yield update

    async def append(self, room: str, updates: Sequence[bytes]) -> None:
        self.batches.append(list(updates))
        await self._call("append", room)
        self.rooms_kept.setdefault(room, []).extend(updates)

    async def release(self, room: str) -> None:
        await self._call("release", room)

    async def replace(self, room: str, update: bytes) -> None:
        raise NotImplementedError

    async def delete(self, room: str) -> None:
        raise NotImplementedError

    async def rooms(self) -> AsyncIterator[str]:
        for room in self.rooms_kept:
            yield room
