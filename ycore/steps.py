"""Work in steps: what may take long, as a generator, that others may have a turn in between."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, TypeAlias, TypeVar

__all__ = ["STEP", "Steps", "finish"]

T = TypeVar("T")
Steps: TypeAlias = Generator[None, None, T]
"""Work that pauses about once a millisecond, and returns its result in the end."""

STEP: Final = 1024
"""After how many small things such work pauses."""


def finish(steps: Steps[T]) -> T:
    """Do all that is left of some work."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result
