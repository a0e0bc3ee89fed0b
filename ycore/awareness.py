"""Awareness: who is here, and what they show of themselves (a name, a cursor).

Each Yjs client has one state, a JSON value, under its client id, with a clock that only its owner
counts up. States are kept here as JSON text, checked but not parsed.

Source of the rules: y-protocols `awareness.js`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple

from .errors import CloseCode, LocalProtocolError, RemoteProtocolError
from .jsontext import SHORT_JSON, check_json, check_json_steps
from .lib0 import MAX_SAFE_INTEGER, read_var_string, read_var_uint, write_var_string, write_var_uint
from .steps import STEP, Steps, finish

__all__ = [
    "OUTDATED_AFTER",
    "RENEW_AFTER",
    "Awareness",
    "AwarenessEntry",
    "decode_awareness",
    "decode_awareness_steps",
    "encode_awareness",
]

OUTDATED_AFTER: Final = 30.0
"""Seconds after which a state that was not renewed is dropped (`outdatedTimeout`)."""

RENEW_AFTER: Final = OUTDATED_AFTER / 2
"""Seconds after which an owner renews its state."""

_MAX_GONE: Final = 20_000
"""How many who went are remembered: all who are here may go at once, and who comes and goes all the
time shall not fill the memory."""


class AwarenessEntry(NamedTuple):
    """What one client shows, or that it is gone."""

    client: int
    clock: int
    state: str | None
    """JSON text; None when the client is gone."""


def decode_awareness(payload: bytes) -> list[AwarenessEntry]:
    """Read the payload of an awareness message (`applyAwarenessUpdate`).

    Raises:
        RemoteProtocolError: cut short, bytes left over, or a state that is not JSON (on which real
            clients throw).
    """
    return finish(decode_awareness_steps(payload, MAX_SAFE_INTEGER, MAX_SAFE_INTEGER))


def decode_awareness_steps(
    payload: bytes, max_entries: int, max_state_bytes: int
) -> Steps[list[AwarenessEntry]]:
    """`decode_awareness` in steps, with limits: above them, the close code is 1009."""
    count, pos = read_var_uint(payload, 0)
    if count * 3 > len(payload) - pos:  # id, clock and a string's length are a byte each at least
        raise RemoteProtocolError(f"awareness message declares {count} entries")
    if count > max_entries:
        reason = f"awareness message has {count} entries, more than {max_entries}"
        raise RemoteProtocolError(reason, CloseCode.MESSAGE_TOO_BIG)
    entries = []
    for turn in range(1, count + 1):
        client, pos = read_var_uint(payload, pos)
        clock, pos = read_var_uint(payload, pos)
        start = pos
        state, pos = read_var_string(payload, pos)
        if pos - start > max_state_bytes:
            reason = f"awareness state has {pos - start} bytes, more than {max_state_bytes}"
            raise RemoteProtocolError(reason, CloseCode.MESSAGE_TOO_BIG)
        if len(state) > SHORT_JSON:
            yield from check_json_steps(state)
        else:
            check_json(state)
        entries.append(AwarenessEntry(client, clock, None if state.strip() == "null" else state))
        if not turn % STEP:
            yield
    if pos != len(payload):
        raise RemoteProtocolError(f"{len(payload) - pos} bytes left over after awareness")
    return entries


def encode_awareness(entries: list[AwarenessEntry]) -> bytes:
    """Write the payload of an awareness message (`encodeAwarenessUpdate`)."""
    out = bytearray()
    write_var_uint(out, len(entries))
    for client, clock, state in entries:
        _write_entry(out, client, clock, state)
    return bytes(out)


def _write_entry(out: bytearray, client: int, clock: int, state: str | None) -> None:
    write_var_uint(out, client)
    write_var_uint(out, clock)
    write_var_string(out, "null" if state is None else state)


@dataclass(slots=True)
class _Known:
    clock: int
    state: str
    renewed: float
    encoded: bytes | None = None
    """Its entry in a message, once that was asked for."""


class Awareness:
    """The states of one room, as one of its clients, or the server, knows them.

    Args:
        client_id: whose own state `set_local_state` sets; None for a server, which has none.

    Every method that changes something returns the entries to tell the others.
    """

    def __init__(self, client_id: int | None = None) -> None:
        self.client_id = client_id
        self._own_clock: int | None = None
        """The clock of our own state, kept while it is not shown."""
        self._present: dict[int, _Known] = {}
        """Ordered by when they were renewed, so that the first is the next to expire."""
        self.changes = 0
        """Goes up whenever `encode` would give something else than before."""
        self._gone: OrderedDict[int, tuple[int, float]] = OrderedDict()
        """Client -> its last clock, and when it went, in that order: what is still on its way from
        before then must not bring it back. Forgotten when no client can hold such a state any more,
        or when there are too many."""

    @property
    def states(self) -> dict[int, str]:
        """Client -> state, as JSON text, of those who are here."""
        return {client: known.state for client, known in self._present.items()}

    def __len__(self) -> int:
        """How many are here."""
        return len(self._present)

    def clock(self, client: int) -> int:
        """The last clock known of a client, 0 if none is."""
        if client == self.client_id:
            return self._own_clock or 0
        known = self._present.get(client)
        return known.clock if known is not None else self._gone.get(client, (0, 0.0))[0]

    def gone_since(self, client: int) -> float | None:
        """When it went, if not long ago: others may still hold its state, or at least its clock."""
        gone = self._gone.get(client)
        return None if gone is None else gone[1]

    def is_here(self, client: int, state: str) -> bool:
        """Whether it is here with just this state."""
        known = self._present.get(client)
        return known is not None and known.state == state

    def renew(self, client: int, now: float) -> None:
        """A client that is here was heard of: it expires later."""
        known = self._present.pop(client)  # to the end of the order
        known.renewed = now
        self._present[client] = known

    def count_up(self, clients: Iterable[int]) -> None:
        """Raise the clocks of those who are here by one; when they expire stays as it is."""
        self.changes += 1
        for client in clients:
            known = self._present[client]
            known.clock += 1
            known.encoded = None

    def encode(self) -> bytes:
        """All who are here, as the payload of a message. Of those who did not change since it was
        last asked for, the bytes are there: in a full room many come and each is told of all."""
        out = bytearray()
        write_var_uint(out, len(self._present))
        for client, known in self._present.items():
            if known.encoded is None:
                entry = bytearray()
                _write_entry(entry, client, known.clock, known.state)
                known.encoded = bytes(entry)
            out += known.encoded
        return bytes(out)

    def entries(self, clients: Iterable[int] | None = None) -> list[AwarenessEntry]:
        """What is known of these clients, or of all who are here. The unknown are left out."""
        if clients is None:
            clients = self._present
        entries = []
        for client in clients:
            known = self._present.get(client)
            if known is not None:
                entries.append(AwarenessEntry(client, known.clock, known.state))
            elif client in self._gone or (client == self.client_id and self._own_clock is not None):
                entries.append(AwarenessEntry(client, self.clock(client), None))
        return entries

    def apply(self, entries: Iterable[AwarenessEntry], now: float) -> list[AwarenessEntry]:
        """Take in what others announce; return what of it changed something here.

        An entry counts if its clock is above the known one, or equal to it if the entry says that
        a client is gone who is here. If it says so of our own state, we answer with a higher
        clock instead.
        """
        changed = []
        for entry in entries:
            client, clock, state = entry
            known = self._present.get(client)
            last = self.clock(client)
            if clock < last or (clock == last and (state is not None or known is None)):
                continue
            if state is not None:
                self._set(client, clock, state, now)
            elif known is None:
                self._drop(client, clock, now)
                continue
            elif client == self.client_id:
                self._set(client, clock + 1, known.state, now)
                entry = AwarenessEntry(client, clock + 1, known.state)  # noqa: PLW2901
            else:
                self._drop(client, clock, now)
            changed.append(entry)
        return changed

    def set_local_state(self, state: str | None, now: float) -> list[AwarenessEntry]:
        """Set our own state (JSON text), or with None say that we are gone.

        Raises:
            LocalProtocolError: this is a server's awareness, or `state` is not JSON.
        """
        if self.client_id is None:
            raise LocalProtocolError("a server has no awareness state of its own")
        client = self.client_id
        clock = 0 if self._own_clock is None else self._own_clock + 1
        if state is not None:
            try:
                check_json(state)
            except RemoteProtocolError as exc:
                raise LocalProtocolError(str(exc)) from None
            self._set(client, clock, state, now)
        elif client in self._present:
            self._drop(client, clock, now)
        else:
            return []
        return [AwarenessEntry(client, clock, state)]

    def remove(self, clients: Iterable[int], now: float) -> list[AwarenessEntry]:
        """Others are gone, without a word of theirs: their clocks stay (removeAwarenessStates)."""
        removed = []
        for client in clients:
            known = self._present.get(client)
            if known is not None:
                self._drop(client, known.clock, now)
                removed.append(AwarenessEntry(client, known.clock, None))
        return removed

    def forget_others(self) -> list[AwarenessEntry]:
        """The connection is gone, and with it what it told of others, clocks and all: what the next
        one tells counts from the start."""
        gone = [entry for entry in self.entries() if entry.client != self.client_id]
        for entry in gone:
            del self._present[entry.client]
        self._gone.clear()
        self.changes += 1
        return [entry._replace(state=None) for entry in gone]

    def handle_timeout(self, now: float) -> list[AwarenessEntry]:
        """Drop the states that nobody renewed, and renew our own."""
        outdated = []
        for client, known in self._present.items():
            if client != self.client_id:
                if now < known.renewed + OUTDATED_AFTER:
                    break
                outdated.append(client)
        changed = self.remove(outdated, now)
        while self._gone and now >= next(iter(self._gone.values()))[1] + OUTDATED_AFTER:
            self._gone.popitem(last=False)
        if self.client_id is not None:
            own = self._present.get(self.client_id)
            if own is not None and now >= own.renewed + RENEW_AFTER:
                changed += self.set_local_state(own.state, now)
        return changed

    def next_timeout(self) -> float | None:
        """When `handle_timeout` has something to do next."""
        others = (known for client, known in self._present.items() if client != self.client_id)
        times = [known.renewed + OUTDATED_AFTER for known in islice(others, 1)]
        times += [since + OUTDATED_AFTER for _, since in islice(self._gone.values(), 1)]
        if self.client_id in self._present:
            times.append(self._present[self.client_id].renewed + RENEW_AFTER)
        return min(times, default=None)

    def _set(self, client: int, clock: int, state: str, now: float) -> None:
        self.changes += 1
        if client == self.client_id:
            self._own_clock = clock
        self._gone.pop(client, None)
        self._present.pop(client, None)  # to the end of the order
        self._present[client] = _Known(clock, state, now)

    def _drop(self, client: int, clock: int, now: float) -> None:
        self.changes += 1
        self._present.pop(client, None)
        if client == self.client_id:
            self._own_clock = clock
        else:
            self._gone.pop(client, None)  # to the end of the order
            self._gone[client] = (clock, now)
            if len(self._gone) > _MAX_GONE:
                self._gone.popitem(last=False)
