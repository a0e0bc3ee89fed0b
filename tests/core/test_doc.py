"""Documents: editing, observing, and that all come to the same."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from build import anys, format_, item, json, skip, text, type_, typed, update
from edits import Editor
from hypothesis import given
from hypothesis import strategies as st

from ycore import LocalProtocolError, RemoteProtocolError, StructStore
from ycore.doc import (
    Array,
    Change,
    Doc,
    Event,
    Kind,
    Map,
    SharedType,
    Subdocument,
    Text,
    XmlElement,
    XmlFragment,
    XmlHook,
    XmlText,
)
from ycore.doc._items import Item
from ycore.lib0 import BigInt
from ycore.updates import decode_state_vector, parse_update


def pair() -> tuple[Doc, Doc]:
    """Two documents; what is edited in the first, the second gets."""
    a, b = Doc(1), Doc(2)
    a.observe_updates(lambda update, origin: b.apply(update, "a"))
    return a, b


# ---- text


def test_text_is_edited_in_characters() -> None:
    a, b = pair()
    note = a.get_text("t")
    note.insert(0, "x😀y")
    note.insert(2, "漢")
    note.append("!")
    note += "?"
    note.insert(-1, "-")
    assert str(note) == str(b.get_text("t")) == "x😀漢y!-?"
    assert len(note) == 7
    note.delete(1, 2)
    del note[0]
    del note[-2:]
    del note[5:]
    note.insert(0, "")
    assert str(note) == str(b.get_text("t")) == "y!"
    assert repr(note) == "Text('y!')"
    assert a.encode() == b.encode()


def test_lone_surrogates_become_what_javascript_writes() -> None:
    doc = Doc(1)
    doc.get_text("t").insert(0, "a\ud83d\ude00\ud83db")
    assert str(doc.get_text("t")) == "a😀\ufffdb"


@pytest.mark.parametrize(
    "edit",
    [
        lambda t: t.insert(4, "x"),
        lambda t: t.insert(-5, "x"),
        lambda t: t.delete(2, 2),
        lambda t: t.delete(0, -1),
        lambda t: t.format(1, 3, {"b": True}),
        lambda t: t.__delitem__(3),
        lambda t: t.insert_embed(9, {}),
        lambda t: t.apply_delta([{"retain": 2}, {"delete": 2}]),
    ],
)
def test_a_place_that_is_not_there_is_an_index_error(edit: Callable[[Text], None]) -> None:
    doc = Doc(1)
    doc.get_text("t").insert(0, "abc")
    with pytest.raises(IndexError):
        edit(doc.get_text("t"))
    assert str(doc.get_text("t")) == "abc"


def test_formats() -> None:
    a, b = pair()
    note = a.get_text("t")
    note.insert(0, "bold plain", {"bold": True})
    note.format(4, 6, {"bold": None})
    note.insert(4, "er")  # takes on what it comes behind
    note.insert(6, "-", {})
    note.insert(len(note), "link", {"link": {"href": "x", "n": [1, True]}})
    assert b.get_text("t").to_delta() == note.to_delta()
    assert note.to_delta() == [
        {"insert": "bolder", "attributes": {"bold": True}},
        {"insert": "- plain"},
        {"insert": "link", "attributes": {"link": {"href": "x", "n": [1, True]}}},
    ]
    size = len(a.encode())
    note.format(0, 6, {"bold": True})  # says nothing new
    note.delete(0, 6)  # and the formats go with it
    assert note.to_delta()[0] == {"insert": "- plain"}
    assert str(note) == "- plainlink"
    assert len(a.encode()) < size + 20
    note.format(0, 11, {"bold": None, "link": None})
    assert note.to_delta() == b.get_text("t").to_delta() == [{"insert": "- plainlink"}]


def test_formats_end_where_they_ended() -> None:
    a, b = pair()
    note = a.get_text("t")
    note.insert(0, "abcd", {"bold": True})
    note.insert(4, "ef", {})
    note.format(1, 3, {"bold": None})
    note.format(1, 3, {"bold": True})
    note.format(0, 2, {"bold": None})
    note.insert(2, "!", {"bold": True})
    note.insert(3, "?", {"bold": None})
    assert note.to_delta() == b.get_text("t").to_delta() == [
        {"insert": "ab"},
        {"insert": "!", "attributes": {"bold": True}},
        {"insert": "?"},
        {"insert": "cd", "attributes": {"bold": True}},
        {"insert": "ef"},
    ]  # fmt: skip


def test_a_format_that_was_set_twice_is_not_set_again() -> None:
    doc = Doc(2)
    contents = [format_("b", "true"), text("a"), format_("b", "true"), text("c")]
    items = [item(each, origin=(1, i - 1) if i else None) for i, each in enumerate(contents)]
    for _ in doc.apply_steps(parse_update(update({(1, 0): items}))):
        pass
    note = doc.get_text("t")
    note.insert(1, "x", {})
    assert note.to_delta() == [
        {"insert": "a", "attributes": {"b": True}},
        {"insert": "x"},
        {"insert": "c", "attributes": {"b": True}},
    ]
    assert decode_state_vector(doc.encode_state_vector()) == {1: 4, 2: 2}


def test_formats_without_end_are_not_shown_without_end() -> None:
    doc = Doc(2)
    deltas: list[Any] = []
    doc.get_text("t").observe(lambda event: deltas.append(event.delta))
    contents = [part for i in range(500) for part in (format_(f"f{i}", "1"), text("x"))]
    items = [item(each, origin=(1, i - 1) if i else None) for i, each in enumerate(contents)]
    doc.apply(update({(1, 0): items}))
    shown = doc.get_text("t").to_delta()
    assert [shown] == deltas
    assert [len(op["attributes"]) for op in shown] == [min(i, 64) for i in range(1, 501)]


def test_a_format_ends_before_another_value_of_it_begins() -> None:
    a, b = pair()
    note = a.get_text("t")
    note.insert(0, "ab")
    note.insert(2, "c", {"color": "red"})
    note.format(0, 2, {"color": "blue"})
    assert note.to_delta() == b.get_text("t").to_delta() == [
        {"insert": "ab", "attributes": {"color": "blue"}},
        {"insert": "c", "attributes": {"color": "red"}},
    ]  # fmt: skip


def test_a_number_out_of_range_in_a_format_is_put_back_as_one() -> None:
    doc, other = Doc(2), Doc(3)
    contents = [format_("f", '{"n":[1,1e999,-1e999]}'), text("ab")]
    items = [item(each, origin=(1, i - 1) if i else None) for i, each in enumerate(contents)]
    doc.apply(update({(1, 0): items}))
    doc.get_text("t").insert(1, "x", {})  # so it is ended, and begun again
    other.apply(doc.encode())
    inf = float("inf")
    assert other.get_text("t").to_delta()[2]["attributes"] == {"f": {"n": [1, inf, -inf]}}


def test_a_list_with_a_format_in_it() -> None:
    """No editor makes one, but there is no rule against it."""
    doc = Doc(2)
    doc.get_array("t").append(1)
    seen: list[Any] = []
    for _ in range(2):
        doc.get_array("t").observe(lambda event: seen.append(event.delta))
        doc.get_array("t").observe_deep(lambda events: seen.append(events[0].delta))
    odd = [item(format_("b", "true"), right=(2, 0)), item(anys(0), origin=(1, 0), right=(2, 0))]
    doc.apply(update({(1, 0): odd}))
    assert list(doc.get_array("t")) == [0, 1]
    assert seen == [[{"insert": [0]}]] * 4
    doc.get_array("t").insert(1, ["x"])
    assert list(doc.get_array("t")) == [0, "x", 1]
    assert seen[4:] == [[{"retain": 1}, {"insert": ["x"]}]] * 4
    doc.get_array("t").append(Array())
    paths: list[list[str | int]] = []
    doc.get_array("t").observe_deep(lambda events: paths.append(events[0].path))
    doc.get_array("t")[3].append(1)
    assert paths == [["t", 3]]
    assert len({doc.get_array("t"), doc.get_array("t"), doc.get_map("m")}) == 2


def test_who_crowds_one_place_does_not_make_others_wait() -> None:
    """Finding a place among n takes n looks: Yjs does the same, all in one go."""
    doc = Doc(1)
    crowd = update({(client, 0): [item(anys(1), key="k")] for client in range(500, 1000)})
    assert not list(doc.apply_steps(crowd))  # the highest first, and then each finds its place
    crowd = update({(client, 0): [item(anys(1), key="k")] for client in range(1000, 1200)})
    assert sum(1 for _ in doc.apply_steps(crowd)) > 50
    doc.apply(update({(5, 0): [item(text("<>"))]}))
    here = {"origin": (5, 0), "right": (5, 1)}
    doc.apply(update({(client, 0): [item(text("x"), **here)] for client in range(10, 500)}))
    late = {(client, 0): [item(text("y"), **here)] for client in range(2000, 2010)}
    assert sum(1 for _ in doc.apply_steps(update(late))) > 2
    assert doc.to_json()["t"] == "<" + "x" * 490 + "y" * 10 + ">"


def test_observers_are_told_once_of_an_update_of_many_authors() -> None:
    doc = Doc(1)
    told: list[int] = []
    doc.get_text("t").observe(lambda event: told.append(len(event.delta[0]["insert"])))
    news: list[bytes] = []
    doc.observe_updates(lambda new, _: news.append(new))
    doc.apply(update({(client, 0): [item(text("x"))] for client in range(3000)}))
    assert told == [3000]
    other = Doc(2)
    for new in news:
        other.apply(new)
    assert other.to_json() == doc.to_json()


def test_what_is_long_is_copied_a_few_times_only_however_often_it_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied = 0
    split = Item.split

    def counting(item: Item, at: int) -> Item:
        nonlocal copied
        copied += item.length
        return split(item, at)

    monkeypatch.setattr(Item, "split", counting)
    size = 40_000
    for content, cuts in (
        (text("x" * size), [(at, 1) for at in range(0, size, 8)]),
        (text("😀" * (size // 2)), [(at, 2) for at in range(0, size, 8)]),
        (anys(*[1] * size), [(at, 1) for at in range(1, size, 8)]),
    ):
        doc, copied = Doc(1), 0
        doc.apply(update({(5, 0): [item(content)]}))
        doc.apply(update({}, {5: cuts}))
        assert 0 < copied < 2 * 1024 * len(cuts) + 20 * size
        assert doc._root("t").length == size - sum(length for _, length in cuts)
        assert doc.encode() == update({(5, 0): [item(content)]}, {5: cuts})


@pytest.mark.parametrize("length", [4, 5000])
def test_an_item_whose_right_neighbour_is_in_its_left_one(length: int) -> None:
    """The left one is then what is before the right one, as in Yjs."""
    doc = Doc(1)
    doc.apply(update({(5, 0): [item(text("a" + "b" * (length - 1)))]}))
    doc.apply(update({(6, 0): [item(text("<"), origin=(5, length - 1), right=(5, 1))]}))
    assert doc.to_json() == {"t": "a<" + "b" * (length - 1)}


def test_deletes_of_many_ranges_are_taken_in_step_by_step() -> None:
    doc = Doc(2)
    doc.apply(update({(1, 0): [item(text("ab" * 3000))]}))
    steps = doc.apply_steps(update({}, {1: [(at, 1) for at in range(0, 6000, 2)]}))
    assert sum(1 for _ in steps) > 3
    assert doc.to_json() == {"t": "b" * 3000}


def test_a_format_that_is_true_is_not_one() -> None:
    doc = Doc(1)
    note = doc.get_text("t")
    note.insert(0, "ab", {"n": 1, "l": [1], "d": {"k": 1}})
    note.format(0, 1, {"n": True, "l": [True], "d": {"k": True}})
    [first, second] = note.to_delta()
    assert first["attributes"]["n"] is first["attributes"]["l"][0] is True
    assert first["attributes"]["d"]["k"] is True
    assert second["attributes"] == {"n": 1, "l": [1], "d": {"k": 1}}


def test_embeds() -> None:
    a, b = pair()
    note = a.get_text("t")
    note.insert(0, "ab")
    note.insert_embed(1, {"image": "x"}, {"width": 5})
    note.insert_embed(3, Map({"k": Array([1])}))
    assert (len(note), str(note)) == (4, "ab")
    delta = b.get_text("t").to_delta()
    assert delta[:3] == [
        {"insert": "a"},
        {"insert": {"image": "x"}, "attributes": {"width": 5}},
        {"insert": "b"},
    ]
    assert delta[3]["insert"].to_json() == {"k": [1]}
    note.delete(1, 1)
    assert b.get_text("t").to_delta()[0] == {"insert": "ab"}


def test_a_delta_is_applied() -> None:
    a, b = pair()
    note = a.get_text("t")
    note.insert(0, "😀 hello")
    note.apply_delta(
        [
            {"retain": 2},
            {"insert": "oh ", "attributes": {"bold": True}},
            {"delete": 1},
            {"retain": 2, "attributes": {"italic": True}},
            {"insert": {"hr": True}},
            {"insert": "…"},
        ]
    )
    expected = [
        {"insert": "😀 "},
        {"insert": "oh ", "attributes": {"bold": True}},
        {"insert": "el", "attributes": {"italic": True}},
        {"insert": {"hr": True}},
        {"insert": "…lo"},
    ]
    assert note.to_delta() == b.get_text("t").to_delta() == expected
    copy = Doc(3).get_text("t")
    copy.apply_delta(expected)
    assert copy.to_delta() == expected
    with pytest.raises(LocalProtocolError, match="not a delta's"):
        copy.apply_delta([{"keep": 1}])


# ---- lists and maps


def test_an_array_is_a_list() -> None:
    a, b = pair()
    numbers = a.get_array("a")
    numbers.extend([1, 2, 3])
    numbers.append("four")
    numbers.insert(1, [1.5, (None, b"x")])
    numbers.insert(-1, [True])
    assert list(numbers) == [1, 1.5, [None, b"x"], 2, 3, True, "four"]
    assert numbers[2] == [None, b"x"]
    assert (numbers[-1], numbers[1:3], len(numbers)) == ("four", [1.5, [None, b"x"]], 7)
    numbers[0] = {"k": BigInt(2**60)}
    del numbers[1]
    del numbers[-2:]
    assert list(b.get_array("a")) == list(numbers) == [{"k": 2**60}, [None, b"x"], 2, 3]
    assert isinstance(b.get_array("a")[0]["k"], BigInt)
    assert repr(numbers) == "Array([{'k': 1152921504606846976}, [None, b'x'], 2, 3])"
    for wrong in (4, -5):
        with pytest.raises(IndexError):
            numbers[wrong]
        with pytest.raises(IndexError):
            del numbers[wrong]
    with pytest.raises(IndexError):
        numbers.insert(5, [0])
    with pytest.raises(LocalProtocolError, match="step"):
        del numbers[::2]
    numbers.clear()
    assert list(b.get_array("a")) == []
    assert a.encode() == b.encode()


def test_a_value_that_was_put_in_is_a_copy() -> None:
    doc = Doc(1)
    value = {"a": [1]}
    doc.get_array("a").append(value)
    value["a"].append(2)
    assert doc.to_json() == {"a": [{"a": [1]}]}


def test_a_map_is_a_mapping() -> None:
    a, b = pair()
    m = a.get_map("m")
    m["a"] = 1
    m.update(b=2, c=b"3")
    m["a"] = "one"
    assert dict(b.get_map("m")) == dict(m) == {"a": "one", "b": 2, "c": b"3"}
    assert ("a" in m, m.get("x", 0), m.pop("b"), len(m), sorted(m)) == (True, 0, 2, 2, ["a", "c"])
    assert repr(m) == "Map({'a': 'one', 'c': b'3'})"
    for key in ("b", "x"):
        with pytest.raises(KeyError):
            m[key]
        with pytest.raises(KeyError):
            del m[key]
    with pytest.raises(LocalProtocolError, match="a key must be a str"):
        m[1] = 2  # type: ignore[index]
    m.clear()
    assert dict(b.get_map("m")) == {}
    assert m == a.get_map("m") != b.get_map("m")
    assert a.encode() == b.encode()


def test_types_in_types() -> None:
    a, b = pair()
    m = a.get_map("m")
    inner = Array([1, Map({"t": Text("deep")}), Subdocument("guid"), XmlHook("h", {"k": 1})])
    assert inner.doc is None
    m["l"] = inner
    assert m["l"] is inner
    assert (inner.doc, inner.parent, m.parent) == (a, m, None)
    inner[1]["t"].append("er")
    assert b.to_json() == {"m": {"l": [1, {"t": "deeper"}, {"$document": "guid"}, {"k": 1}]}}
    there = b.get_map("m")["l"]
    assert (there[1].kind, there[2].guid, there[3].name) == (Kind.MAP, "guid", "h")
    deep = there[1]["t"]
    del m["l"]
    assert inner.is_deleted
    assert deep.is_deleted
    inner.append(2)  # shows nowhere
    assert b.to_json() == {"m": {}}
    assert there[:] == []
    with pytest.raises(LocalProtocolError, match="already"):
        m["again"] = inner
    with pytest.raises(LocalProtocolError, match="into a document first"):
        Text("x").insert(0, "y")


def test_if_one_value_can_be_in_no_document_none_of_them_is() -> None:
    doc = Doc(1)
    array = doc.get_array("a")
    array.append("stays")
    text_ = Text("once")
    for values in ([1, Map(), object()], [text_, text_]):
        with pytest.raises(LocalProtocolError):
            array.extend(values)
    with pytest.raises(LocalProtocolError):
        array[0] = object()
    assert list(array) == ["stays"]
    array.append(text_)
    assert doc.to_json() == {"a": ["stays", "once"]}


@pytest.mark.parametrize("value", [object(), {1: 2}, 2**60, {"a": {1, 2}}, float])
def test_what_can_be_in_no_document_is_refused(value: Any) -> None:
    doc = Doc(1)
    with pytest.raises(LocalProtocolError):
        doc.get_array("a").append(value)
    with pytest.raises(LocalProtocolError):
        doc.get_map("m")["k"] = value
    assert doc.store.encode() == b"\0\0"


@pytest.mark.parametrize("value", [object(), float("nan"), b"bytes"])
def test_what_is_no_json_is_no_format(value: Any) -> None:
    doc = Doc(1)
    note = doc.get_text("t")
    note.insert(0, "abc")
    before = doc.encode()
    for edit in (
        lambda: note.insert(0, "x", {"k": value}),
        lambda: note.format(0, 2, {"k": value}),
        lambda: note.insert_embed(0, {"k": value}),
    ):
        with pytest.raises(LocalProtocolError, match="not JSON"):
            edit()
    assert doc.encode() == before


@pytest.mark.parametrize(
    "value",
    [{1: 2}, {"k": {None: 1}}, [2**53], {"k": BigInt(1)}, [Subdocument("g")], (1, {"k": -(2**60)})],
)
def test_what_json_would_say_otherwise_is_no_format(value: Any) -> None:
    doc = Doc(1)
    with pytest.raises(LocalProtocolError, match="not JSON"):
        doc.get_text("t").insert(0, "x", {"k": value})
    assert doc.to_json() == {}


# ---- XML


@pytest.mark.parametrize("where", ["fragment", "element"])
def test_a_string_in_xml_becomes_a_text(where: str) -> None:
    a, b = pair()
    child = XmlElement("p", {"k": "v"}, ["hello"])
    a.get_xml_fragment("x").append(child)
    parent = a.get_xml_fragment("x") if where == "fragment" else child
    parent.insert(0, ["Note: "])
    parent.append(" more")
    parent.extend(["<", XmlText("a")])
    there = b.get_xml_fragment("x")
    for child in [*there, *(there if where == "fragment" else there[0])]:
        assert isinstance(child, XmlElement | XmlText)
    assert str(there) == (
        'Note: <p k="v">hello</p> more&lt;a'
        if where == "fragment"
        else '<p k="v">Note: hello more&lt;a</p>'
    )


@pytest.mark.parametrize(
    "wrong",
    [
        1,
        None,
        {"a": 1},
        ["a"],
        b"a",
        1.5,
        Map(),
        Array(),
        Text("a"),
        Subdocument("g"),
        XmlFragment(),
    ],
    ids=repr,
)
def test_what_is_no_xml_is_not_put_into_xml(wrong: Any) -> None:
    doc = Doc(1)
    fragment = doc.get_xml_fragment("x")
    fragment.append(XmlElement("p"))
    before = doc.encode()
    for put in (
        lambda: fragment.append(wrong),
        lambda: fragment[0].insert(0, ["good", wrong]),
        lambda: fragment.extend([wrong]),
        lambda: XmlElement("p", children=[wrong]),
        lambda: XmlFragment([wrong]),
    ):
        with pytest.raises(LocalProtocolError, match=r"an XmlElement, an XmlText, .* or a str"):
            put()
    assert doc.encode() == before


@pytest.mark.parametrize(
    "wrong",
    [
        lambda doc: doc.get_text(5),
        lambda doc: Text(5),
        lambda doc: Text(b"a"),
        lambda doc: XmlText(None),
        lambda doc: XmlElement(None),
        lambda doc: XmlElement("p", ["k"]),
        lambda doc: XmlElement("p", {5: "v"}),
        lambda doc: XmlElement("p", {}, "hello"),
        lambda doc: XmlText("a", [("k", 1)]),
        lambda doc: XmlHook(1),
        lambda doc: Array("hello"),
        lambda doc: Array({"a": 1}),
        lambda doc: Array(5),
        lambda doc: Array([object()]),
        lambda doc: Map({"a": [{1: 2}]}),
        lambda doc: Map([("a", 1)]),
        lambda doc: Map({"a": {"b": Text("t")}}),
        lambda doc: Array([[Subdocument("g")]]),
        lambda doc: doc.get_array("a").insert(0, "hello"),
        lambda doc: doc.get_array("a").insert(0, 1),
        lambda doc: doc.get_array("a").insert("a", [1]),
        lambda doc: doc.get_array("a").extend(Map({"a": 1})),
        lambda doc: doc.get_array("a").append(2**53),
        lambda doc: doc.get_array("a").append(Array([2**53])),
        lambda doc: doc.get_text("t").insert("a", 0),
        lambda doc: doc.get_text("t").insert(0, 5),
        lambda doc: doc.get_text("t").append(None),
        lambda doc: doc.get_text("t").insert(0, "a", [("bold", True)]),
        lambda doc: doc.get_text("t").insert(0, "a", {5: True}),
        lambda doc: doc.get_text("t").delete(0, "a"),
        lambda doc: doc.get_text("t").__delitem__("a"),
        lambda doc: doc.get_text("t").insert_embed(0, "a"),
        lambda doc: doc.get_text("t").insert_embed(0, 1),
        lambda doc: doc.get_text("t").insert_embed(0, None),
        lambda doc: doc.get_text("t").insert_embed(0, [1]),
        lambda doc: doc.get_text("t").insert_embed(0, Subdocument("g")),
        lambda doc: doc.get_text("t").insert_embed(0, {1: 2}),
        lambda doc: doc.get_text("t").apply_delta([{"insert": "a"}, {"insert": 5}]),
        lambda doc: doc.get_text("t").apply_delta([{"insert": "a"}, {"retain": -1}]),
        lambda doc: doc.get_text("t").apply_delta([{"insert": "a"}, {"delete": -1}]),
        lambda doc: doc.get_text("t").apply_delta([{"insert": "a"}, "b"]),
        lambda doc: doc.get_text("t").apply_delta([{"insert": t} for t in [Text("t")] * 2]),
    ],
)  # fmt: skip
def test_what_editors_cannot_read_is_not_written_by_accident(
    wrong: Callable[[Doc], object],
) -> None:
    doc = Doc(1)
    doc.get_text("t").insert(0, "here")
    before = doc.encode()
    with pytest.raises(LocalProtocolError):
        wrong(doc)
    assert doc.encode() == before


def test_a_delta_that_goes_beyond_the_end_changes_nothing() -> None:
    text = Doc(1).get_text("t")
    for wrong in ({"retain": 2}, {"delete": 2}, {"retain": 2, "attributes": {"b": 1}}):
        for inserted in ("a", "delete", "retain"):
            with pytest.raises(IndexError, match="beyond the end: there are 0"):
                text.apply_delta([{"insert": inserted}, {"insert": {"i": 1}}, wrong])
    assert text.to_delta() == []
    text.apply_delta([{"insert": "abc"}, {"insert": Map({"k": 1})}, {"insert": ""}])
    text.apply_delta([{"delete": 2}, {"retain": 1}, {"insert": "d"}, {"delete": 1}])
    assert text.to_delta() == [{"insert": "cd"}]


def test_bytes_in_plain_values() -> None:
    a, b = pair()
    a.get_array("a").append([bytearray(b"a"), {"k": memoryview(b"b")}])
    assert b.get_array("a")[0] == [b"a", {"k": b"b"}]


def test_a_type_is_in_one_place_even_before_that_is_in_a_document() -> None:
    text = Text("t")
    array = Array([text])
    for put in (
        lambda: Array([text]),
        lambda: Map({"k": text}),
        lambda: Doc(1).get_array("a").append(text),
    ):
        with pytest.raises(LocalProtocolError, match="this Text is in another type already"):
            put()
    with pytest.raises(LocalProtocolError, match="one place"):
        Map(dict.fromkeys("ab", Text("u")))
    doc = Doc(1)
    with pytest.raises(IndexError):
        doc.get_array("a").insert(1, [array])
    doc.get_array("a").append(array)
    assert doc.to_json() == {"a": [["t"]]}


def test_types_nest_as_deep_as_one_likes() -> None:
    a, b = pair()
    made: Map = Map({"end": 1})
    for _ in range(3000):
        made = Map({"in": made, "k": 1})
    a.get_map("m")["in"] = made
    found = b.get_map("m")
    for _ in range(3001):
        found = found["in"]
    assert dict(found) == {"end": 1}


def test_xml() -> None:
    a, b = pair()
    fragment = a.get_xml_fragment("x")
    fragment.append(XmlElement("p", {"class": "c"}, [XmlText("hi"), XmlElement("BR")]))
    paragraph = fragment[0]
    paragraph[0].insert(2, "!", {"b": {}})
    paragraph.attributes["n"] = 1
    paragraph[0].attributes["k"] = "v"
    assert str(b.get_xml_fragment("x")) == '<p class="c" n="1">hi<b>!</b><br></br></p>'
    there = b.get_xml_fragment("x")[0]
    assert (there.tag, dict(there.attributes)) == ("p", {"class": "c", "n": 1})
    assert (repr(there.attributes), len(there.attributes)) == ("{'class': 'c', 'n': 1}", 2)
    assert repr(there[1]) == "<XmlElement <br></br>>"
    assert dict(there[0].attributes) == {"k": "v"}
    del paragraph.attributes["n"]
    del paragraph[1]
    assert str(fragment) == '<p class="c">hi<b>!</b></p>'
    fragment.insert(0, [XmlText("first", {"a": 1})])
    assert str(b.get_xml_fragment("x")) == 'first<p class="c">hi<b>!</b></p>'
    assert a.encode() == b.encode()
    assert a.get_xml_element("e").to_json() == "<e></e>"
    a.get_xml_text("xt").insert(0, "<")
    assert b.get_xml_text("xt").to_json() == "&lt;"


# ---- transactions


def test_a_transaction_is_one_update() -> None:
    doc, other = Doc(1), Doc(2)
    updates: list[tuple[bytes, object]] = []
    stop = doc.observe_updates(lambda *what: updates.append(what))
    with doc.transaction("mine"), doc.transaction("inner"):
        doc.get_text("t").insert(0, "a")
        doc.get_text("t").insert(1, "b")
        doc.get_text("t").delete(0, 1)
        doc.get_map("m")["k"] = 1
    [(news, origin)] = updates
    assert origin == "mine"
    other.apply(news)
    assert other.to_json() == doc.to_json() == {"m": {"k": 1}, "t": "b"}
    with doc.transaction():
        pass
    assert len(updates) == 1
    assert not doc.is_in_transaction
    with doc.transaction():
        assert doc.is_in_transaction
    stop()
    doc.get_text("t").insert(0, "x")
    assert len(updates) == 1


def test_what_was_done_before_an_exception_stays() -> None:
    a, b = pair()

    def edit_and_fail() -> None:
        with a.transaction():
            a.get_text("t").insert(0, "a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        edit_and_fail()
    assert b.to_json() == {"t": "a"}
    a.get_text("t").append("b")
    assert b.to_json() == {"t": "ab"}


def test_updates_come_before_events_and_edits_in_events_after() -> None:
    doc, other = Doc(1), Doc(2)
    order: list[object] = []

    def on_update(update: bytes, origin: object) -> None:
        other.apply(update)
        order.append(other.to_json()["t"])

    def on_event(event: Event) -> None:
        order.append(event.delta)
        if len(doc.get_text("t")) < 3:
            doc.get_text("t").append("+")

    doc.observe_updates(on_update)
    doc.get_text("t").observe(on_event)
    doc.get_text("t").insert(0, "a")
    inserted = [{"retain": 1}, {"insert": "+"}]
    assert order == [
        "a", [{"insert": "a"}], "a+", inserted, "a++", [{"retain": 2}, {"insert": "+"}],
    ]  # fmt: skip


def test_an_observer_that_raises_keeps_nobody_else_from_being_told() -> None:
    doc = Doc(1)
    told: list[object] = []

    def bad(*args: object) -> None:
        told.append("bad")
        raise ZeroDivisionError

    doc.observe_updates(bad)
    doc.observe_updates(lambda update, origin: told.append("update"))
    doc.get_text("t").observe(bad)
    doc.get_text("t").observe(lambda event: told.append("event"))
    with pytest.raises(ZeroDivisionError):
        doc.get_text("t").insert(0, "a")
    assert told == ["bad", "update", "bad", "event"]
    assert doc.to_json() == {"t": "a"}


def test_no_update_is_taken_in_while_one_is_under_way() -> None:
    doc = Doc(1)
    steps = doc.apply_steps(update({(5, 0): [item(text("x"))] + [item(text("y"))] * 3000}))
    next(steps)
    with pytest.raises(LocalProtocolError, match="under way"):
        doc.apply(b"\0\0")
    doc.get_text("mine").insert(0, "may be edited")
    for _ in steps:
        pass
    assert doc.get_text("t").to_json().count("y") == 3000
    with doc.transaction(), pytest.raises(LocalProtocolError, match="under way"):
        doc.apply(b"\0\0")


# ---- updates


def test_a_malformed_update_changes_nothing() -> None:
    doc = Doc(1)
    doc.get_text("t").insert(0, "a")
    with pytest.raises(RemoteProtocolError):
        doc.apply(b"\xff")
    assert doc.to_json() == {"t": "a"}
    with pytest.raises(RemoteProtocolError):
        doc.encode(b"\xff")


def test_what_is_missing_is_asked_for_and_given() -> None:
    a, b = Doc(1), Doc(2)
    a.get_text("t").insert(0, "abc")
    b.apply(a.encode(b.encode_state_vector()))
    a.get_text("t").insert(3, "d")
    missing = a.encode(b.encode_state_vector())
    assert len(missing) < 20
    b.apply(missing)
    assert b.to_json() == {"t": "abcd"}
    told: list[bytes] = []
    b.observe_updates(lambda update, origin: told.append(update))
    b.apply(missing)
    assert told == []


def test_ids_are_random_and_change_if_somebody_else_uses_them() -> None:
    assert len({Doc().client_id for _ in range(20)}) == 20
    doc = Doc(7)
    doc.apply(update({(7, 0): [item(text("theirs"))]}))
    assert doc.client_id != 7
    doc.get_text("t").append("!")
    assert doc.to_json() == {"t": "theirs!"}
    waiting = Doc(7)
    waiting.get_text("t").insert(0, "ab")
    waiting.client_id = 8
    waiting.apply(update({(8, 3): [item(text("x"), parent="t")]}))
    assert waiting.client_id != 8
    waiting.client_id = 8
    waiting.get_text("t").append("c")
    assert waiting.client_id != 8
    assert waiting.to_json() == {"t": "abc"}
    own = Doc(9)
    own.get_text("t").insert(0, "a")
    own.apply(own.encode())
    assert own.client_id == 9


def test_a_view_is_to_be_read() -> None:
    store = StructStore()
    for one in typed(1, "abc"):
        store.add(one)
    view = Doc.view(store)
    assert view.to_json() == {"t": "abc"}
    with pytest.raises(LocalProtocolError, match="read only"):
        view.get_text("t").insert(0, "x")
    with pytest.raises(LocalProtocolError, match="read only"):
        view.apply(b"\0\0")
    assert store.encode() == view.encode()


def test_behind_a_hole_the_longer_copy_counts() -> None:
    doc = Doc(1)
    doc.apply(update({(5, 2): [item(text("c"), origin=(5, 1))]}))
    doc.apply(update({(5, 4): [item(text("e"), origin=(5, 3))]}))
    assert doc.held_back == 2
    doc.apply(update({(5, 1): [item(text("bcdef"), origin=(5, 0))]}))
    assert doc.held_back == 5
    doc.apply(update({(5, 0): [item(text("a"))]}))
    assert doc.to_json() == {"t": "abcdef"}
    assert doc.held_back == 0


def test_who_waits_for_several_waits_for_each() -> None:
    doc = Doc(1)
    doc.apply(update({(5, 0): [item(text("x"), origin=(6, 0), right=(7, 1))]}))
    doc.apply(update({(5, 1): [item(text("y"), origin=(5, 0))]}))
    doc.apply(update({(7, 0): [item(text("<>"))]}))
    assert doc.held_back == 2
    doc.apply(update({(6, 0): [item(text("-"), origin=(7, 0))]}))
    assert doc.to_json() == {"t": "<-xy>"}


def test_what_is_missing_is_told() -> None:
    a, _, c, d = typed(1, "abcd")
    doc = Doc(9)
    doc.apply(a)
    assert doc.waiting == ({}, {})
    for later in (c, d):
        doc.apply(later)
    doc.apply(update({(2, 0): [item(text("xyz"), origin=(1, 3)), item(text("!"), right=(3, 7))]}))
    doc.apply(update({(4, 0): [item(text("?"), parent=(8, 5)), skip(2), item(text("!!"))]}))
    doc.apply(update({(5, 0): [item(text("fine"), parent="u")]}))
    assert doc.waiting.held == {1: 2, 2: 4, 4: 3}
    assert doc.waiting.missing == {1: [(1, 2)], 3: [(0, 8)], 4: [(1, 3)], 8: [(0, 6)]}
    assert doc.held_back == 9


def test_what_is_missing_can_be_taken_for_collected() -> None:
    a, _, c = typed(1, "abc")
    other = update({(2, 1): [item(text("xyz"), parent="u"), item(text("!"), right=(3, 7))]})
    far = update({(6, 0): [item(text("far"), origin=(7, 2**53 - 1)), item(text("."), parent="u")]})
    doc = Doc(9)
    for known in (a, c, other):
        doc.apply(known)
    doc.apply(doc.waiting.collected())
    assert doc.waiting == ({}, {})
    assert doc.to_json() == {"t": "a", "u": "xyz"}  # "c" was typed behind what is missing
    doc.apply(far)
    doc.apply(doc.waiting.collected())
    assert doc.waiting.missing == {}
    assert doc.held_back == 4  # it waits for a clock that no struct can have
    assert doc.waiting.collected() == b"\0\0"


def test_seeds_that_say_the_same_are_the_same() -> None:
    def seed(text_: str) -> bytes:
        doc = Doc(0)
        note = doc.get_text("t")
        note.insert(0, "??" + text_)
        note.delete(0, 2)
        note.format(0, 2, {"b": True})
        doc.get_array("a").extend([1, Map({"k": b"x"}), Subdocument("g")])
        doc.get_text("t").insert_embed(1, {"x": 1})
        doc.get_xml_fragment("x").append(XmlElement("p", {}, [XmlHook("h")]))
        return doc.seeded()

    assert seed("abc") == seed("abc") != seed("abd")
    doc = Doc(1)
    doc.apply(seed("abc"))
    doc.apply(seed("abc"))
    assert doc.get_text("t").to_json() == "abc"
    assert str(doc.get_xml_fragment("x")) == "<p>{}</p>"
    [client] = decode_state_vector(doc.encode_state_vector())
    assert client != 0
    of_another = Doc(0)
    of_another.apply(
        update({(5, 0): [item(text("x")), b"\x00\x02"], (6, 0): [item(anys(1), key="k")]})
    )
    of_another.get_text("t").append("y")
    doc = Doc(1)
    doc.apply(of_another.seeded())
    assert doc.to_json() == {"t": "xy"}
    of_another.apply(update({(5, 9): [item(text("x"), origin=(5, 8))]}))
    with pytest.raises(LocalProtocolError, match="missing"):
        of_another.seeded()
    assert Doc(0).seeded() == b"\0\0"


def test_a_seed_keeps_legacy_values() -> None:
    doc = Doc(0)
    doc.apply(update({(5, 0): [item(json("1", "undefined", '{"a":null}')), item(type_(1))]}))
    other = Doc(1)
    other.apply(doc.seeded())
    assert other.encode() == doc.encode()


# ---- observing


def test_events() -> None:
    a, b = pair()
    seen: list[Event] = []
    deep: list[list[Event]] = []
    m = a.get_map("m")
    m["gone"] = 1
    m["l"] = Array([1])
    there = b.get_map("m")
    stop = there.observe(seen.append)
    stop_deep = there.observe_deep(deep.append)
    with a.transaction():
        m["new"] = 1
        m["l"].extend([2, "x"])
        del m["gone"]
        m["brief"] = 1
        del m["brief"]
    [event] = seen
    assert (event.target, event.path, event.delta) == (there, ["m"], [])
    assert event.keys == {"new": Change("add", None, 1), "gone": Change("delete", 1, None)}
    assert (event.origin, event.is_local) == ("a", False)
    [[outer, inner]] = deep
    assert outer == event
    assert (inner.path, inner.delta) == (["m", "l"], [{"retain": 1}, {"insert": [2, "x"]}])
    m["new"] = 2
    assert seen[-1].keys == {"new": Change("update", 1, 2)}
    m["new"] = Text("t")
    m["new"].insert(0, "x")
    assert deep[-1][0].path == ["m", "new"]
    stop()
    stop_deep()
    m["new"] = 3
    assert len(seen) == 3
    with a.transaction():
        m["l"].insert(0, [Map({"k": 1}), 0])
    deeper: list[list[Event]] = []
    b.get_map("m")["l"].observe_deep(deeper.append)
    m["l"][0]["k"] = 2
    assert deeper[0][0].path == ["m", "l", 0]
    m["l"].append(9)
    del m["l"][1:3]
    assert [event.delta for [event] in deeper[1:]] == [
        [{"retain": 5}, {"insert": [9]}],
        [{"retain": 1}, {"delete": 2}],
    ]
    del m["l"]
    assert len(deeper) == 3


def test_where_a_change_is_in_xml_and_text() -> None:
    doc = Doc(1)
    paths: list[list[list[str | int]]] = []
    doc.get_xml_fragment("x").extend([XmlText("a"), XmlElement("p", {}, [XmlText("b")])])
    note = doc.get_text("t")
    note.insert(0, "😀")
    note.insert_embed(1, Text("in"))
    for root in (doc.get_xml_fragment("x"), note):
        root.observe_deep(lambda events: paths.append([event.path for event in events]))
    with doc.transaction():
        doc.get_xml_fragment("x")[1][0].append("!")
        doc.get_xml_fragment("x")[1].attributes["k"] = 1
    note.to_delta()[1]["insert"].append("!")
    assert paths == [[["x", 1], ["x", 1, 0]], [["t", 1]]]


def test_what_is_nested_too_deep_to_be_shown_is_not_observed() -> None:
    items = [item(type_(1))] + [item(type_(1), parent=(1, i), key="k") for i in range(300)]
    doc = Doc(2)
    doc.apply(update({(1, 0): items}))
    events: list[list[Event]] = []
    doc.get_array("t").observe_deep(events.append)
    doc.apply(update({(3, 0): [item(anys(1), parent=(1, i), key="v") for i in (5, 290)]}))
    [[event]] = events
    assert len(event.path) == 7


class Mirror:
    """Keeps a copy of a text or a list by what it is told of the changes."""

    def __init__(self, shared: Any) -> None:
        self.places: list[Any] = []
        shared.observe(self.on_event)

    def on_event(self, event: Event) -> None:
        at = 0
        for op in event.delta:
            if "retain" in op:
                for place in range(at, at + op["retain"]) if "attributes" in op else ():
                    value, formats = self.places[place]
                    formats = {**formats, **op["attributes"]}
                    formats = {key: value for key, value in formats.items() if value is not None}
                    self.places[place] = (value, formats)
                at += op["retain"]
            elif "delete" in op:
                assert len(self.places) >= at + op["delete"]
                del self.places[at : at + op["delete"]]
            else:
                insert = op["insert"]
                new = [
                    (value, op.get("attributes", {}))
                    for value in (insert if isinstance(insert, str | list) else [insert])
                ]
                self.places[at:at] = new
                at += len(new)

    def sees(self, shared: Any) -> bool:
        assert len(shared) == len(self.places)
        if not isinstance(shared, Text):
            return [value for value, _ in self.places] == list(shared)
        expected = [
            (value, op.get("attributes", {}))
            for op in shared.to_delta()
            for value in (op["insert"] if isinstance(op["insert"], str) else [op["insert"]])
        ]
        return self.places == expected


class MapMirror:
    def __init__(self, shared: Map) -> None:
        self.entries: dict[str, Any] = {}
        shared.observe(self.on_event)

    def on_event(self, event: Event) -> None:
        for key, change in event.keys.items():
            assert (key in self.entries) == (change.action != "add")
            if change.action == "delete":
                del self.entries[key]
            else:
                self.entries[key] = change.new


def plain(delta: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """So that it can be compared with another document's."""
    return [
        {**op, "insert": op["insert"].to_json() if isinstance(op["insert"], SharedType) else op}
        for op in delta
    ]


def edit_together(seed: int) -> None:
    random = Random(seed)
    docs = [Doc(client) for client in random.sample([1, 2, 300, 2**31, 2**32 - 1], 3)]
    editors = [Editor(doc, random) for doc in docs]
    links: dict[tuple[int, int], list[bytes]] = {
        (i, j): [] for i in range(3) for j in range(3) if i != j
    }
    mirrors = []
    for i, doc in enumerate(docs):

        def on_update(update: bytes, origin: object, who: int = i) -> None:
            if origin is None:
                for (a, _), queue in links.items():
                    if a == who:
                        queue.append(update)

        doc.observe_updates(on_update)
        roots = doc.get_text("t"), doc.get_array("a"), doc.get_xml_fragment("x")
        mirrors.append(([(root, Mirror(root)) for root in roots], MapMirror(doc.get_map("m"))))
    for _ in range(40):
        random.choice(editors).edit()
        (_, j), queue = random.choice(list(links.items()))
        for _ in range(min(len(queue), random.randrange(6))):
            docs[j].apply(queue.pop(0 if random.random() < 0.8 else -1), "remote")
    for (_, j), queue in links.items():
        for news in queue:
            docs[j].apply(news, "remote")
    whole = docs[0].encode()
    fresh = Doc.view(docs[0].store)
    for doc, (lists, entries) in zip(docs, mirrors, strict=True):
        assert docs[0].store.add(doc.encode()) is doc.store.add(whole) is None
        assert plain(doc.get_text("t").to_delta()) == plain(fresh.get_text("t").to_delta())
        for root in ("get_array", "get_map", "get_xml_fragment"):
            name = root.removeprefix("get_")[0]
            assert getattr(doc, root)(name).to_json() == getattr(fresh, root)(name).to_json()
        for shared, mirror in lists:
            assert mirror.sees(shared), (seed, shared)
        assert entries.entries == dict(doc.get_map("m")), seed


@given(st.integers(0, 2**32))
def test_all_come_to_the_same_and_observers_know_what(seed: int) -> None:
    edit_together(seed)


def test_typing_does_not_look_from_the_start() -> None:
    doc = Doc(1)
    note = doc.get_text("t")
    for i in range(3000):
        note.insert(i, "ab"[i % 2], {"b": bool(i // 7 % 2)})
    assert len(note.to_delta()) == 429
    assert len(note) == 3000


def test_a_section_of_nothing_but_a_skip_says_nothing() -> None:
    first, second = typed(5, "ab")
    doc = Doc()
    doc.apply(second)
    doc.apply(update({(6, 0): [item(text("x"))], (5, 0): [skip(1)]}))
    assert doc.to_json() == {"t": "x"}
    doc.apply(first)
    assert doc.to_json() == {"t": "abx"}
