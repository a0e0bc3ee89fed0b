"""What another CRDT engine may be given of a document, so that it shows the same.

Theory of operation
-------------------
Engines crash, or show something else, on updates that are quite all right: with a hole, before what
they build on, with neighbours that were collected. A document has put all of that in order. So an
engine is not given the updates as they came, but the document's own items, once each is in its
place: always from the clock on up to which the engine has all, and what belongs nowhere as
collected. Deletes are those that the document carried out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from ..errors import LocalProtocolError, RemoteProtocolError
from ..steps import finish
from ..updates import ParsedUpdate, parse_update
from ..updates._deletes import Range, coalesce, subtract
from ..updates._grammar import ANY, DOC, EMBED, FORMAT, GC, JSON, STRING, TYPE
from ._events import Transaction
from ._items import Id, Item, Kind, Node, encode_items, split_utf16

if TYPE_CHECKING:
    from ._doc import Doc


_CUT_PAIR: Final = "a pair of surrogates was cut in two after the engine had got it"


class Feed:
    """Tells what an engine lacks of a document, and takes in what was edited in the engine.

    `ycore_adapters.engines` has one for each engine it binds.

    Args:
        doc: the document. One feed of it is one engine.
        known: for each client the clock up to which the engine has everything.
        ready: called when there is something to `take`.
        origin: what the document's observers are told that the engine's edits come from.
        max_client_id: the highest that the engine knows.
        subdocuments: whether the engine knows them. It gets an empty object for each otherwise.

    Raises:
        LocalProtocolError: the document is a view.
    """

    def __init__(
        self,
        doc: Doc,
        known: Mapping[int, int],
        ready: Callable[[], None],
        *,
        origin: object,
        max_client_id: int,
        subdocuments: bool,
    ) -> None:
        if doc._read_only:
            raise LocalProtocolError("this is a view, to be read only")
        self._doc = doc
        self._known = dict(known)
        self._ready = ready
        self._origin = origin
        self._max_client_id = max_client_id
        self._subdocuments = subdocuments
        self._lacking: set[int] = set(doc._items)
        """Clients of which the engine may lack something."""
        self._deleted: defaultdict[int, list[Range]] = defaultdict(list)
        """For each client, what is deleted and the engine was not told of."""
        for client, items in doc._items.items():
            for item in items:
                if item.deleted:
                    self._deleted[client].append((item.clock, item.clock + item.length))
        self._given: Mapping[int, list[Range]] = {}
        """What is deleted by the engine's edit that is being taken in."""
        self._taken: dict[int, int] = {}
        self._taken_deletes: dict[int, int] = {}
        self._dropped_pairs: set[Id] = set()
        """The second halves of pairs of surrogates in what was deleted."""
        self.problem: str | None = None
        """What the engine can't show. Then there is nothing more to `take`."""
        for client, clock in self._known.items():
            self._look_for_cut_pairs(client, clock)
        self._look_for_misplaced()
        doc._feeds.append(self)

    def close(self) -> None:
        """End it: the document forgets about it."""
        if self in self._doc._feeds:
            self._doc._feeds.remove(self)

    def take(self) -> bytes | None:
        """What the engine lacks, as an update; None if that is nothing. Say `taken` when it was
        applied; until then it is said again."""
        structs: dict[int, list[Item]] = {}
        for client in self._lacking:
            start, end = self._known.get(client, 0), self._doc._end(client)
            if start < end:
                structs[client] = self._items(client, start)
                self._taken[client] = end
        deletes = {client: coalesce(ranges) for client, ranges in self._deleted.items()}
        self._taken_deletes = {client: len(ranges) for client, ranges in self._deleted.items()}
        if self.problem is not None or not (structs or deletes):
            return None
        return encode_items(structs, deletes)

    def taken(self) -> None:
        """The engine has what `take` said last. There may be more since."""
        self._known.update(self._taken)
        self._taken.clear()
        self._lacking = {
            client
            for client in self._lacking
            if self._doc._end(client) > self._known.get(client, 0)
        }
        for client, number in self._taken_deletes.items():
            ranges = self._deleted.pop(client)[number:]
            if ranges:
                self._deleted[client] = ranges
        self._taken_deletes.clear()

    def give(self, update: bytes) -> None:
        """An edit was made in the engine, as this update. The document takes it in now, or, if this
        is in the midst of a transaction or update of its own, behind that. Look at `problem` after.

        Raises:
            RemoteProtocolError: it is malformed.
        """
        parsed = parse_update(update)
        if parsed.is_amended or parsed.left_out:
            raise RemoteProtocolError("an item is placed beside one that is not before its own id")
        for section in parsed.sections:
            client, end = section.client, section.ends[-1]
            if end > self._known.get(client, 0):
                self._known[client] = end
                if client in self._doc._held:
                    self.problem = f"somebody else uses the engine's client id {client}"
        self._doc._when_free(lambda: self._apply(parsed))

    def _apply(self, update: ParsedUpdate) -> None:
        self._given = update.deletes
        try:
            finish(self._doc.apply_steps(update, self._origin))
        finally:
            self._given = {}

    # -- for the document

    def _note(self, transaction: Transaction) -> None:
        """Something was put in its place, or deleted."""
        self._look_for_misplaced()
        own = self._given if transaction.origin is self._origin else {}
        for client, ranges in transaction.deleted.items():
            if new := subtract(coalesce(ranges), own.get(client, [])):
                self._deleted[client] += new
        for client in transaction.starts:
            if self._doc._end(client) > self._known.get(client, 0):
                self._lacking.add(client)

    def _look_for_misplaced(self) -> None:
        if self._doc._is_misplaced:
            self.problem = "an item of it is not where its neighbours are"

    def _note_cut_pair(self, item: Item) -> None:
        """A pair of surrogates was cut behind this item."""
        if item.clock + item.length < self._known.get(item.client, 0):
            self.problem = _CUT_PAIR

    def _note_dropped(self, items: list[Item]) -> None:
        """These are deleted, and nobody will know what was in them; but an engine may keep it."""
        for item in items:
            if item.kind == STRING and item.length != item.count:
                clock = item.clock
                for character in item.content:
                    clock += 1
                    if character > "\uffff":
                        self._dropped_pairs.add((item.client, clock))
                        clock += 1

    def _note_cut_deleted(self, right: Item) -> None:
        """Something deleted was cut before this."""
        if right.id in self._dropped_pairs and right.clock < self._known.get(right.client, 0):
            self.problem = _CUT_PAIR

    def _look_for_cut_pairs(self, client: int, end: int) -> None:
        """What the engine had before may have been cut in the document, and not in the engine."""
        for item in self._doc._items.get(client, []):
            if item.clock < end and item.kind == STRING and not item.deleted:
                text = item.content
                if text[0] == "\ufffd" or text[-1] == "\ufffd":
                    self.problem = _CUT_PAIR

    def _items(self, client: int, start: int) -> list[Item]:
        """A client's items from a clock on: the first may begin before it."""
        if client > self._max_client_id:
            self.problem = (
                f"it has the client id {client}, the engine knows them to {self._max_client_id}"
            )
        items = self._doc._items[client]
        at = bisect_right(self._doc._starts[client], start) - 1
        first = items[at]
        if first.clock < start:
            first = _rest(first, start - first.clock)
        return list(map(self._plain, (first, *items[at + 1 :])))

    def _plain(self, item: Item) -> Item:
        """As engines understand it."""
        content: Any
        if item.kind == TYPE and item.content.kind == Kind.XML_HOOK:
            self.problem = "it has an XML hook"
        if (
            item.kind == STRING
            and not item.content.isascii()
            and isinstance(item.parent, Node)
            and item.parent.kind not in (None, Kind.TEXT, Kind.XML_TEXT)
        ):
            self.problem = "it has text in an array"  # pycrdt looks for its end for ever
        if item.kind == JSON:  # neither reads it as JSON, nor knows the `undefined` in it
            content = item.content
        elif item.kind == DOC and not self._subdocuments:
            content = [{}]
        elif item.kind in (EMBED, FORMAT) and item.content is not None:
            content = _with_null(item.content)  # they can't read numbers out of range
        else:
            return item
        kind = item.kind if item.kind in (EMBED, FORMAT) else ANY
        plain = Item(kind, item.client, item.clock, item.length, content)
        plain.parent, plain.key = item.parent, item.key
        plain.origin, plain.right_origin = item.origin, item.right_origin
        return plain


def _with_null(value: Any) -> Any:
    """With null where JavaScript, and we, read infinity: so would JavaScript write it."""
    if isinstance(value, list | tuple):
        return [_with_null(part) for part in value]
    if isinstance(value, dict):
        return {key: _with_null(part) for key, part in value.items()}
    return None if isinstance(value, float) and value - value != 0 else value


def _rest(item: Item, at: int) -> Item:
    """What of an item is behind so many clocks."""
    content: Any = item.content
    if item.kind == STRING:
        content = split_utf16(content, at, item.length)[1]
    elif content is not None:
        content = content[at:]
    rest = Item(item.kind, item.client, item.clock + at, item.length - at, content)
    rest.parent, rest.key, rest.right_origin = item.parent, item.key, item.right_origin
    if item.kind != GC:
        rest.origin = (item.client, rest.clock - 1)
    return rest
