"""The driver: nothing is shown that is not stored, and whatever fails costs one room at most."""

from __future__ import annotations

import errno
import gc
import logging
import os
import resource
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest
from anyio.lowlevel import checkpoint
from build import gc as collected
from build import update
from scripted import ScriptedStore
from ycore_adapters.connection import without
from ycore_adapters.driver import Connection, Driver, DriverSettings
from ycore_adapters.hooks import Access, Hooks, Refused, Request
from ycore_adapters.stores import (
    FileStore,
    MemoryStore,
    RoomCorrupt,
    SQLiteStore,
    Store,
    StoredUpdate,
    StoreUnavailable,
)
from yupdates import ASK_ALL, EMPTY_ROOM, NOTHING, edit, here, insert

from ycore import CloseCode, CustomMessage, Member, Room, Settings, State, StructStore
from ycore.effects import EffectSteps
from ycore.messages import (
    AwarenessUpdate,
    Message,
    PermissionDenied,
    SyncStep1,
    SyncStep2,
    Update,
    decode,
)
from ycore.steps import Steps
from ycore.updates import encode_state_vector

pytestmark = pytest.mark.anyio

NO_UPDATE = b"\x00\x00"
KEEPALIVE = AwarenessUpdate(b"\x00").encode()
FAILURES = [
    StoreUnavailable("the disk is full"),
    RuntimeError("a bug in the store"),
    OSError(5, "Input/output error"),
]
IMPATIENT = DriverSettings(store_patience=0)


class Client(Connection):
    """A member's connection, which records what it gets."""

    def __init__(self, driver: Driver, room: str = "r", *, read_only: bool = False) -> None:
        self.driver = driver
        self.sent: list[bytes] = []
        self.bursts: list[tuple[bytes, ...]] = []
        """What it was sent in one go."""
        self.closed: tuple[CloseCode, str] | None = None
        self.flushes = self.probes = 0
        self._dirty = False
        self.full = False
        """Whether its socket takes nothing at the moment."""
        self.member: Member = driver.join(room, self, read_only=read_only)

    def send(self, frames: tuple[bytes, ...], own: Sequence[int] = ()) -> None:
        assert self.closed is None
        frames = without(frames, own)
        self.sent += frames
        self.bursts.append(frames)
        self.waiting += sum(map(len, frames))
        if not self._dirty:
            self._dirty = True
            self.driver.flush_soon(self)

    def close(self, code: CloseCode, reason: str) -> None:
        assert self.closed is None
        self.closed = (code, reason)

    def probe(self) -> None:
        self.probes += 1

    def flush(self) -> None:
        self.flushes += 1
        self._dirty = False
        if not self.full:
            self.waiting = 0
            self.driver.drained(self.member)

    def flush_all(self) -> None:
        """Its socket takes what waits, and then nothing more."""
        self.full = False
        self.flush()
        self.full = True

    # -- what a client does

    async def say(self, *frames: bytes) -> None:
        for frame in frames:
            with anyio.fail_after(10):
                await self.driver.receive(self.member, frame)

    async def sync(self) -> None:
        """Get level with the server, and forget that."""
        await self.say(ASK_ALL, NOTHING)
        await settle()
        self.sent.clear()

    def heard(self) -> list[Message]:
        return [message for frame in self.sent for message in decode(frame)]

    def document(self) -> bytes:
        """All the updates it got, in one."""
        store = StructStore()
        for message in self.heard():
            if isinstance(message, SyncStep2 | Update):
                store.add(message.update)
        return store.encode()


def merged(*updates: bytes) -> bytes:
    store = StructStore()
    for one in updates:
        store.add(one)
    return store.encode()


async def settle() -> None:
    """Until nothing more can happen by itself."""
    for _ in range(3):
        for _ in range(5):
            await checkpoint()  # asyncio's callbacks are no tasks
        await anyio.wait_all_tasks_blocked()


class Clock:
    """Time that passes when the test says so, for the driver and for anyio.sleep."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self._passed = anyio.Event()
        monkeypatch.setattr(anyio, "sleep", self._sleep)

    def __call__(self) -> float:
        return self.now

    async def _sleep(self, delay: float) -> None:
        until = self.now + delay
        while self.now < until:
            await self._passed.wait()
        await checkpoint()

    async def advance(self, seconds: float) -> None:
        await settle()
        self.now += seconds
        passed, self._passed = self._passed, anyio.Event()
        passed.set()
        await settle()


@pytest.fixture
def clock(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


# ---- storing and sending


async def test_an_update_is_shown_to_others_when_it_is_stored() -> None:
    store = ScriptedStore()
    async with Driver(store) as driver:
        a, b = Client(driver), Client(driver)
        await a.sync()
        await b.sync()
        store.hold("append")
        await a.say(edit(1, 0))
        await store.called("append")
        await settle()
        assert b.sent == []
        store.let_go("append")
        await settle()
        assert b.sent == [edit(1, 0)]
        assert a.sent == []
        assert store.rooms_kept == {"r": [insert(1, 0)]}


async def test_a_store_that_does_not_answer_is_said_to_fail(clock: Clock) -> None:
    store = ScriptedStore()
    async with Driver(store, clock=clock) as driver:
        a = Client(driver)
        await a.sync()
        store.hold("append")
        await a.say(edit(1, 0))
        await store.called("append")
        assert driver.health() is None
        await clock.advance(4)
        assert driver.health() is None
        await clock.advance(3)
        assert driver.problems() == {"r": "the store has not answered for 7 s"}
        assert driver.health() == "rooms that can't be stored at the moment: 1"
        store.let_go("append")
        await settle()
        assert driver.health() is None


async def test_nor_is_it_shown_to_who_joins_or_asks_before_it_is_stored() -> None:
    store = ScriptedStore()
    async with Driver(store) as driver:
        a = Client(driver)
        await a.sync()
        store.hold("append")
        await a.say(edit(1, 0))
        await store.called("append")
        b = Client(driver)
        await b.say(ASK_ALL)
        await settle()
        assert b.sent == []
        store.let_go("append")
        await settle()
        assert b.document() == insert(1, 0)


async def test_updates_that_come_while_one_is_stored_are_stored_together() -> None:
    store = ScriptedStore()
    async with Driver(store) as driver:
        a, b = Client(driver), Client(driver)
        await a.sync()
        await b.sync()
        store.hold("append")
        await a.say(edit(1, 0))
        await store.called("append")
        await a.say(edit(1, 1), here(1), edit(1, 2))
        await b.say(edit(2, 0))
        store.let_go("append")
        await settle()
        assert store.batches == [[insert(1, 0)], [insert(1, 1), insert(1, 2), insert(2, 0)]]
        updates = [frame for frame in b.sent if frame[0] == 0]
        assert updates == [edit(1, 0), edit(1, 1), edit(1, 2)]
        assert [frame for frame in a.sent if frame[0] == 0] == [edit(2, 0)]


async def test_what_comes_in_one_turn_is_sent_in_one_go_to_all_but_its_authors() -> None:
    store = ScriptedStore()
    async with Driver(store) as driver:
        a, b, c, d = (Client(driver) for _ in range(4))
        for client in (a, b, c, d):
            await client.sync()
            client.bursts.clear()
        for client, frame in ((a, edit(1, 0)), (b, edit(2, 0)), (a, edit(1, 1))):
            assert driver.receive_now(client.member, frame) is None
        assert store.batches == c.bursts == []
        await settle()
        assert store.batches == [[insert(1, 0), insert(2, 0), insert(1, 1)]]
        assert c.bursts == [(edit(1, 0), edit(2, 0), edit(1, 1))]
        assert c.bursts[0] is d.bursts[0]
        assert a.bursts == [(edit(2, 0),)]
        assert b.bursts == [(edit(1, 0), edit(1, 1))]
        assert [client.flushes for client in (c, d)] == [c.flushes] * 2


@pytest.mark.source
async def test_a_busy_room_waits_while_more_comes_and_a_calm_one_does_not(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[Callable[[], None]] = []
    async with Driver(MemoryStore(), clock=clock) as driver:
        a, b = Client(driver), Client(driver)
        await a.sync()
        await b.sync()
        monkeypatch.setattr(driver._loop, "soon", turns.append)
        driver._do_what_is_due()
        clock.now += 1
        driver._do_what_is_due()  # what is long ago is forgotten
        assert driver._worked_off == {}

        def says(clocks: range) -> None:
            for number in clocks:
                driver.receive_now(a.member, edit(1, number))

        b.bursts.clear()
        says(range(1))
        turns.pop()()
        assert b.bursts.pop() == (edit(1, 0),)  # at once: it was calm
        for number in range(1, 4):
            says(range(number, number + 1))
            turns.pop()()
            assert b.bursts == []
        turns.pop()()  # nothing more came
        assert b.bursts.pop() == (edit(1, 1), edit(1, 2), edit(1, 3))
        says(range(4, 5))
        turns.pop()()
        says(range(5, 6))
        clock.now += 0.0011  # that is how long it waits at most
        turns.pop()()
        assert b.bursts.pop() == (edit(1, 4), edit(1, 5))
        assert turns == []


async def test_what_can_not_be_done_at_once_is_left_for_receive() -> None:
    store = ScriptedStore()
    limits = DriverSettings(max_backlog_bytes=100)
    async with Driver(store, limits=limits) as driver:
        store.hold("load")
        a = Client(driver)
        early = driver.receive_now(a.member, ASK_ALL)
        assert early is not None
        assert not early.done
        store.let_go("load")
        await driver.receive(a.member, early)
        await settle()
        assert a.heard()[-1] == SyncStep2(NO_UPDATE)
        store.hold("append")
        assert driver.receive_now(a.member, edit(1, 0, bytes(100))) is None
        late = driver.receive_now(a.member, edit(1, 100))
        assert late is not None
        assert not late.done
        store.let_go("append")
        await driver.receive(a.member, late)
        await settle()
        assert len(store.rooms_kept["r"]) == 2
        long = driver.receive_now(
            a.member, Update(update({(2, 0): [collected(1)] * 5000})).encode()
        )
        assert long is not None
        assert not long.done
        await driver.receive(a.member, long)
        await settle()
        assert len(store.rooms_kept["r"]) == 3


async def test_rooms_do_not_wait_for_each_other() -> None:
    store = ScriptedStore()
    async with Driver(store) as driver:
        a, b = Client(driver, "slow"), Client(driver, "fast")
        c = Client(driver, "fast")
        for client in (a, b, c):
            await client.sync()
        store.hold("append")
        await a.say(edit(1, 0))
        await store.called("append")
        store._held.clear()  # from now on
        await b.say(edit(2, 0))
        await settle()
        assert c.sent == [edit(2, 0)]


async def test_what_comes_in_one_turn_is_flushed_once() -> None:
    async with Driver(ScriptedStore()) as driver:
        a, b = Client(driver), Client(driver)
        await a.sync()
        await b.sync()
        b.flushes = 0
        await a.say(here(1), here(2), here(3))
        assert b.flushes == 0
        await settle()
        assert len(b.sent) == 3
        assert b.flushes == 1


@pytest.mark.parametrize("failure", FAILURES, ids=lambda exc: type(exc).__name__)
async def test_what_could_not_be_stored_is_shown_to_nobody(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """The members go, and come back to what is stored. Other rooms notice nothing."""
    store = ScriptedStore(r=[insert(9, 0)])
    async with Driver(store, limits=IMPATIENT) as driver:
        a, b, other = Client(driver), Client(driver), Client(driver, "other")
        for client in (a, b, other):
            await client.sync()
        store.hold("append")
        store.fails["append"] = failure
        await a.say(edit(1, 0))
        await store.called("append")
        await b.say(edit(2, 0), here(2))
        store.let_go("append")
        await settle()
        assert a.sent == b.sent == []
        for client in (a, b):
            assert client.closed == (1013, "the document's store failed, try again later")
        assert other.closed is None
        [record] = caplog.records
        assert record.levelno == logging.ERROR
        assert str(failure.args[-1]) in caplog.text
        assert ("Traceback" in caplog.text) == (not isinstance(failure, StoreUnavailable))
        del store.fails["append"]
        store.calls.clear()
        again = Client(driver)
        await again.say(ASK_ALL, edit(3, 0))
        await settle()
        assert store.calls == [("load", "r"), ("append", "r")]
        assert again.document() == insert(9, 0)
        assert store.rooms_kept["r"] == [insert(9, 0), insert(3, 0)]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda exc: type(exc).__name__)
async def test_a_store_that_fails_at_everything_costs_its_rooms_their_members_only(
    failure: Exception,
) -> None:
    store = ScriptedStore()
    async with Driver(store, limits=IMPATIENT) as driver:
        a = Client(driver)
        await a.sync()
        store.fails = dict.fromkeys(("append", "release", "load"), failure)
        await a.say(edit(1, 0))
        await settle()
        assert a.closed is not None
        b = Client(driver)
        await settle()
        assert b.closed is not None
        store.fails.clear()
        c = Client(driver)
        await settle()
        assert c.sent == [EMPTY_ROOM]


async def test_who_was_already_sent_away_hears_so_though_the_store_fails() -> None:
    """Its close waits in the queue, behind the update that can't be stored."""
    store = ScriptedStore()
    async with Driver(store, limits=IMPATIENT) as driver:
        a, b = Client(driver), Client(driver)
        await a.sync()
        await b.sync()
        store.hold("append")
        store.fails["append"] = StoreUnavailable("full")
        await a.say(edit(1, 0))
        await store.called("append")
        await b.say(b"\xff")
        store.let_go("append")
        await settle()
        assert a.closed is not None
        assert b.closed is not None
        assert b.closed[0] in (4400, 1013)


async def test_a_store_that_is_unavailable_is_tried_again(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """What was accepted is kept, and shown once it is stored; other rooms go on; it is known."""
    store = ScriptedStore()
    async with Driver(store, clock=clock) as driver:
        a, b, c = Client(driver), Client(driver), Client(driver, "other")
        for client in (a, b, c):
            await client.sync()
        store.fails["append r"] = StoreUnavailable("the disk is full")
        await a.say(edit(1, 0))
        await clock.advance(5)
        await b.say(edit(2, 0))
        await c.say(edit(3, 0))
        await settle()
        assert driver.problems() == {"r": "the disk is full"}
        assert store.rooms_kept == {"other": [insert(3, 0)]}
        assert a.sent == b.sent == []
        store.fails.clear()
        await clock.advance(2)
        assert store.rooms_kept["r"] == [insert(1, 0), insert(2, 0)]
        assert (a.sent, b.sent) == ([edit(2, 0)], [edit(1, 0)])
        assert driver.problems() == {}
        assert a.closed is b.closed is None
        levels = [record.levelno for record in caplog.records]
        assert levels == [logging.ERROR, logging.WARNING]  # not one for each try


async def test_a_store_is_not_waited_for_for_ever(clock: Clock) -> None:
    store = ScriptedStore()
    async with Driver(store, limits=DriverSettings(store_patience=20), clock=clock) as driver:
        a = Client(driver)
        await a.sync()
        store.fails["append"] = StoreUnavailable("the disk is full")
        await a.say(edit(1, 0))
        for _ in range(19):
            await clock.advance(1)
        assert a.closed is None
        tries = store.calls.count(("append", "r"))
        assert 5 < tries < 30
        for _ in range(4):
            await clock.advance(1)
        assert a.closed == (1013, "the document's store failed, try again later")
        assert driver.problems() == {}


async def test_what_the_store_says_is_wrong_is_passed_on() -> None:
    class Failing(ScriptedStore):
        def problems(self) -> dict[str, str]:
            return {"x": "can't be synced"}

    async with Driver(Failing()) as driver:
        assert driver.problems() == {"x": "can't be synced"}


async def test_an_author_hears_of_its_update_when_it_is_stored() -> None:
    store = ScriptedStore()
    async with Driver(store, settings=Settings(acknowledge=True)) as driver:
        a, b = Client(driver), Client(driver)
        await a.sync()
        await b.sync()
        store.hold("append")
        await a.say(edit(1, 0))
        await store.called("append")
        await a.say(edit(1, 0))  # once more: it is not stored yet either
        await settle()
        assert a.sent == []
        store.let_go("append")
        await settle()
        assert a.sent == [edit(1, 0), edit(1, 0)]
        assert b.sent == [edit(1, 0)]


async def test_what_could_not_be_stored_is_never_acknowledged() -> None:
    store = ScriptedStore()
    settings = Settings(acknowledge=True)
    async with Driver(store, settings=settings, limits=IMPATIENT) as driver:
        a = Client(driver)
        await a.sync()
        store.fails["append"] = StoreUnavailable("the disk is full")
        await a.say(edit(1, 0))
        await settle()
        assert a.closed is not None
        assert a.sent == []


async def test_time_and_the_applications_metadata_are_stored_beside_an_update(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def who(author: Member) -> bytes:
        return names[author]

    store = ScriptedStore()
    async with Driver(store, hooks=Hooks(metadata=who), wall_clock=lambda: 1234.5) as driver:
        a, b = Client(driver), Client(driver)
        names = {a.member: b"ada"}
        await a.say(edit(1, 0))
        await settle()
        await b.say(edit(2, 0))  # of whom it does not know: that must not cost the edit
        await settle()
    assert store.stored == [
        StoredUpdate(insert(1, 0), 1234.5, b"ada"),
        StoredUpdate(insert(2, 0), 1234.5, b""),
    ]
    assert "hook failed name=metadata" in caplog.text


# ---- compacting


async def test_a_room_that_has_outgrown_its_document_is_compacted() -> None:
    """While it goes on; what is appended meanwhile stays."""
    store = ScriptedStore(r=[insert(9, 0), insert(9, 1)])
    async with Driver(store) as driver:
        a = Client(driver)
        await a.sync()
        store.has_outgrown = True
        store.hold("compacted")
        await a.say(edit(1, 0))
        await store.called("compacted")
        await a.say(edit(1, 1))
        await settle()
        assert store.rooms_kept["r"][-1] == insert(1, 1)
        store.has_outgrown = False
        store.let_go("compacted")
        await settle()
        [snapshot] = store.snapshots
        assert snapshot == merged(insert(9, 0), insert(9, 1), insert(1, 0))
        assert store.rooms_kept["r"] == [snapshot, insert(1, 1)]
        assert store.calls.count(("compact", "r")) == 1


@pytest.mark.parametrize("failure", [*FAILURES, RoomCorrupt("?")], ids=lambda e: type(e).__name__)
async def test_a_compaction_that_fails_costs_nothing(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    store = ScriptedStore()
    async with Driver(store) as driver:
        a, b = Client(driver), Client(driver)
        await a.sync()
        await b.sync()
        store.has_outgrown = True
        store.fails["compact"] = failure
        await a.say(edit(1, 0))
        await settle()
        await a.say(edit(1, 1))
        await settle()
        assert b.sent == [edit(1, 0), edit(1, 1)]
        assert store.rooms_kept["r"] == [insert(1, 0), insert(1, 1)]
        assert "compaction failed" in caplog.text


async def test_a_compaction_that_failed_is_tried_again_after_a_while(clock: Clock) -> None:
    """With nobody typing, too: a disk that was full may have room again."""
    store = ScriptedStore()
    async with Driver(store, settings=Settings(idle_timeout=1000), clock=clock) as driver:
        a = Client(driver)
        await a.sync()
        store.has_outgrown = True
        store.fails["compact"] = StoreUnavailable("the disk is full")
        for attempt in range(1, 3):
            for i in range(3):  # what is typed meanwhile has it tried no sooner
                await a.say(edit(1, 3 * (attempt - 1) + i))
                await settle()
                await clock.advance(10)
            assert store.calls.count(("compact", "r")) == attempt
            await clock.advance(31)
        store.fails.clear()
        assert store.snapshots == []
        await clock.advance(61)
        assert store.snapshots == [merged(*(insert(1, i) for i in range(6)))]
        await a.say(edit(1, 6))
        await settle()
        assert len(store.snapshots) == 2


@pytest.mark.parametrize("kind", ["files", "sqlite"])
async def test_a_disk_that_was_full_when_a_room_was_compacted_is_tried_again(
    clock: Clock, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store: Store
    if kind == "files":
        store = FileStore(tmp_path, fsync="never", compact_from=1)
    else:
        store = SQLiteStore(tmp_path / "rooms.db", fsync="never", compact_from=1)
    compact = store.compact

    async def full(room: str, snapshot: Callable[[], Awaitable[StoredUpdate]]) -> None:
        def write(*args: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as faults:
            if isinstance(store, SQLiteStore):
                assert store._db is not None
                store._db.execute("PRAGMA max_page_count = 1")  # it takes what there is
            else:
                faults.setattr(os, "pwrite", write)
            try:
                await compact(room, snapshot)
            finally:
                if isinstance(store, SQLiteStore):
                    assert store._db is not None
                    store._db.execute("PRAGMA max_page_count = 1000000")
                ended.set()

    async def wait(event: anyio.Event) -> None:
        with anyio.fail_after(10):
            await event.wait()
        await settle()

    async with store, Driver(store, settings=Settings(idle_timeout=1000), clock=clock) as driver:
        a = Client(driver)
        await a.say(ASK_ALL)
        monkeypatch.setattr(store, "compact", full)
        ended = anyio.Event()
        await a.say(edit(1, 0, b"x" * 10_000))
        await wait(ended)
        async with aclosing(store.load("r")) as updates:
            assert [stored.update async for stored in updates] == [insert(1, 0, b"x" * 10_000)]
        ended = anyio.Event()

        async def noting(room: str, snapshot: Callable[[], Awaitable[StoredUpdate]]) -> None:
            await compact(room, snapshot)
            ended.set()

        monkeypatch.setattr(store, "compact", noting)
        await clock.advance(61)
        await wait(ended)
        assert not store.outgrown("r")
        async with aclosing(store.load("r")) as updates:
            assert [stored.update async for stored in updates] == [insert(1, 0, b"x" * 10_000)]


async def test_a_room_that_was_closed_meanwhile_is_not_compacted() -> None:
    """By then another room of that name may have stored more."""
    store = ScriptedStore()
    async with Driver(store, limits=IMPATIENT) as driver:
        a = Client(driver)
        await a.sync()
        store.has_outgrown = True
        store.hold("compact")
        await a.say(edit(1, 0))
        await store.called("compact")
        store.fails["append"] = StoreUnavailable("full")
        await a.say(edit(1, 1))
        await settle()
        assert a.closed is not None
        store.fails.clear()
        store.has_outgrown = False
        b = Client(driver)
        await b.say(ASK_ALL, edit(2, 0))
        await settle()
        store.let_go("compact")
        await settle()
        assert store.snapshots == []
        assert store.rooms_kept["r"] == [insert(1, 0), insert(2, 0)]


@pytest.mark.source
async def test_a_snapshot_that_does_not_hold_the_document_is_not_stored(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = ScriptedStore()
    async with Driver(store) as driver:
        a = Client(driver)
        await a.sync()

        def steps(self: StructStore, known: object) -> Steps[bytes]:
            yield
            return NO_UPDATE

        monkeypatch.setattr(StructStore, "diff_steps", steps)
        store.has_outgrown = True
        await a.say(edit(1, 0))
        await settle()
        assert store.snapshots == []
        assert store.rooms_kept["r"] == [insert(1, 0)]
        assert "compaction failed" in caplog.text


async def test_a_room_is_not_unloaded_while_it_is_compacted(clock: Clock) -> None:
    store = ScriptedStore()
    async with Driver(store, settings=Settings(idle_timeout=5), clock=clock) as driver:
        a = Client(driver)
        await a.sync()
        store.has_outgrown = True
        store.hold("compacted")
        await a.say(edit(1, 0))
        await store.called("compacted")
        driver.leave(a.member)
        await clock.advance(6)
        assert ("release", "r") not in store.calls
        assert list(driver.hub.rooms) == ["r"]
        store.let_go("compacted")
        await settle()
        assert dict(driver.hub.rooms) == {}
        assert store.calls[-1] == ("release", "r")


# ---- loading


async def test_a_room_is_loaded_once_for_all_who_come_meanwhile() -> None:
    store = ScriptedStore(r=[insert(1, 0), insert(1, 1)])
    async with Driver(store) as driver:
        store.hold("load")
        clients = [Client(driver) for _ in range(3)]
        await store.called("load")
        clients += [Client(driver) for _ in range(3)]
        await settle()
        assert [client.sent for client in clients] == [[]] * 6
        store.let_go("load")
        await settle()
        assert store.calls == [("load", "r")]
        greeting = SyncStep1(b"\x01\x01\x02").encode()
        assert [client.sent for client in clients] == [[greeting]] * 6


async def test_a_room_of_many_updates_lets_others_have_their_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns: list[None] = []
    times = iter(range(1_000_000))
    store = ScriptedStore(r=[insert(1, clock) for clock in range(100)])
    async with Driver(store, clock=lambda: float(next(times))) as driver:
        async with anyio.create_task_group() as tasks:

            async def other() -> None:
                while True:
                    await checkpoint()
                    turns.append(None)

            tasks.start_soon(other)
            client = Client(driver)
            with anyio.fail_after(10):
                while not client.sent:
                    await checkpoint()
            tasks.cancel_scope.cancel()
        assert len(turns) > 50  # a turn for each update, when each takes a second


@pytest.mark.parametrize(
    "failure", [RoomCorrupt("r.ylog: broken record"), *FAILURES], ids=lambda exc: type(exc).__name__
)
async def test_a_failed_load_refuses_all_and_stores_nothing(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    store = ScriptedStore(r=[insert(1, 0)])
    async with Driver(store) as driver, anyio.create_task_group() as tasks:
        store.hold("load")
        store.fails["load"] = failure
        a, b = Client(driver), Client(driver)
        await store.called("load")
        tasks.start_soon(a.say, edit(2, 0))
        await settle()
        store.let_go("load")
        await settle()
        for client in (a, b):
            assert client.sent == []
            assert client.closed == (1013, "the document's store failed, try again later")
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        assert store.batches == []
        store.fails.clear()
        c = Client(driver)
        await c.say(ASK_ALL)
        await settle()
        assert c.document() == insert(1, 0)


async def test_a_stored_update_that_is_malformed_is_a_failed_load(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = ScriptedStore(r=[insert(1, 0), b"\xff", insert(1, 1)])
    async with Driver(store) as driver:
        a = Client(driver)
        await settle()
        assert a.closed is not None
        assert a.closed[0] == 1013
        assert "malformed" in caplog.text
        assert store.batches == []
    gc.collect()  # trio warns of an iteration over `load` that was left open


@pytest.mark.parametrize("damage", ["malformed", "unreadable"])
async def test_a_damaged_room_may_be_opened_for_reading(
    damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With all that can be read of it, behind the damage as well; and nothing is stored."""
    store = ScriptedStore(r=[insert(1, 0), insert(1, 1)])
    if damage == "malformed":
        store.rooms_kept["r"].insert(1, b"\xff")
    else:
        store.damaged.add("r")
    async with Driver(store, limits=DriverSettings(open_damaged=True)) as driver:
        a, b = Client(driver), Client(driver)
        await a.say(ASK_ALL)
        await b.say(ASK_ALL, here(2))
        await settle()
        assert a.document() == merged(insert(1, 0), insert(1, 1))
        a.sent.clear()
        b.sent.clear()
        await a.say(edit(3, 0))
        await settle()
        [denied] = a.heard()
        assert isinstance(denied, PermissionDenied)
        assert "damaged" in denied.reason
        assert b.sent == []
        assert store.batches == []
        assert "damaged, opened read-only" in caplog.text


async def test_frames_that_come_while_a_room_loads_are_kept_and_answered() -> None:
    """And its members are read no further meanwhile."""
    store = ScriptedStore(r=[insert(1, 0)])
    async with Driver(store) as driver, anyio.create_task_group() as tasks:
        store.hold("load")
        a, b = Client(driver), Client(driver)
        done: list[str] = []

        async def say(client: Client, *frames: bytes) -> None:
            await client.say(*frames)
            done.append("")

        tasks.start_soon(say, a, ASK_ALL)
        tasks.start_soon(say, b, edit(2, 0))
        await store.called("load")
        await settle()
        assert done == []
        store.let_go("load")
        await settle()
        assert len(done) == 2
        assert store.batches == [[insert(2, 0)]]
        heard = a.heard()
        assert isinstance(heard[0], SyncStep1)
        assert a.document() == merged(insert(1, 0), insert(2, 0))


async def test_members_are_read_no_further_while_too_much_waits_for_the_store() -> None:
    store = ScriptedStore()
    async with Driver(store, limits=DriverSettings(max_backlog_bytes=300)) as driver:
        a, b = Client(driver), Client(driver)
        await a.sync()
        await b.sync()
        async with anyio.create_task_group() as tasks:
            store.hold("append")
            await a.say(edit(1, 0, bytes(80)))
            await store.called("append")
            tasks.start_soon(a.say, edit(1, 1, bytes(80)), edit(1, 2))
            await settle()
            tasks.start_soon(b.say, here(2), edit(2, 0))
            await settle()
            assert driver.hub.rooms["r"].store.state_vector() == {1: 2}
            store.let_go("append")
        await settle()
        assert driver.hub.rooms["r"].store.state_vector() == {1: 3, 2: 1}
        assert len(store.rooms_kept["r"]) == 4


async def test_answers_that_wait_behind_the_store_count_too() -> None:
    """A few bytes ask for the whole document: asking again and again must not fill the memory."""
    store = ScriptedStore()
    limits = DriverSettings(max_backlog_bytes=100_000)
    settings = Settings(answer_bytes=2**60)
    async with Driver(store, limits=limits, settings=settings) as driver:
        a = Client(driver)
        await a.say(edit(1, 0, bytes(50_000)))
        await settle()
        async with anyio.create_task_group() as tasks:
            store.hold("append")
            await a.say(edit(1, 1))
            tasks.start_soon(a.say, *[ASK_ALL] * 100)
            await settle()
            (work,) = driver._work.values()
            assert 100_000 < work.backlog < 200_000
            store.let_go("append")


# ---- long work


class BusyClock:
    """A millisecond passes whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def long_edit(client: int, structs: int = 100_000) -> bytes:
    return Update(update({(client, 0): [collected(1)] * structs})).encode()


async def test_while_a_long_message_is_read_other_rooms_go_on() -> None:
    clock = BusyClock()
    async with Driver(ScriptedStore(), clock=clock) as driver:
        slow, a, b = Client(driver, "long"), Client(driver), Client(driver)
        for client in (slow, a, b):
            await client.sync()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(slow.say, long_edit(9), edit(1, 0))
            tasks.start_soon(a.say, edit(1, 0), edit(1, 1), edit(1, 2))
            while len(b.heard()) < 3:
                await checkpoint()
            assert driver.hub.rooms["long"].store.size == 0
        # In the order they came.
        assert driver.hub.rooms["long"].store.state_vector() == {9: 100_000, 1: 1}


async def test_many_long_messages_hold_the_others_up_no_longer_than_one() -> None:
    clock = BusyClock()
    async with Driver(ScriptedStore(), clock=clock) as driver:
        clients = [Client(driver, f"long{i}") for i in range(9)]
        for client in clients:
            await client.sync()
        done = 0

        async def say(client: Client) -> None:
            nonlocal done
            await client.say(long_edit(9))
            done += 1

        longest = 0.0
        async with anyio.create_task_group() as tasks:
            for client in clients:
                tasks.start_soon(say, client)
            await checkpoint()  # the first step of each is done at once
            while done < len(clients):
                began = clock.now
                await checkpoint()
                longest = max(longest, clock.now - began)
        assert longest < 0.03
        assert all(c.member.room.store.state_vector() == {9: 100_000} for c in clients)


async def test_a_long_document_is_loaded_step_by_step() -> None:
    parts = update({(client, 0): [collected(1)] for client in range(9000)})
    many = update({(9999, 0): [collected(1)] * 100_000})
    store = ScriptedStore(long=[parts, many], short=[])
    clock = BusyClock()
    async with Driver(store, clock=clock) as driver:
        slow = Client(driver, "long")
        a = Client(driver, "short")
        await a.say(edit(1, 0))
        await settle()
        assert slow.member.room.state is State.OPEN
        assert len(slow.member.room.store.state_vector()) == 9001

    async with Driver(store, clock=clock) as driver:
        slow = Client(driver, "long")
        while not slow.member.room.store.size:
            await checkpoint()
        assert slow.member.room.state is State.LOADING
        await driver.drain()  # which a room that is still loading doesn't hold up
        assert slow.closed
        assert len(slow.member.room.store.state_vector()) < 9001


async def test_a_failing_flush_is_not_everybodys(caplog: pytest.LogCaptureFixture) -> None:
    async with Driver(ScriptedStore()) as driver:
        a, b = Client(driver), Client(driver)
        await a.sync()
        await b.sync()
        c = Client(driver)
        await c.sync()
        flushed, b.flush = c.flushes, None  # type: ignore[assignment, method-assign]
        await a.say(edit(1, 0))
        await settle()
        assert "flush failed" in caplog.text
        assert c.flushes > flushed


@pytest.mark.source
async def test_a_failing_tick_is_not_everybodys(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Driver(ScriptedStore(), clock=clock) as driver:
        a = Client(driver)
        await a.sync()
        handle_timeout = driver.hub.handle_timeout
        monkeypatch.setattr(driver.hub, "handle_timeout", None)
        await clock.advance(20)
        assert "tick failed" in caplog.text
        monkeypatch.setattr(driver.hub, "handle_timeout", handle_timeout)
        await clock.advance(20)
        assert a.sent == [KEEPALIVE]


# ---- unloading


async def test_an_idle_room_is_let_go_of(clock: Clock) -> None:
    store = ScriptedStore()
    async with Driver(store, settings=Settings(idle_timeout=5), clock=clock) as driver:
        a = Client(driver)
        await a.say(edit(1, 0))
        await settle()
        driver.leave(a.member)
        await clock.advance(4.9)
        assert "r" in driver.hub.rooms
        await clock.advance(1.2)
        assert dict(driver.hub.rooms) == {}
        assert store.calls[-1] == ("release", "r")
        b = Client(driver)
        await b.say(ASK_ALL)
        await settle()
        assert b.document() == insert(1, 0)


async def test_the_memory_of_idle_rooms_is_freed(clock: Clock, tmp_path: Path) -> None:
    def kept() -> int:
        gc.collect()
        return sum(isinstance(thing, Room | StructStore) for thing in gc.get_objects())

    async with (
        FileStore(tmp_path, fsync="never") as store,
        Driver(store, settings=Settings(idle_timeout=5), clock=clock) as driver,
    ):
        before = kept()
        tracemalloc.start()
        try:
            for again in range(2):
                for i in range(10):
                    client = Client(driver, f"room {i}")
                    edits = [edit(i + 1, k + 200 * again) for k in range(200)]
                    await client.say(ASK_ALL, *edits, here(i + 1))
                    await settle()
                    driver.leave(client.member)
                assert kept() == before + 2 * 10
                held = tracemalloc.get_traced_memory()[0]
                await clock.advance(6)
                with anyio.fail_after(10):
                    while driver.hub.rooms:  # threads are at work
                        await checkpoint()
                await clock.advance(6)  # the hub forgets a room when it would look at it next
                del client, edits
                assert kept() == before
                assert tracemalloc.get_traced_memory()[0] < held / 2
        finally:
            tracemalloc.stop()


async def test_an_unload_that_meets_a_join_is_abandoned(clock: Clock) -> None:
    store = ScriptedStore()
    async with Driver(store, settings=Settings(idle_timeout=5), clock=clock) as driver:
        a = Client(driver)
        await a.say(edit(1, 0))
        await settle()
        driver.leave(a.member)
        room = driver.hub.rooms["r"]
        store.hold("release")
        await clock.advance(6)
        await store.called("release")
        b = Client(driver)
        await b.say(ASK_ALL, edit(2, 0))
        await settle()
        assert b.sent == []  # it waits its turn
        store.let_go("release")
        await settle()
        assert driver.hub.rooms["r"] is room
        assert b.document() == insert(1, 0)
        assert store.rooms_kept["r"] == [insert(1, 0), insert(2, 0)]
        driver.leave(b.member)
        await clock.advance(6)
        assert dict(driver.hub.rooms) == {}
        assert [call for call, _ in store.calls].count("load") == 1


async def test_rooms_that_nobody_is_in_give_way_and_lose_nothing(tmp_path: Path) -> None:
    """However many are made: newcomers get in at once, and whoever was there finds all again."""
    number = 40
    async with (
        FileStore(tmp_path, fsync="never") as store,
        Driver(store, settings=Settings(max_rooms=3)) as driver,
    ):
        stays = Client(driver, "in use")
        for again in range(2):
            for i in range(number):
                client = Client(driver, f"room {i}")
                await client.say(edit(i + 1, again), ASK_ALL)
                with anyio.fail_after(10):
                    while not any(isinstance(message, SyncStep2) for message in client.heard()):
                        await checkpoint()  # threads are at work
                assert client.document() == merged(*(insert(i + 1, k) for k in range(again + 1)))
                driver.leave(client.member)
        with anyio.fail_after(10):
            while len(driver.hub.rooms) > 3:
                await checkpoint()
        assert stays.member in driver.hub.rooms["in use"].members


async def test_who_comes_back_to_a_room_that_gives_way_finds_it_as_it_was() -> None:
    store = ScriptedStore()
    async with Driver(store, settings=Settings(max_rooms=1)) as driver:
        a = Client(driver)
        await a.say(edit(1, 0))
        await settle()
        driver.leave(a.member)
        room = driver.hub.rooms["r"]
        store.hold("release")
        other = Client(driver, "other")
        await other.say(ASK_ALL)
        await store.called("release")
        assert other.document() == NOTHING[3:]
        back = Client(driver)
        await back.say(ASK_ALL, edit(2, 0))
        store.let_go("release")
        await settle()
        assert driver.hub.rooms["r"] is room
        assert back.document() == insert(1, 0)
        assert store.rooms_kept["r"] == [insert(1, 0), insert(2, 0)]


async def test_there_are_as_many_rooms_as_files_may_be_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unless the application says otherwise: its store may need no files."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit, given, rooms in (
        (1024, None, 384),
        (1024, Settings(idle_timeout=1), 384),
        (1024, Settings(max_rooms=5000), 5000),
        (10**7, None, 100_000),
        (resource.RLIM_INFINITY, None, 100_000),
        (1, None, 1),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, most))
        assert Driver(MemoryStore(), settings=given).hub.settings.max_rooms == rooms


@pytest.mark.parametrize("failure", FAILURES, ids=lambda exc: type(exc).__name__)
async def test_a_room_whose_release_fails_is_loaded_afresh(
    failure: Exception, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store = ScriptedStore()
    settings = Settings(idle_timeout=5)
    async with Driver(store, settings=settings, limits=IMPATIENT, clock=clock) as driver:
        a = Client(driver)
        await a.say(edit(1, 0))
        await settle()
        driver.leave(a.member)
        store.fails["release"] = failure
        await clock.advance(6)
        assert dict(driver.hub.rooms) == {}
        assert {record.levelno for record in caplog.records} == {logging.ERROR}
        b = Client(driver)
        await b.say(ASK_ALL)
        await settle()
        assert b.document() == insert(1, 0)


# ---- slow members


LIMITS = DriverSettings(max_outbox_bytes=1000)


async def test_a_member_that_takes_nothing_is_sent_no_more_and_brought_level_later() -> None:
    async with Driver(ScriptedStore(), limits=LIMITS) as driver:
        a, slow, other = Client(driver), Client(driver), Client(driver)
        for client in (a, slow, other):
            await client.sync()
        slow.full = True
        for clock in range(20):
            await a.say(edit(1, clock, bytes(300)))
            with anyio.fail_after(10):
                while len(other.sent) <= clock or other.waiting:
                    await checkpoint()  # a turn of the loop, or a few, for each
        assert len(slow.sent) == 4  # the last of them was too much
        assert slow.waiting < 1000 + 400
        assert len(other.sent) == 20
        await a.say(here(1))
        await settle()
        assert len(slow.sent) == 4
        slow.full = False
        slow.flush()
        await settle()
        heard = slow.heard()
        assert [type(message) for message in heard[4:]] == [Update, AwarenessUpdate]
        assert slow.document() == driver.hub.rooms["r"].store.encode()
        assert isinstance(heard[4], Update)
        assert len(heard[4].update) < 17 * 320  # only what it lacks
        await a.say(edit(1, 20))
        await settle()
        assert slow.sent[-1] == edit(1, 20)


async def test_a_member_is_not_slow_for_what_comes_in_one_turn() -> None:
    async with Driver(ScriptedStore(), limits=LIMITS) as driver:
        a, b = Client(driver), Client(driver)
        await a.sync()
        await b.sync()
        await a.say(*(edit(1, clock, bytes(300)) for clock in range(20)))
        await settle()
        assert b.sent == [edit(1, clock, bytes(300)) for clock in range(20)]


async def test_a_single_large_frame_is_not_too_much() -> None:
    """However large the document is, a member with an empty outbox gets it."""
    async with Driver(ScriptedStore(), limits=LIMITS) as driver:
        a, b = Client(driver), Client(driver)
        await a.sync()
        await b.sync()
        b.full = True
        await a.say(edit(1, 0, bytes(5000)))
        await settle()
        await a.say(here(1))  # and now it is
        await settle()
        assert b.sent[0] == edit(1, 0, bytes(5000))
        assert len(b.sent) == 2
        await a.say(edit(1, 1))
        await settle()
        assert len(b.sent) == 2


async def test_a_member_is_not_stalled_by_what_brings_it_level() -> None:
    """However much came meanwhile: it must not be sent again and again."""
    async with Driver(ScriptedStore(), limits=LIMITS) as driver:
        a, slow = Client(driver), Client(driver)
        await a.sync()
        await slow.sync()
        await a.say(here(1))
        for clock in range(1, 20):  # the first is missing
            await a.say(edit(1, clock, bytes(300)))
        await settle()
        slow.full = True
        for clock in range(30):
            await a.say(edit(2, clock, bytes(300)))
            await settle()
        slow.sent.clear()
        slow.waiting = 0
        driver.drained(slow.member)  # while its socket takes nothing more
        await a.say(edit(2, 30))
        await settle()
        heard = slow.heard()
        assert [type(message) for message in heard] == [Update, AwarenessUpdate, Update]
        answer = len(slow.sent[0])
        assert 30 * 310 > answer > 20 * 300 > LIMITS.max_outbox_bytes  # not what follows the hole
        for clock in range(31, 40):
            await a.say(edit(2, clock, bytes(300)))
            await settle()
        assert 0 < slow.waiting - answer < LIMITS.max_outbox_bytes + 400  # now it is slow again


async def long_room(driver: Driver, megabytes: int = 5) -> Client:
    """Somebody in a room whose document is that long."""
    author = Client(driver)
    await author.sync()
    for clock in range(4 * megabytes):
        await author.say(edit(1, clock, bytes(2**18)))
    await settle()
    author.sent.clear()
    return author


def known(clocks: dict[int, int]) -> bytes:
    return SyncStep1(encode_state_vector(clocks)).encode()


async def test_a_long_answer_waits_for_its_reader_part_by_part() -> None:
    async with Driver(ScriptedStore()) as driver, anyio.create_task_group() as tasks:
        author = await long_room(driver)
        slow = Client(driver)
        await slow.sync()
        slow.full = True
        tasks.start_soon(slow.say, known({1: 1}), here(2))
        await settle()
        assert 2**20 <= slow.waiting < 2**20 + 2**19  # and not five times that
        assert here(2)[:5] not in [frame[:5] for frame in author.sent]  # it is read no further
        for parts in range(2, 6):
            slow.flush_all()
            await settle()
            assert len(slow.sent) >= parts
        slow.flush_all()
        await settle()
        assert [type(message) for message in slow.heard()[:5]] == [Update] * 4 + [SyncStep2]
        assert merged(slow.document(), insert(1, 0, bytes(2**18))) == merged(
            author.member.room.store.encode()
        )
        assert author.sent[-1][0] == 1  # awareness: it is read again


@pytest.mark.parametrize("ends", ["leaves", "is lost", "is sent away", "takes too long"])
async def test_a_long_answer_waits_for_nobody_who_is_gone(ends: str) -> None:
    timeout = 0 if ends == "takes too long" else 60
    async with Driver(ScriptedStore(), settings=Settings(stall_timeout=timeout)) as driver:
        await long_room(driver, 3)
        slow = Client(driver)
        await slow.sync()
        slow.full = True
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(slow.say, known({1: 1}))
            await settle()
            if ends == "leaves":
                driver.leave(slow.member)
            elif ends == "is lost":
                slow.waiting = 0
                slow.full = False
                driver.lost(slow.member)
            elif ends == "is sent away":
                driver.dismiss(slow.member, 4000, "go")
        assert len(slow.sent) == (3 if ends == "is lost" else 1)
        expected = {"is sent away": (4000, "go"), "takes too long": (1013, "too slow for 0 s")}
        assert slow.closed == expected.get(ends)


async def test_one_that_missed_much_is_brought_level_part_by_part() -> None:
    async with Driver(ScriptedStore(), limits=LIMITS) as driver:
        a, slow, gone = Client(driver), Client(driver), Client(driver)
        for client in (a, slow, gone):
            await client.sync()
            client.full = client is not a
        for clock in range(20):
            await a.say(edit(1, clock, bytes(2**18)))
            await settle()
        assert len(slow.sent) == 2
        for parts in range(3, 8):
            slow.flush_all()
            await settle()
            assert len(slow.sent) == parts
            assert slow.waiting < 2**20 + 2**19
        gone.flush_all()
        await settle()
        driver.leave(gone.member)
        await settle()
        assert len(gone.sent) == 3
        slow.full = False
        slow.flush()
        await settle()
        assert slow.document() == merged(a.member.room.store.encode())


@pytest.mark.source
async def test_a_bug_in_bringing_level_costs_that_member(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with Driver(ScriptedStore(), limits=LIMITS) as driver:
        a, slow = Client(driver), Client(driver)
        await a.sync()
        await slow.sync()
        slow.full = True
        for clock in range(5):
            await a.say(edit(1, clock, bytes(1000)))
            await settle()

        def fails(member: Member) -> EffectSteps:
            yield None
            raise ZeroDivisionError

        monkeypatch.setattr(a.member.room, "resume_steps", fails)
        slow.flush_all()
        await settle()
        assert slow.closed == (1011, "something went wrong on the server")
        assert "resume failed" in caplog.text
        assert a.closed is None


async def test_a_member_too_slow_for_too_long_is_closed(clock: Clock) -> None:
    settings = Settings(stall_timeout=7)
    store = ScriptedStore()
    async with Driver(store, settings=settings, limits=LIMITS, clock=clock) as driver:
        a, slow = Client(driver), Client(driver)
        await a.sync()
        await slow.sync()
        await slow.say(here(2))
        slow.full = True
        for i in range(10):
            await a.say(edit(1, i, bytes(300)))
        await settle()
        sent = len(slow.sent)
        await clock.advance(6.9)
        assert slow.closed is None
        await clock.advance(1.2)
        assert slow.closed == (1013, "too slow for 7 s")
        assert len(slow.sent) == sent
        assert any(frame[0] == 1 and b"null" in frame for frame in a.sent)  # it is gone for a
        assert a.closed is None


# ---- probes, time, custom messages


async def test_who_is_asked_for_by_another_is_probed() -> None:
    """Perhaps it is dead, and the other is its client come back."""
    async with Driver(ScriptedStore()) as driver:
        a, b = Client(driver), Client(driver)
        await a.say(here(7))
        await b.say(here(7))
        await settle()
        assert (a.probes, b.probes) == (1, 0)
        driver.leave(a.member)
        await b.say(here(8))
        await settle()
        assert (a.probes, b.probes) == (1, 0)


async def test_members_get_keepalives(clock: Clock) -> None:
    async with Driver(ScriptedStore(), settings=Settings(keepalive=3), clock=clock) as driver:
        a = Client(driver)
        await a.sync()
        for _ in range(3):
            assert a.sent == []
            await clock.advance(3.1)
            assert a.sent == [KEEPALIVE]
            a.sent.clear()


async def test_custom_messages_reach_the_application_and_its_errors_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    got: list[tuple[Member, int, bytes]] = []

    def on_custom(message: CustomMessage) -> None:
        got.append((message.member, message.type, message.payload))
        if message.payload == b"bad":
            raise RuntimeError("the application's bug")

    settings = Settings(custom_types=frozenset({100}))
    async with Driver(
        ScriptedStore(), settings=settings, hooks=Hooks(on_custom=on_custom)
    ) as driver:
        a, b = Client(driver), Client(driver)
        await a.sync()
        await b.sync()
        await a.say(b"\x64good", b"\x64bad", b"\x65other", b"\x64good", edit(1, 0))
        await settle()
        assert [(type_, payload) for _, type_, payload in got] == [
            (100, b"good"),
            (100, b"bad"),
            (100, b"good"),
        ]
        assert {member for member, _, _ in got} == {a.member}
        assert "the application's bug" in caplog.text
        assert b.sent == [edit(1, 0)]
        assert a.closed is None


# ---- going down


Harm: TypeAlias = Callable[[ScriptedStore], None]


def _nothing(store: ScriptedStore) -> None:
    pass


def _full(store: ScriptedStore) -> None:
    store.fails["append"] = StoreUnavailable("full")


@pytest.mark.parametrize(
    ("harm", "stored", "codes"),
    [(_nothing, [insert(1, 0), insert(1, 1)], {1001}), (_full, [], {1001, 1013})],
    ids=["stored", "store fails"],
)
async def test_draining_stores_what_was_accepted_then_sends_everyone_away(
    harm: Harm, stored: list[bytes], codes: set[int]
) -> None:
    store = ScriptedStore()
    async with Driver(store, limits=IMPATIENT) as driver, anyio.create_task_group() as tasks:
        a, b, idle = Client(driver), Client(driver), Client(driver, "idle")
        for client in (a, b, idle):
            await client.sync()
        store.hold("append")
        harm(store)
        await a.say(edit(1, 0))
        await store.called("append")
        await a.say(edit(1, 1))
        drained = anyio.Event()

        async def drain() -> None:
            await driver.drain()
            drained.set()

        tasks.start_soon(drain)
        await settle()
        assert not drained.is_set()
        assert a.closed is None
        assert b.closed is None
        store.let_go("append")
        await settle()
        for client in (a, b):
            assert client.closed is not None
            assert client.closed[0] in codes
        assert drained.is_set()
        assert idle.closed == (1001, "the server is shutting down")
        assert store.rooms_kept.get("r", []) == stored
        assert b.sent == ([edit(1, 0), edit(1, 1)] if stored else [])
        assert dict(driver.hub.rooms) == {}


async def test_draining_while_a_room_loads_stores_nothing_of_it() -> None:
    store = ScriptedStore(r=[insert(1, 0)])
    async with Driver(store) as driver, anyio.create_task_group() as tasks:
        store.hold("load")
        a = Client(driver)
        room = a.member.room
        await store.called("load")
        tasks.start_soon(a.say, edit(2, 0))
        await settle()
        tasks.start_soon(driver.drain)
        await settle()
        store.let_go("load")
        await settle()
        assert room.state is State.CLOSED
        assert a.sent == []
        assert a.closed == (1001, "the server is shutting down")
        assert store.batches == []
    gc.collect()  # trio warns of an iteration over `load` that was left open


async def test_leaving_the_driver_ends_its_tasks_whatever_the_store_does() -> None:
    store = ScriptedStore()
    with anyio.fail_after(10):
        async with Driver(store) as driver:
            store.hold("load")
            Client(driver)
            await store.called("load")


# ---- who may come in


class Asking(Connection):
    """A connection that was not admitted yet, which records what it gets."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed: tuple[int, str] | None = None

    def send(self, frames: tuple[bytes, ...], own: Sequence[int] = ()) -> None:
        self.sent += without(frames, own)

    def close(self, code: int, reason: str) -> None:
        self.closed = (code, reason)

    def probe(self) -> None: ...

    def flush(self) -> None: ...


def asks(*subprotocols: str) -> Request:
    header = (b"sec-websocket-protocol", ", ".join(subprotocols).encode())
    return Request("r", "/r", headers=(header,) if subprotocols else ())


async def test_only_a_subprotocol_that_was_offered_is_selected() -> None:
    """Clients fail the connection on any other."""
    assert asks().subprotocol_for(Access()) is None
    assert asks("a", "b").subprotocol_for(Access()) == "a"
    assert asks("a", "b").subprotocol_for(Access(subprotocol="b")) == "b"
    assert asks().subprotocol_for(Access(subprotocol="b")) is None
    assert asks("token").subprotocol_for(Access(subprotocol="b")) is None
    assert asks("a").subprotocol_for(Refused("no")) == "a"


async def test_an_authorize_hook_that_forgets_to_answer_lets_nobody_in(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def forgetful(request: Request) -> Any:
        return None

    async with Driver(MemoryStore(), hooks=Hooks(authorize=forgetful)) as driver:
        access = await driver.authorize(asks())
        assert isinstance(access, Refused)
        assert access.code == CloseCode.INTERNAL_ERROR
        assert driver.hook_errors == {"authorize": 1}
        assert driver.admit(asks(), access, connection := Asking()) is None
        assert connection.closed is not None
    assert "hook failed name=authorize" in caplog.text


async def test_who_is_admitted_while_the_driver_drains_is_sent_away() -> None:
    async with Driver(MemoryStore()) as driver:
        access = await driver.authorize(asks())
        await driver.drain()
        assert driver.admit(asks(), access, connection := Asking()) is None
    assert connection.closed == (CloseCode.GOING_AWAY, "the server is shutting down")
    assert not connection.sent
