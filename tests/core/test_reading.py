"""What a document shows: what items mean, and that nothing in an update makes it fail."""

from __future__ import annotations

import json as jsonlib
from typing import Any

import pytest
from build import (
    Id,
    anys,
    binary,
    deleted,
    doc,
    embed,
    format_,
    gc,
    item,
    json,
    skip,
    text,
    type_,
    typed,
    update,
)
from hypothesis import given
from hypothesis import strategies as st

from ycore.doc import Doc, Kind
from ycore.lib0 import UNDEFINED


def view(*updates: bytes) -> Doc:
    """A document that took them in one by one, and shows what a view of all shows."""
    doc = Doc(99)
    for one in updates:
        doc.apply(one)
    whole = Doc.view(doc.store)
    assert (whole.to_json(), whole.held_back) == (doc.to_json(), doc.held_back)
    return doc


def shown(*updates: bytes) -> Any:
    return view(*updates).to_json()


ROOTS: dict[str, tuple[bytes, Any]] = {
    "nothing": (update({}), {}),
    "text": (update({(1, 0): [item(text("héllo 😀"))]}), {"t": "héllo 😀"}),
    "array": (update({(1, 0): [item(anys(1, "two", None, UNDEFINED, [True]))]}),
              {"t": [1, "two", None, None, [True]]}),
    "json": (update({(1, 0): [item(json("1.5", "undefined", '{"a":[]}'))]}),
             {"t": [1.5, None, {"a": []}]}),
    "binary": (update({(1, 0): [item(binary(b"\x00\xff"))]}), {"t": [{"$bytes": "00ff"}]}),
    "numbers": (update({(1, 0): [item(anys(float("nan"), float("inf"), {"a": UNDEFINED}))]}),
                {"t": [None, None, {}]}),
    "subdocument": (update({(1, 0): [item(doc("guid", {}))]}), {"t": [{"$document": "guid"}]}),
    "map": (update({(1, 0): [item(anys(1), key="b"), item(text("x"), key="a")]}),
            {"t": {"a": "x", "b": 1}}),
    "map of a type": (update({(1, 0): [item(type_(2), key="k"), item(text("in"), parent=(1, 0))]}),
                      {"t": {"k": "in"}}),
    "map of a format": (update({(1, 0): [item(format_("b", "1"), key="k")]}), {"t": {"k": None}}),
    "nested": (update({(1, 0): [item(type_(0)), item(type_(1), parent=(1, 0)),
                                item(anys(1), parent=(1, 1), key="k")]}), {"t": [[{"k": 1}]]}),
    "collected": (update({(1, 0): [gc(3), item(text("x"), origin=(1, 1))]}), {}),
    "deleted content": (update({(1, 0): [item(deleted(3)), item(text("x"), origin=(1, 2))]}),
                        {"t": "x"}),
    "in a collected type": (update({(1, 0): [gc(1), item(text("x"), parent=(1, 0))]}), {}),
    "in what is no type": (update({(1, 0): [item(text("x")), item(text("y"), parent=(1, 0))]}),
                           {"t": "x"}),
    "empty after a delete": (update({(1, 0): [item(text("abc"))]}, {1: [(0, 3)]}), {"t": []}),
}  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), ROOTS.values(), ids=ROOTS)
def test_what_a_root_shows(content: bytes, expected: Any) -> None:
    assert shown(content) == expected
    assert jsonlib.dumps(shown(content), allow_nan=False)


def paragraph(name: str = "P", *more: bytes) -> bytes:
    return update({(1, 0): [item(type_(3, name)), item(type_(6), parent=(1, 0)), *more]})


XML: dict[str, tuple[bytes, str]] = {
    "text": (paragraph("P", item(text("a < b"), parent=(1, 1))), "<p>a &lt; b</p>"),
    "attributes": (paragraph("P", item(anys('"1"'), parent=(1, 0), key="b"),
                             item(anys(2), parent=(1, 0), key="a")),
                   '<p a="2" b="&quot;1&quot;"></p>'),
    "formats": (paragraph("P", item(format_("b", '{"x":1}'), parent=(1, 1)),
                          item(text("bold"), origin=(1, 2)),
                          item(format_("i", "true"), origin=(1, 6)),
                          item(text("both"), origin=(1, 7)),
                          item(format_("b", "null"), origin=(1, 11)),
                          item(text("!"), origin=(1, 12))),
                '<p><b x="1">bold</b><b x="1"><i>both</i></b><i>!</i></p>'),
    "embed": (paragraph("P", item(embed('{"img":"x"}'), parent=(1, 1))),
              '<p>{"img": "x"}</p>'),
    "hook": (update({(1, 0): [item(type_(5, "hook")), item(anys(1), parent=(1, 0), key="k")]}),
             "{'k': 1}"),
    "fragment": (update({(1, 0): [item(type_(4)), item(type_(3, "br"), parent=(1, 0))]}),
                 "<br></br>"),
    "value": (update({(1, 0): [item(type_(3, "a")), item(anys("<x>"), origin=(1, 0))]}),
              "<a></a>&lt;x&gt;"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), XML.values(), ids=XML)
def test_xml(content: bytes, expected: str) -> None:
    assert shown(content) == {"t": expected}


def test_a_root_is_what_one_takes_it_for() -> None:
    doc = view(update({(1, 0): [item(text("ab")), item(anys(1), key="k")]}))
    assert doc.roots["t"].kind == Kind.TEXT
    assert list(doc.get_array("t")) == ["a", "b"]
    assert doc.get_map("t") == doc.roots["t"] == doc.get_text("t")
    assert doc.get_map("t").to_json() == {"k": 1}
    assert doc.get_xml_fragment("t").to_json() == "ab"
    assert doc.get_text("t").to_delta() == [{"insert": "ab"}]
    pair = view(update({(1, 0): [item(text("😀"))]}))
    assert list(pair.get_array("t")) == ["\ud83d", "\ude00"]
    array = view(update({(1, 0): [item(anys(1)), item(text("x"), origin=(1, 0))]}))
    assert str(array.get_text("t")) == "x"
    assert array.get_text("t").to_delta() == [{"insert": "x"}]
    formatted = view(update({(1, 0): [item(format_("b", "true"))]}))
    assert list(formatted.get_array("t")) == []


def test_a_delta_has_formats_and_embeds() -> None:
    content = update(
        {
            (1, 0): [
                item(text("a")),
                item(format_("b", "true"), origin=(1, 0)),
                item(embed('{"x":1}'), origin=(1, 1)),
                item(format_("b", "null"), origin=(1, 2)),
                item(format_("i", "null"), origin=(1, 3)),
                item(text("c"), origin=(1, 4)),
            ]
        }
    )
    assert view(content).get_text("t").to_delta() == [
        {"insert": "a"},
        {"insert": {"x": 1}, "attributes": {"b": True}},
        {"insert": "c"},
    ]


def test_the_last_value_of_a_key_counts() -> None:
    first = update({(1, 0): [item(anys("old"), key="k")]})
    later = update({(2, 0): [item(anys("new"), origin=(1, 0))]})
    other = update({(3, 0): [item(anys("same time"), key="k")]})
    assert shown(first, later) == {"t": {"k": "new"}}
    assert shown(first, other) == shown(other, first) == {"t": {"k": "same time"}}
    assert shown(first, later, other) == {"t": {"k": "same time"}}
    gone = update({}, {3: [(0, 1)]})
    assert shown(first, later, other, gone) == {"t": {}}


def test_a_value_of_several_that_is_cut_stays_the_last() -> None:
    """Yjs joins values of a key that were replaced; somebody deletes half of one."""
    both = update({(1, 0): [item(anys("a", "b"), key="k")]})
    assert shown(both, update({}, {1: [(0, 1)]})) == {"t": {"k": "b"}}
    assert shown(update({(1, 0): [item(text("ab"), key="k")]})) == {"t": {"k": "b"}}


def test_what_is_typed_at_one_place_is_ordered_by_ids() -> None:
    base = update({(9, 0): [item(text("<>"))]})
    one = update({(1, 0): [item(text("one"), origin=(9, 0), right=(9, 1))]})
    two = update({(2, 0): [item(text("two"), origin=(9, 0), right=(9, 1))]})
    inside = update({(3, 0): [item(text("+"), origin=(2, 1), right=(2, 2))]})
    assert shown(base, two, one, inside) == {"t": "<onetw+o>"}
    assert shown(one, inside, two, base) == {"t": "<onetw+o>"}
    odd = update({(5, 0): [item(text("A"), origin=(9, 0)), item(text("B"), origin=(5, 0))]})
    assert shown(base, odd, one) == shown(base, one, odd) == {"t": "<oneAB>"}
    first = update({(5, 0): [item(text("^"), right=(9, 0))]})
    assert shown(base, first, one) == {"t": "^<one>"}


def test_what_waits_is_left_out() -> None:
    a, b, c = typed(1, "abc")
    other = update({(2, 0): [item(text("!"), origin=(1, 2))]})
    waiting = view(a, c, other)
    assert waiting.to_json() == {"t": "a"}
    assert waiting.held_back == 2
    whole = view(a, c, other, b)
    assert whole.to_json() == {"t": "abc!"}
    assert whole.held_back == 0
    assert view(update({(1, 0): [skip(2), item(text("x"))]})).held_back == 1


def test_a_deleted_half_of_a_pair_of_surrogates() -> None:
    content = update({(1, 0): [item(text("x😀y"))]})
    assert shown(content, update({}, {1: [(1, 1)]})) == {"t": "x\ufffdy"}
    assert shown(content, update({}, {1: [(2, 1)]})) == {"t": "x\ufffdy"}


def test_deletes_of_what_never_came_do_nothing() -> None:
    content = update({(1, 0): [gc(2), item(text("ab"))]}, {1: [(1, 2), (4, 99)], 7: [(0, 5)]})
    assert shown(content) == {"t": "b"}


def test_deep_nesting_ends_somewhere() -> None:
    items = [item(type_(0))] + [item(type_(0), parent=(1, i)) for i in range(20_000)]
    assert "$nested" in jsonlib.dumps(shown(update({(1, 0): items})))


def test_a_long_chain_of_clients_is_no_recursion() -> None:
    content = {(1, 0): [item(text("x"))]}
    for client in range(2, 20_000):
        content[client, 0] = [item(text("x"), origin=(client - 1, 0))]
    assert shown(update(content)) == {"t": "x" * 19_999}


ids = st.tuples(st.integers(1, 3), st.integers(0, 6))
contents = st.one_of(
    st.sampled_from([text("a"), text("😀b"), anys(1, 2), json("1"), deleted(2), embed("1")]),
    st.sampled_from([type_(0), type_(1), type_(2), type_(3, "p"), type_(5, "h"), type_(6)]),
    st.sampled_from([format_("b", "true"), binary(b"x"), doc("g", {})]),
)


@st.composite
def wild_updates(draw: st.DrawFn) -> bytes:
    """Grammatical, and otherwise anything."""

    def before(client: int, clock: int, id_: Id) -> Id:
        return id_ if id_[0] != client or id_[1] < clock else (client % 3 + 1, id_[1])

    sections: dict[Id, list[bytes]] = {}
    for client in range(1, 4):
        structs: list[bytes] = []
        for clock in range(draw(st.integers(0, 5))):
            how = draw(st.integers(0, 5))
            if how == 0:
                structs.append(gc(1))
                continue
            origin = before(client, clock, draw(ids)) if how in (1, 3) else None
            right = before(client, clock, draw(ids)) if how in (2, 3) else None
            if origin is not None and origin == right:
                right = None
            parent = before(client, clock, draw(ids)) if how == 4 else "t"
            key = draw(st.sampled_from([None, "k"])) if not (origin or right) else None
            structs.append(item(draw(contents), origin=origin, right=right, parent=parent, key=key))
        if structs:
            sections[client, 0] = structs
    deletes = draw(st.dictionaries(st.integers(1, 3), st.just([(0, 1), (2, 4)]), max_size=2))
    return update(sections, deletes)


@given(st.lists(wild_updates(), max_size=3))
def test_whatever_is_in_a_document_it_is_shown(updates: list[bytes]) -> None:
    jsonlib.dumps(shown(*updates), allow_nan=False)
