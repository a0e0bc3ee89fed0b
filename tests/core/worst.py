"""The inputs that cost most for their length, made as long as asked for.

`WORST` maps a name to a function from a length in bytes to a frame of about that length; `ORDERS`
one to a function from a number of authors to an update whose items have to be put in order.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from build import (
    any_value,
    anys,
    embed,
    format_,
    gc,
    item,
    json,
    skip,
    string,
    text,
    type_,
    uint,
    update,
)

from ycore.awareness import AwarenessEntry, encode_awareness
from ycore.messages import AwarenessUpdate, SyncStep1, Update
from ycore.updates import encode_state_vector


def _structs(*some: bytes) -> Callable[[int], bytes]:
    """One client's structs, again and again."""
    unit = b"".join(some)

    def frame(size: int) -> bytes:
        return Update(update({(1, 0): list(some) * (size // len(unit))})).encode()

    return frame


def _content(kind: int, unit: bytes, *, values: int = 1) -> Callable[[int], bytes]:
    """One struct of many values."""

    def frame(size: int) -> bytes:
        count = size // len(unit)
        body = bytes((kind,)) + uint(count * values) + unit * count
        return Update(update({(1, 0): [item(body)]})).encode()

    return frame


def _embed(start: str, unit: str, end: str) -> Callable[[int], bytes]:
    """One JSON text."""
    return lambda size: Update(
        update({(1, 0): [item(embed(start + unit * (size // len(unit)) + end))]})
    ).encode()


def _ranges(make: Callable[[int], list[tuple[int, int]]]) -> Callable[[int], bytes]:
    """Delete ranges of one client."""
    return lambda size: Update(update({}, {1: make(size // 4)})).encode()


def _shuffled(count: int) -> list[tuple[int, int]]:
    ranges = [(2 * i, 1) for i in range(count)]
    random.Random(1).shuffle(ranges)
    return ranges


def _awareness(state: str) -> Callable[[int], bytes]:
    def frame(size: int) -> bytes:
        clients = range(min(4096, size // (len(state) + 4)))
        entries = [AwarenessEntry(client, 1, state) for client in clients]
        return AwarenessUpdate(encode_awareness(entries)).encode()

    return frame


_nested = any_value([[[[[[[[None]]]]]]]])

WORST: dict[str, Callable[[int], bytes]] = {
    "tiny structs": _structs(gc(1)),
    "tiny texts": _structs(item(text("a"), origin=(2, 0))),
    "texts with a parent": _structs(item(text("a"), parent="")),
    "texts beyond ASCII": _structs(item(text("é"), origin=(2, 0))),
    "formats": _structs(item(format_("", "0"), origin=(2, 0))),
    "embeds": _structs(item(embed("0"), origin=(2, 0))),
    "short Any": _structs(item(anys(None), origin=(2, 0))),
    "holes": _structs(gc(1), skip(1)),
    "clients": lambda size: Update(
        update({(client, 0): [gc(1)] for client in range(size // 6)})
    ).encode(),
    "long text": lambda size: Update(update({(1, 0): [item(text("é" * (size // 2)))]})).encode(),
    "Any of nulls": _content(8, b"\x7e"),
    "Any of strings": _content(8, any_value("")),
    "Any of arrays": _content(8, any_value([])),
    "Any, deep": _content(8, _nested),
    "Any of keys": lambda size: Update(
        update({(1, 0): [item(anys({str(i): None for i in range(size // 8)}))]})
    ).encode(),
    "JSON values": lambda size: Update(
        update({(1, 0): [item(json(*["0"] * (size // 2)))]})
    ).encode(),
    "long JSON of numbers": _embed("[", "0,", "0]"),
    "long JSON of objects": _embed("[", "{},", "0]"),
    "long JSON, deep": _embed("[", "[" * 200 + "]" * 200 + ",", "0]"),
    "long JSON string": _embed('"', "x", '"'),
    "long JSON string of escapes": _embed('"', "\\n", '"'),
    "JSON that never ends": _embed("", '["', ""),
    "delete ranges": _ranges(lambda count: [(2 * i, 1) for i in range(count)]),
    "delete ranges, shuffled": _ranges(_shuffled),
    "delete ranges, backwards": _ranges(lambda count: [(2 * i, 1) for i in range(count)][::-1]),
    "delete ranges, all the same": _ranges(lambda count: [(0, 1)] * count),
    "delete ranges, nested": _ranges(lambda count: [(i, 2 * (count - i)) for i in range(count)]),
    "clients with deletes": lambda size: Update(
        update({}, {client: [(0, 1)] for client in range(size // 6)})
    ).encode(),
    "state vector": lambda size: SyncStep1(
        encode_state_vector(dict.fromkeys(range(size // 4), 1))
    ).encode(),
    "awareness": _awareness("{}"),
    "awareness, long states": _awareness("[" + "0," * 1_000 + "0]"),
    "varUint without end": lambda size: b"\xff" * size,
    "varUint without end in an update": lambda size: Update(b"\xff" * size).encode(),
    "messages": lambda size: Update(update({(1, 0): [gc(1)]})).encode() * min(1000, size // 9),
    "zeros": bytes,
    "names": lambda size: Update(
        update({(1, 0): [item(text("a"), parent=string("x" * size).decode("latin-1"))]})
    ).encode(),
}


def _authors(
    make: Callable[[int, int], bytes | list[bytes]],
    base: dict[tuple[int, int], bytes] | None = None,
) -> Callable[[int], bytes]:
    """One section of each author, made from its number and how many there are, lower ones first."""

    def order(count: int) -> bytes:
        structs = {id_: [one] for id_, one in (base or {}).items()}
        for number in range(count):
            made = make(number, count)
            structs[(10 + number, 0)] = [made] if isinstance(made, bytes) else made
        return update(structs)

    return order


def _before(number: int) -> tuple[int, int] | None:
    return (9 + number, 0) if number else None


def _behind(number: int, count: int) -> tuple[int, int] | None:
    return (11 + number, 0) if number < count - 1 else None


def _of_shuffled(make: Callable[[tuple[int, int] | None], bytes]) -> Callable[[int], bytes]:
    """Each builds on another, whose number is anywhere."""

    def order(count: int) -> bytes:
        numbers = list(range(count))
        random.Random(1).shuffle(numbers)
        before = dict(zip(numbers[1:], numbers, strict=False))
        return _authors(lambda i, n: make((10 + before[i], 0) if i in before else None))(count)

    return order


def _with_deletes(make: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """All of it deleted, too."""

    def order(count: int) -> bytes:
        deletes = update({}, {10 + number: [(0, 1)] for number in range(count)})
        return make(count)[:-1] + deletes[1:]

    return order


_a = text("a")
_one = anys(1)

# All are slow in Yjs only where items are placed among others one by one, the highest author last:
# nothing can be done about that if they come in updates of their own.
ORDERS: dict[str, Callable[[int], bytes]] = {
    "at the start": _authors(lambda i, n: item(_a)),
    "behind one": _authors(lambda i, n: item(_a, origin=(1, 0)), {(1, 0): item(_a)}),
    "behind the last": _authors(lambda i, n: item(_a, origin=(9 + n, 0) if i < n - 1 else None)),
    "before one": _authors(lambda i, n: item(_a, right=(1, 0)), {(1, 0): item(_a)}),
    "before the last": _authors(lambda i, n: item(_a, right=(9 + n, 0) if i < n - 1 else None)),
    "behind one another, rising": _authors(lambda i, n: item(_a, origin=_before(i))),
    "behind one another, falling": _authors(lambda i, n: item(_a, origin=_behind(i, n))),
    "behind one another, shuffled": _of_shuffled(lambda id_: item(_a, origin=id_)),
    "before one another, rising": _authors(lambda i, n: item(_a, right=_before(i))),
    "before one another, falling": _authors(lambda i, n: item(_a, right=_behind(i, n))),
    "before one another, shuffled": _of_shuffled(lambda id_: item(_a, right=id_)),
    "in one another, rising": _authors(
        lambda i, n: item(type_(0), parent=(9 + i, 0) if i else "a")
    ),
    "in one another, falling": _authors(
        lambda i, n: item(type_(0), parent=(11 + i, 0) if i < n - 1 else "a")
    ),
    "in a text": _authors(
        lambda i, n: item(_a, origin=(1, i), right=(1, i + 1)), {(1, 0): item(text("x" * 6000))}
    ),
    "in a text, from its end": _authors(
        lambda i, n: item(_a, origin=(1, n - i), right=(1, n - i + 1)),
        {(1, 0): item(text("x" * 6000))},
    ),
    "in a text, and its end is open": _authors(
        lambda i, n: item(_a, origin=(1, n - i)), {(1, 0): item(text("x" * 6000))}
    ),
    "at the start, once others are there": _authors(
        lambda i, n: [item(_a, parent="other", origin=_before(i)), item(_a)]
    ),
    "one waits for each": lambda n: update(
        {(1, 0): [item(_a, origin=(10 + i, 0)) for i in range(n)]}
        | {(10 + i, 0): [item(_a, origin=(1, i - 1) if i else None)] for i in range(n)}
    ),
    "under a key": _authors(lambda i, n: item(_one, key="k")),
    "under a key, behind one another": _authors(
        lambda i, n: item(_one, key="k", origin=_before(i))
    ),
    "under a key, before one another": _authors(lambda i, n: item(_one, key="k", right=_before(i))),
    "under a key, before one": _authors(
        lambda i, n: item(_one, right=(1, 0)), {(1, 0): item(_one, key="k")}
    ),
    "one author's, under a key": lambda n: update({(1, 0): [item(_one, key="k")] * n}),
    "one author's, under a key, before one another": lambda n: update(
        {(1, 0): [item(_one, key="k", right=(1, i - 1) if i else None) for i in range(n)]}
    ),
    "one author's, in another's": lambda n: update(
        {
            (1, 0): [item(_a, origin=(2, i - 1) if i else None) for i in range(n)],
            (2, 0): [item(_a, origin=(1, i)) for i in range(n)],
        }
    ),
    "deleted": _with_deletes(_authors(lambda i, n: item(_a, origin=_before(i)))),
}
