"""The grammar of an update (version 1), and its strict reader.

    update    := n section{n} deleteSet
    section   := nStructs client clock struct{nStructs}
    struct    := 00 len                                                GC
               | 0a len                                                Skip: a hole
               | info [origin] [rightOrigin] [parent] content          Item
    parent    := (01 rootName | 00 id) [key]       only if there is neither origin nor right origin
    content   := see `_skip_short_content` and `_skip_long_content`
    deleteSet := n (client nRanges (clock len>0){nRanges}){n}          each client at most once

Source: yjs `utils/encoding.js` (readClientsStructRefs), `utils/DeleteSet.js` (readDeleteSet),
`structs/*.js`. On top of what Yjs checks we refuse what would make Yjs, or another engine a client
may use, throw or go wrong later: info bits nobody sets, bad UTF-8 and JSON, and bytes left over.

Some things look like mistakes, and are what honest clients write:

- A struct may have no length: pycrdt and others that use yrs write such strings and deleted items
  where they split text beyond ASCII, Yjs 14 writes such strings, and all pass them on. They are
  left out. No id refers to one but by mistake, and theirs may be anything.
- yrs may take such a struct for the right neighbour of the one that then has its id. Yjs would
  throw on an item that is to the left of itself, so that right origin is left out.
- All clocks of a client may be wrong. Yjs 14.0.0-rc.7 writes such updates if what a transaction
  inserted is in several ranges (`utils/encoding-helpers.js`, writeStructs: `skipLen` may be
  negative), and Yjs 13.5 merged some out of which a struct got lost. It shows where a struct names
  an id that is not before its own. Yjs throws on that struct, and those around it would take the
  ids of others, so all structs of that client are left out. The room asks for them again.
- An item that has a neighbour may have a key and not say so: see `HAS_KEY`.
- A client may be named without structs, or without delete ranges (pycrdt). And `Y.mergeUpdates`
  names one twice if it was given an update whose clients were not sorted, as Yjs 13.0 wrote them.
  (What it returns is then lost on Yjs, which reads only the last.)

The reader makes no object per struct: it notes where each begins and which clock it ends at.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final, TypeAlias

from ..errors import CloseCode, RemoteProtocolError
from ..jsontext import SHORT_JSON, check_json, check_json_steps
from ..lib0 import (
    MAX_SAFE_INTEGER,
    read_var_string,
    read_var_uint,
    read_var_uint8_array,
    skip_any_steps,
    skip_some_any,
    skip_var_string,
    write_var_uint,
)
from ..steps import STEP, Steps, finish

Clocks: TypeAlias = "list[int] | array[int]"
"""Many clocks, or offsets."""

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
HAS_BOTH: Final = 0xC0
HAS_KEY: Final = 0x20
"""The item is the value of a key (`parentSub`), of a map or an XML attribute. Only a hint if it has
an origin or a right origin: its key is then its neighbour's, and Yjs does not know that before the
item is integrated. So `Y.mergeUpdates` and `Y.diffUpdate` leave the bit out of all such items, and
a client out of those that are pending; on reading nobody looks at it (`utils/encoding.js`,
readClientsStructRefs)."""

_MAX_TYPE: Final = 6
_MANY: Final = 64
"""From how many structs on the places of structs are kept in arrays."""
_MANY_NEIGHBOURS: Final = 1024
"""Of how many clients it is noted which of their structs an update depends on: of more, an attacker
could have too much noted."""
_NAMED_TYPES: Final = (3, 5)  # YXmlElement and YXmlHook carry a name
_ANY_OBJECT: Final = 118


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateLimits:
    """What one update, or state vector, may hold. More is refused with close code 4413."""

    structs: int = 4_000_000
    """While an update is read, each struct takes 16 bytes besides its own. A page of prose has
    some hundred of them."""

    sections: int = 100_000
    """Clients and holes. Each takes some 800 bytes of memory while the update is read, and time
    whenever somebody joins. Every page load that leads to an edit makes a client."""

    delete_ranges: int = 1_000_000
    """All ranges of a document come with every SyncStep2. Each takes some 150 bytes while the
    update is read."""

    state_vector: int = 1_000_000
    """Clients in a state vector: in all that one client has seen of a document."""


NO_LIMITS: Final = UpdateLimits(
    structs=2**53, sections=2**53, delete_ranges=2**53, state_vector=2**53
)
"""For what was let in before: a document may have grown above what a single message may bring."""


class Section:
    """Consecutive structs of one client in an update: `data[begin:stop]`."""

    __slots__ = ("begin", "client", "ends", "offsets", "start", "stop")

    def __init__(self, client: int, start: int, begin: int, many: bool) -> None:
        self.client = client
        self.start = start
        """The clock of the first struct."""
        self.begin = begin
        """Where the bytes of the first struct begin."""
        self.stop = begin
        """Where the bytes of the last struct end."""
        # Arrays take an eighth of the memory; for a keystroke, making them would take longer.
        self.ends: Clocks = array("Q") if many else []
        """For each struct, the clock after it."""
        self.offsets: Clocks = array("Q") if many else []
        """For each struct, where its bytes begin, counted from `begin`."""


class ParsedUpdate:
    """An update that was checked: its bytes and where things are in them."""

    __slots__ = (
        "bad_id",
        "cuts",
        "data",
        "deletes",
        "has_keys",
        "is_amended",
        "left_out",
        "neighbours",
        "sections",
        "tidy",
        "weight",
        "without_right",
    )

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.sections: list[Section] = []
        """In the order of the update; a Skip ends one and begins another."""
        self.deletes: dict[int, list[tuple[int, int]]] = {}
        """Client -> (first clock, clock after the last): sorted, with gaps between them."""
        self.weight = 0
        """How many sections, clients with deletes and ranges there are: what costs time to take
        in. Structs cost little, since they are taken in many at a time."""
        self.tidy = False
        """Whether `data` can be passed on for this: it says no more, and has the delete ranges in
        this form, too."""
        self.has_keys = False
        """Whether any item says that it has a key."""
        self.neighbours: dict[int, int] | None = {}
        """For each other client, the highest clock that an item names as its origin, right origin
        or parent. None if these are too many clients."""
        self.is_amended = False
        """Whether a right origin was left out since it named the item itself."""
        self.left_out = 0
        """How many structs were left out since their clocks are wrong."""
        # While it is read:
        self.bad_id = 0
        """The place of an id that the struct being read could not have known; 0 if none is."""
        self.cuts: Clocks = []
        """Places in `data`, in turn: where something begins that is left out, and where it ends."""
        self.without_right: Clocks = []
        """Where in `data` items begin whose right origin is to be left out."""


_PART: Final = 2000
"""How heavy an update may be to be taken into a store in one go: some 20 ms at worst."""


def parts_of(update: ParsedUpdate) -> Iterable[ParsedUpdate]:
    """The update, or if it is too heavy to be taken in at once, lighter ones that say the same."""
    return (update,) if update.weight <= _PART else _parts_of(update)


def _falling_client(section: Section) -> int:
    return -section.client


def _parts_of(update: ParsedUpdate) -> Iterator[ParsedUpdate]:
    # Higher clients first, as Yjs writes them. Each part is sent on by itself; and where many have
    # put something at one place, a client would walk past all of it for every lower one before.
    sections = sorted(update.sections, key=_falling_client)
    for done in range(0, len(sections), _PART):
        part = ParsedUpdate(update.data)
        part.left_out = 0 if done else update.left_out
        part.sections = sections[done : done + _PART]
        part.has_keys = update.has_keys
        part.neighbours = update.neighbours
        part.weight = len(part.sections)
        yield part
    part = ParsedUpdate(update.data)
    for client, its in update.deletes.items():
        for done in range(0, len(its), _PART):
            part.deletes[client] = its[done : done + _PART]
            part.weight += 1 + len(part.deletes[client])
            if part.weight >= _PART:
                yield part
                part = ParsedUpdate(update.data)
    if part.deletes:
        yield part


def _without_cuts(update: ParsedUpdate) -> Steps[bytes]:
    """The update's bytes without what is to be left out, in steps."""
    data = bytearray(update.data)
    turn = 0
    for turn, at in enumerate(update.without_right, 1):
        data[at] &= ~HAS_RIGHT_ORIGIN
        if not turn % STEP:
            yield
    nowhere = len(data)
    bounds = chain(update.cuts, (nowhere, nowhere))
    begin, stop = next(bounds), next(bounds)
    sections = 0
    out = bytearray()
    done = 0
    its = update.sections
    while done < len(its):
        # Those of one client that follow each other, with holes between them.
        client, first = its[done].client, its[done].start
        structs = 0
        clock = first
        body = bytearray()
        while done < len(its) and its[done].client == client and its[done].start >= clock:
            section = its[done]
            if section.start > clock:
                body.append(SKIP)
                write_var_uint(body, section.start - clock)
                structs += 1
            at = section.begin
            while begin < section.stop:
                body += data[at:begin]
                at = max(at, stop)
                begin, stop = next(bounds), next(bounds)
                turn += 1
                if not turn % STEP:
                    yield
            body += data[at : section.stop]
            structs += len(section.ends)
            clock = section.ends[-1]
            done += 1
        write_var_uint(out, structs)
        write_var_uint(out, client)
        write_var_uint(out, first)
        out += body
        sections += 1
    head = bytearray()
    write_var_uint(head, sections)
    write_var_uint(out, len(update.deletes))
    for client, ranges in update.deletes.items():
        write_var_uint(out, client)
        write_var_uint(out, len(ranges))
        for start, end in ranges:
            write_var_uint(out, start)
            write_var_uint(out, end - start)
            turn += 1
            if not turn % STEP:
                yield
    return bytes(head + out)


def parse_update(data: bytes, limits: UpdateLimits = NO_LIMITS) -> ParsedUpdate:
    """Check a whole update and note what is where.

    Raises:
        RemoteProtocolError: it is malformed; the message says where.
    """
    return finish(parse_update_steps(data, limits))


def parse_update_steps(data: bytes, limits: UpdateLimits = NO_LIMITS) -> Steps[ParsedUpdate]:
    """`parse_update` in steps."""
    size = len(data)
    update = ParsedUpdate(data)
    deletes = update.deletes
    try:
        count, pos = read_var_uint(data, 0)
        clients = set()
        structs = 0
        tidy = True
        for turn in range(1, count + 1):
            if not turn % STEP:
                yield
            number, pos = read_var_uint(data, pos)
            structs += number
            if structs > limits.structs:
                raise _too_many("structs", limits.structs)
            client_at = pos
            client, pos = read_var_uint(data, pos)
            own_client = data[client_at:pos]
            clock, pos = read_var_uint(data, pos)
            if number * 2 > size - pos:  # the shortest struct has two bytes
                raise RemoteProtocolError(f"client {client} declares {number} structs")
            if number == 0:
                tidy = False
                continue
            section = Section(client, clock, pos, number > _MANY)
            content: tuple[int, int] | None = None
            into, declared, known = update, number, len(update.sections)
            while True:
                section, number, pos, content_at = _read_structs(
                    into, section, own_client, number, pos, content, limits.sections
                )
                if into.bad_id:
                    if into is update:
                        del update.sections[known:]
                        update.left_out += declared
                        update.bad_id = 0
                    into = ParsedUpdate(data)  # the rest is checked, and forgotten
                if content_at:
                    content = yield from _skip_long_content(data, content_at, data[pos] & KIND)
                elif number:
                    content = None
                    yield
                else:
                    break
            _end_section(into, section, pos, limits.sections)
            tidy = tidy and client not in clients
            clients.add(client)
        count, pos = read_var_uint(data, pos)
        if count > limits.sections:
            raise _too_many("clients with deletes", limits.sections)
        left = limits.delete_ranges
        for turn in range(1, count + 1):
            if not turn % STEP:
                yield
            client, pos = read_var_uint(data, pos)
            if client in deletes:
                raise RemoteProtocolError(f"client {client} appears twice in one delete set")
            number, pos = read_var_uint(data, pos)
            left -= number
            if left < 0:
                raise _too_many("delete ranges", limits.delete_ranges)
            if number * 2 > size - pos:
                raise RemoteProtocolError(f"client {client} declares {number} delete ranges")
            if number == 0:
                tidy = False
                continue
            ranges: list[tuple[int, int]] = []
            in_order = True
            while True:
                pos, ordered = _read_ranges(data, pos, min(number, STEP), ranges)
                in_order &= ordered
                number -= STEP
                if number <= 0:
                    break
                yield
            if not in_order:
                ranges = yield from _in_order(ranges)
                tidy = False
            deletes[client] = ranges
    except IndexError:
        raise RemoteProtocolError("update ends in the middle of a struct") from None
    if pos != size:
        raise RemoteProtocolError(f"{size - pos} bytes left over after the update")
    update.tidy = tidy
    update.weight = len(update.sections) + len(deletes) + limits.delete_ranges - left
    if update.cuts or update.left_out:
        amended = yield from parse_update_steps((yield from _without_cuts(update)), limits)
        amended.is_amended = len(update.without_right) > 0
        amended.left_out = update.left_out
        return amended
    return update


def _too_many(what: str, limit: int) -> RemoteProtocolError:
    reason = f"more than {limit} {what} in one update"
    return RemoteProtocolError(reason, CloseCode.MESSAGE_TOO_BIG)


def _end_section(update: ParsedUpdate, section: Section, stop: int, max_sections: int) -> None:
    """A section's structs end here, if it has any: nothing else may be in a hole."""
    if section.ends:
        section.stop = stop
        update.sections.append(section)
        if len(update.sections) > max_sections:
            raise _too_many("clients and holes", max_sections)


def _read_structs(
    update: ParsedUpdate,
    section: Section,
    own_client: bytes,
    count: int,
    pos: int,
    content: tuple[int, int] | None,
    max_sections: int,
) -> tuple[Section, int, int, int]:
    """Read one client's structs, a step of them at most; return where to go on: in which section,
    with how many structs, and at which byte.

    It stops before a struct whose content may be long, and returns where that is, too (else 0):
    `content` takes what `_skip_long_content` found there. It stops behind a struct whose clock is
    wrong, too: then `update.bad_id` is set.
    """
    data = update.data
    client = section.client
    ends, offsets, begin = section.ends, section.offsets, section.begin
    clock = ends[-1] if ends else section.start
    later = count - STEP if count > STEP else 0
    for left in range(count, later, -1):
        offset = pos
        info = data[pos]
        kind = info & KIND
        if kind == STRING:
            pos = _skip_item_head(data, pos, info, client, own_client, clock, update)
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
        elif info in (SKIP, GC):
            length, pos = read_var_uint(data, pos + 1)
        else:
            if kind == GC or kind > DOC:
                raise RemoteProtocolError(
                    f"struct at byte {pos} has the unknown info byte {info:#04x}"
                )
            pos = _skip_item_head(data, pos, info, client, own_client, clock, update)
            if content is None:
                length, end = _skip_short_content(data, pos, kind)
                if length < 0:
                    return section, left, offset, pos
                pos = end
            else:
                length, pos = content
                content = None
        if length == 0:
            update.bad_id = 0
            _cut(update, offset, pos)
            continue
        if update.bad_id and not _amend(update, offset, clock):
            return Section(client, clock, pos, False), left - 1, pos, 0
        if info & HAS_KEY:
            update.has_keys = True
        clock += length
        if clock > MAX_SAFE_INTEGER:
            raise RemoteProtocolError(f"struct at byte {offset} ends at a clock above 2^53-1")
        if info != SKIP:
            ends.append(clock)
            offsets.append(offset - begin)
        else:
            _end_section(update, section, offset, max_sections)
            section = Section(client, clock, pos, isinstance(ends, array))
            ends, offsets, begin = section.ends, section.offsets, section.begin
    if update.neighbours is not None and len(update.neighbours) > _MANY_NEIGHBOURS:
        update.neighbours = None
    return section, later, pos, 0


def _cut(update: ParsedUpdate, begin: int, stop: int) -> None:
    """Note that these bytes are to be left out."""
    if not update.cuts:  # an array takes less: see `Section`
        update.cuts = array("Q")
        update.without_right = array("Q")
    update.cuts.extend((begin, stop))


def _amend(update: ParsedUpdate, offset: int, clock: int) -> bool:
    """An id in the item at `offset` is not before the item. If it is the right origin, and the item
    itself, and there is an origin besides, it is left out. Returns whether it is."""
    data, bad_at = update.data, update.bad_id
    if data[offset] & HAS_BOTH == HAS_BOTH:
        _, pos = read_var_uint(data, offset + 1)
        _, right_at = read_var_uint(data, pos)
        _, pos = read_var_uint(data, right_at)
        right_clock, stop = read_var_uint(data, pos)
        if bad_at == right_at and right_clock == clock:
            _cut(update, right_at, stop)
            update.without_right.append(offset)
            update.bad_id = 0
            return True
    return False


def _skip_item_head(
    data: bytes,
    pos: int,
    info: int,
    client: int,
    own_client: bytes,
    clock: int,
    update: ParsedUpdate,
) -> int:
    """Check an Item's ids and parent; return where its content begins.

    Origin and right origin may be the same struct: Yjs itself was seen to write such an item (where
    it then puts it depends on how structs happen to be cut).
    """
    pos += 1
    if info >= HAS_RIGHT_ORIGIN:
        if info >= HAS_ORIGIN:
            pos = _skip_id(data, pos, client, own_client, clock, update)
        if info & HAS_RIGHT_ORIGIN:
            pos = _skip_id(data, pos, client, own_client, clock, update)
    else:
        named, pos = read_var_uint(data, pos)
        if named == 1:
            pos = skip_var_string(data, pos)
        elif named == 0:
            pos = _skip_id(data, pos, client, own_client, clock, update)
        else:
            raise RemoteProtocolError(f"parent info at byte {pos - 1} is neither 0 nor 1")
        if info & HAS_KEY:
            pos = skip_var_string(data, pos)
    return pos


def _skip_id(
    data: bytes, pos: int, client: int, own_client: bytes, clock: int, update: ParsedUpdate
) -> int:
    """Check an id in an item at `clock`; return where it ends.

    An id of the same client must lie before the item, or Yjs throws on integrating it: if it does
    not, its place is noted in `bad_id`. Ids of other clients are noted in `neighbours`.
    """
    at = pos
    if data.startswith(own_client, pos):
        id_client = client
        pos += len(own_client)
    else:
        id_client, pos = read_var_uint(data, pos)
    id_clock, pos = read_var_uint(data, pos)
    if id_client == client:
        if id_clock >= clock and not update.bad_id:
            update.bad_id = at
    elif (neighbours := update.neighbours) is not None and id_clock >= neighbours.get(id_client, 0):
        neighbours[id_client] = id_clock
    return pos


def _skip_short_content(data: bytes, pos: int, kind: int) -> tuple[int, int]:
    """Check content that is short; return how many clocks it takes, and where it ends. -1 clocks
    if it may be long: then it is for `_skip_long_content` to check."""
    if kind == DELETED:  # len
        return read_var_uint(data, pos)
    if kind == TYPE:  # type [name]
        type_ref, pos = read_var_uint(data, pos)
        if type_ref > _MAX_TYPE:
            raise RemoteProtocolError(f"unknown shared type {type_ref} before byte {pos}")
        if type_ref in _NAMED_TYPES:
            pos = skip_var_string(data, pos)
    elif kind == BINARY:  # bytes
        _, pos = read_var_uint8_array(data, pos)
    elif kind == ANY:  # n any{n}
        count, pos = _read_count(data, pos)
        values = [(False, count)]
        pos = skip_some_any(data, pos, values)
        return (-1 if values else count), pos
    elif kind in (FORMAT, EMBED):  # [key] json
        if kind == FORMAT:
            pos = skip_var_string(data, pos)
        text, pos = read_var_string(data, pos)
        if len(text) > SHORT_JSON:
            return -1, pos
        check_json(text)
    else:
        return -1, pos
    return 1, pos


def _skip_long_content(data: bytes, pos: int, kind: int) -> Steps[tuple[int, int]]:
    """Check content that may be long; likewise."""
    if kind in (FORMAT, EMBED):
        if kind == FORMAT:
            pos = skip_var_string(data, pos)
        text, pos = read_var_string(data, pos)
        yield from check_json_steps(text)
        return 1, pos
    if kind == DOC:  # guid any(map)
        pos = skip_var_string(data, pos)
        if data[pos] != _ANY_OBJECT:
            raise RemoteProtocolError(f"subdocument options at byte {pos} are no object")
        pos = yield from skip_any_steps(data, pos)
        return 1, pos
    count, pos = _read_count(data, pos)
    if kind == ANY:
        pos = yield from skip_any_steps(data, pos, count)
    else:  # JSON: n json{n}, where a json may be "undefined"
        for turn in range(1, count + 1):
            text, pos = read_var_string(data, pos)
            if len(text) > SHORT_JSON:
                yield from check_json_steps(text)
            elif text != "undefined":
                check_json(text)
            if not turn % STEP:
                yield
    return count, pos


def _read_count(data: bytes, pos: int) -> tuple[int, int]:
    """Read how many values there are in content that has many."""
    count, pos = read_var_uint(data, pos)
    if count > len(data) - pos:
        raise RemoteProtocolError(f"{count} values declared before byte {pos}")
    return count, pos


def utf16_length(text: bytes, pos: int) -> int:
    """How many UTF-16 code units, JavaScript's unit of length, this UTF-8 makes."""
    try:
        return len(text.decode().encode("utf-16-le")) >> 1
    except UnicodeDecodeError:
        raise RemoteProtocolError(f"string at byte {pos} is not UTF-8") from None


def _read_ranges(
    data: bytes, pos: int, count: int, ranges: list[tuple[int, int]]
) -> tuple[int, bool]:
    """Read so many of one client's delete ranges, on top of those before; return where they end,
    and whether they are sorted and disjoint."""
    last = ranges[-1][1] if ranges else -1
    in_order = True
    for _ in range(count):
        start, pos = read_var_uint(data, pos)
        length, pos = read_var_uint(data, pos)
        end = start + length
        if length == 0 or end > MAX_SAFE_INTEGER:
            raise RemoteProtocolError(f"delete range before byte {pos} is empty or ends too far")
        if start <= last:
            in_order = False
        last = end
        ranges.append((start, end))
    return pos, in_order


def _in_order(ranges: list[tuple[int, int]]) -> Steps[list[tuple[int, int]]]:
    """Sort ranges, and join those that overlap or touch. Yjs sends them so, others may not."""
    sorted_parts = []
    for done in range(0, len(ranges), STEP):
        sorted_parts.append(sorted(ranges[done : done + STEP]))
        yield
    joined: list[tuple[int, int]] = []
    last = -1
    for turn, (start, end) in enumerate(heapq.merge(*sorted_parts), 1):
        if not turn % STEP:
            yield
        if start > last:
            joined.append((start, end))
        elif end > last:
            joined[-1] = (joined[-1][0], end)
        last = max(last, end)
    return joined


def decode_state_vector(data: bytes) -> dict[int, int]:
    """Read a state vector: client -> the clock up to which its structs are known.

    Source: yjs `utils/encoding.js` (readStateVector).

    Raises:
        RemoteProtocolError: malformed, a client named twice, or bytes left over.
    """
    return finish(decode_state_vector_steps(data))


def decode_state_vector_steps(
    data: bytes, limits: UpdateLimits = NO_LIMITS
) -> Steps[dict[int, int]]:
    """`decode_state_vector` in steps."""
    count, pos = read_var_uint(data, 0)
    if count > limits.state_vector:
        reason = f"more than {limits.state_vector} clients in a state vector"
        raise RemoteProtocolError(reason, CloseCode.MESSAGE_TOO_BIG)
    if count * 2 > len(data) - pos:
        raise RemoteProtocolError(f"state vector declares {count} clients")
    clocks: dict[int, int] = {}
    for turn in range(1, count + 1):
        if not turn % STEP:
            yield
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
