"""Brings documents over from the stores of other servers.

    _files, _sqlite   ypy-websocket, pycrdt-websocket, pycrdt-store
    _leveldb          y-leveldb (y-websocket 1.x, with YPERSISTENCE)

Reading blocks. Nothing in a source is changed, but that LevelDB tidies its files up.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ycore import RemoteProtocolError, check_update
from ycore.doc import Waiting

from .._formats import explained
from ..stores import RoomCorrupt, Store, StoredUpdate
from ..stores.tools import exists, read
from ._files import directory_source, file_source
from ._leveldb import leveldb_source
from ._source import MigrationError, Source, tell
from ._sqlite import sqlite_source

__all__ = ["Migrated", "MigrationError", "Source", "migrate", "open_source"]

_BATCH: Final = 1000
"""How many updates are appended together, at most,"""
_BATCH_BYTES: Final = 2**20
"""and how many bytes of them, about."""


def open_source(path: Path) -> Source:
    """Find out what there is.

    Args:
        path: a file or directory of a FileYStore, the database of a SQLiteYStore, or the directory
            of a y-leveldb.

    Raises:
        MigrationError: nothing we know, or it can't be read.
    """
    try:
        if path.is_dir():
            if (path / "CURRENT").is_file():
                return leveldb_source(path)
            return directory_source(path)
        with path.open("rb") as file:
            start = file.read(16)
        if start.startswith(b"SQLite format 3"):
            return sqlite_source(path)
        found = file_source(path)
        if found is not None:
            return found
    except OSError as exc:
        raise MigrationError(f"can't read {exc.filename or path}: {exc.strerror or exc}") from exc
    raise MigrationError(
        f"{path} is no store we know: name a file or a directory of FileYStores, the database of a "
        "SQLiteYStore, or the directory of a y-leveldb"
    )


@dataclass(slots=True)
class Migrated:
    """What became of a room."""

    room: str
    """Its name in the store."""
    updates: int = 0
    problems: list[str] = field(default_factory=list)
    waiting: Waiting = field(default_factory=lambda: Waiting({}, {}))
    """What of the room can't be shown now, since what it builds on is missing."""


async def migrate(
    source: Source,
    store: Store,
    *,
    merge: bool = False,
    rename: Callable[[str], str] = lambda room: room,
    progress: Callable[[Migrated], None] = lambda migrated: None,
) -> AsyncGenerator[Migrated, None]:
    """Append what a source has to a store, room by room; what can't be read is told of each.

    Args:
        merge: also to rooms which the store has already. They are left alone otherwise.
        rename: from a room's name in the source makes the one in the store.
        progress: called after each batch.

    Raises:
        StoreError
    """
    for name, updates in source.rooms.items():
        room = rename(name)
        migrated = Migrated(room)
        if not merge and await exists(store, room):
            migrated.problems.append("it is there already, and was left alone (--merge adds to it)")
            yield migrated
            continue
        batch: list[StoredUpdate] = []
        seen = size = 0
        try:
            try:
                with closing(updates()) as found:
                    for stored in found:
                        seen += 1
                        try:
                            check_update(stored.update)
                        except RemoteProtocolError as exc:
                            why = explained(stored.update, exc)
                            why = f"update {seen} is none, or compressed somehow: {why}"
                            tell(migrated.problems, why)
                            continue
                        batch.append(stored)
                        size += len(stored.update) + len(stored.metadata)
                        if len(batch) >= _BATCH or size >= _BATCH_BYTES:
                            await _append(store, migrated, batch)
                            size = 0
                            progress(migrated)
            except MigrationError as exc:
                migrated.problems.append(str(exc))
            await _append(store, migrated, batch)
            if migrated.updates:
                migrated.waiting = (await read(store, room)).waiting()
        except RoomCorrupt as exc:
            migrated.problems.append(str(exc))
        await store.release(room)
        yield migrated


async def _append(store: Store, migrated: Migrated, batch: list[StoredUpdate]) -> None:
    if batch:
        await store.append(migrated.room, batch)
        migrated.updates += len(batch)
        batch.clear()
