"""What can be set about rooms: every time and every limit of the core, with its reason."""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import LocalProtocolError
from .messages import BUILT_IN_TYPES
from .updates import UpdateLimits

__all__ = ["ProviderSettings", "Settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What can be set about rooms. Times are in seconds."""

    keepalive: float = 15.0
    """How often members get a message even if there is nothing to say. y-websocket clients drop a
    connection on which no message came for 30 s; WebSocket pings don't count for them."""

    stall_timeout: float = 60.0
    """How long a member may be too slow to take what is sent to it before it is closed (1013)."""

    idle_timeout: float = 30.0
    """How long a room without members stays in memory, if no other needs its place: long enough to
    sit out a page reload."""

    answer_bytes: int = 8 * 2**20
    """How many bytes of answers a member may ask for per second in the long run: a question takes a
    few bytes, and its answer is all that the member lacks of the document, or everyone's awareness.
    A short answer counts as 16 KB, and each author of the document as 64 bytes more. A member that
    is ten seconds ahead of that is closed (1008)."""

    acknowledge: bool = False
    """Whether an author gets its own updates back once they are stored. The sync status of
    y-websocket 4 turns green by that, and others may show the same; it costs a frame an edit."""

    max_rooms: int = 100_000
    """How many rooms may be in memory at once. An empty one takes some 3 KB; anyone who may choose
    a name opens one. With one more, a room that nobody is in gives way; if there is none, who comes
    is closed (1013)."""

    max_members: int = 5_000
    """How many may be in one room: each hears of each. One more is closed (1013)."""

    max_document_bytes: int = 256 * 2**20
    """How large one document may be: about the memory it takes (`StructStore.size`). Once it is
    larger, new edits cost their author the connection (4413)."""

    update_limits: UpdateLimits = field(default_factory=UpdateLimits)
    """What one update may hold. More is closed (4413)."""

    max_waiting_bytes: int = 64 * 2**20
    """How many bytes of one member's frames are kept while the room loads. Offline edits to a large
    document fit; a transport that reads no further until the room is open needs far less. Who
    sends more is closed (1013): next time the room will be open."""

    max_awareness_clients: int = 64
    """How many awareness ids one member may announce: its own, and those of others that it passes
    on. What it announces is kept, and repeated to everyone. More are ignored."""

    max_awareness_entries: int = 10_000
    """How many states a room shows, and so how many one message may bring: clients pass on all that
    they see change. More is closed (4413). Room for each of `max_members` is left: who is not there
    with an id of its own yet can always be."""

    max_awareness_bytes: int = 64 * 1024
    """How long a member's awareness states may be in all, give or take an id's share of it. A name
    and a cursor take some hundred bytes, an avatar some thousand, and each is repeated to
    everybody. A single state that is longer is closed (4413); one too many is ignored."""

    custom_types: frozenset[int] = frozenset()
    """Message types of the application's own: they come back as `CustomMessage` effects. Messages
    of other unknown types are counted and dropped."""

    tell_awareness: bool = False
    """Whether the caller is told of changed awareness states in `AwarenessChanged` effects."""

    def __post_init__(self) -> None:
        if taken := self.custom_types & BUILT_IN_TYPES:
            raise LocalProtocolError(f"message types {sorted(taken)} are y-protocols' own")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings:
    """What can be set about a provider. Times are in seconds."""

    connect_timeout: float = 10.0
    """How long it may take to open a connection."""

    backoff_first: float = 0.2
    """How long to wait at most before the first attempt to come back; twice as long before each
    one after it. The wait is any time up to that: else all who lost a server come back at once."""

    backoff_most: float = 15.0
    """The longest of these waits: how long one does without a server that is back."""

    stable_after: float = 5.0
    """How long a connection must have been synced for the next wait to be short again. That it was
    open says nothing (a server may accept and then refuse), nor that it was synced for a moment: it
    may close only when it sees our edits, and would each time."""

    ping_interval: float = 15.0
    """A server from which nothing came for so long is sent a WebSocket ping."""

    silence_timeout: float = 30.0
    """A server from which nothing came for so long, pongs included, is given up as dead."""

    ask_interval: float = 1.0
    """How often the server is asked for the sake of `flush`, in the long run: each answer costs it
    something (`Settings.answer_bytes`)."""

    def __post_init__(self) -> None:
        if self.silence_timeout <= self.ping_interval:
            raise LocalProtocolError("a ping must have time to be answered before the silence ends")
