"""How many connections and rooms the files suffice for that a process may have open.

Each connection takes one, and so does each room in memory that was edited. Both may have three
eighths of them; the rest is for what the process needs besides: connections that are being refused,
compactions, rooms that the store has not finished with, the application's own.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Final

from ycore import Settings

try:
    import resource
except ImportError:  # Windows, which sets no such limit
    resource = None  # type: ignore[assignment]

_PLENTY: Final = 2**20
_MAX_ROOMS: Final = Settings().max_rooms


def enough_for() -> int:
    """How many connections, and as many rooms, there may be."""
    if resource is None:
        return _PLENTY
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _PLENTY if allowed == resource.RLIM_INFINITY else max(1, allowed * 3 // 8)


def within(settings: Settings) -> Settings:
    """These settings, but unless `max_rooms` was set, no more rooms than there may be."""
    if settings.max_rooms != _MAX_ROOMS:
        return settings
    return replace(settings, max_rooms=min(_MAX_ROOMS, enough_for()))


def raise_limit() -> None:
    """Have the system allow as many as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
