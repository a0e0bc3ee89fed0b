"""A copy of stored rooms while a server goes on writing: `ycore backup`. Blocking.

It takes no lock. A log is opened first, which pins that file down, and then the past is listed: a
compaction that comes between links the opened file into the past, where it is recognized, and what
is behind it there is later than the copy. What is behind the last whole record of the copy is of a
write that is under way, and cut. Of a database SQLite makes the copy.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from ._log import LogError, decode_header
from ._logfile import PAST, SUFFIX, Beside, Reading, numbered, open_to_read, read_head, sync_path
from ._names import room_name
from ._owned import failed, identity, translated
from .interface import RoomNotFound, StoreUnavailable
from .sqlite import _crc

__all__ = ["Backup", "backup_database"]

_TRIES: Final = 3
"""How often a room is copied anew that was replaced, or was no log, while one looked."""
_UNFINISHED: Final = ".unfinished"


class _Unreadable(Exception):
    """A file can't be copied: the others can all the same."""


class Backup:
    """A copy of a data directory, made room by room: iterate over `rooms`.

    Args:
        source: the directory.
        target: where the copy is to be; there must be nothing. It gets its name when all is there.

    Raises:
        StoreUnavailable: there is something at the target, or it can't be made.
    """

    def __init__(self, source: Path, target: Path) -> None:
        self._target = target
        self._copy = _unfinished(target)
        with translated(f"can't read {source}"):
            self.logs = sorted(path for path in source.iterdir() if path.suffix == SUFFIX)

    def rooms(self) -> Iterator[tuple[str, str | None]]:
        """Copy the rooms; gives the name of each log, and what is wrong with it if something is.

        Raises:
            StoreUnavailable: the copy can't be written.
        """
        with translated(f"can't make {self._copy}"):
            self._copy.mkdir(0o750, parents=True)
        for path in self.logs:
            yield path.name, self._room(path)
        with translated(f"can't make {self._target}"):
            sync_path(self._copy)
            self._copy.rename(self._target)
            sync_path(self._target.parent)

    def _room(self, path: Path) -> str | None:
        problem: str | None = None
        for _ in range(_TRIES):
            self._forget(path)
            try:
                problem = self._try(path)
            except FileNotFoundError:
                if not path.exists():  # deleted since
                    self._forget(path)
                    return None
                problem = f"{path} was replaced again and again"
            except OSError as exc:
                raise failed(f"can't copy {path}", exc) from exc
            if problem is None:
                return None
        return problem

    def _forget(self, path: Path) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._copy / path.name)
        with suppress(FileNotFoundError):
            shutil.rmtree((self._copy / path.name).with_suffix(PAST))

    def _try(self, path: Path) -> str | None:
        """
        Raises:
            FileNotFoundError: the room was replaced, or deleted.
        """
        copy = self._copy / path.name
        try:
            with _opened(path) as fd:
                log = os.fstat(fd)
                earlier = self._past(path, identity(log))
                _copy(fd, log.st_size, copy)
            past = []
            if earlier:
                directory = copy.with_suffix(PAST)
                directory.mkdir(0o750)
                for file in earlier:
                    with _opened(file) as fd:
                        past.append(directory / file.name)
                        _copy(fd, os.fstat(fd).st_size, past[-1])
                sync_path(directory)
        except _Unreadable as exc:
            return str(exc)
        return _damage(path, copy, past)

    def _past(self, path: Path, log: tuple[int, int]) -> list[Path]:
        """The files of the past that are older than that log."""
        directory = path.with_suffix(PAST)
        earlier: list[Path] = []
        try:
            found = numbered(directory)
        except OSError as exc:
            raise _Unreadable(f"can't list {directory}: {exc.strerror or exc}") from exc
        for file in found:
            if identity(file.stat()) == log:
                return earlier
            earlier.append(file)
        if identity(path.stat()) != log:
            raise FileNotFoundError(f"{path} is another file now")
        return earlier


def _unfinished(target: Path) -> Path:
    """What a copy is called until all of it is there.

    Raises:
        StoreUnavailable: there is something of either name, or that can't be told.
    """
    with translated(f"can't look at {target}"):
        if not target.exists():
            path = target.with_name(target.name + _UNFINISHED)
            if not path.exists():
                return path
            target = path
    raise StoreUnavailable(f"there is something at {target} already: remove it, or name another")


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """
    Raises:
        FileNotFoundError
        _Unreadable: it is there, and can't be opened.
    """
    try:
        fd = open_to_read(path)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise _Unreadable(f"can't copy {path}: {exc.strerror or exc}") from exc
    try:
        yield fd
    finally:
        os.close(fd)


def _copy(fd: int, size: int, to: Path) -> None:
    beside = Beside(to)
    beside.open()
    try:
        beside.copy(fd, 0, size)
        beside.sync()
    finally:
        os.close(beside.taken())


def _damage(path: Path, copy: Path, past: list[Path]) -> str | None:
    """Read what was written, and cut off what is of a write that was under way."""
    room = room_name(path.stem)
    if room is None:
        try:
            room = decode_header(read_head(copy))[0]
        except LogError as exc:
            return f"{path}: {exc}"
    for file in (copy, *past):
        reading = Reading(room, file, synced=file != copy)
        for _ in reading.records():
            pass
        if reading.broken:
            return f"{path}: {'; '.join(reading.broken)}"
        if reading.tail:
            os.truncate(file, reading.end)
            sync_path(file)
    return None


def backup_database(source: Path, target: Path) -> str | None:
    """Copy a database; returns what is wrong with the copy, if something is.

    Raises:
        RoomNotFound: there is no database.
        StoreUnavailable: it can't be read, or the copy not be written.
    """
    unfinished = _unfinished(target)
    if not source.exists():
        raise RoomNotFound(f"there is no {source}")
    with translated(f"can't make {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            uri = f"{source.absolute().as_uri()}?mode=ro"
            with (
                closing(sqlite3.connect(uri, uri=True)) as db,
                closing(sqlite3.connect(unfinished)) as copy,
            ):
                db.backup(copy)
                (found,) = copy.execute("PRAGMA quick_check").fetchone()
                rows = copy.execute("SELECT data, metadata, crc FROM updates")
                bad = sum(crc != _crc(data, metadata) for data, metadata, crc in rows)
        except sqlite3.Error as exc:
            raise StoreUnavailable(f"can't copy {source}: {exc}") from exc
        sync_path(unfinished)
        unfinished.rename(target)
        sync_path(target.parent)
    if found != "ok":
        return f"{source}: {found}"
    return f"{source}: {bad:,} updates are damaged" if bad else None
