"""The files of one room, as the file store has them in its directory. Blocking: runs in threads.

    NAME.ylog             the log: what the room is
    NAME.….new            what is to take its place, while that is being written
    NAME.past/00000001    logs that were compacted, if history is kept: links to the files
    NAME.torn             tails that were cut off
    NAME.damaged/1        logs that were repaired, as they were

How a log is replaced: the new file is written and synced, what was appended to the old one in the
meantime is copied behind, and it is renamed. A crash leaves the old file or the new one, each
whole. The salt stays, so that records can be copied as they are.

A sync that fails leaves nobody knowing what the disk has of a file, and the next one may succeed
all the same. So then the whole log is written anew (`heal`), out of the system's cache. So it is
when somebody has removed the file, or put another in its place, while a server has it: all that was
written is still behind the descriptor. A file that was cut short is past healing, and refused.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn

import anyio

from ycore import RemoteProtocolError, StructStore
from ycore.updates import parse_update

from .._times import when
from ._log import (
    HEAD_SIZE,
    HEADER_SIZE,
    Damaged,
    Later,
    Record,
    TornTail,
    decode_header,
    decode_records,
    encode_header,
    encode_record,
    next_record,
    recover,
    snapshot_length,
)
from ._owned import failed, identity, translated
from ._past import Until
from .interface import HistoryNotKept, RoomCorrupt, RoomNotFound, StoredUpdate, StoreUnavailable

logger = logging.getLogger(__name__)

SUFFIX: Final = ".ylog"
NEW: Final = ".new"
_TOKEN_BYTES: Final = 4
_UNFINISHED: Final = re.compile(rf".*\.[0-9a-f]{{{2 * _TOKEN_BYTES}}}\{NEW}", re.DOTALL)
PAST: Final = ".past"
_TORN: Final = ".torn"
DAMAGED: Final = ".damaged"
_CHUNK: Final = 1024 * 1024
"""How much is read, or copied, in one go."""


def sync_path(path: Path) -> None:
    """Make a file's content durable, or the names in a directory."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_to_read(path: Path) -> int:
    """
    Raises:
        OSError: it can't be read, or is a pipe, say: to open or read that might wait for ever.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file")
    return fd


def read_head(path: Path) -> bytes:
    """As much of a log as its header may take.

    Raises:
        StoreUnavailable
    """
    with translated(f"can't read {path}"):
        fd = open_to_read(path)
        try:
            return os.pread(fd, HEADER_SIZE, 0)
        finally:
            os.close(fd)


def is_unfinished(path: Path) -> bool:
    """Whether that is what a crash left of a file that was to take a log's place."""
    return _UNFINISHED.fullmatch(path.name) is not None and path.is_file()


def numbered(directory: Path) -> list[Path]:
    """What a directory has under numbers, in their order. Whatever else somebody has put there is
    not the store's, and left alone.

    Raises:
        OSError: the directory is there, and can't be listed.
    """
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    numbers = [(int(name), name) for name in names if name.isascii() and name.isdigit()]
    return [directory / name for _, name in sorted(numbers)]


class _Bytes:
    """A file as a sequence of bytes, read through a window. (A memory map would do, but kills the
    process when the disk has a read error.)"""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        self._window = b""
        self._at = 0

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: slice) -> bytes:
        start, stop, _ = key.indices(self._size)
        if start < self._at or stop > self._at + len(self._window):
            self._window = os.pread(self._fd, max(stop - start, _CHUNK), start)
            self._at = start
        return self._window[start - self._at : stop - self._at]


class Reading:
    """One pass over a log file, which goes on behind what is broken and remembers it."""

    def __init__(
        self,
        room: str,
        path: Path,
        *,
        fd: int | None = None,
        until: int | None = None,
        synced: bool = False,
    ) -> None:
        self._room = room
        self._path = path
        self._fd = fd
        """The file, if it is open already."""
        self._until = until
        """Where to stop, if not at the end of the file."""
        self._synced = synced
        """Whether all of it was once synced, so that nothing in it is torn."""
        self.identity = (0, 0)
        """Which file it was."""
        self.salt = 0
        self.end = 0
        """Where the last whole record ended."""
        self.snapshot = 0
        """How long the snapshot is that the log begins with; 0 if it does not."""
        self.tail = b""
        """What is behind, and was never completely written."""
        self.broken: list[str] = []
        """What can't be read in the middle of it."""
        self.lost = 0
        """How many bytes that are, about."""
        self.snapshot_lost = 0
        """How many of them are a snapshot that the file began with."""
        self._has_help = False
        """Whether a snapshot that can't be read is made good for by the history."""

    def records(self) -> Generator[Record, None, None]:
        """Raises RoomNotFound, StoreUnavailable; of what is broken it only takes note."""
        with translated(f"can't read {self._path}"):
            if self._fd is not None:
                yield from self._records_of(self._fd)
                return
            try:
                fd = open_to_read(self._path)
            except FileNotFoundError:
                raise RoomNotFound(f"there is no {self._path}") from None
            try:
                yield from self._records_of(fd)
            finally:
                os.close(fd)

    def readable(self) -> Generator[Record, None, None]:
        """`records`, which takes note too if the file can't be read at all."""
        try:
            yield from self.records()
        except (RoomNotFound, StoreUnavailable) as exc:
            self._note(str(exc), 0)

    def _records_of(self, fd: int) -> Iterator[Record]:
        stat = os.fstat(fd)
        self.identity = identity(stat)
        yield from self._records(_Bytes(fd, stat.st_size if self._until is None else self._until))

    def _records(self, data: _Bytes) -> Iterator[Record]:
        pos: int | None
        try:
            name, self.salt, pos = decode_header(data, self._room)
            if name != self._room:
                self._note(f"it is the log of the room {name!r}", len(data))
                return
        except Later as exc:
            self._note(str(exc), len(data))
            return
        except Damaged as exc:
            self.salt, start = recover(data, self._room)
            pos = next_record(data, 0, self.salt)
            self._note_damage(data, str(exc), start, pos)
        except TornTail as exc:
            self._end_torn(data, exc)
            return
        while pos is not None:
            try:
                for record in decode_records(data, pos, self.salt):
                    if not self.end and record.is_snapshot:
                        self.snapshot = len(record.update)
                    self.end = record.end
                    yield record
                self.end = max(self.end, pos)
                return
            except TornTail as exc:
                self.end = exc.offset
                self._end_torn(data, exc)
                return
            except Damaged as exc:
                pos = next_record(data, exc.offset, self.salt)
                until = len(data) if pos is None else pos
                self._note_damage(data, f"{exc} to {until}", exc.offset, pos)

    def _end_torn(self, data: _Bytes, exc: TornTail) -> None:
        if self._synced:
            self._note(str(exc), len(data) - exc.offset - HEAD_SIZE)
        else:
            self.tail = data[exc.offset :]

    def _note_damage(self, data: _Bytes, what: str, start: int, next_one: int | None) -> None:
        """Note that there is no record at `start`; the next whole one, if any, is at `next_one`."""
        lost = (len(data) if next_one is None else next_one) - start - HEAD_SIZE
        if not self.end:
            length = snapshot_length(data, start, self.salt)
            self.snapshot_lost = max(lost if length is None else min(lost, length), 0)
        self._note(what, lost)

    def _note(self, what: str, lost: int) -> None:
        self.broken.append(what)
        self.lost += max(lost, 0)

    def helped_by(self, earlier: Sequence[Reading]) -> None:
        """What the lost snapshot has summed up was read from these files of the past, each of
        which the one after it sums up."""
        for reading in earlier:
            self.note_of(reading)
        self._has_help = True
        self.lost -= sum(reading.snapshot_lost for reading in (*earlier[1:], self))

    def note_of(self, other: Reading) -> None:
        """Note what is wrong with another file as well."""
        self.broken += [f"{other._path}: {what}" for what in other.broken]
        self.lost += other.lost

    def check(self) -> None:
        if self.broken:
            what = "; ".join(self.broken)
            if self._has_help:
                what += ". What its snapshot had is taken from the history"
            raise RoomCorrupt(
                f"{self._path}: {what}. `ycore repair` keeps what can be read", self.lost
            )


class Beside:
    """A file that is to take a log's place. There is none before `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.snapshot: int | None = None
        """How many bytes at its beginning hold what was compacted; None if nothing was."""
        self._fd: int | None = None

    def open(self) -> None:
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)

    @property
    def fd(self) -> int:
        assert self._fd is not None
        return self._fd

    def write(self, data: bytes) -> None:
        self.size = _write(self.fd, data, self.size)

    def copy(self, fd: int, start: int, stop: int) -> None:
        """Append what another file has there."""
        while start < stop:
            data = os.pread(fd, min(stop - start, _CHUNK), start)
            if not data:
                raise OSError(None, f"{self.path}: the log is shorter than it was")
            self.write(data)
            start += len(data)

    def sync(self) -> None:
        os.fsync(self.fd)

    def taken(self) -> int:
        """It has taken the place: its descriptor is somebody else's now."""
        fd, self._fd = self.fd, None
        return fd

    def discard(self) -> None:
        """Remove it, if it has not taken the place."""
        if self._fd is not None:
            _close(self.taken())
            with suppress(OSError):
                os.unlink(self.path)


def _close(fd: int) -> None:
    """Close it. Should that fail, it is closed all the same; what counts was synced before."""
    with suppress(OSError):
        os.close(fd)


def _write(fd: int, data: bytes, at: int) -> int:
    """Write all of it, and return where it ends."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        view = view[written:]
        at += written
    return at


class LogFile:
    """The log of one room, and what is kept beside it."""

    def __init__(
        self,
        room: str,
        path: Path,
        *,
        syncs: bool = True,
        keep_history: bool = False,
        read_only: bool = False,
    ) -> None:
        self.room = room
        self.path = path
        self._syncs = syncs
        """Whether what is read has to be durable."""
        self._read_only = read_only
        self._keep_history = keep_history
        # Who needs both takes them in this order.
        self.in_use = anyio.Lock(fast_acquire=True)
        """Held while syncing, closing or replacing, which must not meet."""
        self.writing = anyio.Lock(fast_acquire=True)
        """Held while appending or replacing."""
        self.size: int | None = None
        """How much of the file is whole records (and the header): 0 if there is no file yet, None
        while that is not known. Whatever is behind it gets overwritten."""
        self.snapshot = 0
        """How many bytes of it are a snapshot."""
        self.torn: str | None = None
        """What is behind the last whole record, and was left there since this is read-only."""
        self.dirty_since: float | None = None
        """Since when something is written that no sync was begun for, in monotonic seconds."""
        self.syncing_since: float | None = None
        """The same of what is being synced."""
        self.compacting = False
        """Whether somebody does that: what another would copy is not where it was, afterwards."""
        self.failure: str | None = None
        """Why a sync failed, or what somebody did to the file: what the disk now has of it is
        anyone's guess."""
        self._salt = 0
        self._untidy = False
        """Whether a write failed, and what it left behind `size` could not be taken back."""
        self._is_new = False
        """Whether the file's name is perhaps not durable yet."""
        self._fd: int | None = None
        self._identity = (0, 0)
        """Which file it is that was read, or begun."""

    @property
    def unsynced_since(self) -> float | None:
        """Since when there is something that a power cut would take, in monotonic seconds."""
        return self.dirty_since if self.syncing_since is None else self.syncing_since

    @property
    def is_open(self) -> bool:
        return self._fd is not None

    @property
    def device(self) -> int:
        """What the file is on."""
        return self._identity[0]

    # -- reading

    def read(self, at: int | None = None) -> Generator[StoredUpdate, None, None]:
        """What `Store.load` gives; `at` in milliseconds. Cuts off a torn tail."""
        if at is not None:
            yield from self._read_past(at)
            return
        size = self.size
        reading = Reading(self.room, self.path, until=size)
        try:
            for record in self._records(reading):
                yield _stored(record)
        except RoomNotFound:
            self.size = 0
            raise
        if size is not None:
            self._check_end(reading, size)
        reading.check()
        if size is not None:
            return
        if not reading.end:
            self._check_begun()
        if reading.tail:
            self._cut(reading.end, reading.tail)
        self.size, self._salt, self._identity = reading.end, reading.salt, reading.identity
        self.snapshot = reading.snapshot
        if self._syncs and not self._read_only:
            # A process that was killed may have written it, and not have got to syncing it.
            with self._noting_failure():
                sync_path(self.path)
                sync_path(self.path.parent)

    def _records(
        self, reading: Reading, keep: Callable[[bytes], bool] = lambda update: True
    ) -> Iterator[Record]:
        """What can be read of the log. If that is not the snapshot which it begins with, then
        before it what that has summed up, as far as the past has it."""
        with closing(reading.records()) as records:
            first = next(records, None)
            if first is None:
                is_well = reading.end > 0 and not reading.broken
            else:
                is_well = keep(first.update) and (first.is_snapshot or not reading.broken)
            if not is_well:
                yield from filter(lambda record: keep(record.update), self._summed_up(reading))
            if first is not None and keep(first.update):
                yield first
            yield from filter(lambda record: keep(record.update), records)

    def _summed_up(self, log: Reading) -> Iterator[Record]:
        """What the snapshot sums up that a log begins with: the past, from the last snapshot on
        that can be read."""
        with translated(f"can't read {self.path}"):
            past = [path for path in self._past() if identity(os.stat(path)) != log.identity]
        files: list[Path] = []
        for path in reversed(past):
            files.insert(0, path)
            with closing(Reading(self.room, path, synced=True).readable()) as records:
                if (first := next(records, None)) is not None and first.is_snapshot:
                    break
        readings = [Reading(self.room, path, synced=True) for path in files]
        for reading in readings:
            yield from reading.readable()
        if readings:
            log.helped_by(readings)

    def _check_end(self, reading: Reading, size: int) -> None:
        if reading.end != size:
            raise RoomCorrupt(f"{self.path}: the system lost what was written to it")

    def _check_begun(self) -> None:
        """A log that has a past was never without a record."""
        past = self._past()
        # Unless this file is the last of the past, by a compaction that a crash cut short.
        with translated(f"can't read {self.path}"):
            if not past or identity(os.stat(past[-1])) == identity(os.stat(self.path)):
                return
        raise RoomCorrupt(
            f"{self.path}: nothing is in it, but it has a past in {past[0].parent}. `ycore repair` "
            "takes what is there"
        )

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        """After a sync that failed the next one may succeed, with nothing on the disk."""
        try:
            yield
        except OSError as exc:
            self.failure = f"can't sync {self.path}: {exc.strerror or exc}"
            raise StoreUnavailable(self.failure) from exc

    def _read_past(self, at: int) -> Iterator[StoredUpdate]:
        known = first = False
        until = Until(at)
        log = Reading(self.room, self.path)
        past = [Reading(self.room, path, synced=True) for path in self._past()]
        for reading in (*past, log):
            for record in log.records() if reading is log else reading.readable():
                if not first and record.is_snapshot and record.time > at:
                    since = when(record.time / 1000)
                    raise HistoryNotKept(f"of {self.room!r} nothing is kept from before {since}")
                first = True
                if until.has(record.time, is_snapshot=record.is_snapshot):
                    known = True
                    yield _stored(record)
        for reading in past:
            log.note_of(reading)
        log.check()
        if not known:
            raise RoomNotFound(f"the room {self.room!r} had nothing yet at {when(at / 1000)}")

    def check_past(self) -> list[str]:
        """What is wrong with what is kept of the past: damage, or that some of it is missing.

        Files are numbered; and what a snapshot has is all in what came before it, or came in while
        it was made.
        """
        problems: list[str] = []
        try:
            past = self._past()
        except StoreUnavailable as exc:
            return [str(exc)]
        if [path.name for path in past] != [f"{i:08}" for i in range(1, len(past) + 1)]:
            problems.append(f"of {self.path.with_suffix(PAST)} files are missing")
        known = StructStore()
        snapshots: list[tuple[Path, bytes]] = []
        for path in (*past, self.path) if past else ():
            reading = Reading(self.room, path, synced=path != self.path)
            try:
                for record in reading.readable():
                    if record.is_snapshot and path != past[0]:
                        snapshots.append((path, record.update))
                    else:
                        known.add(record.update)
            except RemoteProtocolError as exc:
                problems.append(f"{path}: an update is malformed: {exc}")
            if path != self.path:
                problems += [f"{path}: {what}" for what in reading.broken]
        for path, snapshot in snapshots:
            with suppress(RemoteProtocolError):
                if not known.knows(parse_update(snapshot)):
                    problems.append(f"{path} has edits that are nowhere in the history before it")
        return problems

    def _past(self) -> list[Path]:
        directory = self.path.with_suffix(PAST)
        with translated(f"can't list {directory}"):
            return numbered(directory)

    def _cut(self, offset: int, tail: bytes) -> None:
        if self._read_only:
            self.torn = (
                f"{len(tail):,} bytes at its end, from {offset} on, are of a write cut short"
            )
            return
        with translated(f"can't cut the torn tail of {self.path}"):
            flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK
            fd = os.open(self.path.with_suffix(_TORN), flags, 0o640)
            try:
                _write(fd, tail, os.fstat(fd).st_size)
                os.fsync(fd)
            finally:
                os.close(fd)
            fd = os.open(self.path, os.O_RDWR)
            try:
                os.ftruncate(fd, offset)
                os.fsync(fd)
            finally:
                os.close(fd)
        logger.warning(
            "torn tail cut room=%r file=%s at=%d bytes=%d", self.room, self.path, offset, len(tail)
        )

    def find_end(self) -> None:
        """Read the log for nothing but to know where to append."""
        if self.size is None:
            with suppress(RoomNotFound):
                for _ in self.read():
                    pass

    # -- writing

    def append(self, updates: Sequence[StoredUpdate], *, sync: bool) -> None:
        """Write the updates in one go. If it fails, the file is as it was."""
        self._check_writable()
        self.find_end()
        if self.failure is not None:
            raise StoreUnavailable(self.failure)
        assert self.size is not None
        head = b""
        if self.size == 0:
            self._salt = secrets.randbits(32)
            head = encode_header(self.room, self._salt)
        data = b"".join([head, *[self._encode(update) for update in updates]])
        try:
            if self._fd is None:
                self._open()
            assert self._fd is not None
            try:
                if self._untidy:
                    os.ftruncate(self._fd, self.size)
                    self._untidy = False
                if os.lseek(self._fd, 0, os.SEEK_END) != self.size:
                    self._fail(f"{self.path} was changed by somebody else")
                end = _write(self._fd, data, self.size)
                if sync:
                    self._sync()
            except OSError:
                self._take_back()
                raise
        except OSError as exc:
            raise failed(f"can't write {self.path}", exc) from exc
        self.size = end
        if not sync and self.dirty_since is None:
            self.dirty_since = time.monotonic()

    def _open(self) -> None:
        if self.size == 0:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o640)
            self._identity = identity(os.fstat(self._fd))
            self._is_new = True
            return
        with suppress(FileNotFoundError):
            fd = os.open(self.path, os.O_RDWR)
            if identity(os.fstat(fd)) == self._identity:
                self._fd = fd
                return
            _close(fd)
        raise RoomCorrupt(f"{self.path} was removed or replaced since it was read")

    def _fail(self, why: str) -> NoReturn:
        self.failure = why
        raise StoreUnavailable(why)

    def _check_writable(self) -> None:
        if self._read_only:
            raise StoreUnavailable(f"{self.path} was opened to be read only")

    def _encode(self, update: StoredUpdate, *, snapshot: bool = False) -> bytes:
        return encode_record(
            update.update,
            time=max(round(update.time * 1000), 0),
            salt=self._salt,
            metadata=update.metadata,
            snapshot=snapshot,
        )

    def _take_back(self) -> None:
        """Remove what a failed write has left; if that fails too, the next one does it."""
        self._untidy = True
        assert self._fd is not None
        with suppress(OSError):
            if self.size:
                os.ftruncate(self._fd, self.size)
            else:
                os.unlink(self.path)
                fd, self._fd = self._fd, None
                _close(fd)
            self._untidy = False

    def sync(self) -> None:
        """Make durable what was written. After a failure nothing may be appended meanwhile."""
        if self.failure is not None:
            self.heal()
        elif self._fd is not None:
            if self.dirty_since is not None:
                self.begin_sync()
                self.end_sync()
            else:
                self.check()

    def begin_sync(self) -> None:
        """From here on what is appended is for the next sync."""
        self.syncing_since, self.dirty_since = self.dirty_since, None

    def end_sync(self, *, is_done: bool = False) -> None:
        """Sync what there was at `begin_sync`, if that is not done by other means."""
        try:
            with self._noting_failure():
                self._sync(is_done=is_done)
        except StoreUnavailable:
            self.dirty_since = self.syncing_since
            raise
        finally:
            self.syncing_since = None

    def check(self) -> None:
        """See that the file is still there under its name.

        Raises:
            StoreUnavailable: it is not. Syncing makes good for it, where it can.
        """
        size = self.size or 0  # before one looks: it may grow meanwhile
        try:
            there = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            self._fail(f"{self.path} was removed by somebody else")
        if identity(there) != self._identity:
            self._fail(f"{self.path} was replaced by somebody else")
        if there.st_size < size:
            self._fail(f"{self.path} was cut short by somebody else")

    def _sync(self, *, is_done: bool = False) -> None:
        assert self._fd is not None
        if not is_done:
            os.fsync(self._fd)
            if self._is_new:
                sync_path(self.path.parent)
        self._is_new = False
        self.check()

    def close(self) -> None:
        if self._fd is not None:
            if self._untidy:
                self._take_back()
            fd, self._fd = self._fd, None
            if fd is not None:
                _close(fd)
        self.size = None

    # -- putting something in its place

    def beside(self) -> Beside:
        # A name of its own, since somebody else may be at it, or not know yet that he is too late.
        return Beside(self.path.with_suffix(f".{secrets.token_hex(_TOKEN_BYTES)}{NEW}"))

    def write_snapshot(self, beside: Beside, update: StoredUpdate) -> None:
        """Write beside the log what is to take the place of its beginning, and read it back."""
        self._check_writable()
        if self.size is None:
            raise StoreUnavailable(f"{self.path} was closed while it was being compacted")
        with translated(f"can't write {beside.path}"):
            beside.open()
            beside.write(encode_header(self.room, self._salt))
            beside.write(self._encode(update, snapshot=True))
            beside.snapshot = beside.size
            beside.sync()
        written = Reading(self.room, beside.path)
        if [record.update for record in written.records()] != [update.update]:
            raise StoreUnavailable(f"{beside.path} does not hold what was written to it")

    def copy_to(self, beside: Beside, start: int) -> int:
        """Copy what the log has from `start` on, and return where that ended."""
        if self.size is None:
            raise StoreUnavailable(f"{self.path} was closed while it was being compacted")
        stop = self.size
        with translated(f"can't write {beside.path}"):
            fd = open_to_read(self.path) if self._fd is None else os.dup(self._fd)
            try:
                if identity(os.fstat(fd)) != self._identity:
                    raise StoreUnavailable(f"{self.path} was replaced by somebody else")
                beside.copy(fd, start, stop)
            finally:
                os.close(fd)
        return stop

    def replace_by(self, beside: Beside, start: int) -> None:
        """Put the file beside in the place of the log, after what the log has from `start` on."""
        self.copy_to(beside, start)
        with translated(f"can't replace {self.path}"):
            beside.sync()
            if beside.snapshot is not None:
                self.check()
                self._keep_past()
            its_identity = identity(os.fstat(beside.fd))
            os.replace(beside.path, self.path)
        self._identity = its_identity
        fd, self._fd = self._fd, beside.taken()
        self.size = beside.size
        if fd is not None:
            _close(fd)
        self.snapshot = self.snapshot if beside.snapshot is None else beside.snapshot
        self._untidy = False
        self.failure = None
        # The name is not durable yet. If it never gets so, the old file is there again after a
        # power cut, without what is appended from now on: so until it is, nothing may be.
        self._is_new = True
        self.dirty_since = time.monotonic()
        self.sync()

    def _keep_past(self) -> None:
        """Have the log stay under another name when its own is taken: if that is wanted, or was
        once, since a history with a gap would tell lies."""
        past = self._past()
        if not (past or self._keep_history):
            return
        directory = self.path.with_suffix(PAST)
        if not past:
            with suppress(FileExistsError):
                os.mkdir(directory, 0o750)
            sync_path(directory.parent)
        # An earlier try may have got as far as this, and no further.
        if not past or identity(os.stat(past[-1])) != identity(os.stat(self.path)):
            number = int(past[-1].name) + 1 if past else 1
            os.link(self.path, directory / f"{number:08}")
        sync_path(self.path)  # nobody will do that any more
        sync_path(directory)

    def heal(self) -> None:
        """Write the whole log anew: after a sync failed, or somebody did something to the file."""
        assert self.size is not None
        reading = Reading(self.room, self.path, fd=self._fd, until=self.size)
        for _ in reading.records():
            pass
        self._check_end(reading, self.size)
        reading.check()
        beside = self.beside()
        try:
            with translated(f"can't write {beside.path}"):
                os.makedirs(self.path.parent, exist_ok=True)
                beside.open()
            self._put_aside()
            self.replace_by(beside, 0)
        finally:
            beside.discard()
        logger.warning("healed room=%r file=%s bytes=%d", self.room, self.path, self.size)

    def _put_aside(self) -> None:
        """Keep what somebody else has put in the log's place, or written to it."""
        with translated(f"can't put aside {self.path}"), suppress(FileNotFoundError):
            there = os.stat(self.path)
            grown = there.st_size > (self.size or 0) and not self._untidy
            if identity(there) != self._identity or grown:
                os.link(self.path, self._aside())

    def repair(self, keep: Callable[[bytes], bool]) -> Path:
        """See `Store.repair`."""
        self._check_writable()
        if not self.path.exists():
            raise RoomNotFound(f"there is no {self.path}")
        aside = self._aside()
        reading = Reading(self.room, self.path)
        good = self._records(reading, keep)
        beside = self.beside()
        try:
            self._salt = secrets.randbits(32)
            with translated(f"can't write {beside.path}"):
                beside.open()
                beside.write(encode_header(self.room, self._salt))
                for data in self._again(good):
                    beside.write(data)
                beside.sync()
                os.link(self.path, aside)
                sync_path(aside.parent)
                os.replace(beside.path, self.path)
                sync_path(self.path.parent)
            _close(beside.taken())
        finally:
            beside.discard()
        return aside

    def _again(self, records: Iterable[Record]) -> Iterator[bytes]:
        for record in records:
            yield self._encode(_stored(record), snapshot=record.is_snapshot)

    def _aside(self) -> Path:
        """A free name for a damaged log."""
        directory = self.path.with_suffix(DAMAGED)
        with translated(f"can't make {directory}"):
            os.makedirs(directory, 0o750, exist_ok=True)
            there = numbered(directory)
            return directory / str(int(there[-1].name) + 1 if there else 1)

    def delete(self) -> None:
        self._check_writable()
        with translated(f"can't delete {self.path}"):
            if not self.path.exists():
                raise RoomNotFound(f"there is no {self.path}")
            for suffix in (PAST, DAMAGED):
                if (directory := self.path.with_suffix(suffix)).exists():
                    shutil.rmtree(directory)
            for suffix in (_TORN, SUFFIX):  # the log last: until it goes, the room is there
                with suppress(FileNotFoundError):
                    os.unlink(self.path.with_suffix(suffix))
            sync_path(self.path.parent)


def _stored(record: Record) -> StoredUpdate:
    return StoredUpdate(record.update, record.time / 1000, record.metadata)
