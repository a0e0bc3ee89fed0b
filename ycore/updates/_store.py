"""The struct store: the truth of a document, without the document.

A Yjs document is a set of structs and a set of deletes. To relay, merge, compare and persist it,
one needs to know which of them one has, not what they mean: so does Yjs itself for updates
(`utils/updates.js`). Structs and deletes whose dependencies are missing are kept like all others;
where a client's clock has a hole, the encoding has a Skip.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from ..errors import RemoteProtocolError
from ..lib0 import read_var_uint, write_var_uint
from ..steps import STEP, Steps, finish
from ._deletes import ClientDeletes, Range, subtract, write_ranges
from ._grammar import (
    HAS_KEY,
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


def _run_start(run: Run) -> int:
    return run.start


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
        """Whether any item has a key, or had one when it came."""
        self._state_vector: bytes | None = None
        """Encoded, once it was asked for, until there are new structs."""
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
        whole: list[Section] = []
        pieces: list[_Piece] = []
        for section in parsed.sections:
            client = section.client
            runs = self._clients.get(client)
            if runs is None:
                run = run_of(parsed.data, section)
                self._clients[client] = [run]
                self._order = None
                self.size += run.size
                whole.append(section)
            elif runs[-1].end == section.start:  # what typing does
                self.size += runs[-1].append_section(parsed.data, section)
                whole.append(section)
            elif runs[-1].end < section.start:
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
                    continue
                all_new = False
                for start, end in gaps:
                    piece = run.cut(start, end)
                    pieces.append(_Piece(client, start, end, len(piece.ends), bytes(piece.raw)))
                    self.size += _insert(runs, piece)
        new_deletes: dict[int, list[Range]] = {}
        for client, ranges in parsed.deletes.items():
            deletes = self._deletes.get(client)
            if deletes is None:
                deletes = self._deletes[client] = ClientDeletes()
                self.size += deletes.size
            self.size -= deletes.size
            new = deletes.add(ranges)
            self.size += deletes.size
            if new:
                new_deletes[client] = new
            if new != ranges:
                all_new = False
        if whole or pieces:
            self._state_vector = None
            self._has_keys |= parsed.has_keys
        elif not new_deletes:
            return None
        if all_new:
            return parsed.data
        pieces += [_piece_of(parsed.data, section) for section in whole]
        return _encode_news(pieces, new_deletes)

    def knows(self, update: ParsedUpdate) -> bool:
        """Whether adding this update would change nothing."""
        for section in update.sections:
            runs = self._clients.get(section.client)
            if runs is None or _gaps(runs, section.start, section.ends[-1]):
                return False
        for client, ranges in update.deletes.items():
            deletes = self._deletes.get(client)
            if deletes is None or not deletes.covers(ranges):
                return False
        return True

    def misfits(self, update: ParsedUpdate, first: int, last: int) -> list[int]:
        """Where in an update items begin that say that they have no key though the item they are
        attached to has one. Looks at `update.keyless[first:last]`.

        Yjs gives an item the key of its left neighbour, or else of its right one, and says so when
        it passes the item on (`structs/Item.js`, getMissing and write). An item that lies about it
        gets around `undeleted_value`. What it is attached to may not be known yet; then nobody can
        tell.
        """
        misfits: list[int] = []
        if not (self._has_keys or update.has_keys):  # a text
            return misfits
        data = update.data
        for offset in update.keyless[first:last]:
            client, pos = read_var_uint(data, offset + 1)
            clock, _ = read_var_uint(data, pos)
            runs = self._clients.get(client)
            if runs is not None:
                run = runs[-1]
                if clock < run.start:
                    run = runs[max(bisect_right(runs, clock, key=_run_start) - 1, 0)]
                if run.start <= clock < run.end:
                    if run.has_key(clock):
                        misfits.append(offset)
                    continue
            if (section := update.section_of(client, clock)) is not None:
                at = section.offsets[bisect_right(section.ends, clock)]
                if data[section.begin + at] & HAS_KEY:
                    misfits.append(offset)
        return misfits

    def deleted(self, client: int, start: int, end: int) -> list[Range]:
        """What is deleted of a client's clocks from `start` to `end`."""
        deletes = self._deletes.get(client)
        if deletes is None:
            return []
        return [(max(a, start), min(b, end)) for a, b in deletes.within(start, end)]

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
        if self._order is None:
            self._order = sorted(self._clients, reverse=True)
        done: list[bytes] = []
        chunks: Chunks = []
        sections = 0
        for turn, client in enumerate(self._order, 1):
            runs = self._clients[client]
            clock = known.get(client, 0)
            if clock < runs[-1].end:
                _write_section(chunks, client, runs, clock)
                sections += 1
            if len(chunks) > 4 * STEP or not turn % (4 * STEP):
                # The chunks may be the runs' own bytes, which change.
                done.append(b"".join(chunks))
                chunks = []
                yield
        done.append(b"".join(chunks))
        deletes = []
        for turn, client in enumerate(sorted(self._deletes, reverse=True), 1):
            deletes.append((yield from self._deletes[client].encode_steps(client)))
            if not turn % STEP:
                yield
        return b"".join((_count(sections), *done, _count(len(deletes)), *deletes))

    def snapshot_steps(self) -> Steps[bytes]:
        """`encode` in steps, for something to be put in the place of all that it says: the result
        was seen to decode to all there was at the first step.

        Raises:
            RuntimeError: it was not: a bug, but what it was to replace still has everything.
        """
        structs = {c: [(run.start, run.end) for run in runs] for c, runs in self._clients.items()}
        deletes = {client: deletes.ranges() for client, deletes in self._deletes.items()}
        snapshot = yield from self.diff_steps({})
        decoded = StructStore()
        try:
            for part in parts_of((yield from parse_update_steps(snapshot))):
                decoded.add(part)
                yield
        except RemoteProtocolError as exc:
            raise RuntimeError(f"the snapshot does not decode: {exc}") from exc
        whole = (yield from decoded.diff_steps({})) == snapshot
        for turn, (client, ranges) in enumerate(structs.items(), 1):
            runs = decoded._clients.get(client, [])
            whole = whole and bool(runs) and not any(_gaps(runs, *struct) for struct in ranges)
            if not turn % STEP:
                yield
        for client, ranges in deletes.items():
            known = decoded._deletes.get(client, ClientDeletes())
            for done in range(0, len(ranges), STEP):
                whole = whole and known.covers(ranges[done : done + STEP])
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


def _write_section(chunks: Chunks, client: int, runs: list[Run], clock: int) -> None:
    """Append the section of one client from `clock` on, where it has something."""
    at = 0
    if clock:
        at = max(bisect_right(runs, clock, key=_run_start) - 1, 0)
        if runs[at].end <= clock:
            at += 1
    head = bytearray()
    body: Chunks = []
    begin = end = max(clock, runs[at].start)
    structs = 0
    for run in runs[at:] if at else runs:
        if run.start > end:
            skip = bytearray()
            structs += _write_skip(skip, run.start - end)
            body.append(skip)
        if run.start >= clock:
            structs += len(run.ends)
            body.append(run.raw)
        else:
            count, raw = run.chunks_from(clock)
            structs += count
            body += raw
        end = run.end
    write_var_uint(head, structs)
    write_var_uint(head, client)
    write_var_uint(head, begin)
    chunks.append(head)
    chunks += body


def _count(number: int) -> bytes:
    out = bytearray()
    write_var_uint(out, number)
    return bytes(out)
