"""The delete set: which clocks of which client are deleted, as disjoint sorted ranges.

Source: yjs `utils/DeleteSet.js`.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

from ..lib0 import write_var_uint
from ..steps import STEP, Steps

Range: TypeAlias = tuple[int, int]
"""First clock, and the clock after the last."""

_SWALLOWED: Final = 4 * STEP
"""Once ranges that are added have taken the place of more known ones than these, what follows
counts as new, whole, if anything of it is: to tell what was known would take long, and more bytes.
"""

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
        """Add ranges, sorted and with gaps between them; return what of them was new, likewise (and
        see `_SWALLOWED`)."""
        new = self._add(ranges)
        if new:
            self._encoded = None
            self._changes += 1
        return new

    def _add(self, ranges: list[Range]) -> list[Range]:
        starts, ends = self._starts, self._ends
        if not ends or ranges[0][0] > ends[-1]:
            starts.extend([start for start, _ in ranges])
            ends.extend([end for _, end in ranges])
            return ranges
        new: list[Range] = []
        # What is to be put where: in the place of the known ranges `low` to `high`, one range.
        edits: list[tuple[int, int, int, int]] = []
        low = swallowed = 0
        for start, end in ranges:
            low = bisect_left(ends, start, low)
            high = bisect_right(starts, end, low)
            if low == high:
                new.append((start, end))
                edits.append((low, high, start, end))
            elif high == low + 1 and starts[low] <= start and end <= ends[low]:
                continue
            else:
                swallowed += high - low
                if swallowed > _SWALLOWED:
                    new.append((start, end))
                else:
                    known = list(zip(starts[low:high], ends[low:high], strict=True))
                    new += subtract([(start, end)], known)
                first, last = min(start, starts[low]), max(end, ends[high - 1])
                if edits and low < edits[-1][1]:  # one before reaches the same known range
                    at, _, first, _ = edits.pop()
                    edits.append((at, high, first, last))
                else:
                    edits.append((low, high, first, last))
        if len(edits) == 1:  # what a backspace does
            self._replace(*edits[0])
        elif edits:
            self._replace_many(edits)
        return new

    def _replace(self, low: int, high: int, start: int, end: int) -> None:
        if low == high:
            self._starts.insert(low, start)
            self._ends.insert(low, end)
        else:
            self._starts[low:high] = array("Q", (start,))
            self._ends[low:high] = array("Q", (end,))

    def _replace_many(self, edits: list[tuple[int, int, int, int]]) -> None:
        """All at once: one by one, what is behind each would be moved each time."""
        starts, ends = array("Q"), array("Q")
        first = done = edits[0][0]
        for low, high, start, end in edits:
            if done < low:
                starts += self._starts[done:low]
                ends += self._ends[done:low]
            starts.append(start)
            ends.append(end)
            done = high
        self._starts[first:done] = starts
        self._ends[first:done] = ends

    def covers(self, ranges: list[Range]) -> bool:
        """Whether all of these are deleted already."""
        for start, end in ranges:
            at = bisect_right(self._starts, start) - 1
            if at < 0 or self._ends[at] < end:
                return False
        return True

    def touches(self, start: int, end: int) -> bool:
        """Whether any of the clocks from `start` to `end` is deleted."""
        at = bisect_right(self._ends, start)
        return at < len(self._starts) and self._starts[at] < end

    def copy(self) -> ClientDeletes:
        copy = ClientDeletes()
        copy._starts, copy._ends = self._starts[:], self._ends[:]
        return copy

    def parts(self) -> Iterator[list[Range]]:
        """All ranges, a step of them at a time. Nothing may be added meanwhile."""
        for done in range(0, len(self._starts), STEP):
            some = slice(done, done + STEP)
            yield list(zip(self._starts[some], self._ends[some], strict=True))

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
