"""A document of a room on the server: `Driver.document`.

It is a member like any other, only that its connection ends in this process: what it sends and is
sent are y-protocols messages, so its edits are checked, stored and broadcast like anyone's, and it
sees what others see.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import anyio
import anyio.abc

from ycore import CloseCode, Member
from ycore.doc import Doc
from ycore.messages import SyncStep1, SyncStep2, Update, decode

from .connection import Connection, without

if TYPE_CHECKING:
    from .driver import Driver

logger = logging.getLogger(__name__)

_LOOK_AGAIN: Final = 0.01
"""Seconds between looks whether a transaction has ended that is open for long."""


class DocumentClosed(Exception):
    """The room takes no more edits of this document, which may differ from it now: open it anew.

    Args:
        reason: why, in words for people.
        code: the WebSocket close code that another member would have got.
    """

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


class _Local(Connection):
    """Where a room's messages to the document end."""

    def __init__(self, driver: Driver, room: str) -> None:
        self.room = room
        self.doc = Doc()
        self.member: Member | None = None
        self.closed: DocumentClosed | None = None
        self.left = False
        self.synced = anyio.Event()
        self._driver = driver
        self._incoming: deque[bytes] = deque()
        self._something = anyio.Event()

    # -- what the driver asks

    def send(self, frames: tuple[bytes, ...], own: Sequence[int] = ()) -> None:
        frames = without(frames, own)
        self._incoming.extend(frames)
        self.waiting += sum(map(len, frames))
        self._something.set()

    def close(self, code: int, reason: str) -> None:
        self.closed = DocumentClosed(reason, code)
        self._something.set()

    def probe(self) -> None:
        pass  # it is alive

    def flush(self) -> None:
        pass  # `run` takes what comes when it can

    # -- the document's side

    def leave(self) -> None:
        """Nobody needs it any more."""
        self.left = True
        self._something.set()

    def tell(self, update: bytes, origin: object) -> None:
        """The document has changed: pass its own edits on.

        Raises:
            DocumentClosed: they were refused.
        """
        if origin is self or self.member is None:
            return
        room = self.member.room
        if self.closed is None and room.read_only is not None:
            self.close(CloseCode.FORBIDDEN, room.read_only)
        if self.closed is None:
            self._driver.take(self.member, Update(update).encode())
        if self.closed is not None:
            raise self.closed

    async def run(self, body: anyio.CancelScope) -> None:
        """Take in what others do; end the body when the room closes, or the driver ends."""
        try:
            await self._run()
        except Exception:  # a bug: it costs this document, not the driver
            logger.exception("document failed")
            self.close(CloseCode.INTERNAL_ERROR, "something went wrong on the server")
        finally:
            if self.closed is None and not self.left:
                self.close(CloseCode.GOING_AWAY, "the server is shutting down")
            self.synced.set()
            body.cancel()

    async def _run(self) -> None:
        while self.closed is None and not self.left:
            await self._something.wait()
            self._something = anyio.Event()
            while self._incoming:
                frame = self._incoming.popleft()
                for message in decode(frame):
                    if isinstance(message, SyncStep2 | Update):
                        await self._take_in(message.update)
                    if isinstance(message, SyncStep2):
                        self.synced.set()
                self.waiting -= len(frame)
            if self.member is not None:
                self._driver.drained(self.member)

    async def _take_in(self, update: bytes) -> None:
        while self.doc.is_in_transaction:  # which somebody holds open while they wait
            if self.closed is not None or self.left:
                return
            await anyio.sleep(_LOOK_AGAIN)
        try:
            await self._driver.in_slices(self.doc.apply_steps(update, self), self.room)
        except Exception:  # of an observer: the room has nothing to do with it
            self._driver.hook_errors["observer"] += 1
            logger.exception("hook failed name=observer")


@asynccontextmanager
async def open_document(
    driver: Driver, tasks: anyio.abc.TaskGroup, room: str
) -> AsyncGenerator[Doc]:
    connection = _Local(driver, room)
    body = anyio.CancelScope()
    member = driver.join(room, connection)
    connection.member = member
    try:
        tasks.start_soon(connection.run, body)
        with body:
            await driver.receive(member, SyncStep1(b"\0").encode(), throttled=False)
            await connection.synced.wait()
            if connection.closed is None:
                stop = connection.doc.observe_updates(connection.tell)
                try:
                    yield connection.doc
                finally:
                    stop()
                await driver.stored(room)
    finally:
        connection.leave()
        driver.leave(member)
    if connection.closed is not None:
        raise connection.closed
