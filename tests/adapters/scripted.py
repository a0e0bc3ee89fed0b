"""A store whose every call waits until the test lets it go on, and fails when the test wants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence

import anyio
from ycore_adapters.stores import RoomCorrupt, RoomNotFound, Store, StoredUpdate


class ScriptedStore(Store):
    """Keeps everything in memory; `calls` says what was asked of it, in order."""

    def __init__(self, **rooms: list[bytes]) -> None:
        self.rooms_kept = rooms
        self.calls: list[tuple[str, str]] = []
        self.batches: list[list[bytes]] = []
        """What each append was given."""
        self.stored: list[StoredUpdate] = []
        """What was stored, with what was stored beside it."""
        self.fails: dict[str, Exception] = {}
        """Method, or method and room -> what it raises."""
        self.has_outgrown = False
        self.damaged: set[str] = set()
        """Rooms whose end can't be read."""
        self.snapshots: list[bytes] = []
        """What compacting was given."""
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
        for failing in (method, f"{method} {room}"):
            if failing in self.fails:
                raise self.fails[failing]

    async def load(
        self, room: str, *, at: float | None = None
    ) -> AsyncGenerator[StoredUpdate, None]:
        await self._call("load", room)
        if room not in self.rooms_kept:
            raise RoomNotFound(room)
        for update in tuple(self.rooms_kept[room]):
            yield StoredUpdate(update, 0)
        if room in self.damaged:
            raise RoomCorrupt(f"the end of {room}")

    async def append(self, room: str, updates: Sequence[StoredUpdate]) -> None:
        batch = [update.update for update in updates]
        self.batches.append(batch)
        await self._call("append", room)
        self.rooms_kept.setdefault(room, []).extend(batch)
        self.stored.extend(updates)

    async def release(self, room: str) -> None:
        await self._call("release", room)

    def outgrown(self, room: str) -> bool:
        return self.has_outgrown

    async def compact(self, room: str, snapshot: Callable[[], Awaitable[StoredUpdate]]) -> None:
        await self._call("compact", room)
        count = len(self.rooms_kept[room])
        made = (await snapshot()).update
        await self._call("compacted", room)
        self.snapshots.append(made)
        self.rooms_kept[room][:count] = [made]

    async def delete(self, room: str) -> None:
        await self._call("delete", room)
        if room not in self.rooms_kept:
            raise RoomNotFound(room)
        del self.rooms_kept[room]

    async def rooms(self) -> AsyncIterator[str]:
        for room in self.rooms_kept:
            yield room
