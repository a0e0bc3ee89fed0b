"""A view: what a document shows, read out of its struct store.

A struct store knows which structs and deletes there are, not what they mean. The view puts them
together as Yjs does (`structs/Item.js`, getMissing and integrate): each item goes behind the one it
was typed behind, and what several people typed at one place is ordered by their ids. It is made of
a store as it is then, and does not change with it.

What depends on structs that have not come yet is left out, as Yjs leaves it out (`View.held_back`).
Nothing in a document makes this fail: what belongs nowhere is taken for collected, as in Yjs.

A root type gets its kind from whoever asks for it, not from the document: so `View.roots` has all
of them as they are, each with all that it could be, and `to_json` guesses.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from enum import IntEnum
from heapq import heappop, heappush
from html import escape
from typing import Any, Final, NamedTuple, TypeAlias

from .lib0 import Undefined, read_any, read_var_string, read_var_uint, read_var_uint8_array
from .updates import StructStore
from .updates._grammar import (
    ANY,
    BINARY,
    DELETED,
    DOC,
    EMBED,
    FORMAT,
    GC,
    HAS_KEY,
    HAS_ORIGIN,
    HAS_RIGHT_ORIGIN,
    JSON,
    KIND,
    SKIP,
    STRING,
    TYPE,
)

__all__ = ["Kind", "SharedType", "Subdocument", "View"]

Id: TypeAlias = tuple[int, int]
_COUNTED: Final = frozenset({ANY, BINARY, DOC, EMBED, JSON, STRING, TYPE})
_MAX_DEPTH: Final = 200
"""How deep types may be nested to be shown: Python's own recursion is bounded too."""
_REPLACEMENT: Final = "\ufffd".encode("utf-16-le")


class Kind(IntEnum):
    """What a shared type is (yjs `structs/ContentType.js`)."""

    ARRAY = 0
    MAP = 1
    TEXT = 2
    XML_ELEMENT = 3
    XML_FRAGMENT = 4
    XML_HOOK = 5
    XML_TEXT = 6


class Subdocument(NamedTuple):
    """A document in a document: here is only its name."""

    guid: str
    options: Any


class _Item:
    """An item, or a part of one (yjs `structs/Item.js`)."""

    __slots__ = (
        "client", "clock", "content", "deleted", "key", "kind", "left", "length", "origin",
        "parent", "right", "right_origin",
    )  # fmt: skip

    def __init__(self, kind: int, client: int, clock: int, length: int, content: Any) -> None:
        self.kind = kind
        self.client = client
        self.clock = clock
        self.length = length
        self.content = content
        """STRING: UTF-16; JSON and ANY: a list of values; else one value."""
        self.origin: Id | None = None
        self.right_origin: Id | None = None
        self.parent: SharedType | Id | str | None = None
        self.key: str | None = None
        self.left: _Item | None = None
        self.right: _Item | None = None
        self.deleted = kind in (GC, DELETED)

    def split(self, at: int) -> _Item:
        """Cut it after `at` clocks; returns the right part."""
        content: Any = self.content
        rest: Any = None
        if self.kind == STRING:
            content, rest = content[: 2 * at], content[2 * at :]
            if 0xD8 <= content[-1] <= 0xDB:  # a pair of surrogates (`ContentString.js`, splice)
                content, rest = content[:-2] + _REPLACEMENT, _REPLACEMENT + rest[2:]
        elif self.kind in (JSON, ANY):
            content, rest = content[:at], content[at:]
        right = _Item(self.kind, self.client, self.clock + at, self.length - at, rest)
        right.deleted = self.deleted
        right.origin = (self.client, right.clock - 1)
        right.right_origin = self.right_origin
        right.parent, right.key = self.parent, self.key
        right.left, right.right = self, self.right
        if self.right is not None:
            self.right.left = right
        elif right.key is not None and isinstance(right.parent, SharedType):
            right.parent._map[right.key] = right
        self.right = right
        self.content, self.length = content, at
        return right


class SharedType:
    """A shared type: a root, or one in another."""

    def __init__(self, kind: Kind | None, name: str = "", item: _Item | None = None) -> None:
        self.kind = kind
        """None if it is a root: then it is what one takes it for."""
        self.name = name
        """Of a root, an XML element or a hook."""
        self._item = item
        self._start: _Item | None = None
        self._map: dict[str, _Item] = {}
        """For each key its last item."""

    def _items(self) -> Iterator[_Item]:
        item = self._start
        while item is not None:
            if not item.deleted:
                yield item
            item = item.right

    def guess(self) -> Kind:
        """Its kind; of a root, what its content looks like."""
        if self.kind is not None:
            return self.kind
        for item in self._items():
            if item.kind in (STRING, FORMAT, EMBED):
                return Kind.TEXT
            if item.kind == TYPE and item.content.kind >= Kind.XML_ELEMENT:
                return Kind.XML_FRAGMENT
            return Kind.ARRAY
        return Kind.MAP if self._map else Kind.ARRAY

    def values(self) -> list[Any]:
        """As an array, or an XML fragment's children. Types in it are SharedTypes."""
        found: list[Any] = []
        for item in self._items():
            if item.kind in (JSON, ANY):
                found += item.content
            elif item.kind == STRING:
                units = item.content  # one value each, as in JavaScript's split("")
                found += (_string(units[at : at + 2]) for at in range(0, len(units), 2))
            elif item.kind in _COUNTED:
                found.append(item.content)
        return found

    def entries(self) -> dict[str, Any]:
        """As a map, or an XML element's attributes. Types in it are SharedTypes."""
        return {
            key: item.content[-1] if item.kind in (JSON, ANY) else _plain(item)
            for key, item in self._map.items()
            if not item.deleted
        }

    def text(self) -> str:
        """As a text, without formats and embeds."""
        return "".join(_string(item.content) for item in self._items() if item.kind == STRING)

    def delta(self) -> list[dict[str, Any]]:
        """As a text with formats: Quill's delta (yjs `types/YText.js`, toDelta)."""
        delta: list[dict[str, Any]] = []
        attributes: dict[str, Any] = {}
        text = b""

        def flush() -> None:
            nonlocal text
            if text:
                add(_string(text))
            text = b""

        def add(insert: Any) -> None:
            delta.append({"insert": insert})
            if attributes:
                delta[-1]["attributes"] = dict(attributes)

        for item in self._items():
            if item.kind == STRING:
                text += item.content
            elif item.kind == FORMAT:
                flush()
                key, value = item.content
                if value is None:
                    attributes.pop(key, None)
                else:
                    attributes[key] = value
            elif item.kind in (EMBED, TYPE):
                flush()
                add(item.content)
        flush()
        return delta

    def to_json(self, kind: Kind | None = None) -> Any:
        """As plain data for `json`: text and XML as strings, bytes as {"$bytes": hexadecimal},
        subdocuments as {"$document": guid}."""
        return self._to_json(self.guess() if kind is None else kind, 0)

    def _to_json(self, kind: Kind, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            return {"$nested": f"deeper than {_MAX_DEPTH}"}
        if kind == Kind.TEXT:
            return self.text()
        if kind in (Kind.MAP, Kind.XML_HOOK):
            return {key: _json(value, depth) for key, value in sorted(self.entries().items())}
        if kind == Kind.ARRAY:
            return [_json(value, depth) for value in self.values()]
        return self._xml(kind, depth)

    def _xml(self, kind: Kind, depth: int) -> str:
        """As XML (yjs `types/YXmlElement.js` and YXmlText.js, toString; but what would not be XML
        is escaped)."""
        if kind == Kind.XML_TEXT:
            return "".join(_xml_run(run) for run in self.delta())
        children = "".join(
            str(child._to_json(child.guess(), depth + 1))
            if isinstance(child, SharedType)
            else escape(str(child))
            for child in self.values()
        )
        if kind == Kind.XML_FRAGMENT:
            return children
        attributes = "".join(
            f' {key}="{escape(_word(value))}"' for key, value in sorted(self.entries().items())
        )
        name = self.name.lower()
        return f"<{name}{attributes}>{children}</{name}>"


class View:
    """What a document shows.

    Args:
        store: the document. It is not changed, and may be changed later.
    """

    def __init__(self, store: StructStore) -> None:
        self.roots: dict[str, SharedType] = {}
        """The root types that anything was ever put into, by name."""
        self.held_back = 0
        """How many clocks of structs wait for others that are missing."""
        self._items: defaultdict[int, list[_Item]] = defaultdict(list)
        """For each client its items, by clock, without a hole."""
        self._starts: defaultdict[int, list[int]] = defaultdict(list)
        structs, deletes = _read(store.encode())
        self._integrate_all(structs)
        for client, ranges in deletes:
            for start, end in ranges:
                self._delete(client, start, end)

    def to_json(self) -> dict[str, Any]:
        """All roots as plain data for `json`, each taken for what it looks like."""
        return {name: root.to_json() for name, root in sorted(self.roots.items())}

    # -- putting together

    def _end(self, client: int) -> int:
        """The clock up to which all of a client's structs are in."""
        items = self._items.get(client)
        return items[-1].clock + items[-1].length if items else 0

    def _integrate_all(self, structs: dict[int, list[_Item]]) -> None:
        """In an order in which each comes behind what it depends on; some may never come."""
        todo = {client: iter(items) for client, items in structs.items()}
        ready = sorted(todo, reverse=True)
        waiting: defaultdict[int, list[tuple[int, int, _Item]]] = defaultdict(list)
        """Client -> a heap of who waits for a clock of it: that clock, who, and with what."""
        next_one: dict[int, _Item] = {}
        self.held_back = sum(item.length for items in structs.values() for item in items)
        while ready:
            client = ready.pop()
            while (item := next_one.pop(client, None) or next(todo[client], None)) is not None:
                if item.clock > self._end(client):
                    break  # behind a hole
                missing = self._missing(item)
                if missing is not None:
                    heappush(waiting[missing[0]], (missing[1], client, item))
                    break
                self._integrate(item)
                self.held_back -= item.length
            end = self._end(client)
            heap = waiting[client]
            while heap and heap[0][0] < end:
                _, who, what = heappop(heap)
                next_one[who] = what
                ready.append(who)

    def _missing(self, item: _Item) -> Id | None:
        """An id that it depends on and that is not there yet."""
        for id_ in (item.origin, item.right_origin, item.parent):
            if isinstance(id_, tuple) and id_[1] >= self._end(id_[0]):
                return id_
        return None

    def _at(self, id_: Id) -> tuple[int, _Item]:
        """The item with this id, and where it is."""
        client, clock = id_
        index = bisect_right(self._starts[client], clock) - 1
        return index, self._items[client][index]

    def _beginning(self, id_: Id) -> _Item:
        """The item that begins with this id, after it was cut there if need be."""
        index, item = self._at(id_)
        if item.clock == id_[1] or item.kind == GC:
            return item
        right = item.split(id_[1] - item.clock)
        self._items[id_[0]].insert(index + 1, right)
        self._starts[id_[0]].insert(index + 1, right.clock)
        return right

    def _ending(self, id_: Id) -> _Item:
        """The item that ends with this id, likewise."""
        _, item = self._at(id_)
        if item.kind != GC and item.clock + item.length > id_[1] + 1:
            self._beginning((id_[0], id_[1] + 1))
        return item

    def _integrate(self, item: _Item) -> None:
        if item.kind != GC:
            if item.origin is not None:
                item.left = self._ending(item.origin)
            if item.right_origin is not None:
                item.right = self._beginning(item.right_origin)
            parent = self._parent_of(item)
            if parent is None:
                item.kind, item.content, item.deleted = GC, None, True
                item.left = item.right = None
            else:
                item.parent = parent
                self._insert(item, parent)
        self._items[item.client].append(item)
        self._starts[item.client].append(item.clock)

    def _parent_of(self, item: _Item) -> SharedType | None:
        """The type it belongs to; None if that was collected. Takes over the neighbour's key."""
        left, right = item.left, item.right
        if (left and left.kind == GC) or (right and right.kind == GC):
            return None
        if isinstance(item.parent, str):
            if item.parent not in self.roots:
                self.roots[item.parent] = SharedType(None, item.parent)
            return self.roots[item.parent]
        if isinstance(item.parent, tuple):
            _, owner = self._at(item.parent)
            content = owner.content
            return content if owner.kind == TYPE and isinstance(content, SharedType) else None
        neighbour = left or right
        assert neighbour is not None  # or it would name its parent
        item.key = neighbour.key
        return neighbour.parent if isinstance(neighbour.parent, SharedType) else None

    def _insert(self, item: _Item, parent: SharedType) -> None:
        left, right = item.left, item.right
        if (left is None and (right is None or right.left is not None)) or (
            left is not None and left.right is not right
        ):
            left = item.left = self._place(item, parent)
        if left is not None:
            item.right = left.right
            left.right = item
        else:
            item.right = self._first(item, parent)
            if item.key is None:
                parent._start = item
        if item.right is not None:
            item.right.left = item
        elif item.key is not None:
            parent._map[item.key] = item
            if item.left is not None:
                item.left.deleted = True
        if item.key is not None and item.right is not None:
            item.deleted = True
        if item.kind == TYPE:
            item.content._item = item

    @staticmethod
    def _first(item: _Item, parent: SharedType) -> _Item | None:
        """The first of the items among which this one goes."""
        if item.key is None:
            return parent._start
        first = parent._map.get(item.key)
        while first is not None and first.left is not None:
            first = first.left
        return first

    def _place(self, item: _Item, parent: SharedType) -> _Item | None:
        """What goes to its left, of what others have put at the same place."""
        left = item.left
        other = left.right if left is not None else self._first(item, parent)
        conflicting: set[_Item] = set()
        before_origin: set[_Item] = set()
        while other is not None and other is not item.right:
            before_origin.add(other)
            conflicting.add(other)
            if item.origin == other.origin:
                if other.client < item.client:
                    left = other
                    conflicting.clear()
                elif item.right_origin == other.right_origin:
                    break
            elif other.origin is not None and (at := self._at(other.origin)[1]) in before_origin:
                if at not in conflicting:
                    left = other
                    conflicting.clear()
            else:
                break
            other = other.right
        return left

    def _delete(self, client: int, start: int, end: int) -> None:
        end = min(end, self._end(client))
        while start < end:
            item = self._beginning((client, start))
            if item.clock + item.length > end:
                self._beginning((client, end))
            item.deleted = True
            start = item.clock + item.length


# ---- reading


def _read(update: bytes) -> tuple[dict[int, list[_Item]], list[tuple[int, list[tuple[int, int]]]]]:
    """The structs of each client and the deletes of an update that was checked."""
    structs: dict[int, list[_Item]] = {}
    sections, pos = read_var_uint(update, 0)
    for _ in range(sections):
        count, pos = read_var_uint(update, pos)
        client, pos = read_var_uint(update, pos)
        clock, pos = read_var_uint(update, pos)
        items = structs[client] = []
        for _ in range(count):
            item, pos = _read_struct(update, pos, client, clock)
            if item.kind != SKIP:
                items.append(item)
            clock += item.length
    deletes = []
    count, pos = read_var_uint(update, pos)
    for _ in range(count):
        client, pos = read_var_uint(update, pos)
        number, pos = read_var_uint(update, pos)
        ranges = []
        for _ in range(number):
            start, pos = read_var_uint(update, pos)
            length, pos = read_var_uint(update, pos)
            ranges.append((start, start + length))
        deletes.append((client, ranges))
    return structs, deletes


def _read_struct(data: bytes, pos: int, client: int, clock: int) -> tuple[_Item, int]:
    info = data[pos]
    kind = info & KIND
    pos += 1
    if kind in (GC, SKIP):
        length, pos = read_var_uint(data, pos)
        return _Item(kind, client, clock, length, None), pos
    origin = right_origin = key = None
    parent: Id | str | None = None
    if info & HAS_ORIGIN:
        origin, pos = _read_id(data, pos)
    if info & HAS_RIGHT_ORIGIN:
        right_origin, pos = _read_id(data, pos)
    if not info & (HAS_ORIGIN | HAS_RIGHT_ORIGIN):
        named, pos = read_var_uint(data, pos)
        if named:
            parent, pos = read_var_string(data, pos)
        else:
            parent, pos = _read_id(data, pos)
        if info & HAS_KEY:
            key, pos = read_var_string(data, pos)
    length, content, pos = _read_content(data, pos, kind)
    item = _Item(kind, client, clock, length, content)
    item.origin, item.right_origin, item.parent, item.key = origin, right_origin, parent, key
    return item, pos


def _read_id(data: bytes, pos: int) -> tuple[Id, int]:
    client, pos = read_var_uint(data, pos)
    clock, pos = read_var_uint(data, pos)
    return (client, clock), pos


def _read_content(data: bytes, pos: int, kind: int) -> tuple[int, Any, int]:
    """How many clocks it takes, what it is, and where it ends."""
    if kind == DELETED:
        length, pos = read_var_uint(data, pos)
        return length, None, pos
    if kind == STRING:
        text, pos = read_var_string(data, pos)
        units = text.encode("utf-16-le")
        return len(units) // 2, units, pos
    if kind in (JSON, ANY):
        count, pos = read_var_uint(data, pos)
        values: list[Any] = []
        for _ in range(count):
            value: Any
            if kind == ANY:
                value, pos = read_any(data, pos)
            else:
                text, pos = read_var_string(data, pos)
                value = Undefined() if text == "undefined" else _parse_json(text)
            values.append(value)
        return count, values, pos
    if kind == BINARY:
        binary, pos = read_var_uint8_array(data, pos)
        return 1, binary, pos
    if kind == TYPE:
        number, pos = read_var_uint(data, pos)
        name = ""
        if number in (Kind.XML_ELEMENT, Kind.XML_HOOK):
            name, pos = read_var_string(data, pos)
        return 1, SharedType(Kind(number), name), pos
    if kind == DOC:
        guid, pos = read_var_string(data, pos)
        options, pos = read_any(data, pos)
        return 1, Subdocument(guid, options), pos
    key = None
    if kind == FORMAT:
        key, pos = read_var_string(data, pos)
    text, pos = read_var_string(data, pos)
    value = _parse_json(text)
    return 1, value if kind == EMBED else (key, value), pos


def _parse_json(text: str) -> Any:
    return json.loads(text, parse_int=_number)


def _number(text: str) -> int | float:
    """As JavaScript reads it."""
    number = float(text)
    return int(number) if abs(number) < 2**53 and not (number == 0 and text[0] == "-") else number


# ---- showing


def _string(units: bytes) -> str:
    return units.decode("utf-16-le", "surrogatepass")


def _plain(item: _Item) -> Any:
    """The content of an item of a map that is no list."""
    if item.kind == STRING:
        return _string(item.content[-2:])
    return item.content if item.kind in _COUNTED else Undefined()


def _json(value: Any, depth: int) -> Any:
    if isinstance(value, SharedType):
        return value._to_json(value.guess(), depth + 1)
    if isinstance(value, Subdocument):
        return {"$document": value.guid}
    if isinstance(value, bytes):
        return {"$bytes": value.hex()}
    if isinstance(value, list):
        return [_json(part, depth) for part in value]
    if isinstance(value, dict):
        parts = value.items()
        return {k: _json(part, depth) for k, part in parts if not isinstance(part, Undefined)}
    if isinstance(value, Undefined) or (isinstance(value, float) and value - value != 0):
        return None  # as JSON.stringify has it
    return value


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(_json(value, 0), ensure_ascii=False)


def _xml_run(run: dict[str, Any]) -> str:
    insert = run["insert"]
    text = escape(insert if isinstance(insert, str) else _word(insert), quote=False)
    for name, value in sorted(run.get("attributes", {}).items(), reverse=True):
        of = value.items() if isinstance(value, dict) else ()
        words = "".join(f' {key}="{escape(_word(word))}"' for key, word in sorted(of))
        text = f"<{name}{words}>{text}</{name}>"
    return text
