"""Reads SQLiteYStores (ypy-websocket, pycrdt-websocket, pycrdt-store): one database for all rooms.

    yupdates (path, yupdate)                        ypy-websocket 0.1.10 to 0.4; from 0.2 on
                                                    metadata has rows of its own, each behind its
                                                    update's
    yupdates (path, yupdate, metadata)              0.5
    yupdates (path, yupdate, metadata, timestamp)   0.6, with UTC as text; from 0.7 on, and all
                                                    others, with seconds since 1970
    ycheckpoints (path, checkpoint, timestamp)      beside it, from pycrdt-store 0.1.3 on: all
                                                    updates up to then, merged

`user_version` is 0, from ypy-websocket 0.7.1 on 1, from 0.8 on and in all others 2. From 0.1.1 on
pycrdt-store can be told to compress updates with anything; what Python's library can undo is
undone. If it does not compress, its squashing (0.1.3 to 0.1.5) loses what it should squash: only
the checkpoint has that then, if there is one.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote

from ..stores import StoredUpdate
from ._source import MigrationError, Source, Updates, in_turn, is_update, raise_told, tell

_DECOMPRESS: Final[tuple[Callable[[bytes], bytes], ...]] = (
    zlib.decompress,
    gzip.decompress,
    bz2.decompress,
    lzma.decompress,
)


def _decompressed(content: bytes) -> bytes:
    """The update, if it is one once it is decompressed perhaps; else the same, which is left to
    whoever checks it."""
    if not is_update(content):
        for undo in _DECOMPRESS:
            with suppress(OSError, ValueError, EOFError, zlib.error, lzma.LZMAError):
                found = undo(content)
                if is_update(found):
                    return found
    return content


def sqlite_source(path: Path) -> Source:
    """A database of a SQLiteYStore; a room's name is what is in the column `path`."""
    source = Source("SQLiteYStore", {})
    with _reading(path), closing(_connect(path)) as db:
        columns = [row[1] for row in db.execute("PRAGMA table_info(yupdates)")]
        if columns[:2] != ["path", "yupdate"]:
            raise MigrationError(f"{path} is an SQLite database, but not of a SQLiteYStore")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > 2:
            raise MigrationError(
                f"{path}: a SQLiteYStore of unknown version {version}, this ycore reads 0 to 2"
            )
        for (problem,) in db.execute("PRAGMA integrity_check(5)"):
            if problem != "ok":
                source.problems.append(f"the database is damaged: {problem}")
        tables = ["yupdates"]
        if db.execute("PRAGMA table_info(ycheckpoints)").fetchall():
            tables.append("ycheckpoints")
        select = " UNION ".join(f"SELECT path FROM {table}" for table in tables)
        for (name,) in db.execute(select):
            if isinstance(name, str):
                source.rooms[name] = lambda name=name: _updates(  # type: ignore[misc]
                    path, name, columns, "ycheckpoints" in tables
                )
            else:
                source.problems.append(f"a path is no text, and left out: {name!r:.50}")
    return source


@contextmanager
def _reading(path: Path, what: str = "") -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        why = str(exc)
        if "locked" in why:
            why += "; stop the server that uses it"
        elif "readonly" in why:
            why += (
                "; a server left a transaction unfinished: have SQLite put it right with "
                f"`sqlite3 {path} .tables`"
            )
        raise MigrationError(f"can't read {path}{what}: {why}") from exc


def _connect(path: Path) -> sqlite3.Connection:
    # Updates that nobody reads to the end are closed by the collector, in whatever thread it runs.
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"
    return sqlite3.connect(uri, uri=True, check_same_thread=False)


def _updates(path: Path, room: str, columns: list[str], checkpoints: bool) -> Updates:
    modified = path.stat().st_mtime
    count = 0
    problems: list[str] = []
    try:
        with _reading(path), closing(_connect(path)) as db:
            if len(columns) == 2:
                rows = db.execute(
                    "SELECT yupdate FROM yupdates WHERE path = ? ORDER BY rowid", (room,)
                )
                for update, metadata in in_turn(_bytes(value) for (value,) in rows):
                    count += 1
                    yield StoredUpdate(update, modified, metadata)
                return
            timed = "timestamp" in columns
            select = (
                f"SELECT rowid, yupdate, metadata, {'timestamp' if timed else '0 AS timestamp'} "
                "FROM yupdates WHERE path = :room"
            )
            if checkpoints:
                # All before it, even where squashing has lost that from the other table.
                select += (
                    " UNION ALL SELECT 0 AS rowid, checkpoint, NULL, timestamp FROM ycheckpoints "
                    "WHERE path = :room"
                )
            rows = db.execute(f"{select} ORDER BY timestamp, rowid", {"room": room})
            for rowid, update, metadata, when in rows:
                count += 1
                time = _time(when) if timed else modified
                if time is None:
                    tell(problems, f"update {count} (row {rowid}) has no time: {when!r:.50}")
                    time = modified
                yield StoredUpdate(_decompressed(_bytes(update)), time, _bytes(metadata))
    except MigrationError as exc:
        tell(problems, f"behind update {count}: {exc}")
    raise_told(problems)


def _bytes(value: object) -> bytes:
    """A blob. A callback may have given text for metadata; nothing else is an update."""
    if isinstance(value, bytes):
        return value
    return b"" if value is None else str(value).encode()


def _time(when: object) -> float | None:
    """ypy-websocket 0.6 wrote UTC as text."""
    if isinstance(when, str):
        try:
            return datetime.fromisoformat(when).replace(tzinfo=UTC).timestamp()
        except ValueError:
            return None
    return float(when) if isinstance(when, int | float) and 0 <= when < 2**40 else None
