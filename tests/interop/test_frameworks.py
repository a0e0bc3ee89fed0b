"""Real y-websocket clients, with ycore in ASGI frameworks under ASGI servers."""

from __future__ import annotations

import contextlib
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from asgi_apps import APPS, SERVERS
from clients import Clients, Server
from nodejs import require_node

try:
    require_node()
except pytest.skip.Exception as exc:
    pytest.skip(str(exc), allow_module_level=True)

PROGRAM = Path(__file__).with_name("asgi_apps.py")
TRIO = ("alone", "starlette")
"""Those that run on trio as well. Django does not, nor does FastAPI promise to."""
COMBINATIONS = [
    (server, app)
    for server in SERVERS
    for app in (APPS if server == "uvicorn" else TRIO if server == "hypercorn-trio" else ["alone"])
]


@pytest.fixture(params=COMBINATIONS, ids="-".join)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    command = [sys.executable, PROGRAM, *request.param]
    with contextlib.closing(Server(tmp_path / "data", command=command)) as server:
        yield server


def test_everything(clients: Clients, server: Server) -> None:
    """In one test, since starting a server takes longer than all of it."""
    url = f"{server.url}/ws"
    a, b = (clients.client(url, "a/room", awareness={"user": user}) for user in "ab")
    for client in (a, b):
        client.wait(synced=True)
    a.insert(0, "hello")
    b.wait(text="hello", present=[a])
    b.insert(5, " world")
    a.wait(text="hello world", present=[b])
    a.fill(1_000_000)
    clients.wait_equal(a, b)
    a.drop()
    b.wait(absent=[a])
    a.connect()
    b.wait(present=[a])

    same = clients.client(url, "a%2Froom?x=1")
    same.wait(synced=True)
    clients.wait_equal(a, b, same)
    same.destroy()

    # bad bytes cost their sender the connection
    assert clients.raw(f"{url}/a/room", binary="ff")["code"] == 4400
    assert clients.raw(f"{url}/a/room", text="hello")["code"] == 1003

    # who reads only, and who does not even
    reader = clients.client(url, "a/room", params={"token": "reader"})
    reader.wait(synced=True)
    clients.wait_equal(a, reader)
    reader.insert(0, "not allowed")
    reader.wait(denied=1)
    refused = clients.client(url, "a/room", params={"token": "wrong"}, protocols=["yjs"])
    refused.wait(denied=1, closes=1)
    report = refused.report()
    assert report["closes"] == [{"code": 4403, "reason": "no such token"}]
    assert "no such token" in report["denied"][0]

    # a restart: everyone comes back, and what was edited meanwhile is merged
    reader.destroy()
    assert server.terminate() in (0, -signal.SIGTERM)  # uvicorn dies of it once it has stopped
    for client in (a, b):
        client.wait(closes=1)
    a.insert(0, "offline ")
    server.start()
    clients.wait_equal(a, b)
    b.wait(present=[a], synced=True)
    late = clients.client(url, "a/room")
    clients.wait_equal(a, late)
    assert late.read()["text"].startswith("offline ")
    assert refused.report()["opens"] == 1  # it did not come back

    with urllib.request.urlopen(server.url.replace("ws:", "http:") + "/hello") as answer:
        assert b"hello" in answer.read()
    server.terminate()
