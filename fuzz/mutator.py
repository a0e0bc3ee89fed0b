"""A mutator that knows what an update is made of.

Random bytes never get past an update's header, and flipping bits of a real one rarely gets further
than the first struct. So a well-formed update is taken apart, changed as an attacker (or a broken
client) would change it, and written down again, by writers that check nothing. What is not
well-formed is mutated byte by byte.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from ycore import RemoteProtocolError
from ycore.lib0 import read_var_string, read_var_uint, write_any
from ycore.updates import parse_update

GC, DELETED, JSON, BINARY, STRING, EMBED, FORMAT, TYPE, ANY, DOC, SKIP = range(11)
Id = tuple[int, int]


def uint(value: int) -> bytes:
    """A varUint, of any size."""
    out = bytearray()
    while value > 0x7F:
        out.append(0x80 | value & 0x7F)
        value >>= 7
    out.append(value)
    return bytes(out)


def string(raw: bytes) -> bytes:
    return uint(len(raw)) + raw


def _any(value: object) -> bytes:
    out = bytearray()
    write_any(out, value)  # type: ignore[arg-type]
    return bytes(out)


@dataclass
class Struct:
    """A struct, taken apart as far as mutations need it."""

    info: int
    """0 GC, 10 Skip, otherwise an Item's info byte."""
    content: bytes
    origin: Id | None = None
    right: Id | None = None
    parent: bytes | Id | None = None
    """A root type's name, or an item's id; None where an origin says it."""
    key: bytes | None = None

    @property
    def has_neighbour(self) -> bool:
        """Whether it is an item whose parent, and key if it has one, are a neighbour's."""
        return self.origin is not None or self.right is not None

    def encode(self) -> bytes:
        if self.info in (GC, SKIP):
            return bytes((self.info,)) + self.content
        info = self.info & 0x1F
        out = b""
        if self.origin is not None:
            info |= 0x80
            out += uint(self.origin[0]) + uint(self.origin[1])
        if self.right is not None:
            info |= 0x40
            out += uint(self.right[0]) + uint(self.right[1])
        if self.key is not None:
            info |= 0x20
        if not info & 0xC0:
            if isinstance(self.parent, tuple):
                out += b"\x00" + uint(self.parent[0]) + uint(self.parent[1])
            else:
                out += b"\x01" + string(b"t" if self.parent is None else self.parent)
            if self.key is not None:
                out += string(self.key)
        return bytes((info,)) + out + self.content


@dataclass
class Section:
    client: int
    clock: int
    structs: list[Struct]


@dataclass
class Document:
    """An update, taken apart."""

    sections: list[Section] = field(default_factory=list)
    deletes: list[tuple[int, list[tuple[int, int]]]] = field(default_factory=list)
    """Client, and (clock, length) of each range."""

    def encode(self) -> bytes:
        out = uint(len(self.sections))
        for section in self.sections:
            out += uint(len(section.structs)) + uint(section.client) + uint(section.clock)
            out += b"".join(struct.encode() for struct in section.structs)
        out += uint(len(self.deletes))
        for client, ranges in self.deletes:
            out += uint(client) + uint(len(ranges))
            out += b"".join(uint(clock) + uint(length) for clock, length in ranges)
        return out


def take_apart(update: bytes) -> Document:
    """Leaves out structs of no length. Raises RemoteProtocolError unless it is well-formed."""
    parsed = parse_update(update)
    document = Document()
    end = 0
    for section in parsed.sections:
        last = document.sections[-1] if document.sections else None
        if last is not None and last.client == section.client:  # behind a Skip
            last.structs.append(Struct(SKIP, uint(section.start - end)))
        else:
            last = Section(section.client, section.start, [])
            document.sections.append(last)
        bounds = [section.begin + offset for offset in section.offsets] + [section.stop]
        for begin, stop in pairwise(bounds):
            last.structs.append(_take_struct_apart(parsed.data, begin, stop))
        end = section.ends[-1]
    for client, ranges in parsed.deletes.items():
        document.deletes.append((client, [(start, end - start) for start, end in ranges]))
    return document


def _take_struct_apart(data: bytes, pos: int, end: int) -> Struct:
    info = data[pos]
    pos += 1
    if info == GC:
        return Struct(GC, data[pos:end])
    origin = right = parent = key = None
    if info & 0x80:
        client, pos = read_var_uint(data, pos)
        clock, pos = read_var_uint(data, pos)
        origin = (client, clock)
    if info & 0x40:
        client, pos = read_var_uint(data, pos)
        clock, pos = read_var_uint(data, pos)
        right = (client, clock)
    if not info & 0xC0:
        named, pos = read_var_uint(data, pos)
        if named:
            name, pos = read_var_string(data, pos)
            parent: bytes | Id | None = name.encode()
        else:
            client, pos = read_var_uint(data, pos)
            clock, pos = read_var_uint(data, pos)
            parent = (client, clock)
        if info & 0x20:
            text, pos = read_var_string(data, pos)
            key = text.encode()
    elif info & 0x20:
        key = b""  # the key itself is the origin's
    return Struct(info & 0x1F, data[pos:end], origin, right, parent, key)


# ---- what can be put into an item

GOOD_CONTENTS: Final[list[tuple[int, bytes]]] = [
    (DELETED, uint(1)),
    (DELETED, uint(5)),
    (JSON, uint(2) + string(b'{"a":1}') + string(b"undefined")),
    (BINARY, string(b"\x00\xff")),
    (STRING, string(b"x")),
    (STRING, string("héllo 😀".encode())),
    (STRING, string(b"abcdefgh")),
    (STRING, string("\ufffd\ufffd".encode())),
    (EMBED, string(b'{"image":"x"}')),
    (FORMAT, string(b"bold") + string(b"true")),
    (FORMAT, string(b"bold") + string(b"null")),
    *((TYPE, uint(kind) + (string(b"p") if kind in (3, 5) else b"")) for kind in range(7)),
    (ANY, uint(3) + _any(1) + _any("a") + _any({"k": [None, True, 1.5]})),
    (ANY, uint(1) + b"\x7f"),
    (ANY, uint(1) + b"\x7d\x40"),  # -0
    (ANY, uint(1) + b"\x7a" + bytes(8)),
    (ANY, uint(1) + b"\x7b\x7f\xf8" + bytes(6)),  # NaN
    (ANY, uint(1) + _any([[[[[[]]]]]])),
    (DOC, string(b"guid") + _any({})),
    (DOC, string(b"guid") + _any({"meta": {"a": 1}, "autoLoad": True})),
]
EMPTY_CONTENTS: Final[list[tuple[int, bytes]]] = [
    (GC, uint(0)),
    (DELETED, uint(0)),
    (JSON, uint(0)),
    (STRING, string(b"")),
    (ANY, uint(0)),
]
"""Structs of no length: pycrdt and Yjs 14 write some."""
BAD_CONTENTS: Final[list[tuple[int, bytes]]] = [
    (DELETED, uint(2**53)),
    (JSON, uint(1) + string(b"NaN")),
    (JSON, uint(1) + string(b"undefinedx")),
    (STRING, string(b"\xc3\x28")),
    (STRING, string(b"\xed\xa0\x80")),
    (STRING, uint(2**31) + b"abc"),
    (EMBED, string(b"{")),
    (EMBED, string(b"[" * 300 + b"]" * 300)),
    (FORMAT, string(b"bold") + string(b"Infinity")),
    (TYPE, uint(7)),
    (TYPE, uint(3)),
    (ANY, uint(1) + b"\x73"),
    (ANY, uint(1) + b"\x75\x01" * 300 + b"\x7e"),
    (ANY, uint(2**32) + b"\x7e"),
    (DOC, string(b"guid") + _any([])),
    (DOC, string(b"guid") + b"\x7e"),
    (11, b""),
    (GC, uint(1)),
]
SURROGATES: Final = [string("😀".encode()), string("a😀b".encode()), string("\ufffd".encode())]


# ---- changes

_ODD: Final = [0, 1, 2, 127, 128, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 - 2, 2**53 - 1, 2**53]


def _number(rng: random.Random, near: int) -> int:
    """A number near another, or an odd one."""
    if rng.random() < 0.8:
        return max(0, near + rng.choice((-3, -2, -1, 1, 2, 3)))
    return rng.choice(_ODD)


def _some_client(document: Document, rng: random.Random) -> int:
    if document.sections and rng.random() < 0.8:
        return rng.choice(document.sections).client
    return rng.choice([*range(1, 5), *_ODD])


def _some_id(document: Document, rng: random.Random, near: int = 5) -> Id:
    return _some_client(document, rng), rng.choice((rng.randrange(near + 2), _number(rng, near)))


def _a_struct(document: Document, rng: random.Random) -> tuple[Section, int] | None:
    sections = [section for section in document.sections if section.structs]
    if not sections:
        return None
    section = rng.choice(sections)
    return section, rng.randrange(len(section.structs))


def change_clock(document: Document, rng: random.Random) -> None:
    if document.sections:
        section = rng.choice(document.sections)
        section.clock = _number(rng, section.clock)


def change_client(document: Document, rng: random.Random) -> None:
    if document.sections:
        rng.choice(document.sections).client = _some_client(document, rng)


def change_content(document: Document, rng: random.Random) -> None:
    """The same id with another content, or with one that nobody can read."""
    if (place := _a_struct(document, rng)) is not None:
        section, at = place
        struct = section.structs[at]
        if struct.info in (GC, SKIP):
            struct.parent = b"t"
        contents = GOOD_CONTENTS if rng.random() < 0.85 else BAD_CONTENTS
        struct.info, struct.content = rng.choice(contents)
        if struct.info == GC:
            struct.info |= 0x80


def change_letters(document: Document, rng: random.Random) -> None:
    """Other letters, values or formats under the same ids."""
    if (place := _a_struct(document, rng)) is not None:
        struct = place[0].structs[place[1]]
        if struct.info == STRING:
            try:
                old = read_var_string(struct.content, 0)[0]
            except RemoteProtocolError:
                return  # an earlier change's doing
            text = "".join(rng.choice("xyé") if ord(c) < 2**16 else "🎉" for c in old)
            struct.content = string(text.encode())
        elif struct.info in (BINARY, EMBED):
            struct.info, struct.content = rng.choice(
                [(BINARY, string(b"other")), (EMBED, string(b'{"other":1}'))]
            )
        elif struct.info == FORMAT:
            struct.content = string(b"color") + string(rng.choice([b'"blue"', b"null"]))


def change_to_halves(document: Document, rng: random.Random) -> None:
    """What others may have cut in two."""
    if (place := _a_struct(document, rng)) is not None:
        struct = place[0].structs[place[1]]
        if struct.info not in (GC, SKIP):
            struct.info, struct.content = STRING, rng.choice(SURROGATES)


def change_origin(document: Document, rng: random.Random) -> None:
    if (place := _a_struct(document, rng)) is not None:
        section, at = place
        which = rng.choice(("origin", "right"))
        new = None if rng.random() < 0.2 else _some_id(document, rng, section.clock + at)
        setattr(section.structs[at], which, new)


def change_neighbours(document: Document, rng: random.Random) -> None:
    """What is to the left is to the right, too: Yjs was seen to write that."""
    if (place := _a_struct(document, rng)) is not None:
        section, at = place
        struct = section.structs[at]
        one = struct.origin or struct.right or _some_id(document, rng, section.clock + at)
        struct.origin = struct.right = one


def change_key_bit(document: Document, rng: random.Random) -> None:
    """Say of an item with a neighbour that it has a key, or that it has none: that says nothing."""
    if (place := _a_struct(document, rng)) is not None:
        struct = place[0].structs[place[1]]
        if struct.has_neighbour:
            struct.key = b"" if struct.key is None else None


def forget_keys(document: Document, _: random.Random | None = None) -> None:
    """Write it as Y.mergeUpdates and Y.diffUpdate do, and clients do what waits in them: of an item
    with a neighbour they don't know whether it has a key."""
    for section in document.sections:
        for struct in section.structs:
            if struct.has_neighbour:
                struct.key = None


def replace_value(document: Document, rng: random.Random) -> None:
    """Behind an item, with its key if it has one: what setting a key again does, perhaps longer."""
    if (place := _a_struct(document, rng)) is not None:
        section, at = place
        client, clock = _some_client(document, rng), section.clock + at
        kind, content = rng.choice(GOOD_CONTENTS)
        value = Struct(kind, content, (section.client, clock), key=rng.choice((None, b"")))
        if client == section.client:
            section.structs.append(value)
        else:
            document.sections.append(Section(client, rng.randrange(3), [value]))


def insert_empty(document: Document, rng: random.Random) -> None:
    """A struct of no length: all others keep their clocks."""
    if (place := _a_struct(document, rng)) is not None:
        section, at = place
        like = section.structs[at]
        kind, content = rng.choice(EMPTY_CONTENTS)
        empty = Struct(kind, content)
        if kind != GC and like.info not in (GC, SKIP):
            empty = Struct(kind, content, like.origin, like.right, like.parent, like.key)
        section.structs.insert(at + rng.randrange(2), empty)


def change_parent(document: Document, rng: random.Random) -> None:
    if (place := _a_struct(document, rng)) is not None:
        section, at = place
        struct = section.structs[at]
        if rng.random() < 0.7:
            struct.origin = struct.right = None
        names = [b"t", b"text", b"", b"xml", b"map", "ü".encode()]
        some = rng.random() < 0.6
        struct.parent = _some_id(document, rng, section.clock) if some else rng.choice(names)
        struct.key = rng.choice([None, struct.key, b"k", b"", b"text"])


def change_kind(document: Document, rng: random.Random) -> None:
    if (place := _a_struct(document, rng)) is not None:
        section, at = place
        length = rng.choice((1, 1, 2, 5, _number(rng, 1)))
        section.structs[at] = Struct(rng.choice((GC, SKIP)), uint(length))


def drop_struct(document: Document, rng: random.Random) -> None:
    if (place := _a_struct(document, rng)) is not None:
        del place[0].structs[place[1]]


def repeat_struct(document: Document, rng: random.Random) -> None:
    if (place := _a_struct(document, rng)) is not None:
        section, at = place
        section.structs[at:at] = [section.structs[at]] * rng.choice((1, 1, 2, 70))


def move_struct(document: Document, rng: random.Random) -> None:
    if (place := _a_struct(document, rng)) is not None:
        struct = place[0].structs.pop(place[1])
        section = rng.choice(document.sections)
        section.structs.insert(rng.randrange(len(section.structs) + 1), struct)


def insert_struct(document: Document, rng: random.Random) -> None:
    if document.sections:
        section = rng.choice(document.sections)
        kind, content = rng.choice(GOOD_CONTENTS)
        origin = _some_id(document, rng, section.clock)
        at = rng.randrange(len(section.structs) + 1)
        section.structs.insert(at, Struct(kind, content, origin))


def split_section(document: Document, rng: random.Random) -> None:
    """The rest goes elsewhere: to another client, or to the same at another clock."""
    if (place := _a_struct(document, rng)) is not None:
        section, at = place
        rest = section.structs[at:]
        del section.structs[at:]
        clock = _number(rng, section.clock + at)
        document.sections.append(Section(_some_client(document, rng), clock, rest))


def drop_section(document: Document, rng: random.Random) -> None:
    if document.sections:
        document.sections.pop(rng.randrange(len(document.sections)))


def repeat_section(document: Document, rng: random.Random) -> None:
    if document.sections:
        section = rng.choice(document.sections)
        client = section.client if rng.random() < 0.2 else _some_client(document, rng)
        document.sections.append(Section(client, section.clock, list(section.structs)))


def shuffle_sections(document: Document, rng: random.Random) -> None:
    rng.shuffle(document.sections)


def add_deletes(document: Document, rng: random.Random) -> None:
    client = _some_client(document, rng)
    ranges = [
        (rng.randrange(12), rng.choice((1, 2, 5, 0 if rng.random() < 0.1 else 3)))
        for _ in range(rng.choice((1, 1, 2, 6)))
    ]
    if rng.random() < 0.1:
        ranges.append((rng.choice(_ODD), rng.choice(_ODD)))
    for at, (known, its) in enumerate(document.deletes):
        if known == client and rng.random() < 0.9:
            document.deletes[at] = (client, its + ranges)
            return
    document.deletes.append((client, ranges))


def drop_deletes(document: Document, rng: random.Random) -> None:
    if document.deletes:
        document.deletes.pop(rng.randrange(len(document.deletes)))


CHANGES: Final[list[Callable[[Document, random.Random], None]]] = [
    change_clock,
    change_client,
    change_content,
    change_content,
    change_letters,
    change_letters,
    change_to_halves,
    change_origin,
    change_origin,
    change_neighbours,
    change_key_bit,
    change_key_bit,
    forget_keys,
    replace_value,
    insert_empty,
    change_parent,
    change_kind,
    drop_struct,
    repeat_struct,
    move_struct,
    insert_struct,
    split_section,
    drop_section,
    repeat_section,
    shuffle_sections,
    add_deletes,
    add_deletes,
    drop_deletes,
]


def _tidy_up(document: Document) -> None:
    """Undo what would be refused at once and hide the rest: empty sections, clients named twice."""
    seen: set[int] = set()
    sections = []
    for section in document.sections:
        if section.structs and section.client not in seen:
            seen.add(section.client)
            sections.append(section)
    document.sections = sections
    seen = set()
    document.deletes = [
        (client, [(clock, length) for clock, length in ranges if length])
        for client, ranges in document.deletes
        if ranges and not (client in seen or seen.add(client))
    ]
    document.deletes = [(client, ranges) for client, ranges in document.deletes if ranges]


def mutate(
    update: bytes,
    rng: random.Random,
    others: Sequence[bytes] = (),
    changes: Sequence[Callable[[Document, random.Random], None]] = CHANGES,
) -> bytes:
    """An update that resembles this one, perhaps with parts of some of the others.

    Any bytes will do for `update`; never raises.
    """
    try:
        document = take_apart(update)
        if others and rng.random() < 0.3:
            other = take_apart(rng.choice(others))
            document.sections += other.sections
            document.deletes += other.deletes
    except RemoteProtocolError:
        return mutate_bytes(update, rng)
    if rng.random() < 0.02:
        return mutate_bytes(update, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        rng.choice(changes)(document, rng)
    if rng.random() < 0.9:
        _tidy_up(document)
    encoded = document.encode()
    return mutate_bytes(encoded, rng) if rng.random() < 0.05 else encoded


def without_keys(update: bytes) -> bytes:
    """The same update, as Y.mergeUpdates writes it: see `forget_keys`.

    Raises RemoteProtocolError unless it is well-formed.
    """
    document = take_apart(update)
    forget_keys(document)
    return document.encode()


def with_empties(update: bytes, rng: random.Random) -> bytes:
    """The same update with structs of no length here and there, as pycrdt writes it.

    Raises RemoteProtocolError unless it is well-formed.
    """
    document = take_apart(update)
    for _ in range(3):
        insert_empty(document, rng)
    return document.encode()


def with_one_neighbour(update: bytes, rng: random.Random) -> bytes:
    """The same update, but the items that have an origin may have the same right origin.

    Raises RemoteProtocolError unless it is well-formed.
    """
    document = take_apart(update)
    for section in document.sections:
        for struct in section.structs:
            if struct.origin is not None and rng.random() < 0.3:
                struct.right = struct.origin
    return document.encode()


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, insert, remove, repeat or cut off bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1)
        what = rng.randrange(6)
        if what == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif what == 1 and at < len(out):
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif what == 2:
            out[at:at] = rng.randbytes(rng.choice((1, 2, 8)))
        elif what == 3:
            del out[at : at + rng.choice((1, 2, 8))]
        elif what == 4:
            out[at:at] = out[at : at + rng.choice((1, 4, 16))]
        else:
            del out[at:]
    return bytes(out)
