"""What a transaction changed, for those who observe: yjs `utils/YEvent.js`, `types/YText.js`
(YTextEvent) and `utils/Transaction.js`."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from ..updates._deletes import Range, coalesce
from ..updates._grammar import EMBED, FORMAT, STRING, TYPE
from ._items import (
    COUNTED,
    MAX_DEPTH,
    Id,
    Item,
    Kind,
    Node,
    contents_of,
    facade_of,
    last_of,
    shown,
    some_of,
    update_attributes,
)

if TYPE_CHECKING:
    from ._doc import Doc
    from ._types import SharedType

Call: TypeAlias = tuple[Callable[..., None], tuple[Any, ...]]


def subscribe(observers: list[Any], callback: Any) -> Callable[[], None]:
    """Returns what ends it, which may be called again."""
    observers.append(callback)
    is_over = False

    def stop() -> None:
        nonlocal is_over
        if not is_over:
            is_over = True
            observers.remove(callback)

    return stop


class Transaction:
    """Changes that belong together, while they are made."""

    def __init__(self, doc: Doc, origin: object, *, is_local: bool) -> None:
        self.doc = doc
        self.origin = origin
        self.is_local = is_local
        self.starts: dict[int, int] = {}
        """For each client from which clock on its items are new to the observers."""
        self.began: dict[int, int] = {}
        """And from which on they are new."""
        self.failed: Exception | None = None
        """What an observer raised that was told of a part of it."""
        self.deleted: defaultdict[int, list[Range]] = defaultdict(list)
        self.dropped: list[Item] = []
        """Deleted items whose content nobody needs once the observers are told."""
        self.cuts: set[Id] = set()
        """Ids of second halves of pairs of surrogates that were cut."""
        self.changed: defaultdict[Node, set[str | None]] = defaultdict(set)
        """In which types something changed: under these keys, None for what is in order."""

    def begin(self, client: int, clock: int) -> None:
        """Items of a client come, from this clock on if they are the first."""
        self.starts.setdefault(client, clock)
        self.began.setdefault(client, clock)

    def forget(self) -> None:
        """The observers know of all of this."""
        self.starts.clear()
        self.deleted.clear()
        self.dropped.clear()
        self.cuts.clear()
        self.changed.clear()

    def adds(self, item: Item) -> bool:
        start = self.starts.get(item.client)
        return start is not None and item.clock >= start

    def deletes(self, item: Item) -> bool:
        ranges = self.deleted.get(item.client, [])
        at = bisect_right(ranges, item.clock, key=_start) - 1
        return at >= 0 and item.clock < ranges[at][1]


def _start(range_: Range) -> int:
    return range_[0]


class Change(NamedTuple):
    """What happened to a key of a map, or to an attribute."""

    action: Literal["add", "update", "delete"]
    old: Any
    """Its value before; None if there was none. A type that was deleted is empty."""
    new: Any
    """Its value now; None if there is none."""


class Event(NamedTuple):
    """What a transaction changed in one shared type."""

    target: SharedType
    path: list[str | int]
    """From the root to the target: keys of maps, places in lists; first the root's name."""
    delta: list[dict[str, Any]]
    """What changed in order: {"retain": n}, {"insert": ...}, {"delete": n}, in a text with
    "attributes". Inserted is a text, or in other types a list of values."""
    keys: dict[str, Change]
    """What changed under keys."""
    origin: object
    """Of the transaction: None for edits made here that name no other."""
    is_local: bool
    """Whether it was made here."""


def events_of(transaction: Transaction) -> list[Call]:
    """Whom to call, and with what."""
    under_deep: dict[Node | None, bool] = {None: False}
    observed = [
        node
        for node in transaction.changed
        if node.observers or _is_under(node, under_deep)
        if not node.is_deleted
        # Of what is new, who sees what it is in sees all.
        if node.item is None or not transaction.adds(node.item)
    ]
    if not observed:
        return []
    for client, ranges in transaction.deleted.items():
        transaction.deleted[client] = coalesce(ranges)
    calls: list[Call] = []
    deep: defaultdict[Node, list[Event]] = defaultdict(list)
    places: dict[Node, dict[Item, int]] = {}
    for node in observed:
        event = _event(node, transaction, places)
        if event is None:
            continue
        calls += [(observer, (event,)) for observer in node.observers or ()]
        above: Node | None = node
        while above is not None:
            if above.deep_observers:
                deep[above].append(event)
            above = above.parent
    for node, events in deep.items():
        events.sort(key=lambda event: len(event.path))
        calls += [(observer, (events,)) for observer in node.deep_observers or ()]
    return calls


def _is_under(node: Node, known: dict[Node | None, bool]) -> bool:
    """Whether it or what it is in has deep observers. Each node is looked at once."""
    way: list[Node] = []
    above: Node | None = node
    while above is not None and above not in known and not above.deep_observers:
        way.append(above)
        above = above.parent
    is_under = known.setdefault(above, True)
    known.update(dict.fromkeys(way, is_under))
    return is_under


def _event(
    node: Node, transaction: Transaction, places: dict[Node, dict[Item, int]]
) -> Event | None:
    """None if nothing that anybody can see has changed."""
    path = _path(node, places)
    target = facade_of(node)
    keys = transaction.changed[node]
    delta: list[dict[str, Any]] = []
    if None in keys:
        is_text = target.kind in (Kind.TEXT, Kind.XML_TEXT)
        delta = _TextDelta(transaction).of(node) if is_text else _list_delta(node, transaction)
    changes = {}
    for key in keys:
        if key is not None and (change := _change(node.map[key], transaction)) is not None:
            changes[key] = change
    if path is None or not (delta or changes):
        return None
    return Event(target, path, delta, changes, transaction.origin, transaction.is_local)


def _path(node: Node, places: dict[Node, dict[Item, int]]) -> list[str | int] | None:
    """None if it is nested too deep to be shown.

    Args:
        places: in each type that was looked at, where the types in it are: many may have changed.
    """
    path: list[str | int] = []
    while (parent := node.parent) is not None:
        if len(path) >= MAX_DEPTH:
            return None
        item = node.item
        assert item is not None
        if item.key is not None:
            path.append(item.key)
        else:
            if parent not in places:
                places[parent] = _places_in(parent)
            path.append(places[parent][item])
        node = parent
    return [node.name, *reversed(path)]


def _places_in(parent: Node) -> dict[Item, int]:
    places: dict[Item, int] = {}
    place = 0
    for item in parent.items():
        if item.kind == TYPE:
            places[item] = place
        if item.kind in COUNTED:
            place += item.count
    return places


def _change(item: Item, transaction: Transaction) -> Change | None:
    before: Item | None = item
    while before is not None and transaction.adds(before):
        before = before.left
    had = before is not None and (not before.deleted or transaction.deletes(before))
    old = shown(last_of(before)) if had and before is not None else None
    if item.deleted:
        return Change("delete", old, None) if had else None
    if before is item:
        return None
    return Change("update" if had else "add", old, shown(last_of(item)))


def _list_delta(node: Node, transaction: Transaction) -> list[dict[str, Any]]:
    delta: list[dict[str, Any]] = []

    def add(action: str, amount: Any) -> None:
        if delta and action in delta[-1]:
            delta[-1][action] += amount
        else:
            delta.append({action: amount})

    item = node.start
    while item is not None:
        adds = transaction.adds(item)
        if item.deleted:
            if not adds and transaction.deletes(item) and item.kind in COUNTED:
                add("delete", item.length)
        elif item.kind in COUNTED:
            if adds:
                add("insert", [shown(value) for value in contents_of(item)])
            else:
                add("retain", item.length)
        item = item.right
    if delta and "retain" in delta[-1]:
        delta.pop()
    return delta


class _TextDelta:
    """The delta of a text: what to do to the old one to get the new one."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self._delta: list[dict[str, Any]] = []
        self._action = ""
        self._amount: Any = 0
        self._now: dict[str, Any] = {}
        """What formats hold here now."""
        self._before: dict[str, Any] = {}
        """And before."""
        self._changed: dict[str, Any] = {}
        """Which formats differ in what stays."""

    def of(self, node: Node) -> list[dict[str, Any]]:
        item = node.start
        while item is not None:
            adds, deletes = self._transaction.adds(item), self._transaction.deletes(item)
            if item.kind == FORMAT:
                self._format(item, adds, deletes)
            elif item.kind in (STRING, EMBED, TYPE):
                if adds:
                    if not deletes and item.kind == STRING:
                        self._do("insert", item.content)
                    elif not deletes:
                        self._end()
                        self._do("insert", shown(item.content))
                        self._end()
                else:
                    self._old(item, deletes)
            item = item.right
        self._end()
        while self._delta and self._delta[-1].keys() == {"retain"}:
            self._delta.pop()
        return self._delta

    def _old(self, item: Item, deletes: bool) -> None:
        # Of a pair of surrogates that was cut, which became two characters, the first half stands
        # in the place of the pair.
        cuts = self._transaction.cuts
        is_half, ends_in_half = item.id in cuts, (item.client, item.clock + item.length) in cuts
        if deletes and item.count > is_half:
            self._do("delete", item.count - is_half)
        elif not item.deleted:
            for action, amount in (
                ("insert", "\ufffd" * is_half),
                ("retain", item.count - is_half - ends_in_half),
                ("delete", int(ends_in_half)),
                ("insert", "\ufffd" * ends_in_half),
            ):
                if amount:
                    self._do(action, amount)

    def _do(self, action: str, amount: Any) -> None:
        if self._action != action:
            self._end()
            self._action, self._amount = action, amount
        else:
            self._amount += amount

    def _end(self) -> None:
        if self._action:
            attributes = {"insert": self._now, "retain": self._changed}.get(self._action)
            self._delta.append({self._action: self._amount})
            if attributes:
                self._delta[-1]["attributes"] = some_of(attributes)
        self._action = ""

    def _format(self, item: Item, adds: bool, deletes: bool) -> None:
        key, value = item.content
        now = self._now.get(key)
        if adds:
            if not deletes and not same(now, value):
                self._end_of("retain")
                if same(value, self._before.get(key)):
                    self._changed.pop(key, None)
                else:
                    self._changed[key] = value
        elif deletes:
            self._before[key] = value
            if not same(now, value):
                self._end_of("retain")
                self._changed[key] = now
        else:
            self._before[key] = value
            if key in self._changed and not same(self._changed[key], value):
                self._end_of("retain")
                if value is None:
                    del self._changed[key]
                else:
                    self._changed[key] = value
        if not item.deleted:
            self._end_of("insert")
            update_attributes(self._now, item)

    def _end_of(self, action: str) -> None:
        if self._action == action:
            self._end()


def same(a: Any, b: Any) -> bool:
    """Whether two values of a format are equal, as JavaScript has it: True is not 1."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return isinstance(a, bool) is isinstance(b, bool) and bool(a == b)
