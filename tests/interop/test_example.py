"""The README's example of a server on another WebSocket library, with real clients."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients import Clients, Process

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "own_framework.py"


@pytest.fixture
def url() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    source = EXAMPLE.read_text().replace("1234", str(port))
    process = Process(sys.executable, "-c", source)
    yield f"ws://127.0.0.1:{port}"
    _, output = process.end(signal.SIGKILL)
    assert not output


def test_two_converge_and_see_each_other(clients: Clients, url: str) -> None:
    a, b = (clients.client(url, "room", awareness={"user": user}) for user in "ab")
    for client in (a, b):
        client.wait(synced=True)  # they try again until it listens
    a.insert(0, "hello")
    b.wait(text="hello", present=[a])
    b.insert(5, " world")
    a.wait(text="hello world", present=[b])
    a.drop()
    b.wait(absent=[a], within=1)
    assert clients.raw(f"{url}/room", binary="ff")["code"] == 1007
    late = clients.client(url, "room")
    late.wait(text="hello world", present=[b])


def test_the_readme_shows_it() -> None:
    source = EXAMPLE.read_text()
    assert f"```python\n{source}```" in (ROOT / "README.md").read_text()
    assert len(source.splitlines()) < 40
