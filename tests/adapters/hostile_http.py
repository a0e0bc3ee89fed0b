"""Requests that are none, or not a WebSocket's, and rooms with odd names."""

from __future__ import annotations

from hostile import http, message, upgrade
from hostile_outcomes import (
    Act,
    Outcome,
    answered,
    closed,
    dropped,
    opens,
    piecewise,
    then_end,
    then_reset,
    unanswered,
    vanished,
)
from yupdates import ASK_ALL

HEALTH = http("GET /health HTTP/1.1", "Host: h")
LONG = "x" * 20_000


def named(path: str) -> tuple[bytes, Outcome]:
    return upgrade(f"GET {path} HTTP/1.1"), opens(path)


HTTP: dict[str, tuple[bytes | Act, Outcome]] = {
    # request lines
    "nothing but an empty line": (b"\r\n\r\n", answered(400)),
    "empty line first": (b"\r\n" + HEALTH, answered(400)),
    "one word": (http("GET"), answered(400)),
    "HTTP/0.9": (http("GET /room"), answered(400)),
    "two spaces": (http("GET  /health HTTP/1.1", "Host: h"), answered(400)),
    "tabs": (http("GET\t/health\tHTTP/1.1", "Host: h"), answered(400)),
    "four words": (http("GET /health x HTTP/1.1", "Host: h"), answered(400)),
    "space first": (http(" GET /health HTTP/1.1", "Host: h"), answered(400)),
    "NUL first": (b"\x00" + HEALTH, answered(400)),
    "NUL in the path": (upgrade("GET /ro\x00om HTTP/1.1"), answered(400)),
    "control in the path": (upgrade("GET /ro\x7fom HTTP/1.1"), answered(400)),
    "path not ASCII": (upgrade("GET /\xe4 HTTP/1.1"), answered(400)),
    "no slash": (upgrade("GET room HTTP/1.1"), answered(400)),
    "absolute URL": (upgrade("GET http://h/absolute HTTP/1.1"), opens("/absolute")),
    "star": (upgrade("GET * HTTP/1.1"), answered(400)),
    "long path": (upgrade(f"GET /{LONG} HTTP/1.1"), answered(431)),
    "long query": (upgrade(f"GET /room?{LONG} HTTP/1.1"), answered(431)),
    "line that never ends": (b"GET /" + b"x" * 100_000, answered(431)),
    "lower-case method": (upgrade("get /room HTTP/1.1"), answered(405, "Allow: GET, HEAD")),
    "odd method": (upgrade("G@T /room HTTP/1.1"), answered(400)),
    "POST": (upgrade("POST /room HTTP/1.1"), answered(405, "Allow: GET, HEAD")),
    "HEAD": (upgrade("HEAD /room HTTP/1.1"), answered(405, "Allow: GET")),
    "PUT": (http("PUT /room HTTP/1.1", "Host: h"), answered(405)),
    "TRACE": (http("TRACE /room HTTP/1.1", "Host: h", "Cookie: secret"), answered(405)),
    "OPTIONS *": (http("OPTIONS * HTTP/1.1", "Host: h"), answered(405)),
    "CONNECT": (http("CONNECT evil:443 HTTP/1.1", "Host: evil"), answered(405)),
    "long method": (http(f"{'G' * 1000} / HTTP/1.1", "Host: h"), answered(405)),
    "HTTP/1.0": (upgrade("GET /room HTTP/1.0"), answered(400)),
    "HTTP/0.0": (upgrade("GET /room HTTP/0.0"), answered(505)),
    "HTTP/9.9": (upgrade("GET /room HTTP/9.9"), answered(505)),
    "HTTP/11": (upgrade("GET /room HTTP/11"), answered(400)),
    "no HTTP": (upgrade("GET /room ICAP/1.1"), answered(400)),
    "HTTP/2": (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        answered(505),
    ),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)), answered(400)),
    "SSH": (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", answered(400)),
    "WebSocket frame": (then_end(message(ASK_ALL)), unanswered),
    "noise": (bytes(range(255, -1, -1)) * 100, answered(431)),
    # lines and headers
    "bare LF": (HEALTH.replace(b"\r\n", b"\n"), answered(200)),  # RFC 9112 section 2.2 allows it
    "bare CR": (then_end(HEALTH.replace(b"\r\n", b"\r")), unanswered),
    "no colon": (upgrade("GET /room HTTP/1.1", "nonsense"), answered(400)),
    "no name": (upgrade("GET /room HTTP/1.1", ": x"), answered(400)),
    "space before the colon": (upgrade("GET /room HTTP/1.1", "X : y"), answered(400)),
    "folded first header": (http("GET /room HTTP/1.1", " Host: h"), answered(400)),
    "NUL in a name": (upgrade("GET /room HTTP/1.1", "X\x00: y"), answered(400)),
    "NUL in a value": (upgrade("GET /room HTTP/1.1", "X: y\x00"), answered(400)),
    "CR in a value": (upgrade("GET /room HTTP/1.1", "X: y\rUpgrade: h2c"), answered(400)),
    "long header": (upgrade("GET /room HTTP/1.1", f"Cookie: {LONG}"), answered(431)),
    "header that never ends": (b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000, answered(431)),
    "headers that never end": (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000, answered(431)),
    "3,000 headers": (upgrade("GET /room HTTP/1.1", *["A: b"] * 3000), answered(431)),
    "10,000 folds": (upgrade("GET /room HTTP/1.1", "A: b", *[" x"] * 10_000), answered(431)),
    # what a body is, which proxies and servers have disagreed about
    "length and chunked": (
        http("GET /room HTTP/1.1", "Host: h", "Content-Length: 4", "Transfer-Encoding: chunked")
        + b"0\r\n\r\n"
        + HEALTH,
        answered(400),
    ),
    "upgrade with a length": (upgrade(Content_Length="5"), answered(400, "no body")),
    "upgrade with length 0": (upgrade(Content_Length="0"), answered(400, "no body")),
    "upgrade, chunked": (upgrade(Transfer_Encoding="chunked"), answered(400, "no body")),
    "two lengths": (
        http("POST / HTTP/1.1", "Host: h", "Content-Length: 5", "Content-Length: 6"),
        answered(400),
    ),
    "two lengths in one": (
        http("POST / HTTP/1.1", "Host: h", "Content-Length: 5, 6"),
        answered(400),
    ),
    "negative length": (http("POST / HTTP/1.1", "Host: h", "Content-Length: -1"), answered(400)),
    "signed length": (http("POST / HTTP/1.1", "Host: h", "Content-Length: +1"), answered(400)),
    "huge length": (
        http("POST / HTTP/1.1", "Host: h", f"Content-Length: {'9' * 5000}"),
        answered(400),
    ),
    "chunked twice": (
        upgrade("GET /room HTTP/1.1", *["Transfer-Encoding: chunked"] * 2),
        answered(501),
    ),
    "other coding": (upgrade(Transfer_Encoding="gzip, chunked"), answered(501)),
    "coding in disguise": (upgrade(Transfer_Encoding="\x0bchunked"), answered(400)),
    "body of a POST": (
        http("POST /room HTTP/1.1", "Host: h", "Content-Length: 1000000") + bytes(1_000_000),
        answered(405),
    ),
    "request in a body": (
        http("GET /health HTTP/1.1", "Host: h", f"Content-Length: {len(HEALTH)}") + HEALTH * 2,
        answered(200, "ok"),
    ),
    "two requests at once": (HEALTH + upgrade(), answered(200, "ok")),
    # the handshake
    "no host": (upgrade(Host=None), answered(400)),
    "two hosts": (upgrade("GET /room HTTP/1.1", "Host: other"), answered(400)),
    "host not ASCII": (upgrade(Host="\xff"), answered(400)),
    "no upgrade": (upgrade(Upgrade=None), answered(426, "Upgrade: websocket")),
    "another upgrade": (upgrade(Upgrade="h2c"), answered(426, "Upgrade: websocket")),
    "nearly the upgrade": (upgrade(Upgrade="websocket2"), answered(426)),
    "no connection": (upgrade(Connection=None), answered(400)),
    "another connection": (upgrade(Connection="close"), answered(400)),
    "no key": (upgrade(Sec_WebSocket_Key=None), answered(400)),
    "no version": (upgrade(Sec_WebSocket_Version=None), answered(400)),
    "version 8": (upgrade(Sec_WebSocket_Version="8"), answered(426, "Sec-WebSocket-Version: 13")),
    "version 014": (upgrade(Sec_WebSocket_Version="014"), answered(426)),
    "subprotocol not ASCII": (upgrade(Sec_WebSocket_Protocol="\xff"), answered(400)),
    "empty key": (upgrade(Sec_WebSocket_Key=""), answered(400)),
    "key no base64": (upgrade(Sec_WebSocket_Key="!" * 24), answered(400)),
    "key too short": (upgrade(Sec_WebSocket_Key="c2hvcnQ="), answered(400)),
    "two keys": (
        upgrade("GET /room HTTP/1.1", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
        answered(400),
    ),
    "two versions": (upgrade("GET /room HTTP/1.1", "Sec-WebSocket-Version: 8"), answered(426)),
    # connections that break
    "half a request, then the end": (then_end(upgrade()[:50]), unanswered),
    "nothing, then the end": (then_end(b""), unanswered),
    "nothing, then a reset": (then_reset(b""), vanished),
    "half a request, then a reset": (then_reset(upgrade()[:50]), vanished),
    "a request, then a reset": (then_reset(HEALTH), vanished),
    "an upgrade, then a reset": (then_reset(upgrade()), vanished),
    "an upgrade, then the end": (then_end(upgrade()), dropped),
    "an upgrade and garbage": (upgrade() + b"\xff" * 1000, closed(1002, "opcode")),
    "an upgrade and half a frame": (then_end(upgrade() + message(ASK_ALL)[:5]), dropped),
    "an upgrade and an edit not masked": (upgrade() + b"\x82\x02ab", closed(1002, "unmasked")),
    "an upgrade and another": (upgrade() + upgrade(), closed(1002)),
    "an upgrade byte by byte": (
        piecewise(upgrade() + message(b"\xff")),
        closed(4400, "past the end"),
    ),
    # names of rooms
    "no room": (upgrade("GET / HTTP/1.1"), answered(404, "your-room-name")),
    "no room but a query": (upgrade("GET /?room HTTP/1.1"), answered(404, "your-room-name")),
    "name not UTF-8": (upgrade("GET /%FF HTTP/1.1"), answered(400, "UTF-8")),
    "name with half a character": (upgrade("GET /%E2%82 HTTP/1.1"), answered(400, "UTF-8")),
    "name with an overlong slash": (upgrade("GET /..%C0%AF.. HTTP/1.1"), answered(400, "UTF-8")),
    "name with a surrogate": (upgrade("GET /%ED%A0%80 HTTP/1.1"), answered(400, "UTF-8")),
    "dots": named("/../../../../etc/passwd"),
    "escaped dots": named("/%2e%2e%2f%2e%2e%2fpasswd"),
    "escaped slashes": named("/..%2f..%2fx"),
    "backslashes": named("/..%5c..%5cx"),
    "one dot": named("/."),
    "two dots": named("/.."),
    "only slashes": named("//////"),
    "absolute path": named("//etc/passwd"),
    "NUL": named("/%00"),
    "NUL inside": named("/a%00.b"),
    "line ends": named("/a%0d%0aX:%20y"),
    "terminal escapes": named("/%1b%5b2J%07"),
    "quotes": named("/'%22%60$(x);--"),
    "right to left": named("/%E2%80%AE%F0%9F%98%80"),
    "broken escapes": named("/%%zz%4%"),
    "twice escaped": named("/%252e%252e%252f"),
    "name of the lock": named("/.lock"),
    "5,000 characters": named("/" + "n" * 5000),
    "5,000 escapes": named("/" + "%2f" * 5000),
    "2,500 emoji": named("/" + "%F0%9F%98%80" * 1250),
    "health": named("/health"),
}
