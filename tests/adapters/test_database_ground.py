"""The ground is pulled away from under an SQLite store in use: it notices, says so, and writes the
database anew out of what SQLite holds open; where that can't be, nothing more is stored."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import aclosing, closing
from pathlib import Path
from typing import TypeAlias

import anyio
import pytest
from anyio import to_thread
from test_driver import Client
from ycore_adapters.driver import Driver
from ycore_adapters.stores import Fsync, SQLiteStore, StoredUpdate, StoreUnavailable
from ycore_adapters.stores import _owned as owned
from yupdates import ASK_ALL, edit, insert

pytestmark = pytest.mark.anyio

Harm: TypeAlias = Callable[[Path], None]


@pytest.fixture(autouse=True)
def no_second_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless a test says so."""
    monkeypatch.setattr(owned, "_SYNC_EVERY", 1e6)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "rooms.db"


async def append(store: SQLiteStore, *updates: bytes) -> None:
    await store.append("r", [StoredUpdate(update, 1) for update in updates])


async def load(store: SQLiteStore, room: str = "r") -> list[bytes]:
    async with aclosing(store.load(room)) as updates:
        return [stored.update async for stored in updates]


async def second(store: SQLiteStore) -> None:
    """What is done every second."""
    if not store._holds_lock():
        await store._take_lock_again()
    await store._sync_all()


def beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _delete(path: Path) -> None:
    path.unlink()


def _move(path: Path) -> None:
    path.rename(path.with_name("elsewhere.db"))


def _replace(path: Path) -> None:
    """By a database with a log of its own, as a restored one may be."""
    other = path.with_name("other")
    subprocess.run([sys.executable, "-c", _ANOTHER, str(other)], check=True, timeout=60)
    for ending in ("", "-wal", "-shm"):
        beside(other, ending).rename(beside(path, ending))


_ANOTHER = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode = WAL")
db.execute("CREATE TABLE theirs (x)")
for i in range(100):
    db.execute("INSERT INTO theirs VALUES (randomblob(3000))")
os._exit(0)  # the log stays
"""


def _put_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _put_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _delete_log(path: Path) -> None:
    beside(path, "-wal").unlink()


def _replace_log(path: Path) -> None:
    """By one of an earlier moment, say, which SQLite would play back."""
    copy = beside(path, "-copy")
    shutil.copy(beside(path, "-wal"), copy)
    copy.rename(beside(path, "-wal"))


def _delete_index(path: Path) -> None:
    beside(path, "-shm").unlink()


def _cut_log(path: Path) -> None:
    os.truncate(beside(path, "-wal"), 40)


def _delete_all(path: Path) -> None:
    shutil.rmtree(path.parent)


HARMS = [
    *(_delete, _move, _replace, _put_a_directory, _put_a_pipe, _delete_all),
    *(_delete_log, _replace_log, _delete_index),
]


@pytest.mark.parametrize("fsync", ["always", "everysec", "never"])
@pytest.mark.parametrize("harm", HARMS)
async def test_a_database_that_was_taken_away_is_written_anew(
    path: Path, harm: Harm, fsync: Fsync, caplog: pytest.LogCaptureFixture
) -> None:
    async with SQLiteStore(path, fsync=fsync) as store:
        await append(store, b"1", b"2")
        harm(path)
        with pytest.raises(StoreUnavailable, match="by somebody else"):
            await append(store, b"3")
        assert "by somebody else" in store.problems()["r"]
        assert await load(store) == [b"1", b"2"]
        await second(store)
        assert "healed" in caplog.text
        await append(store, b"3")
        assert store.problems() == {}
        with pytest.raises(StoreUnavailable, match="in use by another process"):
            await SQLiteStore(path).__aenter__()
        left = {file.name for file in path.parent.iterdir()} - {"elsewhere.db"}
        aside = {"rooms.db.damaged"} if harm in PUT_SOMETHING_THERE else set()
        assert left == {"rooms.db", "rooms.db-wal", "rooms.db-shm", "rooms.db.lock"} | aside
    async with SQLiteStore(path, fsync=fsync) as store:
        assert await load(store) == [b"1", b"2", b"3"]


PUT_SOMETHING_THERE = (_replace, _put_a_directory, _put_a_pipe, _replace_log)


@pytest.mark.parametrize("harm", HARMS)
async def test_it_is_noticed_without_another_edit(path: Path, harm: Harm) -> None:
    """Within a second; or when the store is closed, if that comes first."""
    async with SQLiteStore(path) as store:
        await append(store, b"1")
        harm(path)
        await second(store)
        assert store.problems() == {}
        harm(path)
    async with SQLiteStore(path) as store:
        assert await load(store) == [b"1"]
        harm(path)
    async with SQLiteStore(path) as store:
        assert await load(store) == [b"1"]


@pytest.mark.parametrize("harm", [_delete, _delete_log, _cut_log])
async def test_what_is_not_told_to_be_stored_is_not(path: Path, harm: Harm) -> None:
    """It is looked at before each commit, and in the midst of a compaction."""

    async def snapshot() -> StoredUpdate:
        harm(path)
        return StoredUpdate(b"12", 1)

    async with SQLiteStore(path) as store:
        await append(store, b"1", b"2")
        with pytest.raises(StoreUnavailable, match="by somebody else"):
            await store.compact("r", snapshot)
        with pytest.raises(StoreUnavailable, match="by somebody else"):
            await store.release("r")
        await second(store)
        if harm is not _cut_log:
            await store.release("r")
            assert await load(store) == [b"1", b"2"]


async def test_what_was_put_in_its_place_is_kept(path: Path) -> None:
    async with SQLiteStore(path) as store:
        await append(store, b"1")
        for number in (1, 2):
            _replace(path)
            await second(store)
            with closing(sqlite3.connect(path.parent / "rooms.db.damaged" / str(number))) as db:
                assert db.execute("SELECT count(*) FROM theirs").fetchone() == (100,)
        assert await load(store) == [b"1"]


async def test_of_a_log_that_was_cut_short_nothing_more_is_made(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was in it is nowhere, but for what SQLite happens to have in memory. Left to itself it
    would copy zeros into the database."""
    updates = [os.urandom(3000) for _ in range(50)]
    async with SQLiteStore(path, fsync="never") as store:
        assert store._db is not None
        store._db.execute("PRAGMA cache_size = 1")
        await append(store, *updates)
        _cut_log(path)
        left = path.read_bytes()
        for _ in range(2):
            await second(store)
            with pytest.raises(StoreUnavailable, match=r"cut short|disk I/O error"):
                await append(store, b"3")
            assert list(store.problems()) == ["r"]
        assert sum("can't be written anew" in message for message in caplog.messages) == 1
        assert path.read_bytes() == left
        assert sorted(file.name for file in path.parent.iterdir()) == [
            *("rooms.db", "rooms.db-shm", "rooms.db-wal", "rooms.db.lock")
        ]
    assert path.read_bytes() == left


async def test_what_other_programs_may_do_is_no_harm(path: Path) -> None:
    """SQLite empties the log, or begins it anew, and the database may be made shorter."""
    async with SQLiteStore(path, fsync="never") as store:
        for mode in ("PASSIVE", "RESTART", "TRUNCATE"):
            await append(store, os.urandom(100_000))
            with closing(sqlite3.connect(path, isolation_level=None)) as db:
                db.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
                store._files.check()
                db.execute("VACUUM")
            store._files.check()
            await append(store, b"more")
        assert not beside(path, ".damaged").exists()
        assert len(await load(store)) == 6


async def test_where_the_directory_can_not_be_made_again_nothing_is_stored_until_it_can(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with SQLiteStore(path) as store:
        await append(store, b"1")
        shutil.rmtree(path.parent)
        path.parent.write_bytes(b"in the way")
        for _ in range(2):
            await second(store)
        assert sum("store lost" in message for message in caplog.messages) == 1
        assert "can't be made again" in store.problems()["r"]
        for doing in (append(store, b"2"), load(store), store.release("r")):
            with pytest.raises(StoreUnavailable, match="can't be made again"):
                await doing
        path.parent.unlink()
        await second(store)
        await append(store, b"2")
        assert store.problems() == {}
    async with SQLiteStore(path) as store:
        assert await load(store) == [b"1", b"2"]


async def test_an_idle_store_that_lost_its_files_is_not_well(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SQLiteStore(path) as store:
        path.unlink()

        def full(self: SQLiteStore) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as faults:
            faults.setattr(SQLiteStore, "_write_anew", full)
            await second(store)
            (problem,) = store.problems().values()
        assert problem.startswith(f"{path} was removed by somebody else, and can't be written anew")
        assert "No space left" in problem
        await second(store)
        assert store.problems() == {}


_OWNER = """
import anyio, sys
from ycore_adapters.stores import SQLiteStore

async def main():
    async with SQLiteStore(sys.argv[1]) as store:
        print("open", flush=True)
        sys.stdin.read()

anyio.run(main)
"""


async def test_who_lost_the_place_to_another_process_stores_nothing_more(path: Path) -> None:
    async with SQLiteStore(path) as store:
        await append(store, b"1")
        shutil.rmtree(path.parent)
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", _OWNER, str(path)]
        with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:  # noqa: ASYNC220
            assert process.stdout is not None
            assert await to_thread.run_sync(process.stdout.readline) == b"open\n"
            with pytest.raises(StoreUnavailable, match="in use by another process"):
                await second(store)
            process.kill()
        theirs = path.read_bytes()
        assert "another process owns it now" in store.problems()["r"]
        for doing in (append(store, b"2"), load(store), store.release("r"), store.delete("r")):
            with pytest.raises(StoreUnavailable, match="another process owns it now"):
                await doing
    assert path.read_bytes() == theirs


@pytest.mark.parametrize("harm", [_delete, _delete_log, _replace])
async def test_a_driver_shows_nothing_that_is_not_kept(
    path: Path, harm: Harm, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SQLiteStore(path) as store, Driver(store) as driver:
        one, other = Client(driver, "r"), Client(driver, "r")
        await one.say(ASK_ALL, edit(1, 0))
        await other.say(ASK_ALL)
        await driver.stored("r")
        seen = len(other.sent)
        harm(path)
        await one.say(edit(1, 1))
        with anyio.fail_after(20):
            while driver.health() is None:
                await anyio.lowlevel.checkpoint()
        assert len(other.sent) == seen
        await second(store)
        await driver.stored("r")
        assert len(other.sent) > seen
        assert driver.health() is None
    async with SQLiteStore(path) as store:
        assert await load(store) == [insert(1, 0), insert(1, 1)]
