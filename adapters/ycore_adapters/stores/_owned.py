"""What stores on a disk have in common: one owner, and a sync every second if it is wanted."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias

import anyio

from .interface import Store, StoreUnavailable

logger = logging.getLogger(__name__)

Fsync: TypeAlias = Literal["always", "everysec", "never"]
"""When what was appended is made durable: before `append` returns, within a second, or whenever the
system likes."""

_SYNC_EVERY: Final = 1.0
"""Seconds between syncs under `everysec`."""


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Tell what the system could not do as StoreUnavailable."""
    try:
        yield
    except OSError as exc:
        raise failed(doing, exc) from exc


def failed(doing: str, exc: OSError) -> StoreUnavailable:
    return StoreUnavailable(f"{doing}: {exc.strerror or exc}")


class OwnedStore(Store):
    """A store that one process owns, by a lock that ends with the process.

    Args:
        what: the store, in words for an operator.
        lock: the file to lock, in a directory that is made if it is not there.
    """

    def __init__(self, what: str, lock: Path, fsync: Fsync) -> None:
        self.fsync: Fsync = fsync
        self._what = what
        self._lock_file = lock
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        # Here, since who keeps nothing on a disk need not have it installed.
        from filelock import FileLock, Timeout  # noqa: PLC0415

        async with AsyncExitStack() as stack:
            with translated(f"can't use {self._what}"):
                self._lock_file.parent.mkdir(parents=True, exist_ok=True)
                lock = FileLock(self._lock_file, blocking=False)
                try:
                    lock.acquire()
                except Timeout:
                    why = f"{self._what} is in use by another process"
                    raise StoreUnavailable(why) from None
                stack.callback(lock.release)
                await self._open()
            stack.push_async_callback(self._close)
            if self.fsync == "everysec":
                tasks = await stack.enter_async_context(anyio.create_task_group())
                stack.callback(tasks.cancel_scope.cancel)
                tasks.start_soon(self._sync_every_second)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(exc_type, exc, traceback)

    async def _sync_every_second(self) -> None:
        while True:
            await anyio.sleep(_SYNC_EVERY)
            try:
                await self._sync_all()
            except Exception:  # a bug, or no thread to be had: everything else goes on
                logger.exception("syncing failed")

    @abstractmethod
    async def _open(self) -> None:
        """Begin, as the owner."""

    @abstractmethod
    async def _sync_all(self) -> None:
        """Make durable what is not yet; what fails is logged, and tried again next time."""

    @abstractmethod
    async def _close(self) -> None:
        """Make durable what is not yet, and let go of everything. Raises nothing."""
