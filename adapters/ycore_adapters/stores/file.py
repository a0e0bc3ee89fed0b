"""The default store: a directory with one append-only log file a room.

What is promised, by `fsync` policy, once `append` has returned (compare Redis's `appendfsync`):

    always    it survives the machine losing power
    everysec  it survives the process being killed; of power loss, all but the last two seconds
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
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Final

import anyio
from anyio import to_thread

from ._log import MAX_NAME, Damaged, LogError, TornTail, decode_header
from ._logfile import NEW, SUFFIX, LogFile, is_unfinished, read_head
from ._names import file_name, room_name
from ._owned import Fsync, OwnedStore, translated
from ._syncfs import can_syncfs, syncfs
from .interface import RoomInUse, RoomNotFound, StoredUpdate, StoreError, StoreUnavailable

logger = logging.getLogger(__name__)

_SYNCS_AT_ONCE: Final = 8
"""How many files are synced at the same time: file systems make one effort of several."""
_SYNCS_A_THREAD: Final = 10
"""How many one thread does in turn, as long as the others have as many."""
_MANY: Final = 100
"""Of more files than that, the whole file system is synced in one call, where that can be done."""
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


def _sync_each(
    logs: list[LogFile], whole: int | None, *, is_done: bool
) -> list[tuple[LogFile, Exception]]:
    """Sync them one after the other, and return what failed.

    Args:
        whole: a file descriptor to sync all by at once, with what else is on that file system. If
            that fails, each sync tells whether it was this file.
        is_done: only see that they are still there.
    """
    errors: list[tuple[LogFile, Exception]] = []
    for log in logs:
        log.begin_sync()
    if whole is not None:
        with suppress(OSError):
            syncfs(whole)
            is_done = True
    for log in logs:
        try:
            log.end_sync(is_done=is_done)
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
        read_only: nothing is to be changed, not even torn tails cut; `problems` tells of those.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        fsync: Fsync = "everysec",
        keep_history: bool = False,
        compact_from: int = 256 * 1024,
        read_only: bool = False,
    ) -> None:
        self.directory = Path(directory)
        what = f"the data directory {self.directory}"
        super().__init__(what, self.directory / ".lock", fsync, read_only=read_only)
        self.keep_history = keep_history
        self.compact_from = compact_from
        self._logs: dict[str, LogFile] = {}
        self._is_open = False
        self._whole: int | None = None
        """A descriptor to sync the whole file system by, if it can be relied upon to do that."""

    async def _open(self) -> None:
        if self.read_only:
            with os.scandir(self.directory):
                pass  # it is a directory
        else:
            for path in self.directory.glob(f"*{NEW}"):
                if is_unfinished(path):
                    path.unlink(missing_ok=True)
            self._open_whole()
        self._is_open = True

    def _open_whole(self) -> None:
        if self._whole is not None:
            os.close(self._whole)
        self._whole = os.open(self.directory, os.O_RDONLY)
        if not can_syncfs(self._whole):
            os.close(self._whole)
            self._whole = None

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
            or not log.is_open  # making a file may take the system long
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

    def outgrown(self, room: str) -> bool:
        log = self._logs.get(room)
        if log is None or log.size is None:
            return False
        return log.size >= max(self.compact_from, 2 * log.snapshot)

    async def delete(self, room: str) -> None:
        log = self._log(room)
        if log.size or log.writing.locked():
            raise RoomInUse(room)
        await self.release(room)
        await to_thread.run_sync(log.delete)

    async def rooms(self) -> AsyncIterator[str]:
        for path in self._paths():
            room = await self._room_of(path)
            if isinstance(room, Exception):
                logger.warning("no room can be told from file=%s error=%r", path, str(room))
            elif self._path(room) == path:
                yield room

    async def nameless(self) -> list[str]:
        found = []
        for path in self._paths():
            room = await self._room_of(path)
            if isinstance(room, Damaged | StoreUnavailable):
                found.append(f"{path}: no room can be told from it: {room}")
        return found

    def _paths(self) -> list[Path]:
        with translated(f"can't list {self.directory}"):
            return sorted(self.directory.glob(f"*{SUFFIX}"))

    async def _room_of(self, path: Path) -> str | LogError | StoreUnavailable:
        """The name of a log's room, or why it can't be told."""
        room = room_name(path.name.removesuffix(SUFFIX))
        if room is not None:
            return room
        try:
            head = await to_thread.run_sync(read_head, path)
            return decode_header(head)[0]
        except (Damaged, TornTail, StoreUnavailable) as exc:
            return exc

    async def check_history(self, room: str) -> list[str]:
        return await to_thread.run_sync(self._log(room).check_past)

    async def release(self, room: str) -> None:
        log = self._logs.get(room)
        if log is not None:
            self.check_owned()
            async with log.in_use, log.writing:
                if self.fsync != "never" or log.failure is not None:
                    await to_thread.run_sync(log.sync)
                elif log.is_open:
                    log.check()
                log.close()
            if self._logs.get(room) is log:
                del self._logs[room]

    async def repair(self, room: str, keep: Callable[[bytes], bool]) -> str:
        log = self._log(room)
        await self.release(room)
        return str(await to_thread.run_sync(log.repair, keep))

    def problems(self) -> Mapping[str, str]:
        if self._not_owned is not None:
            return dict.fromkeys(self._logs or (str(self.directory),), self._not_owned)
        problems = {room: log.failure or log.torn for room, log in self._logs.items()}
        return {room: problem for room, problem in problems.items() if problem is not None}

    def unsynced(self) -> float:
        if self.fsync == "never":
            return 0.0
        since = [log.unsynced_since for log in tuple(self._logs.values())]
        return max((time.monotonic() - then for then in since if then is not None), default=0.0)

    def _path(self, room: str) -> Path:
        if not self._is_open:
            raise StoreUnavailable(f"the store in {self.directory} is closed")
        if len(room) > MAX_NAME:
            raise StoreUnavailable(f"the room name {room[:20]!r}... is too long for a file")
        return self.directory / (file_name(room) + SUFFIX)

    def _log(self, room: str) -> LogFile:
        self.check_owned()
        log = self._logs.get(room)
        if log is None:
            log = self._logs[room] = LogFile(
                room,
                self._path(room),
                syncs=self.fsync != "never",
                keep_history=self.keep_history,
                read_only=self.read_only,
            )
        return log

    async def _look_around(self) -> None:
        await to_thread.run_sync(self._open_whole)
        for log in tuple(self._logs.values()):
            if log.is_open and log.failure is None:
                with suppress(StoreUnavailable):
                    await to_thread.run_sync(log.check)
        await self._sync_all()

    async def _sync_all(self) -> None:
        if self._not_owned is not None:
            return
        limiter = anyio.CapacityLimiter(_SYNCS_AT_ONCE)
        dirty = []
        async with anyio.create_task_group() as tasks:
            for log in self._logs.values():
                if log.failure is not None:
                    tasks.start_soon(self._sync, log, limiter)
                elif log.dirty_since is not None:
                    dirty.append(log)
            if self._whole is not None and len(dirty) > _MANY and self.fsync != "never":
                device = os.fstat(self._whole).st_dev
                together = [log for log in dirty if log.device == device]
                dirty = [log for log in dirty if log.device != device]
                tasks.start_soon(self._sync_some, together, limiter, self._whole)
            shares = min(_SYNCS_AT_ONCE, -(-len(dirty) // _SYNCS_A_THREAD))
            for i in range(shares):
                tasks.start_soon(self._sync_some, dirty[i::shares], limiter)

    async def _sync_some(
        self, logs: list[LogFile], limiter: anyio.CapacityLimiter, whole: int | None = None
    ) -> None:
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
            sync = partial(_sync_each, idle, whole, is_done=self.fsync == "never")
            errors = await to_thread.run_sync(sync, limiter=limiter)
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
                if had_failed or self.fsync != "never":
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
            if self._whole is not None:
                os.close(self._whole)
                self._whole = None
