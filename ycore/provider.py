"""A provider: the client's side of a room, for one document.

Theory of operation
-------------------
A provider is a pure state machine, as a room is. Its inputs are methods; each returns a list of
*effects* for the caller to carry out, in order, after those returned before. Some ask for I/O
(`OpenConnection`, `SendFrame`, `SendPing`, `CloseConnection`), the others tell the application what
happened.

    connect()  -> OpenConnection: open a WebSocket, then call `connected` or `connection_lost`
    receive()  for each message, `heard()` for whatever else came, `connection_lost()` at its end
    local_update()  for each update of the document whose origin is not the provider
    handle_timeout()  at `next_timeout()`

There is one connection at a time. After `CloseConnection` it is over for the provider: nothing that
still comes of it may be given to it any more.

On each connection, the SyncStep1 we send asks for what we lack. The server sends one too: the
answer carries what was edited while there was no connection, and from then on edits go out one by
one.
Nothing is ever queued: the document itself holds what the server may not have.

A server that stores and answers in order, as ycore's does, has stored all that we sent before a
SyncStep1 when it answers that with a SyncStep2. By this `flush` knows. One question is under way at
a time, since answers bear no number.

Awareness: our state is shown with a clock that is counted up for each connection, as clients that
knew us before ignore one they saw. For the same reason what was known of the others is forgotten
when a connection ends: the next server says who is here.

Source: y-websocket `src/y-websocket.js` (3.1.0), y-protocols `sync.js` and `awareness.js`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Any, Final, Protocol, TypeAlias

from .awareness import Awareness, AwarenessEntry, decode_awareness, encode_awareness
from .errors import CloseCode, LocalProtocolError, RemoteProtocolError
from .messages import (
    AwarenessUpdate,
    Message,
    PermissionDenied,
    QueryAwareness,
    SyncStep1,
    SyncStep2,
    Update,
    decode,
)
from .settings import ProviderSettings
from .updates import decode_state_vector, parse_update

__all__ = [
    "CloseConnection",
    "Denied",
    "Document",
    "Effect",
    "Event",
    "Flushed",
    "GaveUp",
    "Lost",
    "OpenConnection",
    "PresenceChanged",
    "Provider",
    "SendFrame",
    "SendPing",
    "Status",
    "StatusChanged",
    "is_final",
]


class Document(Protocol):
    """What a provider needs of a document; `ycore.doc.Doc` is one."""

    @property
    def client_id(self) -> int:
        """Whose edits its own are. Awareness begins with the same id."""

    def encode_state_vector(self) -> bytes: ...

    def encode(self, state_vector: bytes | None = None) -> bytes:
        """The update that someone with this state vector lacks."""

    def apply(self, update: bytes, origin: object = None) -> None:
        """Take in an update.

        Raises:
            RemoteProtocolError: it is malformed; nothing has changed.
        """

    def observe_updates(self, callback: Callable[[bytes, object], None]) -> Callable[[], None]:
        """Have `callback(update, origin)` called after each transaction that changed anything;
        returns what ends that. The provider's caller uses it, for `Provider.local_update`."""


class Status(Enum):
    """How a provider and the server are connected."""

    DISCONNECTED = "disconnected"
    """Nobody wants a connection: `connect` was not called yet, or `disconnect` was."""
    CONNECTING = "connecting"
    """A connection is being opened."""
    SYNCING = "syncing"
    """It is open; what we lack has not come yet."""
    SYNCED = "synced"
    """We have what the server had, and hear of each edit."""
    WAITING = "waiting"
    """The connection broke, or did not come about; it will be tried again."""
    GAVE_UP = "gave up"
    """The server said that trying again is of no use. `connect` does nevertheless."""


_OPEN: Final = (Status.SYNCING, Status.SYNCED)


# ---- effects


@dataclass(frozen=True, slots=True)
class OpenConnection:
    """Open a WebSocket to the server, then call `connected` or `connection_lost`."""


@dataclass(frozen=True, slots=True)
class SendFrame:
    """Send this frame as one binary WebSocket message."""

    frame: bytes


@dataclass(frozen=True, slots=True)
class SendPing:
    """Send a WebSocket ping, and call `heard` when the pong comes, or anything else."""


@dataclass(frozen=True, slots=True)
class CloseConnection:
    """Close the connection, after what was sent on it; or stop opening it. It is over already:
    don't call `connection_lost` for it."""

    code: CloseCode
    reason: str


@dataclass(frozen=True, slots=True)
class StatusChanged:
    status: Status


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection broke, or did not come about, and is tried again."""

    code: int
    """Of the server's close frame, or 1006 if there was none; or a status of HTTP."""
    reason: str
    retry_in: float
    """Seconds until then."""


@dataclass(frozen=True, slots=True)
class GaveUp:
    """The server won't have us, and trying again is of no use; see `is_final`."""

    code: int
    """Of the server's close frame, or a status of HTTP."""
    reason: str


@dataclass(frozen=True, slots=True)
class Denied:
    """The server refused something, an edit on a read-only connection say, and told why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Flushed:
    """The server has stored all that was edited before the `flush` of this number."""

    number: int
    denied: str | None
    """Why it has not after all: what it said when it refused something on this connection."""


@dataclass(frozen=True, slots=True)
class PresenceChanged:
    """Somebody's state changed, perhaps our own: the ids of who came, changed, went."""

    added: tuple[int, ...]
    updated: tuple[int, ...]
    removed: tuple[int, ...]


Event: TypeAlias = StatusChanged | Lost | GaveUp | Denied | Flushed | PresenceChanged
"""What is for the application to know."""

Effect: TypeAlias = OpenConnection | SendFrame | SendPing | CloseConnection | Event


# ---- rules


def is_final(code: int) -> bool:
    """Whether trying again is of no use, by the close code, or by the status of HTTP that stood in
    the way of a WebSocket.

    A server that can't serve just now may next time: 1001, 1006, 1011, 1013 and all that is not
    listed here is tried again. Final are:

    - 4400 to 4499, by the convention of y-websocket (3.1, `defaultShouldReconnect`): the server
      decided.
    - 1009, by which other servers refuse a message that is too long: it would be sent again.
    - 1015, as browsers call it that a TLS certificate is not to be trusted.
    - statuses of HTTP up to 499, such as 401, 403, 404, or a redirection, since the request would
      be the same again; but 408 (too slow) and 429 (too often) say nothing about it.

    Not 1008, though some servers mean "forbidden" by it: ycore's own, for one, means "too often",
    and y-websocket tries again.
    """
    if code < 1000:
        return code < 500 and code not in (408, 429)
    return code in (CloseCode.MESSAGE_TOO_BIG, 1015) or 4400 <= code < 4500


_NO_UPDATE: Final = b"\x00\x00"

_MAX_RETRY_AFTER: Final = 300.0
"""Seconds beyond which a server's wish when to come back is not heeded: it may be a mistake."""

_MAX_DOUBLINGS: Final = 30
"""So that a float can hold the backoff of a server that is away for years."""

_ASKS_AT_ONCE: Final = 8
"""How often we ask for the document at once, and after that once in `ask_interval`. ycore's server
lets one do so ten times, and closes (1008) who asks more."""


def _number(digits: str) -> int | float:
    """An integer as JavaScript reads it; Python's int takes no more than 4,300 digits."""
    return int(digits) if len(digits) <= 16 else float(digits)


def _parse(state: str | None) -> Any:
    return None if state is None else json.loads(state, parse_int=_number)


_Content: TypeAlias = Message | list[AwarenessEntry]


def _read(frame: bytes) -> list[_Content]:
    """All messages of a frame, checked. An update is checked when it is applied, unless there are
    other messages that would have been carried out by then."""
    messages = decode(frame)
    contents: list[_Content] = []
    for message in messages:
        if isinstance(message, AwarenessUpdate):
            contents.append(decode_awareness(message.payload))
            continue
        if isinstance(message, SyncStep1):
            decode_state_vector(message.state_vector)
        elif isinstance(message, SyncStep2 | Update) and len(messages) > 1:
            parse_update(message.update)
        contents.append(message)
    return contents


# ---- the provider


class Provider:
    """Keeps a document and a room of a server level, and shows who is here.

    Args:
        doc: the document. Its updates have the provider as their origin where it is the provider
            that applied them.
        random: gives numbers from 0 to 1, to spread out who comes back to a server that restarted.
    """

    def __init__(
        self,
        doc: Document,
        *,
        random: Callable[[], float],
        settings: ProviderSettings | None = None,
    ) -> None:
        self.doc = doc
        self.settings = settings or ProviderSettings()
        self.status = Status.DISCONNECTED
        self.client_id = doc.client_id
        """Our awareness id. It stays, should the document take another for its edits."""
        self.awareness = Awareness(self.client_id)
        """Read it; change it by `set_state`."""
        self.denied: str | None = None
        """What the server said when it last refused something on this connection."""
        self._random = random
        self._attempts = 0
        """How many in a row have failed, or did not last."""
        self._since = 0.0
        """When the present connection was begun."""
        self._synced_at: float | None = None
        self._retry_at = 0.0
        self._heard = self._pinged = 0.0
        self._told = False
        """Whether the server's SyncStep1 was answered on this connection."""
        self._owed: bytes | None = None
        """The state vector in it, if the answer has to wait until the outbox is empty."""
        self._stalled: bytes | None = None
        """While the outbox is full: our state vector when it became so."""
        self._behind = False
        """Whether there was an edit since."""
        self._edits = self._stored = 0
        """How many edits there were, and how many of them the server has stored for sure."""
        self._flushes = self._flushed = 0
        """The numbers of the last flush that was asked for, and that was done."""
        self._asked: tuple[int, int] | None = None
        """While a SyncStep1 is unanswered: which flush and how many edits the answer confirms."""
        self._asks_until = -inf
        """When we will have asked no more than we may, if we ask nothing until then."""

    # -- the connection

    def connect(self, *, now: float) -> list[Effect]:
        """Have a connection from now on. Does nothing if there is one, or one being opened; if one
        is waited for, it is tried at once."""
        if self.status is Status.CONNECTING or self.status in _OPEN:
            return []
        self._attempts = 0
        return self._open(now)

    def disconnect(self, *, now: float) -> list[Effect]:
        """Say goodbye, and have no connection until `connect`. Our state stays, to be shown then.

        What was edited just before was sent, but may not have been stored: `flush` tells.
        """
        effects: list[Effect] = []
        if self.status in _OPEN:
            own = self._own()
            effects += self._tell([entry._replace(state=None) for entry in own])
        if self.status is Status.CONNECTING or self.status in _OPEN:
            effects.append(CloseConnection(CloseCode.NORMAL, ""))
        if self.status is not Status.DISCONNECTED:
            effects += self._end(Status.DISCONNECTED)
        return effects

    def connected(self, *, now: float) -> list[Effect]:
        """The connection is open."""
        if self.status is not Status.CONNECTING:
            return []
        self._heard = self._pinged = now
        self._asks_until = -inf
        self._told = self._behind = False
        self._owed = self._stalled = None
        self.denied = None
        effects: list[Effect] = []
        self._set_status(Status.SYNCING, effects)
        # The server may not have our edits yet: the answer confirms nothing.
        self._ask((self._flushed, self._stored), now, effects)
        for entry in self._own():
            effects += self._tell(self.awareness.set_local_state(entry.state, now))
        return effects

    def connection_lost(
        self, code: int, reason: str, *, now: float, retry_after: float | None = None
    ) -> list[Effect]:
        """The connection is gone, or could not be opened.

        Args:
            code: of the server's close frame, 1006 if there was none; or the status of HTTP with
                which it refused to open a WebSocket.
            retry_after: seconds after which it said to come back (`Retry-After`).
        """
        if self.status is not Status.CONNECTING and self.status not in _OPEN:
            return []
        if is_final(code):
            return [GaveUp(code, reason), *self._end(Status.GAVE_UP)]
        return self._retry(code, reason, now, retry_after or 0.0)

    def _open(self, now: float) -> list[Effect]:
        self._since = now
        effects: list[Effect] = [OpenConnection()]
        self._set_status(Status.CONNECTING, effects)
        return effects

    def _retry(self, code: int, reason: str, now: float, retry_after: float = 0.0) -> list[Effect]:
        settings = self.settings
        if self._synced_at is not None and now >= self._synced_at + settings.stable_after:
            self._attempts = 0
        most = settings.backoff_first * 2 ** min(self._attempts, _MAX_DOUBLINGS)
        wait = self._random() * min(most, settings.backoff_most)
        wait += min(max(retry_after, 0.0), _MAX_RETRY_AFTER)
        self._attempts += 1
        self._retry_at = now + wait
        return [Lost(code, reason, wait), *self._end(Status.WAITING)]

    def _end(self, status: Status) -> list[Effect]:
        """There is no connection any more, and nobody known to be here."""
        self._synced_at = self._asked = self._stalled = self._owed = None
        effects: list[Effect] = []
        self._set_status(status, effects)
        self._tell_application({}, self.awareness.forget_others(), effects)
        return effects

    def _set_status(self, status: Status, effects: list[Effect]) -> None:
        self.status = status
        effects.append(StatusChanged(status))

    # -- what comes

    def receive(self, frame: bytes, *, now: float) -> list[Effect]:
        """Take in one WebSocket message.

        A malformed one changes nothing. It costs the connection, and another one is tried later.
        """
        if self.status not in _OPEN:
            return []
        self._heard = now
        effects: list[Effect] = []
        try:
            for content in _read(frame):
                self._take(content, now, effects)
                if self.status not in _OPEN:
                    break  # one of the document's observers disconnected
        except RemoteProtocolError as exc:
            if self.status in _OPEN:
                effects.append(CloseConnection(exc.close_code, str(exc)))
                effects += self._retry(exc.close_code, str(exc), now)
        return effects

    def heard(self, *, now: float) -> None:
        """Something came that is no message, or not all of one yet: a pong, say."""
        self._heard = now

    def _take(self, content: _Content, now: float, effects: list[Effect]) -> None:
        if isinstance(content, Update):
            self.doc.apply(content.update, self)
        elif isinstance(content, SyncStep2):
            self.doc.apply(content.update, self)
            self._answered(now, effects)
        elif isinstance(content, SyncStep1):
            if self._stalled is None:
                self._answer(content.state_vector, now, effects)
            else:
                self._owed = content.state_vector
        elif isinstance(content, list):
            self._take_awareness(content, now, effects)
        elif isinstance(content, PermissionDenied):
            self.denied = content.reason
            effects.append(Denied(content.reason))
        elif isinstance(content, QueryAwareness):
            effects += self._tell(self.awareness.entries([self.client_id]))
        # What else there is, is for applications, and none has asked for it.

    def _answer(self, state_vector: bytes, now: float, effects: list[Effect]) -> None:
        """Tell the server what it lacks."""
        update = self.doc.encode(state_vector)
        self._told = True
        self._edits += update != _NO_UPDATE
        effects.append(SendFrame(SyncStep2(update).encode()))
        self._ask_if_due(now, effects)

    def _answered(self, now: float, effects: list[Effect]) -> None:
        """A SyncStep2 came: all that we sent before we asked for it was taken in."""
        if self._asked is None or self.status not in _OPEN:
            return
        (number, self._stored), self._asked = self._asked, None
        if number > self._flushed:
            self._flushed = number
            effects.append(Flushed(number, self.denied))
        if self.status is Status.SYNCING:
            self._synced_at = now
            self._set_status(Status.SYNCED, effects)
        self._ask_if_due(now, effects)

    # -- edits

    def local_update(self, update: bytes) -> list[Effect]:
        """The document was edited here: somebody else than this provider has changed it.

        Before the server has asked what we have, nothing is sent: the answer will hold it.
        """
        self._edits += 1
        if not self._told or self.status not in _OPEN:
            return []
        if self._stalled is not None:
            self._behind = True
            return []
        return [SendFrame(Update(update).encode())]

    def stall(self) -> None:
        """The connection does not take what is sent fast enough: send nothing until `drained`.

        What was returned before still has to be sent.
        """
        if self.status in _OPEN and self._stalled is None:
            self._stalled = self.doc.encode_state_vector()

    def drained(self, *, now: float) -> list[Effect]:
        """All was taken that was sent before `stall`: send the rest, as one update."""
        if self._stalled is None:
            return []
        known, self._stalled = self._stalled, None
        effects: list[Effect] = []
        if self._owed is not None:
            owed, self._owed = self._owed, None
            self._answer(owed, now, effects)
        elif self._behind:
            effects.append(SendFrame(Update(self.doc.encode(known)).encode()))
        self._behind = False
        effects += self._tell(self.awareness.entries([self.client_id]))
        self._ask_if_due(now, effects)
        return effects

    @property
    def unconfirmed(self) -> bool:
        """Whether there are edits which the server may not have stored, as far as we know."""
        return self._edits != self._stored

    def flush(self, *, now: float) -> tuple[int, list[Effect]]:
        """Find out when the server has stored all edits up to now. Returns a number and the
        effects; a `Flushed` with this number or a higher one will say so. Without a connection
        that is after the next one was made."""
        self._flushes += 1
        effects: list[Effect] = []
        self._ask_if_due(now, effects)
        return self._flushes, effects

    def _ask_if_due(self, now: float, effects: list[Effect]) -> None:
        if now >= self._may_ask_at():
            self._ask((self._flushes, self._edits), now, effects)

    def _may_ask_at(self) -> float:
        """When to ask for the sake of a flush; infinity if something else has to happen before."""
        if self._flushes == self._flushed or self._asked is not None or self._stalled is not None:
            return inf
        if not self._told or self.status not in _OPEN:
            return inf
        return self._asks_until + (1 - _ASKS_AT_ONCE) * self.settings.ask_interval

    def _ask(self, confirms: tuple[int, int], now: float, effects: list[Effect]) -> None:
        self._asked = confirms
        self._asks_until = max(self._asks_until, now) + self.settings.ask_interval
        effects.append(SendFrame(SyncStep1(self.doc.encode_state_vector()).encode()))

    # -- awareness

    @property
    def state(self) -> Any:
        """What we show of ourselves, a JSON value; None if nothing."""
        return next((_parse(entry.state) for entry in self._own()), None)

    @property
    def states(self) -> dict[int, Any]:
        """Who is here, ourselves included: what each shows, by id, as a JSON value."""
        return {client: _parse(text) for client, text in self.awareness.states.items()}

    @property
    def peers(self) -> dict[int, Any]:
        """`states` of the others."""
        states = self.states
        states.pop(self.client_id, None)
        return states

    def set_state(self, state: Any, *, now: float) -> list[Effect]:
        """Show this of ourselves: any JSON value, or None to be here unseen.

        Raises:
            LocalProtocolError: it is no JSON value.
        """
        try:
            text = None if state is None else json.dumps(state, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as exc:
            raise LocalProtocolError(f"no JSON value: {exc}") from None
        before = {entry.client: entry.state for entry in self._own()}
        entries = self.awareness.set_local_state(text, now)
        if entries and entries[0].clock == 0:
            # A client ignores a state of clock 0 of one it does not know (wire facts: [ran]).
            entries = self.awareness.set_local_state(text, now)
        effects = self._tell(entries)
        self._tell_application(before, entries, effects)
        return effects

    def _take_awareness(
        self, entries: list[AwarenessEntry], now: float, effects: list[Effect]
    ) -> None:
        known = self.awareness.entries(entry.client for entry in entries)
        changed = self.awareness.apply(entries, now)
        self._tell_application({entry.client: entry.state for entry in known}, changed, effects)
        # If the server took us for gone, `apply` has counted up: it has to know. If it told what we
        # show, with a higher clock (see `Room._teach`), it knows.
        effects += self._tell(
            [entry for entry in changed if entry.client == self.client_id and entry not in entries]
        )

    def _own(self) -> list[AwarenessEntry]:
        """What we show, if anything."""
        entries = self.awareness.entries([self.client_id])
        return [entry for entry in entries if entry.state is not None]

    def _tell(self, entries: list[AwarenessEntry]) -> list[Effect]:
        """Tell the server, if it hears us."""
        if not entries or self._stalled is not None or self.status not in _OPEN:
            return []
        return [SendFrame(AwarenessUpdate(encode_awareness(entries)).encode())]

    def _tell_application(
        self,
        before: dict[int, str | None],
        entries: list[AwarenessEntry],
        effects: list[Effect],
    ) -> None:
        """Tell what differs from the states before, where it is not only the clock."""
        added, updated, removed = [], [], []
        for client, state in {entry.client: entry.state for entry in entries}.items():
            if state is None:
                removed.append(client)
            elif before.get(client) is None:
                added.append(client)
            elif before[client] != state:
                updated.append(client)
        if added or updated or removed:
            effects.append(PresenceChanged(tuple(added), tuple(updated), tuple(removed)))

    # -- time

    def next_timeout(self) -> float | None:
        """When `handle_timeout` has something to do next; None if never."""
        times = [self.awareness.next_timeout()]
        if self.status is Status.WAITING:
            times.append(self._retry_at)
        elif self.status is Status.CONNECTING:
            times.append(self._since + self.settings.connect_timeout)
        elif self.status in _OPEN:
            times.append(self._heard + self.settings.silence_timeout)
            times.append(max(self._heard, self._pinged) + self.settings.ping_interval)
            times.append(self._may_ask_at())
        return min((time for time in times if time is not None), default=None)

    def handle_timeout(self, *, now: float) -> list[Effect]:
        """Do what is due by `now`; too early, nothing."""
        settings = self.settings
        effects: list[Effect] = []
        changed = self.awareness.handle_timeout(now)
        renewed = [entry for entry in changed if entry.client == self.client_id]
        effects += self._tell(renewed)
        self._tell_application({}, [entry for entry in changed if entry not in renewed], effects)
        if self.status is Status.WAITING and now >= self._retry_at:
            effects += self._open(now)
        elif self.status is Status.CONNECTING and now >= self._since + settings.connect_timeout:
            reason = f"not open after {settings.connect_timeout:g} s"
            effects.append(CloseConnection(CloseCode.GOING_AWAY, reason))
            effects += self._retry(1006, reason, now)
        elif self.status in _OPEN and now >= self._heard + settings.silence_timeout:
            reason = f"nothing was heard for {settings.silence_timeout:g} s"
            effects.append(CloseConnection(CloseCode.GOING_AWAY, reason))
            effects += self._retry(1006, reason, now)
        elif self.status in _OPEN:
            if now >= max(self._heard, self._pinged) + settings.ping_interval:
                self._pinged = now
                effects.append(SendPing())
            self._ask_if_due(now, effects)
        return effects
