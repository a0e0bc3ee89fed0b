"""One connection, without I/O: what it answers to requests, frames and nonsense.

Every conversation is held three times: its bytes whole, one at a time, and cut at random places.
The peer must do the same each time.
"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

import pytest
import wsproto
from wsproto.events import BytesMessage, CloseConnection, Event, Pong
from ycore_adapters._peer import Peer, PeerState, frame_message
from ycore_adapters.hooks import Access, Request

from ycore import CloseCode

Feed: TypeAlias = Callable[[bytes], Iterator[bytes]]


def _whole(data: bytes) -> Iterator[bytes]:
    yield data


def _bytewise(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        yield data[at : at + 1]


def _at_random(seed: int) -> Feed:
    def feed(data: bytes) -> Iterator[bytes]:
        cuts = sorted(random.Random(seed).choices(range(1, len(data)), k=min(5, len(data) - 1)))
        for begin, end in pairwise([0, *cuts, len(data)]):
            if begin < end:
                yield data[begin:end]

    return feed


@pytest.fixture(
    params=[_whole, _bytewise, *map(_at_random, range(4))],
    ids=["whole", "bytewise", *(f"random{seed}" for seed in range(4))],
)
def feed(request: pytest.FixtureRequest) -> Feed:
    how: Feed = request.param
    return how


@dataclass
class Talk:
    """What became of a connection."""

    peer: Peer
    requests: list[Request] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    output: bytes = b""
    turns: int = 0
    """How often others could have had one in between."""

    def say(self, feed: Feed, data: bytes) -> None:
        """Feed it bytes, and accept what asks to be accepted."""
        for piece in feed(data):
            events = self.peer.receive(piece)
            while events or self.peer.has_more:
                if not events:
                    self.turns += 1
                    events += self.peer.go_on()
                    continue
                event = events.pop(0)
                if isinstance(event, Request):
                    self.requests.append(event)
                    events += self.peer.accept(event.subprotocol_for(Access()))
                else:
                    self.messages.append(event)
            self.output += self.peer.take_output()

    def is_in(self, *states: PeerState) -> bool:
        return self.peer.state in states

    @property
    def status(self) -> int:
        return int(self.output.split(b" ", 2)[1])

    def heard(self) -> list[Event]:
        """What a client makes of the output. It must be all good."""
        _, _, frames = self.output.partition(b"\r\n\r\n")
        assert self.status == 101
        connection = wsproto.connection.Connection(wsproto.ConnectionType.CLIENT)
        connection.receive_data(frames)
        return list(connection.events())


def request(
    target: str = "/r", *, method: str = "GET", version: str = "1.1", drop: str = "", **extra: str
) -> bytes:
    """A request to upgrade. `drop` leaves a header out; `extra` adds some or overwrites them."""
    headers = {
        "Host": "h",
        "Connection": "keep-alive, Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    headers |= {name.replace("_", "-"): value for name, value in extra.items()}
    headers.pop(drop, None)
    lines = [f"{method} {target} HTTP/{version}", *(f"{n}: {v}" for n, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def plain(target: str = "/", *, method: str = "GET", version: str = "1.1") -> bytes:
    return f"{method} {target} HTTP/{version}\r\nHost: h\r\n\r\n".encode()


def frame(first: int, payload: bytes = b"") -> bytes:
    """A masked frame with this first byte. The mask is zero, so that the payload can be read."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 2**16:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    return bytes([first]) + length + bytes(4) + payload


def message(data: bytes) -> bytes:
    return frame(0x82, data)


def fragments(*parts: bytes) -> bytes:
    """A message in these parts, the last of which may be still to come: it is not final."""
    return b"".join(frame(0x00 if i else 0x02, part) for i, part in enumerate(parts))


def final(part: bytes) -> bytes:
    return frame(0x80, part)


def ping(payload: bytes = b"?") -> bytes:
    return frame(0x89, payload)


CLOSE = frame(0x88, b"\x03\xe8bye")


# ---- requests


def test_an_upgrade_is_accepted_as_the_rfc_says(feed: Feed) -> None:
    talk = Talk(Peer())
    talk.say(feed, request("/r?tok=a%20b&x"))
    assert talk.peer.state is PeerState.OPEN
    assert talk.status == 101
    assert b"sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n" in talk.output.lower()
    assert b"sec-websocket-protocol" not in talk.output.lower()
    assert b"sec-websocket-extensions" not in talk.output.lower()
    [asked] = talk.requests
    assert (asked.room, asked.path, asked.query) == ("r", "/r", "tok=a%20b&x")
    assert (b"host", b"h") in asked.headers


@pytest.mark.parametrize(
    ("offered", "selected"),
    [("yjs", b"yjs"), ("first, second", b"first"), ("", None)],
)
def test_the_first_subprotocol_offered_is_selected(
    feed: Feed, offered: str, selected: bytes | None
) -> None:
    """Browsers fail the connection otherwise."""
    talk = Talk(Peer())
    talk.say(feed, request(Sec_WebSocket_Protocol=offered))
    assert talk.status == 101
    lines = talk.output.lower().split(b"\r\n")
    found = [line for line in lines if line.startswith(b"sec-websocket-protocol:")]
    assert found == ([b"sec-websocket-protocol: " + selected] if selected else [])


def test_an_extension_is_not_accepted(feed: Feed) -> None:
    """Frames are made once for all members: each would need its own."""
    talk = Talk(Peer())
    talk.say(feed, request(Sec_WebSocket_Extensions="permessage-deflate"))
    assert talk.status == 101
    assert b"sec-websocket-extensions" not in talk.output.lower()


@pytest.mark.parametrize(
    ("prefix", "path", "room"),
    [
        ("/", "/r", "r"),
        ("/", "/a/b", "a/b"),
        ("/", "/a%2Fb", "a/b"),
        ("/", "/a%2fb", "a/b"),
        ("/", "/%C3%A4", "ä"),
        ("/", "/a/b%20c%3Fx=1", "a/b c?x=1"),
        ("/", "/a+b", "a+b"),
        ("/", "/100%", "100%"),
        ("/", "//", "/"),
        ("/", "/../x", "../x"),
        ("/", "/health", "health"),
        ("/yjs/", "/yjs/r", "r"),
        ("/yjs/", "/yjs/yjs/r", "yjs/r"),
        ("/a/b/", "/a/b/c/d", "c/d"),
    ],
)
def test_the_path_behind_the_prefix_names_the_room(prefix: str, path: str, room: str) -> None:
    talk = Talk(Peer(prefix=prefix))
    talk.say(_whole, request(path))
    assert [asked.room for asked in talk.requests] == [room]
    assert [asked.path for asked in talk.requests] == [path]


# Odd requests that are good all the same.
ODD: dict[str, bytes] = {
    "absolute target": request("http://h/r"),
    "absolute target, other scheme": request("WSS://user@[::1]:80/r?x"),
    "lines that end in LF only": request().replace(b"\r\n", b"\n"),
    "folded header": request(Connection="keep-alive,\r\n\t Upgrade"),
    "lists over several lines": request(
        Connection="x\r\nConnection: UPGRADE", Upgrade="h2c,WebSocket"
    ),
    "empty elements": request(Connection=",, upgrade ,", Upgrade=", websocket"),
    "obsolete characters": request(Cookie="\xe4\x01"),
    "as many headers as may be": request(**{f"X{n}": "" for n in range(95)}),
    "key with bits to spare": request(Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZR=="),
    "HTTP/1.9": request(version="1.9"),
    "empty Host": request(Host=""),
    "Expect": request(Expect="100-continue"),
}


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
def test_an_odd_request_is_accepted_where_the_rfc_allows_it(feed: Feed, data: bytes) -> None:
    talk = Talk(Peer())
    talk.say(feed, data + message(b"x"))
    assert talk.status == 101, talk.output
    assert [asked.path for asked in talk.requests] == ["/r"]
    assert talk.messages == [b"x"]


HUGE = "x" * 20_000
CLIENT_HELLO = bytes.fromhex("1603010200010001fc0303") + bytes(range(256))

# A request and the status of its answer; then what else must be in it.
ANSWERS: dict[str, tuple[bytes, int, bytes]] = {
    "health": (plain("/health"), 200, b"ok\n"),
    "health with a query": (plain("/health?x"), 200, b"ok\n"),
    "health, HTTP/1.0": (plain("/health", version="1.0"), 200, b"ok\n"),
    "health, HEAD": (plain("/health", method="HEAD"), 200, b""),
    "no upgrade": (plain("/yjs/r"), 426, b"Upgrade: websocket\r\n"),
    "unknown path": (plain("/other"), 404, b""),
    "root": (plain("/"), 404, b""),
    "post": (plain("/yjs/r", method="POST"), 405, b"Allow: GET, HEAD\r\n"),
    "post to health": (plain("/health", method="POST"), 405, b""),
    "no room": (request("/yjs/"), 404, b"connect to /yjs/"),
    "outside the prefix": (request("/r"), 404, b"connect to /yjs/"),
    "prefix without slash": (request("/yjsr"), 404, b""),
    "room not UTF-8": (request("/yjs/%FF"), 400, b"UTF-8"),
    "no key": (request("/yjs/r", drop="Sec-WebSocket-Key"), 400, b""),
    "no version": (request("/yjs/r", drop="Sec-WebSocket-Version"), 400, b""),
    "old version": (request("/yjs/r", Sec_WebSocket_Version="8"), 426, b"Version: 13\r\n"),
    "two versions": (request("/yjs/r", Sec_WebSocket_Version="13, 8"), 426, b"Version: 13\r\n"),
    "version twice": (
        request("/yjs/r", Sec_WebSocket_Version="13\r\nSec-WebSocket-Version: 13"),
        426,
        b"Version: 13\r\n",
    ),
    "empty key": (request("/yjs/r", Sec_WebSocket_Key=""), 400, b"16 bytes"),
    "key of 15 bytes": (request("/yjs/r", Sec_WebSocket_Key="eHh4eHh4eHh4eHh4eHh4"), 400, b""),
    "key of 17 bytes": (request("/yjs/r", Sec_WebSocket_Key="eHh4eHh4eHh4eHh4eHh4eHg="), 400, b""),
    "key not base64": (request("/yjs/r", Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZ$=="), 400, b""),
    "key in the other base64": (
        request("/yjs/r", Sec_WebSocket_Key="dGhlIHNhbXBsZS-_b25jZQ=="),
        400,
        b"",
    ),
    "key not ASCII": (request("/yjs/r", Sec_WebSocket_Key="\xe4" * 24), 400, b""),
    "two keys": (
        request(
            "/yjs/r",
            Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ),
        400,
        b"one Sec-WebSocket-Key",
    ),
    "no connection header": (request("/yjs/r", drop="Connection"), 400, b""),
    "other upgrade": (request("/yjs/r", Upgrade="websocket2"), 426, b"Upgrade: websocket\r\n"),
    "h2c": (request("/yjs/r", Upgrade="h2c"), 426, b"Upgrade: websocket\r\n"),
    "upgrade by POST": (request("/yjs/r", method="POST"), 405, b"Allow: GET, HEAD\r\n"),
    "upgrade over HTTP/1.0": (request("/yjs/r", version="1.0"), 400, b""),
    "the same without host": (request("/yjs/r", version="1.0", drop="Host"), 400, b""),
    "no host": (request("/yjs/r", drop="Host"), 400, b""),
    "host not IDNA": (request("/yjs/r", Host="\xff"), 400, b""),
    "two hosts": (request("/yjs/r", Host="h\r\nHost: h"), 400, b""),
    "host with a path": (request("/yjs/r", Host="h/x"), 400, b"Host"),
    "subprotocol no token": (request("/yjs/r", Sec_WebSocket_Protocol="a, b c"), 400, b""),
    "subprotocol not ASCII": (request("/yjs/r", Sec_WebSocket_Protocol="\xff"), 400, b""),
    "TLS": (CLIENT_HELLO, 400, b""),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, b""),
    "HTTP/0.9": (b"GET /health\r\n\r\n", 400, b""),
    "empty lines": (b"\r\n\r\n", 400, b""),
    # Where a request ends must be beyond doubt, or another may be smuggled in it.
    "upgrade with a body": (request("/yjs/r", Content_Length="1") + b"x", 400, b"no body"),
    "upgrade in chunks": (request("/yjs/r", Transfer_Encoding="chunked") + b"0\r\n\r\n", 400, b""),
    "length and chunks": (
        plain("/health")[:-2] + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
        b"either",
    ),
    "two lengths": (request("/yjs/r", Content_Length="1\r\nContent-Length: 2"), 400, b""),
    "list of lengths": (request("/yjs/r", Content_Length="1, 2"), 400, b""),
    "signed length": (request("/yjs/r", Content_Length="+1"), 400, b""),
    "hexadecimal length": (request("/yjs/r", Content_Length="0x1"), 400, b""),
    "endless length": (request("/yjs/r", Content_Length="9" * 30), 400, b""),
    "other coding": (request("/yjs/r", Transfer_Encoding="gzip, chunked"), 501, b""),
    "two codings": (
        request("/yjs/r", Transfer_Encoding="chunked\r\nTransfer-Encoding: chunked"),
        501,
        b"",
    ),
    "space before a colon": (request("/yjs/r", **{"X ": "x"}), 400, b""),
    "header without a name": (request("/yjs/r")[:-2] + b": x\r\n\r\n", 400, b""),
    "folded first header": (b"GET /health HTTP/1.1\r\n Host: h\r\n\r\n", 400, b""),
    "NUL in a header": (request("/yjs/r", X="\0"), 400, b""),
    "NUL in the target": (request("/yjs/\0r"), 400, b""),
    "CR in a header": (request("/yjs/r", X="a\rb"), 400, b""),
    "CR in the target": (request("/yjs/\rr"), 400, b""),
    "space in the target": (request("/yjs/ r"), 400, b""),
    # Targets that are no path.
    "asterisk": (request("*"), 400, b"path"),
    "options of the server": (plain("*", method="OPTIONS"), 405, b"Allow: GET, HEAD\r\n"),
    "tunnel": (plain("other:443", method="CONNECT"), 405, b"Allow: GET, HEAD\r\n"),
    "relative": (request("yjs/r"), 400, b"path"),
    "absolute without a host": (request("http:///yjs/r"), 400, b"path"),
    "absolute without a path": (request("http://h"), 404, b""),
    "other scheme": (request("ftp://h/yjs/r"), 400, b"path"),
    "absolute health": (plain("http://h/health"), 200, b"ok\n"),
    "bad request line": (b"GET\r\n\r\n", 400, b""),
    "bad header": (b"GET /yjs/r HTTP/1.1\r\nHost: h\r\nno colon\r\n\r\n", 400, b""),
    "headers that don't end": (b"GET /yjs/r HTTP/1.1\r\nX: " + HUGE.encode(), 431, b""),
    "too long a header": (request("/yjs/r", Cookie=HUGE), 431, b""),
    "too long a path": (request("/yjs/" + HUGE), 431, b""),
    "too long a name": (request("/yjs/r", **{HUGE: "x"}), 431, b""),
    "too long a method": (plain("/health", method=HUGE), 431, b""),
    "too many headers": (request("/yjs/r", **{f"X{n}": "" for n in range(96)}), 431, b""),
    "absurdly many headers": (request("/yjs/r")[:-2] + b"x:\r\n" * 3500 + b"\r\n", 431, b""),
}


@pytest.mark.parametrize(("data", "status", "holds"), ANSWERS.values(), ids=ANSWERS)
def test_what_is_no_good_upgrade_gets_a_short_answer(
    feed: Feed, data: bytes, status: int, holds: bytes
) -> None:
    talk = Talk(Peer(prefix="/yjs/"))
    talk.say(feed, data)
    assert talk.requests == []
    assert talk.peer.state is PeerState.CLOSING
    assert talk.peer.has_said_all
    assert talk.status == status, talk.output
    head, _, body = talk.output.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert b"connection: close" in lines
    assert holds in talk.output
    if not data.startswith(b"HEAD"):
        assert b"content-length: %d" % len(body) in lines
        assert body.endswith(b"\n")
        assert body.isascii()
    talk.say(feed, request())  # what follows is ignored
    assert talk.output == head + b"\r\n\r\n" + body


def test_a_request_that_takes_too_long_is_answered(feed: Feed) -> None:
    for data in (b"G", request()[:-1]):
        talk = Talk(Peer())
        talk.say(feed, data)
        talk.peer.time_out()
        talk.output += talk.peer.take_output()
        assert talk.status == 408
        assert talk.peer.has_said_all
    talk = Talk(Peer())
    talk.say(feed, request())
    talk.peer.time_out()  # it did not
    assert talk.peer.state is PeerState.OPEN
    assert talk.peer.take_output() == b""


def test_an_upgrade_may_be_refused(feed: Feed) -> None:
    peer = Peer()
    asked = [event for piece in feed(request()) for event in peer.receive(piece)]
    assert len(asked) == 1
    assert peer.state is PeerState.ASKED
    peer.refuse(503, "not now")
    assert peer.take_output().startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert peer.has_said_all


# ---- frames

# What a client sends, the messages the server reads in it, and what it answers.
OPENING: dict[str, tuple[bytes, list[bytes], list[Event]]] = {
    "nothing": (b"", [], []),
    "message": (message(b"one"), [b"one"], []),
    "empty message": (message(b""), [b""], []),
    "two messages": (message(b"one") + message(b"two"), [b"one", b"two"], []),
    "fragments": (
        fragments(b"one ", b"") + final(b"message"),
        [b"one message"],
        [],
    ),
    "ping": (ping(), [], [Pong(payload=b"?")]),
    "pings": (ping(b"1") + ping(b"2"), [], [Pong(payload=b"1"), Pong(payload=b"2")]),
    "ping among fragments": (
        fragments(b"a") + ping(b"!") + final(b"b"),
        [b"ab"],
        [Pong(payload=b"!")],
    ),
    "pong": (frame(0x8A, b"?") + message(b"x"), [b"x"], []),
    "longest": (message(b"x" * 1000), [b"x" * 1000], []),
}


@pytest.mark.parametrize(("data", "messages", "answer"), OPENING.values(), ids=OPENING)
def test_messages_are_read_and_pings_answered(
    feed: Feed, data: bytes, messages: list[bytes], answer: list[Event]
) -> None:
    """Also if they come together with the request."""
    talk = Talk(Peer(max_message_bytes=1000))
    talk.say(feed, request() + data)
    assert talk.messages == messages
    assert talk.heard() == answer
    assert talk.peer.state is PeerState.OPEN


def test_of_many_pings_that_come_together_some_are_answered_and_the_latest() -> None:
    pings = [b"%d" % i for i in range(1000)]
    talk = Talk(Peer())
    talk.say(_whole, request())
    talk.say(_whole, b"".join(map(ping, pings)) + message(b"x") + CLOSE)
    *pongs, close = talk.heard()
    assert pongs == [Pong(payload=payload) for payload in [*pings[:9], pings[-1]]]
    assert isinstance(close, CloseConnection)
    assert talk.messages == [b"x"]


TOO_BIG = message(b"x" * 1001)

# What a client sends that ends the conversation, and the code of our close frame.
ENDING: dict[str, tuple[bytes, int | None]] = {
    "text": (frame(0x81, b"text"), 1003),
    "half a text": (frame(0x01, b"te"), 1003),
    "too big": (TOO_BIG, 4413),
    "too big in fragments": (
        fragments(b"x" * 600, b"x" * 600),
        4413,
    ),
    "not masked": (b"\x82\x01x", 1002),
    "reserved bit": (frame(0xC2, b"x"), 1002),
    "reserved opcode": (frame(0x83), 1002),
    "reserved control opcode": (frame(0x8B), 1002),
    "long ping": (ping(b"x" * 126), 1002),
    "fragmented ping": (frame(0x09), 1002),
    "continues nothing": (final(b""), 1002),
    "message in a message": (frame(0x02) * 2, 1002),
    "close": (CLOSE, 1000),
    "close without a code": (frame(0x88), None),
    "close with a code of its own": (frame(0x88, b"\x0f\xa0"), 4000),
    "close with the last code": (frame(0x88, b"\x13\x87"), 4999),
    "close with a long reason": (frame(0x88, b"\x03\xe8" + b"x" * 123), 1000),
    "close with too long a reason": (frame(0x88, b"\x03\xe8" + b"x" * 124), 1002),
    "close with half a code": (frame(0x88, b"\x03"), 1002),
    **{
        f"close with code {code}": (frame(0x88, code.to_bytes(2, "big")), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)
    },
    "close with a bad reason": (frame(0x88, b"\x03\xe8\xff"), 1007),
    "close with half a character": (frame(0x88, b"\x03\xe8\xe2\x82"), 1007),
    "a second request": (plain("/health"), 1002),
    "a handshake for TLS": (CLIENT_HELLO, 1002),
    "length longer than need be": (b"\x82\xfe\x00\x01" + bytes(5), 1002),
    "absurd length": (b"\x82\xff\xff" + bytes(7 + 4), 1002),
    "long frame": (b"\x82\xff\x7f" + bytes(7 + 4), 4413),
}


@pytest.mark.parametrize(("data", "code"), ENDING.values(), ids=ENDING)
def test_what_ends_the_conversation_is_answered_by_one_close_frame(
    feed: Feed, data: bytes, code: int | None
) -> None:
    """With the right code; messages before it are read, and nothing after it has any effect."""
    talk = Talk(Peer(max_message_bytes=1000))
    talk.say(feed, request() + message(b"before") + data)
    assert talk.messages == [b"before"]
    assert talk.peer.state in (PeerState.CLOSING, PeerState.DONE)
    [close] = talk.heard()
    assert isinstance(close, CloseConnection)
    assert close.code == (1005 if code is None else code)
    said = talk.output
    talk.say(feed, message(b"after") + ping() + CLOSE + b"nonsense")
    talk.peer.close(CloseCode.NORMAL, "again")
    talk.peer.ping()
    assert talk.messages == [b"before"]
    assert talk.output + talk.peer.take_output() == said
    assert talk.peer.has_said_all


def test_too_big_a_message_is_refused_before_it_was_read_whole() -> None:
    for data in (
        TOO_BIG[:4],  # not even the mask has come
        TOO_BIG[:8],
        b"\x82\xff" + (2**40).to_bytes(8, "big"),
        fragments(b"x" * 600, b"x" * 600)[:-601],
    ):
        talk = Talk(Peer(max_message_bytes=1000))
        talk.say(_whole, request() + data)
        [close] = talk.heard()
        assert close == CloseConnection(code=4413, reason="a message is at most 1000 bytes")


@pytest.mark.parametrize(
    ("reason", "sent"),
    [
        ("bye", "bye"),
        ("", ""),
        ("x" * 200, "x" * 123),
        ("ä" * 100, "ä" * 61),
        ("€" * 41, "€" * 41),
        ("x" * 121 + "€", "x" * 121),
        ("x" * 120 + "😀", "x" * 120),
    ],
)
def test_we_close_in_order(feed: Feed, reason: str, sent: str | None) -> None:
    """What still comes is ignored; the other side's answer ends it. Reasons are cut to fit."""
    talk = Talk(Peer())
    talk.say(feed, request())
    talk.peer.close(CloseCode.GOING_AWAY, reason)
    talk.peer.close(CloseCode.NORMAL, "again")
    talk.output += talk.peer.take_output()
    [close] = talk.heard()
    assert close == CloseConnection(code=1001, reason=sent)
    talk.say(feed, message(b"late") + ping())
    assert talk.is_in(PeerState.CLOSING)
    assert not talk.peer.has_said_all
    talk.say(feed, CLOSE)
    assert talk.is_in(PeerState.DONE)
    assert talk.messages == []
    assert len(talk.heard()) == 1


@pytest.mark.parametrize(
    "said", [b"", request()[:20], plain("/health"), request(), request() + CLOSE]
)
def test_the_end_of_the_stream_ends_all(feed: Feed, said: bytes) -> None:
    talk = Talk(Peer())
    talk.say(feed, said)
    assert talk.peer.receive(b"") == []
    assert talk.peer.state is PeerState.DONE
    assert talk.peer.receive(b"") == []


def test_a_ping_of_ours(feed: Feed) -> None:
    peer = Peer()
    peer.ping()
    assert peer.take_output() == b""  # not yet
    talk = Talk(peer)
    talk.say(feed, request())
    peer.ping()
    talk.output += peer.take_output()
    assert [type(event) for event in talk.heard()] == [wsproto.events.Ping]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_a_framed_message_is_what_a_client_reads(size: int) -> None:
    message = bytes(range(256)) * 256
    client = wsproto.connection.Connection(wsproto.ConnectionType.CLIENT)
    client.receive_data(b"".join(frame_message(message[:size])))
    parts = [event for event in client.events() if isinstance(event, BytesMessage)]
    assert b"".join(part.data for part in parts) == message[:size]
    assert parts[-1].message_finished


def kept_by(make: Callable[[], object], number: int) -> float:
    """How many bytes each thing that is made keeps."""
    make()  # what is made once for all
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        made = [make() for _ in range(number)]
        return (tracemalloc.get_traced_memory()[0] - before) / len(made)
    finally:
        tracemalloc.stop()


def test_a_connection_costs_little_before_it_is_accepted_and_after() -> None:
    """Until then it has not even asked for anything; afterwards nothing may be kept of how it did,
    but what the application is told."""

    def fed(data: bytes) -> Talk:
        talk = Talk(Peer())
        talk.say(_at_random(0) if data else _whole, data)
        talk.requests.clear()
        talk.output = b""
        return talk

    long = request(Cookie="x" * 16_000)
    assert kept_by(lambda: fed(b""), 100) < 6_000
    assert kept_by(lambda: fed(request()[:-1]), 100) < 6_000
    assert kept_by(lambda: fed(long[:-1]), 100) < 6_000 + 2 * 16_384
    assert kept_by(lambda: fed(request()), 100) < 6_000
    assert kept_by(lambda: fed(long), 100) < 6_000


@pytest.mark.parametrize("part", [b"", b"xy"], ids=["empty", "tiny"])
def test_a_message_in_many_fragments_costs_no_more_than_its_bytes(part: bytes) -> None:
    """Each may be nearly nothing: what is kept must count by what is allowed, not by the piece."""
    talk = Talk(Peer())
    talk.say(_whole, request() + fragments(b"begin"))
    thousand = frame(0x00, part) * 1000
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(10):
            talk.say(_whole, thousand)
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert talk.peer.state is PeerState.OPEN
    assert kept < 2 * 10_000 * len(part) + 20_000


def test_messages_are_bytes() -> None:
    """Not a view on, or a piece of, what the socket gave: the core keeps slices of them."""
    talk = Talk(Peer())
    peer = talk.peer
    talk.say(_whole, request())
    [event] = peer.receive(message(b"x"))
    assert type(event) is bytes
