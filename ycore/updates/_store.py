"""The struct store: the truth of a document, without the document.

A Yjs document is a set of structs and a set of deletes. To relay, merge, compare and persist it,
one needs to know which of them one has, not what they mean: so does Yjs itself for updates
(`utils/updates.js`). Structs and deletes whose dependencies are missing are kept like all others;
where a client's clock has a hole, the encoding has a Skip.

Settling
--------
Of one thing the store does know what it means: which items are values of a key. A key has one
value, the last of its chain, and all others are deleted. Yjs throws when it has to collect a type
in which they are not (`structs/Item.js`, gc): then nobody can load the document any more. It is so
where a value is longer than one clock, not deleted, and was cut in two; Yjs itself makes none such.
So before a value is cut the store deletes all clocks of it but the last, which is what Yjs shows.
(y-py, with an old yrs, writes an attribute of text as one value of many clocks, shows all of it,
and never cuts it: as long as nobody does, it stays whole.)

An item that has a neighbour does not say whether it has a key (see `HAS_KEY`): it has its
neighbour's. So the store goes through the structs in the order in which Yjs integrates them, each
client's by clock, and none before those that it is attached to or in; and it makes the bit of each
right. What it has gone through is *settled*. A client whose next struct waits for one that is
missing is *behind*. In a document that has no keys, and where nobody is behind, nothing is to be
done, and nothing is.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping
from heapq import heappop, heappush
from operator import neg
from typing import Final, NamedTuple, TypeAlias

from ..errors import RemoteProtocolError
from ..lib0 import read_var_uint, write_var_uint
from ..steps import STEP, Steps, finish
from ._deletes import ClientDeletes, Range, coalesce, subtract, write_ranges
from ._grammar import (
    DELETED,
    GC,
    HAS_BOTH,
    HAS_KEY,
    HAS_ORIGIN,
    HAS_RIGHT_ORIGIN,
    KIND,
    SKIP,
    ParsedUpdate,
    Section,
    decode_state_vector,
    encode_state_vector,
    parse_update,
    parse_update_steps,
    parts_of,
)
from ._runs import Run, run_of

Chunks: TypeAlias = list[bytes | bytearray | memoryview]

_SETTLED_AT_ONCE: Final = STEP
"""How many structs are settled in one go: some milliseconds."""


def _run_start(run: Run) -> int:
    return run.start


def _run_end(run: Run) -> int:
    return run.end


class _Behind:
    """How far a client is that is behind."""

    __slots__ = ("awaited", "clock")

    def __init__(self, clock: int) -> None:
        self.clock = clock
        """Up to here its structs are settled."""
        self.awaited: tuple[int, int] | None = None
        """The id that its next struct waits for; None if that struct itself is missing, or nobody
        has looked yet."""


class Place(NamedTuple):
    """From where a diff goes on that is given in parts."""

    client: int
    clock: int
    in_deletes: bool


_START: Final = Place(2**64, 0, False)
_NO_END: Final = 2**63


class Since:
    """What came since some moment, if all that was added after it is noted here."""

    __slots__ = ("clocks", "deletes")

    def __init__(self) -> None:
        self.clocks: dict[int, int] = {}
        """For each client with new structs, the clock of the first of them."""
        self.deletes: dict[int, ClientDeletes] = {}

    def __bool__(self) -> bool:
        return bool(self.clocks or self.deletes)

    def note(self, update: ParsedUpdate) -> None:
        """All of this update was new."""
        for section in update.sections:
            self._note_structs(section.client, section.start)
        for client, ranges in update.deletes.items():
            self._note_deletes(client, ranges)

    def _note_structs(self, client: int, clock: int) -> None:
        known = self.clocks.get(client)
        if known is None or clock < known:
            self.clocks[client] = clock

    def _note_deletes(self, client: int, ranges: list[Range]) -> None:
        deletes = self.deletes.get(client)
        if deletes is None:
            deletes = self.deletes[client] = ClientDeletes()
        deletes.add(ranges)

    def join_steps(self, later: Since) -> Steps[None]:
        """Note all that another has noted, in steps."""
        for turn, (client, clock) in enumerate(list(later.clocks.items()), 1):
            self._note_structs(client, clock)
            if not turn % STEP:
                yield
        for client, deletes in list(later.deletes.items()):
            for part in deletes.copy().parts():
                self._note_deletes(client, part)
                yield


class StructStore:
    """All structs and deletes of one document.

    >>> store = StructStore()
    >>> store.add(update)                  # doctest: +SKIP
    >>> store.diff(their_state_vector)     # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._clients: dict[int, list[Run]] = {}
        """For each client its runs, sorted, disjoint."""
        self._deletes: dict[int, ClientDeletes] = {}
        self._order: list[int] | None = []
        """The clients in the order Yjs writes them, higher first; None when one is new."""
        self._has_keys = False
        """Whether any item has a key, or said so when it came."""
        self._behind: dict[int, _Behind] = {}
        """The clients of which not all is settled."""
        self._unsettled: dict[int, None] = {}
        """Those of them that may be able to go on."""
        self._waiting: dict[int, list[tuple[int, int]]] = {}
        """Client -> a heap of its clocks that are waited for, each with the client that waits.
        All that wait are in it, and some that no longer do."""
        self._long_values: dict[int, list[tuple[int, int]]] = {}
        """For each client, sorted, where its values begin and end that are longer than one clock
        and were not deleted when they came. Some may be by now."""
        self._rests: dict[int, list[Range]] = {}
        """What of values that were cut is to be deleted, by the end of this step: one by one, each
        would move all deletes behind it."""
        self._own_deletes: list[bytes] = []
        """What the store itself deleted, as updates, until somebody asks."""
        self._state_vector: bytes | None = None
        """Encoded, once it was asked for, until there are new structs."""
        self._rough_vector = b""
        self._since_rough = 0
        """How many bytes of updates were added since then."""
        self.size = 0
        """What this costs to keep and to pass on, about in bytes of memory. What `encode` gives is
        shorter: half of this for a document typed key by key, less if it has many authors, since
        each costs everyone who joins a little time."""

    def add(self, update: bytes | bytearray | memoryview | ParsedUpdate) -> bytes | None:
        """Take in an update and return what of it was new, as an update; None if nothing was.

        That is the update itself if all of it was new. Where a struct's id is known already, what
        is known stays (but see `_make_way`).

        Raises:
            RemoteProtocolError: the update is malformed; nothing has changed.
        """
        parsed = update if isinstance(update, ParsedUpdate) else parse_update(bytes(update))
        all_new = parsed.tidy
        has_hole = False
        whole: list[Section] = []
        pieces: list[_Piece] = []
        ends: list[tuple[int, int]] = []
        for section in parsed.sections:
            client = section.client
            start = section.start
            runs = self._clients.get(client)
            end = 0
            if runs is None:
                run = run_of(parsed.data, section)
                self._clients[client] = [run]
                self._order = None
                self.size += run.size
                whole.append(section)
            elif (end := runs[-1].end) == start:  # what typing does
                self.size += runs[-1].append_section(parsed.data, section)
                whole.append(section)
            elif end < start:
                run = run_of(parsed.data, section)
                runs.append(run)
                self.size += run.size
                whole.append(section)
            else:
                run = run_of(parsed.data, section)
                self.size -= _make_way(runs, run)
                gaps = _gaps(runs, run.start, run.end)
                if gaps == [(run.start, run.end)]:
                    self.size += _insert(runs, run)
                    whole.append(section)
                else:
                    all_new = False
                    for low, high in gaps:
                        piece = run.cut(low, high)
                        pieces.append(_Piece(client, low, high, len(piece.ends), bytes(piece.raw)))
                        self.size += _insert(runs, piece)
            ends.append((client, end))
            has_hole = has_hole or start > end
        new_deletes: dict[int, list[Range]] = {}
        for client, ranges in parsed.deletes.items():
            new = self._delete(client, ranges)
            if new:
                new_deletes[client] = new
                if client in self._long_values:
                    for start, end in new:
                        self._cut_value(client, start)
                        self._cut_value(client, end)
            if new != ranges:
                all_new = False
        if self._rests:
            self._delete_rests()
        if whole or pieces:
            self._state_vector = None
            self._since_rough += len(parsed.data)
            self._has_keys = self._has_keys or parsed.has_keys
            neighbours = parsed.neighbours  # none, mostly: people type on where they are
            if has_hole or self._behind or (neighbours != {} and not self._has_all(neighbours)):
                self._settle_new(ends)
            elif self._has_keys:
                section = parsed.sections[0]
                if len(ends) == 1 and ends[0][1] == section.start and len(section.ends) <= STEP:
                    self._settle_last(self._clients[section.client][-1], section)
                    if self._rests:
                        self._delete_rests()
                else:
                    self._settle_new(ends)
        elif not new_deletes:
            return None
        if all_new:
            return parsed.data
        pieces += [_piece_of(parsed.data, section) for section in whole]
        return _encode_news(pieces, new_deletes)

    def knows(self, update: ParsedUpdate) -> bool:
        """Whether adding this update would change nothing."""
        if not self.knows_structs(update):
            return False
        for client, ranges in update.deletes.items():
            deletes = self._deletes.get(client)
            if deletes is None or not deletes.covers(ranges):
                return False
        return True

    def knows_structs(self, update: ParsedUpdate) -> bool:
        """Whether an update holds no new structs. It may hold new deletes."""
        for section in update.sections:
            runs = self._clients.get(section.client)
            if runs is None or _gaps(runs, section.start, section.ends[-1]):
                return False
        return True

    def only_deletes(self, update: ParsedUpdate) -> bool:
        """Whether all that an update may bring is deletes of structs that are known."""
        if not self.knows_structs(update):
            return False
        for client, ranges in update.deletes.items():
            runs = self._clients.get(client)
            if runs is None or ranges[-1][1] > runs[-1].end:
                return False
        return True

    def _delete(self, client: int, ranges: list[Range]) -> list[Range]:
        """Add delete ranges of a client, and return what of them was new."""
        deletes = self._deletes.get(client)
        if deletes is None:
            deletes = self._deletes[client] = ClientDeletes()
        else:
            self.size -= deletes.size
        new = deletes.add(ranges)
        self.size += deletes.size
        return new

    # -- settling: see the top of this module

    def _has_all(self, neighbours: dict[int, int] | None) -> bool:
        """Whether all that the structs of an update are attached to, or in, is there. Holes aside,
        and it may say no where it would take long to find out."""
        if neighbours is None:
            return False
        for client, clock in neighbours.items():
            runs = self._clients.get(client)
            if runs is None or clock >= runs[-1].end:
                return False
        return True

    def _settle_last(self, run: Run, section: Section) -> None:
        """A section was appended to a run, and all that it is attached to is settled. It is what
        typing does."""
        raw = run.raw
        offsets = run.offsets
        first = len(offsets) - len(section.ends)
        if first < 0 or run.begin_of(first) < section.start:
            first += 1  # it was joined with the struct before it, and has that one's key
        for i in range(first, len(offsets)):
            at = offsets[i]
            info = raw[at]
            if info >= HAS_RIGHT_ORIGIN:
                client, pos = read_var_uint(raw, at + 1)
                clock, pos = read_var_uint(raw, pos)
                if self._long_values:
                    self._cut_for(info, client, clock, raw, pos)
                if self._has_key(client, clock):
                    raw[at] = info | HAS_KEY
                    self._note_value(run, i)
                elif info & HAS_KEY:
                    raw[at] = info & ~HAS_KEY
            elif info & HAS_KEY:
                self._note_value(run, i)

    def _cut_for(self, info: int, client: int, clock: int, raw: bytearray, pos: int) -> None:
        """An item goes behind its origin, if it has one, and before its right origin. The first of
        these ids is given, and where another one would be."""
        self._cut_value(client, clock + 1 if info & HAS_ORIGIN else clock)
        if info & HAS_BOTH == HAS_BOTH:
            client, pos = read_var_uint(raw, pos)
            clock, _ = read_var_uint(raw, pos)
            self._cut_value(client, clock)

    def _note_value(self, run: Run, i: int) -> None:
        """A struct that was settled is the value of a key."""
        begin, end = run.begin_of(i), run.ends[i]
        if end - begin > 1 and run.raw[run.offsets[i]] & KIND != DELETED:
            deletes = self._deletes.get(run.client)
            if deletes is None or not deletes.touches(begin, end):
                insort(self._long_values.setdefault(run.client, []), (begin, end))
            elif not deletes.covers([(begin, end)]):
                self._cut_off(run.client, begin, end)

    def _cut_value(self, client: int, clock: int) -> None:
        """Something begins or ends before this clock: a client cuts there what it is in."""
        values = self._long_values.get(client)
        if values is not None:
            i = bisect_left(values, (clock, 0)) - 1
            if i >= 0 and clock < values[i][1]:
                self._cut_off(client, *values[i])

    def _cut_off(self, client: int, begin: int, end: int) -> None:
        """Have all of a value deleted but its last clock."""
        self._rests.setdefault(client, []).append((begin, end - 1))

    def _delete_rests(self) -> None:
        """Delete what is left over of values that were cut."""
        rests, self._rests = self._rests, {}
        own: dict[int, list[Range]] = {}
        for client, ranges in rests.items():
            new = self._delete(client, coalesce(ranges))
            if new:
                own[client] = new
        if own:
            self._own_deletes.append(_encode_news([], own))

    def _settle_new(self, ends: list[tuple[int, int]]) -> None:
        """Clients have got new structs. `ends` says where theirs ended before."""
        for client, end in ends:
            if client not in self._behind:
                self._behind[client] = _Behind(end)
            self._unsettled[client] = None
        self.settle()

    def settle(self) -> bool:
        """Settle more of what can be, for some milliseconds at most. `add` does this once. Returns
        whether there is more."""
        budget = _SETTLED_AT_ONCE
        while self._unsettled and budget > 0:
            client, _ = self._unsettled.popitem()  # what came last comes first
            behind = self._behind.get(client)
            if behind is not None:
                budget -= self._settle_client(client, behind, budget)
            waiting = self._waiting.get(client)
            if waiting is not None:
                end = self._settled_end(client)
                while waiting and waiting[0][0] < end:
                    _, waiter = heappop(waiting)
                    self._unsettled[waiter] = None
                    budget -= 1
                    if budget <= 0:
                        self._unsettled[client] = None  # to wake the rest of them
                        break
                if not waiting:
                    del self._waiting[client]
        if self._rests:
            self._delete_rests()
        return bool(self._unsettled)

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to `settle`. Before that nobody may be shown what was added: it
        may wake what others have already, and that may have values to be cut."""
        return not self._unsettled

    def _settled_end(self, client: int) -> int:
        """The clock up to which a client's structs are settled."""
        behind = self._behind.get(client)
        if behind is not None:
            return behind.clock
        runs = self._clients.get(client)
        return 0 if runs is None else runs[-1].end

    def _settle_client(self, client: int, behind: _Behind, budget: int) -> int:
        """Settle a client's structs up to one that waits or is missing, but no more than the budget
        allows. Returns how many there were, but 1 at least."""
        runs = self._clients[client]
        clock = behind.clock
        awaited: tuple[int, int] | None = None
        done = 0
        at = max(bisect_right(runs, clock, key=_run_start) - 1, 0)
        while at < len(runs) and runs[at].start <= clock and awaited is None and done < budget:
            run = runs[at]
            i = bisect_right(run.ends, clock)
            if i < len(run.ends) and run.begin_of(i) < clock:
                # It was typed behind a settled struct, and joined with that: none of them has a
                # key.
                clock = run.ends[i]
                i += 1
            while i < len(run.ends) and done < budget:
                awaited = self._settle_struct(run, i)
                if awaited is not None:
                    break
                done += 1
                clock = run.ends[i]
                i += 1
            at += 1
        behind.clock = clock
        if awaited is not None:
            if awaited != behind.awaited:
                heappush(self._waiting.setdefault(awaited[0], []), (awaited[1], client))
        elif clock == runs[-1].end:
            del self._behind[client]
        elif done >= budget:
            self._unsettled[client] = None
        behind.awaited = awaited
        return max(done, 1)

    def _settle_struct(self, run: Run, i: int) -> tuple[int, int] | None:
        """Settle a struct of a run. Returns the id that it waits for, if it does."""
        raw = run.raw
        at = run.offsets[i]
        info = raw[at]
        if info == GC:
            return None
        has_key = bool(info & HAS_KEY)
        if info >= HAS_RIGHT_ORIGIN:
            # The origin says whether there is a key, or else the right origin: as in yjs
            # `structs/Item.js`, getMissing.
            neighbour, pos = read_var_uint(raw, at + 1)
            its_clock, ids_end = read_var_uint(raw, pos)
            if neighbour != run.client and its_clock >= self._settled_end(neighbour):
                return neighbour, its_clock
            if info & HAS_BOTH == HAS_BOTH:
                right, pos = read_var_uint(raw, ids_end)
                right_clock, _ = read_var_uint(raw, pos)
                if right != run.client and right_clock >= self._settled_end(right):
                    return right, right_clock
            if self._long_values:
                self._cut_for(info, neighbour, its_clock, raw, ids_end)
            has_key = self._has_keys and self._has_key(neighbour, its_clock)
            raw[at] = info | HAS_KEY if has_key else info & ~HAS_KEY
        else:
            named, pos = read_var_uint(raw, at + 1)
            if not named:
                owner, pos = read_var_uint(raw, pos)
                its_clock, _ = read_var_uint(raw, pos)
                if owner != run.client and its_clock >= self._settled_end(owner):
                    return owner, its_clock
        if has_key:
            self._note_value(run, i)
        return None

    def _has_key(self, client: int, clock: int) -> bool:
        """Whether a struct that is settled is the value of a key."""
        runs = self._clients[client]
        run = runs[-1]
        if clock < run.start:
            run = runs[bisect_right(runs, clock, key=_run_start) - 1]
        return run.has_key(clock)

    def own_deletes(self) -> list[bytes]:
        """What the store itself has deleted since it was asked last, as updates.
        Whoever is to get what was added must get these before, or together with it."""
        own = self._own_deletes
        if own:
            self._own_deletes = []
        return own

    def behind(self) -> dict[int, int]:
        """Client -> the clock up to which its structs can be put in their place, for those whose
        later ones wait for something that is missing."""
        while self.settle():
            pass
        return {client: behind.clock for client, behind in self._behind.items()}

    # -- reading

    def deleted(self, client: int, start: int, end: int) -> list[Range]:
        """What is deleted of a client's clocks from `start` to `end`."""
        deletes = self._deletes.get(client)
        if deletes is None:
            return []
        return [(max(a, start), min(b, end)) for a, b in deletes.within(start, end)]

    @property
    def authors(self) -> int:
        """How many clients have structs in it."""
        return len(self._clients)

    def state_vector(self) -> dict[int, int]:
        """For each client the clock up to which all its structs are known, without a hole."""
        clocks = {}
        for client, runs in self._clients.items():
            clock = 0
            for run in runs:
                if run.start != clock:
                    break
                clock = run.end
            if clock:
                clocks[client] = clock
        return clocks

    def encode_state_vector(self) -> bytes:
        """`state_vector()` as a SyncStep1 carries it."""
        if self._state_vector is None:
            self._state_vector = encode_state_vector(self.state_vector())
        return self._state_vector

    def rough_state_vector(self) -> bytes:
        """`encode_state_vector()`, or with many authors that of a while ago: to make it for each
        who joins would take long, and who is asked with this one sends little more than needed."""
        if self._since_rough > (len(self._rough_vector) if self.authors > STEP else 0):
            self._rough_vector = b""
        if not self._rough_vector:
            self._rough_vector = self.encode_state_vector()
            self._since_rough = 0
        return self._rough_vector

    def diff(self, state_vector: bytes | Mapping[int, int]) -> bytes:
        """What someone with this state vector lacks, as an update: structs, and all deletes.

        Raises:
            RemoteProtocolError: the state vector is malformed.
        """
        if isinstance(state_vector, bytes):
            state_vector = decode_state_vector(state_vector)
        return finish(self.diff_steps(state_vector))

    def encode(self) -> bytes:
        """All structs and deletes, as one update."""
        return finish(self.diff_steps({}))

    def diff_steps(self, known: Mapping[int, int]) -> Steps[bytes]:
        """`diff` in steps. What is added meanwhile may be in it or not, as a whole or in part."""
        update, _ = yield from self.diff_part_steps(known)
        return update

    def diff_part_steps(
        self, known: Mapping[int, int], place: Place = _START, most: int = _NO_END
    ) -> Steps[tuple[bytes, Place | None]]:
        """An update with a part of `diff`, in steps.

        Args:
            place: where the part before this one ended.
            most: about how many bytes it may have at most. It has one struct in any case.

        Returns:
            the part, and where the next one goes on: None if this was the last.
        """
        while self.settle():
            yield
        order = self._order
        if order is None:
            order = self._order = sorted(self._clients, reverse=True)
        if len(order) > STEP:
            yield  # many may ask at once, and none of these first steps shall be a long one
        return (yield from self._part_steps(order, known, self._deletes, place, most))

    def pack_clocks_steps(self, known: Mapping[int, int]) -> Steps[bytes]:
        """A state vector to be kept and decoded again: of what is in this store, and in a tenth of
        a dict's memory. In steps."""
        out = bytearray()
        count = 0
        for turn, (client, clock) in enumerate(known.items(), 1):
            if client in self._clients:
                write_var_uint(out, client)
                write_var_uint(out, clock)
                count += 1
            if not turn % STEP:
                yield
        return _count(count) + out

    def since_part_steps(
        self, since: Since, place: Place = _START, most: int = _NO_END
    ) -> Steps[tuple[bytes, Place | None]]:
        """As `diff_part_steps`, of what came since."""
        while self.settle():
            yield
        order = sorted(since.clocks, reverse=True)
        return (yield from self._part_steps(order, since.clocks, since.deletes, place, most))

    def _part_steps(
        self,
        order: list[int],
        known: Mapping[int, int],
        all_deletes: Mapping[int, ClientDeletes],
        place: Place,
        most: int,
    ) -> Steps[tuple[bytes, Place | None]]:
        done: list[bytes] = []
        chunks: Chunks = []
        sections = size = 0
        after: Place | None = None
        at = len(order) if place.in_deletes else bisect_left(order, -place.client, key=neg)
        while at < len(order) and after is None:
            client = order[at]
            runs = self._clients[client]
            clock = known.get(client, 0)
            if client == place.client:
                clock = max(clock, place.clock)
            end = runs[-1].end
            if clock < end:
                if size >= most:
                    after = Place(client, clock, False)
                    continue
                if len(runs) > STEP:  # it has many holes
                    section, written, clock = yield from _section_steps(
                        client, runs, clock, most - size
                    )
                    chunks.append(section)
                else:
                    written, clock = _write_section(chunks, client, runs, clock, most - size)
                size += written
                sections += 1
                if clock < end:
                    after = Place(client, clock, False)
            at += 1
            if len(chunks) > 4 * STEP or not at % (4 * STEP):
                # The chunks may be the runs' own bytes, which change.
                done.append(b"".join(chunks))
                chunks = []
                yield
        done.append(b"".join(chunks))
        chunks = []  # nor may a view of them outlive the next pause: a run could not grow
        if after is not None:
            return b"".join((_count(sections), *done, _count(0))), after
        deletes = []
        order = sorted(all_deletes, reverse=True)
        at = bisect_left(order, -place.client, key=neg) if place.in_deletes else 0
        while at < len(order) and after is None:
            client = order[at]
            clock = place.clock if place.in_deletes and client == place.client else 0
            its = all_deletes[client]
            if size >= most:
                after = Place(client, clock, True)
                continue
            if clock or its.size > most - size:
                encoded, later = its.encode_some(client, clock, most - size)
                if later is not None:
                    after = Place(client, later, True)
            else:
                encoded = yield from its.encode_steps(client)
            deletes.append(encoded)
            size += len(encoded)
            at += 1
            if not at % STEP:
                yield
        update = b"".join((_count(sections), *done, _count(len(deletes)), *deletes))
        return update, after

    def snapshot_steps(self) -> Steps[bytes]:
        """`encode` in steps, for something to be put in the place of all that it says: the result
        was seen to decode to all there was at the first step.

        Raises:
            RuntimeError: it was not: a bug, but what it was to replace still has everything.
        """
        structs: list[tuple[int, list[Range]]] = []
        turn = 0
        for client, runs in list(self._clients.items()):
            at = 0
            while at < len(runs):
                some = [(run.start, run.end) for run in runs[at : at + STEP]]
                structs.append((client, some))
                turn += len(some)
                if turn >= STEP:
                    turn = 0
                    yield
                at = bisect_right(runs, some[-1][1], key=_run_end)  # there may be fewer by now
        deletes: list[tuple[int, ClientDeletes]] = []
        for turn, (client, its) in enumerate(list(self._deletes.items()), 1):
            deletes.append((client, its.copy()))
            if not turn % STEP:
                yield
        snapshot = yield from self.diff_steps({})
        decoded = StructStore()
        try:
            for part in parts_of((yield from parse_update_steps(snapshot))):
                decoded.add(part)
                yield
        except RemoteProtocolError as exc:
            raise RuntimeError(f"the snapshot does not decode: {exc}") from exc
        whole = (yield from decoded.diff_steps({})) == snapshot
        turn = 0
        for client, some in structs:
            runs = decoded._clients.get(client, [])
            whole = whole and bool(runs) and not any(_gaps(runs, *struct) for struct in some)
            turn += len(some)
            if turn >= STEP:
                turn = 0
                yield
        for client, its in deletes:
            known = decoded._deletes.get(client, ClientDeletes())
            for some in its.parts():
                whole = whole and known.covers(some)
                yield
        if not whole:
            raise RuntimeError("the snapshot does not decode to the same document")
        return snapshot


class _Piece(NamedTuple):
    """Consecutive structs that were new."""

    client: int
    start: int
    end: int
    structs: int
    raw: bytes


def _piece_of(data: bytes, section: Section) -> _Piece:
    raw = data[section.begin : section.stop]
    return _Piece(section.client, section.start, section.ends[-1], len(section.ends), raw)


def _encode_news(pieces: list[_Piece], deletes: dict[int, list[Range]]) -> bytes:
    """The update that says just this."""
    clients: dict[int, list[_Piece]] = {}
    for piece in sorted(pieces, key=lambda piece: (-piece.client, piece.start)):
        clients.setdefault(piece.client, []).append(piece)
    out = bytearray()
    write_var_uint(out, len(clients))
    for client, its in clients.items():
        body = bytearray()
        structs = 0
        end = its[0].start
        for piece in its:
            structs += piece.structs + _write_skip(body, piece.start - end)
            body += piece.raw
            end = piece.end
        write_var_uint(out, structs)
        write_var_uint(out, client)
        write_var_uint(out, its[0].start)
        out += body
    write_var_uint(out, len(deletes))
    for client in sorted(deletes, reverse=True):
        write_var_uint(out, client)
        write_var_uint(out, len(deletes[client]))
        write_ranges(out, deletes[client])
    return bytes(out)


def _write_skip(out: bytearray, length: int) -> int:
    """Append a Skip over a hole, if there is one. Returns how many structs that makes."""
    if not length:
        return 0
    out.append(SKIP)
    write_var_uint(out, length)
    return 1


def _gaps(runs: list[Run], start: int, end: int) -> list[Range]:
    """Which clocks from `start` to `end` are in none of `runs`."""
    first = max(bisect_right(runs, start, key=_run_start) - 1, 0)
    last = bisect_left(runs, end, lo=first, key=_run_start)
    return subtract([(start, end)], [(run.start, run.end) for run in runs[first:last]])


def _make_way(runs: list[Run], run: Run) -> int:
    """Drop from `runs` what is to be replaced by `run`, and return its size.

    First come, first kept, but for what lies behind a hole: there nothing is part of any document
    yet, and where updates overlap Yjs keeps what begins earlier (`utils/updates.js`, mergeUpdates;
    and a document takes what continues it rather than what it has pending). For honest clients
    that matters only where one copy has a surrogate pair cut in two and the other has not.
    """
    # The first that begins behind `run`, and does not just continue the one before.
    first = bisect_right(runs, run.start, key=_run_start)
    while 0 < first < len(runs) and runs[first].start == runs[first - 1].end:
        first += 1
    last = first
    while last < len(runs) and runs[last].end <= run.end:
        last += 1
    size = sum(run.size for run in runs[first:last])
    del runs[first:last]
    return size


def _insert(runs: list[Run], run: Run) -> int:
    """Put a run where it belongs among its client's runs, none of which it overlaps.

    Returns by how much they have grown.
    """
    size = 0
    at = bisect_right(runs, run.start, key=_run_start)
    if at and runs[at - 1].end == run.start:
        at -= 1
        size -= runs[at].size
        runs[at].extend(run)
    else:
        runs.insert(at, run)
    # Runs that touch are joined while the left one is the longer, so that a struct is copied a
    # logarithmic number of times even if structs arrive in the worst order. Until then they touch.
    while (
        at + 1 < len(runs)
        and runs[at].end == runs[at + 1].start
        and len(runs[at].ends) >= len(runs[at + 1].ends)
    ):
        size -= runs[at + 1].size
        runs[at].extend(runs.pop(at + 1))
    return size + runs[at].size


def _write_section(
    chunks: Chunks, client: int, runs: list[Run], clock: int, most: int
) -> tuple[int, int]:
    """Append the section of one client from `clock` on, where it has something: all of it, or its
    first structs that have so many bytes. Returns how many they have, and the clock after them."""
    at, clock = _first_sent(runs, clock)
    body: Chunks = []
    structs, size, end, _ = _write_runs(body, runs[at:], clock, most)
    chunks.append(_section_head(structs, client, clock))
    chunks += body
    return size, end


def _section_steps(
    client: int, runs: list[Run], clock: int, most: int
) -> Steps[tuple[bytes, int, int]]:
    """`_write_section` in steps, for many runs. Returns the section, too."""
    at, clock = _first_sent(runs, clock)
    done: list[bytes] = []
    structs = size = 0
    end = clock
    more = True
    while more and at < len(runs):
        body: Chunks = []
        count, written, end, more = _write_runs(body, runs[at : at + STEP], end, most - size)
        structs += count
        size += written
        # The chunks may be the runs' own bytes, which change; and runs may be joined meanwhile.
        done.append(b"".join(body))
        body = []
        yield
        at = bisect_right(runs, end, key=_run_end)
    return b"".join((_section_head(structs, client, clock), *done)), size, end


def _first_sent(runs: list[Run], clock: int) -> tuple[int, int]:
    """With which run the section begins for somebody who knows what is before `clock`, and with
    which clock."""
    at = 0
    if clock:
        at = bisect_right(runs, clock, key=_run_end)
        if runs[at].start < clock:
            return at, runs[at].sent_from(clock)
    return at, max(clock, runs[at].start)


def _section_head(structs: int, client: int, clock: int) -> bytearray:
    head = bytearray()
    write_var_uint(head, structs)
    write_var_uint(head, client)
    write_var_uint(head, clock)
    return head


def _write_runs(body: Chunks, runs: list[Run], clock: int, most: int) -> tuple[int, int, int, bool]:
    """Append what runs have from `clock` on, and skips between them, until these are so many bytes.
    Returns how many structs and bytes that makes, the clock after them, and whether there may be
    more."""
    structs = size = 0
    for run in runs:
        if size >= most:
            return structs, size, clock, False
        if run.start > clock:
            skip = bytearray()
            structs += _write_skip(skip, run.start - clock)
            body.append(skip)
            clock = run.start
        if run.start == clock and len(run.raw) <= most - size:
            structs += len(run.ends)
            size += len(run.raw)
            body.append(run.raw)
            clock = run.end
        else:
            count, raw, clock = run.chunks_from(clock, most - size)
            structs += count
            size += sum(map(len, raw))
            body += raw
            if clock < run.end:
                return structs, size, clock, False
    return structs, size, clock, size < most


def _count(number: int) -> bytes:
    out = bytearray()
    write_var_uint(out, number)
    return bytes(out)
