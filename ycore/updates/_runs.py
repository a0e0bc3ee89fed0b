"""Runs: consecutive structs of one client, kept as the bytes they came in.

A struct's bytes don't say its own id, so structs that follow each other can be stored and sent by
joining bytes. What needs a look inside is small: cutting a struct in two (a peer has its first
half), and squashing a struct into the one before it (the next typed character of a word), so that
a document typed key by key is stored as compactly as Yjs stores it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from typing import Final, NamedTuple

from ..lib0 import Data, read_var_string, read_var_uint, skip_any, write_var_uint
from ._grammar import (
    ANY,
    DELETED,
    GC,
    HAS_KEY,
    HAS_ORIGIN,
    HAS_RIGHT_ORIGIN,
    JSON,
    KIND,
    STRING,
    Clocks,
    Section,
)

_SQUASHED: Final = frozenset({GC, DELETED, JSON, STRING, ANY})
"""The kinds that can be longer than 1: a size, then as much content (GC and DELETED: none)."""

_RUN_BYTES: Final = 1500
"""What a run costs besides its structs: the objects that it is made of, a quarter of this; and a
microsecond or two whenever somebody joins."""

_CUT_BYTES: Final = 16 * 1024
"""How many bytes a struct may have to be cut for somebody who knows its beginning. One that is
longer is sent whole: cutting it would take long, for a question of some bytes, and whoever gets it
cuts it (yjs `structs/Item.js`, integrate)."""

_STRUCT_BYTES: Final = 16
"""What a struct costs besides its own bytes."""


class _Shape(NamedTuple):
    """What of a struct of a squashable kind matters for squashing and cutting."""

    kind: int
    right_origin: bytes
    has_key: bool
    size_at: int
    """Where its size is: in clocks for DELETED and GC, in bytes for STRING, else in values."""
    content_at: int
    size: int


def _shape(data: Data, pos: int) -> _Shape:
    """Take a struct apart that was checked before."""
    info = data[pos]
    kind = info & KIND
    pos += 1
    right_origin = b""
    if kind != GC:
        if info & HAS_ORIGIN:
            _, pos = read_var_uint(data, pos)
            _, pos = read_var_uint(data, pos)
        if info & HAS_RIGHT_ORIGIN:
            start = pos
            _, pos = read_var_uint(data, pos)
            _, pos = read_var_uint(data, pos)
            right_origin = bytes(data[start:pos])
        if not info & (HAS_ORIGIN | HAS_RIGHT_ORIGIN):
            named, pos = read_var_uint(data, pos)
            if named:
                _, pos = read_var_string(data, pos)
            else:
                _, pos = read_var_uint(data, pos)
                _, pos = read_var_uint(data, pos)
            if info & HAS_KEY:
                _, pos = read_var_string(data, pos)
    size, content_at = read_var_uint(data, pos)
    return _Shape(kind, right_origin, bool(info & HAS_KEY), pos, content_at, size)


def _cut(data: Data, pos: int, client: int, start: int, low: int, high: int) -> bytes:
    """The part from clock `low` to clock `high` of the struct at `pos`, whose own clock is `start`.

    Its new origin is the unit before it (yjs `structs/Item.js`, splitItem and Item.write). A
    surrogate pair cut in two becomes U+FFFD on either side (`structs/ContentString.js`, splice).
    """
    shape = _shape(data, pos)
    out = bytearray()
    if low == start or shape.kind == GC:
        out += data[pos : shape.size_at]
    else:
        out.append(
            shape.kind
            | HAS_ORIGIN
            | (HAS_RIGHT_ORIGIN if shape.right_origin else 0)
            | (HAS_KEY if shape.has_key else 0)
        )
        write_var_uint(out, client)
        write_var_uint(out, low - 1)
        out += shape.right_origin
    first, last = low - start, high - start
    at = shape.content_at
    if shape.kind == STRING:
        units = data[at : at + shape.size].decode().encode("utf-16-le")
        text = units[2 * first : 2 * last].decode("utf-16-le", "replace").encode()
        write_var_uint(out, len(text))
        out += text
        return bytes(out)
    write_var_uint(out, last - first)
    if shape.kind == ANY:
        at = skip_any(data, at, first)
        out += data[at : skip_any(data, at, last - first)]
    elif shape.kind == JSON:
        for _ in range(first):
            _, at = read_var_string(data, at)
        end = at
        for _ in range(last - first):
            _, end = read_var_string(data, end)
        out += data[at:end]
    return bytes(out)


class _Tail:
    """Where in the last struct of a run the next one would continue it."""

    __slots__ = ("content_at", "right_origin", "size", "size_at")

    def __init__(self, shape: _Shape) -> None:
        self.right_origin = shape.right_origin
        self.size_at = shape.size_at
        self.content_at = shape.content_at
        self.size = shape.size


class Run:
    """Consecutive structs of one client, without a hole between them.

    `raw[offsets[i]:offsets[i + 1]]` is struct i, `ends[i]` the clock after it.
    """

    __slots__ = ("_own_client", "_tail", "client", "ends", "offsets", "raw", "start")

    def __init__(self, client: int, start: int) -> None:
        self.client = client
        self.start = start
        """The clock of the first struct."""
        self.raw = bytearray()
        self.ends = array("Q")
        self.offsets = array("Q")
        own_client = bytearray()
        write_var_uint(own_client, client)
        self._own_client = bytes(own_client)
        self._tail: _Tail | None = None
        """Of the last struct, once it was asked for."""

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes."""
        return _RUN_BYTES + _STRUCT_BYTES * len(self.ends) + len(self.raw)

    @property
    def end(self) -> int:
        """The clock after the last struct."""
        return self.ends[-1]

    def begin_of(self, i: int) -> int:
        """The clock of struct i."""
        return self.ends[i - 1] if i else self.start

    def has_key(self, clock: int) -> bool:
        """Whether the struct that this clock, inside this run, is in is the value of a key."""
        return bool(self.raw[self.offsets[bisect_right(self.ends, clock)]] & HAS_KEY)

    def append(self, data: Data, begin: int, stop: int, ends: Clocks, offsets: Clocks) -> int:
        """Append structs that begin where this run ends: `data[begin:stop]`.

        Offsets are counted from `begin`. Returns by how much its size grows.
        """
        before = len(self.raw)
        if before:
            first_stop = begin + offsets[1] if len(offsets) > 1 else stop
            if self._squash(data, begin, first_stop):
                self.ends[-1] = ends[0]
                if len(ends) == 1:
                    return len(self.raw) - before
                ends, offsets = ends[1:], offsets[1:]
                begin = first_stop
        self._tail = None
        shift = len(self.raw) - offsets[0]
        self.raw += data[begin:stop]
        self.ends.extend(ends)
        if shift:
            self.offsets.extend([offset + shift for offset in offsets])
        else:
            self.offsets.extend(offsets)
        return len(self.raw) - before + _STRUCT_BYTES * len(ends)

    def append_section(self, data: Data, section: Section) -> int:
        """Append the structs of a section of the update `data`, which begins where this ends."""
        return self.append(data, section.begin, section.stop, section.ends, section.offsets)

    def _squash(self, data: Data, begin: int, stop: int) -> bool:
        """Join a struct with the last one of this run, if it continues it.

        As in yjs `structs/Item.js`, mergeWith. But values of a key are left alone: there each
        replaces the one before it, and whether that one was deleted must stay its own matter.
        """
        info = data[begin]
        last = self.raw[self.offsets[-1]]
        at = begin + 1
        if info == last | HAS_ORIGIN and not info & HAS_KEY and info & KIND in _SQUASHED:
            origin_at = at
            at += len(self._own_client)
            if data[origin_at:at] != self._own_client:
                return False
            origin, at = read_var_uint(data, at)
            if origin != self.ends[-1] - 1:
                return False
        elif info != GC or last != GC:
            return False
        tail = self._tail
        if tail is None:
            tail = self._tail = _Tail(_shape(self.raw, self.offsets[-1]))
        if tail.right_origin:
            right_at = at
            at += len(tail.right_origin)
            if data[right_at:at] != tail.right_origin:
                return False
        size, content_at = read_var_uint(data, at)
        tail.size += size
        head = bytearray()
        write_var_uint(head, tail.size)
        self.raw[tail.size_at : tail.content_at] = head
        tail.content_at = tail.size_at + len(head)
        self.raw += data[content_at:stop]
        return True

    def extend(self, other: Run) -> None:
        """Append a run that begins where this one ends."""
        self.append(other.raw, 0, len(other.raw), other.ends, other.offsets)

    def cut(self, low: int, high: int) -> Run:
        """A new run with what this one has from clock `low` to clock `high`, both inside it."""
        out = Run(self.client, low)
        first = bisect_right(self.ends, low)
        last = bisect_left(self.ends, high)
        if self.begin_of(first) < low or self.ends[first] > high:
            out._append_part(self, first, low, high)
            first += 1
        behind = last + 1 if self.ends[last] == high else last
        if first < behind:
            begin = self.offsets[first]
            stop = self.offsets[behind] if behind < len(self.offsets) else len(self.raw)
            shift = len(out.raw) - begin
            out.offsets.extend([offset + shift for offset in self.offsets[first:behind]])
            out.raw += self.raw[begin:stop]
            out.ends.extend(self.ends[first:behind])
        if first <= last and self.ends[last] > high:
            out._append_part(self, last, low, high)
        return out

    def _append_part(self, other: Run, i: int, low: int, high: int) -> None:
        """Append what of struct i of another run is from clock `low` to clock `high`."""
        begin, end = other.begin_of(i), other.ends[i]
        low, high = max(begin, low), min(end, high)
        self.offsets.append(len(self.raw))
        self.raw += _cut(other.raw, other.offsets[i], self.client, begin, low, high)
        self.ends.append(high)

    def sent_from(self, clock: int) -> int:
        """From which clock on somebody is sent this run who has it up to a clock inside it."""
        i = bisect_right(self.ends, clock)
        stop = self.offsets[i + 1] if i + 1 < len(self.offsets) else len(self.raw)
        return self.begin_of(i) if stop - self.offsets[i] > _CUT_BYTES else clock

    def chunks_from(self, low: int, most: int) -> tuple[int, list[bytes | memoryview], int]:
        """The bytes of the structs from clock `low`, inside this run, on: at least of one, and no
        more after so many bytes. With how many they are, and the clock after them.

        They share memory with this run: use them up before it changes.
        """
        view = memoryview(self.raw)
        i = bisect_right(self.ends, low)
        begin = self.begin_of(i)
        last = bisect_left(self.offsets, self.offsets[i] + most, lo=i + 1)
        stop = self.offsets[last] if last < len(self.offsets) else len(self.raw)
        end = self.ends[last - 1]
        if begin == low:
            return last - i, [view[self.offsets[i] : stop]], end
        first = _cut(self.raw, self.offsets[i], self.client, begin, low, self.ends[i])
        rest = view[self.offsets[i + 1] : stop] if last > i + 1 else b""
        return last - i, [first, rest], end


def run_of(data: bytes, section: Section) -> Run:
    """The structs of one section of an update, as a run."""
    run = Run(section.client, section.start)
    run.append_section(data, section)
    return run
