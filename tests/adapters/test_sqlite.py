"""What is the SQLite store's own: what is wrong with a database, and what makes it fast."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing, closing, contextmanager
from pathlib import Path
from zlib import crc32

import anyio
import pytest
import ycore_adapters.stores.sqlite as sqlite_module
from test_driver import Client
from ycore_adapters.driver import Driver
from ycore_adapters.stores import RoomCorrupt, SQLiteStore, Store, StoredUpdate, StoreUnavailable
from yupdates import ASK_ALL, NOTHING, edit, insert

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


@pytest.fixture(params=["symbolic link", "link to a link", "hard link", "linked directory"])
def other_name(request: pytest.FixtureRequest, path: Path, tmp_path: Path) -> Path:
    """Another name of the database, which is there and open to nobody."""
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as db:
        db.execute("VACUUM")  # makes the file
    (tmp_path / "elsewhere").mkdir()
    name = tmp_path / "elsewhere" / "same.db"
    if request.param == "hard link":
        name.hardlink_to(path)
    elif request.param == "linked directory":
        name.parent.rmdir()
        name.parent.symlink_to(path.parent)
        name = name.with_name(path.name)
    else:
        target = path
        if request.param == "link to a link":
            target = tmp_path / "elsewhere" / "link.db"
            target.symlink_to(path)
        name.symlink_to(target)
    return name


_INTRUDER = """
import sqlite3, sys

try:
    sqlite3.connect(sys.argv[1], timeout=0).execute("PRAGMA journal_mode = DELETE").fetchone()
except sqlite3.OperationalError as exc:
    print(exc)
"""


async def test_a_database_has_one_owner_by_whatever_name(
    path: Path, other_name: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for first, second in ((path, other_name), (other_name, path)):
        async with SQLiteStore(first) as store:
            with pytest.raises(StoreUnavailable, match="in use by another process"):
                await SQLiteStore(second).__aenter__()
            # Nor has that attempt given up the locks that SQLite has: closing a file might.
            found = await anyio.run_process([sys.executable, "-c", _INTRUDER, str(first)])
            assert found.stdout == b"database is locked\n"
            await store.append("r", at(1, b"1"))
    async with SQLiteStore(other_name) as store:
        assert await load(store, "r") == [b"1", b"1"]
    warned = any("hard links: open it always" in record.message for record in caplog.records)
    assert warned == (path.stat().st_nlink > 1)


@pytest.fixture
def owned_by_its_other_name(other_name: Path) -> Iterator[Callable[[], None]]:
    """Another process has it open by its other name, until that is called."""
    command = [sys.executable, "-c", _OWNER, str(other_name)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"

        def kill() -> None:
            process.kill()
            process.wait()

        yield kill
        kill()


async def test_its_owner_may_be_another_process_and_be_killed(
    path: Path, other_name: Path, owned_by_its_other_name: Callable[[], None]
) -> None:
    for name in (path, other_name):
        with pytest.raises(StoreUnavailable, match="in use by another process"):
            await SQLiteStore(name).__aenter__()
    owned_by_its_other_name()
    async with SQLiteStore(other_name) as store:  # by which its log is found
        assert await load(store, "r") == [b"1"]


async def test_what_is_synced_is_the_log_of_the_file_that_links_lead_to(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(path)
    async with SQLiteStore(link) as store:
        await store.append("r", at(1, b"1"))
        synced: list[int] = []
        monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
        await store.release("r")
        assert synced == [Path(f"{path}-wal").stat().st_ino]


def write_behind_its_back(path: Path, update: bytes, *, snapshot: bool = False) -> None:
    """What another program would write to the room "r"."""
    with closing(sqlite3.connect(path)) as db, db:
        key, last = db.execute("SELECT room, max(id) FROM updates").fetchone()
        row = (key, last // 2 * 2 + (1 if snapshot else 2), 1000, update, b"", crc32(update))
        db.execute("INSERT INTO updates VALUES (?, ?, ?, ?, ?, ?)", row)


@pytest.mark.parametrize("loaded", [True, False])
@pytest.mark.parametrize("appends_after", [True, False])
@pytest.mark.parametrize("snapshot", [True, False])
async def test_what_another_program_wrote_is_never_compacted_away(
    path: Path, loaded: bool, appends_after: bool, snapshot: bool
) -> None:
    async def made() -> StoredUpdate:
        return StoredUpdate(b"own", 2)

    async with SQLiteStore(path, compact_from=1) as store:
        await store.append("r", at(1, b"1", b"2"))
        if loaded:
            await store.release("r")
            await load(store, "r")
        else:
            assert store.outgrown("r")
        write_behind_its_back(path, b"theirs", snapshot=snapshot)
        if appends_after:
            await store.append("r", at(1, b"3"))
            assert "another program has written to the room 'r'" in store.problems()["r"]
            assert not store.outgrown("r")
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="another program has written"):
                await store.compact("r", made)
        assert "another program" in store.problems()["r"]
        with closing(sqlite3.connect(path)) as db:
            kept = [data for (data,) in db.execute("SELECT data FROM updates ORDER BY id")]
        assert kept == [b"1", b"2", b"theirs"] + [b"3"] * appends_after
        await store.release("r")
        assert store.problems() == {}
        if not snapshot:
            assert await load(store, "r") == kept
            await store.compact("r", made)
            assert await load(store, "r") == [b"own"]


async def test_nor_is_what_it_wrote_while_a_snapshot_was_made(path: Path) -> None:
    async def made() -> StoredUpdate:
        write_behind_its_back(path, b"theirs")
        return StoredUpdate(b"own", 2)

    async with SQLiteStore(path) as store:
        await store.append("r", at(1, b"1"))
        await store.compact("r", made)
        await store.append("r", at(1, b"2"))
        assert "another program" in store.problems()["r"]
        assert await load(store, "r") == [b"own", b"theirs", b"2"]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program is in the midst of writing to the database."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("ROLLBACK")


async def test_a_database_that_is_locked_holds_up_one_call(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_module, "_BUSY_SECONDS", 0.05)
    told: list[str] = []

    async def write(room: str) -> None:
        try:
            await store.append(room, at(2, b"2"))
        except StoreUnavailable as exc:
            told.append(str(exc))

    async def made() -> StoredUpdate:
        return StoredUpdate(b"12", 3)

    waited: list[float] = []
    begin = SQLiteStore._do

    def noting(self: SQLiteStore, *args: object) -> object:
        if args[0] == "BEGIN IMMEDIATE":
            waited.append(self._patience)
        return begin(self, *args)  # type: ignore[arg-type]

    names = [f"room {i}" for i in range(50)]
    async with SQLiteStore(path) as store:
        for room in names:
            await store.append(room, at(1, b"1"))
        monkeypatch.setattr(SQLiteStore, "_do", noting)
        with locked(path):
            async with anyio.create_task_group() as tasks:
                for room in names:
                    tasks.start_soon(write, room)
            for room in names:
                assert await load(store, room) == [b"1"]  # who reads need not wait
                with pytest.raises(StoreUnavailable, match="another program has it locked"):
                    await store.compact(room, made)
            # All of the appends were two attempts, of which one waited, and nothing else did.
            assert waited == [0.05] + [0.0] * (len(waited) - 1)
            assert len(waited) <= 2 + len(names)
            assert len(told) == len(names)
            assert set(told) == {f"{path}: another program has it locked"}
            assert store.problems() == dict.fromkeys(names, told[0])
        waited.clear()
        for room in names:
            await write(room)
        assert waited == [0.0] + [0.05] * (len(names) - 1)
        assert len(told) == len(names)
        assert store.problems() == {}
        assert await load(store, names[0]) == [b"1", b"2"]


async def test_while_it_is_locked_the_server_is_not_well(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def health(well: bool) -> str | None:
        with anyio.fail_after(20):
            while (driver.health() is None) != well:
                await anyio.lowlevel.checkpoint()
        return driver.health()

    monkeypatch.setattr(sqlite_module, "_BUSY_SECONDS", 0.01)
    async with SQLiteStore(path, fsync="never") as store, Driver(store) as driver:
        clients = [Client(driver, f"room {i}") for i in range(5)]
        for client in clients:
            await client.say(ASK_ALL, edit(1, 0))
            await driver.stored(client.member.room.name)
        with locked(path):
            for client in clients:
                await client.say(edit(1, 1))
            await health(well=False)
            late = Client(driver, "another")  # opening is reading
            await late.say(ASK_ALL)
            with anyio.fail_after(20):
                while len(driver.problems()) < len(clients):
                    await anyio.lowlevel.checkpoint()
            assert driver.health() == "rooms that can't be stored at the moment: 5"
            assert set(driver.problems().values()) == {f"{path}: another program has it locked"}
            assert late.sent[-1] == NOTHING
        await health(well=True)
        assert [await load(store, f"room {i}") for i in range(5)] == [
            [insert(1, 0), insert(1, 1)]
        ] * 5
        assert [client.closed for client in clients] == [None] * 5


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
    assert damaged == [(b"one",), (b"twO",), (b"three",), (b"four",)]


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
