"""The tests for stores find what is wrong with a store."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from functools import partial

import anyio
import pytest
from ycore_adapters.stores import MemoryStore, RoomNotFound, Store, StoredUpdate
from ycore_adapters.stores.testing import store_tests

Snapshot = Callable[[], Awaitable[StoredUpdate]]


class LosesWhatComesDuringACompaction(MemoryStore):
    async def compact(self, room: str, snapshot: Snapshot) -> None:
        made = await snapshot()
        self._room(room).updates[:] = [made]


class CompactsNothing(MemoryStore):
    async def compact(self, room: str, snapshot: Snapshot) -> None:
        self._room(room)
        await snapshot()


class TakesAnythingForNew(MemoryStore):
    async def load(
        self, room: str, *, at: float | None = None
    ) -> AsyncGenerator[StoredUpdate, None]:
        try:
            async for update in super().load(room, at=at):
                yield update
        except RoomNotFound:
            return


class ForgetsMetadata(MemoryStore):
    async def append(self, room: str, updates: Sequence[StoredUpdate]) -> None:
        await super().append(room, [StoredUpdate(u.update, u.time) for u in updates])


class RoundsTimes(MemoryStore):
    async def append(self, room: str, updates: Sequence[StoredUpdate]) -> None:
        rounded = [StoredUpdate(u.update, round(u.time), u.metadata) for u in updates]
        await super().append(room, rounded)


class MixesUpCase(MemoryStore):
    async def append(self, room: str, updates: Sequence[StoredUpdate]) -> None:
        await super().append(room.lower(), updates)


class MakesUpThePast(MemoryStore):
    async def load(
        self, room: str, *, at: float | None = None
    ) -> AsyncGenerator[StoredUpdate, None]:
        async for update in super().load(room):
            yield update


class KeepsWhatWasDeleted(MemoryStore):
    async def delete(self, room: str) -> None:
        self._room(room)


class DeletesWhatIsInUse(MemoryStore):
    async def delete(self, room: str) -> None:
        await self.release(room)
        await super().delete(room)


class TakesEachTimeByItself(MemoryStore):
    async def load(
        self, room: str, *, at: float | None = None
    ) -> AsyncGenerator[StoredUpdate, None]:
        if at is None or at >= 900:
            async for update in super().load(room, at=at):
                yield update
            return
        for update in [update for update in self._room(room).updates if update.time <= at]:
            yield update


class ListsNothing(MemoryStore):
    async def rooms(self) -> AsyncIterator[str]:
        for room in ():
            yield room


class StoresTheFirstOnly(MemoryStore):
    async def append(self, room: str, updates: Sequence[StoredUpdate]) -> None:
        await super().append(room, updates[:1])


class SaysThatItDidWhatItDidNot(MemoryStore):
    async def append(self, room: str, updates: Sequence[StoredUpdate]) -> None:
        super().append_now(room, updates)

    def append_now(self, room: str, updates: Sequence[StoredUpdate]) -> bool:
        return True


class DoesWhatItSaysItDidNot(MemoryStore):
    async def append(self, room: str, updates: Sequence[StoredUpdate]) -> None:
        super().append_now(room, updates)

    def append_now(self, room: str, updates: Sequence[StoredUpdate]) -> bool:
        super().append_now(room, updates)
        return False


BROKEN: list[type[Store]] = [
    LosesWhatComesDuringACompaction,
    CompactsNothing,
    TakesAnythingForNew,
    ForgetsMetadata,
    RoundsTimes,
    MixesUpCase,
    MakesUpThePast,
    KeepsWhatWasDeleted,
    DeletesWhatIsInUse,
    TakesEachTimeByItself,
    ListsNothing,
    StoresTheFirstOnly,
    SaysThatItDidWhatItDidNot,
    DoesWhatItSaysItDidNot,
]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_store_is_found_out(broken: type[Store]) -> None:
    test = store_tests(lambda _: broken(), persistent=False)
    marks = {mark.args[0]: mark.args[1] for mark in test.pytestmark}  # type: ignore[attr-defined]
    failed = 0
    for case in marks["case"]:
        try:
            anyio.run(partial(case, broken))
        except Exception:
            failed += 1
    assert 0 < failed < len(marks["case"])


def test_a_store_that_does_not_persist_is_found_out() -> None:
    test = store_tests(lambda _: MemoryStore(), persistent=True)
    marks = {mark.args[0]: mark.args[1] for mark in test.pytestmark}  # type: ignore[attr-defined]
    [case] = [c for c in marks["case"] if c.__name__ == "a_new_opening_finds_everything"]
    with pytest.raises(RoomNotFound):
        anyio.run(partial(case, MemoryStore))
