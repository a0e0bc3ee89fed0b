"""Engines to bind, with hands and eyes. Run as a program, it is the one that may die."""

from __future__ import annotations

import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import pytest
from ycore_adapters.engines import EngineError, bind

from ycore import RemoteProtocolError
from ycore.doc import (
    Array,
    Doc,
    Map,
    Subdocument,
    Text,
    XmlElement,
    XmlFragment,
    XmlHook,
    XmlText,
)
from ycore.lib0 import Undefined
from ycore.updates import decode_state_vector

HERE = Path(__file__).resolve().parent
ROOTS = {"t": "text", "m": "map", "a": "array", "x": "xml_fragment"}
WORDS = ["a", "word ", "😀", "漢字", "x😀y", "\n"]
VALUES: list[Any] = [None, True, 1, -1, 0.5, "text", "😀", [1, [2]], {"a": {"b": None}}]


class Hand:
    """A document of an engine, edited and read."""

    ydoc: Any

    def __init__(self, client_id: int | None = None) -> None:
        raise NotImplementedError

    def state_vector(self) -> dict[int, int]:
        raise NotImplementedError

    def shown(self) -> Any:
        raise NotImplementedError

    def edit(self, random: Random) -> bool:
        raise NotImplementedError

    @classmethod
    def wanted(cls, doc: Doc) -> Any:
        """What it should show of a document."""
        return [cls._plain(getattr(doc, f"get_{kind}")(name)) for name, kind in ROOTS.items()]

    @classmethod
    def _plain(cls, value: Any) -> Any:
        """Ours, as what both can be compared as."""
        match value:
            case XmlHook():
                raise AssertionError("no engine knows hooks")
            case Text():
                return cls._text(value)
            case Map():
                return cls._keys(value)
            case Array():
                return [cls._plain(part) for part in value]
            case XmlElement():
                return ("element", value.tag, cls._keys(value.attributes), cls._list(value))
            case XmlFragment():
                return ("fragment", cls._list(value))
            case Subdocument():
                return cls._subdocument(value)
        return scalar(value, cls._plain)

    @classmethod
    def _list(cls, values: Any) -> list[Any]:
        return [cls._plain(part) for part in values]

    @classmethod
    def _keys(cls, value: Any) -> dict[str, Any]:
        return {key: cls._plain(part) for key, part in value.items()}

    @classmethod
    def _text(cls, value: Text) -> Any:
        raise NotImplementedError

    @classmethod
    def _subdocument(cls, value: Subdocument) -> Any:
        raise NotImplementedError


def scalar(value: Any, inner: Any) -> Any:
    if isinstance(value, Undefined):
        return None
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        exact = isinstance(value, int) and abs(value) >= 2**53
        return str(int(value) if exact else float(value) + 0.0)  # no -0: it is 0 in JSON
    if isinstance(value, list):
        return [inner(part) for part in value]
    if isinstance(value, dict):
        return {key: inner(part) for key, part in value.items()}
    return bytes(value) if isinstance(value, bytes | bytearray) else value


class Pycrdt(Hand):
    def __init__(self, client_id: int | None = None) -> None:
        import pycrdt  # noqa: PLC0415

        self.ydoc = pycrdt.Doc(client_id=client_id, skip_gc=True)
        self.roots: list[Any] = [
            self.ydoc.get(name, type=type_)
            for name, type_ in zip(
                ROOTS, (pycrdt.Text, pycrdt.Map, pycrdt.Array, pycrdt.XmlFragment), strict=True
            )
        ]

    def state_vector(self) -> dict[int, int]:
        return decode_state_vector(self.ydoc.get_state())

    def shown(self) -> Any:
        return [self._seen(root) for root in self.roots]

    def _seen(self, value: Any) -> Any:
        import pycrdt  # noqa: PLC0415

        match value:
            case pycrdt.Text():
                return ("text", self._runs(value))
            case pycrdt.Map():
                return {key: self._seen(part) for key, part in value.items()}
            case pycrdt.Array():
                return [self._seen(part) for part in value]
            case pycrdt.XmlElement():
                keys = {key: self._seen(part) for key, part in value.attributes}
                return ("element", value.tag, keys, [self._seen(part) for part in value.children])
            case pycrdt.XmlText():
                keys = {key: self._seen(part) for key, part in value.attributes}
                return ("xml text", keys, self._runs(value))
            case pycrdt.XmlFragment():
                return ("fragment", [self._seen(part) for part in value.children])
            case pycrdt.Doc():
                return ("document", value.guid)
        return scalar(value, self._seen)

    def _runs(self, text: Any) -> list[Any]:
        return [
            (self._seen(what), {key: self._seen(part) for key, part in (formats or {}).items()})
            for what, formats in text.diff()
        ]

    @classmethod
    def _text(cls, value: Text) -> Any:
        runs = [
            (cls._plain(op["insert"]), cls._keys(op.get("attributes", {})))
            for op in value.to_delta()
        ]
        if isinstance(value, XmlText):
            return ("xml text", cls._keys(value.attributes), runs)
        return ("text", runs)

    @classmethod
    def _subdocument(cls, value: Subdocument) -> Any:
        return ("document", value.guid)

    def edit(self, random: Random) -> bool:
        import pycrdt  # noqa: PLC0415

        text, map_, array, xml = self.roots
        what = random.randrange(9)
        # Places in a text are counted in bytes; an embed is one.
        places = [0]
        for run, _ in text.diff():
            for part in run if isinstance(run, str) else [None]:
                places.append(places[-1] + len(part.encode() if part else b"."))
        at = random.randrange(len(places))
        behind = places[min(at + random.randint(1, 4), len(places) - 1)]
        if what == 0:
            text.insert(places[at], random.choice(WORDS))
        elif what == 1:
            map_[random.choice("ab")] = random.choice([*VALUES, pycrdt.Map({"in": 1})])
        elif what == 2:
            array.insert(random.randint(0, len(array)), random.choice(VALUES))
        elif what == 3 and len(array):
            del array[random.randrange(len(array))]
        elif what == 4 and behind > places[at]:
            del text[places[at] : behind]
        elif what == 8 and behind > places[at]:
            text.format(places[at], behind, {random.choice("bi"): random.choice([True, None])})
        elif what == 5:
            with self.ydoc.transaction():
                text += "together"
                map_["c"] = pycrdt.Array([1, pycrdt.Text("deep")])
        elif what == 6:
            xml.children.append(pycrdt.XmlElement("p", {"k": "v"}, ["text"]))
        elif what == 7 and "a" in map_:
            del map_["a"]
        else:
            return False
        return True


class _Xml:
    """Equal to what y-py shows of XML in an array or a map: a string, or an element."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str | tuple | _Xml)

    __hash__ = None  # type: ignore[assignment]


XML = _Xml()


def is_xml(value: object) -> bool:
    return isinstance(value, XmlElement | XmlFragment | XmlText)


class YPy(Hand):
    def __init__(self, client_id: int | None = None) -> None:
        from ycore_adapters.engines.ypy import YDoc  # noqa: PLC0415

        self.ydoc = YDoc(client_id)
        self.roots: list[Any] = [
            self.ydoc.get_text("t"),
            self.ydoc.get_map("m"),
            self.ydoc.get_array("a"),
            self.ydoc.get_xml_element("x"),
        ]

    def state_vector(self) -> dict[int, int]:
        import y_py  # noqa: PLC0415

        return decode_state_vector(bytes(y_py.encode_state_vector(self.ydoc)))

    def shown(self) -> Any:
        text, map_, array, xml = self.roots
        return [self._seen(text), self._seen(map_), self._seen(array), self._children(xml)]

    @classmethod
    def wanted(cls, doc: Doc) -> Any:
        *others, (_, children) = super().wanted(doc)
        return [*others, children]

    def _children(self, xml: Any) -> list[Any]:
        found = []
        child = xml.first_child
        while child is not None:
            found.append(self._seen(child))
            child = child.next_sibling
        return found

    def _seen(self, value: Any) -> Any:
        import y_py  # noqa: PLC0415

        match value:
            case y_py.YText() | y_py.YXmlText():
                return str(value)
            case y_py.YMap():
                return {key: self._seen(part) for key, part in value.items()}
            case y_py.YArray():
                return [self._seen(part) for part in value]
            case y_py.YXmlElement():
                try:
                    name = value.name
                except BaseException:  # a PanicException: it is a fragment
                    return ("fragment", self._children(value))
                keys = dict.fromkeys((key for key, _ in value.attributes()), XML)
                return ("element", name, keys, self._children(value))
        return scalar(value, self._seen)

    @classmethod
    def _keys(cls, value: Any) -> dict[str, Any]:
        return {key: XML if is_xml(part) else cls._plain(part) for key, part in value.items()}

    @classmethod
    def _plain(cls, value: Any) -> Any:
        if type(value) is XmlElement:
            keys = dict.fromkeys(value.attributes, XML)  # it shows them as strings
            return ("element", value.tag, keys, cls._list(value))
        if type(value) is Array:
            return [XML if is_xml(part) else cls._plain(part) for part in value]
        return super()._plain(value)

    @classmethod
    def _text(cls, value: Text) -> Any:
        return value.to_json() if type(value) is Text else str(value._node.text())

    @classmethod
    def _subdocument(cls, value: Subdocument) -> Any:
        return {}

    def edit(self, random: Random) -> bool:
        import y_py  # noqa: PLC0415

        text, map_, array, _ = self.roots
        what = random.randrange(7)
        with self.ydoc.begin_transaction() as transaction:
            if what == 0:
                at = random.randint(0, len(str(text)))
                text.insert(transaction, at, random.choice(WORDS))
            elif what == 1:
                map_.set(transaction, random.choice("ab"), random.choice(VALUES))
            elif what == 2:
                at = random.randint(0, len(array))
                array.insert(transaction, at, random.choice(VALUES))
            elif what == 3 and len(array):
                array.delete(transaction, random.randrange(len(array)))
            elif what == 4:
                text.extend(transaction, "together")
                map_.set(transaction, "c", y_py.YArray([1, y_py.YText("deep")]))
            elif what == 5 and "a" in map_:
                map_.pop(transaction, "a")
            elif what == 6 and str(text):
                at = random.randrange(len(str(text)))
                if random.random() < 0.5:
                    text.delete_range(transaction, at, 1)
                else:
                    text.format(transaction, at, 1, {random.choice("bi"): True})
            else:
                return False
        return True


BINDABLE = {"Pycrdt": "pycrdt", "YPy": "y_py"}


def require(name: str) -> type[Hand]:
    """Skips the test where the engine is not installed."""
    if find_spec(BINDABLE[name]) is None:
        pytest.skip(f"needs {BINDABLE[name]}, which has no wheel here or is not installed")
    hand: type[Hand] = globals()[name]
    return hand


def hostile(hand: type[Hand], updates: list[bytes], random: Random, counts: Counter[str]) -> None:
    """A document that gets a session, and mutations of its updates; and an engine."""
    sys.path[:0] = [str(HERE.parents[1] / "fuzz")]
    from mutator import CHANGES, mutate  # noqa: PLC0415

    doc, engine = Doc(7), hand()
    ended: list[EngineError] = []
    hand.wanted(doc)  # now the document knows what its roots are
    bind(doc, engine.ydoc, ended.append)
    for update in updates:
        todo = [update]
        while random.random() < 0.6:
            todo.append(mutate(random.choice(updates), random, updates, CHANGES))
        for one in todo:
            try:
                doc.apply(one)
            except RemoteProtocolError:
                counts["malformed"] += 1
            else:
                counts["applied"] += 1
            if not ended and random.random() < 0.1:
                try:
                    engine.edit(random)
                except BaseException as exc:
                    counts[f"not to be edited: {type(exc).__name__}"] += 1
            if ended:
                reason = str(ended.pop())
                counts[reason if "failed" in reason else reason.partition("client id")[0]] += 1
                try:
                    engine = hand()
                    bind(doc, engine.ydoc, ended.append)
                except EngineError as exc:
                    counts[f"not again: {exc}"[:60]] += 1
                    return
    try:
        shown = engine.shown()
    except BaseException as exc:  # y-py panics on reading fragments that are nested
        counts[f"not to be read: {type(exc).__name__}"] += 1
        return
    counts["equal" if shown == hand.wanted(doc) else "differ"] += 1


def main() -> None:
    hand: type[Hand] = globals()[sys.argv[1]]
    counts: Counter[str] = Counter()
    for number, line in enumerate(sys.stdin):
        updates = [bytes.fromhex(word) for word in line.split()]
        hostile(hand, updates, Random(int(sys.argv[2]) + number), counts)
        counts["sessions"] += 1
    print(dict(counts))


if __name__ == "__main__":
    main()
