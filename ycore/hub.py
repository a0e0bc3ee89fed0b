"""The hub: rooms by name. Opens each once, has it loaded, and lets go of the idle ones.

Like a room, it is a pure state machine whose methods return effects. A room's effects must be
carried out in order; those of different rooms have nothing to do with each other.

    join an unknown name    -> Load(room): give it what the store has, then `room.opened`
    no members for a while  -> Unload(room, generation): let the store finish, then `unloaded`
    a room too many         -> Unload of the one that has been empty for longest, at once
    the store failed        -> `close`: members are sent away, the next join loads afresh

So `join` may return effects for other rooms than the one that is joined: these come first.

Somebody may join while the store is still finishing. The room then stays: the generation (how many
have joined, `Room.joins`) tells `unloaded` that it comes too late.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from heapq import heappop, heappush
from itertools import count
from types import MappingProxyType
from typing import Final

from .effects import Effect, Load, Unload
from .errors import CloseCode
from .room import Member, Room, State
from .settings import Settings

__all__ = ["Hub"]

_MIN_LOOK_INTERVAL: Final = 0.1
"""Seconds: time-outs that are set shorter are noticed this late."""
_LEAVING: Final = 64
"""How many rooms may have given way to others, and still wait for the store to finish with them."""


class Hub:
    """All rooms of a process, or of whatever part of it you like."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self._rooms: dict[str, Room] = {}
        self._unloading: dict[Room, int] = {}
        """Room -> its generation when its Unload was returned. Nobody has joined since."""
        self._empty: deque[tuple[float, str]] = deque()
        """Rooms that were empty when last all were looked at, and since when: who has been so for
        longest comes first."""
        self._looks: list[tuple[float, int, Room]] = []
        """A heap: for each room, when it is looked at next. With a hundred thousand rooms one can't
        look at all of them whenever one is due."""
        self._count = count()
        times = self.settings
        shortest = min(times.keepalive, times.stall_timeout, times.idle_timeout)
        self._look_interval = max(shortest, _MIN_LOOK_INTERVAL)

    @property
    def rooms(self) -> Mapping[str, Room]:
        """The rooms in memory, by name."""
        return MappingProxyType(self._rooms)

    def join(
        self, name: str, *, now: float, read_only: bool = False
    ) -> tuple[Member, list[Effect]]:
        """Let a member into the room of that name, which is opened if it is not yet."""
        effects: list[Effect] = []
        room = self._rooms.get(name)
        if room is None:
            # Rooms that are on their way out don't count: nobody has to wait for the store.
            while len(self._rooms) - len(self._unloading) >= self.settings.max_rooms:
                if (empty := self._longest_empty()) is None:
                    nowhere = Room(name, settings=self.settings)
                    reason = "the server has too many rooms open"
                    member, refusal = nowhere.refuse(CloseCode.TRY_AGAIN_LATER, reason, now=now)
                    return member, effects + refusal
                effects.append(self._unload(empty))
            room = self._rooms[name] = Room(name, settings=self.settings, loading=True)
            effects.append(Load(room))
            self._look_again(room, now)
        self._unloading.pop(room, None)
        member, greeting = room.join(now=now, read_only=read_only)
        return member, effects + greeting

    def close(self, room: Room, code: CloseCode, reason: str, *, now: float) -> list[Effect]:
        """Send a room's members away and forget it, as when its store has failed."""
        if self._rooms.get(room.name) is room:
            del self._rooms[room.name]
        self._unloading.pop(room, None)
        return room.close(code, reason, now=now)

    def unloaded(self, room: Room, generation: int, *, now: float) -> bool:
        """The store has finished with an idle room: forget it, unless it is in use again.

        Returns whether it was forgotten.
        """
        if self._unloading.get(room) != generation or room.joins != generation:
            return False
        self.close(room, CloseCode.NORMAL, "idle", now=now)
        return True

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout` next; None if never, as long as nobody joins."""
        while self._looks and self._rooms.get(self._looks[0][2].name) is not self._looks[0][2]:
            heappop(self._looks)  # forgotten meanwhile
        return self._looks[0][0] if self._looks else None

    def handle_timeout(self, *, now: float) -> list[tuple[Room, list[Effect]]]:
        """Do what is due by `now`; too early, nothing. Rooms without effects are left out."""
        todo: list[tuple[Room, list[Effect]]] = []
        while (due := self.next_timeout()) is not None and now >= due:
            room = heappop(self._looks)[2]
            effects = room.handle_timeout(now=now)
            unload_at = self._unload_at(room)
            if unload_at is not None and now >= unload_at:
                effects.append(self._unload(room))
            if effects:
                todo.append((room, effects))
            self._look_again(room, now)
        return todo

    def _longest_empty(self) -> Room | None:
        """The room that is to give way to another, if there is one.

        To look at all takes a while, so that is done only once in as many times as empty ones are
        found.
        """
        if len(self._unloading) >= _LEAVING:
            return None
        for _ in range(2):
            while self._empty:
                since, name = self._empty.popleft()
                room = self._rooms.get(name)
                if room is not None and room.idle_since == since and self._may_unload(room):
                    return room
            empty = [room for room in self._rooms.values() if self._may_unload(room)]
            self._empty.extend(sorted((_idle_since(room), room.name) for room in empty))
        return None

    def _unload(self, room: Room) -> Unload:
        self._unloading[room] = room.joins
        return Unload(room, room.joins)

    def _look_again(self, room: Room, now: float) -> None:
        """See to it that a room is looked at when it is next due, and every so often in any case:
        what may become due meanwhile, the hub is not told."""
        dues = (room.next_timeout(), self._unload_at(room), now + self._look_interval)
        due = min(due for due in dues if due is not None and due > now)
        heappush(self._looks, (due, next(self._count), room))

    def _unload_at(self, room: Room) -> float | None:
        """When the room will have been idle for long enough; None if it is not or that is known."""
        return _idle_since(room) + self.settings.idle_timeout if self._may_unload(room) else None

    def _may_unload(self, room: Room) -> bool:
        """Whether the room is empty, and nothing is left to be done in it."""
        return (
            room.idle_since is not None
            and room.state is State.OPEN
            and not room.has_unsent
            and room not in self._unloading
        )


def _idle_since(room: Room) -> float:
    assert room.idle_since is not None
    return room.idle_since
