"""What the benchmarks are about: somebody's typing, rooms and connections."""

from __future__ import annotations

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage
from ycore_adapters._peer import Peer

from ycore import Room
from ycore.lib0 import write_var_uint
from ycore.messages import SyncStep1

AUTHOR = 3_000_000_000  # ids of real clients are random and 32 bits long

ASK_ALL = SyncStep1(b"\x00").encode()

REQUEST = (
    b"GET /doc HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def keystroke(clock: int, origin: int | None, author: int = AUTHOR) -> bytes:
    """A letter, as a client of Yjs sends it: 24 bytes or so."""
    out = bytearray(b"\x01\x01")
    write_var_uint(out, author)
    write_var_uint(out, clock)
    if origin is None:
        out += b"\x04\x01\x04text"
    else:
        out.append(0x84)
        write_var_uint(out, author)
        write_var_uint(out, origin)
    return bytes(out + b"\x01x\x00")


def keystrokes(count: int, author: int = AUTHOR) -> list[bytes]:
    """Each behind the last one."""
    return [keystroke(clock, clock - 1 if clock else None, author) for clock in range(count)]


def room_of(members: int) -> Room:
    """A room with members that are synced."""
    room = Room("doc")
    for _ in range(members):
        member, _ = room.join(now=0)
        room.receive(member, ASK_ALL, now=0)
    return room


def open_peer() -> Peer:
    peer = Peer()
    peer.receive(REQUEST)
    peer.accept()
    peer.take_output()
    return peer


def masked(messages: list[bytes]) -> list[bytes]:
    """The frames of a client."""
    client = Connection(ConnectionType.CLIENT)
    return [client.send(BytesMessage(data)) for data in messages]
