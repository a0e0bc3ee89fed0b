"""Times in messages, for people."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime


def when(time: float) -> str:
    """Seconds since 1970 as local time, to the second."""
    with suppress(ValueError, OverflowError, OSError):  # a clock may have been very wrong
        return datetime.fromtimestamp(time).astimezone().isoformat(" ", "seconds")
    return f"{time} seconds after 1970 began"
