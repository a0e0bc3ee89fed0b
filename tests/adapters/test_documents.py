"""Documents on the server, and hooks, when things go wrong around them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
import sniffio
from anyio.abc import TaskStatus
from scripted import ScriptedStore
from test_driver import Client, settle
from ycore_adapters.driver import DocumentClosed, Driver, DriverSettings
from ycore_adapters.hooks import Hooks, Refused, Request
from ycore_adapters.stores import MemoryStore
from yupdates import edit

from ycore import AwarenessEntry, Room, Settings
from ycore.awareness import encode_awareness
from ycore.doc import Doc
from ycore.messages import AwarenessUpdate, Custom

pytestmark = pytest.mark.anyio


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - nothing says when
            await anyio.sleep(0.005)


async def follows(doc: Doc, room: Room) -> None:
    await until(lambda: doc.encode() == room.store.encode())


async def test_a_document_that_is_larger_than_an_outbox_goes_on() -> None:
    large = Doc(7)
    large.get_text("x").insert(0, "x" * 5000)
    limits = DriverSettings(max_outbox_bytes=1000)
    async with (
        Driver(ScriptedStore(r=[large.encode()]), limits=limits) as driver,
        driver.document("r") as doc,
    ):
        a = Client(driver)
        await a.say(edit(1, 0))
        await follows(doc, a.member.room)
        assert "t" in doc.to_json()


async def test_what_comes_during_a_transaction_is_taken_in_after_it() -> None:
    async with Driver(MemoryStore()) as driver:
        a = Client(driver)
        await a.sync()
        async with driver.document("r") as doc:
            with doc.transaction():
                doc.get_map("m")["a"] = 1
                await a.say(edit(1, 0))
                await anyio.sleep(0.03)
                assert "t" not in doc.to_json()
            await follows(doc, a.member.room)
            assert doc.to_json()["m"] == {"a": 1}
            assert not driver.hook_errors
            with doc.transaction():
                await a.say(edit(1, 1))
                await settle()
        await settle()


@pytest.mark.parametrize("drained", [True, False])
async def test_a_document_ends_with_the_driver(drained: bool) -> None:
    store = ScriptedStore()
    outcome: list[object] = []

    async def use(driver: Driver, *, task_status: TaskStatus[None]) -> None:
        with pytest.raises(DocumentClosed, match="shutting down") as closed:
            async with driver.document("r") as doc:
                doc.get_map("m")["a"] = 1
                task_status.started()
                try:
                    await anyio.sleep_forever()
                finally:
                    with pytest.raises(DocumentClosed):
                        doc.get_map("m")["b"] = 1
        outcome.append(closed.value.code)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks, Driver(store) as driver:
            store.hold("append")
            await tasks.start(use, driver)
            if drained:
                with anyio.move_on_after(0.05):
                    await driver.drain()
    assert outcome == [1001]


@pytest.mark.parametrize("hook", ["authorize", "seed", "on_update", "before_unload"])
async def test_a_hook_that_waited_for_what_was_cancelled_ends_nothing(hook: str) -> None:
    if sniffio.current_async_library() != "asyncio":
        pytest.skip("trio has no such exception")

    async def bad(*args: object) -> Any:
        task = asyncio.ensure_future(asyncio.sleep(10))
        task.cancel()
        await task

    hooks: Any = {hook: bad}
    clock = Clock()
    settings = Settings(idle_timeout=1)
    async with Driver(
        MemoryStore(), hooks=Hooks(**hooks), clock=clock, settings=settings
    ) as driver:
        access = await driver.authorize(Request("r", "/r"))
        assert isinstance(access, Refused) == (hook == "authorize")
        a = Client(driver)
        await a.say(edit(1, 0))
        await settle()
        driver.leave(a.member)
        clock.now += 10
        driver._do_what_is_due()
        await settle()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(driver, "hooks", Hooks())
            assert await Client(driver, "another").sync() is None
        assert driver.hook_errors[hook] >= 1


async def unloading(hooks: Hooks, then: Callable[[Driver], Awaitable[None]]) -> None:
    clock = Clock()
    settings = Settings(idle_timeout=1)
    async with Driver(MemoryStore(), hooks=hooks, clock=clock, settings=settings) as driver:
        a = Client(driver)
        await a.sync()
        await a.say(edit(1, 0))
        await settle()
        driver.leave(a.member)
        clock.now += 10
        driver._do_what_is_due()
        await settle()
        await then(driver)


@pytest.mark.parametrize("hook", ["before_unload", "on_update"])
async def test_a_hook_that_never_returns_keeps_nobody_out(hook: str) -> None:
    async def never(*args: object) -> None:
        await anyio.sleep_forever()

    async def come_back(driver: Driver) -> None:
        b = Client(driver)
        await b.sync()
        await settle()
        assert b.member.synced
        before = len(b.sent)
        c = Client(driver)
        await c.sync()
        await c.say(edit(2, 0))
        await driver.stored("r")
        await settle()
        assert len(b.sent) == before + 1

    hooks: Any = {hook: never}
    await unloading(Hooks(**hooks), come_back)


async def test_before_a_room_is_let_go_its_document_may_be_edited() -> None:
    edited: list[str] = []

    async def before_unload(room: Room) -> None:
        if not edited:
            async with driver.document(room.name) as doc:
                doc.get_map("m")["unloaded"] = True
            edited.append(room.name)

    clock = Clock()
    async with Driver(
        MemoryStore(),
        hooks=Hooks(before_unload=before_unload),
        clock=clock,
        settings=Settings(idle_timeout=1),
    ) as driver:
        a = Client(driver)
        await a.sync()
        await a.say(edit(1, 0))
        driver.leave(a.member)
        clock.now += 10
        driver._do_what_is_due()
        await until(lambda: edited)
        await settle()
        assert "r" in driver.hub.rooms
        clock.now += 10
        driver._do_what_is_due()
        await settle()
        assert "r" not in driver.hub.rooms


async def test_a_hook_may_open_the_document_it_is_told_of_however_far_behind_it_is() -> None:
    seen: list[object] = []

    async def on_update(room: Room, update: bytes, member: object) -> None:
        async with driver.document(room.name) as doc:
            seen.append(doc.to_json())

    limits = DriverSettings(max_backlog_bytes=1)
    async with Driver(MemoryStore(), hooks=Hooks(on_update=on_update), limits=limits) as driver:
        a = Client(driver)
        await a.sync()
        with anyio.fail_after(5):
            await a.say(edit(1, 0))
        await until(lambda: seen)


@pytest.mark.parametrize("what", ["custom", "awareness"])
async def test_small_calls_of_a_slow_hook_are_bounded_too(what: str) -> None:
    async def never(*args: object) -> None:
        await anyio.sleep_forever()

    async with Driver(
        MemoryStore(),
        hooks=Hooks(on_custom=never, on_awareness=never),
        limits=DriverSettings(max_backlog_bytes=10_000),
        settings=Settings(custom_types=frozenset({100})),
    ) as driver:
        a = Client(driver)
        await a.sync()
        taken = 0
        with anyio.move_on_after(1):
            for clock in range(1, 1000):
                frame = Custom(100, b"").encode()
                if what == "awareness":
                    entry = AwarenessEntry(1, clock, "{}")
                    frame = AwarenessUpdate(encode_awareness([entry])).encode()
                await a.say(frame)
                taken += 1
        assert 0 < taken < 100
