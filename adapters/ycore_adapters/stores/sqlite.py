"""A store in one SQLite database: many rooms in one file, which other programs can read too.

What is promised, by `fsync` policy, is what the file store promises: `always` has every commit
synced, `everysec` has SQLite's write-ahead log synced once a second (by a checkpoint), `never`
leaves it to the system.

Appends that come while a commit is under way are committed together by the next one, whatever their
rooms. One call is carried out after the other: that is how SQLite writes anyway. Each update has a
checksum, since SQLite has none. One process owns the database, by whatever name it opens it: a lock
beside the file that all symbolic links lead to says so, and one on the file itself. Should another
program write to it all the same, what it wrote stays: compaction deletes nothing unread.

Should somebody remove or replace the database, or a file that SQLite has beside it, that is noticed
within a second and before the next commit. All is written anew then, out of what SQLite holds open;
until that is done, nothing is stored. See `_databasefiles`.

Another program that keeps the database locked holds up one call, for a second. Until it lets go,
all others are told at once that the store is unavailable.
"""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic, time_ns
from typing import Final, NamedTuple, TypeVar
from zlib import crc32

import anyio
from anyio import to_thread

from .._times import when
from ._databasefiles import DatabaseFiles
from ._identity import Claim
from ._logfile import NEW, sync_path
from ._owned import Fsync, OwnedStore
from ._past import Until
from .interface import (
    HistoryNotKept,
    RoomCorrupt,
    RoomInUse,
    RoomNotFound,
    StoredUpdate,
    StoreError,
    StoreUnavailable,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

_APPLICATION_ID: Final = 0x79636F72
"""Tells SQLite's files of ours from others: "ycor"."""
_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE rooms (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never one of a room that was deleted
    name BLOB NOT NULL UNIQUE,  -- UTF-8, with surrogates
    snapshot INTEGER NOT NULL DEFAULT 0,  -- the update that has all before it; 0 if there is none
    bytes INTEGER NOT NULL DEFAULT 0,  -- of the updates from there on
    snapshot_bytes INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE updates (
    room INTEGER NOT NULL REFERENCES rooms (id),
    id INTEGER NOT NULL,  -- in each room, even: an update; odd: a snapshot of all before it
    time INTEGER NOT NULL,  -- milliseconds since 1970
    data BLOB NOT NULL,  -- "update" is a word of SQL's
    metadata BLOB NOT NULL,
    crc INTEGER NOT NULL,  -- CRC-32 of data and metadata
    PRIMARY KEY (room, id)
) WITHOUT ROWID;
CREATE TABLE damaged AS SELECT *, 0 AS put_aside FROM updates;  -- rooms before a repair
"""
_SYNCHRONOUS: Final[dict[Fsync, str]] = {"always": "FULL", "everysec": "NORMAL", "never": "OFF"}
_READ_BYTES: Final = 1024 * 1024
"""How many bytes of updates are read in one go."""
_OPEN_SECONDS: Final = 5.0
"""For how long opening waits for another program that has the database locked."""
_BUSY_SECONDS: Final = 1.0
"""For how long a call waits for such a program, unless the call before it waited in vain."""
_BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class _Busy(StoreUnavailable):
    """Another program has the database locked."""


@dataclass(slots=True)
class _Used:
    """A room in use: loaded, or appended to, and not released since."""

    read_to: int | None = None
    """The id up to which all its updates were read, or written here; None if it was not loaded."""
    bytes: int = 0
    """How long its updates are from the last snapshot on."""
    snapshot_bytes: int = 0
    """How long that snapshot is."""
    refused: str | None = None
    """Why its last append failed, if it did."""
    has_foreign: bool = False
    """Whether another program has written to it."""

    def wrote(self, before: int, last: int) -> None:
        """Updates were appended: before them `before` was the last, now `last` is."""
        if before <= (self.read_to or 0):
            self.read_to = last
        elif self.read_to is not None:
            self.has_foreign = True


class _Written(NamedTuple):
    """What an append has found and done."""

    before: int
    last: int
    bytes: int
    snapshot_bytes: int


class _Append:
    """Updates that wait to be committed."""

    def __init__(self, room: str, updates: Sequence[StoredUpdate]) -> None:
        self.room = room
        self.updates = updates
        self.done = False
        self.error: StoreError | None = None


class SQLiteStore(OwnedStore):
    """Rooms in a database file, which is made if it is not there.

    Args:
        path: the database. SQLite has two more files beside it while it is open.
        fsync: see the top of this module.
        keep_history: whether compaction keeps what it replaces, so that `load` can tell what a
            room was at any time. A room whose history was kept once goes on keeping it.
        compact_from: how many bytes of updates a room has at least before it is worth compacting.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fsync: Fsync = "everysec",
        keep_history: bool = False,
        compact_from: int = 256 * 1024,
    ) -> None:
        self.path = Path(os.path.realpath(path))
        """The file itself, whatever links lead to it: its log and its lock are beside that."""
        super().__init__(f"the database {self.path}", Path(f"{self.path}.lock"), fsync)
        self.keep_history = keep_history
        self.compact_from = compact_from
        self._db: sqlite3.Connection | None = None
        self._files: DatabaseFiles
        self._claim: Claim
        self._lock = anyio.Lock()
        """Held while the database is used."""
        self._waiting: list[_Append] = []
        self._used: dict[str, _Used] = {}
        self._patience = _OPEN_SECONDS
        """For how long SQLite waits for others now."""
        self._unsynced: dict[str, float] = {}
        """Rooms of which something is not synced, and since when, in monotonic seconds."""
        self._failure: str | None = None
        """Why syncing failed, since it does; or what somebody did to the files."""

    async def _open(self) -> None:
        self._used.clear()
        self._claim = await to_thread.run_sync(Claim, self.path)
        if self._claim.names > 1:
            logger.warning(
                "hard links: open it always by this name, SQLite's log is beside it file=%s",
                self.path,
            )
        try:
            self._db, self._files = await to_thread.run_sync(self._connect)
        except BaseException:
            self._claim.release()
            raise

    # -- the interface

    async def load(
        self, room: str, *, at: float | None = None
    ) -> AsyncGenerator[StoredUpdate, None]:
        millis = None if at is None else round(at * 1000)
        until = Until(millis)
        key, oldest, first = await self._run(self._begin, room, millis)
        damage: list[tuple[int, int]] = []
        found = False
        is_all = False
        while not is_all:
            batch, first, is_all = await self._run(self._read, key, first, until, damage)
            for update in batch:
                found = True
                yield update
        if damage:
            which = ", ".join(str(number) for number, _ in damage)
            lost = [size for number, size in damage if number == oldest or not number % 2]
            if len(lost) < len(damage):
                which += " (what a snapshot had is taken from the history)"
            raise RoomCorrupt(
                f"{self.path}: of the room {room!r} these updates can't be read: {which}. "
                "`ycore repair` keeps the others",
                sum(lost),
            )
        if at is None:
            self._used.setdefault(room, _Used()).read_to = max(first - 1, 0)
        elif not found:
            raise RoomNotFound(f"the room {room!r} had nothing yet at {when(at)}")

    async def append(self, room: str, updates: Sequence[StoredUpdate]) -> None:
        append = _Append(room, updates)
        self._waiting.append(append)
        try:
            async with self._lock:
                if not append.done:
                    batch, self._waiting = self._waiting, []
                    with anyio.CancelScope(shield=True):  # others wait for it too
                        await self._commit_all(batch)
        finally:
            if append in self._waiting:  # cancelled: nobody else shall do it
                self._waiting.remove(append)
        if append.error is not None:
            raise append.error

    async def _commit_all(self, batch: list[_Append]) -> None:
        """Commit appends. Each is told what became of it, whatever happens."""
        try:
            await to_thread.run_sync(self._commit, batch)
        except Exception as exc:  # no memory, no thread, a time that is no number
            for append in batch:
                if not append.done:
                    append.error = StoreUnavailable(f"{self.path}: {exc!r}")
        finally:
            for append in batch:
                if not append.done and append.error is None:
                    append.error = StoreUnavailable(f"{self.path}: it was not committed")
                append.done = True

    async def compact(self, room: str, snapshot: Callable[[], Awaitable[StoredUpdate]]) -> None:
        key, last = await self._run(self._last, room)
        await self._change(self._compact, room, key, last, await snapshot())

    async def delete(self, room: str) -> None:
        await self._change(self._delete, room)

    async def rooms(self) -> AsyncIterator[str]:
        for name in await self._run(self._rooms):
            yield name

    async def release(self, room: str) -> None:
        if room in self._used:
            self.check_owned()
        if room in self._unsynced:
            await self._sync()
        self._used.pop(room, None)

    def outgrown(self, room: str) -> bool:
        used = self._used.get(room)
        if used is None or used.has_foreign:
            return False
        return used.bytes >= max(self.compact_from, 2 * used.snapshot_bytes)

    def problems(self) -> Mapping[str, str]:
        rooms = tuple(self._unsynced or self._used) or (str(self.path),)
        if self._not_owned is not None:
            return dict.fromkeys(rooms, self._not_owned)
        problems = {} if self._failure is None else dict.fromkeys(rooms, self._failure)
        for room, used in tuple(self._used.items()):  # threads add to them
            if used.has_foreign:
                problems[room] = self._foreign(room)
            if used.refused is not None:
                problems[room] = used.refused
        return problems

    def unsynced(self) -> float:
        if self.fsync != "everysec" or not self._unsynced:
            return 0.0
        return monotonic() - min(self._unsynced.values())

    def _foreign(self, room: str) -> str:
        return f"{self.path}: another program has written to the room {room!r}, while it was open"

    async def repair(self, room: str, keep: Callable[[bytes], bool]) -> str:
        await self.release(room)
        await self._change(self._repair, room, keep)
        return f"{self.path}, table damaged"

    # -- in threads

    async def _run(self, do: Callable[..., T], *args: object) -> T:
        """Read something. That waits for no program that writes."""
        async with self._lock:
            return await to_thread.run_sync(partial(self._do, "BEGIN", do, *args))

    async def _change(self, do: Callable[..., T], *args: object) -> T:
        async with self._lock:
            return await to_thread.run_sync(partial(self._do, "BEGIN IMMEDIATE", do, *args))

    def _do(self, begin: str, do: Callable[..., T], *args: object) -> T:
        """Do something in one transaction, and translate what SQLite raises."""
        self.check_owned()
        db = self._db
        if db is None:
            raise StoreUnavailable(f"the database {self.path} is closed")
        try:
            with db:
                db.execute(begin)
                done = do(db, *args)
                if begin != "BEGIN":
                    self._files.check()
        except (sqlite3.Error, OverflowError) as exc:
            if db.in_transaction:
                db.rollback()
            if getattr(exc, "sqlite_errorcode", 0) & 0xFF in _BUSY:
                self._wait_for_others(db, 0.0)
                raise _Busy(f"{self.path}: another program has it locked") from exc
            raise StoreUnavailable(f"{self.path}: {exc}") from exc
        if begin != "BEGIN":
            self._wait_for_others(db, _BUSY_SECONDS)
        return done

    def _wait_for_others(self, db: sqlite3.Connection, seconds: float) -> None:
        """Have SQLite wait for so long from now on when the database is locked."""
        if self._patience != seconds:
            self._patience = seconds
            db.execute(f"PRAGMA busy_timeout = {round(seconds * 1000)}")

    def _connect(self) -> tuple[sqlite3.Connection, DatabaseFiles]:
        try:
            self._patience = _OPEN_SECONDS
            db = sqlite3.connect(
                self.path, self._patience, check_same_thread=False, isolation_level=None
            )
            try:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute(f"PRAGMA synchronous = {_SYNCHRONOUS[self.fsync]}")
                (ours,) = db.execute("PRAGMA application_id").fetchone()
                (version,) = db.execute("PRAGMA user_version").fetchone()
                (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
                if not tables:
                    db.executescript(
                        f"BEGIN; {_SCHEMA} PRAGMA application_id = {_APPLICATION_ID};"
                        f"PRAGMA user_version = {_VERSION}; COMMIT"
                    )
                elif ours != _APPLICATION_ID:
                    raise StoreUnavailable(f"{self.path} is a database of something else")
                elif version != _VERSION:
                    raise StoreUnavailable(
                        f"{self.path} is of version {version}, this ycore reads {_VERSION}"
                    )
                self._wait_for_others(db, _BUSY_SECONDS)
                return db, DatabaseFiles(self.path)
            except BaseException:
                db.close()
                raise
        except sqlite3.Error as exc:
            raise StoreUnavailable(f"can't use the database {self.path}: {exc}") from exc

    def _room(self, db: sqlite3.Connection, room: str) -> tuple[int, int]:
        """Its key, and the id of its snapshot."""
        row = db.execute("SELECT id, snapshot FROM rooms WHERE name = ?", (_name(room),)).fetchone()
        if row is None:
            raise RoomNotFound(f"no room {room!r} in {self.path}")
        return row[0], row[1]

    def _begin(self, db: sqlite3.Connection, room: str, until: int | None) -> tuple[int, int, int]:
        """The room's key, the id of its oldest update, and that of the first to read."""
        key, snapshot = self._room(db, room)
        oldest, time = db.execute(
            "SELECT ifnull(min(id), 0), time FROM updates WHERE room = ?", (key,)
        ).fetchone()
        if until is None:
            return key, oldest, self._base(db, key, snapshot)
        if oldest % 2 and time > until:
            raise HistoryNotKept(f"of {room!r} nothing is kept from before {when(time / 1000)}")
        return key, oldest, 0

    def _base(self, db: sqlite3.Connection, key: int, snapshot: int) -> int:
        """The id of the last snapshot that can be read, 0 if there is none. What those after it
        have summed up is in the history."""
        while snapshot:
            row = db.execute(
                "SELECT data, metadata, crc FROM updates WHERE room = ? AND id = ?", (key, snapshot)
            ).fetchone()
            if row is not None and row[2] == _crc(row[0], row[1]):
                break
            (snapshot,) = db.execute(
                "SELECT ifnull(max(id), 0) FROM updates WHERE room = ? AND id < ? AND id % 2",
                (key, snapshot),
            ).fetchone()
        return snapshot

    def _read(
        self,
        db: sqlite3.Connection,
        key: int,
        first: int,
        until: Until,
        damage: list[tuple[int, int]],
    ) -> tuple[list[StoredUpdate], int, bool]:
        """Some updates, where the next ones begin, and whether these were all."""
        batch = []
        size = 0
        rows = db.execute(
            "SELECT id, time, data, metadata, crc FROM updates WHERE room = ? AND id >= ?"
            " ORDER BY id",
            (key, first),
        )
        with closing(rows):
            for number, time, data, metadata, crc in rows:
                first = number + 1
                if crc != _crc(data, metadata):
                    damage.append((number, len(data)))
                elif until.has(time, is_snapshot=bool(number % 2)):
                    batch.append(StoredUpdate(data, time / 1000, metadata))
                size += len(data)
                if size >= _READ_BYTES:
                    return batch, first, False
        return batch, first, True

    def _commit(self, batch: list[_Append]) -> None:
        """Commit them together, or if that fails each by itself, to see whose fault it is."""
        attempts = [batch]
        while attempts:
            appends = attempts.pop()
            error = None
            try:
                written = self._do("BEGIN IMMEDIATE", self._append, appends)
            except StoreError as exc:
                error = exc
                if len(appends) > 1 and not isinstance(exc, _Busy):
                    attempts += [[append] for append in reversed(appends)]
                    continue
            else:
                for room, (before, last, size, snapshot_size) in written:
                    used = self._used.setdefault(room, _Used())
                    used.wrote(before, last)
                    used.bytes, used.snapshot_bytes = size, snapshot_size
                    self._unsynced.setdefault(room, monotonic())
            for append in appends:
                append.error = error
                append.done = True
                used = self._used.setdefault(append.room, _Used())
                used.refused = None if error is None else str(error)

    def _append(self, db: sqlite3.Connection, appends: list[_Append]) -> list[tuple[str, _Written]]:
        written = []
        for append in appends:
            name = _name(append.room)
            db.execute("INSERT OR IGNORE INTO rooms (name) VALUES (?)", (name,))
            key, before = self._last(db, append.room)
            rows = [
                (key, before // 2 * 2 + 2 * number, *_columns(update))
                for number, update in enumerate(append.updates, 1)
            ]
            db.executemany("INSERT INTO updates VALUES (?, ?, ?, ?, ?, ?)", rows)
            size = sum(len(update.update) for update in append.updates)
            sizes = db.execute(
                "UPDATE rooms SET bytes = bytes + ? WHERE id = ? RETURNING bytes, snapshot_bytes",
                (size, key),
            ).fetchone()
            last = rows[-1][1] if rows else before
            written.append((append.room, _Written(before, last, *sizes)))
        return written

    def _last(self, db: sqlite3.Connection, room: str) -> tuple[int, int]:
        """The room's key, and the id of its last update; 0 if it has none."""
        key, _ = self._room(db, room)
        (last,) = db.execute("SELECT max(id) FROM updates WHERE room = ?", (key,)).fetchone()
        return key, last or 0

    def _compact(
        self, db: sqlite3.Connection, room: str, key: int, last: int, update: StoredUpdate
    ) -> None:
        now, before = self._room(db, room)
        if now != key:
            raise StoreUnavailable(f"the room {room!r} was deleted while it was being compacted")
        used = self._used.setdefault(room, _Used())
        if used.has_foreign or (used.read_to is not None and used.read_to < last):
            used.has_foreign = True
            raise StoreUnavailable(self._foreign(room))
        snapshot = last // 2 * 2 + 1
        time, data, metadata, crc = _columns(update)
        db.execute(
            "INSERT OR REPLACE INTO updates VALUES (?, ?, ?, ?, ?, ?)",
            (key, snapshot, time, data, metadata, crc),
        )
        written = db.execute(
            "SELECT data FROM updates WHERE room = ? AND id = ?", (key, snapshot)
        ).fetchone()
        if written != (data,):
            raise StoreUnavailable(f"{self.path} does not hold what was written to it")
        if not (self.keep_history or self._has_history(db, key, before)):
            db.execute("DELETE FROM updates WHERE room = ? AND id < ?", (key, snapshot))
        used.bytes, used.snapshot_bytes = db.execute(
            "UPDATE rooms SET snapshot = ?, snapshot_bytes = ?, bytes = ("
            "  SELECT sum(length(data)) FROM updates WHERE room = ? AND id >= ?"
            ") WHERE id = ? RETURNING bytes, snapshot_bytes",
            (snapshot, len(data), key, snapshot, key),
        ).fetchone()
        if used.read_to is not None:
            used.read_to = max(used.read_to, snapshot)
        self._unsynced.setdefault(room, monotonic())

    def _has_history(self, db: sqlite3.Connection, key: int, snapshot: int) -> bool:
        """Whether something is kept that a snapshot has summed up: the last one, or one that was
        damaged, and put aside by a repair."""
        found = db.execute(
            "SELECT 1 FROM updates WHERE room = ?1 AND id < ?2 UNION ALL"
            " SELECT 1 FROM damaged JOIN updates USING (room, id, time, crc)"
            " WHERE room = ?1 AND id < ("
            "  SELECT max(id) FROM damaged WHERE room = ?1 AND id % 2"
            ") LIMIT 1",
            (key, snapshot),
        ).fetchone()
        return found is not None

    def _delete(self, db: sqlite3.Connection, room: str) -> None:
        key, _ = self._room(db, room)
        if room in self._used:
            raise RoomInUse(room)
        for table in ("updates", "damaged"):
            db.execute(f"DELETE FROM {table} WHERE room = ?", (key,))
        db.execute("DELETE FROM rooms WHERE id = ?", (key,))

    def _rooms(self, db: sqlite3.Connection) -> list[str]:
        names = db.execute("SELECT name FROM rooms ORDER BY name")
        return [name.decode("utf-8", "surrogatepass") for (name,) in names]

    def _repair(self, db: sqlite3.Connection, room: str, keep: Callable[[bytes], bool]) -> None:
        key, snapshot = self._room(db, room)
        now = time_ns() // 1_000_000
        db.execute("INSERT INTO damaged SELECT *, ? FROM updates WHERE room = ?", (now, key))
        rows = db.execute("SELECT id, data, metadata, crc FROM updates WHERE room = ?", (key,))
        bad = [
            (key, number)
            for number, data, metadata, crc in rows
            if crc != _crc(data, metadata) or not keep(data)
        ]
        db.executemany("DELETE FROM updates WHERE room = ? AND id = ?", bad)
        snapshot = self._base(db, key, snapshot)
        db.execute(
            "UPDATE rooms SET snapshot = ?1, (bytes, snapshot_bytes) = ("
            "  SELECT ifnull(sum(length(data)), 0), ifnull(sum(length(data) * (id = ?1)), 0)"
            "  FROM updates WHERE room = ?2 AND id >= ?1"
            ") WHERE id = ?2",
            (snapshot, key),
        )

    # -- syncing

    async def _sync_all(self) -> None:
        if self._not_owned is not None:
            return
        try:
            try:
                self._files.check()
            except StoreUnavailable:
                async with self._lock:
                    await to_thread.run_sync(self._heal)
            if self._unsynced:
                await self._sync()
        except StoreError as exc:
            if self._failure is None:
                logger.error("sync failed file=%s error=%r", self.path, str(exc))
            self._failure = str(exc)

    async def _sync(self) -> None:
        """Make durable what was committed."""
        if self.fsync == "everysec":
            async with self._lock:
                await to_thread.run_sync(self._checkpoint, "PASSIVE")
                self._unsynced.clear()
        else:
            self._unsynced.clear()
        self._failure = None

    def _heal(self) -> None:
        """If somebody has taken away or replaced one of the files, write the database anew: SQLite
        still holds all of it open."""
        self.check_owned()
        try:
            self._files.check()
        except StoreUnavailable as exc:
            why = str(exc)
        else:
            return
        try:
            self._write_anew()
        except (sqlite3.Error, OSError, StoreUnavailable) as exc:
            raise StoreUnavailable(f"{why}, and can't be written anew: {exc}") from exc
        logger.error("healed file=%s after=%r", self.path, why)
        self._unsynced.clear()
        self._failure = None

    def _write_anew(self) -> None:
        old, its_files = self._db, self._files
        assert old is not None
        new = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}{NEW}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(sqlite3.connect(new)) as copy:
                old.backup(copy)
                (found,) = copy.execute("PRAGMA quick_check").fetchone()
            if found != "ok":
                raise StoreUnavailable(f"not all of it can be read: {found}")
            sync_path(new)
            claim = Claim(new)
            try:
                its_files.replace_by(new)
            except BaseException:
                claim.release()
                raise
        except BaseException:
            with suppress(OSError):
                new.unlink(missing_ok=True)
            raise
        self._claim.release()
        self._claim = claim
        self._db, self._files = self._connect()
        with suppress(sqlite3.Error):
            old.close()  # which leaves the names alone: they lead elsewhere
        its_files.close()

    def _checkpoint(self, mode: str) -> None:
        self.check_owned()
        if self._db is None:
            raise StoreUnavailable(f"the database {self.path} is closed")
        self._files.check()
        try:
            # The checkpoint syncs the log only as far as no reader keeps it from being read.
            with suppress(FileNotFoundError):
                sync_path(Path(f"{self.path}-wal"))
            self._db.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except (sqlite3.Error, OSError) as exc:
            raise StoreUnavailable(f"can't sync {self.path}: {exc}") from exc

    async def _close(self) -> None:
        with anyio.CancelScope(shield=True):
            async with self._lock:
                try:
                    await to_thread.run_sync(self._heal)
                    if self.fsync != "never":
                        await to_thread.run_sync(self._checkpoint, "TRUNCATE")
                except StoreError as exc:
                    logger.error("sync failed file=%s error=%r", self.path, str(exc))
                db, self._db = self._db, None
                if db is not None:
                    await to_thread.run_sync(db.close)
                self._files.close()
                self._claim.release()


def _name(room: str) -> bytes:
    return room.encode("utf-8", "surrogatepass")


def _crc(data: bytes, metadata: bytes) -> int:
    return crc32(metadata, crc32(data))


def _columns(update: StoredUpdate) -> tuple[int, bytes, bytes, int]:
    crc = _crc(update.update, update.metadata)
    return round(update.time * 1000), update.update, update.metadata, crc
