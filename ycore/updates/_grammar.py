"""The grammar of an update (version 1), and its strict reader.

    update    := n section{n} deleteSet
    section   := nStructs>0 client clock struct{nStructs}              each client at most once
    struct    := 00 len                                                GC
               | 0a len                                                Skip: a hole
               | info [origin] [rightOrigin] [parent] content          Item
    parent    := (01 rootName | 00 id) [key]       only if there is neither origin nor right origin
    content   := see `_skip_content`
    deleteSet := n (client nRanges>0 (clock len>0){nRanges}){n}        each client at most once

Source: yjs `utils/encoding.js` (readClientsStructRefs), `utils/DeleteSet.js` (readDeleteSet),
`structs/*.js`. On top of what Yjs checks we refuse what would make Yjs, or another engine a client
may use, throw or go wrong later: zero lengths, ids that a struct could not have known, info bits
nobody sets, bad UTF-8 and JSON, and bytes left over.

The reader makes no object per struct: it notes where each begins and which clock it ends at.
"""

from __future__ import annotations

from typing import Final

from ..errors import RemoteProtocolError
from ..lib0 import (
    MAX_SAFE_INTEGER,
    check_json,
    read_var_string,
    read_var_uint,
    read_var_uint8_array,
    skip_any,
    write_var_uint,
)

# Struct kinds: the low five bits of the info byte (yjs `structs/Item.js`, contentRefs).
GC: Final = 0
DELETED: Final = 1
JSON: Final = 2
BINARY: Final = 3
STRING: Final = 4
EMBED: Final = 5
FORMAT: Final = 6
TYPE: Final = 7
ANY: Final = 8
DOC: Final = 9
SKIP: Final = 10

# The other bits of an Item's info byte.
KIND: Final = 0x1F
HAS_ORIGIN: Final = 0x80
HAS_RIGHT_ORIGIN: Final = 0x40
HAS_KEY: Final = 0x20
"""The item is the value of a key (`parentSub`), of a map or an XML attribute."""

_MAX_TYPE: Final = 6
_NAMED_TYPES: Final = (3, 5)  # YXmlElement and YXmlHook carry a name
_ANY_OBJECT: Final = 118


class Section:
    """Consecutive structs of one client in an update: `data[offsets[0]:stop]`."""

    __slots__ = ("client", "ends", "offsets", "start", "stop")

    def __init__(self, client: int, start: int) -> None:
        self.client = client
        self.start = start
        """The clock of the first struct."""
        self.ends: list[int] = []
        """For each struct, the clock after it."""
        self.offsets: list[int] = []
        """For each struct, where its bytes begin."""
        self.stop = 0
        """Where the bytes of the last struct end."""


class ParsedUpdate:
    """An update that was checked: its bytes and where things are in them."""

    __slots__ = ("data", "deletes", "sections")

    def __init__(
        self, data: bytes, sections: list[Section], deletes: dict[int, list[tuple[int, int]]]
    ) -> None:
        self.data = data
        self.sections = sections
        """In the order of the update; a Skip ends one and begins another."""
        self.deletes = deletes
        """Client -> (first clock, clock after the last), as they came: unsorted, perhaps
        overlapping."""


def parse_update(data: bytes) -> ParsedUpdate:
    """Check a whole update and note what is where.

    Raises:
        RemoteProtocolError: it is malformed; the message says where.
    """
    size = len(data)
    try:
        count, pos = read_var_uint(data, 0)
        sections: list[Section] = []
        clients = set()
        for _ in range(count):
            pos, client = _read_section(data, pos, sections)
            if client in clients:
                raise RemoteProtocolError(f"client {client} has two sections in one update")
            clients.add(client)
        deletes: dict[int, list[tuple[int, int]]] = {}
        count, pos = read_var_uint(data, pos)
        for _ in range(count):
            pos = _read_deletes(data, pos, deletes)
    except IndexError:
        raise RemoteProtocolError("update ends in the middle of a struct") from None
    if pos != size:
        raise RemoteProtocolError(f"{size - pos} bytes left over after the update")
    return ParsedUpdate(data, sections, deletes)


def _read_section(data: bytes, pos: int, sections: list[Section]) -> tuple[int, int]:
    """Read one client's structs into `sections`; return where they end, and the client."""
    count, pos = read_var_uint(data, pos)
    client_at = pos
    client, pos = read_var_uint(data, pos)
    own_client = data[client_at:pos]
    clock, pos = read_var_uint(data, pos)
    if count == 0 or count * 2 > len(data) - pos:  # the shortest struct has two bytes
        raise RemoteProtocolError(f"client {client} declares {count} structs")
    section = Section(client, clock)
    ends, offsets = section.ends, section.offsets
    for _ in range(count):
        offset = pos
        info = data[pos]
        if info in (SKIP, GC):
            length, pos = read_var_uint(data, pos + 1)
        elif info & KIND == STRING:
            pos = _skip_item_head(data, pos, info, client, own_client, clock)
            # Text is most of what there is, so its content is read here.
            length = data[pos]
            if length < 0x80:
                pos += 1
            else:
                length, pos = read_var_uint(data, pos)
            text = data[pos : pos + length]
            if len(text) != length:
                raise RemoteProtocolError(f"string at byte {pos} runs past the end")
            pos += length
            if not text.isascii():
                length = utf16_length(text, pos - length)
        else:
            pos = _skip_item_head(data, pos, info, client, own_client, clock)
            length, pos = _skip_content(data, pos, info & KIND)
        if length == 0:
            raise RemoteProtocolError(f"struct at byte {offset} has no length")
        clock += length
        if clock > MAX_SAFE_INTEGER:
            raise RemoteProtocolError(f"struct at byte {offset} ends at a clock above 2^53-1")
        if info != SKIP:
            ends.append(clock)
            offsets.append(offset)
        else:
            if ends:
                section.stop = offset
                sections.append(section)
            section = Section(client, clock)
            ends, offsets = section.ends, section.offsets
    if ends:
        section.stop = pos
        sections.append(section)
    return pos, client


def _skip_item_head(
    data: bytes, pos: int, info: int, client: int, own_client: bytes, clock: int
) -> int:
    """Check an Item's ids and parent; return where its content begins.

    An id of the same client must lie before the item, or Yjs throws on integrating it.
    """
    if info & KIND > DOC or info & KIND == GC:
        raise RemoteProtocolError(f"struct at byte {pos} has the unknown info byte {info:#04x}")
    pos += 1
    ids = info >> 6  # 2 origin, 1 right origin
    if ids == 0:
        named, pos = read_var_uint(data, pos)
        if named == 1:
            _, pos = read_var_string(data, pos)
        elif named == 0:
            ids = 2
        else:
            raise RemoteProtocolError(f"parent info at byte {pos - 1} is neither 0 nor 1")
        is_parent = True
    else:
        is_parent = False
    while ids:
        at = pos
        if data.startswith(own_client, pos):
            known, pos = read_var_uint(data, pos + len(own_client))
            own = True
        else:
            id_client, pos = read_var_uint(data, pos)
            known, pos = read_var_uint(data, pos)
            own = id_client == client  # an overlong form of it
        if own and known >= clock:
            raise RemoteProtocolError(f"id at byte {at} refers to a struct not before its own")
        ids = 1 if ids == 3 else 0
    if is_parent and info & HAS_KEY:
        _, pos = read_var_string(data, pos)
    return pos


def _skip_content(data: bytes, pos: int, kind: int) -> tuple[int, int]:
    """Check an Item's content; return its length (how many clocks it takes) and where it ends."""
    if kind == DELETED:  # len
        return read_var_uint(data, pos)
    if kind == FORMAT:  # key json
        _, pos = read_var_string(data, pos)
        text, pos = read_var_string(data, pos)
        check_json(text)
    elif kind == TYPE:  # type [name]
        type_ref, pos = read_var_uint(data, pos)
        if type_ref > _MAX_TYPE:
            raise RemoteProtocolError(f"unknown shared type {type_ref} before byte {pos}")
        if type_ref in _NAMED_TYPES:
            _, pos = read_var_string(data, pos)
    elif kind == ANY:  # n any{n}
        count, pos = read_var_uint(data, pos)
        if count > len(data) - pos:
            raise RemoteProtocolError(f"{count} values declared before byte {pos}")
        return count, skip_any(data, pos, count)
    elif kind == EMBED:  # json
        text, pos = read_var_string(data, pos)
        check_json(text)
    elif kind == BINARY:  # bytes
        _, pos = read_var_uint8_array(data, pos)
    elif kind == JSON:  # n json{n}, where a json may be "undefined"
        count, pos = read_var_uint(data, pos)
        if count > len(data) - pos:
            raise RemoteProtocolError(f"{count} values declared before byte {pos}")
        for _ in range(count):
            text, pos = read_var_string(data, pos)
            if text != "undefined":
                check_json(text)
        return count, pos
    else:  # DOC: guid any(map)
        _, pos = read_var_string(data, pos)
        if data[pos] != _ANY_OBJECT:
            raise RemoteProtocolError(f"subdocument options at byte {pos} are no object")
        pos = skip_any(data, pos)
    return 1, pos


def utf16_length(text: bytes, pos: int) -> int:
    """How many UTF-16 code units, JavaScript's unit of length, this UTF-8 makes."""
    try:
        return len(text.decode().encode("utf-16-le")) >> 1
    except UnicodeDecodeError:
        raise RemoteProtocolError(f"string at byte {pos} is not UTF-8") from None


def _read_deletes(data: bytes, pos: int, deletes: dict[int, list[tuple[int, int]]]) -> int:
    client, pos = read_var_uint(data, pos)
    if client in deletes:
        raise RemoteProtocolError(f"client {client} appears twice in one delete set")
    count, pos = read_var_uint(data, pos)
    if count == 0 or count * 2 > len(data) - pos:
        raise RemoteProtocolError(f"client {client} declares {count} delete ranges")
    ranges = deletes[client] = []
    for _ in range(count):
        start, pos = read_var_uint(data, pos)
        length, pos = read_var_uint(data, pos)
        end = start + length
        if length == 0 or end > MAX_SAFE_INTEGER:
            raise RemoteProtocolError(f"delete range before byte {pos} is empty or ends too far")
        ranges.append((start, end))
    return pos


def decode_state_vector(data: bytes) -> dict[int, int]:
    """Read a state vector: client -> the clock up to which its structs are known.

    Source: yjs `utils/encoding.js` (readStateVector).

    Raises:
        RemoteProtocolError: malformed, a client named twice, or bytes left over.
    """
    count, pos = read_var_uint(data, 0)
    if count * 2 > len(data) - pos:
        raise RemoteProtocolError(f"state vector declares {count} clients")
    clocks: dict[int, int] = {}
    for _ in range(count):
        client, pos = read_var_uint(data, pos)
        if client in clocks:
            raise RemoteProtocolError(f"client {client} appears twice in one state vector")
        clocks[client], pos = read_var_uint(data, pos)
    if pos != len(data):
        raise RemoteProtocolError(f"{len(data) - pos} bytes left over after the state vector")
    return clocks


def encode_state_vector(clocks: dict[int, int]) -> bytes:
    """Write a state vector, higher clients first as Yjs does (`writeStateVector`)."""
    out = bytearray()
    write_var_uint(out, len(clocks))
    for client in sorted(clocks, reverse=True):
        write_var_uint(out, client)
        write_var_uint(out, clocks[client])
    return bytes(out)
