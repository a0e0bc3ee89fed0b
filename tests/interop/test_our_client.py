"""Our client with everybody else: real clients through our server, and through theirs."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from clients import DEADLINE, Clients, Process, Server
from nodejs import require_node
from proxy import proxied
from ycore_adapters.client import Client as OurClient
from ycore_adapters.client import connect

from ycore import ProviderSettings
from ycore.doc import Doc

try:
    require_node()
except pytest.skip.Exception as exc:
    pytest.skip(str(exc), allow_module_level=True)

HERE = Path(__file__).parent
SERVERS = {
    "y-websocket 1.5": ["node", HERE / "yserver.mjs", "y-websocket-1/bin/utils"],
    "@y/websocket-server": ["node", HERE / "yserver.mjs", "@y/websocket-server/utils"],
    "pycrdt-websocket": [sys.executable, HERE / "pycrdt_server.py"],
}
QUICK = ProviderSettings(backoff_first=0.001, backoff_most=0.01)


@pytest.fixture(scope="module", params=["ycore", *SERVERS])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server: ours, or one of theirs."""
    if request.param == "ycore":
        with contextlib.closing(Server(tmp_path_factory.mktemp("data"))) as server:
            yield server.url
        return
    if request.param == "pycrdt-websocket":
        require_pycrdt_websocket()
    process = Process(*SERVERS[request.param])
    try:
        line = process.readline(DEADLINE)
        assert line is not None
        assert line.startswith("ws://"), line
        yield line.strip()
    finally:
        process.end(signal.SIGKILL)


def require_pycrdt_websocket() -> None:
    for name in ("pycrdt", "pycrdt.websocket", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}: pip install --group test")


@pytest.fixture
def portal(backend: str) -> Iterator[BlockingPortal]:
    """An event loop in a thread of its own, for our client: the others are driven from here."""
    with start_blocking_portal(backend) as portal:
        yield portal


class Ours:
    """Our client and its document, from outside of its thread."""

    def __init__(self, portal: BlockingPortal, client: OurClient, doc: Doc) -> None:
        self.portal = portal
        self.client = client
        self.doc = doc

    @property
    def text(self) -> str:
        return str(self.portal.call(str, self.doc.get_text("text")))

    def insert(self, index: int, text: str) -> None:
        self.portal.call(self.doc.get_text("text").insert, index, text)

    def wait(self, holds: Callable[[], object]) -> None:
        """Wait until this holds, in its thread."""

        async def wait() -> None:
            changed = anyio.Event()
            ends = [
                self.doc.observe_updates(lambda update, origin: changed.set()),
                self.client.observe(lambda event: changed.set()),
            ]
            with anyio.fail_after(DEADLINE):
                while not holds():
                    await changed.wait()
                    changed = anyio.Event()
            for end in ends:
                end()

        self.portal.call(wait)

    def flush(self) -> None:
        async def flush() -> None:
            with anyio.fail_after(DEADLINE):
                await self.client.flush()

        self.portal.call(flush)

    def show(self, state: Any) -> None:
        self.portal.call(setattr, self.client, "state", state)


@pytest.fixture
def join(portal: BlockingPortal) -> Iterator[Callable[..., Ours]]:
    with ExitStack() as stack:

        def join(url: str, room: str) -> Ours:
            doc = Doc()
            context = connect(url, doc, room=room, settings=QUICK)
            client = stack.enter_context(portal.wrap_async_context_manager(context))
            portal.call(client.synced)
            return Ours(portal, client, doc)

        yield join


def test_together(url: str, room: str, clients: Clients, join: Callable[..., Ours]) -> None:
    theirs = clients.client(url, room, awareness={"user": "Ada"})
    theirs.wait(synced=True)
    theirs.insert(0, "Hello 🙂 ")
    ours = join(url, room)
    ours.wait(lambda: str(ours.doc.get_text("text")) == "Hello 🙂 ")
    ours.insert(8, "world")
    theirs.wait(text="Hello 🙂 world")
    theirs.set("key", [1, None])
    ours.wait(lambda: ours.doc.get_map("map").to_json() == {"key": [1, None]})


def test_who_is_here(url: str, room: str, clients: Clients, join: Callable[..., Ours]) -> None:
    theirs = clients.client(url, room)
    theirs.wait(synced=True)
    ours = join(url, room)
    theirs.present({"user": {"name": "Ada"}})
    ours.wait(lambda: ours.client.peers == {theirs.id: {"user": {"name": "Ada"}}})
    ours.show({"user": {"name": "Béla"}})
    our_id = ours.client.provider.client_id
    theirs.wait(states={our_id: {"user": {"name": "Béla"}}})
    theirs.disconnect()
    ours.wait(lambda: not ours.client.peers)
    theirs.connect()
    theirs.present({"user": {"name": "Ada"}, "again": True})
    ours.wait(lambda: theirs.id in ours.client.peers)
    ours.portal.call(ours.client.disconnect)
    theirs.wait(states={our_id: None})
    ours.portal.call(ours.client.connect)
    theirs.wait(states={our_id: {"user": {"name": "Béla"}}})


def test_offline_edits(url: str, room: str, clients: Clients, join: Callable[..., Ours]) -> None:
    theirs = clients.client(url, room)
    theirs.wait(synced=True)
    ours = join(url, room)
    ours.portal.call(ours.client.disconnect)
    ours.insert(0, "ours")
    theirs.insert(0, "theirs")
    theirs.disconnect()
    ours.portal.call(ours.client.connect)
    ours.flush()
    theirs.connect()
    theirs.wait(contains="ours")
    ours.wait(lambda: len(ours.doc.get_text("text")) == 10)
    theirs.wait(text=ours.text)


def test_a_hundred_cuts(
    url: str, room: str, portal: BlockingPortal, clients: Clients, join: Callable[..., Ours]
) -> None:
    """Both edit all the time; our connection breaks anywhere."""
    chance = Random(1)
    theirs = clients.client(url, room)
    theirs.wait(synced=True)
    with portal.wrap_async_context_manager(proxied(url)) as (through, proxy):
        ours = join(through, room)
        ours.show("here")
        for turn in range(100):
            for _ in range(chance.randrange(5)):
                ours.insert(0, "a")
            theirs.insert(0, "b")
            if turn % 3:
                portal.call(ours.client.synced)
            portal.call(proxy.cut)
            ours.insert(0, "c")
            ours.wait(lambda: proxy.scopes)
        ours.insert(0, "end")
        ours.flush()
        theirs.wait(contains="end")
        ours.wait(lambda: str(ours.doc.get_text("text")).count("b") == 100)
        theirs.wait(text=ours.text)
        ours.show("still here")  # again, as pycrdt-websocket tells nobody who was here before
        theirs.wait(states={ours.client.provider.client_id: "still here"})
        portal.call(ours.client.disconnect)


def test_pycrdts_client(backend: str, join: Callable[..., Ours], tmp_path: Path) -> None:
    """Through our server."""
    require_pycrdt_websocket()
    import pycrdt  # noqa: PLC0415
    from websockets.asyncio.client import connect as open_websocket  # noqa: PLC0415

    class Channel:
        def __init__(self, websocket: Any) -> None:
            self.path = "room"
            self.send = websocket.send
            self.recv = websocket.recv

        def __aiter__(self) -> Channel:
            return self

        async def __anext__(self) -> bytes:
            return bytes(await self.recv())

    async def converse(ours: Ours) -> None:
        doc = pycrdt.Doc()
        text = doc.get("text", type=pycrdt.Text)
        arrived = anyio.Event()
        async with (
            open_websocket(f"{server.url}/room") as websocket,
            pycrdt.Provider(doc, Channel(websocket)) as provider,
        ):
            await provider.synced.wait()
            assert str(text) == "ours "
            text += "and theirs"
            await anyio.to_thread.run_sync(
                ours.wait, lambda: str(ours.doc.get_text("text")) == "ours and theirs"
            )
            text.observe(lambda event: arrived.set())
            await anyio.to_thread.run_sync(ours.insert, 0, "all: ")
            await arrived.wait()
            assert str(text) == "all: ours and theirs"

    with contextlib.closing(Server(tmp_path / "data", "--backend", backend)) as server:
        ours = join(server.url, "room")
        ours.insert(0, "ours ")
        ours.flush()
        anyio.run(converse, ours)
        ours.portal.call(ours.client.disconnect)
