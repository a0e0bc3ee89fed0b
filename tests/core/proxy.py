"""A TCP proxy that cuts connections, for tests of who has to live with that."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketStream


async def pump(a: Any, b: Any) -> None:
    """Pass bytes both ways, until one side ends."""
    async with anyio.create_task_group() as tasks:

        async def one_way(source: Any, target: Any) -> None:
            try:
                while True:
                    await target.send(await source.receive())
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                tasks.cancel_scope.cancel()

        tasks.start_soon(one_way, a, b)
        tasks.start_soon(one_way, b, a)


class Proxy:
    """Passes bytes on to a server, and cuts connections when told to."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.scopes: list[anyio.CancelScope] = []

    async def serve(self, stream: SocketStream) -> None:
        with anyio.CancelScope() as scope:
            self.scopes.append(scope)
            async with stream, await anyio.connect_tcp("127.0.0.1", self._port) as upstream:
                await pump(stream, upstream)

    def cut(self) -> None:
        for scope in self.scopes:
            scope.cancel()
        self.scopes.clear()


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[tuple[str, Proxy]]:
    proxy = Proxy(int(url.rpartition(":")[2]))
    async with anyio.create_task_group() as tasks:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        tasks.start_soon(listener.serve, proxy.serve)
        yield f"ws://127.0.0.1:{listener.extra(SocketAttribute.local_port)}", proxy
        tasks.cancel_scope.cancel()
    await listener.aclose()
