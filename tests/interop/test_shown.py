"""The view against Yjs: random editing sessions, and what hostile ones make of them.

A longer run: YCORE_VIEW_SESSIONS=2000 .venv/bin/pytest -s tests/interop/test_shown.py
"""

from __future__ import annotations

import json
import math
import os
from base64 import b64encode
from collections.abc import Iterable
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from nodejs import require_node
from oracle import Oracle

from ycore import StructStore
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
from ycore.lib0 import BigInt, Undefined

SESSIONS = int(os.environ.get("YCORE_VIEW_SESSIONS", "60"))
SEED = int(os.environ.get("YCORE_SEED", "5000"))


def js_number(value: float) -> str:
    """As JavaScript writes it."""
    value = float(value)
    if value == 0:
        return "-0" if math.copysign(1, value) < 0 else "0"
    if not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits))
    point = len(text) + exponent
    if 0 < point <= 21:
        text = text[:point] + "." + text[point:] if exponent < 0 else text + "0" * exponent
    elif -6 < point <= 0:
        text = "0." + "0" * -point + text
    else:
        text = text[0] + ("." + text[1:] if text[1:] else "") + f"e{point - 1:+d}"
    return "-" * sign + text


def entries(items: Iterable[tuple[str, Any]]) -> list[list[Any]]:
    """Sorted as JavaScript sorts strings."""
    in_order = sorted(items, key=lambda item: item[0].encode("utf-16-be", "surrogatepass"))
    return [[key, canonical(value)] for key, value in in_order]


def canonical(value: Any) -> Any:
    """What `canonical` of oracle.mjs makes of it."""
    if isinstance(value, Undefined):
        return ["undefined"]
    if isinstance(value, BigInt):
        return ["bigint", str(int(value))]
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return ["number", js_number(value)]
    if isinstance(value, bytes):
        return ["binary", b64encode(value).decode()]
    if isinstance(value, Subdocument):
        options = value.options
        flags = [options.get("gc", True), options.get("autoLoad", False)]
        return ["doc", value.guid, *flags, canonical(options.get("meta"))]
    if isinstance(value, list):
        return ["list", [canonical(part) for part in value]]
    if isinstance(value, SharedType):
        return canonical_type(value)
    return ["object", entries(value.items())]


def canonical_type(shared: SharedType) -> Any:
    match shared:
        case XmlText():
            return ["XmlText", entries(shared.attributes.items()), canonical(shared.to_delta())]
        case Text():
            return ["Text", canonical(shared.to_delta())]
        case XmlHook():
            return ["XmlHook", shared.name, entries(shared.items())]
        case Map():
            return ["Map", entries(shared.items())]
        case Array():
            return ["Array", [canonical(value) for value in shared]]
        case XmlElement():
            children = [canonical(value) for value in shared]
            return ["XmlElement", shared.tag, entries(shared.attributes.items()), children]
    assert isinstance(shared, XmlFragment)
    return ["XmlFragment", [canonical(value) for value in shared]]


def content(doc: Doc) -> Any:
    json.dumps(doc.to_json(), allow_nan=False)
    roots = [doc.get_text("t"), doc.get_map("m"), doc.get_array("a"), doc.get_xml_fragment("x")]
    return [canonical_type(root) for root in roots]


def shown(updates: Iterable[bytes]) -> Any:
    """What a document shows that takes them in one by one, which is what a view shows."""
    doc = Doc()
    for update in updates:
        doc.apply(update)
    seen = content(doc)
    assert content(Doc.view(doc.store)) == seen
    return seen


@pytest.mark.parametrize("deliveries", ["in order", "shuffled", "half"])
def test_the_view_shows_what_yjs_shows(deliveries: str) -> None:
    with Oracle(require_node()) as oracle:
        for seed in range(SEED, SEED + SESSIONS):
            updates = oracle.session(seed).updates
            if deliveries == "shuffled":
                Random(seed).shuffle(updates)
            elif deliveries == "half":
                updates = [u for u in updates if Random(seed * len(u)).random() < 0.5]
            merged = StructStore()
            for update in updates:
                merged.add(update)
            # What Yjs shows of the same store: what it held back on the way may differ.
            [seen] = oracle.seen([[merged.encode()]])
            assert "threw" not in seen, seen
            assert shown(updates) == json.loads(seen["content"]), seed
