"""Whose long work goes on next: scripted, with a clock of our own."""

from __future__ import annotations

from collections import Counter

import anyio
import pytest
from anyio.lowlevel import checkpoint
from ycore_adapters._turns import SLICE, Party, Turns, Work

pytestmark = pytest.mark.anyio


class Bench:
    """Workers whose steps each take a while, on a clock that only they move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.turns = Turns(lambda: self.now)
        self.done: list[str] = []
        """Who has had a slice, in order."""

    async def work(self, name: str, party: Party, slices: int, takes: float = 1.5 * SLICE) -> None:
        work = Work(self.turns, party)
        for _ in range(slices):
            work.begin()
            self.now += takes
            work.end()
            self.done.append(name)
            await work.pause()
        work.over()


async def test_who_asks_for_less_goes_first() -> None:
    """Sixty of one address get no more than the one of another, nor do those of one room."""
    for one, crowd in (("b", ("a", "r")), (None, ("a", "s")), ("a", ("a", "r"))):
        bench = Bench()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.turns.run)
            async with anyio.create_task_group() as workers:
                for i in range(60):
                    workers.start_soon(bench.work, f"crowd {i}", crowd, 10)
                while len(bench.done) < 100:
                    await checkpoint()
                before = len(bench.done)
                workers.start_soon(bench.work, "one", (one, "t"), 10)
            last = len(bench.done) - 1 - bench.done[::-1].index("one")
            assert last - before < 24
            tasks.cancel_scope.cancel()


async def test_of_one_party_all_take_turns() -> None:
    bench = Bench()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.turns.run)
        async with anyio.create_task_group() as workers:
            for i in range(10):
                workers.start_soon(bench.work, str(i), ("a", "r"), 9)
        assert set(Counter(bench.done[10:60]).values()) == {5}
        tasks.cancel_scope.cancel()


async def test_short_slices_go_on_several_in_a_turn() -> None:
    """A crowd whose work is short does not wait for as many turns of the loop as it has heads."""
    bench = Bench()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.turns.run)
        async with anyio.create_task_group() as workers:
            for i in range(1000):
                workers.start_soon(bench.work, "", ("a", f"{i}"), 3, SLICE / 100)
            turns = 0
            while len(bench.done) < 2990:
                await checkpoint()
                turns += 1
        assert turns < 200
        tasks.cancel_scope.cancel()


async def test_what_was_used_is_forgotten_where_nobody_waits() -> None:
    """There are no more accounts than there are those who wait, about."""
    bench = Bench()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.turns.run)
        tasks.start_soon(bench.work, "always", ("always", "r"), 10_000)
        for i in range(1000):
            bench.turns.charge((str(i), "r"), SLICE)
            if not i % 10:
                await bench.turns.wait((str(i), "r"))
        assert len(bench.turns._all.accounts) < 500
        tasks.cancel_scope.cancel()


async def test_nobody_waits_for_turns_that_never_come() -> None:
    turns = Turns(lambda: 0.0)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(turns.wait, ("a", "r"))
            await checkpoint()
            turns.stop()
            await turns.wait(("a", "r"))
