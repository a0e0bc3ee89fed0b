"""Reads the stores of other servers, so that their documents can be brought over.

    ypy-websocket, pycrdt-websocket, pycrdt-store
        FileYStore    one file a room: fields, each behind its length (varUint). Pairs of update
                      and metadata, from ypy-websocket 0.7 behind the line "VERSION:1"; from 0.8
                      behind "VERSION:2", and with the time (a little-endian double)
        SQLiteYStore  a table `yupdates` of path, yupdate, and in later versions metadata and
                      timestamp; at first metadata had rows of its own, in turn with the updates.
                      In pycrdt-store, a table `ycheckpoints` of merged updates as well
    y-leveldb         a LevelDB database (y-websocket 1.x, with YPERSISTENCE)

(`ystore.py` of ypy-websocket 0.2 to 0.12, `pycrdt/store` of pycrdt-store 0.1; y-leveldb
`src/y-leveldb.js`, keyEncoding.) pycrdt-store can be told to compress updates with anything; what
Python's library can undo is undone.

Blocking. Nothing is changed, but that LevelDB tidies its files up whenever it is opened.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import sqlite3
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from ycore import RemoteProtocolError, check_update
from ycore.lib0 import read_var_uint

from .stores import RoomNotFound, Store, StoredUpdate

__all__ = ["Migrated", "MigrationError", "Source", "migrate", "open_source"]

_BATCH: Final = 1000
"""How many updates are appended together."""
_VERSION: Final = b"VERSION:"
_MAX_FIELD: Final = 2**31
_DECOMPRESS: Final[tuple[Callable[[bytes], bytes], ...]] = (
    zlib.decompress,
    gzip.decompress,
    bz2.decompress,
    lzma.decompress,
)
Updates: TypeAlias = Iterator[StoredUpdate]


class MigrationError(Exception):
    """A store can't be read, or not all of it: the message says what was found, and what to do."""


@dataclass(slots=True)
class Source:
    """A store of another server."""

    kind: str
    """In words."""
    rooms: dict[str, Callable[[], Updates]]
    """By name, what gives the updates, oldest first. It raises MigrationError after all that can
    be read, if that is not all."""
    unknown: list[Path] = field(default_factory=list)
    """Files below a directory that are no stores."""


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
                return _leveldb(path)
            return _directory(path)
        with path.open("rb") as file:
            start = file.read(16)
        if start.startswith(b"SQLite format 3"):
            return _sqlite(path)
        if _is_file_ystore(path):
            return Source("FileYStore, one file", {path.name: lambda: _file_updates(path)})
    except OSError as exc:
        raise MigrationError(f"can't read {path}: {exc.strerror or exc}") from exc
    raise MigrationError(
        f"{path} is no store we know: name a file or a directory of FileYStores, the database of a "
        "SQLiteYStore, or the directory of a y-leveldb"
    )


# ---- FileYStore


def _is_file_ystore(path: Path) -> bool:
    """Whether it begins like one."""
    with path.open("rb") as file:
        start = file.read(1024)
    if start.startswith(_VERSION):
        return True
    with suppress(MigrationError):
        update = next(_fields(path, 0), None)
        return update is not None and _plain(update) is not None
    return False


def _directory(path: Path) -> Source:
    rooms: dict[str, Callable[[], Updates]] = {}
    unknown = []
    for file in sorted(path.rglob("*")):
        if file.is_file() and _is_file_ystore(file):
            name = file.relative_to(path).as_posix()
            rooms[name] = lambda file=file: _file_updates(file)  # type: ignore[misc]
        elif file.is_file():
            unknown.append(file)
    if not rooms:
        raise MigrationError(f"there are no stores we know in {path}")
    return Source("FileYStore, a directory of files", rooms, unknown)


def _file_updates(path: Path) -> Updates:
    with path.open("rb") as file:
        line = file.readline(32)
    start, size = 0, 2
    if line.startswith(_VERSION):
        start = len(line)
        size = {b"1\n": 2, b"2\n": 3}.get(line[len(_VERSION) :], 0)
        if not size:
            raise MigrationError(f"{path}: a FileYStore of unknown version {line!r}")
    modified = path.stat().st_mtime
    fields = _fields(path, start)
    count = 0
    while (update := next(fields, None)) is not None:
        rest = [next(fields, None) for _ in range(size - 1)]
        if None in rest:
            raise MigrationError(f"{path}: what is behind update {count} was never written whole")
        when = modified
        if size == 3:
            if len(rest[1] or b"") != 8:
                raise MigrationError(f"{path}: behind update {count} nothing can be read")
            when = struct.unpack("<d", rest[1] or b"")[0]
        count += 1
        yield StoredUpdate(_decompressed(update), when, rest[0] or b"")


def _fields(path: Path, start: int) -> Iterator[bytes]:
    """Byte strings behind their lengths."""
    with path.open("rb") as file:
        file.seek(start)
        while head := file.read(10):
            try:
                length, used = read_var_uint(head, 0)
            except RemoteProtocolError:
                raise MigrationError(f"{path}: no length at byte {start}") from None
            start += used
            file.seek(start)
            content = file.read(min(length, _MAX_FIELD))
            if len(content) < length:
                raise MigrationError(
                    f"{path}: the last {used + len(content):,} bytes are half of something"
                )
            start += length
            yield content


# ---- compression


def _plain(update: bytes) -> bytes | None:
    """The update, if it is one, once it is decompressed perhaps."""
    for undo in (bytes, *_DECOMPRESS):
        try:
            found = undo(update)
            check_update(found)
        except (RemoteProtocolError, OSError, ValueError, EOFError, zlib.error, lzma.LZMAError):
            continue
        return found
    return None


def _decompressed(update: bytes) -> bytes:
    """The same; what it is not is left to whoever checks it."""
    plain = _plain(update)
    return update if plain is None else plain


# ---- SQLiteYStore


def _sqlite(path: Path) -> Source:
    try:
        with closing(_connect(path)) as db:
            columns = [row[1] for row in db.execute("PRAGMA table_info(yupdates)")]
            if columns[:2] != ["path", "yupdate"]:
                raise MigrationError(f"{path} is an SQLite database, but not of a SQLiteYStore")
            names = [row[0] for row in db.execute("SELECT DISTINCT path FROM yupdates")]
            if db.execute("PRAGMA table_info(ycheckpoints)").fetchall():
                names += [row[0] for row in db.execute("SELECT path FROM ycheckpoints")]
    except sqlite3.Error as exc:
        raise MigrationError(f"can't read {path}: {exc}") from exc
    rooms: dict[str, Callable[[], Updates]] = {}
    for name in sorted(set(names)):
        rooms[name] = lambda name=name: _sqlite_updates(path, name, columns)  # type: ignore[misc]
    return Source("SQLiteYStore", rooms)


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)


def _sqlite_updates(path: Path, room: str, columns: list[str]) -> Updates:
    modified = path.stat().st_mtime
    try:
        with closing(_connect(path)) as db:
            if db.execute("PRAGMA table_info(ycheckpoints)").fetchall():
                # All before it, even where squashing has lost that from the other table.
                checkpoints = db.execute(
                    "SELECT checkpoint, timestamp FROM ycheckpoints WHERE path = ?", (room,)
                )
                for update, when in checkpoints:
                    yield StoredUpdate(_decompressed(bytes(update)), when)
            rows = db.execute("SELECT * FROM yupdates WHERE path = ? ORDER BY rowid", (room,))
            if len(columns) == 2:
                for _, update in rows:
                    _, metadata = next(rows, (None, b""))
                    yield StoredUpdate(_decompressed(update), modified, bytes(metadata or b""))
                return
            for _, update, metadata, *when in rows:
                time = _time(when[0]) if when else modified
                yield StoredUpdate(_decompressed(update), time, bytes(metadata or b""))
    except (sqlite3.Error, TypeError, ValueError) as exc:
        raise MigrationError(f"{path}: the room {room!r} can't be read any further: {exc}") from exc


def _time(when: float | str) -> float:
    """ypy-websocket 0.6 wrote UTC as text."""
    if isinstance(when, str):
        return datetime.fromisoformat(when).replace(tzinfo=UTC).timestamp()
    return when


# ---- y-leveldb

_STRING: Final = 0


def _leveldb(path: Path) -> Source:
    db = _open_leveldb(path)
    try:
        names = {
            str(key[1]) for key, _ in _keys(db) if len(key) == 4 and key[::2] == ["v1", "update"]
        }
    finally:
        db.close()
    rooms: dict[str, Callable[[], Updates]] = {}
    for name in sorted(names):
        rooms[name] = lambda name=name: _leveldb_updates(path, name)  # type: ignore[misc]
    if not rooms:
        raise MigrationError(f"{path} is a LevelDB database, but not of a y-leveldb with documents")
    return Source("y-leveldb", rooms)


def _open_leveldb(path: Path) -> Any:
    try:
        import plyvel  # noqa: PLC0415 - an extra
    except ImportError:
        raise MigrationError(
            f"{path} is a LevelDB database: to read it, `pip install 'ycore[leveldb]'`"
        ) from None
    try:
        return plyvel.DB(str(path), create_if_missing=False)
    except plyvel.Error as exc:
        raise MigrationError(f"can't read {path}: {exc}. Is a server using it?") from exc


def _keys(db: Any, **between: Any) -> Iterator[tuple[list[str | int], bytes]]:
    for raw, value in db.iterator(**between):
        with suppress(RemoteProtocolError, IndexError, UnicodeDecodeError, struct.error):
            yield _key(raw), value


def _key(raw: bytes) -> list[str | int]:
    """A key: strings and numbers, each behind its type."""
    key: list[str | int] = []
    pos = 0
    while pos < len(raw):
        kind = raw[pos]
        pos += 1
        if kind == _STRING:
            length, pos = read_var_uint(raw, pos)
            key.append(raw[pos : pos + length].decode())
            pos += length
        else:
            key.append(struct.unpack_from(">I", raw, pos)[0])
            pos += 4
    return key


def _leveldb_updates(path: Path, room: str) -> Updates:
    modified = (path / "CURRENT").stat().st_mtime
    db = _open_leveldb(path)
    try:
        for key, update in _keys(db):
            if len(key) == 4 and key[:3] == ["v1", room, "update"]:
                yield StoredUpdate(update, modified)
    finally:
        db.close()


# ---- bringing over


@dataclass(slots=True)
class Migrated:
    """What became of a room."""

    room: str
    updates: int = 0
    problems: list[str] = field(default_factory=list)


async def migrate(
    source: Source,
    store: Store,
    *,
    merge: bool = False,
    progress: Callable[[Migrated], None] = lambda migrated: None,
) -> AsyncIterator[Migrated]:
    """Append what a source has to a store, room by room; what can't be read is told of each.

    Args:
        merge: also to rooms which the store has already. They are left alone otherwise.
        progress: called after each batch.

    Raises:
        StoreError
    """
    for room, updates in source.rooms.items():
        migrated = Migrated(room)
        if not merge and await _exists(store, room):
            migrated.problems.append("it is there already, and was left alone (--merge adds to it)")
            yield migrated
            continue
        batch: list[StoredUpdate] = []
        seen = 0
        try:
            for stored in updates():
                seen += 1
                try:
                    check_update(stored.update)
                except RemoteProtocolError as exc:
                    migrated.problems.append(f"update {seen} is none, or compressed somehow: {exc}")
                    continue
                batch.append(stored)
                if len(batch) >= _BATCH:
                    await _append(store, migrated, batch)
                    progress(migrated)
        except MigrationError as exc:
            migrated.problems.append(str(exc))
        await _append(store, migrated, batch)
        await store.release(room)
        yield migrated


async def _append(store: Store, migrated: Migrated, batch: list[StoredUpdate]) -> None:
    if batch:
        await store.append(migrated.room, batch)
        migrated.updates += len(batch)
        batch.clear()


async def _exists(store: Store, room: str) -> bool:
    try:
        async for _ in store.load(room):
            break
    except RoomNotFound:
        return False
    return True
