"""The default store: a directory with one append-only log file a room.

What is promised, by `fsync` policy, once `append` has returned (compare Redis's `appendfsync`):

    always    it survives the machine losing power
    everysec  it survives the process being killed; of power loss, all but the last second or so
    never     it survives the process being killed; of power loss, what the system had written

A batch of updates is one write. What a dead writer left behind the last whole record is cut off
when the room is next loaded, after a copy was put beside the log, and a warning logged. A log that
is damaged otherwise is left as it is, and its room refused (`RoomCorrupt`). One process owns the
directory, by a lock that ends with the process.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias

import anyio
from anyio import to_thread
from filelock import FileLock, Timeout

from . import RoomCorrupt, RoomNotFound, Store, StoreUnavailable
from ._log import (
    HEADER_SIZE,
    MAX_NAME,
    Damaged,
    TornTail,
    decode_header,
    decode_records,
    encode_header,
    encode_record,
)
from ._names import file_name, room_name

logger = logging.getLogger(__name__)

Fsync: TypeAlias = Literal["always", "everysec", "never"]

_SUFFIX: Final = ".ylog"
_SYNC_EVERY: Final = 1.0
"""Seconds between syncs under `everysec`."""
_INLINE_BYTES: Final = 256 * 1024
"""A write of up to so much goes to the page cache at once; a larger one is worth a thread."""
_READ_BYTES: Final = 1024 * 1024
"""How much is read from a log in one go, in a thread."""


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise StoreUnavailable(f"{doing}: {exc.strerror or exc}") from exc


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
            with _translated("can't read a log"):
                self._window = os.pread(self._fd, max(stop - start, _READ_BYTES), start)
            self._at = start
        return self._window[start - self._at : stop - self._at]


class _Log:
    """The log file of one room. Blocking."""

    def __init__(self, room: str, path: Path) -> None:
        self.room = room
        self.path = path
        self.in_use = anyio.Lock()
        """Held while syncing and while closing, which must not meet."""
        self.dirty = False
        """Whether something was written that was not synced."""
        self._salt = 0
        self._size: int | None = None
        """How much of the file is whole records (and the header): 0 if there is no file yet, None
        while that is not known. Whatever is behind it gets overwritten."""
        self._untidy = False
        """Whether a write failed, and what it left behind `_size` could not be taken back."""
        self._is_new = False
        """Whether the file's name is perhaps not durable yet."""
        self.failed = False
        """Whether a sync failed: what the disk now has of the file is anyone's guess."""
        self._fd: int | None = None

    @property
    def is_read(self) -> bool:
        """Whether `append` can go on where the file ends, or has to read it first."""
        return self._size is not None

    def read(self) -> Generator[bytes, None, None]:
        """The updates in the file. At its end, cuts off a torn tail."""
        self.close()
        with _translated(f"can't read {self.path}"):
            try:
                self._fd = os.open(self.path, os.O_RDWR)
            except FileNotFoundError:
                self._size = 0
                raise RoomNotFound(f"there is no {self.path}") from None
            data = _Bytes(self._fd, os.fstat(self._fd).st_size)
        try:
            name, self._salt, size = decode_header(data)
            if name != self.room:
                raise Damaged(0, f"log of the room {name!r}")
            for record in decode_records(data, size, self._salt):
                yield record.payload
                size = record.end
        except Damaged as exc:
            raise RoomCorrupt(f"{self.path}: {exc}") from exc
        except TornTail as exc:
            size = exc.offset
            self._cut(size, data[size:])
        self._size = size

    def _cut(self, offset: int, tail: bytes) -> None:
        assert self._fd is not None
        with _translated(f"can't cut the torn tail of {self.path}"):
            if tail:
                with open(self.path.with_suffix(".torn"), "ab") as beside:
                    beside.write(tail)
            os.ftruncate(self._fd, offset)
            os.fsync(self._fd)
        logger.warning(
            "torn tail cut room=%r file=%s at=%d bytes=%d", self.room, self.path, offset, len(tail)
        )

    def append(self, updates: Sequence[bytes], *, sync: bool) -> None:
        """Write the updates in one go. If it fails, the file is as it was."""
        if self._size is None:
            with suppress(RoomNotFound):
                for _ in self.read():
                    pass
        assert self._size is not None
        if self.failed:
            raise StoreUnavailable(f"can't write {self.path}: syncing it failed before")
        with _translated(f"can't write {self.path}"):
            head = b""
            if self._size == 0:
                self._salt = secrets.randbits(32)
                head = encode_header(self.room, self._salt)
            now = time.time_ns() // 1_000_000
            records = [encode_record(update, time=now, salt=self._salt) for update in updates]
            if self._fd is None:
                self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o640)
            at = self._size
            try:
                if self._untidy:
                    os.ftruncate(self._fd, self._size)
                    self._untidy = False
                view = memoryview(b"".join((head, *records)))
                while view:
                    written = os.pwrite(self._fd, view, at)
                    view = view[written:]
                    at += written
                if sync:
                    os.fsync(self._fd)
                    if head:
                        _sync_directory(self.path.parent)
            except OSError:
                self._take_back()
                raise
        self._size = at
        self._is_new = self._is_new or (bool(head) and not sync)
        self.dirty = self.dirty or not sync

    def _take_back(self) -> None:
        """Remove what a failed write has left; if that fails too, the next one does it."""
        self._untidy = True
        assert self._fd is not None
        with suppress(OSError):
            if self._size:
                os.ftruncate(self._fd, self._size)
            else:
                self.path.unlink()
                os.close(self._fd)
                self._fd = None
            self._untidy = False

    def sync(self) -> None:
        """Make durable what was written."""
        if self._fd is None or not self.dirty:
            return
        self.dirty = False
        with _translated(f"can't sync {self.path}"):
            try:
                os.fsync(self._fd)
                if self._is_new:
                    _sync_directory(self.path.parent)
                    self._is_new = False
            except OSError:
                self.failed = True
                raise

    def close(self) -> None:
        if self._fd is not None:
            if self._untidy:
                self._take_back()
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None
        self._size = None


def _sync_directory(path: Path) -> None:
    """Make the names in a directory as durable as the files' content."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _take(updates: Iterator[bytes], size: int) -> list[bytes]:
    """The next updates, of `size` bytes or a little more; none at the end."""
    taken = []
    for update in updates:
        taken.append(update)
        size -= len(update)
        if size <= 0:
            break
    return taken


class FileStore(Store):
    """Rooms in a directory, which is made if it is not there.

    Args:
        directory: where the logs are.
        fsync: see the top of this module.
    """

    def __init__(self, directory: str | os.PathLike[str], *, fsync: Fsync = "everysec") -> None:
        self.directory = Path(directory)
        self.fsync: Fsync = fsync
        self._logs: dict[str, _Log] = {}
        self._is_open = False
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            with _translated(f"can't use the data directory {self.directory}"):
                self.directory.mkdir(parents=True, exist_ok=True)
                lock = FileLock(self.directory / ".lock", blocking=False)
                try:
                    lock.acquire()
                except Timeout:
                    raise StoreUnavailable(
                        f"the data directory {self.directory} is in use by another process"
                    ) from None
            stack.callback(lock.release)
            stack.push_async_callback(self._close)
            if self.fsync == "everysec":
                tasks = await stack.enter_async_context(anyio.create_task_group())
                stack.callback(tasks.cancel_scope.cancel)
                tasks.start_soon(self._sync_every_second)
            self._stack = stack.pop_all()
        self._is_open = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(exc_type, exc, traceback)

    async def load(self, room: str) -> AsyncGenerator[bytes, None]:
        updates = self._log(room).read()
        try:
            while batch := await to_thread.run_sync(_take, updates, _READ_BYTES):
                for update in batch:
                    yield update
        finally:
            updates.close()

    async def append(self, room: str, updates: Sequence[bytes]) -> None:
        log = self._log(room)
        sync = self.fsync == "always"
        if sync or not log.is_read or sum(map(len, updates)) > _INLINE_BYTES:
            await to_thread.run_sync(partial(log.append, updates, sync=sync))
        else:
            log.append(updates, sync=False)

    async def replace(self, room: str, update: bytes) -> None:
        path = self._path(room)
        await self.release(room)
        beside = _Log(room, path.with_suffix(".new"))
        await to_thread.run_sync(self._replace, beside, path, update)

    @staticmethod
    def _replace(beside: _Log, path: Path, update: bytes) -> None:
        with _translated(f"can't replace {path}"):
            beside.path.unlink(missing_ok=True)
        try:
            beside.append([update], sync=True)
            with _translated(f"can't replace {path}"):
                beside.path.replace(path)
                _sync_directory(path.parent)
        finally:
            beside.close()

    async def delete(self, room: str) -> None:
        path = self._path(room)
        await self.release(room)
        with _translated(f"can't delete {path}"):
            try:
                path.unlink()
            except FileNotFoundError:
                raise RoomNotFound(f"there is no {path}") from None
            path.with_suffix(".torn").unlink(missing_ok=True)
            await to_thread.run_sync(_sync_directory, self.directory)

    async def rooms(self) -> AsyncIterator[str]:
        with _translated(f"can't list {self.directory}"):
            paths = sorted(self.directory.glob(f"*{_SUFFIX}"))
        for path in paths:
            room = room_name(path.name.removesuffix(_SUFFIX))
            if room is None:
                with _translated(f"can't read {path}"), path.open("rb") as file:
                    head = await to_thread.run_sync(file.read, HEADER_SIZE)
                try:
                    room = decode_header(head)[0]
                except (Damaged, TornTail):
                    continue
            if self._path(room) == path:
                yield room

    async def release(self, room: str) -> None:
        log = self._logs.pop(room, None)
        if log is not None:
            async with log.in_use:
                try:
                    if log.failed:
                        raise StoreUnavailable(f"syncing {log.path} failed before")
                    if self.fsync != "never":
                        await to_thread.run_sync(log.sync)
                finally:
                    log.close()

    def _path(self, room: str) -> Path:
        if not self._is_open:
            raise StoreUnavailable(f"the store in {self.directory} is closed")
        if len(room) > MAX_NAME:
            raise StoreUnavailable(f"the room name {room[:20]!r}... is too long for a file")
        return self.directory / (file_name(room) + _SUFFIX)

    def _log(self, room: str) -> _Log:
        log = self._logs.get(room)
        if log is None:
            log = self._logs[room] = _Log(room, self._path(room))
        return log

    async def _sync_every_second(self) -> None:
        while True:
            await anyio.sleep(_SYNC_EVERY)
            for room_log in [log for log in self._logs.values() if log.dirty]:
                async with room_log.in_use:
                    try:
                        await to_thread.run_sync(room_log.sync)
                    except StoreUnavailable as exc:
                        logger.error("sync failed room=%r error=%r", room_log.room, str(exc))

    async def _close(self) -> None:
        self._is_open = False
        with anyio.CancelScope(shield=True):
            for room in tuple(self._logs):
                try:
                    await self.release(room)
                except StoreUnavailable as exc:
                    logger.error("sync failed room=%r error=%r", room, str(exc))
