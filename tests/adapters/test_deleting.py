"""A room that is deleted: nobody goes on with it, and nothing of it is stored afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint
from scripted import ScriptedStore
from test_driver import Client, Clock, clock, settle
from ycore_adapters.driver import DocumentClosed, Driver
from ycore_adapters.hooks import Hooks
from ycore_adapters.stores import (
    FileStore,
    MemoryStore,
    RoomInUse,
    RoomNotFound,
    SQLiteStore,
    Store,
    StoreUnavailable,
)
from ycore_adapters.stores.tools import read
from yupdates import ASK_ALL, EMPTY_ROOM, edit, insert

from ycore import CloseCode, LocalProtocolError, Member, Room, Settings
from ycore.doc import Doc

pytestmark = pytest.mark.anyio

__all__ = ["clock"]  # the fixture

GONE = (CloseCode.DELETED, "the document was deleted")
LATER = (CloseCode.TRY_AGAIN_LATER, "the document is being deleted, try again later")


@pytest.fixture(params=["memory", "files", "sqlite"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    memory = MemoryStore()
    return {
        "memory": lambda: memory,
        "files": lambda: FileStore(tmp_path / "data"),
        "sqlite": lambda: SQLiteStore(tmp_path / "rooms.db"),
    }[request.param]


async def test_what_is_typed_after_it_builds_on_nothing_that_was_deleted(
    open_store: Callable[[], Store],
) -> None:
    """Though the room was still in memory, with nobody in it."""
    async with open_store() as store:
        async with Driver(store) as driver:
            a = Client(driver)
            await a.say(ASK_ALL, edit(1, 0), edit(1, 1))
            await driver.stored("r")
            driver.leave(a.member)
            with pytest.raises(RoomInUse, match=r"Driver\.delete"):
                await store.delete("r")
            await driver.delete("r")
            assert [room async for room in store.rooms()] == []
            b = Client(driver)
            await b.say(ASK_ALL)
            await driver.stored("r")
            assert b.document() == b"\0\0"
            await b.say(edit(2, 0))
            await driver.stored("r")
        await store.release("r")
    async with open_store() as store:
        contents = await read(store, "r")
        assert contents.document.encode() == insert(2, 0)
        assert Doc.view(contents.document).held_back == 0


async def test_members_are_sent_away_once_what_they_sent_was_stored() -> None:
    store = ScriptedStore(r=[insert(9, 0)])
    async with Driver(store) as driver, anyio.create_task_group() as tasks:
        a, b, other = Client(driver), Client(driver), Client(driver, "other")
        for client in (a, b, other):
            await client.sync()
        store.hold("append")
        await a.say(edit(1, 0))
        await store.called("append")
        tasks.start_soon(driver.delete, "r")
        await settle()
        assert (a.closed, b.closed) == (None, None)
        assert "r" not in driver.hub.rooms
        store.let_go("append")
        await settle()
        assert (a.closed, b.closed, other.closed) == (GONE, GONE, None)
        assert store.calls[-3:] == [("append", "r"), ("release", "r"), ("delete", "r")]
        assert "r" not in store.rooms_kept
        await a.say(edit(1, 1))  # was on its way
        await settle()
        assert "r" not in store.rooms_kept


@pytest.mark.parametrize("held", ["release", "delete"])
async def test_who_comes_meanwhile_is_sent_away_and_finds_a_new_document_after(held: str) -> None:
    store = ScriptedStore(r=[insert(9, 0)])
    async with Driver(store) as driver, anyio.create_task_group() as tasks:
        await Client(driver).sync()
        store.hold(held)
        tasks.start_soon(driver.delete, "r")
        await store.called(held)
        early = Client(driver)
        await early.say(ASK_ALL, edit(1, 0))
        assert (early.closed, early.sent) == (LATER, [])
        with pytest.raises(DocumentClosed, match="being deleted"):
            async with driver.document("r"):
                raise AssertionError("it is not to be had")
        store.let_go(held)
        await settle()
        assert store.rooms_kept == {}
        late = Client(driver)
        await settle()
        assert late.sent == [EMPTY_ROOM]
        assert late.closed is None


async def test_a_compaction_under_way_is_waited_for() -> None:
    store = ScriptedStore()
    async with Driver(store) as driver, anyio.create_task_group() as tasks:
        a = Client(driver)
        await a.sync()
        store.has_outgrown = True
        store.hold("compacted")
        await a.say(edit(1, 0))
        await store.called("compacted")
        tasks.start_soon(driver.delete, "r")
        await settle()
        assert a.closed == GONE
        assert ("delete", "r") not in store.calls
        store.let_go("compacted")
        await settle()
        assert store.calls[-1] == ("delete", "r")
        assert store.rooms_kept == {}


@pytest.mark.parametrize("held", ["load", "append"])
async def test_a_room_that_is_being_opened_is_waited_for(held: str) -> None:
    """It may be about to store what the application fills it with."""

    def seed(name: str, doc: Doc) -> None:
        doc.get_text("t").insert(0, name)

    store = ScriptedStore()
    async with Driver(store, hooks=Hooks(seed=seed)) as driver, anyio.create_task_group() as tasks:
        store.hold(held)
        a = Client(driver)
        await store.called(held)
        tasks.start_soon(driver.delete, "r")
        await settle()
        assert ("delete", "r") not in store.calls
        store.rooms_kept.setdefault("r", [])
        store.let_go(held)
        await settle()
        assert a.closed == GONE
        assert store.calls[-1] == ("delete", "r")
        assert store.rooms_kept == {}


async def test_a_room_that_is_being_unloaded_is_waited_for(clock: Clock) -> None:
    store = ScriptedStore(r=[insert(9, 0)])
    async with (
        Driver(store, settings=Settings(idle_timeout=5), clock=clock) as driver,
        anyio.create_task_group() as tasks,
    ):
        a = Client(driver)
        await a.sync()
        driver.leave(a.member)
        store.hold("release")
        await clock.advance(6)
        await store.called("release")
        tasks.start_soon(driver.delete, "r")
        await settle()
        assert store.calls.count(("release", "r")) == 1
        store.let_go("release")
        await settle()
        assert store.calls[-2:] == [("release", "r"), ("delete", "r")]
        assert store.rooms_kept == {}


async def test_it_goes_on_when_nobody_waits_for_it() -> None:
    store = ScriptedStore(r=[insert(9, 0)])
    async with Driver(store) as driver:
        await Client(driver).sync()
        async with anyio.create_task_group() as tasks:
            store.hold("release")
            tasks.start_soon(driver.delete, "r")
            await store.called("release")
            tasks.cancel_scope.cancel()
        assert store.rooms_kept != {}
        store.let_go("release")
        await settle()
        assert store.rooms_kept == {}
        assert driver._deleting == {}


async def test_when_the_store_fails_nothing_is_deleted_and_the_room_goes_on() -> None:
    store = ScriptedStore(r=[insert(9, 0)])
    async with Driver(store) as driver:
        for failing in ("release", "delete"):
            a = Client(driver)
            await a.sync()
            store.fails[failing] = StoreUnavailable("the disk is full")
            with pytest.raises(StoreUnavailable, match="full"):
                await driver.delete("r")
            store.fails.clear()
            assert a.closed == GONE
        again = Client(driver)
        await again.say(ASK_ALL)
        await settle()
        assert again.document() == insert(9, 0)
        await driver.delete("r")
        assert store.rooms_kept == {}


async def test_it_may_be_asked_for_twice_and_for_what_is_not_there() -> None:
    store = ScriptedStore(r=[insert(9, 0)])
    outcome: list[str] = []

    async def delete() -> None:
        try:
            await driver.delete("r")
        except RoomNotFound:
            outcome.append("not found")
        else:
            outcome.append("deleted")

    async with Driver(store) as driver:
        await Client(driver).sync()
        store.hold("delete")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(delete)
            tasks.start_soon(delete)
            await store.called("delete")
            await settle()
            assert store.calls.count(("delete", "r")) == 1
            store.let_go("delete")
        assert outcome == ["deleted", "not found"]
        with pytest.raises(RoomNotFound):
            await driver.delete("nowhere")


async def test_a_document_of_this_process_ends() -> None:
    store = ScriptedStore()
    async with Driver(store) as driver:
        with pytest.raises(DocumentClosed, match="was deleted") as closed:
            async with driver.document("r") as doc:
                doc.get_text("t").insert(0, "a")
                await driver.stored("r")
                await driver.delete("r")
                await checkpoint()
                raise AssertionError("it is deleted")
        assert closed.value.code == CloseCode.DELETED
        assert store.rooms_kept == {}


async def test_a_hook_may_ask_for_it() -> None:
    async def on_update(room: Room, update: bytes, author: Member) -> None:
        await driver.delete(room.name)

    store = ScriptedStore()
    async with Driver(store, hooks=Hooks(on_update=on_update)) as driver:
        a = Client(driver)
        await a.say(ASK_ALL, edit(1, 0))
        await settle()
        assert a.closed == GONE
        assert store.rooms_kept == {}


async def test_not_when_the_server_goes_down() -> None:
    store = ScriptedStore(r=[insert(9, 0)])
    async with Driver(store) as driver:
        await driver.drain()
        with pytest.raises(LocalProtocolError, match="drains"):
            await driver.delete("r")
    assert store.rooms_kept == {"r": [insert(9, 0)]}


async def test_a_driver_that_ends_leaves_nobody_waiting() -> None:
    store = ScriptedStore()

    async def delete(driver: Driver) -> None:
        with pytest.raises(LocalProtocolError, match=r"ended|drains") as told:
            await driver.delete("r")
        refused.append(told.value)

    refused: list[LocalProtocolError] = []
    async with anyio.create_task_group() as tasks:
        async with Driver(store) as driver:
            a = Client(driver)
            await a.sync()
            store.has_outgrown = True
            store.hold("compact")
            await a.say(edit(1, 0))
            await store.called("compact")
            tasks.start_soon(delete, driver)
            await settle()
        await settle()
        assert len(refused) == 1
        tasks.start_soon(delete, driver)
        await settle()
        assert len(refused) == 2
    assert store.rooms_kept == {"r": [insert(1, 0)]}
