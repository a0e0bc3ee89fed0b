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
all the same. So then the whole log is written anew (`heal`), out of the system's cache.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import anyio

from ._log import (
    Damaged,
    Record,
    TornTail,
    decode_header,
    decode_records,
    encode_header,
    encode_record,
    next_record,
    salt_of,
)
from ._owned import failed, translated
from ._times import when
from .interface import HistoryNotKept, RoomCorrupt, RoomNotFound, StoredUpdate, StoreUnavailable

logger = logging.getLogger(__name__)

SUFFIX: Final = ".ylog"
NEW: Final = ".new"
_PAST: Final = ".past"
_TORN: Final = ".torn"
_DAMAGED: Final = ".damaged"
_CHUNK: Final = 1024 * 1024
"""How much is read, or copied, in one go."""


def _sync_path(path: Path) -> None:
    """Make a file's content durable, or the names in a directory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _open_to_read(path: Path) -> int:
    """
    Raises:
        OSError: it can't be read, or is a pipe, say: to open or read that might wait for ever.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file")
    return fd


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


class _Reading:
    """One pass over a log file, which goes on behind what is broken and remembers it."""

    def __init__(self, room: str, path: Path, *, until: int | None = None) -> None:
        self._room = room
        self._path = path
        self._until = until
        """Where to stop, if not at the end of the file."""
        self.salt = 0
        self.end = 0
        """Where the last whole record ended."""
        self.snapshot = 0
        """How long the snapshot is that the log begins with; 0 if it does not."""
        self.tail = b""
        """What is behind, and was never completely written."""
        self.broken: list[str] = []
        """What can't be read in the middle of it."""

    def records(self) -> Generator[Record, None, None]:
        """Raises RoomNotFound, StoreUnavailable; of what is broken it only takes note."""
        with translated(f"can't read {self._path}"):
            try:
                fd = _open_to_read(self._path)
            except FileNotFoundError:
                raise RoomNotFound(f"there is no {self._path}") from None
            try:
                size = os.fstat(fd).st_size if self._until is None else self._until
                yield from self._records(_Bytes(fd, size))
            finally:
                os.close(fd)

    def _records(self, data: _Bytes) -> Iterator[Record]:
        pos: int | None
        try:
            name, self.salt, pos = decode_header(data)
            if name != self._room:
                self.broken.append(f"it is the log of the room {name!r}")
                return
        except Damaged as exc:
            self.broken.append(str(exc))
            self.salt = salt_of(data)
            pos = next_record(data, 0, self.salt)
        except TornTail:
            self.tail = data[:]
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
                self.tail = data[exc.offset :]
                return
            except Damaged as exc:
                pos = next_record(data, exc.offset, self.salt)
                until = len(data) if pos is None else pos
                self.broken.append(f"{exc} to {until}")

    def check(self) -> None:
        if self.broken:
            what = "; ".join(self.broken)
            raise RoomCorrupt(f"{self._path}: {what}. `ycore repair` keeps what can be read")


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
        self, room: str, path: Path, *, syncs: bool = True, keep_history: bool = False
    ) -> None:
        self.room = room
        self.path = path
        self._syncs = syncs
        """Whether what is read has to be durable."""
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
        self.dirty = False
        """Whether something was written that was not synced."""
        self.compacting = False
        """Whether somebody does that: what another would copy is not where it was, afterwards."""
        self.failure: str | None = None
        """Why a sync failed: what the disk now has of the file is anyone's guess."""
        self._salt = 0
        self._untidy = False
        """Whether a write failed, and what it left behind `size` could not be taken back."""
        self._is_new = False
        """Whether the file's name is perhaps not durable yet."""
        self._fd: int | None = None

    # -- reading

    def read(self, at: int | None = None) -> Generator[StoredUpdate, None, None]:
        """What `Store.load` gives; `at` in milliseconds. Cuts off a torn tail."""
        if at is not None:
            yield from self._read_past(at)
            return
        size = self.size
        reading = _Reading(self.room, self.path, until=size)
        try:
            for record in reading.records():
                yield _stored(record)
        except RoomNotFound:
            self.size = 0
            raise
        reading.check()
        if size is not None:
            self._check_end(reading, size)
            return
        if reading.tail:
            self._cut(reading.end, reading.tail)
        self.size, self._salt = reading.end, reading.salt
        self.snapshot = reading.snapshot
        if self._syncs:
            # A process that was killed may have written it, and not have got to syncing it.
            with self._noting_failure():
                _sync_path(self.path)
                _sync_path(self.path.parent)

    def _check_end(self, reading: _Reading, size: int) -> None:
        if reading.end != size:
            raise RoomCorrupt(f"{self.path}: the system lost what was written to it")

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
        for path in (*self._past(), self.path):
            reading = _Reading(self.room, path)
            for record in reading.records():
                if not first and record.is_snapshot and record.time > at:
                    since = when(record.time / 1000)
                    raise HistoryNotKept(f"of {self.room!r} nothing is kept from before {since}")
                first = True
                if record.time <= at:
                    known = True
                    yield _stored(record)
            reading.check()
        if not known:
            raise RoomNotFound(f"the room {self.room!r} had nothing yet at {when(at / 1000)}")

    def _past(self) -> list[Path]:
        directory = self.path.with_suffix(_PAST)
        with translated(f"can't list {directory}"):
            try:
                return [directory / name for name in sorted(os.listdir(directory))]
            except FileNotFoundError:
                return []

    def _cut(self, offset: int, tail: bytes) -> None:
        with translated(f"can't cut the torn tail of {self.path}"):
            fd = os.open(self.path.with_suffix(_TORN), os.O_WRONLY | os.O_CREAT, 0o640)
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
                self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o640)
                self._is_new = self._is_new or bool(head)
            try:
                if self._untidy:
                    os.ftruncate(self._fd, self.size)
                    self._untidy = False
                end = _write(self._fd, data, self.size)
                if sync:
                    self._sync()
            except OSError:
                self._take_back()
                raise
        except OSError as exc:
            raise failed(f"can't write {self.path}", exc) from exc
        self.size = end
        self.dirty = self.dirty or not sync

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
        elif self._fd is not None and self.dirty:
            self.dirty = False  # what is appended meanwhile sets it again
            with self._noting_failure():
                self._sync()

    def _sync(self) -> None:
        assert self._fd is not None
        os.fsync(self._fd)
        if self._is_new:
            _sync_path(self.path.parent)
            self._is_new = False

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
        return Beside(self.path.with_suffix(f".{secrets.token_hex(4)}{NEW}"))

    def write_snapshot(self, beside: Beside, update: StoredUpdate) -> None:
        """Write beside the log what is to take the place of its beginning, and read it back."""
        if self.size is None:
            raise StoreUnavailable(f"{self.path} was closed while it was being compacted")
        with translated(f"can't write {beside.path}"):
            beside.open()
            beside.write(encode_header(self.room, self._salt))
            beside.write(self._encode(update, snapshot=True))
            beside.snapshot = beside.size
            beside.sync()
        written = _Reading(self.room, beside.path)
        if [record.update for record in written.records()] != [update.update]:
            raise StoreUnavailable(f"{beside.path} does not hold what was written to it")

    def copy_to(self, beside: Beside, start: int) -> int:
        """Copy what the log has from `start` on, and return where that ended."""
        if self.size is None:
            raise StoreUnavailable(f"{self.path} was closed while it was being compacted")
        stop = self.size
        with translated(f"can't write {beside.path}"):
            fd = os.open(self.path, os.O_RDONLY)
            try:
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
                self._keep_past()
            os.replace(beside.path, self.path)
        fd, self._fd = self._fd, beside.taken()
        self.size = beside.size
        if fd is not None:
            _close(fd)
        self.snapshot = self.snapshot if beside.snapshot is None else beside.snapshot
        self._untidy = False
        self.failure = None
        # The name is not durable yet. If it never gets so, the old file is there again after a
        # power cut, without what is appended from now on: so until it is, nothing may be.
        self._is_new = self.dirty = True
        self.sync()

    def _keep_past(self) -> None:
        """Have the log stay under another name when its own is taken: if that is wanted, or was
        once, since a history with a gap would tell lies."""
        past = self._past()
        if not (past or self._keep_history):
            return
        directory = self.path.with_suffix(_PAST)
        if not past:
            with suppress(FileExistsError):
                os.mkdir(directory, 0o750)
            _sync_path(directory.parent)
        # An earlier try may have got as far as this, and no further.
        if not past or os.stat(past[-1]).st_ino != os.stat(self.path).st_ino:
            number = int(past[-1].name) + 1 if past else 1
            os.link(self.path, directory / f"{number:08}")
        _sync_path(self.path)  # nobody will do that any more
        _sync_path(directory)

    def heal(self) -> None:
        """Write the whole log anew, after a sync failed."""
        assert self.size is not None
        reading = _Reading(self.room, self.path, until=self.size)
        for _ in reading.records():
            pass
        reading.check()
        self._check_end(reading, self.size)
        beside = self.beside()
        try:
            with translated(f"can't write {beside.path}"):
                beside.open()
            self.replace_by(beside, 0)
        finally:
            beside.discard()
        logger.warning("healed room=%r file=%s bytes=%d", self.room, self.path, self.size)

    def repair(self, keep: Callable[[bytes], bool]) -> Path:
        """See `Store.repair`."""
        if not self.path.exists():
            raise RoomNotFound(f"there is no {self.path}")
        aside = self._aside()
        reading = _Reading(self.room, self.path)
        good = (record for record in reading.records() if keep(record.update))
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
                _sync_path(aside.parent)
                os.replace(beside.path, self.path)
                _sync_path(self.path.parent)
            _close(beside.taken())
        finally:
            beside.discard()
        return aside

    def _again(self, records: Iterable[Record]) -> Iterator[bytes]:
        for record in records:
            yield self._encode(_stored(record), snapshot=record.is_snapshot)

    def _aside(self) -> Path:
        """A free name for a damaged log."""
        directory = self.path.with_suffix(_DAMAGED)
        with translated(f"can't make {directory}"):
            os.makedirs(directory, 0o750, exist_ok=True)
            return directory / str(len(os.listdir(directory)) + 1)

    def delete(self) -> None:
        with translated(f"can't delete {self.path}"):
            if not self.path.exists():
                raise RoomNotFound(f"there is no {self.path}")
            for suffix in (_PAST, _DAMAGED):
                if (directory := self.path.with_suffix(suffix)).exists():
                    shutil.rmtree(directory)
            for suffix in (_TORN, SUFFIX):  # the log last: until it goes, the room is there
                with suppress(FileNotFoundError):
                    os.unlink(self.path.with_suffix(suffix))
            _sync_path(self.path.parent)


def _stored(record: Record) -> StoredUpdate:
    return StoredUpdate(record.update, record.time / 1000, record.metadata)
