"""What a path asks for: a room, or the answer to a plain request. The same for every transport."""

from __future__ import annotations

from typing import TypeAlias

Answer: TypeAlias = tuple[int, str, list[tuple[bytes, bytes]]]
"""HTTP status, a short text, further headers."""


def check_prefix(prefix: str) -> None:
    """
    Raises:
        ValueError: it does not begin and end with a slash.
    """
    if not (prefix.startswith("/") and prefix.endswith("/")):
        raise ValueError(f"the prefix must begin and end with a slash: {prefix!r}")


def in_prefix(path: str, prefix: str) -> str | None:
    """What follows the prefix; None if the path is another's, or nothing does."""
    return path[len(prefix) :] or None if path.startswith(prefix) else None


def no_room(prefix: str) -> Answer:
    """To who asks for a WebSocket where there is no room."""
    return 404, f"no room here: connect to {prefix}your-room-name", []


def plain_answer(
    method: str, path: str, prefix: str, problem: str | None, unsynced: float = 0.0
) -> Answer:
    """The answer to a request for something else than a WebSocket. The problem is `Driver.health`,
    and the age of what is not synced is `Driver.unsynced`."""
    if method not in ("GET", "HEAD"):
        return 405, "only GET", [(b"Allow", b"GET, HEAD")]
    if path == "/health":
        if problem is not None:
            return 503, problem, []
        return 200, f"ok, oldest unsynced edit: {unsynced:.1f} s" if unsynced else "ok", []
    if in_prefix(path, prefix) is not None:
        return 426, "connect with a WebSocket", [(b"Upgrade", b"websocket")]
    return 404, "nothing here", []
