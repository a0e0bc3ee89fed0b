"""What of a document is held back, and what it waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..lib0 import MAX_SAFE_INTEGER
from ..updates import StructStore
from ..updates._deletes import Range, subtract
from ..updates._grammar import GC
from ._items import Item, encode_items

if TYPE_CHECKING:
    from ._doc import Doc


class Waiting(NamedTuple):
    """Structs that can't be put in their place, and those that would have to come for that."""

    held: dict[int, int]
    """For each client that wrote some, how many clocks of them there are."""
    missing: dict[int, list[Range]]
    """For each client the clocks that they wait for: the first, and the one after the last."""

    def collected(self) -> bytes:
        """An update in which what is missing was collected, as garbage that says nothing. With it
        nothing is held back any more; but what was written into what is missing, or right behind
        it, is garbage too then, and what is missing can't come any more."""
        store = StructStore()
        for client, ranges in self.missing.items():
            for start, end in ranges:
                item = Item(GC, client, start, end - start, None)
                store.add(encode_items({client: [item]}, {}))
        return store.encode()


def waiting_in(doc: Doc) -> Waiting:
    """What a document holds back, of which all that could be put in its place was."""
    ends: dict[int, int] = {}
    """For each client, the clock up to which its structs are there or something builds on them."""
    known: dict[int, list[Range]] = {}
    for client, items in doc._held.items():
        known[client] = [(item.clock, item.clock + item.length) for item in items]
        ends[client] = known[client][-1][1]
    for items in doc._held.values():
        for item in items:
            for id_ in (item.origin, item.right_origin, item.parent):
                if isinstance(id_, tuple):
                    end = min(id_[1] + 1, MAX_SAFE_INTEGER)
                    ends[id_[0]] = max(ends.get(id_[0], 0), end)
    missing = {
        client: gaps
        for client, end in sorted(ends.items())
        if (gaps := subtract([(0, end)], [(0, doc._end(client)), *known.get(client, [])]))
    }
    held = {client: sum(end - start for start, end in ranges) for client, ranges in known.items()}
    return Waiting(held, missing)
