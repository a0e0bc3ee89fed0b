"""What hostile documents show costs little, and what is read from them can be written again."""

from __future__ import annotations

import json as jsonlib
from typing import Any

import pytest
from build import anys, format_, item, text, type_, update

from ycore import LocalProtocolError
from ycore.doc import Doc

XML_ELEMENT, XML_TEXT = 3, 6


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("kinds", [[6], [3], [6, 1], [6, 0]])
def test_types_in_xml_are_not_quoted_over_and_over(kinds: list[int], key: str | None) -> None:
    items = [item(type_(XML_TEXT), parent="x")]
    for at in range(90):
        kind = kinds[at % len(kinds)]
        name = "p" if kind == XML_ELEMENT else None
        inner = key or ("k" if kinds[(at - 1) % len(kinds)] == 1 else None)
        items.append(item(type_(kind, name), parent=(9, at), key=inner))
    items.append(item(text('<&"\\'), parent=(9, 90)))
    doc = Doc(1)
    doc.apply(update({(9, 0): items}))
    doc.get_xml_fragment("x")
    assert len(jsonlib.dumps(doc.to_json())) < 100_000


def test_what_is_nested_as_deep_as_it_may_be_can_be_shown() -> None:
    items = [item(type_(0), parent="a")]
    items += [item(type_(0), parent=(9, at)) for at in range(98)]
    deep: Any = 0
    for _ in range(256):
        deep = [deep]
    items.append(item(anys(deep), parent=(9, 98)))
    doc = Doc(1)
    doc.apply(update({(9, 0): items}))
    assert "$nested" not in jsonlib.dumps(doc.to_json())


@pytest.mark.parametrize("value", ["1e999", "-1e999", '[{"a":1e400}]', '"\\ud800"', "-0"])
def test_a_format_is_put_back_as_it_was(value: str) -> None:
    doc = Doc(1)
    items = [item(format_("b", value)), item(text("hello"), origin=(9, 0))]
    doc.apply(update({(9, 0): items}))
    note = doc.get_text("t")
    note.insert(2, "plain", {})
    note.format(0, 1, {"b": None})
    assert Doc.view(doc.store).get_text("t").to_delta() == note.to_delta()
    assert len(note) == 10


@pytest.mark.parametrize("depth", [257, 300, 5000])
def test_json_that_is_nested_too_deep_is_refused_before_anything_changes(depth: int) -> None:
    doc = Doc(1)
    value: Any = 10**400 if depth == 300 else 0
    for _ in range(depth):
        value = [value]
    for wrong in (value, 10**400):
        with pytest.raises(LocalProtocolError, match="not JSON"):
            doc.get_text("t").insert_embed(0, {"k": wrong})
        with pytest.raises(LocalProtocolError, match="an embed must be a dict"):
            doc.get_text("t").insert_embed(0, wrong)
    assert doc.to_json() == {}
