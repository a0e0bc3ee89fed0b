"""Who may go on with long work, and when: the turns of the event loop, shared out fairly.

Work is long if it does not end in one step: a long message, the answer to a question about a large
document, a room that is loaded, a handshake. It is done in slices of some milliseconds
(`Work.pause`), and between two of them whatever is short is done first, as the event loop comes
upon it. Short work waits here as well (`Turns.queue`) where a turn of the loop has brought so much
of it that it has become long. In each turn of the loop, work for about `SLICE` in all may go on:
one slice that is long, or several that turned out to be short.

Which ones, is decided by what they have cost before: the address that has used the least of the
others' time comes first, and of its rooms the one that has. So whoever asks for more waits for
whoever asked for less, and sixty connections from one address, or of one room, get no more than one
would. Those that have the same address and room take turns.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush, heapreplace
from itertools import count
from typing import Final, TypeAlias

import anyio
from anyio import lowlevel

__all__ = ["SLICE", "Party", "Turns", "Work"]

logger = logging.getLogger(__name__)

Party: TypeAlias = tuple[str | None, str | None]
"""On whose account work goes: an address and a room, as far as they are known."""

SLICE: Final = 0.002
"""For how many seconds long work goes on before others get a turn."""
_LEAST: Final = 0.00005
"""As how many seconds a slice counts at least."""
_IDLE_ACCOUNTS: Final = 64
"""How many accounts there may be at least before those who wait no more are forgotten."""


class _Waiter:
    """Whoever waits: a task, which a turn wakes, or a call, which is done in the turn."""

    __slots__ = ("call", "event", "party")

    def __init__(
        self, party: Party, event: anyio.Event | None, call: Callable[[], None] | None
    ) -> None:
        self.party = party
        self.event = event
        self.call = call


class _Account:
    """Who waits of one room, or of an address, or of all: and what they have used of the time.

    Who comes new, or comes back, begins with what the one has used that went on last: nobody can
    save turns, nor has to make up for those who were here before.
    """

    __slots__ = ("_most", "accounts", "heap", "now", "used", "waiting")

    def __init__(self, used: float) -> None:
        self.used = used
        self.now = 0.0
        """What the account had used that had a turn last."""
        self.accounts: dict[str | None, _Account] = {}
        """Those in it..."""
        self.heap: list[tuple[float, int, _Account]] = []
        """... and of them who waits: what it had used when it was put here, not more than now."""
        self.waiting: deque[_Waiter] = deque()
        self._most = _IDLE_ACCOUNTS
        """With how many accounts those are looked for that matter no more."""

    def account(self, name: str | None) -> _Account:
        account = self.accounts.get(name)
        if account is None:
            if len(self.accounts) >= self._most:
                self.accounts = {
                    name: account
                    for name, account in self.accounts.items()
                    if account.heap or account.waiting or account.used > self.now
                }
                self._most = 2 * len(self.accounts) + _IDLE_ACCOUNTS
            account = self.accounts[name] = _Account(self.now)
        return account


class Turns:
    """Shares the turns of an event loop out, while `run` runs.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._all = _Account(0.0)
        self._count = count()
        self._mean = SLICE
        """How long slices have taken of late."""
        self._somebody = anyio.Event()
        """Set when somebody waits."""
        self._is_over = False

    async def run(self) -> None:
        while True:
            await self._somebody.wait()
            while self._all.heap:
                self._turn()
                await lowlevel.checkpoint()
            self._somebody = anyio.Event()
            self._all = _Account(0.0)  # where nobody has to wait, it does not matter who used what

    def stop(self) -> None:
        """There will be no more turns, and nobody waits for one. Calls are not done any more."""
        self._is_over = True
        while self._all.heap:
            event = self._next().event
            if event is not None:
                event.set()

    def _turn(self) -> None:
        """Have work go on for about `SLICE`. What a task will take is not known before, so it is
        taken to be what tasks have taken of late."""
        left = SLICE
        while self._all.heap and left > 0:
            waiter = self._next()
            if waiter.call is not None:
                began = self.clock()
                try:
                    waiter.call()
                except Exception:  # a bug: it costs whoever it was for, and the others go on
                    logger.exception("call failed")
                used = max(self.clock() - began, _LEAST)
                self._charge(waiter.party, used)
                left -= used
            elif waiter.event is not None:
                waiter.event.set()
                left -= self._mean

    def charge(self, party: Party, used: float) -> None:
        """Some slice of a task took so long."""
        used = max(used, _LEAST)
        self._mean += (used - self._mean) / 8
        self._charge(party, used)

    def _charge(self, party: Party, used: float) -> None:
        account = self._all
        for name in party:
            account = account.account(name)
            account.used += used

    async def wait(self, party: Party) -> None:
        """Wait for a turn."""
        if self._is_over:
            await lowlevel.checkpoint()
            return
        event = anyio.Event()
        self._add(_Waiter(party, event, None))
        await event.wait()

    def queue(self, party: Party, call: Callable[[], None]) -> None:
        """Have something short done in a turn, without a task that waits for it. It must not raise.
        Once there are no more turns, it is not done."""
        if not self._is_over:
            self._add(_Waiter(party, None, call))

    def _add(self, waiter: _Waiter) -> None:
        self._somebody.set()
        above = self._all
        for name in waiter.party:
            account = above.account(name)
            if not account.heap and not account.waiting:
                account.used = max(account.used, above.now)
                heappush(above.heap, (account.used, next(self._count), account))
            above = account
        above.waiting.append(waiter)

    def _next(self) -> _Waiter:
        """Who is next: it waits no longer."""
        above = self._all
        way: list[_Account] = []
        while above.heap:
            used, _, account = above.heap[0]
            if used < account.used:  # it has used more meanwhile
                heapreplace(above.heap, (account.used, next(self._count), account))
            else:
                above.now = max(above.now, used)
                way.append(above)
                above = account
        waiter = above.waiting.popleft()
        for above in reversed(way):
            account = above.heap[0][2]
            if account.heap or account.waiting:
                # Behind those that have used as much.
                heapreplace(above.heap, (account.used, next(self._count), account))
            else:
                heappop(above.heap)
        return waiter


class Work:
    """One piece of long work, and what it has used since its last turn."""

    __slots__ = ("_began", "_has_had_one", "_party", "_turns", "_used")

    def __init__(self, turns: Turns, party: Party) -> None:
        self._turns = turns
        self._party = party
        self._used = 0.0
        self._began = 0.0
        self._has_had_one = False

    def begin(self) -> None:
        """A step of it begins."""
        self._began = self._turns.clock()

    def end(self) -> None:
        """That step is done."""
        self._used += self._turns.clock() - self._began

    async def pause(self) -> None:
        """There is more to do: let others have a turn if this one is over. The first step is done
        without one."""
        if self._used > SLICE or not self._has_had_one:
            self._has_had_one = True
            self.over()
            await self._turns.wait(self._party)

    def over(self) -> None:
        """Nothing is left to do, or something else has to be waited for."""
        self._turns.charge(self._party, self._used)
        self._used = 0.0
