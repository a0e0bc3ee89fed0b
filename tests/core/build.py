"""Updates by hand: enough of an encoder to write down any struct, well-formed or not."""

from __future__ import annotations

from typing import TypeAlias

from ycore.lib0 import AnyValue, write_any, write_var_string, write_var_uint

Id: TypeAlias = tuple[int, int]


def uint(value: int) -> bytes:
    out = bytearray()
    write_var_uint(out, value)
    return bytes(out)


def string(value: str) -> bytes:
    out = bytearray()
    write_var_string(out, value)
    return bytes(out)


def any_value(value: AnyValue) -> bytes:
    out = bytearray()
    write_any(out, value)
    return bytes(out)


def update(
    structs: dict[Id, list[bytes]] | None = None,
    deletes: dict[int, list[tuple[int, int]]] | None = None,
) -> bytes:
    """Sections by (client, clock), and delete ranges as (clock, length)."""
    out = uint(len(structs or {}))
    for (client, clock), body in (structs or {}).items():
        out += uint(len(body)) + uint(client) + uint(clock) + b"".join(body)
    out += uint(len(deletes or {}))
    for client, ranges in (deletes or {}).items():
        out += uint(client) + uint(len(ranges))
        out += b"".join(uint(clock) + uint(length) for clock, length in ranges)
    return out


def item(
    content: bytes,
    *,
    origin: Id | None = None,
    right: Id | None = None,
    parent: str | Id = "t",
    key: str | None = None,
) -> bytes:
    """An Item; the first byte of `content` is its kind."""
    out = b""
    info = content[0]
    if origin is not None:
        info |= 0x80
        out += uint(origin[0]) + uint(origin[1])
    if right is not None:
        info |= 0x40
        out += uint(right[0]) + uint(right[1])
    if key is not None:
        info |= 0x20
    if origin is None and right is None:
        if isinstance(parent, str):
            out += b"\x01" + string(parent)
        else:
            out += b"\x00" + uint(parent[0]) + uint(parent[1])
        if key is not None:
            out += string(key)
    return bytes((info,)) + out + content[1:]


def gc(length: int) -> bytes:
    return b"\x00" + uint(length)


def skip(length: int) -> bytes:
    return b"\x0a" + uint(length)


# Contents, by kind.


def deleted(length: int) -> bytes:
    return b"\x01" + uint(length)


def json(*texts: str) -> bytes:
    return b"\x02" + uint(len(texts)) + b"".join(map(string, texts))


def binary(data: bytes) -> bytes:
    return b"\x03" + uint(len(data)) + data


def text(value: str) -> bytes:
    return b"\x04" + string(value)


def embed(value: str) -> bytes:
    return b"\x05" + string(value)


def format_(key: str, value: str) -> bytes:
    return b"\x06" + string(key) + string(value)


def type_(ref: int, name: str | None = None) -> bytes:
    return b"\x07" + uint(ref) + (string(name) if name is not None else b"")


def anys(*values: AnyValue) -> bytes:
    return b"\x08" + uint(len(values)) + b"".join(map(any_value, values))


def doc(guid: str, options: AnyValue) -> bytes:
    return b"\x09" + string(guid) + any_value(options)


def typed(client: int, word: str, start: int = 0) -> list[bytes]:
    """The updates of someone typing a word into the text "t", a letter each."""
    return [
        update(
            {
                (client, start + i): [
                    item(text(letter), origin=(client, start + i - 1) if start + i else None)
                ]
            }
        )
        for i, letter in enumerate(word)
    ]
