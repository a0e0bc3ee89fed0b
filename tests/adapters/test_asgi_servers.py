"""The ASGI application under uvicorn and hypercorn, over sockets: what only a real server shows.

That real clients edit together there is in tests/interop/test_asgi.py.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import hypercorn.asyncio
import hypercorn.config
import hypercorn.trio
import pytest
import uvicorn
from wsclient import Refused, connect
from ycore_adapters.asgi import ASGIApp, ASGISettings
from ycore_adapters.driver import DriverSettings
from ycore_adapters.hooks import Access, Hooks, Request
from ycore_adapters.hooks import Refused as NotAllowed
from ycore_adapters.stores import MemoryStore
from yupdates import ASK_ALL, EMPTY_ROOM, NOTHING, edit

from ycore import StructStore
from ycore.messages import SyncStep2, Update, decode

pytestmark = pytest.mark.anyio

SERVERS = ["websockets-sansio", "wsproto", "hypercorn-asyncio", "hypercorn-trio"]


@pytest.fixture(params=SERVERS)
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def anyio_backend(kind: str) -> tuple[str, dict[str, Any]]:
    return ("trio", {}) if kind.endswith("trio") else ("asyncio", {"use_uvloop": False})


@asynccontextmanager
async def serving(kind: str, app: Any) -> AsyncIterator[tuple[str, int]]:
    """Run an application until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener, anyio.fail_after(20):
        listener.setblocking(False)
        address = listener.getsockname()
        stop = anyio.Event()
        serve: Callable[[], Awaitable[Any]]
        end: Callable[[], Any]
        if kind.startswith("hypercorn"):
            hyper = hypercorn.config.Config()
            hyper.bind = [f"fd://{listener.detach()}"]
            hyper.graceful_timeout = 0.1
            module: Any = hypercorn.trio if kind.endswith("trio") else hypercorn.asyncio

            async def serve() -> None:
                await module.serve(app, hyper, shutdown_trigger=stop.wait, mode="asgi")

            end = stop.set
        else:
            ws: Any = kind
            config = uvicorn.Config(app, ws=ws, lifespan="on", log_config=None)
            server = uvicorn.Server(config)

            async def serve() -> None:
                await server.serve([listener])

            def end() -> None:
                server.should_exit = True

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            yield address
            end()


async def test_who_reads_nothing_holds_up_nobody_and_is_brought_level(kind: str) -> None:
    """The ASGI server's `send` waits for the socket, and so the member is known to be slow."""
    app = ASGIApp(MemoryStore(), limits=DriverSettings(max_outbox_bytes=2**20))
    frame = bytes(2**18)
    async with serving(kind, app) as address, connect(address) as a, connect(address) as slow:
        for client in (a, slow):
            assert await client.receive() == EMPTY_ROOM
            await client.send(ASK_ALL, NOTHING)
            await client.until(lambda message: message[:2] == b"\x00\x01")
        [room] = app.driver.hub.rooms.values()
        async with connect(address) as quick:
            await quick.send(ASK_ALL, NOTHING)
            await quick.until(lambda message: message[:2] == b"\x00\x01")
            for clock in range(80):
                await a.send(edit(1, clock, frame))
                wanted = edit(1, clock, frame)
                await quick.until(lambda message, wanted=wanted: message == wanted)
        assert max(member.link.waiting for member in room.members) < 2**21
        store = StructStore()
        while store.state_vector() != {1: 80}:
            for message in decode(await slow.receive()):
                if isinstance(message, SyncStep2 | Update):
                    store.add(message.update)


async def test_paths_refusals_and_subprotocols(kind: str) -> None:
    def authorize(request: Request) -> Access:
        assert request.address == "127.0.0.1"
        if request.header("origin") is None and request.params:
            raise NotAllowed("no")
        return Access()

    app = ASGIApp(MemoryStore(), prefix="/ws/", hooks=Hooks(authorize=authorize))
    async with serving(kind, app) as address:
        for path in ("/", "/ws/", "/ws/%ff"):
            with pytest.raises(Refused) as refused:
                async with connect(address, path):
                    pass
            assert refused.value.status == (400 if path.endswith("%ff") else 404)
        async with connect(address, "/ws/a%2Fb", subprotocols=["x", "y"]) as a:
            assert await a.receive() == EMPTY_ROOM
            assert list(app.driver.hub.rooms) == ["a/b"]
        async with connect(address, "/ws/a?token=1") as a:
            assert await a.closed() == 4403


async def test_a_message_that_is_too_long_is_refused(kind: str) -> None:
    app = ASGIApp(MemoryStore(), asgi=ASGISettings(max_message_bytes=1000))
    async with serving(kind, app) as address, connect(address) as a:
        await a.send(bytes(1001))
        assert await a.closed() == 4413
