"""How long others wait while one address asks for as much as it may: `make bench-neighbours`.

Each case is legal load from one address, at default limits. Meanwhile, from another, somebody types
in a small room of their own, somebody joins one, and somebody pastes 2 MB: shown is what each of
these waited at worst, and by how much the server's memory grew at most. The last case has nobody
doing anything. `--same-address` has all of it come from one address, as behind a proxy.

Loopback only. `--case NAME` for some of the cases, `--server COMMAND` for another server: another
commit's, or the compiled one.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import shlex
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

HERE = Path(__file__).parent
sys.path += [str(HERE.parent / "adapters"), str(HERE.parent / "core")]

from build import gc, update  # noqa: E402
from hostile import frame, message, upgrade  # noqa: E402
from yupdates import ASK_ALL, NOTHING, edit, here  # noqa: E402

from ycore.messages import SyncStep1, SyncStep2, Update, decode  # noqa: E402
from ycore.updates import encode_state_vector  # noqa: E402

ATTACKER: Final = "127.0.0.2"
NEIGHBOUR: Final = "127.0.0.3"
PATIENCE: Final = 60.0
AUTHORS: Final = 150_000
KEYSTROKES: Final = 0.02
SERVE: Final = (sys.executable, "-m", "ycore_adapters.cli", "serve", "--memory", "--port", "0")


class Client:
    """A blocking WebSocket client, of a source address of its own."""

    def __init__(
        self, port: int, path: str, source: str, *, buffer: int | None = None, opens: bool = True
    ) -> None:
        self.sock = socket.socket()
        self.sock.settimeout(PATIENCE)
        if buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.sock.bind((source, 0))
        self.sock.connect(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()
        if opens:
            self.sock.sendall(upgrade(f"GET {path} HTTP/1.1"))
            self.opened()

    def opened(self) -> None:
        head = bytearray()
        while not head.endswith(b"\r\n\r\n"):
            head += self._more(1)
        if not head.startswith(b"HTTP/1.1 101"):
            raise OSError(head.partition(b"\r\n")[0].decode())

    def send(self, *messages: bytes) -> None:
        self.sock.sendall(b"".join(map(message, messages)))

    def _more(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = self.sock.recv(2**20)
            if not data:
                raise OSError("closed")
            self._buffer += data
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def receive(self) -> bytes:
        """The next binary message."""
        while True:
            first, size = self._more(2)
            if size == 126:
                (size,) = struct.unpack("!H", self._more(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", self._more(8))
            payload = self._more(size)
            if first == 0x88:
                raise OSError(
                    f"closed: {int.from_bytes(payload[:2], 'big')} {payload[2:].decode()}"
                )
            if first == 0x89:  # a ping
                self.sock.sendall(frame(0x8A, payload))
            elif first == 0x82:
                return payload

    def until(self, kind: type) -> bytes:
        """The next message that is, or ends with, one of this kind."""
        while True:
            received = self.receive()
            if isinstance(list(decode(received))[-1], kind):
                return received

    def synced(self) -> Client:
        self.send(ASK_ALL, NOTHING)
        self.until(SyncStep2)
        return self


# ---- the neighbours


def observe(port: int, source: str) -> None:
    """Type, join and paste until told to stop; print the worst waits."""
    stopped = threading.Event()
    worst = {"keystroke": 0.0, "join": 0.0, "paste": 0.0}

    def note(what: str, began: float) -> None:
        worst[what] = max(worst[what], time.monotonic() - began)

    def forever(what: str, do: Callable[[], None], pause: float) -> None:
        while not stopped.is_set():
            began = time.monotonic()
            try:
                do()
                note(what, began)
            except OSError as exc:
                worst[what] = float("inf")
                print(f"{what}: {exc}", file=sys.stderr)
            stopped.wait(pause)

    writer, reader = (Client(port, "/typing", source).synced() for _ in range(2))
    paster, pasted = (Client(port, "/pasting", source).synced() for _ in range(2))
    clocks = {"typing": 0, "pasting": 0}

    def keystroke() -> None:
        writer.send(edit(1, clocks["typing"]))
        clocks["typing"] += 1
        reader.until(Update)

    def join() -> None:
        client = Client(port, "/typing", source).synced()
        client.sock.close()

    def paste() -> None:
        paster.send(edit(1, clocks["pasting"], bytes(2 * 10**6)))
        clocks["pasting"] += 1
        pasted.until(Update)

    tasks = [
        threading.Thread(target=forever, args=args, daemon=True)
        for args in (("keystroke", keystroke, KEYSTROKES), ("join", join, 0.2), ("paste", paste, 1))
    ]
    for task in tasks:
        task.start()
    print("ready", flush=True)
    sys.stdin.readline()
    stopped.set()
    for task in tasks:
        task.join(PATIENCE)
        if task.is_alive():
            worst = dict.fromkeys(worst, float("inf"))
    print(json.dumps(worst), flush=True)


@contextmanager
def neighbours(port: int, source: str) -> Iterator[dict[str, float]]:
    worst: dict[str, float] = {}
    command = [sys.executable, __file__, "--observe", str(port), source]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(1)
        yield worst
        time.sleep(1)
        process.stdin.write("stop\n")
        process.stdin.flush()
        worst.update(json.loads(process.stdout.readline()))


# ---- the cases


class Case:
    def __init__(self, port: int) -> None:
        self.port = port
        self.clients: list[Client] = []

    def client(self, path: str, *, buffer: int | None = None, opens: bool = True) -> Client:
        client = Client(self.port, path, ATTACKER, buffer=buffer, opens=opens)
        self.clients.append(client)
        return client

    def prepare(self) -> None:
        """What comes before anyone watches."""

    def run(self) -> None:
        raise NotImplementedError

    def authors(self) -> None:
        author = self.client("/big").synced()
        for first in range(2**30, 2**30 + AUTHORS, AUTHORS // 3):
            some = range(first, first + AUTHORS // 3)
            author.send(Update(update({(client, 0): [gc(1)] for client in some})).encode())
        author.send(SyncStep1(encode_state_vector({2**30: 1})).encode())
        author.until(SyncStep2)


class Nothing(Case):
    """nobody does anything"""

    def run(self) -> None:
        time.sleep(3)


class Starving(Case):
    """60 connections ask a document of 150,000 authors, each with a state vector of its own"""

    def prepare(self) -> None:
        self.authors()
        for _ in range(60):
            self.client("/big")

    def run(self) -> None:
        def ask(number: int, client: Client) -> None:
            with suppress(OSError):
                for turn in range(5):
                    known = {2**30 + 100 * number + turn: 1}
                    client.send(SyncStep1(encode_state_vector(known)).encode())
                    client.until(SyncStep2)

        tasks = [
            threading.Thread(target=ask, args=args, daemon=True)
            for args in enumerate(self.clients[1:])
        ]
        for task in tasks:
            task.start()
        until = time.monotonic() + 30
        for task in tasks:
            task.join(max(0, until - time.monotonic()))


class Stalling(Case):
    """100 members of that document who don't read, two pastes of 2.2 MB; then they read on"""

    def prepare(self) -> None:
        self.authors()
        for _ in range(100):
            self.client("/big", buffer=4096).send(ASK_ALL)
        time.sleep(3)

    def run(self) -> None:
        author = self.clients[0]
        for clock in range(3):
            author.send(edit(1, clock, bytes(2_200_000)))
            time.sleep(0.5)
        author.send(edit(1, 3))
        time.sleep(3)
        until = time.monotonic() + 10
        with selectors.DefaultSelector() as selector:
            for client in self.clients[1:]:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
                selector.register(client.sock, selectors.EVENT_READ)
            while time.monotonic() < until and (ready := selector.select(2)):
                for key, _ in ready:
                    assert isinstance(key.fileobj, socket.socket)
                    if not key.fileobj.recv(2**20):
                        selector.unregister(key.fileobj)


class Joining(Case):
    """900 join a room at once, each with 1 KB of awareness"""

    def prepare(self) -> None:
        for _ in range(900):
            self.client("/crowd", opens=False)

    def run(self) -> None:
        request = upgrade("GET /crowd HTTP/1.1")
        state = '{"name":"' + "x" * 1000 + '"}'
        joined = 0
        with selectors.DefaultSelector() as selector:
            for number, client in enumerate(self.clients, 1):
                first = request + b"".join(map(message, (ASK_ALL, NOTHING, here(number, state))))
                client.sock.sendall(first)
                selector.register(client.sock, selectors.EVENT_READ, [b""])
            until = time.monotonic() + 20
            while time.monotonic() < until and (ready := selector.select(1)):
                for key, _ in ready:
                    assert isinstance(key.fileobj, socket.socket)
                    data = key.fileobj.recv(2**18)
                    if not key.data[0]:
                        key.data[0] = data[:12]
                        joined += data.startswith(b"HTTP/1.1 101")
                    if not data:
                        selector.unregister(key.fileobj)
        print(f"    joined: {joined}")


class Unread(Case):
    """100 members of a document of 16 MB ask with a state vector of their own, and don't read"""

    def prepare(self) -> None:
        author = self.client("/long").synced()
        for clock in range(16_000):
            author.send(edit(1, clock, bytes(1000)))
        author.send(SyncStep1(encode_state_vector({1: 15_999})).encode())
        author.until(SyncStep2)

    def run(self) -> None:
        for number in range(100):
            client = self.client("/long", buffer=4096)
            client.send(SyncStep1(encode_state_vector({1: number + 1})).encode())
        time.sleep(5)


class Leaving(Case):
    """5,000 members in rooms of 10, each of whom is seen, break off at once"""

    def prepare(self) -> None:
        for number in range(5000):
            self.client(f"/leaving{number // 10}").send(here(number + 1))
            if not number % 100:
                time.sleep(0.05)
        time.sleep(2)

    def run(self) -> None:
        reset = struct.pack("ii", 1, 0)
        for client in self.clients:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        for client in self.clients:
            client.sock.close()
        time.sleep(3)


CASES: Final = {
    case.__name__.lower(): case for case in (Nothing, Starving, Stalling, Joining, Unread, Leaving)
}


# ---- measuring


def memory(pid: int | None, what: str) -> int:
    """A figure of the server's, in KB."""
    if pid is None:
        return 0
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1])
    return 0


@contextmanager
def server(command: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Its port and process."""
    more = ("--max-connections-per-address", "10000")
    with subprocess.Popen([*command, *more], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield int(line.rpartition(":")[2].split(",")[0].split("/")[0]), process.pid
        finally:
            process.kill()


def measure(case: Case, pid: int | None, source: str) -> None:
    print(f"{type(case).__name__.lower()}: {type(case).__doc__}", flush=True)
    case.prepare()
    before = memory(pid, "VmRSS")
    if pid is not None:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # so that the peak is of what follows
    with neighbours(case.port, source) as worst:
        case.run()
    for client in case.clients:
        client.sock.close()
    shown = ", ".join(f"{what} {1000 * seconds:,.0f} ms" for what, seconds in worst.items())
    grown = (memory(pid, "VmHWM") - before) / 1024
    print(f"    worst wait: {shown}; memory: +{grown:,.0f} MB at most", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--same-address", action="store_true")
    parser.add_argument("--server", default=shlex.join(SERVE), help="prints its port, as ours does")
    parser.add_argument("--observe", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.observe:
        observe(int(args.observe[0]), args.observe[1])
        return
    source = ATTACKER if args.same_address else NEIGHBOUR
    for name in args.case or CASES:
        with server(shlex.split(args.server)) as (port, pid):
            measure(CASES[name](port), pid, source)


if __name__ == "__main__":
    os.environ["PYTHONUNBUFFERED"] = "1"
    main()
