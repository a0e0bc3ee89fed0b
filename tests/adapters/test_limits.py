"""What `ycore serve` does when it is full: a server with limits of next to nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from build import gc, update
from hostile import Client, all_closed_after, close, frame, insert, message
from yupdates import ASK_ALL

from ycore.messages import Update


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    limits = {"connections-per-address": 5, "rooms": 2, "members": 2} | {
        "document-mb": 1,
        "message-mb": 1,
    }
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "ycore_adapters.cli", "serve", "--port", "0"),
            *("--data", tmp_path / "data"),
            *(f"--max-{name}={limit}" for name, limit in limits.items()),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        found = re.search(r":(\d+),", process.stdout.readline())
        assert found
        with all_closed_after():
            yield int(found[1])
        process.terminate()
        _, log = process.communicate()
        assert "Traceback" not in log


def closed_with(client: Client, code: int) -> str:
    payload = client.ended()
    assert payload is not None
    assert int.from_bytes(payload[:2], "big") == code, payload
    return payload[2:].decode()


def test_members_of_a_room(port: int) -> None:
    first, second = (Client(port).open("/a") for _ in range(2))
    assert closed_with(Client(port).open("/a"), 1013) == "the room is full"
    first.send(ASK_ALL)
    assert closed_with(Client(port).open("/a"), 1013) == "the room is full"
    second.reset()


def test_rooms(port: int) -> None:
    for name in ("a", "b", "c", "d"):  # each gives way to the next but one
        client = Client(port).open(f"/{name}")
        client.send(ASK_ALL)
        client.receive()
        client.sock.sendall(close(1000))
        client.ended()
    Client(port).open("/a")
    Client(port).open("/b")
    assert closed_with(Client(port).open("/c"), 1013) == "the server has too many rooms open"
    Client(port).open("/b").send(ASK_ALL)


def test_connections_of_one_address(port: int) -> None:
    clients = [Client(port).open(path) for path in ("/a", "/a", "/b", "/b")]
    half_open = Client(port)
    head, _ = Client(port).read_answer()
    assert head.startswith(b"HTTP/1.1 429 ")
    assert b"retry-after: " in head.lower()
    half_open.sock.close()
    clients[0].sock.close()


def test_no_address_has_all_the_connections_that_files_suffice_for(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ycore_adapters.cli", "serve", "--port", "0", "--memory"]
    with subprocess.Popen(
        ["sh", "-c", 'ulimit -n 100; exec "$@"', "sh", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        found = re.search(r":(\d+),", process.stdout.readline())
        assert found
        port = int(found[1])
        with all_closed_after():
            clients = [Client(port).open("/a") for _ in range(10)]  # of 37
            head, _ = Client(port).read_answer()
            assert head.startswith(b"HTTP/1.1 429 ")
            clients[0].send(ASK_ALL)
            clients[0].receive()
        process.terminate()
        _, log = process.communicate()
    assert "setting=max_connections_per_address=10" in log


def test_a_message(port: int) -> None:
    client = Client(port).open("/a")
    client.sock.sendall(frame(0x82, bytes(2**20 + 1))[:14])  # it is enough to say so
    assert "1048576 bytes" in closed_with(client, 4413)


def test_a_document(port: int) -> None:
    author, reader = (Client(port).open("/a") for _ in range(2))
    many = update({(client, 0): [gc(1)] for client in range(1000)})
    author.send(Update(many).encode())
    author.send(Update(insert(10**6, 0)).encode())
    assert "the document is full" in closed_with(author, 4413)
    reader.sock.sendall(message(ASK_ALL) + frame(0x89, b"still here"))
    while reader.next_frame() != (0x8A, b"still here"):
        pass
