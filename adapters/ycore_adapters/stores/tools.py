"""What one does with stored rooms while no server does: read, check, compact, repair, bring in."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from ycore import RemoteProtocolError, StructStore, check_update
from ycore.steps import finish

from .interface import RoomCorrupt, Store, StoredUpdate, StoreUnavailable

__all__ = ["Contents", "compact", "import_update", "read", "repair"]


@dataclass(slots=True)
class Contents:
    """What a store has of a room."""

    document: StructStore = field(default_factory=StructStore)
    updates: int = 0
    bytes: int = 0
    """Of the updates, as they were stored."""
    last: float | None = None
    """When the last update came, in seconds since 1970."""
    damage: list[str] = field(default_factory=list)
    """What can't be read, in words. The document is what can."""


async def read(
    store: Store,
    room: str,
    *,
    at: float | None = None,
    progress: Callable[[Contents], None] = lambda contents: None,
) -> Contents:
    """All of a room, or what it was at a time (seconds since 1970).

    Args:
        progress: called after each update.

    Raises:
        RoomNotFound, HistoryNotKept, StoreUnavailable
    """
    contents = Contents()
    try:
        async with aclosing(store.load(room, at=at)) as updates:
            async for update, when, _ in updates:
                contents.updates += 1
                contents.bytes += len(update)
                contents.last = max(when, contents.last or when)
                try:
                    contents.document.add(update)
                except RemoteProtocolError as exc:
                    contents.damage.append(f"update {contents.updates} is malformed: {exc}")
                progress(contents)
    except RoomCorrupt as exc:
        contents.damage.append(str(exc))
    return contents


async def compact(
    store: Store, room: str, progress: Callable[[Contents], None] = lambda contents: None
) -> tuple[Contents, int]:
    """Put the document in the place of its updates; returns what they were, and its bytes.

    Raises:
        RoomNotFound, RoomCorrupt, StoreUnavailable: nothing has changed.
    """
    contents = Contents()
    size = 0

    async def snapshot() -> StoredUpdate:
        nonlocal contents, size
        contents = await read(store, room, progress=progress)
        if contents.damage:
            raise RoomCorrupt("; ".join(contents.damage))
        try:
            update = finish(contents.document.snapshot_steps())
        except RuntimeError as exc:
            raise StoreUnavailable(f"the room {room!r}: {exc}") from exc
        size = len(update)
        return StoredUpdate(update, time.time())

    await store.compact(room, snapshot)
    return contents, size


async def repair(store: Store, room: str) -> str:
    """Make a damaged room usable again, of what can be read. Returns where the damaged one is now.

    Raises:
        RoomNotFound, StoreUnavailable: nothing has changed.
    """
    return await store.repair(room, _is_well_formed)


def _is_well_formed(update: bytes) -> bool:
    try:
        check_update(update)
    except RemoteProtocolError:
        return False
    return True


async def import_update(store: Store, room: str, update: bytes) -> None:
    """Add an update to a room, or make one of it.

    Raises:
        RemoteProtocolError: it is malformed.
        StoreError: the store did not take it.
    """
    check_update(update)
    await store.append(room, [StoredUpdate(update, time.time())])
