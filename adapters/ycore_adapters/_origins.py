"""Origins, as browsers name the page that a connection comes from: RFC 6454."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_PAGES: Final = {"ws": "http", "wss": "https"}
"""The scheme of a WebSocket's URL -> that of the page's."""


def check_origin(origin: str) -> None:
    """
    Raises:
        ValueError: no browser names a page like that, so nobody would be let in by it.
    """
    if origin == "null":  # of a page from a file, or in a sandbox
        return
    try:
        named = _as_browsers_do(origin if "://" in origin else f"https://{origin}")
    except ValueError:  # a port that is no number, a name that is no host's
        named = "https://example.org"
    if origin != named:
        raise ValueError(f"{origin!r} is not what browsers call a page's origin: write {named}")


def _as_browsers_do(url: str) -> str:
    """The scheme and the host in lower case, the port unless it is the usual one, and no path."""
    parts = urlsplit(url)
    scheme = _PAGES.get(parts.scheme, parts.scheme)
    host = parts.hostname or ""
    if not host or "*" in host:
        raise ValueError("there are no patterns")
    host = f"[{host}]" if ":" in host else host.encode("idna").decode()
    usual = parts.port in (None, _DEFAULT_PORTS.get(scheme))
    return f"{scheme}://{host}" + ("" if usual else f":{parts.port}")
