"""A document between others: who interferes, and when."""

from __future__ import annotations

from typing import Any

import pytest
from build import anys, gc, item, skip, text, update

from ycore import LocalProtocolError, merge_updates
from ycore.doc import Doc, Event, Map, SharedType, Subdocument


class Mirror:
    """What somebody sees who follows the events, a character or value each."""

    def __init__(self, shared: SharedType) -> None:
        self.places: list[Any] = []
        shared.observe(self.on_event)

    def on_event(self, event: Event) -> None:
        at = 0
        for op in event.delta:
            if "retain" in op:
                at += op["retain"]
                assert at <= len(self.places)
            elif "delete" in op:
                assert at + op["delete"] <= len(self.places)
                del self.places[at : at + op["delete"]]
            else:
                self.places[at:at] = op["insert"]
                at += len(op["insert"])


def long_update(client: int) -> bytes:
    doc = Doc(client)
    with doc.transaction():
        for i in range(6000):
            doc.get_text("t").insert(0, "ab"[i % 2])
    return doc.encode()


def test_a_section_of_skips_only_holds_nothing_up() -> None:
    doc = Doc(1)
    doc.apply(update({(9, 5): [item(text("x"))]}))
    doc.apply(update({(9, 20): [skip(10)], (8, 0): [item(text("y"))]}))
    assert doc.to_json() == {"t": "y"}
    doc.apply(update({(9, 20): [skip(10)], (7, 0): [item(text("z"))]}))
    assert doc.held_back == 1


def test_deletes_of_what_is_still_to_come_make_it_take_another_id() -> None:
    doc = Doc(5)
    doc.get_text("t").insert(0, "a")
    doc.apply(update({}, {5: [(1, 16)]}))
    doc.get_text("t").insert(1, "bcd")
    assert doc.to_json() == Doc.view(doc.store).to_json() == {"t": "abcd"}


def test_who_takes_its_id_takes_nothing_that_is_edited_meanwhile() -> None:
    doc = Doc(5)
    made: list[object] = []
    doc.observe_updates(lambda update, origin: made.append(origin))
    items = [item(anys(1), parent="a")] * 3000
    edits = 0
    for _ in doc.apply_steps(update({(5, 0): items}), "theirs"):
        doc.get_map("m")[str(edits)] = edits
        edits += 1
    assert made.count(None) == edits
    assert doc.to_json() == Doc.view(doc.store).to_json()


def test_events_are_right_for_edits_while_an_update_is_taken_in() -> None:
    doc = Doc(5)
    note = doc.get_text("t")
    mirror = Mirror(note)
    note.insert(0, "start")
    edits = 0
    for _ in doc.apply_steps(long_update(9)):
        edits += 1
        note.append("LL")
        note.delete(len(note) // 2, 1)
        assert mirror.places == list(str(note))
    assert edits > 3
    assert mirror.places == list(str(note))


def test_an_edit_in_an_observer_is_told_to_all_after_what_they_are_being_told() -> None:
    doc, other = Doc(5), Doc(6)
    note = doc.get_text("t")
    note.observe(lambda event: note.insert(0, "!") if len(note) < 3 else None)
    mirror = Mirror(note)
    doc.observe_updates(lambda update, origin: other.apply(update))
    note.insert(0, "ab")
    assert "".join(mirror.places) == str(note) == "!ab"
    assert other.to_json() == doc.to_json()


def test_a_pair_of_surrogates_that_is_cut_is_in_the_event() -> None:
    doc = Doc(5)
    note = doc.get_text("t")
    mirror = Mirror(note)
    note.insert(0, "a\U0001f600b\U0001f600")
    doc.apply(update({(9, 0): [item(text("x"), origin=(5, 1), right=(5, 2))]}))
    assert mirror.places == list("a\ufffdx\ufffdb\U0001f600")
    doc.apply(update({}, {5: [(5, 1)]}))
    assert mirror.places == list("a\ufffdx\ufffdb\ufffd") == list(str(note))


def test_a_pair_that_is_cut_by_what_is_then_collected_is_in_the_event() -> None:
    doc = Doc(5)
    note = doc.get_text("t")
    mirror = Mirror(note)
    note.insert(0, "a\U0001f600b")
    lost = item(text("x"), origin=(5, 1), right=(8, 0))
    doc.apply(update({(9, 0): [lost], (8, 0): [gc(1)]}))
    assert mirror.places == list("a\ufffd\ufffdb") == list(str(note))


def test_who_gives_up_in_the_middle_of_an_update_has_it_all_the_same() -> None:
    doc = Doc(5)
    steps = doc.apply_steps(long_update(9))
    while not len(doc.get_text("t")):
        next(steps)
    steps.close()
    assert len(doc.get_text("t")) == 6000
    doc.apply(long_update(9))
    assert len(doc.get_text("t")) == 6000


def test_an_observer_that_raises_loses_nothing_of_a_heavy_update() -> None:
    doc = Doc(5)
    doc.get_array("a").observe(lambda event: 1 / 0)
    clients = range(100, 2500)
    news = [update({(client, 0): [item(anys(client), parent="a")]}) for client in clients]
    with pytest.raises(ZeroDivisionError):
        doc.apply(merge_updates(news))
    assert len(doc.get_array("a")) == len(clients)


def test_many_places_at_once_are_found_in_one_walk() -> None:
    doc = Doc(5)
    maps = doc.get_array("a")
    maps.extend([Map() for _ in range(20_000)])
    seen: list[Any] = []
    maps.observe_deep(lambda events: seen.extend(event.path for event in events))
    with doc.transaction():
        for at, entry in enumerate(maps):
            entry["k"] = at
    assert seen == [["a", at] for at in range(20_000)]


def test_a_root_that_is_edited_as_list_and_as_text() -> None:
    doc = Doc(5)
    doc.get_text("t").insert(0, "hello")
    doc.get_text("t").insert(5, "!")
    doc.get_array("t").insert(0, ["x"])
    doc.get_text("t").insert(3, "Y")
    assert doc.get_array("t")[:] == ["x", *"heYllo!"]


def test_names_are_what_others_read() -> None:
    doc = Doc(5)
    doc.get_text("\ud800").insert(0, "x")
    assert doc.to_json() == Doc.view(doc.store).to_json() == {"\ufffd": "x"}


def test_values_that_hold_themselves_and_odd_subdocuments_are_refused() -> None:
    doc = Doc(5)
    endless: list[Any] = []
    endless.append(endless)
    odd: list[Any] = [Subdocument("g", None), Subdocument("g", [1]), Subdocument(5)]  # type: ignore[arg-type]
    for value in [endless, *odd]:
        with pytest.raises(LocalProtocolError):
            doc.get_array("a").append(value)
    doc.get_array("a").append(Subdocument("g", {"meta": (1, 2)}))
    assert Doc.view(doc.store).to_json() == doc.to_json()


def test_what_ends_observing_may_be_called_again() -> None:
    doc = Doc(5)
    told: list[str] = []
    stop = doc.get_text("t").observe(lambda event: told.append("event"))
    doc.get_text("t").insert(0, "a")
    stop()
    stop()
    doc.get_text("t").insert(0, "a")
    assert told == ["event"]
