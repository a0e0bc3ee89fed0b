"""The document: puts items together as Yjs does, and tells who observes.

Theory of operation
-------------------
The truth is a struct store: it takes in updates, checked, and says what of them was new. What was
new is read into items, and each goes behind the one it was typed behind; what several people typed
at one place is ordered by their ids (yjs `structs/Item.js`, getMissing and integrate). Items whose
neighbours have not come yet are held back, as Yjs holds them back.

An edit makes items that are in their place at once. When its transaction ends they are written as
an update, which the store takes in like any other, and which `Doc.observe_updates` hands on.

Nothing in an update makes this fail: what belongs nowhere is taken for collected, as in Yjs.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from hashlib import blake2b
from heapq import heapify, heappop, heappush
from os import urandom
from typing import Any, TypeAlias

from ..errors import LocalProtocolError
from ..lib0 import MAX_SAFE_INTEGER
from ..steps import STEP, Steps, finish
from ..updates import ParsedUpdate, StructStore, parse_update_steps, parts_of
from ..updates._deletes import Range, coalesce
from ..updates._grammar import DELETED, GC, TYPE
from ._events import Call, Transaction, events_of, subscribe
from ._feed import Feed
from ._items import Id, Item, Kind, Node, checked_text, encode_items, facade_of, read_steps
from ._types import Array, Map, SharedType, Text, XmlElement, XmlFragment, XmlText
from ._waiting import Waiting, waiting_in

Unsubscribe: TypeAlias = Callable[[], None]


def _clock(item: Item) -> int:
    return item.clock


class Doc:
    """A Yjs document: read it, edit it, observe it.

    >>> doc = Doc()
    >>> doc.get_text("text").insert(0, "Hello")
    >>> doc.to_json()
    {'text': 'Hello'}

    Not thread-safe: use it in one thread.

    Args:
        client_id: whose edits these are; by default a random one, as it should be for every
            session. If somebody else turns out to use it too, the document takes another.
    """

    def __init__(self, client_id: int | None = None) -> None:
        self.client_id = _random_id() if client_id is None else client_id
        self.store = StructStore()
        """All structs and deletes, also those held back. Read it; `apply` adds to it."""
        self._read_only = False
        self._roots: dict[str, Node] = {}
        self._items: defaultdict[int, list[Item]] = defaultdict(list)
        """For each client its items, by clock, without a hole."""
        self._starts: defaultdict[int, list[int]] = defaultdict(list)
        """Their clocks."""
        self._held: dict[int, deque[Item]] = {}
        """For each client, sorted, what can't be put in its place yet."""
        self._waiting: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        """Client -> a heap of who waits for a clock of it: that clock, and who."""
        self._waits_for: dict[int, Id] = {}
        self._transaction: Transaction | None = None
        """The local one under way."""
        self._incoming: Transaction | None = None
        """The remote one under way."""
        self._calls: deque[Call] = deque()
        """Which observers are still to be told, and what."""
        self._is_calling = False
        self._is_applying = False
        self._looked_at = 0
        """How many neighbours were looked at to find an item its place."""
        self._update_observers: list[Callable[[bytes, object], None]] = []
        self._is_misplaced = False
        """Whether an item's neighbours are not where it is, in the wrong order, or one and the
        same. Hardly any honest client makes such an item. Yjs puts it somewhere; engines put it
        somewhere else, or make circles of their lists."""
        self._feeds: list[Feed] = []
        self._later: list[Callable[[], None]] = []
        """What to call when no transaction and no update is under way."""

    @classmethod
    def view(cls, store: StructStore) -> Doc:
        """What a store's document shows: to be read, as it is now. Nothing is copied.

        On a server: `Doc.view(room.store)`, and `Driver.document` to edit it.
        """
        doc = cls(0)
        doc.store = store
        finish(doc._take_in([store.encode()], None))
        doc._read_only = True
        return doc

    # -- what is in it

    def get_text(self, name: str) -> Text:
        """The root of that name as a text: a root is what it was last taken for."""
        return Text._of(self._root(name, Text.kind))

    def get_array(self, name: str) -> Array:
        """The root of that name as an array."""
        return Array._of(self._root(name, Array.kind))

    def get_map(self, name: str) -> Map:
        """The root of that name as a map."""
        return Map._of(self._root(name, Map.kind))

    def get_xml_fragment(self, name: str) -> XmlFragment:
        """The root of that name as an XML fragment: what ProseMirror and Tiptap use."""
        return XmlFragment._of(self._root(name, XmlFragment.kind))

    def get_xml_element(self, name: str) -> XmlElement:
        """The root of that name as an XML element."""
        return XmlElement._of(self._root(name, XmlElement.kind))

    def get_xml_text(self, name: str) -> XmlText:
        """The root of that name as an XML text."""
        return XmlText._of(self._root(name, XmlText.kind))

    @property
    def roots(self) -> dict[str, SharedType]:
        """The roots that anything was ever put into, each as what it looks like."""
        return {name: facade_of(node) for name, node in self._roots.items() if _is_used(node)}

    def to_json(self) -> dict[str, Any]:
        """All roots as plain data for `json`, each taken for what it looks like: text and XML as
        strings, bytes as {"$bytes": hexadecimal}, subdocuments as {"$document": guid}."""
        roots = sorted(self._roots.items())
        return {name: node.to_json(node.guess()) for name, node in roots if _is_used(node)}

    @property
    def held_back(self) -> int:
        """How many clocks of structs wait for others that are missing."""
        return sum(item.length for items in self._held.values() for item in items)

    @property
    def waiting(self) -> Waiting:
        """Which structs those are, and which ones are missing."""
        return waiting_in(self)

    # -- updates

    def encode_state_vector(self) -> bytes:
        """What it has, for a SyncStep1."""
        return self.store.encode_state_vector()

    def encode(self, state_vector: bytes | None = None) -> bytes:
        """What someone with this state vector lacks, as an update; all, for someone with nothing.

        Raises:
            RemoteProtocolError: the state vector is malformed.
        """
        return self.store.encode() if state_vector is None else self.store.diff(state_vector)

    def apply(self, update: bytes, origin: object = None) -> None:
        """Take in an update.

        Args:
            origin: what observers are told that it comes from.

        Raises:
            RemoteProtocolError: it is malformed; nothing has changed.
            LocalProtocolError: in an observer, or while `apply_steps` is under way.
        """
        finish(self.apply_steps(update, origin))

    def apply_steps(self, update: bytes | ParsedUpdate, origin: object = None) -> Steps[None]:
        """`apply` in steps. Between them the document may be read, and edited."""
        if self._read_only:
            raise LocalProtocolError("this is a view, to be read only")
        if self._is_applying or self._transaction is not None:
            raise LocalProtocolError("another update or transaction is under way")
        self._is_applying = True
        try:
            if not isinstance(update, ParsedUpdate):
                update = yield from parse_update_steps(bytes(update))
            steps = self._apply_parts(update, origin)
            try:
                for _ in steps:
                    yield
            finally:
                finish(steps)  # even if nobody wants to go on: the store has it already
        finally:
            self._is_applying = False
            self._call_when_free()

    def _when_free(self, call: Callable[[], None]) -> None:
        """Call this when no transaction and no update is under way: now, or at the end of it."""
        self._later.append(call)
        if not self._is_applying and self._transaction is None:
            self._call_when_free()

    def _call_when_free(self) -> None:
        while self._later and not self._is_applying and self._transaction is None:
            self._later.pop(0)()

    def _apply_parts(self, update: ParsedUpdate, origin: object) -> Steps[None]:
        """Only the store takes it in part by part. Put in their place part by part, items of many
        authors at one place would each be compared with all that came before."""
        own = self.client_id
        if any(s.client == own and s.ends[-1] > self._end(own) for s in update.sections):
            self.client_id = _random_id()  # somebody else uses it
        added: list[bytes | None] = []
        for number, part in enumerate(parts_of(update)):
            if number:
                yield
            added.append(self.store.add(part))
        while self.store.settle():
            yield
        news = [new for new in (*self.store.own_deletes(), *added) if new is not None]
        if news:
            yield from self._take_in(news, origin)

    def observe_updates(self, callback: Callable[[bytes, object], None]) -> Unsubscribe:
        """Have each change handed on as an update, with its origin: None of edits made here, if
        their transaction named no other. Returns what ends that."""
        return subscribe(self._update_observers, callback)

    @property
    def is_in_transaction(self) -> bool:
        """Whether a transaction is open, so that no update can be applied."""
        return self._transaction is not None

    @contextmanager
    def transaction(self, origin: object = None) -> Generator[None]:
        """Edits in here are one update, and observers are told of them once.

        If an exception ends it, what was done before stays done: there is no way back, as others
        may build on it. One in another is a part of the outer.

        Raises:
            LocalProtocolError: the document is a view.
        """
        if self._transaction is not None:
            yield
            return
        if self._read_only:
            raise LocalProtocolError("this is a view, to be read only: see Driver.document")
        self._tell_of_incoming()
        self._transaction = Transaction(self, origin, is_local=True)
        try:
            yield
        finally:
            transaction, self._transaction = self._transaction, None
            try:
                self._commit(transaction)
            finally:
                self._call_when_free()

    def seeded(self) -> bytes:
        """All of it as an update, in which the client id 0 is replaced by one that follows from
        what the document says: two that were made alike by `Doc(0)` become the same document, and
        not two in one. It is of no use after that.

        Raises:
            LocalProtocolError: something is missing of what was applied to it.
        """
        if self._held:
            raise LocalProtocolError(f"{self.held_back} clocks of structs wait for missing ones")
        items = [item for its in self._items.values() for item in its]
        digest = blake2b(self._encode_items(items), digest_size=4).digest()
        new = int.from_bytes(digest) or 1
        for item in items:
            item.client = item.client or new
            item.origin = item.origin and (item.origin[0] or new, item.origin[1])
            item.right_origin = item.right_origin and (
                item.right_origin[0] or new,
                item.right_origin[1],
            )
        return self._encode_items(items)

    def _encode_items(self, items: list[Item]) -> bytes:
        structs: defaultdict[int, list[Item]] = defaultdict(list)
        deletes: defaultdict[int, list[Range]] = defaultdict(list)
        for item in items:
            structs[item.client].append(item)
            if item.deleted:
                deletes[item.client].append((item.clock, item.clock + item.length))
        return encode_items(
            structs, {client: coalesce(ranges) for client, ranges in deletes.items()}
        )

    # -- for the shared types

    def _root(self, name: str, kind: Kind | None = None) -> Node:
        name = name if kind is None else checked_text(name, "a root's name")
        node = self._roots.get(name)
        if node is None:
            node = self._roots[name] = Node(None, name)
            node.doc = self
        node.kind = node.kind if kind is None else kind
        return node

    @property
    def _current(self) -> Transaction:
        """The transaction that an edit belongs to."""
        assert self._transaction is not None
        return self._transaction

    def _end(self, client: int) -> int:
        """The clock up to which all of a client's structs are in."""
        items = self._items.get(client)
        return items[-1].clock + items[-1].length if items else 0

    def _make(
        self,
        node: Node,
        left: Item | None,
        right: Item | None,
        kind: int,
        length: int,
        content: Any,
        key: str | None = None,
    ) -> Item:
        """A new item of ours, between these two."""
        client, clock = self.client_id, self._end(self.client_id)
        if client in self._held or self.store.deleted(client, clock, MAX_SAFE_INTEGER):
            # Somebody else uses it, or says that what comes next from it is deleted.
            client = self.client_id = _random_id()
            clock = self._end(client)
        transaction = self._current
        transaction.begin(client, clock)
        item = Item(kind, client, clock, length, content)
        item.parent, item.key = node, key
        item.left, item.right = left, right
        item.origin = None if left is None else left.last_id
        item.right_origin = None if right is None else right.id
        self._link(item, node, transaction)
        self._items[client].append(item)
        self._starts[client].append(clock)
        return item

    def _cut(self, item: Item, at: int) -> Item:
        """Cut an item after so many clocks; returns the right part."""
        return self._beginning((item.client, item.clock + at))

    def _delete(self, item: Item, transaction: Transaction) -> None:
        """Delete an item, and what is in it (`structs/ContentType.js`, delete)."""
        todo = [item]
        while todo:
            item = todo.pop()
            if item.deleted:
                continue
            node = item.parent
            assert isinstance(node, Node)
            if item.key is None:
                node.count(item, -1)
            item.deleted = True
            transaction.deleted[item.client].append((item.clock, item.clock + item.length))
            node.marker = None
            transaction.changed[node].add(item.key)
            if item.kind == TYPE:
                inner: Node = item.content
                todo += inner.items()
                todo += inner.map.values()
            else:
                transaction.dropped.append(item)

    # -- the end of a transaction

    def _commit(self, transaction: Transaction) -> None:
        deletes = {client: coalesce(ranges) for client, ranges in transaction.deleted.items()}
        structs = {
            client: self._items[client][bisect_left(self._starts[client], clock) :]
            for client, clock in transaction.starts.items()
        }
        news = self.store.add(encode_items(structs, deletes))
        self._finish(transaction, [] if news is None else [news])

    def _finish(self, transaction: Transaction, news: list[bytes]) -> None:
        """Tell the observers, and tidy up. All are told, even if one raises."""
        events = self._events_of(transaction)
        self._merge(transaction)
        for new in news:
            news_of = (new, transaction.origin)
            self._calls.extend((tell, news_of) for tell in self._update_observers)
        self._calls.extend(events)
        failed = transaction.failed or self._call()
        if failed is not None:
            raise failed

    def _events_of(self, transaction: Transaction) -> list[Call]:
        events = events_of(transaction)
        for feed in self._feeds:
            feed._note_dropped(transaction.dropped)
        for item in transaction.dropped:
            item.kind, item.content = DELETED, None
        for feed in self._feeds:
            feed._note(transaction)
            self._calls.append((feed._ready, ()))
        return events

    def _tell_of_incoming(self) -> None:
        """Before something is edited here while an update is taken in: tell what was taken in so
        far, or the places in the edit's events would be wrong."""
        incoming = self._incoming
        if incoming is not None and incoming.changed:
            self._calls.extend(self._events_of(incoming))
            incoming.forget()
            incoming.failed = self._call() or incoming.failed

    def _call(self) -> Exception | None:
        """Tell the observers, in order: what an observer edits, all are told after what they are
        being told. Returns what was raised first."""
        failed: Exception | None = None
        if not self._is_calling:
            self._is_calling = True
            try:
                while self._calls:
                    tell, args = self._calls.popleft()
                    try:
                        tell(*args)
                    except Exception as exc:
                        failed = failed or exc
            finally:
                self._is_calling = False
        return failed

    def _merge(self, transaction: Transaction) -> None:
        """Join what was typed one after the other: a document is read and cut much more often."""
        for client, clock in transaction.began.items():
            items, starts = self._items[client], self._starts[client]
            first = max(bisect_left(starts, clock) - 1, 0)
            if len(items) - first < 2:
                continue
            kept = [items[first]]
            for item in items[first + 1 :]:
                node = item.parent
                marker = node.marker if isinstance(node, Node) else None
                last = kept[-1]
                count = last.count
                if last.merge(item):
                    if marker is not None and marker[0] is item and isinstance(node, Node):
                        node.marker = (last, marker[1] - count, marker[2])
                else:
                    kept.append(item)
            if len(kept) < len(items) - first:
                items[first:] = kept
                starts[first:] = map(_clock, kept)

    # -- taking in

    def _take_in(self, updates: list[bytes], origin: object) -> Steps[None]:
        """Put in its place what is new of an update, of which all is in the store."""
        transaction = self._incoming = Transaction(self, origin, is_local=False)
        clients: set[int] = set()
        deletes: list[tuple[int, list[Range]]] = []
        for update in updates:
            news = yield from read_steps(update)
            for client, items in news.structs.items():
                self._hold(client, items)
            clients.update(news.structs)
            deletes += news.deletes.items()
        yield from self._integrate_held(clients, transaction)
        for client, ranges in deletes:
            yield from self._delete_ranges(
                client, ranges, transaction.began.get(client, self._end(client)), transaction
            )
        for client, start in transaction.began.items():
            # What was deleted before it came.
            yield from self._delete_ranges(
                client,
                self.store.deleted(client, start, self._end(client)),
                self._end(client),
                transaction,
            )
        self._incoming = None
        self._finish(transaction, updates)

    def _hold(self, client: int, items: list[Item]) -> None:
        """Keep new items until they are put in their place."""
        held = self._held.setdefault(client, deque())
        if not held or held[-1].clock + held[-1].length <= items[0].clock:
            held += items
            return
        for item in items:
            # What lies behind a hole the store may replace: see its `_make_way`.
            first = bisect_left(held, item.clock, key=_clock)
            last = bisect_left(held, item.clock + item.length, key=_clock)
            for _ in range(first, last):
                del held[first]
            insort(held, item, key=_clock)

    def _integrate_held(self, clients: Iterable[int], transaction: Transaction) -> Steps[None]:
        """In an order in which each comes behind what it depends on; some may never come.

        As Yjs has it (`utils/encoding.js`, integrateStructs), higher clients come first: they go to
        the right of others at the same place, so that these find theirs at once.
        """
        ready = [-client for client in clients]
        heapify(ready)
        first: list[int] = []
        """Clients that others wait for: they come before those that are `ready`."""
        turn = 0
        while first or ready:
            client = first.pop() if first else -heappop(ready)
            held = self._held.get(client)
            while held:
                item = held[0]
                end = self._end(client)
                if item.clock > end:
                    break  # behind a hole
                missing = self._missing(item)
                if missing is not None:
                    if self._waits_for.get(client) != missing:
                        self._waits_for[client] = missing
                        heappush(self._waiting[missing[0]], (missing[1], client))
                        first.append(missing[0])
                    break
                transaction.begin(client, end)
                self._integrate(item, transaction)
                held.popleft()
                if not held:
                    del self._held[client]
                turn += 1 + self._looked_at
                self._looked_at = 0
                if turn >= STEP:
                    turn = 0
                    yield
                if (waiting := self._waiting.get(client)) and waiting[0][0] < self._end(client):
                    heappush(ready, -client)
                    while waiting and waiting[0][0] < self._end(client):
                        _, who = heappop(waiting)
                        self._waits_for.pop(who, None)
                        heappush(ready, -who)
                    if not waiting:
                        del self._waiting[client]
                    break

    def _missing(self, item: Item) -> Id | None:
        """An id that it depends on and that is not there yet."""
        for id_ in (item.origin, item.right_origin, item.parent):
            if isinstance(id_, tuple) and id_[1] >= self._end(id_[0]):
                return id_
        return None

    def _at(self, id_: Id) -> tuple[int, Item]:
        """The item with this id, and where it is."""
        client, clock = id_
        index = bisect_right(self._starts[client], clock) - 1
        return index, self._items[client][index]

    def _beginning(self, id_: Id) -> Item:
        """The item that begins with this id, after it was cut there if need be.

        What is long is halved first, again and again: each cut copies what it cuts.
        """
        index, item = self._at(id_)
        if item.kind == GC:
            return item
        while item.clock < id_[1]:
            half = item.half()
            right = self._split(item, index, id_[1] - item.clock if half is None else half)
            if right.clock <= id_[1]:
                index, item = index + 1, right
        return item

    def _split(self, item: Item, index: int, at: int) -> Item:
        assert isinstance(item.parent, Node)
        item.parent.marker = None
        characters = item.count
        right = item.split(at)
        transaction = self._transaction or self._incoming
        assert transaction is not None
        if item.count + right.count > characters:
            for feed in self._feeds:
                feed._note_cut_pair(item)
            transaction.cuts.add(right.id)
            transaction.changed[item.parent].add(item.key)
        elif item.kind == DELETED:
            for feed in self._feeds:
                feed._note_cut_deleted(right)
        self._items[item.client].insert(index + 1, right)
        self._starts[item.client].insert(index + 1, right.clock)
        return right

    def _ending(self, id_: Id) -> Item:
        """The item that ends with this id, likewise."""
        _, item = self._at(id_)
        if item.kind != GC and item.clock + item.length > id_[1] + 1:
            left = self._beginning((id_[0], id_[1] + 1)).left
            assert left is not None
            return left
        return item

    def _integrate(self, item: Item, transaction: Transaction) -> None:
        self._items[item.client].append(item)
        self._starts[item.client].append(item.clock)
        if item.kind == GC:
            return
        if item.origin is not None:
            item.left = self._ending(item.origin)
        if item.right_origin is not None:
            item.right = self._beginning(item.right_origin)
            left = item.left
            if left is not None and left.kind != GC and left.last_id != item.origin:
                item.left = item.right.left  # the right one was cut out of the left one
        node = self._parent_of(item)
        if node is None:
            item.kind, item.content, item.deleted = GC, None, True
            item.left = item.right = None
        else:
            item.parent = node
            left, right = item.left, item.right
            if left is right and left is not None:
                self._is_misplaced = True
            for neighbour in (left, right):
                if neighbour is not None and (
                    neighbour.parent is not node or neighbour.key != item.key
                ):
                    self._is_misplaced = True
            if (left is None and (right is None or right.left is not None)) or (
                left is not None and left.right is not right
            ):
                item.left = self._place(item, node)
            if item.left is not None:
                item.right = item.left.right
            else:
                item.right = node.first(item.key)
            self._link(item, node, transaction)

    def _parent_of(self, item: Item) -> Node | None:
        """The type it belongs to; None if that was collected. Takes over the neighbour's key."""
        left, right = item.left, item.right
        if (left and left.kind == GC) or (right and right.kind == GC):
            return None
        if isinstance(item.parent, str):
            return self._root(item.parent)
        if isinstance(item.parent, tuple):
            _, owner = self._at(item.parent)
            content = owner.content
            return content if owner.kind == TYPE and isinstance(content, Node) else None
        neighbour = left or right
        assert neighbour is not None  # or it would name its parent
        item.key = neighbour.key
        return neighbour.parent if isinstance(neighbour.parent, Node) else None

    def _link(self, item: Item, node: Node, transaction: Transaction) -> None:
        """Put it between its neighbours, which are known now."""
        if item.left is not None:
            item.left.right = item
        elif item.key is None:
            node.start = item
        else:
            node.firsts[item.key] = item
        if item.right is not None:
            item.right.left = item
        elif item.key is None:
            node.last = item
        else:
            node.map[item.key] = item
            if item.left is not None:
                self._delete(item.left, transaction)
        if item.key is None:
            node.marker = None
            if not item.deleted:
                node.count(item)
        if item.kind == TYPE:
            item.content.item = item
            item.content.doc = self
        transaction.changed[node].add(item.key)
        if node.is_deleted or (item.key is not None and item.right is not None):
            self._delete(item, transaction)

    def _place(self, item: Item, node: Node) -> Item | None:
        """What goes to its left, of what others have put at the same place."""
        left = item.left
        other = left.right if left is not None else node.first(item.key)
        seen: dict[Item, int] = {}
        passed = 0  # how many of them are to its left
        while other is not None and other is not item.right:
            self._looked_at += 1
            number = len(seen)
            seen[other] = number
            if item.origin == other.origin:
                if other.client < item.client:
                    left, passed = other, number + 1
                elif item.right_origin == other.right_origin:
                    break
            elif other.origin is not None and (at := self._at(other.origin)[1]) in seen:
                if seen[at] < passed:
                    left, passed = other, number + 1
            else:
                break
            other = other.right
        if other is None and item.right is not None:
            self._is_misplaced = True
        return left

    def _delete_ranges(
        self, client: int, ranges: list[Range], limit: int, transaction: Transaction
    ) -> Steps[None]:
        """Delete these clocks, as far as they are below the limit."""
        turn = 0
        for start, stop in ranges:
            end = min(stop, limit)
            while start < end:
                item = self._at((client, start))[1]
                if not item.deleted:
                    item = self._beginning((client, start))
                    if item.clock + item.length > end:
                        self._beginning((client, end))
                    self._delete(item, transaction)
                start = item.clock + item.length  # noqa: PLW2901
                turn += 1
                if not turn % STEP:
                    yield


def _random_id() -> int:
    """As Yjs has them: 32 bits."""
    return int.from_bytes(urandom(4))


def _is_used(node: Node) -> bool:
    return node.start is not None or bool(node.map)
