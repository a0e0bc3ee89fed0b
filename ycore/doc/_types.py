"""The shared types: what one sees of a node, and edits it with.

They are made to be put into a document (`Text("abc")`), and show nothing until then; or they come
out of one (`doc.get_text("t")`, `array[0]`). Sources: yjs
`types/AbstractType.js` (typeListInsertGenerics, typeMapSet and so on), `types/Y*.js`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from reprlib import repr as brief
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Self, TypeAlias, overload

from ..errors import LocalProtocolError
from ..lib0 import MAX_NESTING
from ..updates._grammar import ANY, BINARY, DOC, EMBED, STRING, TYPE
from ._events import Event, subscribe
from ._items import (
    COUNTED,
    FACADES,
    Item,
    Kind,
    Node,
    Subdocument,
    checked_text,
    facade_of,
    last_of,
    normal_any,
    normal_json,
    normal_text,
    shown,
    utf16_length,
)
from ._text import Position

if TYPE_CHECKING:
    from ._doc import Doc

Value: TypeAlias = Any
"""What can be in an array or a map: None, bool, int (of 53 bits; more as a `BigInt`), float, str,
bytes, lists and dicts of these, or a shared type."""
Child: TypeAlias = "XmlElement | XmlText | XmlHook | str"
"""What can be in XML. Of a string is made an XmlText."""
Embed: TypeAlias = "SharedType | Mapping[str, Any]"
"""What can be in a text besides characters: an object of JSON, such as {"image": url}, or a shared
type."""
Content: TypeAlias = tuple[int, Any]
"""The kind of an item, and what it holds: of values a list."""
Attributes: TypeAlias = Mapping[str, Any]
"""Formats of a text: name -> a JSON value; None ends one."""
Filling: TypeAlias = "Iterator[SharedType]"
"""Puts things into a document. Gives each type that it has put, and goes on when that is filled."""


class SharedType:
    """What all shared types have in common."""

    kind: ClassVar[Kind]

    def __init_subclass__(cls) -> None:
        if "kind" in vars(cls):
            FACADES[cls.kind] = cls

    def __init__(self) -> None:
        self._node = Node(self.kind)
        self._node.facade = self
        self._is_claimed = False
        """Whether something that is in no document yet was made with it."""

    @classmethod
    def _of(cls, node: Node) -> Self:
        if isinstance(node.facade, cls) and node.facade.kind == cls.kind:
            return node.facade
        facade = cls.__new__(cls)
        facade._node = node
        node.facade = facade
        return facade

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SharedType) and other._node is self._node

    def __hash__(self) -> int:
        return hash(self._node)

    @property
    def doc(self) -> Doc | None:
        """The document it is in."""
        doc: Doc | None = self._node.doc
        return doc

    @property
    def parent(self) -> SharedType | None:
        """The type it is in; None of a root."""
        parent = self._node.parent
        return None if parent is None else facade_of(parent)

    @property
    def is_deleted(self) -> bool:
        """Whether it was deleted, or what it is in: then edits show nowhere."""
        return self._node.is_deleted

    def to_json(self) -> Any:
        """As plain data for `json`, see `Doc.to_json`."""
        return self._node.to_json(self.kind)

    def observe(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Have it told what each transaction changes in this type. Returns what ends that."""
        if self._node.observers is None:
            self._node.observers = []
        return subscribe(self._node.observers, callback)

    def observe_deep(self, callback: Callable[[list[Event]], None]) -> Callable[[], None]:
        """Have it told what each transaction changes in this type and those in it."""
        if self._node.deep_observers is None:
            self._node.deep_observers = []
        return subscribe(self._node.deep_observers, callback)

    def _transaction(self) -> Any:
        if self._node.doc is None:
            raise LocalProtocolError(f"put this {type(self).__name__} into a document first")
        return self._node.doc.transaction()

    def _fill(self) -> Filling:
        """Put into it what it was made with, now that it is in a document."""
        return iter(())

    # -- lists

    def _insert_values(self, left: Item | None, contents: Iterable[Content]) -> Filling:
        """Put contents behind an item, None for the start."""
        node, doc = self._node, self._node.doc
        plain: list[Any] = []

        def right() -> Item | None:
            return node.start if left is None else left.right

        def flush() -> None:
            nonlocal left, plain
            if plain:
                left = doc._make(node, left, right(), ANY, len(plain), plain)
                plain = []

        for kind, content in contents:
            if kind == ANY:
                plain += content
            else:
                flush()
                left = doc._make(node, left, right(), kind, 1, content)
                if kind == TYPE:
                    yield content.facade
        flush()

    def _left_of(self, index: int) -> Item | None:
        """The item behind which this place is, cut there if need be."""
        if index == self._node.length:
            return self._node.last
        left = None
        items = self._node.items()
        while index > 0:
            item = next(items)
            if item.kind in COUNTED:
                if index < item.length:
                    self._node.doc._cut(item, index)
                index -= item.length
                left = item
        return left

    def _delete_values(self, index: int, length: int) -> None:
        doc = self._node.doc
        left = self._left_of(index)
        item = self._node.start if left is None else left.right
        while length > 0 and item is not None:
            if not item.deleted and item.kind in COUNTED:
                if length < item.length:
                    doc._cut(item, length)
                length -= item.length
                doc._delete(item, doc._current)
            item = item.right

    # -- keys

    def _entries(self) -> dict[str, Any]:
        return {key: shown(value) for key, value in self._node.entries().items()}

    def _get_key(self, key: str) -> Any:
        item = self._node.map.get(key)
        if item is None or item.deleted:
            raise KeyError(key)
        return shown(last_of(item))

    def _set_keys(self, entries: Mapping[str, Content]) -> Filling:
        for key, (kind, content) in entries.items():
            self._node.doc._make(self._node, self._node.map.get(key), None, kind, 1, content, key)
            if kind == TYPE:
                yield content.facade

    def _set_key(self, key: str, value: Value) -> None:
        entries = _entries({key: value})
        with self._transaction():
            _put(self._set_keys(entries))

    def _delete_key(self, key: str) -> None:
        item = self._node.map.get(key)
        if item is None or item.deleted:
            raise KeyError(key)
        with self._transaction():
            self._node.doc._delete(item, self._node.doc._current)


def _put(filling: Filling) -> None:
    """Put something into a document, and into each type what it was made with."""
    todo = [filling]
    while todo:
        made = next(todo[-1], None)
        if made is None:
            todo.pop()
        else:
            todo.append(made._fill())


def _contents(values: Iterable[Value]) -> list[Content]:
    """`_content` of several."""
    if isinstance(values, str | bytes | bytearray | memoryview | Mapping | Subdocument):
        raise LocalProtocolError(
            f"a list of values is needed, not a {type(values).__name__}: write [{brief(values)}]"
        )
    if not isinstance(values, Iterable):
        raise LocalProtocolError(f"a list of values is needed: write [{brief(values)}]")
    contents = [_content(value) for value in values]
    _check_once(contents)
    return contents


def _entries(entries: Mapping[str, Value]) -> dict[str, Content]:
    """`_content` of each value."""
    if not isinstance(entries, Mapping):
        raise LocalProtocolError(f"a dict is needed: {brief(entries)}")
    contents = {checked_text(key, "a key"): _content(value) for key, value in entries.items()}
    _check_once(contents.values())
    return contents


def _check_once(contents: Iterable[Content]) -> None:
    """
    Raises:
        LocalProtocolError: a shared type is in them twice.
    """
    types = [content for kind, content in contents if kind == TYPE]
    if len(set(types)) < len(types):
        raise LocalProtocolError("a shared type can be put in one place only")


def _claim(contents: Iterable[Content]) -> None:
    """Note that these are in a type that was just made: nothing else can have them."""
    for kind, content in contents:
        if kind == TYPE:
            content.facade._is_claimed = True


def _content(value: Value) -> Content:
    """A value as the content of an item.

    Raises:
        LocalProtocolError: it can't be in a document, or it is in one already.
    """
    if isinstance(value, SharedType):
        if value._node.doc is not None or value._is_claimed:
            where = "another type" if value._node.doc is None else "a document"
            raise LocalProtocolError(f"this {type(value).__name__} is in {where} already")
        return TYPE, value._node
    if isinstance(value, Subdocument):
        if not isinstance(value.guid, str) or not isinstance(value.options, dict):
            raise LocalProtocolError(
                f"a subdocument has a guid and a dict of options: {brief(value)}"
            )
        return DOC, Subdocument(normal_text(value.guid), *normal_any([_plain(value.options)]))
    if isinstance(value, bytes | bytearray | memoryview):
        return BINARY, bytes(value)
    return ANY, normal_any([_plain(value)])


def _plain(value: Any, depth: int = 0) -> Any:
    """Tuples as lists and all bytes as `bytes`, inside too.

    Raises:
        LocalProtocolError: it is nested too deep, or in itself; or it has something in it that can
            be in a shared type only.
    """
    if depth > MAX_NESTING:
        raise LocalProtocolError(f"the value nests deeper than {MAX_NESTING}")
    if isinstance(value, SharedType | Subdocument):
        raise LocalProtocolError(
            f"a {type(value).__name__} can't be in a plain list or dict: put it into an Array or a "
            "Map"
        )
    if isinstance(value, tuple | list):
        return [_plain(part, depth + 1) for part in value]
    if isinstance(value, dict):
        return {key: _plain(part, depth + 1) for key, part in value.items()}
    return bytes(value) if isinstance(value, bytearray | memoryview) else value


class _Children(SharedType):
    """What is like a list."""

    def __init__(self, values: Iterable[Value] = ()) -> None:
        super().__init__()
        self._made_with = self._contents(values)
        _claim(self._made_with)

    def _fill(self) -> Filling:
        made_with, self._made_with = self._made_with, []
        yield from self._insert_values(None, made_with)

    @staticmethod
    def _contents(values: Iterable[Value]) -> list[Content]:
        return _contents(values)

    def __len__(self) -> int:
        return self._node.length

    def __iter__(self) -> Iterator[Any]:
        return iter([shown(value) for value in self._node.values()])

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [shown(value) for value in self._node.values()[index]]
        return shown(self._node.values()[index])

    def __delitem__(self, index: int | slice) -> None:
        start, length = _range_of(index, len(self))
        with self._transaction():
            self._delete_values(start, length)

    def insert(self, index: int, values: Iterable[Value]) -> None:
        """Put values before the one at `index`; a negative index counts from the end.

        Raises:
            IndexError: there is no such place.
            LocalProtocolError: a value can't be in a document: then none of them is.
        """
        place = _place_of(index, len(self))
        contents = self._contents(values)
        with self._transaction():
            _put(self._insert_values(self._left_of(place), contents))

    def append(self, value: Value) -> None:
        """Put a value at the end."""
        self.extend([value])

    def extend(self, values: Iterable[Value]) -> None:
        """Put values at the end."""
        self.insert(len(self), values)

    def clear(self) -> None:
        """Delete all that is in it."""
        del self[:]


def _place_of(index: int, length: int) -> int:
    index = _checked_int(index, "an index")
    place = index + length if index < 0 else index
    if not 0 <= place <= length:
        raise IndexError(f"index {index} is out of range: there are {length}")
    return place


def _checked_int(number: int, what: str) -> int:
    if not isinstance(number, int):
        raise LocalProtocolError(f"{what} must be an int: {brief(number)}")
    return number


def _range_of(index: int | slice, length: int) -> tuple[int, int]:
    if isinstance(index, slice):
        start, stop, step = index.indices(length)
        if step != 1:
            raise LocalProtocolError("a slice to delete can't have a step")
        return start, max(stop - start, 0)
    index = _checked_int(index, "an index")
    place = index + length if index < 0 else index
    if not 0 <= place < length:
        raise IndexError(f"index {index} is out of range: there are {length}")
    return place, 1


class Array(_Children):
    """A list of values. Python's indices and slices work; each edit is a transaction.

    Args:
        values: what it is made with.
    """

    kind = Kind.ARRAY

    def __setitem__(self, index: int, value: Value) -> None:
        start, length = _range_of(index, len(self))
        contents = _contents([value])
        with self._transaction():
            self._delete_values(start, length)
            _put(self._insert_values(self._left_of(start), contents))

    def __repr__(self) -> str:
        return f"Array({list(self)})"


class Map(SharedType, MutableMapping[str, Any]):
    """Values under keys: a mutable mapping.

    Args:
        entries: what it is made with.
    """

    kind = Kind.MAP

    def __init__(self, entries: Mapping[str, Value] | None = None) -> None:
        super().__init__()
        self._made_with = _entries({} if entries is None else entries)
        _claim(self._made_with.values())

    __eq__ = SharedType.__eq__
    __hash__ = SharedType.__hash__

    def _fill(self) -> Filling:
        made_with, self._made_with = self._made_with, {}
        yield from self._set_keys(made_with)

    def __len__(self) -> int:
        return sum(not item.deleted for item in self._node.map.values())

    def __iter__(self) -> Iterator[str]:
        return iter([key for key, item in self._node.map.items() if not item.deleted])

    def __getitem__(self, key: str) -> Any:
        return self._get_key(key)

    def __setitem__(self, key: str, value: Value) -> None:
        self._set_key(key, value)

    def __delitem__(self, key: str) -> None:
        self._delete_key(key)

    def clear(self) -> None:
        """Delete all that is in it."""
        with self._transaction():
            for key in list(self):
                self._delete_key(key)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self)})"


class Text(SharedType):
    """A text, perhaps with formats and embeds. Places in it are counted in Python's characters, an
    embed counts as one.

    Args:
        text: what it is made with.
    """

    kind = Kind.TEXT

    def __init__(self, text: str = "") -> None:
        super().__init__()
        self._made_with = checked_text(text, "a text")

    def _fill(self) -> Filling:
        text, self._made_with = self._made_with, ""
        self.insert(0, text)
        return super()._fill()

    def __len__(self) -> int:
        return self._node.length - self._node.pairs

    def __str__(self) -> str:
        return self._node.text()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __iadd__(self, text: str) -> Self:
        self.append(text)
        return self

    def __delitem__(self, index: int | slice) -> None:
        self.delete(*_range_of(index, len(self)))

    def insert(self, index: int, text: str, attributes: Attributes | None = None) -> None:
        """Put text before the character at `index`; a negative index counts from the end.

        Args:
            attributes: its formats; None: those of what it comes behind.

        Raises:
            IndexError: there is no such place.
            LocalProtocolError: it is no text, or a format is not JSON.
        """
        place = _place_of(index, len(self))
        text = checked_text(text, "a text")
        formats = None if attributes is None else _formats(attributes)
        if text:
            self._insert(place, STRING, text, formats)

    def insert_embed(self, index: int, value: Embed, attributes: Attributes | None = None) -> None:
        """Put something else than text there: an object of JSON, such as {"image": url}, or a
        shared type.

        Raises:
            IndexError: there is no such place.
            LocalProtocolError: it is neither, or a format is not JSON.
        """
        place = _place_of(index, len(self))
        formats = None if attributes is None else _formats(attributes)
        self._insert(place, *_embed(value), formats)

    def append(self, text: str, attributes: Attributes | None = None) -> None:
        """Put text at the end."""
        self.insert(len(self), text, attributes)

    def delete(self, index: int, length: int) -> None:
        """Delete so many characters from there on.

        Raises:
            IndexError: there are not so many.
        """
        index = self._checked(index, length)
        with self._transaction():
            position = Position.find(self._node, index)
            position.delete(length)

    def format(self, index: int, length: int, attributes: Attributes) -> None:
        """Set formats of so many characters from there on; None ends one.

        Raises:
            IndexError: there are not so many.
            LocalProtocolError: a value is not JSON.
        """
        index, formats = self._checked(index, length), _formats(attributes)
        with self._transaction():
            Position.find(self._node, index).format(length, formats)

    def apply_delta(self, delta: Iterable[Mapping[str, Any]]) -> None:
        """Carry out a delta of Quill's: {"retain": n}, {"insert": text or embed} and {"delete": n},
        with "attributes". Places are counted as everywhere here, in characters.

        Raises:
            IndexError: it goes beyond the end.
            LocalProtocolError: it is no delta. Then, too, nothing has changed.
        """
        ops = [_Op.of(op) for op in delta]
        _check_once(op.inserted for op in ops if op.inserted is not None)
        index, size = 0, len(self)
        for op in ops:
            if op.deletes:
                size -= op.length
            else:
                index += op.length
                if op.inserted is not None:
                    size += op.length
            if index > size:
                raise IndexError(f"the delta goes beyond the end: there are {len(self)}")
        index = 0
        with self._transaction():
            for op in ops:
                if op.deletes:
                    self.delete(index, op.length)
                    continue
                if op.inserted is None:
                    if op.formats:
                        Position.find(self._node, index).format(op.length, op.formats)
                elif op.length:
                    self._insert(index, *op.inserted, op.formats)
                index += op.length

    def to_delta(self) -> list[dict[str, Any]]:
        """With formats and embeds: Quill's delta."""
        delta = self._node.delta()
        for op in delta:
            op["insert"] = shown(op["insert"])
        return delta

    def _checked(self, index: int, length: int) -> int:
        size = len(self)
        index = _place_of(index, size)
        if _checked_int(length, "a length") < 0 or index + length > size:
            raise IndexError(f"{length} characters from {index} on: there are {size}")
        return index

    def _insert(self, index: int, kind: int, content: Any, formats: dict[str, Any] | None) -> None:
        length = utf16_length(content) if kind == STRING else 1
        with self._transaction():
            Position.find(self._node, index).insert(kind, length, content, formats)
            if kind == TYPE:
                _put(content.facade._fill())


def _formats(attributes: Attributes) -> dict[str, Any]:
    if not isinstance(attributes, Mapping):
        raise LocalProtocolError(f"formats must be a dict: {brief(attributes)}")
    return {
        checked_text(key, "a format's name"): normal_json(value)
        for key, value in attributes.items()
    }


def _embed(value: Embed) -> Content:
    if isinstance(value, SharedType):
        return _content(value)
    if not isinstance(value, Mapping):
        raise LocalProtocolError(
            f"an embed must be a dict or a shared type: {brief(value)}; insert() is for text"
        )
    return EMBED, normal_json(dict(value))


class _Op(NamedTuple):
    """An operation of a delta, checked."""

    length: int
    formats: dict[str, Any]
    inserted: Content | None = None
    """What it inserts, if it does."""
    deletes: bool = False
    """Whether it deletes. One that does neither retains."""

    @classmethod
    def of(cls, op: Mapping[str, Any]) -> _Op:
        """
        Raises:
            LocalProtocolError: it is none.
        """
        if isinstance(op, Mapping):
            formats = _formats(op.get("attributes") or {})
            match op:
                case {"insert": str(text)}:
                    text = normal_text(text)
                    return cls(len(text), formats, (STRING, text))
                case {"insert": embed}:
                    return cls(1, formats, _embed(embed))
                case {"retain": int(length)} if length >= 0:
                    return cls(length, formats)
                case {"delete": int(length)} if length >= 0:
                    return cls(length, formats, deletes=True)
        raise LocalProtocolError(f"not a delta's: {brief(op)}")


class _Attributes(MutableMapping[str, Any]):
    """The attributes of an XML type."""

    def __init__(self, owner: SharedType) -> None:
        self._owner = owner

    def __getitem__(self, name: str) -> Any:
        return self._owner._get_key(name)

    def __setitem__(self, name: str, value: Value) -> None:
        self._owner._set_key(name, value)

    def __delitem__(self, name: str) -> None:
        self._owner._delete_key(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._owner._entries())

    def __len__(self) -> int:
        return len(self._owner._entries())

    def __repr__(self) -> str:
        return repr(self._owner._entries())


class _WithAttributes(SharedType):
    """An XML type that has attributes."""

    def _make_with(self, attributes: Mapping[str, Value] | None) -> None:
        self._attributes_made_with = _entries({} if attributes is None else attributes)
        _claim(self._attributes_made_with.values())

    def _fill(self) -> Filling:
        made_with, self._attributes_made_with = self._attributes_made_with, {}
        yield from self._set_keys(made_with)
        yield from super()._fill()

    @property
    def attributes(self) -> MutableMapping[str, Any]:
        """Its own attributes, not the formats of a text in it. They are strings, but editors put
        other values there too."""
        return _Attributes(self)


class XmlFragment(_Children):
    """XML elements and texts in order: what ProseMirror and Tiptap have as their root. Of a string
    is made an `XmlText`.

    ProseMirror and Tiptap read nothing but elements directly in their root, and text only in those:
    `fragment.append(XmlElement("paragraph", children=["Hello"]))`. They can't read hooks.

    Args:
        children: what it is made with.
    """

    kind = Kind.XML_FRAGMENT

    @staticmethod
    def _contents(values: Iterable[Child]) -> list[Content]:
        contents = _contents(values)
        for at, (kind, content) in enumerate(contents):
            if kind == ANY and isinstance(content[0], str):
                contents[at] = _content(XmlText(content[0]))
            elif kind != TYPE or content.kind not in _CHILDREN:
                what = content[0] if kind == ANY else content.facade if kind == TYPE else content
                raise LocalProtocolError(
                    "XML can have an XmlElement, an XmlText, an XmlHook or a str in it, and not a "
                    f"{type(what).__name__}: {brief(what)}"
                )
        return contents

    def __str__(self) -> str:
        return str(self.to_json())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"


class XmlElement(_WithAttributes, XmlFragment):
    """An XML element.

    Args:
        tag: its name.
        attributes, children: what it is made with.
    """

    kind = Kind.XML_ELEMENT

    def __init__(
        self,
        tag: str,
        attributes: Mapping[str, Value] | None = None,
        children: Iterable[Child] = (),
    ) -> None:
        super().__init__(children)
        self._node.name = checked_text(tag, "a tag")
        self._make_with(attributes)

    @property
    def tag(self) -> str:
        """Its name."""
        return self._node.name


class XmlText(_WithAttributes, Text):
    """A text in XML.

    Args:
        text, attributes: what it is made with.
    """

    kind = Kind.XML_TEXT

    def __init__(self, text: str = "", attributes: Mapping[str, Value] | None = None) -> None:
        super().__init__(text)
        self._make_with(attributes)


class XmlHook(Map):
    """A place in XML that the application fills in.

    Args:
        name: which hook.
        entries: what it is made with.
    """

    kind = Kind.XML_HOOK

    def __init__(self, name: str, entries: Mapping[str, Value] | None = None) -> None:
        super().__init__(entries)
        self._node.name = checked_text(name, "a hook's name")

    @property
    def name(self) -> str:
        """Which hook."""
        return self._node.name


_CHILDREN: Final = frozenset({Kind.XML_ELEMENT, Kind.XML_TEXT, Kind.XML_HOOK})
"""What can be in XML."""
