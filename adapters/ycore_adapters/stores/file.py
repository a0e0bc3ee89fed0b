"""The default store: a directory with one append-only log file a room.

What is promised, by `fsync` policy, once `append` has returned (compare Redis's `appendfsync`):

    always    it survives the machine losing power
    everysec  it survives the process being killed; of power loss, all but the last second or so
    never     it survives the process being killed; of power loss, what the system had written

A batch of updates is one write. What a dead writer left behind the last whole record is cut off
when the room is next loaded, after a copy was put beside the log, and a warning logged. A log that
is damaged otherwise is left as it is: `load` gives what can be read and then raises `RoomCorrupt`,
and nothing is appended before `repair`. A sync that failed is made good for by writing the log
anew; until that succeeds, nothing is appended. One process owns the directory, by a lock that ends
with the process.

A log that has grown to twice its last snapshot is compacted when somebody calls `compact`, as the
driver does: beside, while appending goes on; see `_logfile`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final

import anyio
from anyio import to_thread

from ._log import HEADER_SIZE, MAX_NAME, Damaged, TornTail, decode_header
from ._logfile import NEW, SUFFIX, LogFile
from ._names import file_name, room_name
from ._owned import Fsync, OwnedStore, translated
from .interface import RoomInUse, RoomNotFound, StoredUpdate, StoreError, StoreUnavailable

logger = logging.getLogger(__name__)

_SYNCS_AT_ONCE: Final = 8
"""How many files are synced at the same time: file systems make one effort of several."""
_SYNCS_A_THREAD: Final = 10
"""How many one thread does in turn, as long as the others have as many."""
_INLINE_BYTES: Final = 256 * 1024
"""A write of up to so much goes to the page cache at once; a larger one is worth a thread."""
_READ_BYTES: Final = 1024 * 1024
"""How many bytes of updates are read in one go, in a thread."""
_REST_BYTES: Final = 64 * 1024
"""How much of a compacted log may be left to be copied while appending waits."""


def _take(
    updates: Iterator[StoredUpdate], size: int
) -> tuple[list[StoredUpdate], StoreError | None]:
    """The next updates, of `size` bytes or a little more; none at the end. And what came then."""
    taken = []
    try:
        for update in updates:
            taken.append(update)
            size -= len(update.update)
            if size <= 0:
                break
    except StoreError as exc:
        return taken, exc
    return taken, None


def _sync_each(logs: list[LogFile]) -> list[tuple[LogFile, Exception]]:
    """Sync them one after the other, and return what failed."""
    errors: list[tuple[LogFile, Exception]] = []
    for log in logs:
        try:
            log.sync()
        except Exception as exc:  # whatever it is, other rooms go on
            errors.append((log, exc))
    return errors


class FileStore(OwnedStore):
    """Rooms in a directory, which is made if it is not there.

    Args:
        directory: where the logs are.
        fsync: see the top of this module.
        keep_history: whether compaction keeps what it replaces, so that `load` can tell what a
            room was at any time. A room whose history was kept once goes on keeping it.
        compact_from: how many bytes a log has at least before it is worth compacting.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        fsync: Fsync = "everysec",
        keep_history: bool = False,
        compact_from: int = 256 * 1024,
    ) -> None:
        self.directory = Path(directory)
        what = f"the data directory {self.directory}"
        super().__init__(what, self.directory / ".lock", fsync)
        self.keep_history = keep_history
        self.compact_from = compact_from
        self._logs: dict[str, LogFile] = {}
        self._compact_again: dict[str, int] = {}
        """Room -> how long its log is to be before compacting is tried again, after it failed."""
        self._is_open = False

    async def _open(self) -> None:
        for unfinished in self.directory.glob(f"*{NEW}"):
            unfinished.unlink(missing_ok=True)
        self._is_open = True

    async def load(
        self, room: str, *, at: float | None = None
    ) -> AsyncGenerator[StoredUpdate, None]:
        log = self._log(room)
        await self._mend(log)
        updates = log.read(None if at is None else round(at * 1000))
        try:
            async with log.in_use:  # the file that is opened has to be the one that is meant
                batch, error = await to_thread.run_sync(_take, updates, _READ_BYTES)
            while batch or error:
                for update in batch:
                    yield update
                if error is not None:
                    raise error
                batch, error = await to_thread.run_sync(_take, updates, _READ_BYTES)
        finally:
            updates.close()

    async def append(self, room: str, updates: Sequence[StoredUpdate]) -> None:
        if self.append_now(room, updates):
            return
        log = self._log(room)
        await self._mend(log)
        async with log.writing:
            sync = self.fsync == "always"
            await to_thread.run_sync(partial(log.append, updates, sync=sync))

    def append_now(self, room: str, updates: Sequence[StoredUpdate]) -> bool:
        log = self._log(room)
        if (
            self.fsync == "always"
            or log.size is None
            or log.failure is not None
            or log.writing.locked()
            or sum(len(update.update) for update in updates) > _INLINE_BYTES
        ):
            return False
        log.append(updates, sync=False)
        return True

    async def _mend(self, log: LogFile) -> None:
        """Make good for a sync that failed, before anybody goes on."""
        if log.failure is not None:
            async with log.in_use, log.writing:
                await to_thread.run_sync(log.sync)

    async def compact(self, room: str, snapshot: Callable[[], Awaitable[StoredUpdate]]) -> None:
        log = self._log(room)
        if log.size is None:
            async with log.writing:
                await to_thread.run_sync(log.find_end)
        copied = log.size
        if not copied:
            raise RoomNotFound(f"there is no {log.path}")
        if log.compacting:
            raise StoreUnavailable(f"{log.path} is being compacted already")
        log.compacting = True
        self._compact_again[room] = copied + self.compact_from
        beside = log.beside()
        try:
            await to_thread.run_sync(log.write_snapshot, beside, await snapshot())
            while (log.size or 0) - copied > _REST_BYTES:
                copied = await to_thread.run_sync(log.copy_to, beside, copied)
            async with log.in_use, log.writing:
                await to_thread.run_sync(log.replace_by, beside, copied)
        finally:
            log.compacting = False
            beside.discard()
        self._compact_again.pop(room, None)

    def outgrown(self, room: str) -> bool:
        log = self._logs.get(room)
        if log is None or log.size is None or log.size < self.compact_from:
            return False
        return log.size >= max(2 * log.snapshot, self._compact_again.get(room, 0))

    async def delete(self, room: str) -> None:
        log = self._log(room)
        if log.size:
            raise RoomInUse(room)
        await self.release(room)
        await to_thread.run_sync(log.delete)

    async def rooms(self) -> AsyncIterator[str]:
        with translated(f"can't list {self.directory}"):
            paths = sorted(self.directory.glob(f"*{SUFFIX}"))
        for path in paths:
            room = room_name(path.name.removesuffix(SUFFIX))
            if room is None:
                with translated(f"can't read {path}"), path.open("rb") as file:
                    head = await to_thread.run_sync(file.read, HEADER_SIZE)
                try:
                    room = decode_header(head)[0]
                except (Damaged, TornTail) as exc:
                    logger.warning("no room can be told from file=%s error=%r", path, str(exc))
                    continue
            if self._path(room) == path:
                yield room

    async def release(self, room: str) -> None:
        log = self._logs.get(room)
        if log is not None:
            async with log.in_use, log.writing:
                if self.fsync != "never" or log.failure is not None:
                    await to_thread.run_sync(log.sync)
                log.close()
            if self._logs.get(room) is log:
                del self._logs[room]
            self._compact_again.pop(room, None)

    async def repair(self, room: str, keep: Callable[[bytes], bool]) -> str:
        log = self._log(room)
        await self.release(room)
        return str(await to_thread.run_sync(log.repair, keep))

    def problems(self) -> Mapping[str, str]:
        return {room: log.failure for room, log in self._logs.items() if log.failure is not None}

    def _path(self, room: str) -> Path:
        if not self._is_open:
            raise StoreUnavailable(f"the store in {self.directory} is closed")
        if len(room) > MAX_NAME:
            raise StoreUnavailable(f"the room name {room[:20]!r}... is too long for a file")
        return self.directory / (file_name(room) + SUFFIX)

    def _log(self, room: str) -> LogFile:
        log = self._logs.get(room)
        if log is None:
            log = self._logs[room] = LogFile(
                room,
                self._path(room),
                syncs=self.fsync != "never",
                keep_history=self.keep_history,
            )
        return log

    async def _sync_all(self) -> None:
        limiter = anyio.CapacityLimiter(_SYNCS_AT_ONCE)
        dirty = []
        async with anyio.create_task_group() as tasks:
            for log in self._logs.values():
                if log.failure is not None:
                    tasks.start_soon(self._sync, log, limiter)
                elif log.dirty:
                    dirty.append(log)
            shares = min(_SYNCS_AT_ONCE, -(-len(dirty) // _SYNCS_A_THREAD))
            for i in range(shares):
                tasks.start_soon(self._sync_some, dirty[i::shares], limiter)

    async def _sync_some(self, logs: list[LogFile], limiter: anyio.CapacityLimiter) -> None:
        """Sync several in one thread, which costs less than one for each; but those that are in use
        just now apart, so that no other has to wait for them."""
        idle, busy = [], []
        for log in logs:
            try:
                log.in_use.acquire_nowait()
                idle.append(log)
            except anyio.WouldBlock:
                busy.append(log)
        try:
            errors = await to_thread.run_sync(_sync_each, idle, limiter=limiter)
        finally:
            for log in idle:
                log.in_use.release()
        for log, exc in errors:
            logger.error("sync failed room=%r error=%r", log.room, str(exc))
        for log in busy:
            await self._sync(log, limiter)

    async def _sync(self, log: LogFile, limiter: anyio.CapacityLimiter) -> None:
        had_failed = False
        try:
            async with log.in_use, AsyncExitStack() as stack:
                if had_failed := log.failure is not None:  # what it does then is no mere sync
                    await stack.enter_async_context(log.writing)
                await to_thread.run_sync(log.sync, limiter=limiter)
        except Exception as exc:  # whatever it is, other rooms go on
            if not had_failed:
                logger.error("sync failed room=%r error=%r", log.room, str(exc))

    async def _close(self) -> None:
        with anyio.CancelScope(shield=True):
            if self.fsync != "never":
                await self._sync_all()
            self._is_open = False
            for room, log in tuple(self._logs.items()):
                try:
                    await self.release(room)
                except StoreError as exc:
                    logger.error("sync failed room=%r error=%r", room, str(exc))
                    log.close()
