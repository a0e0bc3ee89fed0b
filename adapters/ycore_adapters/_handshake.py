"""What makes a request a good opening handshake, and what is answered to it: RFC 6455 section 4.2.

h11 has read the request, and so seen to the syntax of HTTP: no NUL or line break in a header, no
space before its colon, one Host, one Content-Length. What it finds wrong is answered 400, 431 (too
long) or 501 (an unknown Transfer-Encoding). Beyond that:

    400  malformed, ambiguous about where it ends, or no good handshake
    404  neither a room nor /health
    405  neither GET nor HEAD
    408  not all of it came in time
    426  a room, but no WebSocket was asked for, or one of another version
    429  too many connections from this address      (before it was read)
    431  too long, or too many headers
    503  too many connections (before it was read), or the server is going down
    505  another HTTP than 1.x

Every answer ends the connection, so what follows a request is never taken for another one.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

from wsproto.utilities import generate_accept_token

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
"""Names in lower case."""

_HOST: Final = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")
"""The characters of a Host, RFC 9112 section 3.2. Nothing here depends on which it is."""
_TOKEN: Final = re.compile(r"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")
_ABSOLUTE: Final = re.compile(r"(?:http|ws)s?://[^/?#]+", re.IGNORECASE)


class BadRequest(Exception):
    """A request that is answered with this status, and no WebSocket."""

    def __init__(
        self, text: str, *, status: int = 400, headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> None:
        super().__init__(text)
        self.text = text
        self.status = status
        self.headers = list(headers)


def values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for found, value in headers if found == name]


def elements(headers: Headers, name: bytes) -> list[str]:
    """The elements of a header that is a list, however many lines it is spread over; empty ones
    don't count (RFC 9110 section 5.6.1)."""
    joined = b",".join(values(headers, name)).decode("latin-1")
    return [stripped for element in joined.split(",") if (stripped := element.strip(" \t"))]


def check_request(method: bytes, http_version: bytes, headers: Headers) -> None:
    """Check what holds for every request.

    Raises:
        BadRequest: it doesn't.
    """
    if not http_version.startswith(b"1."):
        raise BadRequest("this is an HTTP/1.1 server", status=505)
    if not all(map(_HOST.fullmatch, values(headers, b"host"))):
        raise BadRequest("malformed Host")  # RFC 9112 section 3.2
    if values(headers, b"content-length") and values(headers, b"transfer-encoding"):
        # Somebody before us may see another end of the request: RFC 9112 section 6.1.
        raise BadRequest("either Content-Length or Transfer-Encoding")
    if method not in (b"GET", b"HEAD"):
        raise BadRequest("only GET", status=405, headers=[(b"Allow", b"GET, HEAD")])


def split_target(target: str) -> tuple[str, str]:
    """The path and the query of a request target, RFC 9112 section 3.2.

    Raises:
        BadRequest: it has none.
    """
    if match := _ABSOLUTE.match(target):
        target = target[match.end() :]
        target = target if target.startswith("/") else f"/{target}"
    if not target.startswith("/"):
        raise BadRequest("the target must be a path")
    path, _, query = target.partition("?")
    return path, query


def wants_websocket(headers: Headers) -> bool:
    return "websocket" in map(str.lower, elements(headers, b"upgrade"))


def accept_headers(
    method: bytes, http_version: bytes, headers: Headers
) -> list[tuple[bytes, bytes]]:
    """Check a request to open a WebSocket; return the headers of the answer that opens it, but for
    what was negotiated.

    Raises:
        BadRequest: it is no good one.
    """
    if method != b"GET":
        raise BadRequest("only GET", status=405, headers=[(b"Allow", b"GET")])
    if http_version < b"1.1":
        raise BadRequest("a WebSocket needs HTTP/1.1")
    if values(headers, b"content-length") or values(headers, b"transfer-encoding"):
        raise BadRequest("a WebSocket request has no body")
    if "upgrade" not in map(str.lower, elements(headers, b"connection")):
        raise BadRequest("a WebSocket request needs Connection: Upgrade")
    version = values(headers, b"sec-websocket-version")
    if version != [b"13"]:
        # Section 4.2.2: tell which we speak, if it was another.
        raise BadRequest(
            "a WebSocket request needs Sec-WebSocket-Version: 13",
            status=426 if version else 400,
            headers=[(b"Sec-WebSocket-Version", b"13")],
        )
    match values(headers, b"sec-websocket-key"):
        case [key] if _is_key(key):
            pass
        case _:
            raise BadRequest("a WebSocket request needs one Sec-WebSocket-Key of 16 bytes")
    return [
        (b"Upgrade", b"websocket"),
        (b"Connection", b"Upgrade"),
        (b"Sec-WebSocket-Accept", generate_accept_token(key)),
    ]


def _is_key(key: bytes) -> bool:
    """Whether it is 16 bytes in base64, section 4.2.1. Bits to spare in the last character may be
    of any value: nobody reads them."""
    try:
        return len(key) == 24 and len(binascii.a2b_base64(key, strict_mode=True)) == 16
    except ValueError:
        return False


def check_subprotocols(headers: Headers) -> None:
    """Check the subprotocols that are offered.

    Raises:
        BadRequest: not all are tokens (section 4.1).
    """
    if not all(map(_TOKEN.fullmatch, elements(headers, b"sec-websocket-protocol"))):
        raise BadRequest("malformed Sec-WebSocket-Protocol")
