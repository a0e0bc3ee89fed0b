"""A second, naive reader of updates: every clock for itself. What the tests compare by."""

from __future__ import annotations

from typing import NamedTuple

from ycore.lib0 import read_any, read_var_string, read_var_uint, read_var_uint8_array

Id = tuple[int, int]


class Unit(NamedTuple):
    """What one clock of one client holds."""

    kind: int
    content: object
    origin: Id | None
    right: Id | None
    parent: object


class Exploded(NamedTuple):
    units: dict[Id, Unit]
    deletes: set[Id]
    structs: int
    """How many structs it took, Skips included."""


def explode(data: bytes) -> Exploded:
    units: dict[Id, Unit] = {}
    structs = 0
    sections, pos = read_var_uint(data, 0)
    for _ in range(sections):
        count, pos = read_var_uint(data, pos)
        client, pos = read_var_uint(data, pos)
        clock, pos = read_var_uint(data, pos)
        structs += count
        for _ in range(count):
            info = data[pos]
            pos += 1
            if info in (0, 10):
                length, pos = read_var_uint(data, pos)
                if info == 0:
                    for i in range(length):
                        units[client, clock + i] = Unit(0, None, None, None, None)
                clock += length
                continue
            ids: list[Id | None] = [None, None]
            for which, bit in enumerate((0x80, 0x40)):
                if info & bit:
                    c, pos = read_var_uint(data, pos)
                    k, pos = read_var_uint(data, pos)
                    ids[which] = (c, k)
            parent: object = None
            if not info & 0xC0:
                named = data[pos]
                if named:
                    parent, pos = read_var_string(data, pos + 1)
                else:
                    c, pos = read_var_uint(data, pos + 1)
                    k, pos = read_var_uint(data, pos)
                    parent = (c, k)
                if info & 0x20:
                    key, pos = read_var_string(data, pos)
                    parent = (parent, key)
            contents, pos = _contents(data, pos, info & 0x1F)
            origin, right = ids
            for i, content in enumerate(contents):
                units[client, clock + i] = Unit(
                    info & 0x3F,
                    content,
                    origin if i == 0 else (client, clock + i - 1),
                    right,
                    parent if i == 0 else None,
                )
            clock += len(contents)
    deletes: set[Id] = set()
    clients, pos = read_var_uint(data, pos)
    for _ in range(clients):
        client, pos = read_var_uint(data, pos)
        count, pos = read_var_uint(data, pos)
        for _ in range(count):
            clock, pos = read_var_uint(data, pos)
            length, pos = read_var_uint(data, pos)
            deletes.update((client, clock + i) for i in range(length))
    assert pos == len(data)
    return Exploded(units, deletes, structs)


def _contents(data: bytes, pos: int, kind: int) -> tuple[list[object], int]:
    values: list[object] = []
    if kind == 1:
        length, pos = read_var_uint(data, pos)
        return [None] * length, pos
    if kind == 4:
        value, pos = read_var_string(data, pos)
        raw = value.encode("utf-16-le")
        return [raw[i : i + 2] for i in range(0, len(raw), 2)], pos
    if kind in (2, 8):
        count, pos = read_var_uint(data, pos)
        for _ in range(count):
            entry, pos = read_var_string(data, pos) if kind == 2 else read_any(data, pos)
            values.append(repr(entry))
        return values, pos
    start = pos
    if kind == 3:
        _, pos = read_var_uint8_array(data, pos)
    elif kind in (5, 6, 9):
        _, pos = read_var_string(data, pos)
        if kind == 6:
            _, pos = read_var_string(data, pos)
        elif kind == 9:
            _, pos = read_any(data, pos)
    else:
        ref, pos = read_var_uint(data, pos)
        if ref in (3, 5):
            _, pos = read_var_string(data, pos)
    return [data[start:pos]], pos
