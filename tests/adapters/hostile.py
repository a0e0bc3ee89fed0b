"""What `test_hostile` is made of: bytes that no honest client sends, and blocking clients.

The clients take nothing from a WebSocket library, which would not send most of this.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from yupdates import ASK_ALL, NOTHING, insert

from ycore import Awareness, AwarenessEntry, StructStore
from ycore.awareness import encode_awareness
from ycore.lib0 import read_var_string, read_var_uint
from ycore.messages import AwarenessUpdate, SyncStep1, SyncStep2, Update, decode

DEADLINE: Final = 20.0
"""Seconds after which a test gives up. Nothing waits for it unless something is wrong."""

PAIR: Final = 2**31
"""The client ids of a pair of well-behaved members: this, and the one after it."""

# ---- HTTP

_HEADERS: Final = {
    "Host": "h",
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def http(line: str, *headers: str) -> bytes:
    """A request of these lines."""
    return "\r\n".join([line, *headers, "", ""]).encode("latin-1")


def upgrade(line: str = "GET /room HTTP/1.1", *more: str, **changed: str | None) -> bytes:
    """A request for a WebSocket, with more lines, or with a header changed; None leaves it out."""
    headers = _HEADERS | {name.replace("_", "-"): value for name, value in changed.items()}
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return http(line, *lines, *more)


# ---- WebSocket frames

_KEY: Final = bytes(4)
"""A mask of zeros: frames are masked, and can be read."""


def frame(first: int, payload: bytes = b"", *, length: bytes | None = None) -> bytes:
    """A frame with this first byte, and if need be another length than it has."""
    size = len(payload)
    if length is None:
        if size < 126:
            length = bytes([size])
        elif size < 2**16:
            length = b"\x7e" + size.to_bytes(2, "big")
        else:
            length = b"\x7f" + size.to_bytes(8, "big")
    return bytes([first, 0x80 | length[0]]) + length[1:] + _KEY + payload


def message(data: bytes) -> bytes:
    return frame(0x82, data)


def fragments(*parts: bytes) -> bytes:
    """A message in these fragments, the last of which is final."""
    first, *others = [0x02] + [0x00] * (len(parts) - 1)
    opcodes = [first, *others]
    opcodes[-1] |= 0x80
    return b"".join(map(frame, opcodes, parts))


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(0x88, struct.pack(">H", code) + reason)


# ---- clients


_open: Final[list[Client]] = []


@contextmanager
def all_closed_after() -> Iterator[None]:
    """Closes all clients that were made in it."""
    before = len(_open)
    try:
        yield
    finally:
        while len(_open) > before:
            _open.pop().sock.close()


class Client:
    """A TCP connection to the server, which speaks as much HTTP and WebSocket as it is told to."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _open.append(self)
        self._buffer = bytearray()
        self.head = b""
        """The server's answer to the request, once it was read."""

    def open(self, path: str = "/room") -> Client:
        self.sock.sendall(upgrade(f"GET {path} HTTP/1.1"))
        self.read_head()
        return self

    def send(self, *messages: bytes) -> None:
        self.sock.sendall(b"".join(map(message, messages)))

    def end(self) -> None:
        """Say that nothing more will come, and still read."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Let the connection break: the server reads an error where there should be bytes."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    # -- reading

    def _read(self) -> bool:
        """Read what there is; False at the end, however it comes."""
        try:
            data = self.sock.recv(2**16)
        except ConnectionResetError:
            return False
        self._buffer += data
        return bool(data)

    def read_answer(self) -> tuple[bytes, bytes]:
        """The head and the body of the one answer to a request, after which the server closes."""
        while b"\r\n\r\n" not in self._buffer and self._read():
            pass
        head, _, _ = self._buffer.partition(b"\r\n\r\n")
        assert b" 101 " not in head, f"it was let in: {head!r}"
        while self._read():
            pass
        return bytes(head), bytes(self._buffer[len(head) + 4 :])

    def read_head(self) -> None:
        while b"\r\n\r\n" not in self._buffer:
            assert self._read(), f"no answer to the request, but {bytes(self._buffer)!r}"
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        self.head = bytes(head)
        assert self.head.startswith(b"HTTP/1.1 101 "), self.head

    def next_frame(self) -> tuple[int, bytes] | None:
        """The first byte and the payload of the next frame; None if the connection ended."""
        if not self.head:
            self.read_head()
        while not (size := self._frame_size()) or len(self._buffer) < sum(size):
            if not self._read():
                assert not self._buffer, f"the server ends in mid-frame: {self._buffer[:50]!r}"
                return None
        first = self._buffer[0]
        payload = bytes(self._buffer[size[0] : sum(size)])
        del self._buffer[: sum(size)]
        return first, payload

    def _frame_size(self) -> tuple[int, int] | None:
        """How long the head and the payload of the next frame are; None if it is not known yet."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        assert buffer[1] < 0x80, "servers don't mask"
        more = {126: 2, 127: 8}.get(buffer[1], 0)
        if len(buffer) < 2 + more:
            return None
        return 2 + more, int.from_bytes(buffer[2 : 2 + more], "big") if more else buffer[1]

    def receive(self) -> bytes:
        """The next message. Pings are answered."""
        while (found := self.next_frame()) is not None:
            first, payload = found
            if first == 0x82:
                return payload
            if first == 0x89:
                self.sock.sendall(frame(0x8A, payload))
            assert first != 0x88, f"the server closed: {payload!r}"
        raise AssertionError("the server dropped the connection")

    def ended(self) -> bytes | None:
        """Read to the very end; return the payload of the close frame, if there was one.

        It is answered, as it should be, and nothing may follow it.
        """
        close_frame: bytes | None = None
        while (found := self.next_frame()) is not None:
            first, payload = found
            assert close_frame is None, f"after its close frame the server sent {found!r}"
            assert first in (0x82, 0x88, 0x89, 0x8A), f"odd frame from the server: {found!r}"
            if first == 0x88:
                close_frame = payload
                try:
                    self.sock.sendall(frame(0x88, payload[:2]))
                except OSError:  # it has closed altogether, or we have
                    continue
        return close_frame


def awareness(*entries: tuple[int, int, str | None]) -> bytes:
    """The payload of an awareness message: client, clock and state of each."""
    return encode_awareness([AwarenessEntry(*entry) for entry in entries])


def shown(client: int, state: str, clock: int = 1) -> bytes:
    """The frame by which a client shows itself."""
    return AwarenessUpdate(awareness((client, clock, state))).encode()


def _entries(payload: bytes) -> Iterator[AwarenessEntry]:
    """An awareness message as JavaScript takes it, which has no limits."""
    count, pos = read_var_uint(payload, 0)
    for _ in range(count):
        client, pos = read_var_uint(payload, pos)
        clock, pos = read_var_uint(payload, pos)
        state, pos = read_var_string(payload, pos)
        yield AwarenessEntry(client, clock, None if state == "null" else state)


class Witness(Client):
    """A well-behaved client, with the habits of y-websocket's.

    It keeps the document and who is here, and passes on every change of who is here.
    """

    def __init__(self, port: int, path: str, client: int, *, state: str = '"honest"') -> None:
        super().__init__(port)
        self.client = client
        self.edits = 0
        self.heard: list[bytes] = []
        """Updates, as they came."""
        self.synced = False
        """Whether it was told that it has all there is."""
        self.awareness = Awareness(client)
        self.met: set[int] = set()
        """Everyone who was ever here."""
        self._document = StructStore()
        self._news: list[bytes] = []
        """Updates that are not in the document yet."""
        self._state = state
        self.open(path)

    @property
    def present(self) -> dict[int, str]:
        return self.awareness.states

    @property
    def document(self) -> bytes:
        """All it has, as one update. Put together when it is asked for: some of it is large."""
        for update in self._news:
            self._document.add(update)
        self._news.clear()
        return self._document.encode()

    def show(self) -> None:
        """Say that it is here, or still is."""
        self._tell(self.awareness.set_local_state(self._state, 0.0))

    def _tell(self, entries: list[AwarenessEntry]) -> None:
        if entries:
            self.send(AwarenessUpdate(encode_awareness(entries)).encode())

    def join(self) -> bytes:
        """Get level with the room; return what it had."""
        self.send(ASK_ALL, NOTHING)
        while not self.synced:
            self.take()
        assert self.heard
        self.heard.clear()
        return self.document

    def take(self) -> None:
        """Take in the next message."""
        for said in decode(self.receive()):
            if isinstance(said, Update | SyncStep2):
                self.heard.append(said.update)
                self._news.append(said.update)
                self.synced = self.synced or isinstance(said, SyncStep2)
            elif isinstance(said, AwarenessUpdate):
                changed = self.awareness.apply(_entries(said.payload), 0.0)
                self.met.update(entry.client for entry in changed)
                self._tell(changed)
            else:
                assert isinstance(said, SyncStep1), said

    def edit(self) -> bytes:
        """Change something, and return the update. Its being here is renewed, too."""
        update = insert(self.client, self.edits, b"honest")
        self.edits += 1
        self._news.append(update)
        self.show()
        self.send(Update(update).encode())
        return update

    def hears(self, last: bytes) -> list[bytes]:
        """Read until this update; return those before it."""
        until = time.monotonic() + DEADLINE
        while last not in self.heard:
            assert time.monotonic() < until, "it never came, though keepalives did"
            self.take()
        before = self.heard[: self.heard.index(last)]
        self.heard = self.heard[len(before) + 1 :]
        return before


class Pair:
    """Two well-behaved members of one room, to whom nothing bad may happen."""

    def __init__(self, port: int, path: str) -> None:
        self.port = port
        self.path = path
        self.members = [Witness(port, path, PAIR + i) for i in range(2)]
        for member in self.members:
            member.join()
            member.show()
        self.here = {member.client: '"honest"' for member in self.members}
        self.settle()

    def meet(self, client: int) -> None:
        """Wait until both have seen somebody."""
        for member in self.members:
            while client not in member.met:
                member.take()

    def hear(self, last: bytes) -> list[bytes]:
        """Wait until both have heard this update; return what both heard before it."""
        one, two = (member.hears(last) for member in self.members)
        assert one == two
        return one

    def settle(self) -> None:
        """Wait until each sees both of them and nobody else."""
        for member in self.members:
            while member.present != self.here:
                member.take()

    def sync(self) -> None:
        """An edit of each arrives at the other, and nothing else has happened."""
        self.settle()
        for author, reader in (self.members, self.members[::-1]):
            update = author.edit()
            assert reader.hears(update) == [], "an update of the offender reached the others"
        for member in self.members:
            assert member.heard == []
            assert member.present == self.here

    def welcome(self) -> None:
        """Somebody joins, and gets the whole document, byte by byte, and who is here."""
        joiner = Witness(self.port, self.path, 3)
        assert joiner.join() == self.members[0].document
        while joiner.present != self.here:
            joiner.take()
        joiner.sock.close()


def everything(updates: Iterable[bytes]) -> bytes:
    """One document of all these."""
    document = StructStore()
    for update in updates:
        document.add(update)
    return document.encode()


def prefixes(data: bytes) -> Iterator[bytes]:
    """All of it that are cut short, but the empty one."""
    return (data[:size] for size in range(1, len(data)))
