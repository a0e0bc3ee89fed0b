"""Effects: what a room or a hub asks its caller to do, in order.

Named tuples, since there are some for every keystroke and they are made in half the time.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from .awareness import AwarenessEntry

if TYPE_CHECKING:
    from .room import Member, Room

__all__ = [
    "AwarenessChanged",
    "Close",
    "CustomMessage",
    "Effect",
    "EffectSteps",
    "Load",
    "Persist",
    "Probe",
    "Send",
    "Unload",
]


class Persist(NamedTuple):
    """Store this update durably before carrying out what follows."""

    update: bytes
    author: Member


class Send(NamedTuple):
    """Send this frame, as one binary WebSocket message, to each member of `to` but `skip`."""

    frame: bytes
    to: tuple[Member, ...]
    skip: Member | None = None


class Close(NamedTuple):
    """Close the member's connection, after what was sent to it. It has left the room already."""

    member: Member
    code: int
    reason: str


class Probe(NamedTuple):
    """Find out whether the member's connection is still alive, and if it is not, let it leave.

    Somebody else says that it is this member: perhaps its client, back on a new connection after
    the network broke, which stays invisible for as long as the old one seems to be there.
    """

    member: Member


class CustomMessage(NamedTuple):
    """A message of a type registered in `Settings.custom_types`: the application's business."""

    member: Member
    type: int
    payload: bytes


class AwarenessChanged(NamedTuple):
    """These came, changed what they show, or went. Only if `Settings.tell_awareness`."""

    room: Room
    entries: tuple[AwarenessEntry, ...]


class Load(NamedTuple):
    """From a `Hub`: give the room what the store has (`Room.load`), then call `Room.opened`.

    If the store fails, `Hub.close` the room: it must not stay open without its past.
    """

    room: Room


class Unload(NamedTuple):
    """From a `Hub`: the room is idle. Let the store finish with it, then call `Hub.unloaded`."""

    room: Room
    generation: int


Effect: TypeAlias = (
    Persist | Send | Close | Probe | CustomMessage | AwarenessChanged | Load | Unload
)

EffectSteps: TypeAlias = Generator[list[Effect] | None, None, list[Effect]]
"""Work in steps (see `ycore.steps`) that may have effects at each of them, and in the end. None:
it only pauses. A list, if an empty one: more follows when the member has taken what it was sent."""
