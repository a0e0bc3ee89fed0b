"""What engines are given of a document: here another document is the engine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

import pytest
from build import anys, deleted, doc, item, json, skip, text, type_, typed, update
from edits import Editor
from hypothesis import given
from hypothesis import strategies as st
from mutator import mutate

from ycore import LocalProtocolError, RemoteProtocolError, StructStore
from ycore.doc import Doc, Feed, Map
from ycore.updates import decode_state_vector, parse_update

NOBODY = object()


class Engine:
    """A document that only a feed tells of another."""

    def __init__(self, source: Doc, engine: Doc | None = None, **options: int | bool) -> None:
        self.doc = Doc() if engine is None else engine
        self.source = source
        self.fed: list[bytes] = []
        known = decode_state_vector(self.doc.encode_state_vector())
        edits = self.doc.encode(source.encode_state_vector())
        settings = {"max_client_id": 2**53 - 1, "subdocuments": True, **options}
        self.feed = Feed(source, known, self.level, origin=self, **settings)
        self.feed.give(edits)
        self.level()
        self.doc.observe_updates(self.edited)

    def level(self) -> None:
        while (news := self.feed.take()) is not None:
            parsed = parse_update(news)
            clocks = decode_state_vector(self.doc.encode_state_vector())
            for section in parsed.sections:
                assert section.start == clocks.get(section.client, 0), "a hole, or old news"
            self.fed.append(news)
            self.doc.apply(news, origin=NOBODY)
            self.feed.taken()
        assert not self.doc.held_back

    def edited(self, news: bytes, origin: object) -> None:
        if origin is not NOBODY:
            self.feed.give(news)


def engine_of(source: Doc) -> Doc:
    return Engine(source).doc


def test_it_has_what_was_there_and_what_comes() -> None:
    source = Doc(1)
    source.get_text("t").insert(0, "gone here")
    source.get_text("t").delete(0, 5)
    engine = engine_of(source)
    assert engine.to_json() == {"t": "here"}
    source.get_text("t").insert(4, "!")
    source.get_map("m")["a"] = Map({"b": [1]})
    assert engine.to_json() == {"m": {"a": {"b": [1]}}, "t": "here!"}
    del source.get_map("m")["a"]
    assert engine.to_json() == {"m": {}, "t": "here!"}


def test_edits_in_the_engine_come_back_to_nobody() -> None:
    source, engine = Doc(1), Doc(2)
    engine.get_text("t").insert(0, "theirs")
    bound, other = Engine(source, engine), Engine(source)
    told: list[object] = []
    source.observe_updates(lambda _, origin: told.append(origin))
    engine.get_text("t").insert(0, "and ")
    engine.get_text("t").delete(4, 1)
    assert source.to_json() == other.doc.to_json() == {"t": "and heirs"}
    assert told == [bound, bound]
    assert not bound.fed


def test_what_waits_is_not_told_and_deletes_wait_with_it() -> None:
    first, second, third = typed(5, "abc")
    source = Doc(1)
    engine = Engine(source)
    source.apply(second)
    source.apply(update(deletes={5: [(1, 1)], 6: [(0, 3)]}))
    source.apply(update({(7, 0): [item(text("x"), origin=(5, 2))]}))
    assert not engine.fed
    source.apply(first)
    assert engine.doc.to_json() == {"t": "a"}
    source.apply(third)
    assert engine.doc.to_json() == source.to_json() == {"t": "acx"}
    assert len(engine.fed) == 2


def test_a_skip_is_not_told() -> None:
    source = Doc(1)
    engine = Engine(source)
    source.apply(update({(5, 0): [item(text("a")), skip(1), item(text("c"), origin=(5, 1))]}))
    source.apply(update({(5, 1): [item(text("b"), origin=(5, 0))]}))
    assert engine.doc.to_json() == {"t": "abc"}


def test_what_belongs_nowhere_is_collected() -> None:
    source = Doc(1)
    engine = Engine(source)
    source.apply(update({(5, 0): [item(text("abc"))]}))
    source.apply(update({(6, 0): [item(text("x"), parent=(5, 1)), item(text("y"))]}))
    assert engine.fed[-1] == update({(6, 0): [b"\x00\x01", item(text("y"))]})


def test_what_was_joined_is_cut_where_the_engine_has_it_to() -> None:
    source = Doc(1)
    engine = Engine(source)
    source.apply(update({(5, 0): [item(text("añ😀"))]}))
    engine.feed.close()
    source.apply(update({(5, 4): [item(text("b"), origin=(5, 3))]}))
    source.apply(update(deletes={5: [(0, 5)]}))
    source.apply(update({(5, 5): [item(deleted(2), origin=(5, 4)), b"\x00\x03"]}))
    half = Engine(source, engine.doc)
    assert half.fed == [
        update(
            {(5, 4): [item(deleted(3), origin=(5, 3)), b"\x00\x03"]}, {5: [(0, 10)]}
        )
    ]  # fmt: skip
    # The engine has a part of a GC, or of a text.
    for whole, part in (
        (b"\x00\x04", b"\x00\x01"),
        (item(text("abcd")), item(text("a"))),
        (item(anys(1, 2, 3)), item(anys(1))),
    ):
        source, known = Doc(1), Doc(2)
        source.apply(update({(5, 0): [whole]}))
        known.apply(update({(5, 0): [part]}))
        engine = Engine(source, known)
        assert parse_update(engine.fed[0]).sections[0].start == 1
        assert engine.doc.to_json() == source.to_json()


def test_json_is_any_and_subdocuments_are_empty_if_they_must() -> None:
    source = Doc(1)
    for subdocuments in (True, False):
        Engine(source, subdocuments=subdocuments)
    plain, known = Engine(source, subdocuments=False), Engine(source)
    source.apply(update({(5, 0): [item(json('{"a":1}', "undefined"))]}))
    source.apply(update({(5, 2): [item(doc("guid", {"x": 1}), origin=(5, 1))]}))
    assert plain.doc.to_json() == {"t": [{"a": 1}, None, {}]}
    assert known.doc.to_json() == {"t": [{"a": 1}, None, {"$document": "guid"}]}


def split_pair(source: Doc) -> None:
    source.apply(update(deletes={5: [(1, 1)]}))


def hook(source: Doc) -> None:
    source.apply(update({(6, 0): [item(type_(5, "hook"), parent="x")]}))


def pair_in_array(source: Doc) -> None:
    parent = item(type_(0), parent="m", key="a")
    source.apply(update({(6, 0): [parent, item(text("😀"), parent=(6, 0))]}))


def misplaced(source: Doc) -> None:
    source.apply(update({(6, 0): [item(text("a"), parent="o")]}))
    source.apply(update({(6, 1): [item(text("b"), origin=(5, 1), right=(6, 0))]}))


def wrong_order(source: Doc) -> None:
    source.apply(update({(6, 0): [item(text("ab"), origin=(5, 1))]}))
    source.apply(update({(6, 2): [item(text("c"), origin=(6, 1), right=(6, 0))]}))


def one_neighbour(source: Doc) -> None:
    source.apply(update({(6, 0): [item(text("a"), parent="o")]}))
    source.apply(update({(6, 1): [item(text("b"), origin=(6, 0), right=(6, 0))]}))


def high_client(source: Doc) -> None:
    source.apply(update({(2**40, 0): [item(text("x"))]}))


@pytest.mark.parametrize(
    "spoil",
    [split_pair, hook, high_client, pair_in_array, misplaced, wrong_order, one_neighbour],
)
def test_what_it_cannot_show_ends_it(spoil: Callable[[Doc], None]) -> None:
    source = Doc(1)
    source.apply(update({(5, 0): [item(text("😀"))]}))
    engine = Engine(source, max_client_id=2**32 - 1)
    assert engine.feed.problem is None
    spoil(source)
    assert engine.feed.problem is not None
    assert engine.feed.take() is None
    source.get_text("t").insert(0, "goes on ")
    again = Engine(source, engine.doc, max_client_id=2**32 - 1)
    assert again.feed.problem is not None
    new = Engine(source, max_client_id=2**32 - 1)
    assert (new.feed.problem is None) is (spoil is split_pair)
    if spoil is split_pair:
        assert new.doc.to_json() == source.to_json() == {"t": "goes on \ufffd"}


def test_a_pair_that_is_cut_before_it_is_told_is_no_problem() -> None:
    source = Doc(1)
    engine = Engine(source)
    source.apply(update({(5, 0): [item(text("😀a"))]}, {5: [(1, 1)]}))
    source.apply(update(deletes={5: [(2, 1)]}))
    assert engine.feed.problem is None
    assert engine.doc.to_json() == source.to_json() == {"t": "\ufffd"}


def test_a_pair_that_is_cut_after_it_was_deleted() -> None:
    for deletes, at, is_cut in ((True, 1, True), (True, 2, False), (False, 2, False)):
        source = Doc(1)
        engine = Engine(source)
        source.apply(update({(5, 0): [item(text("a😀b"))]}))
        source.apply(update(deletes={5: [(0, 4)]} if deletes else {5: [(3, 1)]}))
        source.apply(update({(6, 0): [item(text("x"), origin=(5, at))]}))
        assert (engine.feed.problem is not None) is is_cut


def test_a_client_id_that_somebody_else_uses() -> None:
    source, engine = Doc(1), Doc(2)
    bound = Engine(source, engine)
    source.apply(update({(2, 3): [item(text("x"), origin=(2, 2))]}))
    assert bound.feed.problem is None
    engine.get_text("t").insert(0, "mine")
    assert bound.feed.problem == "somebody else uses the engine's client id 2"


def test_edits_in_the_midst_of_something_are_taken_in_behind_it() -> None:
    source, engine = Doc(1), Doc(2)
    Engine(source, engine)
    with source.transaction():
        source.get_text("t").insert(0, "a")
        engine.get_text("t").insert(0, "b")
        assert source.get_text("t").to_json() == "a"
    assert source.to_json() == engine.to_json()
    said: list[str] = []

    def observer(_: bytes, origin: object) -> None:
        if origin == "there":
            engine.get_array("a").append("seen")
            said.append(str(source.get_array("a")))

    source.observe_updates(observer)
    source.apply(typed(5, "x")[0], origin="there")
    assert said == ["Array([])"]
    assert source.get_array("a").to_json() == ["seen"]


def test_what_an_edit_in_the_engine_brings_about_is_told() -> None:
    source, engine = Doc(1), Doc(2)
    bound = Engine(source, engine)
    source.apply(update({(5, 0): [item(text("x"), origin=(2, 0))]}))  # waits for it
    engine.get_text("t").insert(0, "a")
    assert engine.to_json() == source.to_json() == {"t": "ax"}
    assert len(bound.fed) == 1


def test_an_edit_costs_the_same_however_many_have_deleted_something() -> None:
    source = Doc(1)
    source.apply(update({(c, 0): [item(deleted(1))] for c in range(10, 500)}))
    engine = Engine(source)
    for client in range(500, 900):
        engine.doc.apply(update({(client, 0): [item(text("x"))]}, {client: [(0, 1)]}))
        source.apply(update({(client, 1): [item(text("y"))]}, {client: [(1, 1)]}))
    assert not engine.feed._deleted
    assert engine.doc.encode_state_vector() == source.encode_state_vector()
    assert not engine.doc.held_back


def test_what_is_deleted_while_the_engine_takes_something_is_said_next() -> None:
    source = Doc(1)
    source.get_text("t").insert(0, "abcd")
    settings: dict[str, Any] = {"max_client_id": 2**53 - 1, "subdocuments": True}
    feed = Feed(source, {}, lambda: None, origin=None, **settings)
    source.get_text("t").delete(3, 1)
    first = feed.take()
    source.get_text("t").delete(1, 1)
    feed.taken()
    second = feed.take()
    feed.taken()
    assert first is not None
    assert second is not None
    assert parse_update(first).deletes == {1: [(3, 4)]}
    assert parse_update(second).deletes == {1: [(1, 2)]}
    assert feed.take() is None


def test_misuse_and_garbage() -> None:
    with pytest.raises(LocalProtocolError, match="view"):
        Engine(Doc.view(StructStore()))
    engine = Engine(Doc())
    with pytest.raises(RemoteProtocolError):
        engine.feed.give(b"\x01")
    with pytest.raises(RemoteProtocolError, match="not before its own"):  # pycrdt has it so
        engine.feed.give(update({(9, 0): [item(text("a"), origin=(1, 0), right=(9, 0))]}))
    engine.feed.close()
    engine.feed.close()


def test_an_observer_that_raises_costs_nothing() -> None:
    source, engine = Doc(1), Doc(2)
    Engine(source, engine)

    def raises(*_: object) -> None:
        raise ValueError("no")

    source.observe_updates(raises)
    with pytest.raises(ValueError, match="no"):
        engine.get_text("t").insert(0, "a")
    with pytest.raises(ValueError, match="no"):
        source.get_text("t").insert(0, "b")
    assert source.to_json() == engine.to_json()


def together(seed: int) -> None:
    """Two documents, an engine of each, edits in all, and what is sent is mutated too."""
    random = Random(seed)
    docs = [Doc(1), Doc(2)]
    engines = [Engine(docs[0], Doc(3)), Engine(docs[1], Doc(4))]
    editors = [Editor(found, random) for found in [*docs, *(engine.doc for engine in engines)]]
    links: list[list[bytes]] = [[], []]
    for source, link in zip(docs, links, strict=True):
        source.observe_updates(
            lambda news, origin, link=link: None if origin is NOBODY else link.append(news)
        )
    sent: list[bytes] = []
    for _ in range(25):
        random.choice(editors).edit()
        for link, target in zip(links, reversed(docs), strict=True):
            random.shuffle(link)
            for _ in range(random.randint(0, len(link))):
                news = link.pop()
                sent.append(news)
                if random.random() < 0.2:
                    with suppress(RemoteProtocolError):
                        target.apply(mutate(news, random, sent), NOBODY)
                target.apply(news, NOBODY)
    for engine in engines:
        if engine.feed.problem is None:
            assert engine.doc.to_json() == engine.source.to_json(), seed
            deleted_there = [i for its in engine.doc._items.values() for i in its if i.deleted]
            deleted_here = [i for its in engine.source._items.values() for i in its if i.deleted]
            assert sum(i.length for i in deleted_there) == sum(i.length for i in deleted_here)


@given(st.integers(0, 2**32))
def test_engines_show_what_their_documents_show(seed: int) -> None:
    together(seed)
