"""What honest clients of pycrdt and y-py send: the counterpart of `oracle_honest.mjs`.

They edit as their APIs allow, beyond ASCII too, where the engines write structs that Yjs never
writes. All chance comes from the seed, but for the engines' own: what is in the order of a hash.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import accumulate
from random import Random
from typing import Any

from oracle import Frame

WORDS = [
    "a", "word ", "\n", "two words", "é", "héllo wörld", "😀", "x😀y", "a😀b", "👩‍👩‍👧‍👦", "漢字",
    "日本語の文", "e\u0301", "שלום", "🇩🇪", "long " * 20, "ü" * 30,
]  # fmt: skip
FORMATS: list[dict[str, Any]] = [
    {"bold": True}, {"bold": None}, {"italic": True}, {"color": "red"}, {"color": "😀"},
    {"link": {"href": "https://example.org/?q=ü"}}, {"link": None}, {"size": 1.5, "bold": True},
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 63, 64, 2**31, 2**53 - 1, 0.5, -1.25, 1e300, "", "text", "😀",
    "é" * 70, [], {}, [1, [2, [None]]], {"a": {"b": None}, "ü": [True]},
]  # fmt: skip
KEYS = ["a", "b", "ключ", "🔑"]


def _places(runs: list[tuple[Any, Any]]) -> list[int]:
    """Where one can insert into a text; both engines count bytes, and an embed as one."""
    places = [0]
    for what, _ in runs:
        sizes = [len(c.encode()) for c in what] if isinstance(what, str) else [1]
        places += accumulate(sizes, initial=places.pop())
    return places


class Author:
    """A client: its document, and what it has not sent yet."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.queue: list[bytes] = []
        self.links: list[list[bytes]] = []
        """What is on its way to each of the others."""

    def edit(self) -> None:
        raise NotImplementedError

    def apply(self, update: bytes) -> None:
        raise NotImplementedError

    def state_vector(self) -> bytes:
        raise NotImplementedError

    def state(self, state_vector: bytes) -> bytes:
        raise NotImplementedError

    def merged(self, updates: list[bytes]) -> list[bytes]:
        """Put together, if the engine can."""
        return updates

    def told(self, update: bytes) -> None:
        if update != b"\0\0":
            self.queue.append(update)
            for link in self.links:
                link.append(update)


class Pycrdt(Author):
    def __init__(self, random: Random) -> None:
        import pycrdt  # noqa: PLC0415

        super().__init__(random)
        self.doc = pycrdt.Doc(
            client_id=random.choice([random.randrange(1, 2**32), random.randrange(1, 2**53)]),
            skip_gc=random.random() < 0.3,
        )
        self.text = self.doc.get("t", type=pycrdt.Text)
        self.map = self.doc.get("m", type=pycrdt.Map)
        self.array = self.doc.get("a", type=pycrdt.Array)
        self.xml = self.doc.get("x", type=pycrdt.XmlFragment)
        self.history = None
        if random.random() < 0.4:
            scopes = [self.text, self.map, self.array]
            # A constant time: otherwise what is one step depends on how fast it goes.
            self.history = pycrdt.UndoManager(
                scopes=scopes, capture_timeout_millis=0, timestamp=lambda: 0
            )
        self._heard = False
        self._observed = self.doc.observe(self._changed)

    def _changed(self, event: Any) -> None:
        if not self._heard:
            self.told(event.update)

    def apply(self, update: bytes) -> None:
        self._heard = True
        with suppress(Exception):  # it can't read all that Yjs writes
            self.doc.apply_update(update)
        self._heard = False

    def state_vector(self) -> bytes:
        state_vector: bytes = self.doc.get_state()
        return state_vector

    def state(self, state_vector: bytes) -> bytes:
        state: bytes = self.doc.get_update(state_vector)
        return state

    def merged(self, updates: list[bytes]) -> list[bytes]:
        import pycrdt  # noqa: PLC0415

        return [pycrdt.merge_updates(*updates)]

    def edit(self) -> None:
        if self.history is not None and self.random.random() < 0.1:
            self.random.choice([self.history.undo, self.history.undo, self.history.redo])()
        elif self.random.random() < 0.8:
            self._edit()
        else:
            with self.doc.transaction():
                for _ in range(3):
                    self._edit()

    def _texts(self) -> list[Any]:
        import pycrdt  # noqa: PLC0415

        found = [self.text]
        found += [value for value in self.map.values() if isinstance(value, pycrdt.Text)]
        for child in self.xml.children:
            if isinstance(child, pycrdt.XmlElement):
                found += [part for part in child.children if isinstance(part, pycrdt.XmlText)]
            elif isinstance(child, pycrdt.XmlText):
                found.append(child)
        return found

    def _edit(self) -> None:
        import pycrdt  # noqa: PLC0415

        random, text = self.random, self.random.choice(self._texts())
        places = _places(text.diff())
        if random.random() < 0.1:  # who takes them for characters hits the middle of some
            places = [*range(len(places))]
        at = random.randrange(len(places))
        start, end = places[at], random.choice(places[at : at + 7])
        match random.randrange(13):
            case 0 | 1:
                text.insert(start, random.choice(WORDS))
            case 2:
                text.insert(start, random.choice(WORDS), dict(random.choice(FORMATS)))
            case 3 | 4 if end > start:
                del text[start:end]
            case 5 if end > start:
                text.format(start, end, dict(random.choice(FORMATS)))
            case 6:
                text.insert_embed(start, {"image": "ü.png"})
            case 7:
                nested: list[Any] = [
                    pycrdt.Text("deep é"), pycrdt.Map({"in": 1}), pycrdt.Array([1, "😀"]),
                    pycrdt.Doc(guid="a subdocument"),
                ]  # fmt: skip
                self.map[random.choice(KEYS)] = random.choice([*VALUES, *nested])
            case 8:
                self.map[random.choice(KEYS)] = random.choice(VALUES)
            case 9 if len(self.map):
                del self.map[random.choice(list(self.map))]
            case 10:
                value = random.choice([*VALUES, pycrdt.Text("é"), pycrdt.Map({"a": None})])
                self.array.insert(random.randint(0, len(self.array)), value)
            case 11 if len(self.array):
                del self.array[random.randrange(len(self.array))]
            case 12:
                children = self.xml.children
                if len(children) and random.random() < 0.5:
                    child = random.choice(list(children))
                    child.attributes[random.choice(KEYS)] = random.choice(WORDS)
                else:
                    element = pycrdt.XmlElement("p", {"k": "v"}, [random.choice(WORDS)])
                    children.insert(random.randint(0, len(children)), element)


class YPy(Author):
    def __init__(self, random: Random) -> None:
        import y_py  # noqa: PLC0415

        super().__init__(random)
        self.doc = y_py.YDoc(random.randrange(1, 2**32), None, random.random() < 0.3)
        self.text = self.doc.get_text("t")
        self.map = self.doc.get_map("m")
        self.array = self.doc.get_array("a")
        self.xml = self.doc.get_xml_element("x")

    def apply(self, update: bytes) -> None:
        import y_py  # noqa: PLC0415

        y_py.apply_update(self.doc, update)

    def state_vector(self) -> bytes:
        import y_py  # noqa: PLC0415

        return bytes(y_py.encode_state_vector(self.doc))

    def state(self, state_vector: bytes) -> bytes:
        import y_py  # noqa: PLC0415

        return bytes(y_py.encode_state_as_update(self.doc, state_vector))

    def edit(self) -> None:
        before = self.state_vector()
        with self.doc.begin_transaction() as transaction:
            for _ in range(1 if self.random.random() < 0.8 else 3):
                self._edit(transaction)
            update = bytes(transaction.diff_v1(before))
        self.told(update)

    def _edit(self, transaction: Any) -> None:
        import y_py  # noqa: PLC0415

        random, text = self.random, self.text
        places = _places([(str(text), None)])
        at = random.randrange(len(places))
        start, length = places[at], random.choice(places[at : at + 7]) - places[at]
        match random.randrange(11):
            case 0 | 1:
                text.insert(transaction, start, random.choice(WORDS))
            case 2:
                text.insert(transaction, start, random.choice(WORDS), random.choice(FORMATS))
            case 3 | 4 if length:
                text.delete_range(transaction, start, length)
            case 5 if length:
                text.format(transaction, start, length, random.choice(FORMATS))
            case 6:
                value = random.choice([*VALUES, y_py.YArray([1]), y_py.YText("é"), y_py.YMap({})])
                self.map.set(transaction, random.choice(KEYS), value)
            case 7 if len(self.map):
                self.map.pop(transaction, random.choice(sorted(self.map)))
            case 8:
                at = random.randint(0, len(self.array))
                self.array.insert(transaction, at, random.choice(VALUES))
            case 9 if len(self.array):
                self.array.delete(transaction, random.randrange(len(self.array)))
            case 10:
                if len(self.xml) and random.random() < 0.5:
                    element = self.xml.first_child
                    element.set_attribute(transaction, random.choice(KEYS), random.choice(WORDS))
                else:
                    element = self.xml.insert_xml_element(transaction, 0, "p")
                    element.push_xml_text(transaction).push(transaction, random.choice(WORDS))


def honest_frames(kind: type[Author], seed: int, heard: list[bytes]) -> list[Frame]:
    """What a server gets from clients of one engine that hear these updates of others."""
    random = Random(seed)
    authors = [kind(random) for _ in range(random.randint(1, 3))]
    for author in authors:
        author.links = [[] for _ in authors]
    frames: list[Frame] = []
    try:
        _meet(kind, authors, random, heard, frames)
    except BaseException as exc:  # a panic: nothing of its document can be trusted after it
        if type(exc).__name__ != "PanicException":
            raise
    return frames


def _meet(
    kind: type[Author],
    authors: list[Author],
    random: Random,
    heard: list[bytes],
    frames: list[Frame],
) -> None:
    orderly = kind is YPy or random.random() < 0.7
    for _ in range(random.randint(10, 50)):
        at = random.randrange(len(authors))
        author = authors[at]
        if heard and random.random() < 0.5:
            for _ in range(random.randint(1, 5)):
                if heard:
                    update = heard.pop(0)
                    frames.append(Frame(len(authors), "u", update))
                    for one in authors:
                        one.apply(update)
        author.edit()
        other = random.choice(authors)
        link = other.links[at]
        for _ in range(random.randint(0, len(link)) if other is not author else 0):
            author.apply(link.pop(0 if orderly else random.randrange(len(link))))
        if random.random() < 0.6 and author.queue:
            updates, author.queue = author.queue, []
            if random.random() < 0.3:
                updates = author.merged(updates)
            frames += [Frame(at, "u", update) for update in updates]
        if random.random() < 0.15:
            known = random.choice([b"\0", other.state_vector()])
            frames.append(Frame(at, "s", author.state(known)))
    frames += [Frame(at, "s", author.state(b"\0")) for at, author in enumerate(authors)]
    if random.random() < 0.1:
        random.shuffle(frames)
