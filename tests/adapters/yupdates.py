"""The smallest updates there are, made by hand."""

from __future__ import annotations

from ycore import Awareness
from ycore.awareness import encode_awareness
from ycore.lib0 import write_var_string, write_var_uint, write_var_uint8_array
from ycore.messages import AwarenessUpdate, SyncStep1, SyncStep2, Update

ASK_ALL = SyncStep1(b"\x00").encode()
"""The frame of a client that has nothing: the first thing it sends."""

NOTHING = SyncStep2(b"\x00\x00").encode()
"""The frame of a client with nothing to offer, in answer to the server's SyncStep1."""

EMPTY_ROOM = SyncStep1(b"\x00").encode()
"""How a member is greeted in an empty room."""


def insert(client: int, clock: int, data: bytes = b"x") -> bytes:
    """An update: one binary value, behind the client's one before it."""
    out = bytearray(b"\x01\x01")
    write_var_uint(out, client)
    write_var_uint(out, clock)
    if clock:
        out.append(0x83)
        write_var_uint(out, client)
        write_var_uint(out, clock - 1)
    else:
        out += b"\x03\x01"
        write_var_string(out, "t")
    write_var_uint8_array(out, data)
    return bytes(out + b"\x00")


def edit(client: int, clock: int, data: bytes = b"x") -> bytes:
    """The frame of that update."""
    return Update(insert(client, clock, data)).encode()


def here(client: int, state: str = '{"name":"x"}') -> bytes:
    """The frame by which a client shows itself."""
    entries = Awareness(client).set_local_state(state, now=0.0)
    entries = [entry._replace(clock=1) for entry in entries]
    return AwarenessUpdate(encode_awareness(entries)).encode()
