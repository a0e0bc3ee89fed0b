"""The delete set: which clocks of which client are deleted, as disjoint sorted ranges.

Source: yjs `utils/DeleteSet.js`.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Final, TypeAlias

from ..lib0 import write_var_uint
from ..steps import STEP, Steps

Range: TypeAlias = tuple[int, int]
"""First clock, and the clock after the last."""

_SPARSE: Final = 16
"""Ranges to add that have this many times more known ranges between them than they are many are
added in halves: so a message costs in proportion to its own length, not to the document's."""

_RANGE_BYTES: Final = 8
"""About what a range takes in an update."""

_CLIENT_BYTES: Final = 350
"""What a client's deletes take besides their ranges: the objects that they are made of."""


def coalesce(ranges: Iterable[Range]) -> list[Range]:
    """Sort ranges and join those that overlap or touch."""
    out: list[Range] = []
    for start, end in sorted(ranges):
        if out and start <= out[-1][1]:
            if end > out[-1][1]:
                out[-1] = (out[-1][0], end)
        else:
            out.append((start, end))
    return out


def subtract(ranges: list[Range], known: list[Range]) -> list[Range]:
    """What of `ranges` is not in `known`; both disjoint and sorted."""
    out: list[Range] = []
    i = 0
    for start, end in ranges:
        while i < len(known) and known[i][1] <= start:
            i += 1
        at = start
        j = i
        while at < end and j < len(known) and known[j][0] < end:
            if at < known[j][0]:
                out.append((at, known[j][0]))
            at = max(at, known[j][1])
            j += 1
        if at < end:
            out.append((at, end))
        i = max(i, j - 1)
    return out


def write_ranges(out: bytearray, ranges: list[Range]) -> None:
    """Append ranges as an encoded delete set has them."""
    for start, end in ranges:
        write_var_uint(out, start)
        write_var_uint(out, end - start)


class ClientDeletes:
    """What is deleted of one client's structs."""

    __slots__ = ("_changes", "_encoded", "_ends", "_starts")

    def __init__(self) -> None:
        self._starts = array("Q")
        self._ends = array("Q")
        self._encoded: bytes | None = None
        self._changes = 0

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes."""
        return _CLIENT_BYTES + 24 * len(self._starts)

    def add(self, ranges: list[Range]) -> list[Range]:
        """Add ranges, sorted and with gaps between them; return what of them was new, likewise."""
        new = self._add(ranges)
        if new:
            self._encoded = None
            self._changes += 1
        return new

    def _add(self, ranges: list[Range]) -> list[Range]:
        # The window is what is known between the first and the last to add, or touches them.
        first = bisect_left(self._ends, ranges[0][0])
        last = bisect_right(self._starts, ranges[-1][1], lo=first)
        if len(ranges) > 1 and last - first > _SPARSE * len(ranges):
            middle = len(ranges) // 2
            return self._add(ranges[:middle]) + self._add(ranges[middle:])
        if len(ranges) == 1 and last - first < 2:  # what a backspace does
            return self._add_one(ranges, first, known=last - first)
        new = merged = ranges
        if first < last:
            known = list(zip(self._starts[first:last], self._ends[first:last], strict=True))
            new = subtract(ranges, known)
            merged = coalesce(known + new)
        if new:
            self._starts[first:last] = array("Q", [start for start, _ in merged])
            self._ends[first:last] = array("Q", [end for _, end in merged])
        return new

    def _add_one(self, ranges: list[Range], at: int, known: int) -> list[Range]:
        """Add a range where one known range is in its way, or none."""
        ((start, end),) = ranges
        if not known:
            self._starts.insert(at, start)
            self._ends.insert(at, end)
            return ranges
        known_start, known_end = self._starts[at], self._ends[at]
        self._starts[at], self._ends[at] = min(start, known_start), max(end, known_end)
        return subtract(ranges, [(known_start, known_end)])

    def covers(self, ranges: list[Range]) -> bool:
        """Whether all of these are deleted already."""
        for start, end in ranges:
            at = bisect_right(self._starts, start) - 1
            if at < 0 or self._ends[at] < end:
                return False
        return True

    def ranges(self) -> list[Range]:
        return list(zip(self._starts, self._ends, strict=True))

    def within(self, start: int, end: int) -> list[Range]:
        """Those that reach into these clocks, as they are."""
        some = slice(bisect_right(self._ends, start), bisect_left(self._starts, end))
        return list(zip(self._starts[some], self._ends[some], strict=True))

    def encode_steps(self, client: int) -> Steps[bytes]:
        """This client's entry of an encoded delete set, in steps: all there was at the first."""
        if self._encoded is None:
            starts, ends, changes = self._starts[:], self._ends[:], self._changes
            out = bytearray()
            write_var_uint(out, client)
            write_var_uint(out, len(starts))
            for done in range(0, len(starts), STEP):
                if done:
                    yield
                some = slice(done, done + STEP)
                write_ranges(out, list(zip(starts[some], ends[some], strict=True)))
            if changes != self._changes:
                return bytes(out)
            self._encoded = bytes(out)
        return self._encoded

    def encode_some(self, client: int, clock: int, most: int) -> tuple[bytes, int | None]:
        """An entry of an encoded delete set with the first ranges that begin at `clock` or later,
        in about so many bytes. Returns with it the clock at which the next begins, if any does."""
        first = bisect_left(self._starts, clock)
        last = min(first + max(most // _RANGE_BYTES, 1), len(self._starts))
        out = bytearray()
        write_var_uint(out, client)
        write_var_uint(out, last - first)
        write_ranges(out, list(zip(self._starts[first:last], self._ends[first:last], strict=True)))
        return bytes(out), self._starts[last] if last < len(self._starts) else None
