"""A real server among enemies: whatever one connection does, the others notice nothing of it.

One process of `ycore serve` goes through all of the cases below, and so do two pairs of
well-behaved members, one in the room that is attacked and one in another. After each case both
pairs edit, and hear just that; the offender got the answer that the table says; and the server has
logged nothing.

A case is a line of a table: a name, what is sent, and what comes of it. The tables say what the
bytes are put into: nothing (`HTTP`), an open WebSocket (`FRAMES`), a WebSocket message
(`MESSAGES`), a sync message (`VECTORS`, and all of `hostile_updates`), an awareness message
(`AWARENESS`). `SHAPES` is for what takes more than one message, or than one connection.

    YCORE_BACKEND=trio .venv/bin/pytest tests/adapters/test_hostile.py     on the other event loop
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from build import uint
from hostile import (
    DEADLINE,
    PAIR,
    Client,
    Pair,
    Witness,
    all_closed_after,
    awareness,
    close,
    fragments,
    frame,
    message,
    prefixes,
    shown,
    upgrade,
)
from hostile_http import HTTP
from hostile_outcomes import (
    ROOM,
    Act,
    Case,
    Outcome,
    closed,
    dropped,
    piecewise,
    raw,
    relayed,
    say,
    stays,
    then_end,
    then_reset,
    vanished,
)
from hostile_updates import ACCEPTED, BIG, IGNORED, LIMITS, MALFORMED, TOO_MUCH, authors
from yupdates import ASK_ALL, NOTHING, edit, insert

from ycore.messages import AwarenessUpdate, SyncStep1, SyncStep2, Update
from ycore.updates import encode_state_vector

# ---- WebSocket frames, on an open connection

HELLO = edit(6, 0, b"hello")
MAX_MESSAGE = 64 * 2**20
MiB = bytes(2**20)

FRAMES: dict[str, tuple[bytes | Act, Outcome]] = {
    "not masked": (b"\x82\x01x", closed(1002, "unmasked")),
    "empty and not masked": (b"\x82\x00", closed(1002, "unmasked")),
    "ping not masked": (b"\x89\x00", closed(1002, "unmasked")),
    "close not masked": (b"\x88\x02\x03\xe8", closed(1002, "unmasked")),
    **{
        f"reserved bit {bit:#x}": (frame(0x82 | bit, ASK_ALL), closed(1002, "Reserved bit"))
        for bit in (0x10, 0x20, 0x40, 0x70)
    },
    "reserved bit of a ping": (frame(0xC9), closed(1002, "Reserved bit")),
    "reserved bit of a close": (frame(0xC8, b"\x03\xe8"), closed(1002, "Reserved bit")),
    "reserved bit of a fragment": (
        frame(0x02, b"\x00") + frame(0xC0, b"\x00"),
        closed(1002, "Reserved bit"),
    ),
    **{
        f"opcode {opcode:#x}": (frame(0x80 | opcode, b"x"), closed(1002, "opcode"))
        for opcode in (3, 4, 5, 6, 7, 0xB, 0xC, 0xD, 0xE, 0xF)
    },
    "ping in fragments": (frame(0x09, b"x"), closed(1002, "fragment")),
    "pong in fragments": (frame(0x0A, b"x"), closed(1002, "fragment")),
    "close in fragments": (frame(0x08, b"\x03\xe8"), closed(1002, "fragment")),
    "long ping": (frame(0x89, b"x" * 126), closed(1002, "125")),
    "long pong": (frame(0x8A, b"x" * 126), closed(1002, "125")),
    "long close": (close(1000, b"x" * 124), closed(1002, "125")),
    "ping of 2^62 bytes": (frame(0x89, length=b"\x7f\x40" + bytes(7)), closed(1002, "125")),
    "continues nothing": (frame(0x80, b"x"), closed(1002, "CONTINUATION")),
    "continues nothing, and goes on": (frame(0x00, b"x"), closed(1002, "CONTINUATION")),
    "continues what has ended": (message(ASK_ALL) + frame(0x80, b"x"), closed(1002)),
    "message in a message": (frame(0x02, b"x") + message(HELLO), closed(1002, "CONTINUATION")),
    "text in a message": (frame(0x02, b"x") + frame(0x81, b"x"), closed(1002, "CONTINUATION")),
    "text": (frame(0x81, b"hello"), closed(1003, "binary")),
    "empty text": (frame(0x81), closed(1003, "binary")),
    "JSON": (frame(0x81, b'{"type":"sync"}'), closed(1003, "binary")),
    "half a text": (frame(0x01, b"hel"), closed(1003, "binary")),
    "100 KB of text": (frame(0x81, b"x" * 100_000), closed(1003, "binary")),
    "text not UTF-8": (frame(0x81, b"\xff"), closed(1007)),
    "text that ends in mid-character": (frame(0x81, b"\xe2\x82"), closed(1007)),
    "edit as text": (frame(0x81, HELLO), closed(1003, "binary")),
    **{
        f"close code {code}": (close(code), closed(1002, "CLOSE"))
        for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
    **{f"good close code {code}": (close(code), closed(code)) for code in (1000, 1009, 3000, 4999)},
    "close without a code": (frame(0x88), closed(None)),
    "half a close code": (frame(0x88, b"\x03"), closed(1002, "1 byte")),
    "close reason not UTF-8": (close(1000, b"\xff\xfe"), closed(1007, "reason")),
    "close reason cut in mid-character": (close(1000, b"\xf0\x9f\x98"), closed(1007, "reason")),
    "close in a message": (frame(0x02, b"\x00") + close(1000), closed(1000)),
    "edit after a close": (close(1000) + message(HELLO), closed(1000)),
    "garbage after a close": (close(1000) + b"\xff" * 1000, closed(1000)),
    "close after a close": (close(1000) + close(4000), closed(1000)),
    "ping after a close": (close(1001) + frame(0x89, b"x"), closed(1001)),
    "2^63 bytes": (frame(0x82, length=b"\x7f\x80" + bytes(7)), closed(1002, "MSB")),
    "2^64-1 bytes": (frame(0x82, length=b"\x7f" + b"\xff" * 8), closed(1002, "MSB")),
    "5 bytes in 2": (frame(0x82, b"hello", length=b"\x7e\x00\x05"), closed(1002, "2 bytes")),
    "125 bytes in 2": (frame(0x82, bytes(125), length=b"\x7e\x00\x7d"), closed(1002, "2 bytes")),
    "5 bytes in 8": (frame(0x82, b"hello", length=b"\x7f" + bytes(7) + b"\5"), closed(1002, "8")),
    "65,535 bytes in 8": (
        frame(0x82, length=b"\x7f" + (65535).to_bytes(8, "big")),
        closed(1002, "8 bytes"),
    ),
    "2^63-1 bytes, of which 10 come": (
        then_end(frame(0x82, bytes(10), length=b"\x7f\x7f" + b"\xff" * 7)),
        closed(4413, str(MAX_MESSAGE)),
    ),
    "too long": (
        lambda client: client.send(bytes(MAX_MESSAGE + 1)),
        closed(4413, str(MAX_MESSAGE)),
    ),
    "too long in fragments": (
        lambda client: client.sock.sendall(frame(0x02) + frame(0x00, MiB) * 64 + frame(0x00, b"x")),
        closed(4413, str(MAX_MESSAGE)),
    ),
    "half a frame, then the end": (then_end(message(HELLO)[:-1]), dropped),
    "half a header, then the end": (then_end(b"\x82"), dropped),
    "half a message, then the end": (then_end(frame(0x02, HELLO)), dropped),
    "half a frame, then a reset": (then_reset(message(HELLO)[:-1]), vanished),
    "half a mask, then a reset": (then_reset(message(HELLO)[:4]), vanished),
    "half a message, then a reset": (then_reset(frame(0x02, HELLO)), vanished),
    "nothing, then the end": (then_end(b""), dropped),
    "nothing, then a reset": (then_reset(b""), vanished),
    "close, then a reset": (then_reset(close(1000)), vanished),
    "bad frame, then a reset": (then_reset(b"\xff" * 10), vanished),
    "ping flood": (frame(0x89, b"x" * 125) * 5000, stays),
    "empty ping flood": (frame(0x89) * 20_000, stays),
    "pongs that nobody asked for": (frame(0x8A, b"x" * 125) * 5000, stays),
    "empty message flood": (message(b"") * 10_000, closed(4400, "past the end")),
    "empty fragments flood": (
        fragments(HELLO[:5], *[b""] * 20_000, HELLO[5:]),
        relayed(insert(6, 0, b"hello")),
    ),
    "empty fragments, and nothing else": (fragments(*[b""] * 20_000), closed(4400, "past the end")),
    "a message in single bytes": (
        fragments(*(bytes([byte]) for byte in edit(6, 1, b"x" * 5000))),
        relayed(insert(6, 1, b"x" * 5000)),
    ),
    "pings among fragments": (
        frame(0x89, b"x").join(
            [frame(0x02), *(frame(0x00, bytes([byte])) for byte in edit(6, 2)), frame(0x80)]
        ),
        relayed(insert(6, 2)),
    ),
    "byte by byte": (
        piecewise(message(edit(6, 3, b"slow" * 100))),
        relayed(insert(6, 3, b"slow" * 100)),
    ),
}

# ---- y-protocols messages

LATE = insert(7, 0, b"must not arrive")
GOOD = Update(LATE).encode()
BAD: dict[str, tuple[bytes, str]] = {
    "nothing": (b"\x00", "past the end"),
    "unknown sync step": (b"\x00\x03\x00", "unknown sync message 3"),
    "cut": (GOOD[:-1], "past the end"),
    "bad update": (b"\x00\x02\x01\x00", "past the end"),
    "bad state vector": (b"\x00\x00\x01\x05", "declares 5 clients"),
    "bad awareness": (b"\x01\x01\x05", "declares 5 entries"),
    "bad reason": (b"\x02\x00\x01\xff", "UTF-8"),
}

MESSAGES: dict[str, tuple[bytes | Act, Outcome]] = {
    "empty": (b"", closed(4400, "past the end")),
    **{
        f"{size} bytes of an edit": (cut, closed(4400))
        for size, cut in enumerate(prefixes(GOOD), 1)
    },
    **{
        f"sync step {step}": (b"\x00" + uint(step) + b"\x00", closed(4400, f"sync message {step} "))
        for step in (3, 4, 127, 128, 2**53 - 1)
    },
    "update that is shorter than it says": (b"\x00\x02\x7f" + LATE, closed(4400, "past the end")),
    "update that is longer than it says": (
        b"\x00\x02" + uint(len(LATE) - 1) + LATE,
        closed(4400),
    ),
    "update of 2^53-1 bytes": (b"\x00\x02" + uint(2**53 - 1), closed(4400, "past the end")),
    "update of 2^53 bytes": (b"\x00\x02\x80\x80\x80\x80\x80\x80\x80\x10", closed(4400, "2\\^53-1")),
    "awareness of 2^53-1 bytes": (b"\x01" + uint(2**53 - 1), closed(4400, "past the end")),
    "type 2^53": (b"\x80\x80\x80\x80\x80\x80\x80\x10", closed(4400, "2\\^53-1")),
    "type in 9 bytes": (b"\x80" * 8 + b"\x00", closed(4400, "8 bytes")),
    "varint bomb": (b"\xff" * 200_000, closed(4400, "8 bytes")),
    "varint bomb as length": (b"\x00\x02" + b"\xff" * 200_000, closed(4400, "8 bytes")),
    "varint bomb as update": (Update(b"\xff" * 200_000).encode(), closed(4400, "8 bytes")),
    "200 KB of zeros": (bytes(200_000), closed(4400)),
    # lib0's varUint may be longer than it needs to be: JavaScript reads it, and so do we
    "overlong type": (b"\x80\x80\x00\x02\x02\x00\x00", stays),
    "overlong step": (b"\x00\x82\x00\x02\x00\x00", stays),
    "overlong length": (b"\x00\x02\x82\x80\x80\x80\x80\x80\x80\x00\x00\x00", stays),
    # several messages in one frame: all or nothing
    **{f"good, then {name}": (GOOD + bad, closed(4400, says)) for name, (bad, says) in BAD.items()},
    **{
        f"{name}, then good": (bad + GOOD, closed(4400))
        for name, (bad, _) in BAD.items()
        if name != "cut"
    },
    "500 good, then bad": (GOOD * 500 + b"\xff", closed(4400, "past the end")),
    "awareness, then bad": (shown(60_000, '"late"') + b"\xff", closed(4400, "past the end")),
    "1,001 messages": (GOOD * 1001, closed(4413, "1000 messages")),
    "100,000 SyncStep1": (ASK_ALL * 100_000, closed(4413, "1000 messages")),
    "1,000 SyncStep1": (ASK_ALL * 1000, stays),
    "an edit, a thousand times": (edit(6, 4) * 1000, relayed(insert(6, 4))),
    "two edits": (edit(6, 5) + edit(6, 6), relayed(insert(6, 5), insert(6, 6))),
    "an edit, then an unknown message": (edit(6, 7) + b"\x55rest", relayed(insert(6, 7))),
    # what clients don't say, but may
    "permission denied": (b"\x02\x00\x02no", stays),
    "permission denied, in bad UTF-8": (b"\x02\x00\x01\xff", closed(4400, "UTF-8")),
    "permission denied, cut": (b"\x02\x00\x05no", closed(4400, "past the end")),
    "permission denied, then an edit": (b"\x02\x00\x02no" + edit(6, 8), relayed(insert(6, 8))),
    "permission granted": (b"\x02\x01", stays),
    "half a permission": (b"\x02", stays),
    "unknown permission": (b"\x02\x7f\xff\xff", stays),
    **{
        f"type {kind}": (uint(kind) + b"\xff" * 100, stays)
        for kind in (4, 5, 10, 66, 102, 127, 128, 2**32, 2**53 - 1)
    },
    "unknown type, and nothing": (b"\x64", stays),
    "1 MB of an unknown type": (b"\x64" + MiB, stays),
    "unknown messages flood": (lambda client: client.send(*[b"\x64"] * 10_000), stays),
    "query": (b"\x03", stays),
    "query with a payload": (b"\x03\xff\xff\xff", stays),
    "hocuspocus": (b"\x04room\x00\x00\x01\x00", stays),
    "nothing to offer, flood": (lambda client: client.send(*[NOTHING] * 10_000), stays),
}

# ---- state vectors, in a SyncStep1

VECTORS: dict[str, tuple[bytes | Act, Outcome]] = {
    "no bytes": (b"", closed(4400, "past the end")),
    "2^32-1 clients": (bytes.fromhex("ffffffff0f"), closed(4413, "clients")),
    "2^53-1 clients": (uint(2**53 - 1), closed(4413, "clients")),
    "client twice": (bytes.fromhex("0201010100"), closed(4400, "twice")),
    "client twice, once overlong": (bytes.fromhex("020101810001"), closed(4400, "twice")),
    "cut": (bytes.fromhex("0207818080"), closed(4400)),
    "trailing byte": (bytes.fromhex("01070500"), closed(4400, "left over")),
    "clock 2^53": (bytes.fromhex("01078080808080808010"), closed(4400, "2\\^53-1")),
    "client in 9 bytes": (b"\x01" + b"\x80" * 8 + b"\x00\x00", closed(4400, "8 bytes")),
    "twice at once": (lambda client: client.send(ASK_ALL, ASK_ALL), stays),
    "clocks from the future": (bytes.fromhex("0106ffffffff0f"), stays),
    "100,000 clients": (encode_state_vector(dict.fromkeys(range(100_000), 1)), stays),
    "100,000 times the same client": (uint(100_000) + b"\x07\x01" * 100_000, closed(4400, "twice")),
}

# ---- awareness


ME = 4000

AWARENESS: dict[str, tuple[bytes | Act, Outcome]] = {
    "no bytes": (b"", closed(4400, "past the end")),
    "nobody": (awareness(), stays),
    "2^32-1 entries": (bytes.fromhex("ffffffff0f"), closed(4400, "entries")),
    "an entry too many": (b"\x02" + awareness((ME, 1, "1"))[1:], closed(4400)),
    "an entry too few": (awareness((ME, 1, "1")) + b"\x00", closed(4400, "left over")),
    **{
        f"{size} bytes of it": (cut, closed(4400))
        for size, cut in enumerate(prefixes(awareness((ME, 1, '{"a":1}'))), 1)
    },
    **{
        f"state {bad!r}": (awareness((ME, 1, bad)), closed(4400, "JSON"))
        for bad in ("", "{", "NaN", "{'a':1}", "undefined", "nulll", "[1,]", '{"x":-Infinity}')
    },
    "state in bad UTF-8": (b"\x01\x07\x01\x03\x22\xff\x22", closed(4400, "UTF-8")),
    "100,000 brackets": (awareness((ME, 1, "[" * 60_000)), closed(4400, "nests deeper")),
    "257 brackets": (awareness((ME, 1, "[" * 257 + "]" * 257)), closed(4400, "nests deeper")),
    "clock 2^53-1": (awareness((ME, 2**53 - 1, "1")), stays),
    "clock 2^52+1": (awareness((ME, 2**52 + 1, "1")), stays),
    "clock 2^53": (
        b"\x01\x07\x80\x80\x80\x80\x80\x80\x80\x10\x011",
        closed(4400, "2\\^53-1"),
    ),
    "client 2^53": (b"\x01\x80\x80\x80\x80\x80\x80\x80\x10\x01\x011", closed(4400, "2\\^53-1")),
    "good, then bad": (awareness((ME, 1, "1"), (ME + 1, 1, "NaN")), closed(4400, "JSON")),
    "clock 2^52": (awareness((ME, 2**52, "1")), stays),
    "clock 0": (awareness((ME, 0, "1")), stays),
    "clocks that fall": (awareness(*((ME, clock, "1") for clock in range(1000, 0, -1))), stays),
    "clocks that rise": (awareness(*((ME, clock, "1") for clock in range(1000))), stays),
    "gone and back": (
        awareness(*((ME, clock, "1" if clock % 2 else "null") for clock in range(1000))),
        stays,
    ),
    "client 2^53-1": (awareness((2**53 - 1, 1, "1")), stays),
    "the clients of the pair": (
        awareness((PAIR, 2**40, '"evil"'), (PAIR + 1, 2**40, '"evil"')),
        stays,
    ),
    "the clients of the pair, behind its own": (
        awareness((ME, 1, "1"), (PAIR, 2**40, '"evil"'), (PAIR + 1, 2**40, '"evil"')),
        stays,
    ),
    "the pair is gone": (awareness((PAIR, 2**40, "null"), (PAIR + 1, 2**40, "null")), stays),
    "the pair is gone, at every clock": (
        awareness(*((PAIR, clock, "null") for clock in range(4000))),
        stays,
    ),
    "strangers are gone": (awareness(*((client, 1, "null") for client in range(4000))), stays),
    "10,000 clients": (awareness(*((10_000 + i, 1, "1") for i in range(10_000))), stays),
    "10,001 clients": (
        awareness(*((10_000 + i, 1, "1") for i in range(10_001))),
        closed(4413, "10001"),
    ),
    "100,000 clients": (
        awareness(*((10_000 + i, 1, "1") for i in range(100_000))),
        closed(4413, "100000 entries"),
    ),
    "64 KB of state": (awareness((ME, 1, '"' + "x" * 65_000 + '"')), stays),
    "1 MB of state": (awareness((ME, 1, '"' + "x" * 2**20 + '"')), closed(4413, "awareness state")),
    "64 states of 64 KB": (
        awareness(*((10_000 + i, 1, '"' + "x" * 65_000 + '"') for i in range(64))),
        stays,
    ),
    "1,000 messages": (
        lambda client: client.send(*(shown(ME, str(clock), clock) for clock in range(1, 1001))),
        stays,
    ),
}

# ---- what many connections do together, or one for long


CROWD = 200
"""Connections at a time; not so many that a limit on those of one address stops them."""


def many(number: int, first: bytes, last: Callable[[Client], None]) -> Act:
    """As many connections, which all say the same, and then all end in the same way."""

    def act(offender: Client) -> None:
        clients = [Client(offender.port) for _ in range(number)]
        for client in clients:
            client.sock.sendall(first)
        for client in clients:
            last(client)

    return act


def hang_up(client: Client) -> None:
    client.sock.close()


def reset_once_in(client: Client) -> None:
    client.read_head()
    client.reset()


def open_rooms(offender: Client) -> None:
    """A room for each of many members, who are gone at once."""
    for number in range(CROWD):
        Client(offender.port).open(f"/new-{number}").reset()


def refused_with(code: int) -> Callable[[Client], None]:
    def last(client: Client) -> None:
        payload = client.ended()
        assert payload is not None
        assert int.from_bytes(payload[:2], "big") == code

    return last


def crowd_in(offender: Client) -> None:
    """Among 65 who are as many as they may be each, an honest client joins, edits and stays."""
    crowd = [Client(offender.port).open("/crowd") for _ in range(65)]
    for number, client in enumerate(crowd):
        ids = range(10**6 + 64 * number, 10**6 + 64 * (number + 1))
        client.send(AwarenessUpdate(awareness(*((i, 1, "1") for i in ids))).encode())
        client.sock.sendall(frame(0x89, b"done"))
        while client.next_frame() != (0x8A, b"done"):
            pass
    author, reader = (Witness(offender.port, "/crowd", PAIR + i) for i in range(2))
    for member in author, reader:
        member.join()
        member.show()
    assert reader.hears(author.edit()) == []
    assert author.hears(reader.edit()) == []


def write_past_a_deaf_one(offender: Client) -> None:
    """Two write 16 MB to each other, which a third gets as well, and does not read."""
    deaf = Client(offender.port).open("/past")
    deaf.send(ASK_ALL)
    author, reader = (Witness(offender.port, "/past", client) for client in (8, 9))
    author.join()
    reader.join()
    for clock in range(16):
        much = insert(8, clock, MiB)
        author.send(Update(much).encode())
        assert reader.hears(much) == []
    deaf.reset()


def fill(offender: Client) -> None:
    """A document becomes too large: by what it costs, made of many authors."""
    filler = Client(offender.port).open("/full")
    first = 0
    while True:
        filler.send(Update(authors(LIMITS.sections, first=first)).encode())
        filler.sock.sendall(frame(0x89, b"done"))
        while (said := filler.next_frame()) != (0x8A, b"done"):
            assert said is not None
            if said[0] == 0x88:
                assert said[1].startswith((4413).to_bytes(2, "big") + b"the document is full")
                return
        first += LIMITS.sections


SHAPES: dict[str, tuple[Act, Outcome]] = {
    f"{CROWD} silent connections, reset": (many(CROWD, b"", Client.reset), stays),
    f"{CROWD} half requests, reset": (many(CROWD, upgrade()[:-2], Client.reset), stays),
    f"{CROWD} half requests, closed": (many(CROWD, upgrade()[:-2], hang_up), stays),
    f"{CROWD} members, reset": (many(CROWD, upgrade(), reset_once_in), stays),
    f"{CROWD} members, each in a new room, reset": (open_rooms, stays),
    f"{CROWD} members, all bad": (
        many(CROWD, upgrade() + message(shown(ME, "1")) + message(b"\xff"), refused_with(4400)),
        stays,
    ),
    "65 members with 64 ids each": (crowd_in, stays),
    "a document that is full": (fill, stays),
    "never reads what others write": (write_past_a_deaf_one, stays),
    # To come, with limits on connections: one too many, of one address or in all (503 or 429).
    # To come, once the server can be told lower limits: a member, or a room, too many (1013).
    "never reads pongs": (then_reset(frame(0x89, b"x" * 125) * 5000), vanished),
    "edits, and is gone": (then_reset(message(NOTHING) * 5000), vanished),
    "asks for the document 6,000 times": (raw(message(ASK_ALL) * 6000), closed(1008, "too often")),
    "asks who is here 6,000 times": (raw(message(b"\x03") * 6000), closed(1008, "too often")),
    "asks for the document 500 times, and is gone": (then_reset(message(ASK_ALL) * 500), vanished),
    "asks who is here 500 times, and is gone": (then_reset(message(b"\x03") * 500), vanished),
}


# ---- all of them


def cases() -> Iterator[Case]:
    for name, (data, outcome) in HTTP.items():
        yield Case(f"http: {name}", raw(data), outcome, path=None)
    for name, (data, outcome) in FRAMES.items():
        yield Case(f"frames: {name}", raw(data), outcome)
    for name, (data, outcome) in MESSAGES.items():
        yield Case(f"messages: {name}", say(data), outcome)
    for kind in Update, SyncStep2:
        how = f"as {kind.__name__}"
        for table, code in ((MALFORMED, 4400), (TOO_MUCH, 4413)):
            for name, (data, says) in table.items():
                yield Case(f"updates: {name}, {how}", say(kind(data).encode()), closed(code, says))
        for name, data in IGNORED.items():
            yield Case(f"updates: {name}, {how}", say(kind(data).encode()), stays)
        for name, updates in ACCEPTED.items():
            yield Case(
                f"updates: {name}, {how}",
                lambda client, kind=kind, updates=updates: client.send(
                    *(kind(data).encode() for data in updates)
                ),
                relayed(*updates),
                path=f"/{how} {name}".replace(" ", "%20"),
            )
    for name, (data, outcome) in VECTORS.items():
        act = data if callable(data) else say(SyncStep1(data).encode())
        yield Case(f"vectors: {name}", act, outcome)
    for name, (data, outcome) in AWARENESS.items():
        act = data if callable(data) else say(AwarenessUpdate(data).encode())
        yield Case(f"awareness: {name}", act, outcome, shows=False)
    for name, (act, outcome) in SHAPES.items():
        yield Case(f"shapes: {name}", act, outcome)
    for name, data in BIG.items():
        yield Case(
            f"shapes: {name}",
            say(Update(data).encode()),
            relayed(data, whole=False),
            path=f"/{name}".replace(" ", "%20"),
        )


DISPUTED: dict[str, pytest.MarkDecorator] = {}
"""Where the server does something else than these tables, or its documents, say."""


_offenders = count(5000)
"""Awareness ids: each offender has one of its own."""


class World:
    """A server process and its well-behaved clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "log"
        self.seen = 0
        """How much of the log was looked at."""
        self.cases = 0
        """How many it has outlived."""
        self.hurt = False
        self.serve()
        self.pair = Pair(self.port, ROOM)
        self.other = Pair(self.port, "/another%20room")

    def serve(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ycore_adapters.cli", "serve"),
                    *("--port", "0", "--data", self.data, "--fsync", "never"),
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        with self.process.stdout as out:
            line = out.readline()
        found = re.search(r":(\d+),", line)
        assert found, f"the server did not start: {line} {self.log.read_text()}"
        self.port = int(found[1])

    def check(self) -> None:
        """Nobody was hurt."""
        assert self.process.poll() is None, f"the server died: {self.log.read_text()}"
        self.pair.sync()
        self.other.sync()
        self.check_log()

    def welcomes_now(self) -> bool:
        """Now and then somebody joins who wants to have all."""
        self.cases += 1
        return self.cases % 20 == 0

    def check_log(self) -> None:
        """Nothing new was logged: neither a traceback nor what would fill a disk. Once a minute it
        may say that somebody seems to speak another protocol."""
        logged = self.log.read_bytes()[self.seen :]
        self.seen += len(logged)
        lines = [line for line in logged.splitlines() if b"does not speak y-websocket" not in line]
        assert lines == [], logged.decode()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], World]]:
    """Gives the world; a new one once a case has hurt the last, so that the next may be judged."""
    made: list[World] = []

    def world() -> World:
        if not made or made[-1].hurt:
            made.append(World(tmp_path_factory.mktemp("world")))
        return made[-1]

    with all_closed_after():
        yield world
    for each in made:
        each.close()


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            id=case.name,
        )
        for case in cases()
    ],
)
def test_an_offender_gets_what_it_deserves_and_nobody_else_notices(
    case: Case, worlds: Callable[[], World]
) -> None:
    world = worlds()
    world.hurt = True
    with all_closed_after():
        pair = world.pair if case.path in (None, ROOM) else Pair(world.port, case.path)
        offender = Client(world.port)
        if case.path:
            offender.open(case.path)
            if case.shows:
                offender.send(shown(me := next(_offenders), '"offender"'))
                pair.meet(me)
        case.act(offender)
        case.outcome(pair, offender)
        offender.sock.close()
        pair.sync()
        world.check()
        if pair is not world.pair or world.welcomes_now():
            pair.welcome()
    world.hurt = False


def test_afterwards_all_is_stored_and_served_again(worlds: Callable[[], World]) -> None:
    """It goes down in order, has written nowhere but into its folder, and comes up again."""
    world = worlds()
    world.hurt = True
    world.pair.welcome()
    document = world.pair.members[0].document
    with all_closed_after():
        for half in (b"", upgrade()[:-2]):
            Client(world.port).sock.sendall(half)
        world.process.send_signal(signal.SIGTERM)
        for member in world.pair.members + world.other.members:
            closed(1001, "shutting down")(world.pair, member)
        assert world.process.wait(DEADLINE) == 0
        world.check_log()
        assert {path.name for path in world.folder.iterdir()} == {"data", "log"}
        assert all(path.is_file() for path in world.data.iterdir())
        world.serve()
        assert Witness(world.port, ROOM, 3).join() == document
