"""Reads FileYStores: of ypy-websocket, pycrdt-websocket and pycrdt-store, one file a room.

    file   := ("VERSION:" ("1" | "2") "\n")? record*
    record := update                    ypy-websocket 0.1.9 to 0.1.13
            | update metadata           0.2 to 0.7; from 0.7.1 on behind "VERSION:1"
            | update metadata time      from 0.8 on, and all others, behind "VERSION:2"

Each is a field: its length (varUint), then that many bytes. `time` is a little-endian double,
seconds since 1970.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from ycore import RemoteProtocolError
from ycore.lib0 import read_var_uint

from ..stores import StoredUpdate
from ._source import MigrationError, Source, Updates, in_turn, is_update, raise_told, tell

_VERSION: Final = b"VERSION:"
_TIME: Final = re.compile(rb"\x08.{6}[\xcd-\xed]A", re.DOTALL)
"""What a field of a time between 2001 and 2096 looks like: as sure a sign as the format has."""
_TIME_SIZE: Final = 9
_SCAN_BYTES: Final = 2**20


def file_source(path: Path) -> Source | None:
    """A file of a FileYStore; None if it is something else."""
    if not _is_store(path):
        return None
    return Source("FileYStore, one file", {path.name: lambda: _updates(path)})


def directory_source(path: Path) -> Source:
    """All files of a FileYStore below a directory; a room's name is its path from there."""
    rooms: dict[str, Callable[[], Updates]] = {}
    unknown = []
    for file in sorted(path.rglob("*")):
        if file.is_file() and _is_store(file):
            name = file.relative_to(path).as_posix()
            rooms[name] = lambda file=file: _updates(file)  # type: ignore[misc]
        elif file.is_file():
            unknown.append(file)
    if not rooms:
        there = "; if you mean the only file there, name it" if len(unknown) == 1 else ""
        raise MigrationError(f"there are no stores we know in {path}{there}")
    return Source("FileYStore, a directory of files", rooms, unknown)


def _is_store(path: Path) -> bool:
    """Whether it begins like one."""
    with path.open("rb") as file:
        if file.read(len(_VERSION)) == _VERSION:
            return True
        found = _field(file, 0, _size(file))
    return found is not None and is_update(found[0])


def _updates(path: Path) -> Updates:
    try:
        with path.open("rb") as file:
            line = file.readline(32)
            if not line.startswith(_VERSION):
                yield from _bare(file)
            elif line == _VERSION + b"1\n":
                yield from _records(file, len(line), timed=False)
            elif line == _VERSION + b"2\n":
                yield from _records(file, len(line), timed=True)
            else:
                raise MigrationError(f"{path}: a FileYStore of unknown version {line!r}")
    except OSError as exc:
        raise MigrationError(f"{path} can't be read any further: {exc.strerror or exc}") from exc


def _bare(file: BinaryIO) -> Updates:
    """What is there without "VERSION:"."""
    size, modified = _size(file), os.fstat(file.fileno()).st_mtime
    at = 0

    def fields() -> Iterator[bytes]:
        nonlocal at
        while at < size and (found := _field(file, at, size)):
            content, at = found
            yield content

    count = 0
    for update, metadata in in_turn(fields()):
        count += 1
        yield StoredUpdate(update, modified, metadata)
    if at < size:
        raise MigrationError(_lost(file, count, at, size))


def _records(file: BinaryIO, at: int, *, timed: bool) -> Updates:
    """What is there behind "VERSION:". Where a write was torn, and others followed all the same,
    it goes on with those."""
    size, modified = _size(file), os.fstat(file.fileno()).st_mtime
    problems: list[str] = []
    count = 0
    while at < size:
        record = _record(file, at, size, timed=timed)
        if record is not None and (_is_likely(record.time) or _goes_on(file, record, size)):
            count += 1
            time = record.time
            if not _is_likely(time):
                tell(problems, f"update {count} has no time that can be: {time}")
                time = modified
            yield StoredUpdate(record.update, modified if time is None else time, record.metadata)
            at = record.end
            continue
        end = _resumed(file, at, size) if timed else size
        update = _field(file, at, end)
        if update is not None and is_update(update[0]):
            count += 1
            yield StoredUpdate(update[0], modified)
            at = update[1]
        tell(problems, _lost(file, count, at, end))
        at = end
    raise_told(problems)


def _lost(file: BinaryIO, count: int, at: int, end: int) -> str:
    if at == end:
        return f"{file.name}: update {count} has lost its metadata or its time"
    return f"{file.name}: {end - at:,} bytes behind update {count}, at byte {at:,}, can't be read"


class _Record(NamedTuple):
    update: bytes
    metadata: bytes
    time: float | None
    end: int


def _record(file: BinaryIO, at: int, size: int, *, timed: bool) -> _Record | None:
    """The record there, if it is all there."""
    update = _field(file, at, size)
    metadata = update and _field(file, update[1], size)
    if not (update and metadata):
        return None
    if not timed:
        return _Record(update[0], metadata[0], None, metadata[1])
    time = _field(file, metadata[1], min(size, metadata[1] + _TIME_SIZE))
    if time is None or len(time[0]) != _TIME_SIZE - 1:
        return None
    return _Record(update[0], metadata[0], struct.unpack("<d", time[0])[0], time[1])


def _goes_on(file: BinaryIO, record: _Record, size: int) -> bool:
    """Whether a record with an unlikely time is one nevertheless, of a clock that was wrong."""
    followed = record.end == size or _record(file, record.end, size, timed=True) is not None
    return followed and is_update(record.update)


def _is_likely(time: float | None) -> bool:
    return time is None or _TIME.fullmatch(b"\x08" + struct.pack("<d", time)) is not None


def _resumed(file: BinaryIO, at: int, size: int) -> int:
    """Where the first whole record behind `at` begins; `size` if there is none.

    Its time shows where it ends; then, whatever makes a whole record up to there is one.
    """
    for end in _ends_of_times(file, at + 1, size):
        file.seek(at)
        before = file.read(end - at)
        for start in range(1, len(before) - _TIME_SIZE):
            if _is_record(before, start):
                return at + start
        if _record(file, end, size, timed=True) is not None:
            return end
        at = end
    return size


def _ends_of_times(file: BinaryIO, at: int, size: int) -> Iterator[int]:
    while at < size:
        file.seek(at)
        chunk = file.read(_SCAN_BYTES)
        for found in _TIME.finditer(chunk):
            yield at + found.end()
        at += max(1, len(chunk) - _TIME_SIZE + 1)


def _is_record(data: bytes, at: int) -> bool:
    """Whether a record begins there that ends where the data does."""
    try:
        length, begin = read_var_uint(data, at)
        metadata, end = read_var_uint(data, begin + length)
    except RemoteProtocolError:
        return False
    return end + metadata == len(data) - _TIME_SIZE and is_update(data[begin : begin + length])


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _field(file: BinaryIO, at: int, size: int) -> tuple[bytes, int] | None:
    """The content of a field, and where the next begins; None if it is not all there."""
    file.seek(at)
    try:
        length, used = read_var_uint(file.read(10), 0)
    except RemoteProtocolError:
        return None
    start = at + used
    if start + length > size:
        return None
    file.seek(start)
    return file.read(length), start + length
