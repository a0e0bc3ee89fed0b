"""What stores on a disk have in common: one owner, and a sync every second if it is wanted."""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self, TypeAlias

import anyio

from .interface import Store, StoreUnavailable

if TYPE_CHECKING:
    from filelock import BaseFileLock

logger = logging.getLogger(__name__)

Fsync: TypeAlias = Literal["always", "everysec", "never"]
"""When what was appended is made durable: before `append` returns, within a second, or whenever the
system likes."""

_SYNC_EVERY: Final = 1.0
"""Seconds between syncs under `everysec`."""


class StoreInUse(StoreUnavailable):
    """Another process owns the store."""


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Tell what the system could not do as StoreUnavailable."""
    try:
        yield
    except OSError as exc:
        raise failed(doing, exc) from exc


def failed(doing: str, exc: OSError) -> StoreUnavailable:
    which = "" if exc.filename is None or str(exc.filename) in doing else f": {exc.filename}"
    return StoreUnavailable(f"{doing}: {exc.strerror or exc}{which}")


def identity(stat: os.stat_result) -> tuple[int, int]:
    """What a file has of its own, whatever its name."""
    return stat.st_dev, stat.st_ino


class OwnedStore(Store):
    """A store that one process owns, by a lock that ends with the process.

    The lock is a file, which somebody may remove under a running server, with all that is around it
    perhaps. So its place is looked at every second: the lock is taken anew there; if another
    process came first, that one owns the store, and nothing is stored any more (`check_owned`).

    Args:
        what: the store, in words for an operator.
        lock: the file to lock, in a directory that is made if it is not there.
        read_only: nothing will be written. If there is no lock file then, none is made, for there
            is nobody to be kept out.
    """

    def __init__(self, what: str, lock: Path, fsync: Fsync, *, read_only: bool = False) -> None:
        self.fsync: Fsync = fsync
        self.read_only = read_only
        self._what = what
        self._lock_file = lock
        self._file_lock: BaseFileLock | None = None
        self._lock_identity = (0, 0)
        self._not_owned: str | None = None
        """Why the store is not ours any more."""
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            with translated(f"can't use {self._what}"):
                if not (self.read_only and not self._lock_file.exists()):
                    self._take_lock()
                    stack.callback(self._release_lock)
                await self._open()
            stack.push_async_callback(self._close)
            if not self.read_only:
                tasks = await stack.enter_async_context(anyio.create_task_group())
                stack.callback(tasks.cancel_scope.cancel)
                tasks.start_soon(self._every_second)
            self._stack = stack.pop_all()
        return self

    def _take_lock(self) -> None:
        # Here, since who keeps nothing on a disk need not have it installed.
        from filelock import FileLock, Timeout  # noqa: PLC0415

        self._lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._lock_file, blocking=False)
        try:
            lock.acquire()
        except Timeout:
            raise StoreInUse(f"{self._what} is in use by another process") from None
        self._file_lock = lock
        self._lock_identity = identity(os.stat(self._lock_file))

    def _release_lock(self) -> None:
        if self._file_lock is not None:
            self._file_lock.release()
            self._file_lock = None

    def _holds_lock(self) -> bool:
        try:
            return identity(os.stat(self._lock_file)) == self._lock_identity
        except OSError:
            return False

    def check_owned(self) -> None:
        """
        Raises:
            StoreUnavailable: another process may own the store now.
        """
        if self._not_owned is not None:
            raise StoreUnavailable(self._not_owned)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(exc_type, exc, traceback)

    async def _every_second(self) -> None:
        while True:
            await anyio.sleep(_SYNC_EVERY)
            try:
                if not self._holds_lock():
                    await self._take_lock_again()
                await self._sync_all()
            except StoreInUse:
                return
            except Exception:  # a bug, or no thread to be had: everything else goes on
                logger.exception("syncing failed")

    async def _take_lock_again(self) -> None:
        """
        Raises:
            StoreInUse: another process owns it now. This one never will again, even if the other
                ends: what that did there is not known here.
        """
        told = self._not_owned
        self._not_owned = f"{self._what} can't be used: somebody removed {self._lock_file}"
        try:
            self._release_lock()
            self._take_lock()
        except StoreInUse:
            self._not_owned += ", and another process owns it now: stop one of the two"
            logger.error("store lost error=%r", self._not_owned)
            raise
        except OSError as exc:
            self._not_owned += f", and it can't be made again: {exc.strerror or exc}"
            if told != self._not_owned:
                logger.error("store lost error=%r", self._not_owned)
            return
        self._not_owned = None
        logger.error("the lock was removed, and taken anew file=%s", self._lock_file)
        await self._look_around()

    async def _look_around(self) -> None:
        """Somebody removed the lock, and what is around it perhaps: see to that."""
        return None

    @abstractmethod
    async def _open(self) -> None:
        """Begin, as the owner."""

    @abstractmethod
    async def _sync_all(self) -> None:
        """Under `everysec`, make durable what is not yet; what fails is logged, and tried again
        next time. Called every second in any case."""

    @abstractmethod
    async def _close(self) -> None:
        """Make durable what is not yet, and let go of everything. Raises nothing."""
