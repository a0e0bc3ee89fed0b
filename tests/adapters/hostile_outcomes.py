"""What the tables of `test_hostile` are written in: what an offender does, and what comes of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import TypeAlias

from hostile import Client, Pair, Witness, close, everything
from yupdates import ASK_ALL, insert

from ycore.messages import SyncStep2, Update

ROOM = "/room"
"""The room that is attacked."""

# ---- outcomes: what a case comes to, for the offender and for the pair in its room

Outcome: TypeAlias = Callable[[Pair, Client], None]
Act: TypeAlias = Callable[[Client], None]

_markers = count(2**32)
"""Client ids for edits that show how far the server has read."""


def answered(status: int, says: str = "") -> Outcome:
    """One HTTP response with this status, and then the end."""

    def check(pair: Pair, offender: Client) -> None:
        head, body = offender.read_answer()
        assert head.startswith(b"HTTP/1.1 %d " % status), head
        lines = head.lower().split(b"\r\n")
        assert b"connection: close" in lines
        length = next(line for line in lines if line.startswith(b"content-length: "))
        assert body == b"" or length == b"content-length: %d" % len(body)
        assert says.encode() in head + body

    return check


def closed(code: int | None, says: str = "") -> Outcome:
    """One close frame with this code (None is none), a reason that says this, and then the end."""

    def check(pair: Pair, offender: Client) -> None:
        payload = offender.ended()
        assert payload is not None, "the server closed without a word"
        reason = payload[2:].decode()
        assert (int.from_bytes(payload[:2], "big") or None) == code, reason
        assert re.search(says, reason), reason
        assert reason or not says

    return check


def dropped(pair: Pair, offender: Client) -> None:
    """The WebSocket ends without a word."""
    assert offender.ended() is None


def unanswered(pair: Pair, offender: Client) -> None:
    """The connection ends without an answer to a request."""
    assert offender.read_answer() == (b"", b"")


def vanished(pair: Pair, offender: Client) -> None:
    """The offender is gone, with nobody to tell anything."""
    assert offender.sock.fileno() == -1


def relayed(*updates: bytes, whole: bool = True) -> Outcome:
    """The pair hears these updates; if not `whole`, it may be in other pieces. The offender stays.

    It closes in the end, which is answered in kind.
    """

    def check(pair: Pair, offender: Client) -> None:
        marker = insert(next(_markers), 0)
        offender.send(Update(marker).encode())
        heard = pair.hear(marker)
        if whole:
            assert heard == list(updates)
        else:
            assert pair.members[0].document == everything([*updates, marker])
        offender.sock.sendall(close(1000))
        closed(1000)(pair, offender)

    return check


stays = relayed()
"""The offender stays, and nothing of what it sent reaches anybody."""


def opens(path: str) -> Outcome:
    """A room is opened under this path like any other, and keeps what it is given."""

    def check(pair: Pair, offender: Client) -> None:
        update = insert(next(_markers), 0)
        offender.send(Update(update).encode(), ASK_ALL)
        while SyncStep2(update).encode() != offender.receive():
            pass
        again = Witness(offender.port, path, 5)
        assert again.join() == update

    return check


# ---- what an offender does


@dataclass(frozen=True)
class Case:
    """One thing that an offender does."""

    name: str
    act: Act
    outcome: Outcome
    path: str | None = ROOM
    """The room it is in, and shows itself in, before; if None, it has not even asked for one."""
    shows: bool = True


def raw(data: bytes | Act) -> Act:
    return data if callable(data) else lambda client: client.sock.sendall(data)


def say(data: bytes | Act) -> Act:
    return data if callable(data) else lambda client: client.send(data)


def piecewise(data: bytes) -> Act:
    """Each byte in a segment of its own."""

    def act(client: Client) -> None:
        for i in range(len(data)):
            client.sock.sendall(data[i : i + 1])

    return act


def then_reset(data: bytes) -> Act:
    def act(client: Client) -> None:
        client.sock.sendall(data)
        client.reset()

    return act


def then_end(data: bytes) -> Act:
    def act(client: Client) -> None:
        client.sock.sendall(data)
        client.end()

    return act
