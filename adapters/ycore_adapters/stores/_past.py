"""What a room was at a time, of updates whose times come from a clock that may have been set."""

from __future__ import annotations


class Until:
    """Tells which updates a room had at a time. Ask for each, in the order they were stored.

    An update counts as stored no earlier than any before it (its time is the running maximum): a
    clock that was set back must not let edits show without those that they build on. So the first
    edit that is too late ends it.

    Args:
        at: the time; None for now.
    """

    def __init__(self, at: float | None) -> None:
        self._at = at
        self._is_over = False

    def has(self, time: float, *, is_snapshot: bool = False) -> bool:
        """Whether the room had this update, which is of that time.

        Args:
            is_snapshot: whether it only sums up those before it. Made while edits went on, it may
                bear a later time than some that follow it, and says nothing about these.
        """
        if self._at is None:
            return True
        is_late = time > self._at
        if not is_snapshot:
            self._is_over = self._is_over or is_late
        return not (self._is_over or is_late)
