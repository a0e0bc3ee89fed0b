"""What one does with stored rooms while no server does: read, check, compact, repair, bring in."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from ycore import RemoteProtocolError, StructStore, check_update
from ycore.doc import Doc, Waiting
from ycore.steps import finish

from .interface import RoomCorrupt, RoomNotFound, Store, StoredUpdate, StoreUnavailable

__all__ = [
    "Contents",
    "compact",
    "described",
    "exists",
    "fill_holes",
    "import_update",
    "read",
    "repair",
]

_TOLD: Final = 5
"""How many clients, or ranges of clocks, a message names at most."""
_FOREVER: Final = 2.0**40
"""A time that is later than that of anything stored."""
_SET_BACK: Final = 60.0
"""By how many seconds times must go back for the clock to have been set. (What is stored while a
snapshot is made comes behind that, and may be a little older.)"""


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
    lost: int = 0
    """How many bytes can't be read, if the store can tell."""
    kept: int = 0
    """How many bytes are of updates that are well-formed."""
    kept_updates: int = 0
    shown_from: float | None = None
    """If the clock was set back, so that updates are left out that bear a time before the one
    asked for: the time from which on they are in the document."""

    def waiting(self) -> Waiting:
        """What of the document is held back, since something that it builds on is missing: whatever
        wrote it has lost that, for ycore loses nothing unsaid. If something is held back, this
        takes as long as opening the document."""
        return Doc.view(self.document).waiting if self.document.behind() else Waiting({}, {})


async def exists(store: Store, room: str) -> bool:
    """Whether a store has something of a room."""
    try:
        async with aclosing(store.load(room)) as updates:
            async for _ in updates:
                break
    except RoomNotFound:
        return False
    except RoomCorrupt:
        pass
    await store.release(room)
    return True


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
                    contents.lost += len(update)
                else:
                    contents.kept += len(update)
                    contents.kept_updates += 1
                progress(contents)
        if at is not None:
            contents.shown_from = await _shown_from(store, room, at)
    except RoomCorrupt as exc:
        contents.damage.append(str(exc))
        contents.lost += exc.lost
    return contents


async def _shown_from(store: Store, room: str, at: float) -> float | None:
    """See `Contents.shown_from`."""
    latest = at
    found = None
    async with aclosing(store.load(room, at=_FOREVER)) as updates:
        async for _, when, _ in updates:
            latest = max(latest, when)
            if when <= at and latest > at + _SET_BACK:
                found = latest
    return found


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
        last = time.time() if contents.last is None else contents.last
        return StoredUpdate(update, last)  # it is as old as what is in it

    await store.compact(room, snapshot)
    return contents, size


async def repair(store: Store, room: str, contents: Contents, *, keep_little: bool = False) -> str:
    """Make a damaged room usable again, of what can be read. Returns where the damaged one is now.

    Args:
        contents: what `read` made of the room.
        keep_little: do it even if most of the room is lost by it.

    Raises:
        RoomCorrupt: most would be lost.
        RoomNotFound, StoreUnavailable: nothing has changed.
    """
    if not keep_little and contents.lost >= contents.kept:
        raise RoomCorrupt(
            f"of {room!r} {contents.kept:,} bytes can be read, and {contents.lost:,} can't: it is "
            "left as it is. If you have no better copy, `ycore repair --keep-little` keeps those"
        )
    return await store.repair(room, _is_well_formed)


async def fill_holes(store: Store, room: str, waiting: Waiting) -> str:
    """Put collected structs in the place of those that a room is missing, so that what waits for
    them is shown as far as it can be. Returns where the room as it was is now.

    Raises:
        RoomNotFound, StoreUnavailable: nothing has changed.
    """
    where = await store.repair(room, _is_well_formed)
    await store.append(room, [StoredUpdate(waiting.collected(), time.time())])
    return where


def described(waiting: Waiting) -> str:
    """What waits, in words."""
    held = [f"{clocks:,} of client {client}" for client, clocks in sorted(waiting.held.items())]
    missing = [
        f"{_clocks(start, end)} of client {client}"
        for client, ranges in waiting.missing.items()
        for start, end in ranges
    ]
    return (
        f"{sum(waiting.held.values()):,} clocks of edits are held back ({_some(held)}), "
        f"since what they build on is missing: {_some(missing)}"
    )


def _clocks(start: int, end: int) -> str:
    return f"clock {start}" if end == start + 1 else f"clocks {start} to {end - 1}"


def _some(parts: list[str]) -> str:
    more = len(parts) - _TOLD
    return ", ".join(parts[:_TOLD]) + (f" and {more:,} more" if more > 0 else "")


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
