"""The other side of an ASGI application: does what a server does, step by step as a test says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
from anyio.lowlevel import checkpoint
from ycore_adapters.asgi import App

DEADLINE = 10


def websocket_scope(path: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "websocket",
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"test")],
        "client": ("192.0.2.1", 5),
        "extensions": {},
        **more,
    }


class Conversation:
    """One call of an application: its scope, what it is told, and what it says."""

    def __init__(self, app: App, scope: dict[str, Any]) -> None:
        self.app = app
        self.scope = scope
        self.said: list[Any] = []
        """What it sent, and was taken."""
        self.over = anyio.Event()
        """Set when the application has returned."""
        self.send_raises: Exception | None = None
        self.reads = True
        """Whether the peer takes what is sent."""
        self._reads_again = anyio.Event()
        self._news = anyio.Event()
        self._tell, self._told = anyio.create_memory_object_stream[Any](10_000)

    async def run(self) -> None:
        with self._tell, self._told:
            try:
                await self.app(self.scope, self._receive, self._take)
            finally:
                self.over.set()
                self._news.set()

    async def _receive(self) -> Any:
        try:
            return self._told.receive_nowait()  # an ASGI server lets nobody else have a turn here
        except anyio.WouldBlock:
            return await self._told.receive()

    async def _take(self, event: Any) -> None:
        await checkpoint()
        while not self.reads:
            await self._reads_again.wait()
        if self.send_raises is not None:
            raise self.send_raises
        self.said.append(event)
        self._news.set()

    def read_on(self) -> None:
        self.reads = True
        self._reads_again.set()

    def tell(self, kind: str, **more: Any) -> None:
        self._tell.send_nowait({"type": kind, **more})

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds of what it said."""
        with anyio.fail_after(DEADLINE):
            while not holds():
                assert not self.over.is_set(), f"it ended, and said {self.said}"
                self._news = anyio.Event()
                await self._news.wait()

    async def ended(self) -> None:
        with anyio.fail_after(DEADLINE):
            await self.over.wait()

    # -- WebSocket

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            self.tell("websocket.receive", bytes=frame, text=None)

    def frames(self) -> list[bytes]:
        return [event["bytes"] for event in self.said if event["type"] == "websocket.send"]

    async def hears(self, frame: bytes) -> None:
        await self.until(lambda: frame in self.frames())

    async def closed(self) -> tuple[int, str]:
        """Wait for its close, and answer it."""
        await self.until(lambda: self.said[-1:] != [] and self.said[-1]["type"].endswith(".close"))
        self.tell("websocket.disconnect", code=1005)
        await self.ended()
        assert self.said[-1]["type"] == "websocket.close"
        return self.said[-1]["code"], self.said[-1]["reason"]

    @property
    def accepted(self) -> bool:
        return self.said[:1] != [] and self.said[0]["type"] == "websocket.accept"


@asynccontextmanager
async def calling(app: App, scope: dict[str, Any]) -> AsyncIterator[Conversation]:
    """Call an application, for the length of the block; what is left of the call is cancelled."""
    conversation = Conversation(app, scope)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(conversation.run)
        yield conversation
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def connecting(app: App, path: str = "/r", **more: Any) -> AsyncIterator[Conversation]:
    """A WebSocket that asks to be let in. At the end it is gone."""
    async with calling(app, websocket_scope(path, **more)) as conversation:
        conversation.tell("websocket.connect")
        yield conversation
        if not conversation.over.is_set():
            conversation.tell("websocket.disconnect", code=1006)
            await conversation.ended()


@asynccontextmanager
async def connected(app: App, path: str = "/r", **more: Any) -> AsyncIterator[Conversation]:
    """One that was let in."""
    async with connecting(app, path, **more) as conversation:
        await conversation.until(lambda: conversation.accepted)
        yield conversation
