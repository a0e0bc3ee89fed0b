"""What is the SQLite store's own: what is wrong with a database, and what makes it fast."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import aclosing, closing
from pathlib import Path

import anyio
import pytest
from ycore_adapters.stores import RoomCorrupt, SQLiteStore, Store, StoredUpdate, StoreUnavailable

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "rooms.db"


def at(time: float, *updates: bytes) -> list[StoredUpdate]:
    return [StoredUpdate(update, time) for update in updates]


async def load(store: Store, room: str) -> list[bytes]:
    async with aclosing(store.load(room)) as updates:
        return [stored.update async for stored in updates]


def execute(path: Path, sql: str, *args: object) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(sql, args)


async def test_a_file_of_something_else_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"once upon a time" * 100)
    with pytest.raises(StoreUnavailable, match="not a database"):
        await SQLiteStore(path).__aenter__()
    path.unlink()
    execute(path, "CREATE TABLE recipes (name)")
    with pytest.raises(StoreUnavailable, match="something else"):
        await SQLiteStore(path).__aenter__()
    with pytest.raises(StoreUnavailable, match="can't use"):
        await SQLiteStore(path / "below").__aenter__()
    with pytest.raises(StoreUnavailable, match="can't use"):
        await SQLiteStore(path.parent).__aenter__()


async def test_a_later_version_is_left_alone(path: Path) -> None:
    async with SQLiteStore(path):
        pass
    execute(path, "PRAGMA user_version = 2")
    with pytest.raises(StoreUnavailable, match="version 2"):
        await SQLiteStore(path).__aenter__()


async def test_a_database_has_one_owner(path: Path) -> None:
    async with SQLiteStore(path) as store:
        with pytest.raises(StoreUnavailable, match="in use by another process"):
            await SQLiteStore(path).__aenter__()
        await store.append("r", at(1, b"1"))
    async with SQLiteStore(path) as store:
        assert await load(store, "r") == [b"1"]


_OWNER = """
import anyio, sys
from ycore_adapters.stores import SQLiteStore, StoredUpdate

async def main():
    async with SQLiteStore(sys.argv[1], fsync="never") as store:
        await store.append("r", [StoredUpdate(b"1", 1)])
        print("open", flush=True)
        sys.stdin.read()

anyio.run(main)
"""


@pytest.fixture
def killed(path: Path) -> None:
    """A process has appended to the store, and was killed."""
    command = [sys.executable, "-c", _OWNER, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        process.send_signal(signal.SIGKILL)


@pytest.mark.usefixtures("killed")
async def test_what_was_appended_survives_the_process(path: Path) -> None:
    async with SQLiteStore(path) as store:
        assert await load(store, "r") == [b"1"]


async def test_damaged_updates_are_told_and_can_be_put_aside(path: Path) -> None:
    async with SQLiteStore(path) as store:
        await store.append("r", at(1, b"one", b"two", b"three", b"four"))
        await store.append("fine", at(1, b"1"))
    execute(path, "UPDATE updates SET data = ? WHERE data = ?", b"twO", b"two")
    async with SQLiteStore(path) as store:
        read: list[bytes] = []

        async def read_all() -> None:
            async for stored in store.load("r"):
                read.append(stored.update)

        with pytest.raises(RoomCorrupt, match=r"can't be read: 4\. `ycore repair`"):
            await read_all()
        assert read == [b"one", b"three", b"four"]
        assert await load(store, "fine") == [b"1"]
        where = await store.repair("r", lambda update: update != b"four")
        assert str(path) in where
        assert await load(store, "r") == [b"one", b"three"]
        await store.append("r", at(1, b"five"))
        assert await load(store, "r") == [b"one", b"three", b"five"]
    with closing(sqlite3.connect(path)) as db:
        damaged = db.execute("SELECT data FROM damaged ORDER BY id").fetchall()
    assert damaged == [(b"twO",), (b"four",)]


async def test_what_does_not_fit_is_not_stored_and_other_rooms_go_on(path: Path) -> None:
    async with SQLiteStore(path) as store:
        await store.append("r", at(1, b"1"))
        assert store._db is not None
        store._db.execute("PRAGMA max_page_count = 20")
        errors: list[str] = []

        async def write(room: str, update: bytes) -> None:
            try:
                await store.append(room, at(1, update))
            except StoreUnavailable as exc:
                errors.append(str(exc))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write, "small", b"2")
            tasks.start_soon(write, "r", os.urandom(500_000))
            tasks.start_soon(write, "small", b"3")
        assert len(errors) == 1
        assert "full" in errors[0]
        assert sorted(await load(store, "small")) == [b"2", b"3"]
        assert await load(store, "r") == [b"1"]
        store._db.execute("PRAGMA max_page_count = 1000000")
        await store.append("r", at(1, b"2"))
        assert await load(store, "r") == [b"1", b"2"]


async def test_appends_that_wait_are_committed_together(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SQLiteStore(path) as store:
        commits: list[int] = []
        commit = store._commit

        def counted(batch: list[object]) -> None:
            commits.append(len(batch))
            commit(batch)  # type: ignore[arg-type]

        monkeypatch.setattr(store, "_commit", counted)
        async with anyio.create_task_group() as tasks:
            for i in range(100):
                tasks.start_soon(store.append, f"room {i % 7}", at(1, b"%d" % i))
        assert sum(commits) == 100
        assert len(commits) < 10
        assert set(await load(store, "room 3")) == {b"%d" % i for i in range(3, 100, 7)}


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
async def test_when_a_commit_fails_oddly_nobody_is_told_it_succeeded(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async with SQLiteStore(path) as store:
        told: list[str] = []

        async def write(i: int) -> None:
            try:
                await store.append("r", at(1, b"%d" % i))
            except StoreUnavailable:
                told.append("no")
            else:
                told.append("yes")

        def commit(batch: object) -> None:
            raise error

        with monkeypatch.context() as faults:
            faults.setattr(store, "_commit", commit)
            async with anyio.create_task_group() as tasks:
                for i in range(5):
                    tasks.start_soon(write, i)
        assert told == ["no"] * 5
        await store.append("r", at(1, b"later"))
        assert await load(store, "r") == [b"later"]


async def test_a_reader_does_not_keep_it_from_syncing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SQLiteStore(path) as store:
        await store.append("r", at(1, b"1"))
        with closing(sqlite3.connect(path)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM updates").fetchall()
            await store.append("r", at(1, b"2"))
            synced: list[int] = []
            fsync = os.fsync

            def noting(fd: int) -> None:
                synced.append(os.fstat(fd).st_size)
                fsync(fd)

            monkeypatch.setattr(os, "fsync", noting)
            await store.release("r")
            assert synced == [Path(f"{path}-wal").stat().st_size]


async def test_a_sync_that_fails_is_known_until_it_succeeds(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    passed = anyio.Event()

    async def sleep(delay: float) -> None:
        await seconds[delay].wait()
        seconds[delay] = anyio.Event()

    seconds = {1.0: passed}
    monkeypatch.setattr(anyio, "sleep", sleep)

    async def second() -> None:
        seconds[1.0].set()
        await anyio.wait_all_tasks_blocked()
        while store._lock.statistics().locked:
            await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()

    async with SQLiteStore(path) as store:
        await store.append("r", at(1, b"1"))
        checkpoint = store._checkpoint

        def failing(mode: str) -> None:
            raise StoreUnavailable("can't sync: Input/output error")

        monkeypatch.setattr(store, "_checkpoint", failing)
        await second()
        await second()
        assert store.problems() == {"r": "can't sync: Input/output error"}
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        with pytest.raises(StoreUnavailable):
            await store.release("r")
        monkeypatch.setattr(store, "_checkpoint", checkpoint)
        await second()
        assert store.problems() == {}
        assert await load(store, "r") == [b"1"]


async def test_a_room_has_outgrown_its_document_at_twice_its_snapshot(path: Path) -> None:
    async def snapshot() -> StoredUpdate:
        return StoredUpdate(b"y" * 5000, 2)

    async with SQLiteStore(path, compact_from=1000) as store:
        assert not store.outgrown("r")
        await store.append("r", at(1, b"x" * 900))
        assert not store.outgrown("r")
        await store.append("r", at(1, b"x" * 100))
        assert store.outgrown("r")
        for _ in range(2):
            await store.compact("r", snapshot)
            await store.append("r", at(1, b"x" * 4900))
            assert not store.outgrown("r")
            await store.release("r")
            await store.append("r", at(1, b"x" * 200))
            assert store.outgrown("r")
