"""Random edits by a document of ours: for tests that see whether all come to the same."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from ycore.doc import (
    Array,
    Doc,
    Map,
    SharedType,
    Subdocument,
    Text,
    XmlElement,
    XmlFragment,
    XmlHook,
    XmlText,
)
from ycore.lib0 import UNDEFINED, BigInt

WORDS = [
    "a",
    "word",
    " ",
    "two words\n",
    "😀",
    "x😀y",
    "漢字",
    "𠮷",
    "e\u0301",
    "\0",
    "long " * 40,
    "",
]
KEYS = ["a", "b", "ключ", "🔑"]
FORMATS: list[dict[str, Any]] = [
    {"bold": True}, {"bold": None}, {"italic": True}, {"italic": None}, {"color": "red"}, {},
    {"link": {"href": "https://example.org/?q=ü"}}, {"link": None}, {"bold": True, "size": 1.5},
]  # fmt: skip
EMBEDS: list[Any] = [{"image": "a.png"}, {"nested": [1, None, {"deep": "😀"}]}, {}, {"n": -0.5}]
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 127, 2**31 - 1, 2**31, -(2**31), 2**53 - 1, 0.5, 0.1, 1e300, "",
    "text", "😀", {}, [], {"a": UNDEFINED, "ü": [BigInt(1), None]}, [[[], {}]], b"\0\xff", (1, 2),
]  # fmt: skip


class Editor:
    """One client's hands, on the roots t, m, a and x."""

    def __init__(self, doc: Doc, random: Random) -> None:
        self.doc = doc
        self.random = random
        self.roots: list[SharedType] = [
            doc.get_text("t"),
            doc.get_map("m"),
            doc.get_array("a"),
            doc.get_xml_fragment("x"),
        ]
        self.guids = 0

    def types(self) -> Iterator[tuple[SharedType, int]]:
        """All that are not deleted, and how deep they are."""
        todo = [(root, 0) for root in self.roots]
        while todo:
            found, depth = todo.pop()
            yield found, depth
            inside: list[Any] = []
            if isinstance(found, Text):
                inside += [op["insert"] for op in found.to_delta()]
            elif isinstance(found, Map):
                inside += found.values()
            elif isinstance(found, Array | XmlFragment):
                inside += found
            if isinstance(found, XmlElement | XmlText):
                inside += found.attributes.values()
            todo += [(part, depth + 1) for part in inside if isinstance(part, SharedType)]

    def find(self, *kinds: type[Any]) -> tuple[Any, int]:
        return self.random.choice([found for found in self.types() if isinstance(found[0], kinds)])

    def new_type(self, depth: int) -> SharedType:
        pick = self.random.choice
        deeper = [self.new_type(depth + 1)] if depth < 3 else []
        return pick(
            [
                lambda: Text(pick(WORDS)),
                lambda: Map({"a": pick(VALUES), **dict.fromkeys("b" * len(deeper), *deeper)}),
                lambda: Array([1, "two", *deeper, b"x", Subdocument(f"{id(self)}")]),
                lambda: self.new_xml(depth),
            ]
        )()

    def new_xml(self, depth: int) -> SharedType:
        pick = self.random.choice
        children = [self.new_xml(depth + 1)] if depth < 3 and pick([True, False]) else []
        return pick(
            [
                lambda: XmlElement(pick(["p", "H1", "emoji😀"]), {"k": pick(WORDS)}, children),
                lambda: XmlText(pick(WORDS), {"k": 1}),
                lambda: XmlHook("hook", {"k": pick(VALUES)}),
            ]
        )()

    def place(self, size: int) -> int:
        return self.random.randint(0, size)

    # -- edits

    def write(self) -> None:
        text, _ = self.find(Text)
        formats = self.random.choice([None, None, *FORMATS])
        text.insert(self.place(len(text)), self.random.choice(WORDS), formats)

    def type_on(self) -> None:
        text, _ = self.find(Text)
        at = self.place(len(text))
        for character in self.random.choice(WORDS)[:12]:
            text.insert(at, character)
            at += 1

    def delete_text(self) -> None:
        text, _ = self.find(Text)
        start = self.place(len(text))
        text.delete(start, self.random.randint(0, min(len(text) - start, 6)))

    def format_text(self) -> None:
        text, _ = self.find(Text)
        start = self.place(len(text))
        text.format(start, self.place(len(text) - start), self.random.choice(FORMATS))

    def embed(self) -> None:
        text, depth = self.find(Text)
        value = self.random.choice(EMBEDS)
        if depth < 3 and self.random.random() < 0.3:
            value = self.new_type(depth + 1)
        text.insert_embed(self.place(len(text)), value, self.random.choice([None, *FORMATS]))

    def put(self) -> None:
        where, depth = self.find(Map, Array)
        value = self.random.choice(VALUES)
        if depth < 4 and self.random.random() < 0.5:
            value = self.new_type(depth)
        if isinstance(where, Map):
            where[self.random.choice(KEYS)] = value
        elif len(where) and self.random.random() < 0.2:
            where[self.place(len(where) - 1)] = value
        else:
            where.insert(self.place(len(where)), [value, *self.random.sample(VALUES, 2)])

    def put_xml(self) -> None:
        where, depth = self.find(XmlFragment)
        if depth < 4:
            where.insert(self.place(len(where)), [self.new_xml(depth)])

    def put_attribute(self) -> None:
        where, _ = self.find(XmlElement, XmlText, XmlFragment)
        if isinstance(where, XmlElement | XmlText):
            key = self.random.choice(KEYS)
            if self.random.random() < 0.7:
                where.attributes[key] = self.random.choice(WORDS)
            else:
                where.attributes.pop(key, None)

    def delete(self) -> None:
        where, _ = self.find(Map, Array, XmlFragment)
        if isinstance(where, Map):
            where.pop(self.random.choice(KEYS), None)
        else:
            start = self.place(len(where))
            del where[start : start + self.random.randint(0, 3)]

    EDITS = (write, type_on, type_on, delete_text, format_text, embed, put, put, put_xml, put_xml,
             put_attribute, delete)  # fmt: skip

    def edit(self) -> None:
        """One of these; now and then several in a transaction."""
        if self.random.random() < 0.85:
            self.random.choice(self.EDITS)(self)
            return
        with self.doc.transaction():
            for _ in range(3):
                self.random.choice(self.EDITS)(self)
