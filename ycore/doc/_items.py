"""Items and the types they are in: the linked lists a document is made of, and their bytes.

A `Node` is what a shared type really is; the classes in `_types` are what one sees of it. Sources:
yjs `structs/Item.js`, `structs/Content*.js`, `types/AbstractType.js`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from enum import IntEnum
from html import escape
from itertools import islice
from math import isfinite
from reprlib import repr as brief
from typing import Any, Final, NamedTuple, TypeAlias

from ..errors import LocalProtocolError, RemoteProtocolError
from ..jsontext import check_json
from ..lib0 import (
    MAX_SAFE_INTEGER,
    UNDEFINED,
    BigInt,
    Undefined,
    read_any,
    read_var_string,
    read_var_uint,
    read_var_uint8_array,
    write_any,
    write_var_string,
    write_var_uint,
    write_var_uint8_array,
)
from ..steps import STEP, Steps
from ..updates._deletes import Range, write_ranges
from ..updates._grammar import (
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

Id: TypeAlias = tuple[int, int]
COUNTED: Final = frozenset({ANY, BINARY, DOC, EMBED, JSON, STRING, TYPE})
MAX_DEPTH: Final = 100
"""How deep types may be nested to be shown: Python's own recursion is bounded too."""
_QUOTED: Final = MAX_DEPTH // 4
"""As how much deeper it counts to be quoted in XML: each time, what is quoted may double."""
_MAX_FORMATS: Final = 64
"""How many formats are shown of one place: editors have a dozen. With thousands that are never
ended, each repeated wherever another begins, a few bytes would show as megabytes."""
_LONG: Final = 1024
"""In clocks: no item gets longer by joining it with what was typed behind it, and a longer one is
halved before it is cut."""


class Kind(IntEnum):
    """What a shared type is (yjs `structs/ContentType.js`)."""

    ARRAY = 0
    MAP = 1
    TEXT = 2
    XML_ELEMENT = 3
    XML_FRAGMENT = 4
    XML_HOOK = 5
    XML_TEXT = 6


_XML: Final = frozenset({Kind.XML_ELEMENT, Kind.XML_FRAGMENT, Kind.XML_TEXT})


class Subdocument(NamedTuple):
    """A document in a document: here is only its name."""

    guid: str
    options: Any = {}  # noqa: RUF012 - never changed


class Item:
    """An item, or a part of one."""

    __slots__ = (
        "client", "clock", "content", "deleted", "key", "kind", "left", "length", "origin",
        "parent", "right", "right_origin",
    )  # fmt: skip

    def __init__(self, kind: int, client: int, clock: int, length: int, content: Any) -> None:
        self.kind = kind
        self.client = client
        self.clock = clock
        self.length = length
        """In clocks; of a string, its UTF-16 units."""
        self.content = content
        """JSON and ANY: a list of values; FORMAT: key and value; TYPE: a Node; else one value. None
        once it was deleted and nobody needs it any more."""
        self.origin: Id | None = None
        self.right_origin: Id | None = None
        self.parent: Node | Id | str | None = None
        """The Node, once it is integrated."""
        self.key: str | None = None
        self.left: Item | None = None
        self.right: Item | None = None
        self.deleted = kind in (GC, DELETED)

    @property
    def id(self) -> Id:
        return self.client, self.clock

    @property
    def last_id(self) -> Id:
        return self.client, self.clock + self.length - 1

    @property
    def count(self) -> int:
        """How many places it takes in a text: of a string, its characters."""
        return len(self.content) if self.kind == STRING else self.length

    def clocks_before(self, place: int) -> int:
        """How many clocks so many of its places are."""
        if self.kind != STRING or len(self.content) == self.length:
            return place
        return utf16_length(self.content[:place])

    def half(self) -> int | None:
        """How many clocks the first half of its content is, if that is long."""
        if self.length <= _LONG or self.content is None:
            return None
        return self.clocks_before(self.count // 2)

    def split(self, at: int) -> Item:
        """Cut it after `at` clocks; returns the right part."""
        content: Any = self.content
        rest: Any = None
        node = self.parent
        assert isinstance(node, Node)
        if content is None:
            pass
        elif self.kind == STRING:
            content, rest = split_utf16(content, at, self.length)
        else:
            content, rest = content[:at], content[at:]
        right = Item(self.kind, self.client, self.clock + at, self.length - at, rest)
        right.deleted = self.deleted
        right.origin = (self.client, right.clock - 1)
        right.right_origin = self.right_origin
        right.parent, right.key = node, self.key
        right.left, right.right = self, self.right
        if self.right is not None:
            self.right.left = right
        elif right.key is not None:
            node.map[right.key] = right
        else:
            node.last = right
        if not self.deleted and self.key is None:
            node.count(self, -1)
        self.right = right
        self.content, self.length = content, at
        if not self.deleted and self.key is None:
            node.count(self)
            node.count(right)
        return right

    def merge(self, right: Item) -> bool:
        """Take in what was typed right behind it, if that can never matter to anyone (yjs
        `structs/Item.js`, mergeWith)."""
        if (
            self.kind != right.kind
            or self.kind not in (STRING, DELETED)
            or self.right is not right
            or right.origin != self.last_id
            or self.right_origin != right.right_origin
            or self.deleted != right.deleted
            or self.key is not None
            or (self.kind == STRING and self.length + right.length > _LONG)
        ):
            return False
        if self.kind == STRING:
            self.content += right.content
        self.length += right.length
        self.right = right.right
        if self.right is not None:
            self.right.left = self
        else:
            assert isinstance(self.parent, Node)
            self.parent.last = self
        return True


class Node:
    """A shared type: a root, or the content of an item."""

    __slots__ = ("deep_observers", "doc", "facade", "firsts", "item", "kind", "last", "length",
                 "map", "marker", "name", "observers", "pairs", "start")  # fmt: skip

    def __init__(self, kind: Kind | None, name: str = "") -> None:
        self.kind = kind
        """None of a root that nobody has asked for: then it is what it looks like."""
        self.name = name
        """Of a root, an XML element or a hook."""
        self.item: Item | None = None
        """Whose content it is; None of a root."""
        self.doc: Any = None
        self.start: Item | None = None
        self.last: Item | None = None
        """Of the items in order; both may be deleted."""
        self.length = 0
        """How many clocks of what is in order and counts are not deleted."""
        self.pairs = 0
        """How many of them are second halves of pairs of surrogates: no characters of their own."""
        self.map: dict[str, Item] = {}
        """For each key its last item."""
        self.firsts: dict[str, Item] = {}
        """And its first."""
        self.observers: list[Any] | None = None
        self.deep_observers: list[Any] | None = None
        self.facade: Any = None
        self.marker: tuple[Item, int, dict[str, Any]] | None = None
        """Where it was edited last: an item that is shown, its first place, and the formats
        there. So typing on does not begin to look from the start."""

    @property
    def parent(self) -> Node | None:
        parent = self.item.parent if self.item is not None else None
        return parent if isinstance(parent, Node) else None

    @property
    def is_deleted(self) -> bool:
        return self.item is not None and self.item.deleted

    def count(self, item: Item, sign: int = 1) -> None:
        """An item in order has come, or with -1 gone."""
        if item.kind in COUNTED:
            self.length += sign * item.length
            if item.kind == STRING:
                self.pairs += sign * (item.length - len(item.content))

    def first(self, key: str | None) -> Item | None:
        """The first item under a key; without one, the first in order."""
        return self.start if key is None else self.firsts.get(key)

    def items(self) -> Iterator[Item]:
        """Those that are not deleted, in order."""
        item = self.start
        while item is not None:
            if not item.deleted:
                yield item
            item = item.right

    def guess(self) -> Kind:
        """Its kind; of a root, what its content looks like."""
        if self.kind is not None:
            return self.kind
        for item in self.items():
            if item.kind in (STRING, FORMAT, EMBED):
                return Kind.TEXT
            if item.kind == TYPE and item.content.kind >= Kind.XML_ELEMENT:
                return Kind.XML_FRAGMENT
            return Kind.ARRAY
        return Kind.MAP if self.map else Kind.ARRAY

    def values(self) -> list[Any]:
        """As an array, or an XML fragment's children. Types in it are Nodes."""
        found: list[Any] = []
        for item in self.items():
            found += contents_of(item)
        return found

    def entries(self) -> dict[str, Any]:
        """As a map, or an XML element's attributes. Types in it are Nodes."""
        return {key: last_of(item) for key, item in self.map.items() if not item.deleted}

    def text(self) -> str:
        """As a text, without formats and embeds."""
        return "".join(item.content for item in self.items() if item.kind == STRING)

    def delta(self) -> list[dict[str, Any]]:
        """As a text with formats: Quill's delta (yjs `types/YText.js`, toDelta)."""
        delta: list[dict[str, Any]] = []
        attributes: dict[str, Any] = {}
        text: list[str] = []

        def add(insert: Any) -> None:
            delta.append({"insert": insert})
            if attributes:
                delta[-1]["attributes"] = some_of(attributes)

        def flush() -> None:
            if text:
                add("".join(text))
            text.clear()

        for item in self.items():
            if item.kind == STRING:
                text.append(item.content)
            elif item.kind == FORMAT:
                flush()
                update_attributes(attributes, item)
            elif item.kind in (EMBED, TYPE):
                flush()
                add(item.content)
        flush()
        return delta

    # -- as plain data

    def to_json(self, kind: Kind, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            return {"$nested": f"deeper than {MAX_DEPTH}"}
        if kind == Kind.TEXT:
            return self.text()
        if kind in (Kind.MAP, Kind.XML_HOOK):
            return {key: to_json(value, depth) for key, value in sorted(self.entries().items())}
        if kind == Kind.ARRAY:
            return [to_json(value, depth) for value in self.values()]
        return self._to_xml(kind, depth)

    def _to_xml(self, kind: Kind, depth: int) -> str:
        """As XML (yjs `types/YXmlElement.js` and YXmlText.js, toString; but what would not be XML
        is escaped)."""
        if kind == Kind.XML_TEXT:
            return "".join(_xml_run(run, depth) for run in self.delta())
        children = "".join(
            str(child.to_json(child.guess(), depth + 1))
            if isinstance(child, Node)
            else escape(str(child))
            for child in self.values()
        )
        if kind == Kind.XML_FRAGMENT:
            return children
        attributes = "".join(
            f' {key}="{escape(_word(value, depth))}"'
            for key, value in sorted(self.entries().items())
        )
        name = self.name.lower()
        return f"<{name}{attributes}>{children}</{name}>"


def contents_of(item: Item) -> list[Any]:
    """What an item that is not deleted brings into a list."""
    if item.kind in (JSON, ANY):
        values: list[Any] = item.content
        return values
    if item.kind == STRING:  # one value each, as in JavaScript's split("")
        units = item.content.encode("utf-16-le")
        return [
            units[at : at + 2].decode("utf-16-le", "surrogatepass")
            for at in range(0, len(units), 2)
        ]
    return [item.content] if item.kind in COUNTED else []


def last_of(item: Item) -> Any:
    """The content of an item of a map."""
    contents = contents_of(item)
    return contents[-1] if contents else UNDEFINED


def update_attributes(attributes: dict[str, Any], format_item: Item) -> None:
    """What formats hold behind this item (`types/YText.js`, updateCurrentAttributes)."""
    key, value = format_item.content
    if value is None:
        attributes.pop(key, None)
    else:
        attributes[key] = value


def some_of(attributes: dict[str, Any]) -> dict[str, Any]:
    """The formats of one place, as they are shown there."""
    return dict(islice(attributes.items(), _MAX_FORMATS))


def utf16_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2


def split_utf16(text: str, at: int, length: int) -> tuple[str, str]:
    """Cut a text of so many UTF-16 units. A pair of surrogates that is cut becomes two U+FFFD
    (`structs/ContentString.js`, splice)."""
    if length == len(text):
        return text[:at], text[at:]
    units = text.encode("utf-16-le")
    left, right = units[: 2 * at], units[2 * at :]
    cut = "\ufffd" if 0xD8 <= left[-1] <= 0xDB else ""
    if cut:
        left, right = left[:-2], right[2:]
    return left.decode("utf-16-le") + cut, cut + right.decode("utf-16-le")


# ---- reading


class News(NamedTuple):
    """What an update says."""

    structs: dict[int, list[Item]]
    """Client -> its structs, in order, without Skips."""
    deletes: dict[int, list[Range]]


def read_steps(update: bytes) -> Steps[News]:
    """Read an update that was checked."""
    news = News({}, {})
    turn = 0
    sections, pos = read_var_uint(update, 0)
    for _ in range(sections):
        count, pos = read_var_uint(update, pos)
        client, pos = read_var_uint(update, pos)
        clock, pos = read_var_uint(update, pos)
        items: list[Item] = []
        for _ in range(count):
            item, pos = _read_struct(update, pos, client, clock)
            if item.kind != SKIP:
                items.append(item)
            clock += item.length
            turn += 1
            if not turn % STEP:
                yield
        if items:  # not only Skips
            news.structs[client] = items
    count, pos = read_var_uint(update, pos)
    for _ in range(count):
        client, pos = read_var_uint(update, pos)
        number, pos = read_var_uint(update, pos)
        ranges = news.deletes[client] = []
        for _ in range(number):
            start, pos = read_var_uint(update, pos)
            length, pos = read_var_uint(update, pos)
            ranges.append((start, start + length))
            turn += 1
            if not turn % STEP:
                yield
    return news


def _read_struct(data: bytes, pos: int, client: int, clock: int) -> tuple[Item, int]:
    info = data[pos]
    kind = info & KIND
    pos += 1
    if kind in (GC, SKIP):
        length, pos = read_var_uint(data, pos)
        return Item(kind, client, clock, length, None), pos
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
    item = Item(kind, client, clock, length, content)
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
        return utf16_length(text), text, pos
    if kind in (JSON, ANY):
        count, pos = read_var_uint(data, pos)
        values: list[Any] = []
        for _ in range(count):
            value: Any
            if kind == ANY:
                value, pos = read_any(data, pos)
            else:
                text, pos = read_var_string(data, pos)
                value = UNDEFINED if text == "undefined" else parse_json(text)
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
        return 1, Node(Kind(number), name), pos
    if kind == DOC:
        guid, pos = read_var_string(data, pos)
        options, pos = read_any(data, pos)
        return 1, Subdocument(guid, options), pos
    key = None
    if kind == FORMAT:
        key, pos = read_var_string(data, pos)
    text, pos = read_var_string(data, pos)
    value = parse_json(text)
    return 1, value if kind == EMBED else (key, value), pos


def parse_json(text: str) -> Any:
    return json.loads(text, parse_int=_number)


def _number(text: str) -> int | float:
    """As JavaScript reads it."""
    number = float(text)
    return int(number) if abs(number) < 2**53 and not (number == 0 and text[0] == "-") else number


# ---- writing


def normal_any(values: list[Any]) -> list[Any]:
    """These values as others will get them.

    Raises:
        LocalProtocolError: not all can be in a document.
    """
    out = bytearray()
    write_any(out, values)
    normal, _ = read_any(out, 0)
    assert isinstance(normal, list)
    return normal


def normal_json(value: Any) -> Any:
    """A value that is written as JSON (a format's, an embed) as others will get it.

    Raises:
        LocalProtocolError: it can't be.
    """
    try:
        text = _json(value)
        check_json(text)
        normal = parse_json(text)
        _json(normal)  # or a number is too large
    except (TypeError, ValueError, RecursionError, RemoteProtocolError) as exc:
        raise LocalProtocolError(f"not JSON: {exc}") from None
    _check_same_elsewhere(value)
    return normal


def _check_same_elsewhere(value: Any) -> None:
    """
    Raises:
        LocalProtocolError: Python writes it as JSON from which others would read something else.
    """
    todo = [value]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            for key in part:
                if not isinstance(key, str):
                    raise LocalProtocolError(f"not JSON: a key must be a string: {key!r}")
            todo += part.values()
        elif isinstance(part, Subdocument):
            raise LocalProtocolError(f"not JSON: {brief(part)}")
        elif isinstance(part, list | tuple):
            todo += part
        elif isinstance(part, BigInt) or (isinstance(part, int) and abs(part) > MAX_SAFE_INTEGER):
            raise LocalProtocolError(f"not JSON: a number has at most 53 bits: {brief(part)}")


def _dump_json(value: Any) -> str:
    """A value that is in the document, as JSON which others read the same from."""
    try:
        return _json(value)
    except ValueError:
        return _json(_finite(value))


def _json(value: Any) -> str:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates, which JavaScript escapes
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text


def _finite(value: Any) -> Any:
    """Infinity, which JavaScript and we read from a number that is too large, as such a number."""
    if isinstance(value, list):
        return [_finite(part) for part in value]
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, float) and not isfinite(value):
        return 10**309 if value > 0 else -(10**309)
    return value


def normal_text(text: str) -> str:
    """A text without lone surrogates, which can't be written."""
    out = bytearray()
    write_var_string(out, text)
    return read_var_string(out, 0)[0]


def checked_text(text: str, what: str) -> str:
    """`normal_text` of what is called so in the error's message.

    Raises:
        LocalProtocolError: it is no text.
    """
    if not isinstance(text, str):
        raise LocalProtocolError(f"{what} must be a str: {brief(text)}")
    return normal_text(text)


def encode_items(structs: Mapping[int, list[Item]], deletes: Mapping[int, list[Range]]) -> bytes:
    """An update with these items, and these clocks deleted."""
    out = bytearray()
    write_var_uint(out, len(structs))
    for client in sorted(structs, reverse=True):
        items = structs[client]
        write_var_uint(out, len(items))
        write_var_uint(out, client)
        write_var_uint(out, items[0].clock)
        for item in items:
            write_struct(out, item)
    write_var_uint(out, len(deletes))
    for client in sorted(deletes, reverse=True):
        write_var_uint(out, client)
        write_var_uint(out, len(deletes[client]))
        write_ranges(out, deletes[client])
    return bytes(out)


def write_struct(out: bytearray, item: Item) -> None:
    """Append an item (yjs `structs/Item.js` and `structs/GC.js`, write)."""
    info = item.kind
    if info == GC:
        out.append(info)
        write_var_uint(out, item.length)
        return
    if item.origin is not None:
        info |= HAS_ORIGIN
    if item.right_origin is not None:
        info |= HAS_RIGHT_ORIGIN
    if item.key is not None:
        info |= HAS_KEY
    out.append(info)
    if item.origin is not None:
        _write_id(out, item.origin)
    if item.right_origin is not None:
        _write_id(out, item.right_origin)
    if item.origin is None and item.right_origin is None:
        assert isinstance(item.parent, Node)
        owner = item.parent.item
        write_var_uint(out, 1 if owner is None else 0)
        if owner is None:
            write_var_string(out, item.parent.name)
        else:
            _write_id(out, owner.id)
        if item.key is not None:
            write_var_string(out, item.key)
    _write_content(out, item)


def _write_id(out: bytearray, id_: Id) -> None:
    write_var_uint(out, id_[0])
    write_var_uint(out, id_[1])


def _write_content(out: bytearray, item: Item) -> None:
    kind, content = item.kind, item.content
    if kind == DELETED:
        write_var_uint(out, item.length)
    elif kind == STRING:
        write_var_string(out, content)
    elif kind == ANY:
        write_var_uint(out, len(content))
        for value in content:
            write_any(out, value)
    elif kind == JSON:
        write_var_uint(out, len(content))
        for value in content:
            write_var_string(out, "undefined" if value is UNDEFINED else _dump_json(value))
    elif kind == BINARY:
        write_var_uint8_array(out, content)
    elif kind == TYPE:
        write_var_uint(out, content.kind)
        if content.kind in (Kind.XML_ELEMENT, Kind.XML_HOOK):
            write_var_string(out, content.name)
    elif kind == DOC:
        write_var_string(out, content.guid)
        write_any(out, content.options)
    else:
        if kind == FORMAT:
            write_var_string(out, content[0])
            content = content[1]
        write_var_string(out, _dump_json(content))


# ---- showing


def to_json(value: Any, depth: int = 0) -> Any:
    """A value as plain data for `json`: bytes as {"$bytes": hexadecimal}, subdocuments as
    {"$document": guid}."""
    if isinstance(value, Node):
        return value.to_json(value.guess(), depth + 1)
    if isinstance(value, Subdocument):
        return {"$document": value.guid}
    if isinstance(value, bytes):
        return {"$bytes": value.hex()}
    if isinstance(value, list):
        return [to_json(part) for part in value]
    if isinstance(value, dict):
        parts = value.items()
        return {k: to_json(part) for k, part in parts if not isinstance(part, Undefined)}
    if isinstance(value, Undefined) or (isinstance(value, float) and value - value != 0):
        return None  # as JSON.stringify has it
    return value


def _word(value: Any, depth: int = 0) -> str:
    if isinstance(value, str):
        return value
    plain = to_json(value, depth + _QUOTED)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def _xml_run(run: dict[str, Any], depth: int) -> str:
    insert = run["insert"]
    if isinstance(insert, Node) and insert.guess() in _XML:
        text = str(insert.to_json(insert.guess(), depth + 1))
    else:
        text = escape(_word(insert, depth), quote=False)
    for name, value in sorted(run.get("attributes", {}).items(), reverse=True):
        of = value.items() if isinstance(value, dict) else ()
        words = "".join(f' {key}="{escape(_word(word))}"' for key, word in sorted(of))
        text = f"<{name}{words}>{text}</{name}>"
    return text


# ---- the classes of `_types`

FACADES: dict[Kind, Any] = {}
"""Which class shows what."""


def facade_of(node: Node) -> Any:
    """The shared type that one sees of a node."""
    return FACADES[node.guess()]._of(node)


def shown(value: Any) -> Any:
    """A value of an item as one sees it."""
    return facade_of(value) if isinstance(value, Node) else value
