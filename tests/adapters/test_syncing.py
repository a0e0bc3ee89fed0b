"""`everysec` with many rooms: each is synced every second, and it shows if it is not."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest
from anyio import to_thread
from ycore_adapters._paths import plain_answer
from ycore_adapters.driver import Driver
from ycore_adapters.stores import FileStore, MemoryStore, SQLiteStore, Store, StoredUpdate
from ycore_adapters.stores import _logfile as logfile
from ycore_adapters.stores import _owned as owned
from ycore_adapters.stores import file as file_module
from ycore_adapters.stores import sqlite as sqlite_module
from ycore_adapters.stores._syncfs import can_syncfs, syncfs

pytestmark = pytest.mark.anyio

ROOMS = [f"r{i}" for i in range(8)]


class Disk:
    """Counts syncs, and lets them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.whole = 0
        self.synced: list[int] = []
        """Inodes, one by one."""
        self.broken: set[int] = set()
        """Inodes of files that can't be synced: nor can all at once, then."""
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(file_module, "syncfs", self.syncfs)
        monkeypatch.setattr(file_module, "can_syncfs", lambda fd: True)
        monkeypatch.setattr(file_module, "_MANY", 4)

    def fsync(self, fd: int) -> None:
        inode = os.fstat(fd).st_ino
        if inode in self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.synced.append(inode)
        self._fsync(fd)

    def syncfs(self, fd: int) -> None:
        self.begun.set()
        assert self.go_on.wait(10)
        self.whole += 1
        if self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
async def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FileStore]:
    """Seconds pass when a test says so."""
    monkeypatch.setattr(owned, "_SYNC_EVERY", 1e6)
    async with FileStore(tmp_path / "data") as store:
        yield store


async def append(store: Store, *rooms: str) -> None:
    for room in rooms:
        await store.append(room, [StoredUpdate(b"1", 1)])


async def test_many_are_synced_at_once_and_few_one_by_one(store: FileStore, disk: Disk) -> None:
    await append(store, *ROOMS)
    await store._sync_all()
    assert (disk.whole, disk.synced) == (1, [])
    assert store.unsynced() == 0
    await store._sync_all()
    assert disk.whole == 1
    await append(store, "r0", "r1")
    await store._sync_all()
    assert disk.whole == 1
    assert len(disk.synced) == 2  # their names are durable already
    assert store.unsynced() == 0


async def test_files_elsewhere_are_synced_by_themselves(
    store: FileStore, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another file system, by a link to it."""
    await append(store, *ROOMS)
    log = store._log("r0")
    monkeypatch.setattr(type(log), "device", property(lambda log: log.room == "r0" or real))
    real = os.stat(store.directory).st_dev
    await store._sync_all()
    assert disk.whole == 1
    assert (store.directory / "r0.ylog").stat().st_ino in disk.synced
    assert (store.directory / "r1.ylog").stat().st_ino not in disk.synced


async def test_when_all_at_once_fails_each_tells_whether_it_was_it(
    store: FileStore, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    await append(store, *ROOMS)
    path = store.directory / "r3.ylog"
    disk.broken = {path.stat().st_ino}
    await store._sync_all()
    assert list(store.problems()) == ["r3"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    others = {(store.directory / f"{room}.ylog").stat().st_ino for room in ROOMS if room != "r3"}
    assert others <= set(disk.synced)
    assert store.unsynced() > 0
    disk.broken = set()
    await store._sync_all()
    assert store.problems() == {}
    assert store.unsynced() == 0
    async with aclosing(store.load("r3")) as updates:
        assert [stored.update async for stored in updates] == [b"1"]


async def test_who_lets_go_of_a_room_waits_for_the_sync_of_all(
    store: FileStore, disk: Disk
) -> None:
    """It says then that the room is durable."""
    await append(store, *ROOMS)
    disk.go_on.clear()
    released = False

    async def release() -> None:
        nonlocal released
        await store.release("r5")
        released = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store._sync_all)
        assert await to_thread.run_sync(disk.begun.wait, 10)
        tasks.start_soon(release)
        await anyio.wait_all_tasks_blocked()
        assert not released
        assert store.append_now("r6", [StoredUpdate(b"2", 1)])  # which waits for nothing
        disk.go_on.set()
    assert released
    assert store._log("r6").dirty_since is not None, "appended after the sync had begun"


async def test_how_old_the_oldest_unsynced_edit_is(
    store: FileStore, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    for module in (logfile, file_module):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    assert store.unsynced() == 0
    await append(store, "a")
    now = 1002.0
    await append(store, "b", "a")
    assert store.unsynced() == 2
    now = 1003.0
    disk.broken = {(store.directory / "a.ylog").stat().st_ino}
    await store._sync_all()
    assert store.unsynced() == 3, "a sync that failed makes nothing durable"
    disk.broken = set()
    await store._sync_all()
    assert store.unsynced() == 0


async def test_it_is_the_age_while_the_sync_is_under_way_too(
    store: FileStore, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    for module in (logfile, file_module):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    await append(store, *ROOMS)
    disk.go_on.clear()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store._sync_all)
        assert await to_thread.run_sync(disk.begun.wait, 10)
        now = 1030.0
        assert store.append_now("r1", [StoredUpdate(b"2", 1)])
        assert store.unsynced() == 30
        disk.go_on.set()
    now = 1031.0
    assert store.unsynced() == 1


async def test_how_old_the_oldest_unsynced_edit_of_a_database_is(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(owned, "_SYNC_EVERY", 1e6)
    monkeypatch.setattr(sqlite_module, "monotonic", lambda: now)
    path = tmp_path / "rooms.db"
    async with SQLiteStore(path) as store:
        assert store.unsynced() == 0
        await append(store, "a")
        now = 1002.0
        await append(store, "b", "a")
        assert store.unsynced() == 2
        disk.broken = {Path(f"{path}-wal").stat().st_ino}
        await store._sync_all()
        assert store.unsynced() == 2, "a sync that failed makes nothing durable"
        disk.broken = set()
        await store._sync_all()
        assert store.unsynced() == 0


@pytest.mark.parametrize("fsync", ["always", "never"])
@pytest.mark.parametrize("kind", [FileStore, SQLiteStore])
async def test_where_nothing_is_promised_for_later_nothing_is_due(
    tmp_path: Path, kind: type[FileStore | SQLiteStore], fsync: file_module.Fsync
) -> None:
    async with kind(tmp_path / "data", fsync=fsync) as store:
        await append(store, "r")
        assert store.unsynced() == 0


class Late(MemoryStore):
    age = 0.4

    def unsynced(self) -> float:
        return self.age


async def test_health_shows_it() -> None:
    store = Late()
    async with store, Driver(store) as driver:
        assert driver.health() is None
        assert plain_answer("GET", "/health", "/", driver.health(), driver.unsynced())[:2] == (
            200,
            "ok, oldest unsynced edit: 0.4 s",
        )
        store.age = 12.34
        assert plain_answer("GET", "/health", "/", driver.health(), driver.unsynced())[:2] == (
            503,
            "the disk does not keep up: oldest unsynced edit: 12.3 s",
        )


def test_the_system_call_itself(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        if not can_syncfs(fd):
            pytest.skip("no Linux from 5.8 on, or another file system")
        syncfs(fd)
    finally:
        os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        syncfs(fd)


def test_what_is_no_known_file_system_is_synced_file_by_file() -> None:
    fd = os.open("/proc", os.O_RDONLY)
    try:
        assert not can_syncfs(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("release", ["5.7.19-generic", "4.4.0"])
def test_before_linux_5_8_a_failure_was_not_told(
    tmp_path: Path, release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        real = os.uname()
        monkeypatch.setattr(os, "uname", lambda: os.uname_result((*real[:2], release, *real[3:])))
        assert not can_syncfs(fd)
    finally:
        os.close(fd)
