"""The README's Python, run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anyio
import pytest
from test_driver import settle
from wsclient import connect
from ycore_adapters import server
from ycore_adapters.driver import Driver
from ycore_adapters.stores import MemoryStore
from yupdates import ASK_ALL

from ycore import StructStore
from ycore.doc import Doc
from ycore.messages import PermissionDenied

pytestmark = pytest.mark.anyio

README = Path(__file__).parent.parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


def block(*parts: str) -> str:
    [found] = [block for block in BLOCKS if all(part in block for part in parts)]
    return str(found)


async def run(source: str, **names: Any) -> None:
    """Run what has an `await` in it."""
    scope: dict[str, Any] = {}
    exec(f"async def body({', '.join(names)}):\n" + re.sub("^", "    ", source, flags=re.M), scope)
    await scope["body"](**names)


def world() -> bytes:
    doc = Doc(1)
    doc.get_text("text").insert(0, "world")
    return doc.encode()


async def test_documents(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"update": world()}
    exec(block("from ycore.doc import"), names)
    expected = {
        "text": "Hello world",
        "todo": {"items": [{"done": False, "what": "write"}]},
    }
    assert names["doc"].to_json() == expected
    assert "attributes" in capsys.readouterr().out
    assert str(expected) in block("from ycore.doc import").replace('"', "'")


async def test_updates_without_rooms() -> None:
    other = Doc(2)
    other.get_text("text").insert(0, "x")
    have = StructStore()
    have.add(world())
    names = {
        "updates": [world(), other.encode()],
        "their_state_vector": have.encode_state_vector(),
    }
    exec(block("merge_updates(updates)"), names)
    have.add(names["missing"])
    assert have.encode() == names["document"]


async def test_the_server_with_hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    addresses: list[tuple[str, int]] = []
    listen = server.listen_tcp

    async def listen_anywhere(host: str, port: int) -> Any:
        listeners = await listen(host, 0)
        addresses.append(listeners[0].getsockname()[:2])
        return listeners

    monkeypatch.setattr(server, "listen_tcp", listen_anywhere)
    names: dict[str, Any] = {"Doc": Doc}
    exec(block("async def main", "Hooks("), names)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(names["main"])
        while not addresses:
            await anyio.lowlevel.checkpoint()
        async with connect(addresses[0], "/r") as nobody:
            assert await nobody.receive() == PermissionDenied("a token is needed").encode()
        async with connect(addresses[0], "/r?token=secret") as member:
            await member.send(ASK_ALL)
            assert b"# r" in await member.until(lambda frame: frame[:2] == b"\0\1")
        tasks.cancel_scope.cancel()


async def test_a_client(capsys: pytest.CaptureFixture[str]) -> None:
    listeners = await server.listen_tcp("127.0.0.1", 0)
    async with Driver(MemoryStore()) as driver, anyio.create_task_group() as tasks:
        tasks.start_soon(server.Server(driver, listeners).serve)
        doc = Doc()
        port = listeners[0].getsockname()[1]
        await run(block("await client.flush()").replace("1234", str(port)), doc=doc)
        assert capsys.readouterr().out == "{}\n"
        async with driver.document("my-room") as stored:
            assert stored.to_json() == doc.to_json() == {"text": "!"}
        tasks.cancel_scope.cancel()


async def test_a_document_on_the_server() -> None:
    async with Driver(MemoryStore()) as driver:
        await run(block("driver.document"), driver=driver)
        await settle()
        view = Doc.view(driver.hub.rooms["my-room"].store)
        assert view.to_json() == {"text": "\n-- the server"}
