"""What every store has to do, as tests: one line in the test suite of a store of your own.

    from ycore_adapters.stores.testing import store_tests

    test_my_store = store_tests(lambda directory: MyStore(directory / "rooms.db"))

This needs pytest. Each case runs on asyncio and on trio, in a new directory.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import Any, TypeAlias

import anyio
from anyio.lowlevel import checkpoint

from .interface import (
    HistoryNotKept,
    RoomInUse,
    RoomNotFound,
    Store,
    StoredUpdate,
    StoreUnavailable,
)

__all__ = ["store_tests"]

Open: TypeAlias = Callable[[], Store]
"""Makes a store, to be entered. Made again, it has what the one before has stored."""
Case: TypeAlias = Callable[[Open], Awaitable[None]]

_DEADLINE = 60
"""Seconds a case may take: something is waited for that does not come."""

_EVERY_STORE: list[Case] = []
_PERSISTENT: list[Case] = []
_WITHOUT_HISTORY: list[Case] = []
_WITH_HISTORY: list[Case] = []


def store_tests(
    make: Callable[[Path], Store],
    *,
    persistent: bool = True,
    history: bool = False,
    backends: Sequence[str] = ("asyncio", "trio"),
) -> Callable[..., None]:
    """A test function for pytest, parametrized with all cases.

    Args:
        make: makes a store that keeps its rooms below a directory.
        persistent: whether a new one for the same directory has what the last one stored.
        history: whether it can still tell what a room was before it was compacted.
        backends: the event loops it works on.
    """
    import pytest  # noqa: PLC0415 - whoever does not test stores need not have it

    cases = _EVERY_STORE + (_WITH_HISTORY if history else _WITHOUT_HISTORY)
    if persistent:
        cases = cases + _PERSISTENT

    @pytest.mark.parametrize("backend", backends)
    @pytest.mark.parametrize("case", cases, ids=lambda case: case.__name__)
    def test_store(case: Case, backend: str, tmp_path: Path) -> None:
        anyio.run(_in_time, case, lambda: make(tmp_path), backend=backend)

    return test_store


async def _in_time(case: Case, open_store: Open) -> None:
    with anyio.fail_after(_DEADLINE):
        await case(open_store)


def _case(cases: list[Case]) -> Callable[[Case], Case]:
    def add(case: Case) -> Case:
        cases.append(case)
        return case

    return add


# ---- what the cases speak in


def _at(time: float, *updates: bytes) -> list[StoredUpdate]:
    return [StoredUpdate(update, time) for update in updates]


def _loading(store: Store, room: str) -> AbstractAsyncContextManager[AsyncGenerator[Any, None]]:
    return aclosing(store.load(room))


async def _load(store: Store, room: str, at: float | None = None) -> list[bytes]:
    async with aclosing(store.load(room, at=at)) as updates:
        return [stored.update async for stored in updates]


async def _rooms(store: Store) -> list[str]:
    return sorted([room async for room in store.rooms()])


async def _compact(store: Store, room: str, update: bytes, time: float = 100) -> None:
    async def snapshot() -> StoredUpdate:
        await checkpoint()
        return StoredUpdate(update, time)

    await store.compact(room, snapshot)


async def _raises(error: type[Exception], doing: Awaitable[object]) -> None:
    try:
        await doing
    except error:
        return
    raise AssertionError(f"{error.__name__} was not raised")


# ---- the cases


@_case(_EVERY_STORE)
async def updates_are_loaded_in_the_order_they_were_appended(open_store: Open) -> None:
    async with open_store() as store:
        await store.append("r", _at(1, b"1", b"2"))
        await store.append("other", _at(1, b"0"))
        await store.append("r", _at(2, b"3"))
        assert await _load(store, "r") == [b"1", b"2", b"3"]
        await store.append("r", _at(3, b"", b"4"))
        assert await _load(store, "r") == [b"1", b"2", b"3", b"", b"4"]
        assert await _load(store, "other") == [b"0"]


@_case(_EVERY_STORE)
async def what_is_appended_now_is_there_or_it_says_so(open_store: Open) -> None:
    async with open_store() as store:
        expected = []
        for i in range(5):
            updates = _at(i, f"{i} a".encode(), f"{i} b".encode())
            if not store.append_now("r", updates):
                await store.append("r", updates)
            expected += [update.update for update in updates]
            assert await _load(store, "r") == expected


@_case(_EVERY_STORE)
async def times_and_metadata_are_kept(open_store: Open) -> None:
    written = [
        StoredUpdate(b"1", 0.0),
        StoredUpdate(b"2", 1_795_401_736.123, b"ada"),
        StoredUpdate(b"", 1_795_401_736.124, bytes(range(256))),
        StoredUpdate(b"4", 1_795_401_736.5, b""),
    ]
    async with open_store() as store:
        await store.append("r", written)
        async with _loading(store, "r") as updates:
            assert [update async for update in updates] == written


@_case(_EVERY_STORE)
async def an_unknown_room_is_not_found(open_store: Open) -> None:
    async with open_store() as store:
        await _raises(RoomNotFound, _load(store, "r"))
        await _raises(RoomNotFound, _load(store, "r", at=1))
        await _raises(RoomNotFound, store.delete("r"))
        await _raises(RoomNotFound, _compact(store, "r", b"1"))
        await store.release("r")
        assert await _rooms(store) == []
        assert store.problems() == {}


@_case(_EVERY_STORE)
async def compacting_puts_one_update_in_the_place_of_all(open_store: Open) -> None:
    async with open_store() as store:
        await store.append("r", _at(1, b"1", b"2"))
        await store.append("other", _at(1, b"1"))
        await _compact(store, "r", b"both")
        assert await _load(store, "r") == [b"both"]
        await store.append("r", _at(200, b"3"))
        assert await _load(store, "r") == [b"both", b"3"]
        await store.release("r")
        await _compact(store, "r", b"all three")
        assert await _load(store, "r") == [b"all three"]
        assert await _load(store, "other") == [b"1"]
        assert await _rooms(store) == ["other", "r"]


@_case(_EVERY_STORE)
async def what_is_appended_during_a_compaction_stays(open_store: Open) -> None:
    async with open_store() as store:
        await store.append("r", _at(1, b"1"))

        async def snapshot() -> StoredUpdate:
            await store.append("r", _at(2, b"2"))
            assert await _load(store, "r") == [b"1", b"2"]
            await store.append("other", _at(2, b"0"))
            begun.set()
            return StoredUpdate(b"snapshot", 3)

        async def go_on_appending() -> None:
            for update in more:
                await store.append("r", _at(4, update))
                await checkpoint()

        begun = anyio.Event()
        more = [b"%d" % i * 1000 for i in range(100)]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.compact, "r", snapshot)
            await begun.wait()
            tasks.start_soon(go_on_appending)
        assert await _load(store, "r") == [b"snapshot", b"2", *more]
        await store.append("r", _at(5, b"last"))
        assert (await _load(store, "r"))[-1] == b"last"


@_case(_EVERY_STORE)
async def a_compaction_without_a_snapshot_changes_nothing(open_store: Open) -> None:
    async def snapshot() -> StoredUpdate:
        raise LookupError

    async with open_store() as store:
        await store.append("r", _at(1, b"1"))
        await _raises(LookupError, store.compact("r", snapshot))
        assert await _load(store, "r") == [b"1"]
        await store.append("r", _at(1, b"2"))
        await _compact(store, "r", b"12")
        assert await _load(store, "r") == [b"12"]


@_case(_EVERY_STORE)
async def a_deleted_room_is_forgotten(open_store: Open) -> None:
    async with open_store() as store:
        await store.append("r", _at(1, b"1"))
        await _compact(store, "r", b"1")
        await store.append("stays", _at(1, b"2"))
        await store.release("r")
        await store.delete("r")
        await _raises(RoomNotFound, _load(store, "r"))
        await _raises(RoomNotFound, _load(store, "r", at=1000))
        assert await _rooms(store) == ["stays"]
        await store.append("r", _at(2, b"again"))
        assert await _load(store, "r") == [b"again"]


@_case(_EVERY_STORE)
async def a_room_in_use_is_not_deleted(open_store: Open) -> None:
    """Whoever has it open would go on, and what they store would build on nothing."""
    async with open_store() as store:
        await store.append("r", _at(1, b"1"))
        await _raises(RoomInUse, store.delete("r"))
        await store.append("r", _at(2, b"2"))
        await store.release("r")
        assert await _load(store, "r") == [b"1", b"2"]
        await _raises(RoomInUse, store.delete("r"))
        assert await _load(store, "r") == [b"1", b"2"]
        await store.release("r")
        await store.delete("r")
        assert await _rooms(store) == []
        if not store.append_now("r", _at(3, b"3")):
            await store.append("r", _at(3, b"3"))
        await _raises(RoomInUse, store.delete("r"))
        assert await _load(store, "r") == [b"3"]


_NAMES = [
    *("", ".", "..", "/", "a/b", "a%2Fb", "a/b c?x=1", "ROOM", "room", "CON", ".lock", "~", "'"),
    *("räume", "ra\u0308ume", "😀", "\ud800", "nul\x00l", "x" * 300, "x" * 301, "é" * 2000),
]


@_case(_EVERY_STORE)
async def every_name_is_a_room_of_its_own(open_store: Open) -> None:
    async with open_store() as store:
        for name in _NAMES:
            await store.append(name, _at(1, name.encode("utf-8", "surrogatepass")))
            await store.release(name)
        for name in _NAMES:
            assert await _load(store, name) == [name.encode("utf-8", "surrogatepass")]
        assert await _rooms(store) == sorted(_NAMES)


@_case(_EVERY_STORE)
async def a_released_room_goes_on_where_it_was(open_store: Open) -> None:
    async with open_store() as store:
        for update in (b"1", b"2", b"3"):
            await store.append("r", _at(1, update))
            await store.release("r")
            await store.release("r")
        assert await _load(store, "r") == [b"1", b"2", b"3"]


@_case(_EVERY_STORE)
async def large_and_small_updates_keep_their_order(open_store: Open) -> None:
    large = os.urandom(700_000)
    async with open_store() as store:
        for update in (b"1", large, b"2"):
            await store.append("r", _at(1, update))
        assert await _load(store, "r") == [b"1", large, b"2"]


@_case(_EVERY_STORE)
async def a_load_abandoned_halfway_loses_nothing(open_store: Open) -> None:
    updates = [bytes([i]) * 700_000 for i in range(4)]
    async with open_store() as store:
        await store.append("r", _at(1, *updates))
        async with _loading(store, "r") as loading:
            async for stored in loading:
                assert stored.update == updates[0]
                break
        await store.append("r", _at(2, b"more"))
        assert await _load(store, "r") == [*updates, b"more"]


@_case(_EVERY_STORE)
async def rooms_do_not_disturb_each_other(open_store: Open) -> None:
    async def write(room: str) -> None:
        for i in range(20):
            await store.append(room, _at(i, f"{room} {i}".encode()))
            if i == 10:
                await _compact(store, room, room.encode())
            await checkpoint()
        assert await _load(store, room) == [
            room.encode(),
            *(f"{room} {i}".encode() for i in range(11, 20)),
        ]

    async with open_store() as store, anyio.create_task_group() as tasks:
        for i in range(10):
            tasks.start_soon(write, f"room {i}")


@_case(_EVERY_STORE)
async def an_append_that_is_cancelled_is_whole_or_not_there(open_store: Open) -> None:
    batch = [bytes([i]) * 50_000 for i in range(10)]
    async with open_store() as store:
        for cancel_at in range(4):

            async def cancel(scope: anyio.CancelScope, after: int = cancel_at) -> None:
                for _ in range(after):
                    await checkpoint()
                scope.cancel()

            room = f"room {cancel_at}"
            await store.append(room, _at(1, b"first"))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cancel, tasks.cancel_scope)
                await store.append(room, _at(1, *batch))
            loaded = await _load(store, room)
            assert loaded in ([b"first"], [b"first", *batch])
            await store.append(room, _at(2, b"last"))
            assert await _load(store, room) == [*loaded, b"last"]


@_case(_EVERY_STORE)
async def a_room_can_be_read_as_it_was(open_store: Open) -> None:
    async with open_store() as store:
        await store.append("r", _at(10, b"1", b"2"))
        await store.append("r", _at(20.125, b"3"))
        await _raises(RoomNotFound, _load(store, "r", at=9.999))
        assert await _load(store, "r", at=10) == [b"1", b"2"]
        assert await _load(store, "r", at=20.124) == [b"1", b"2"]
        assert await _load(store, "r", at=20.125) == [b"1", b"2", b"3"]
        assert await _load(store, "r") == [b"1", b"2", b"3"]
        await _compact(store, "r", b"123", time=30)
        await store.append("r", _at(40, b"4"))
        assert b"123" in await _load(store, "r", at=30)
        assert (await _load(store, "r", at=40))[-2:] == [b"123", b"4"]


@_case(_EVERY_STORE)
async def a_clock_that_was_set_back_leaves_no_gap(open_store: Open) -> None:
    """What a room was is always all that it was once, not the edits that happen to bear a time."""
    async with open_store() as store:
        for time in (10, 20, 1000, 1001, 30, 40.5, 1002):
            await store.append("r", _at(time, b"%d" % time))
        await _raises(RoomNotFound, _load(store, "r", at=9))
        for at in (20, 30, 40.5, 999.999):
            assert await _load(store, "r", at=at) == [b"10", b"20"]
        assert await _load(store, "r", at=1000) == [b"10", b"20", b"1000"]
        assert await _load(store, "r", at=1001) == [b"10", b"20", b"1000", b"1001", b"30", b"40"]
        assert await _load(store, "r", at=1002) == await _load(store, "r")


@_case(_WITHOUT_HISTORY)
async def what_was_before_a_compaction_is_not_made_up(open_store: Open) -> None:
    async with open_store() as store:
        await store.append("r", _at(10, b"1"))
        await _compact(store, "r", b"1", time=30)
        await _raises(HistoryNotKept, _load(store, "r", at=20))


@_case(_WITH_HISTORY)
async def history_outlives_compaction(open_store: Open) -> None:
    async with open_store() as store:
        for time in range(10, 100, 10):
            await store.append("r", [StoredUpdate(b"%d" % time, time, b"who")])
            await _compact(store, "r", b"up to %d" % time, time=time + 5)
        assert await _load(store, "r") == [b"up to 90"]
        await _raises(RoomNotFound, _load(store, "r", at=9))
        for time in range(10, 100, 10):
            loaded = await _load(store, "r", at=time)
            assert loaded[-1] == b"%d" % time
            assert {b"%d" % before for before in range(10, time, 10)} <= set(loaded)
            assert b"%d" % (time + 10) not in loaded
        await store.release("r")
        await store.delete("r")
        await _raises(RoomNotFound, _load(store, "r", at=50))
        await store.append("r", _at(200, b"new"))
        await _raises(RoomNotFound, _load(store, "r", at=50))


@_case(_WITH_HISTORY)
async def a_clock_that_was_set_back_leaves_no_gap_in_a_compacted_room(open_store: Open) -> None:
    async with open_store() as store:
        for time in (10, 1000, 20, 30, 2000):
            await store.append("r", _at(time, b"%d" % time))
            await _compact(store, "r", b"up to %d" % time, time=time + 5)
        for at in (15, 26, 999):
            assert set(await _load(store, "r", at=at)) == {b"10", b"up to 10"}
        edits = {b"10", b"1000", b"20", b"30"}
        assert {u for u in await _load(store, "r", at=1999) if b"up" not in u} == edits
        assert b"up to 2000" in await _load(store, "r", at=2005)


@_case(_PERSISTENT)
async def a_new_opening_finds_everything(open_store: Open) -> None:
    for i in range(4):
        async with open_store() as store:
            if i:
                assert await _load(store, "r") == [b"update"] * i
                assert await _load(store, "compacted") == [b"snapshot", *[b"update"] * (i - 1)]
            await store.append("r", _at(1, b"update"))
            await store.append("compacted", _at(1, b"update"))
            if not i:
                await _compact(store, "compacted", b"snapshot")


@_case(_PERSISTENT)
async def a_store_that_was_closed_is_unavailable(open_store: Open) -> None:
    """What it kept its rooms in may be another process's by now."""
    async with open_store() as store:
        await store.append("r", _at(1, b"1"))
    await _raises(StoreUnavailable, store.append("r", _at(1, b"2")))
    await _raises(StoreUnavailable, _load(store, "r"))
    await _raises(StoreUnavailable, store.delete("r"))
    await _raises(StoreUnavailable, _rooms(store))


@_case(_PERSISTENT)
async def whatever_is_done_in_whatever_order_is_found_again(open_store: Open) -> None:
    rng = random.Random(7)
    model: dict[str, list[bytes]] = {}
    for _ in range(8):
        async with open_store() as store:
            for _ in range(25):
                room = rng.choice(["a", "b", "c"])
                doing = rng.random()
                if doing < 0.6:
                    sizes = rng.choices((0, 1, 30, 3000), k=rng.randint(1, 3))
                    updates = [rng.randbytes(size) for size in sizes]
                    await store.append(room, _at(1, *updates))
                    model.setdefault(room, []).extend(updates)
                elif doing < 0.75 and room in model:
                    await _compact(store, room, b"snapshot of %d" % len(model[room]))
                    model[room] = [b"snapshot of %d" % len(model[room])]
                elif doing < 0.85:
                    await store.release(room)
                elif doing < 0.9 and room in model:
                    await store.release(room)
                    await store.delete(room)
                    del model[room]
            for room, updates in model.items():
                assert await _load(store, room) == updates
            assert await _rooms(store) == sorted(model)
