"""What one address can do to its neighbours by what it makes the server keep, or answer.

    .venv/bin/python tests/benchmarks/neighbours_limits.py [CASE ...]

Each case runs a server of its own, and prints how long an honest neighbour from another address
waited at worst, and how much memory the server took at most. The offenders are a process of their
own, or those who measure would wait for them.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Final, NamedTuple

from made import ASK_ALL, REQUEST, keystroke

from ycore.lib0 import write_var_uint
from ycore.messages import Update

_OFFENDER: Final = "127.0.0.1"
_HONEST: Final = "127.0.0.2"
_PATIENCE: Final = 30.0
_SECONDS: Final = 8.0
"""How long a case is looked at."""


class Outcome(NamedTuple):
    what: str
    """What an honest neighbour did."""
    worst: float
    """Seconds it waited at worst."""
    times: int
    """How often it did it."""
    refused: int
    """How often it was sent away instead."""
    memory: int
    """Bytes that the server took at most."""
    load: float
    """What share of a core the server took meanwhile."""


# ---- clients


def _frame(payload: bytes, first: int = 0x82, length: int | None = None) -> bytes:
    """Masked by zeros. It may say that it is longer than it is."""
    size = len(payload) if length is None else length
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 2**16:
        head = bytes((first, 0xFE)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 0xFF)) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


class _Closed(Exception):
    pass


class _Client:
    def __init__(self, port: int, room: str, host: str, *, extension: str = "") -> None:
        self.sock = socket.create_connection(
            ("127.0.0.1", port), timeout=_PATIENCE, source_address=(host, 0)
        )
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()
        request = REQUEST.replace(b"/doc", f"/{room}".encode())
        if extension:
            header = f"Sec-WebSocket-Extensions: {extension}\r\n\r\n".encode()
            request = request.removesuffix(b"\r\n") + header
        self.sock.sendall(request)
        while b"\r\n\r\n" not in self._buffer:
            self._read()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        if b" 101 " not in head:
            raise _Closed

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.sock.close()

    def _read(self) -> None:
        try:
            data = self.sock.recv(2**18)
        except ConnectionResetError:
            data = b""
        if not data:
            raise _Closed
        self._buffer += data

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._read()
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def receive(self) -> bytes:
        """The next message.

        Raises:
            _Closed: the server closed.
        """
        while True:
            first, size = self._take(2)
            if size > 125:
                size = int.from_bytes(self._take(2 if size == 126 else 8), "big")
            payload = self._take(size)
            if first == 0x88:
                raise _Closed
            if first == 0x82:
                return payload

    def until(self, message: bytes) -> None:
        while self.receive() != message:
            pass

    def sync(self) -> None:
        self.sock.sendall(_frame(ASK_ALL))
        while self.receive()[:2] != b"\x00\x01":
            pass


def _text(author: int, size: int) -> bytes:
    """A message that inserts a text of this length."""
    update = bytearray(b"\x01\x01")
    write_var_uint(update, author)
    update += b"\x00\x04\x01\x04text"
    write_var_uint(update, size)
    return Update(bytes(update) + b"a" * size + b"\x00").encode()


# ---- the server


class _Server:
    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "ycore_adapters.cli",
                "serve",
                "--port",
                "0",
                "--memory",
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        found = re.search(r":(\d+),", self.process.stdout.readline())
        assert found
        self.port = int(found[1])

    def memory(self) -> int:
        """The most it has taken."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024

    def cpu(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _beside(offend: Callable[[int, Event], None], *options: str) -> Iterator[_Server]:
    """A server, with a process of offenders once they are at work."""
    server = _Server(*options)
    ready = multiprocessing.Event()
    offenders = multiprocessing.Process(target=offend, args=(server.port, ready), daemon=True)
    offenders.start()
    try:
        ready.wait()
        yield server
    finally:
        offenders.terminate()
        offenders.join()
        server.process.terminate()
        server.process.wait()


def _measure(server: _Server, what: str, once: Callable[[], None]) -> Outcome:
    before = server.cpu()
    waits = []
    refused = 0
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        began = time.perf_counter()
        try:
            once()
        except (_Closed, OSError):
            refused += 1
        waits.append(time.perf_counter() - began)
        time.sleep(0.02)
    load = (server.cpu() - before) / sum(waits, 0.02 * len(waits))
    return Outcome(what, max(waits), len(waits), refused, server.memory(), load)


def _keystrokes(server: _Server) -> Outcome:
    with (
        _Client(server.port, "honest", _HONEST) as author,
        _Client(server.port, "honest", _HONEST) as reader,
    ):
        reader.sync()
        clocks = count()

        def once() -> None:
            clock = next(clocks)
            message = Update(keystroke(clock, clock - 1 if clock else None)).encode()
            author.sock.sendall(_frame(message))
            reader.until(message)

        return _measure(server, "keystroke", once)


# ---- the cases


def _send_what_it_can(port: int, ready: Event) -> None:
    """A thousand messages of 60 MB, of each of which 536 KB come, and then a byte every 4 s."""
    clients = []
    begun = _frame(bytes(536 * 1024), length=60 * 2**20)
    for _ in range(1000):
        client = _Client(port, "bad", _OFFENDER)
        with suppress(OSError):
            client.sock.sendall(begun)
        clients.append(client)
    ready.set()
    while True:
        for client in clients:
            with suppress(OSError):
                client.sock.sendall(b"\x00")
        time.sleep(4)


def unfinished() -> Outcome:
    """Honest messages of 2 MB, beside those that never end. They bring the same each time, or it
    would be their documents that take the memory."""
    with _beside(_send_what_it_can) as server:
        message = _frame(_text(1, 2 * 2**20))

        def once() -> None:
            with _Client(server.port, "honest", _HONEST) as client:
                client.sock.sendall(message)
                client.sync()

        return _measure(server, "message of 2 MB", once)


def _take_slots(port: int, ready: Event) -> None:
    for number in count():
        with suppress(_Closed, OSError), _Client(port, f"bad-{number}", _OFFENDER) as client:
            client.sync()
        if number == 1000:
            ready.set()


def slots() -> Outcome:
    """Honest joins of new rooms, beside somebody who joins one after the other."""
    with _beside(_take_slots, "--max-rooms", "384") as server:
        numbers = count()

        def once() -> None:
            with _Client(server.port, f"honest-{next(numbers)}", _HONEST) as client:
                client.sync()

        return _measure(server, "join", once)


def _send_bombs(port: int, ready: Event) -> None:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    message = compressor.compress(_text(1, 60 * 2**20)) + compressor.flush(zlib.Z_SYNC_FLUSH)
    bomb = _frame(message.removesuffix(b"\x00\x00\xff\xff"), 0xC2)
    ready.set()
    for number in count():
        with (
            suppress(_Closed, OSError),
            _Client(port, f"bad-{number}", _OFFENDER, extension="permessage-deflate") as client,
        ):
            client.sock.sendall(bomb)
            client.sync()


def compressed() -> Outcome:
    """Honest keystrokes, beside somebody who sends 60 MB in 58 KB again and again."""
    with _beside(_send_bombs, "--compression") as server:
        return _keystrokes(server)


def _send_pings(port: int, ready: Event) -> None:
    clients = [_Client(port, "bad", _OFFENDER) for _ in range(4)]
    pings = _frame(bytes(125), 0x89) * 100
    for client in clients:
        client.sock.setblocking(False)
    ready.set()
    rests = [b""] * len(clients)
    while True:
        for i, client in enumerate(clients):
            with suppress(BlockingIOError):
                while client.sock.recv(2**16):
                    pass
            with suppress(BlockingIOError):
                rest = rests[i] or pings
                rests[i] = rest[client.sock.send(rest) :]


def pings() -> Outcome:
    """Honest keystrokes, beside four connections that send pings of 125 bytes without end."""
    with _beside(_send_pings) as server:
        return _keystrokes(server)


CASES: Final[dict[str, Callable[[], Outcome]]] = {
    case.__name__: case for case in (unfinished, slots, compressed, pings)
}


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print("case        neighbour         worst wait  times  refused   memory  load")
    for name in sys.argv[1:] or CASES:
        seen = CASES[name]()
        print(
            f"{name:<12}{seen.what:<18}{seen.worst * 1000:>8.0f} ms{seen.times:>7}{seen.refused:>9}"
            f"{seen.memory / 2**20:>6.0f} MB{seen.load:>6.0%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
