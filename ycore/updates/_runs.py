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


class _Shape(NamedTuple):
    """What of a struct of a squashable kind decides about squashing and cutting."""

    kind: int
    origin: tuple[int, int] | None
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
    origin = None
    right_origin = b""
    if kind != GC:
        if info & HAS_ORIGIN:
            client, pos = read_var_uint(data, pos)
            clock, pos = read_var_uint(data, pos)
            origin = (client, clock)
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
    return _Shape(kind, origin, right_origin, bool(info & HAS_KEY), pos, content_at, size)


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


class Run:
    """Consecutive structs of one client, without a hole between them.

    `raw[offsets[i]:offsets[i + 1]]` is struct i, `ends[i]` the clock after it.
    """

    __slots__ = ("_tail", "ends", "offsets", "raw", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        """The clock of the first struct."""
        self.raw = bytearray()
        self.ends = array("Q")
        self.offsets = array("Q")
        self._tail: _Shape | None = None
        """The shape of the last struct, once it was asked for; None also when it has none."""

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes."""
        return _RUN_BYTES + 16 * len(self.ends) + len(self.raw)

    @property
    def end(self) -> int:
        """The clock after the last struct."""
        return self.ends[-1]

    def has_key(self, clock: int) -> bool:
        """Whether the struct that this clock, inside this run, is in is the value of a key."""
        return bool(self.raw[self.offsets[bisect_right(self.ends, clock)]] & HAS_KEY)

    def append(
        self, client: int, data: Data, begin: int, stop: int, ends: Clocks, offsets: Clocks
    ) -> None:
        """Append structs that begin where this run ends: `data[begin:stop]`.

        Offsets are counted from `begin`.
        """
        shape = None
        if self.ends and (data[begin] & KIND) in _SQUASHED:
            tail = self._tail or self._find_tail()
            if tail is not None and tail.kind == data[begin] & KIND:
                shape = _shape(data, begin)
                if _squashable(client, self.ends[-1], tail, shape):
                    stop_first = begin + offsets[1] if len(offsets) > 1 else stop
                    self._squash(tail, shape, data, stop_first)
                    self.ends[-1] = ends[0]
                    if len(ends) == 1:
                        return
                    ends, offsets = ends[1:], offsets[1:]
                    begin = stop_first
                    shape = None
        at = len(self.raw)
        if shape is None or len(ends) > 1:
            self._tail = None
        else:
            shift = at - begin
            self._tail = shape._replace(
                size_at=shape.size_at + shift, content_at=shape.content_at + shift
            )
        self.raw += data[begin:stop]
        self.ends.extend(ends)
        shift = at - offsets[0]
        if shift:
            self.offsets.extend([offset + shift for offset in offsets])
        else:
            self.offsets.extend(offsets)

    def append_section(self, data: Data, section: Section) -> None:
        """Append the structs of a section of the update `data`, which begins where this ends."""
        self.append(
            section.client, data, section.begin, section.stop, section.ends, section.offsets
        )

    def _find_tail(self) -> _Shape | None:
        offset = self.offsets[-1]
        if self.raw[offset] & KIND in _SQUASHED:
            self._tail = _shape(self.raw, offset)
        return self._tail

    def _squash(self, tail: _Shape, shape: _Shape, data: Data, stop: int) -> None:
        size = tail.size + shape.size
        head = bytearray()
        write_var_uint(head, size)
        content_at = tail.size_at + len(head)
        self.raw[tail.size_at : tail.content_at] = head
        self.raw += data[shape.content_at : stop]
        self._tail = tail._replace(content_at=content_at, size=size)

    def extend(self, client: int, other: Run) -> None:
        """Append a run that begins where this one ends."""
        self.append(client, other.raw, 0, len(other.raw), other.ends, other.offsets)

    def cut(self, client: int, low: int, high: int) -> Run:
        """A new run with what this one has from clock `low` to clock `high`, both inside it."""
        out = Run(low)
        i = bisect_right(self.ends, low)
        last = bisect_left(self.ends, high)
        while i <= last:
            begin = self.ends[i - 1] if i else self.start
            offset = self.offsets[i]
            stop = self.offsets[i + 1] if i + 1 < len(self.offsets) else len(self.raw)
            if begin < low or self.ends[i] > high:
                piece = _cut(
                    self.raw, offset, client, begin, max(low, begin), min(high, self.ends[i])
                )
            else:
                piece = bytes(self.raw[offset:stop])
            out.offsets.append(len(out.raw))
            out.raw += piece
            out.ends.append(min(high, self.ends[i]))
            i += 1
        return out

    def chunks_from(self, client: int, low: int) -> tuple[int, list[bytes | memoryview]]:
        """The bytes of the structs from clock `low`, inside this run, on, and how many they are.

        They share memory with this run: use them up before it changes.
        """
        view = memoryview(self.raw)
        i = bisect_right(self.ends, low)
        begin = self.ends[i - 1] if i else self.start
        count = len(self.ends) - i
        if begin == low:
            return count, [view[self.offsets[i] :]]
        first = _cut(self.raw, self.offsets[i], client, begin, low, self.ends[i])
        return count, [first, view[self.offsets[i + 1] :] if count > 1 else b""]


def run_of(data: bytes, section: Section) -> Run:
    """The structs of one section of an update, as a run."""
    run = Run(section.start)
    run.append_section(data, section)
    return run


def _squashable(client: int, clock: int, tail: _Shape, head: _Shape) -> bool:
    """Whether a struct at `clock` continues `tail`, as in yjs `structs/Item.js`, mergeWith.

    Values of a key are left alone: there each replaces the one before it, and whether that one was
    deleted must stay its own matter.
    """
    if head.kind == GC:
        return True
    return (
        head.origin == (client, clock - 1)
        and head.right_origin == tail.right_origin
        and not head.has_key
        and not tail.has_key
    )
