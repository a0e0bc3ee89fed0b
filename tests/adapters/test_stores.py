"""The stores: what was appended is loaded, whatever happens to the disk or to the process."""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import aclosing, closing, suppress
from pathlib import Path
from typing import Any, TypeAlias, get_args

import anyio
import pytest
from ycore_adapters.stores import (
    FileStore,
    Fsync,
    HistoryNotKept,
    MemoryStore,
    RoomCorrupt,
    RoomNotFound,
    SQLiteStore,
    Store,
    StoredUpdate,
    StoreUnavailable,
)
from ycore_adapters.stores._log import MAX_NAME, encode_header, encode_record
from ycore_adapters.stores._logfile import LogFile
from ycore_adapters.stores._names import file_name
from ycore_adapters.stores.testing import store_tests

pytestmark = pytest.mark.anyio

NOTHING = bytes(2)
"""The update with nothing in it."""
POLICIES: tuple[Fsync, ...] = get_args(Fsync)


def at(time: float, *updates: bytes) -> list[StoredUpdate]:
    return [StoredUpdate(update, time) for update in updates]


async def load(store: Store, room: str) -> list[bytes]:
    async with aclosing(store.load(room)) as updates:
        return [stored.update async for stored in updates]


async def compact(store: Store, room: str, update: bytes, time: float = 100) -> None:
    async def snapshot() -> StoredUpdate:
        return StoredUpdate(update, time)

    await store.compact(room, snapshot)


async def rooms(store: Store) -> list[str]:
    return sorted([room async for room in store.rooms()])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture(params=POLICIES)
def fsync(request: pytest.FixtureRequest) -> Fsync:
    policy: Fsync = request.param
    return policy


# ---- every store

test_memory = store_tests(lambda _: MemoryStore(), persistent=False)
test_files_always = store_tests(lambda directory: FileStore(directory, fsync="always"))
test_files_everysec = store_tests(FileStore)
test_files_never = store_tests(lambda directory: FileStore(directory, fsync="never"))
test_files_with_history = store_tests(
    lambda directory: FileStore(directory, keep_history=True), history=True
)
test_sqlite_always = store_tests(lambda d: SQLiteStore(d / "rooms.db", fsync="always"))
test_sqlite_everysec = store_tests(lambda d: SQLiteStore(d / "rooms.db"))
test_sqlite_with_history = store_tests(
    lambda d: SQLiteStore(d / "rooms.db", fsync="never", keep_history=True), history=True
)


# ---- files


async def test_rooms_with_overlong_names_are_refused(directory: Path) -> None:
    """Their headers could not be read again."""
    name = "😀" * (MAX_NAME + 1)
    async with FileStore(directory) as store:
        with pytest.raises(StoreUnavailable, match="too long"):
            await store.append(name, at(1, b"1"))
        with pytest.raises(StoreUnavailable, match="too long"):
            await load(store, name)
        with pytest.raises(StoreUnavailable, match="too long"):
            await compact(store, name, b"1")
        assert await rooms(store) == []


async def test_what_is_no_room_in_the_directory_is_not_listed(directory: Path) -> None:
    async with FileStore(directory) as store:
        await store.append("r", at(1, b"1"))
        await store.append("x" * 300, at(1, b"1"))
        for name in ("x~1.ylog", "notes.txt", "r.torn", "r.new", "%ff.ylog", "Copy of r.ylog"):
            (directory / name).write_bytes(b"ycorelog")
        assert await rooms(store) == ["r", "x" * 300]


async def test_a_directory_has_one_owner(directory: Path, fsync: Fsync) -> None:
    async with FileStore(directory, fsync=fsync) as store:
        with pytest.raises(StoreUnavailable, match="in use by another process"):
            await FileStore(directory, fsync=fsync).__aenter__()
        await store.append("r", at(1, b"1"))  # which the attempt has not disturbed
    async with FileStore(directory, fsync=fsync) as store:
        assert await load(store, "r") == [b"1"]


async def test_nor_has_it_another_by_a_link(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(directory)
    async with FileStore(directory):
        with pytest.raises(StoreUnavailable, match="in use by another process"):
            await FileStore(tmp_path / "link").__aenter__()


_OWNER = """
import anyio, sys
from ycore_adapters.stores import FileStore, StoredUpdate

async def main():
    async with FileStore(sys.argv[1], fsync="never") as store:
        await store.append("r", [StoredUpdate(b"1", 1)])
        print("open", flush=True)
        sys.stdin.read()

anyio.run(main)
"""


@pytest.fixture
def owner(directory: Path) -> Iterator[Callable[[], None]]:
    """Another process that has the store open and an update appended; call it to kill that."""
    command = [sys.executable, "-c", _OWNER, str(directory)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"

        def kill() -> None:
            process.kill()
            process.wait()

        yield kill
        kill()


async def test_the_owner_may_be_another_process_and_be_killed(
    directory: Path, owner: Callable[[], None]
) -> None:
    with pytest.raises(StoreUnavailable, match="in use by another process"):
        await FileStore(directory).__aenter__()
    owner()
    async with FileStore(directory) as store:
        assert await load(store, "r") == [b"1"]  # though it was never synced


@pytest.mark.parametrize("obstacle", ["file", "file above"])
async def test_what_is_no_directory_is_unavailable(tmp_path: Path, obstacle: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"precious")
    with pytest.raises(StoreUnavailable, match="can't use the data directory"):
        await FileStore(file if obstacle == "file" else file / "data").__aenter__()
    assert file.read_bytes() == b"precious"


async def make_log(directory: Path, updates: list[bytes]) -> tuple[Path, list[int]]:
    """A room "r" in a store that was closed: its file, and where each of the records ends."""
    async with FileStore(directory, fsync="never") as store:
        ends = []
        for update in updates:
            await store.append("r", at(1, update))
            ends.append((directory / "r.ylog").stat().st_size)
    return directory / "r.ylog", ends


@pytest.mark.parametrize("first", ["load", "append"])
async def test_a_torn_tail_is_cut_kept_beside_and_logged(
    directory: Path, first: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, ends = await make_log(directory, [b"one", b"two", b"three"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    async with FileStore(directory) as store:
        if first == "append":  # which has to look first where to append
            await store.append("r", at(1, b"four"))
        assert await load(store, "r") == [b"one", b"two"] + [b"four"] * (first == "append")
        await store.append("r", at(1, b"five"))
        assert (await load(store, "r"))[-1] == b"five"
    assert path.with_suffix(".torn").read_bytes() == whole[ends[1] : -2]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "'r'" in caplog.text
    assert str(path) in caplog.text


async def test_a_first_write_that_was_torn_leaves_a_room_to_write_to(directory: Path) -> None:
    path, ends = await make_log(directory, [b"one"])
    whole = path.read_bytes()
    for size in range(ends[0]):
        path.write_bytes(whole[:size])
        async with FileStore(directory) as store:
            await store.append("r", at(1, b"two"))
            assert await load(store, "r") == [b"two"], size


def _flip_in_the_middle(path: Path, ends: list[int]) -> None:
    data = bytearray(path.read_bytes())
    data[ends[1] - 1] ^= 1
    path.write_bytes(data)


def _of_another_room(path: Path, ends: list[int]) -> None:
    record = encode_record(b"x", time=1, salt=7)
    path.write_bytes(encode_header("other", 7) + record)


def _no_log(path: Path, ends: list[int]) -> None:
    path.write_bytes(b"once upon a time")


def _of_a_longer_name(path: Path, ends: list[int]) -> None:
    """One bit of the header, of where the records begin."""
    data = bytearray(path.read_bytes())
    data[15] ^= 1
    path.write_bytes(data)


Harm: TypeAlias = Callable[[Path, list[int]], None]


@pytest.mark.parametrize(
    "harm", [_flip_in_the_middle, _of_another_room, _no_log, _of_a_longer_name]
)
async def test_a_damaged_log_is_refused_and_left_as_it_is(directory: Path, harm: Harm) -> None:
    path, ends = await make_log(directory, [b"one", b"two", b"three"])
    harm(path, ends)
    before = path.read_bytes()
    async with FileStore(directory) as store:
        for _ in range(2):
            with pytest.raises(RoomCorrupt, match=r"r\.ylog"):
                await load(store, "r")
            with pytest.raises(RoomCorrupt, match=r"r\.ylog"):
                await store.append("r", at(1, b"four"))
        await store.append("fine", at(1, b"1"))
    assert path.read_bytes() == before
    assert sorted(file.name for file in directory.iterdir()) == [".lock", "fine.ylog", "r.ylog"]


# ---- disks that fail


class Disk:
    """Stands in for the system calls that write, and lets them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.syncs = 0
        self.room_for: int | None = None
        """How many more bytes can be written."""
        self.most = 2**31
        """How many bytes one call writes at most."""
        self.broken: set[str] = set()
        """System calls that fail."""
        self._calls: dict[str, Callable[..., Any]] = {}
        for name, stand_in in (
            ("pwrite", self._pwrite),
            ("fsync", self._fsync),
            ("ftruncate", self._ftruncate),
        ):
            self._calls[name] = getattr(os, name)
            monkeypatch.setattr(os, name, stand_in)

    def _call(self, name: str, *args: Any) -> Any:
        if name in self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._calls[name](*args)

    def _pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        data = data[: self.most]
        if self.room_for is not None:
            data = data[: self.room_for]
            self.room_for -= len(data)
            if not data:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written: int = self._call("pwrite", fd, data, offset)
        return written

    def _fsync(self, fd: int) -> None:
        self._call("fsync", fd)
        self.syncs += 1

    def _ftruncate(self, fd: int, size: int) -> None:
        self._call("ftruncate", fd, size)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


async def test_short_writes_are_completed(directory: Path, fsync: Fsync, disk: Disk) -> None:
    disk.most = 7
    async with FileStore(directory, fsync=fsync) as store:
        await store.append("r", at(1, b"one" * 50, b"two"))
        assert await load(store, "r") == [b"one" * 50, b"two"]


@pytest.mark.parametrize("room_for", [0, 1, 30, 60])
async def test_of_a_batch_the_disk_had_no_room_for_nothing_is_stored(
    directory: Path, fsync: Fsync, disk: Disk, room_for: int
) -> None:
    """And once there is room, appending goes on; a new opening sees the same."""
    async with FileStore(directory, fsync=fsync) as store:
        await store.append("r", at(1, b"one"))
        disk.room_for = room_for
        with pytest.raises(StoreUnavailable, match="No space left"):
            await store.append("r", at(1, b"lost" * 5, b"lost" * 10))
        disk.room_for = None
        await store.append("r", at(1, b"two"))
        assert await load(store, "r") == [b"one", b"two"]
    async with FileStore(directory, fsync=fsync) as store:
        assert await load(store, "r") == [b"one", b"two"]


@pytest.mark.parametrize("room_for", [0, 1, 30])
async def test_a_room_whose_first_append_failed_does_not_exist(
    directory: Path, disk: Disk, room_for: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with FileStore(directory) as store:
        disk.room_for = room_for
        with pytest.raises(StoreUnavailable):
            await store.append("r", at(1, b"lost"))
        disk.room_for = None
        await store.release("r")
        assert await rooms(store) == []
        with pytest.raises(RoomNotFound):
            await load(store, "r")
    assert caplog.messages == []  # nor was anything torn


async def test_always_what_could_not_be_synced_is_not_stored(directory: Path, disk: Disk) -> None:
    async with FileStore(directory, fsync="always") as store:
        await store.append("r", at(1, b"one"))
        disk.broken = {"fsync"}
        with pytest.raises(StoreUnavailable, match="Input/output error"):
            await store.append("r", at(1, b"lost"))
        disk.broken = set()
        assert await load(store, "r") == [b"one"]
        await store.append("r", at(1, b"two"))
        assert await load(store, "r") == [b"one", b"two"]


async def test_a_failed_batch_that_could_not_be_taken_back_breaks_no_later_one(
    directory: Path, disk: Disk
) -> None:
    """Its records lie behind the end of the log; a shorter batch does not cover them all."""
    async with FileStore(directory, fsync="always") as store:
        await store.append("r", at(1, b"one"))
        disk.broken = {"fsync", "ftruncate"}
        with pytest.raises(StoreUnavailable):
            await store.append("r", at(1, b"lost", b"lost too"))
        disk.broken = set()
        await store.append("r", at(1, b"2"))
        await store.release("r")
        loaded = await load(store, "r")
        assert [update for update in loaded if not update.startswith(b"lost")] == [b"one", b"2"]


async def test_replacing_is_done_whole_or_not_at_all(
    directory: Path, fsync: Fsync, disk: Disk
) -> None:
    async with FileStore(directory, fsync=fsync) as store:
        await store.append("r", at(1, b"one", b"two"))
        disk.room_for = 40
        with pytest.raises(StoreUnavailable):
            await compact(store, "r", b"both" * 10)
        disk.room_for = None
        assert await load(store, "r") == [b"one", b"two"]
        assert await rooms(store) == ["r"]
        await compact(store, "r", b"both")
        assert await load(store, "r") == [b"both"]


async def test_always_syncs_before_it_returns_and_never_never(directory: Path, disk: Disk) -> None:
    async with FileStore(directory / "always", fsync="always") as store:
        await store.append("r", at(1, b"1"))
        assert disk.syncs == 2  # the file, and the directory with its name
        await store.append("r", at(1, b"2", b"3"))
        assert disk.syncs == 3
    disk.syncs = 0
    async with FileStore(directory / "never", fsync="never") as store:
        await store.append("r", at(1, b"1"))
        await store.release("r")
    assert disk.syncs == 0


class Seconds:
    """Stands in for anyio.sleep: a second is over when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._slept, self._sleeping = anyio.Event(), anyio.Event()
        monkeypatch.setattr(anyio, "sleep", self._sleep)

    async def _sleep(self, delay: float) -> None:
        assert delay == 1
        self._sleeping.set()
        await self._slept.wait()

    async def tick(self) -> None:
        """Let a second pass, and what is due be done."""
        with anyio.fail_after(10):
            await self._sleeping.wait()
            slept, self._slept, self._sleeping = self._slept, anyio.Event(), anyio.Event()
            slept.set()
            await self._sleeping.wait()


async def test_everysec_syncs_every_second_what_was_written(
    directory: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = Seconds(monkeypatch)
    async with FileStore(directory, fsync="everysec") as store:
        await store.append("r", at(1, b"1"))
        await store.append("r", at(1, b"2"))
        assert disk.syncs == 0
        await seconds.tick()
        assert disk.syncs == 2  # the file, and the directory with its name
        await seconds.tick()
        assert disk.syncs == 2
        await store.append("r", at(1, b"3"))
        await store.release("r")
        assert disk.syncs == 3  # on release at the latest; its name is durable already


async def test_a_sync_that_failed_is_made_good_for_by_writing_the_log_anew(
    directory: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After a failed sync the system may have dropped what it could not write, and the next sync
    may succeed all the same: so the file can't be trusted any more, nor added to."""
    seconds = Seconds(monkeypatch)
    path = directory / "r.ylog"
    async with FileStore(directory, fsync="everysec") as store:
        await store.append("r", at(1, b"1"))
        first = path.stat().st_ino
        disk.broken = {"fsync"}
        await seconds.tick()
        await seconds.tick()
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        assert list(store.problems()) == ["r"]
        assert "Input/output error" in store.problems()["r"]
        with pytest.raises(StoreUnavailable, match="Input/output error"):
            await store.append("r", at(1, b"2"))
        with pytest.raises(StoreUnavailable, match="Input/output error"):
            await store.release("r")
        disk.broken = set()
        await seconds.tick()
        assert store.problems() == {}
        assert path.stat().st_ino != first
        await store.append("r", at(1, b"2"))
        assert await load(store, "r") == [b"1", b"2"]
    async with FileStore(directory) as store:
        assert await load(store, "r") == [b"1", b"2"]


@pytest.mark.parametrize("who", ["writer", "release"])
async def test_who_comes_first_makes_good_for_a_failed_sync(
    directory: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    seconds = Seconds(monkeypatch)
    async with FileStore(directory, fsync="everysec") as store:
        await store.append("r", at(1, b"1"))
        disk.broken = {"fsync"}
        await seconds.tick()
        disk.broken = set()
        if who == "writer":
            await store.append("r", at(1, b"2"))
        else:
            await store.release("r")
        assert store.problems() == {}
        assert await load(store, "r") == [b"1", *[b"2"] * (who == "writer")]


async def test_a_log_that_the_system_lost_is_not_written_anew(
    directory: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = Seconds(monkeypatch)
    async with FileStore(directory, fsync="everysec") as store:
        await store.append("r", at(1, b"1", b"2"))
        disk.broken = {"fsync"}
        await seconds.tick()
        disk.broken = set()
        lost = bytearray((directory / "r.ylog").read_bytes())
        lost[-1] ^= 1
        (directory / "r.ylog").write_bytes(lost)
        with pytest.raises(RoomCorrupt, match="lost"):
            await store.append("r", at(1, b"3"))
        assert (directory / "r.ylog").read_bytes() == lost


# ---- compacting


async def test_a_log_has_outgrown_its_document_at_twice_its_snapshot(directory: Path) -> None:
    async with FileStore(directory, compact_from=1000) as store:
        assert not store.outgrown("r")
        await store.append("r", at(1, b"x" * 900))
        assert not store.outgrown("r")
        await store.append("r", at(1, b"x" * 100))
        assert store.outgrown("r")
        for release in (False, True):
            await compact(store, "r", b"y" * 5000)
            if release:
                await store.release("r")
                await load(store, "r")
            await store.append("r", at(1, b"x" * 4900))
            assert not store.outgrown("r")
            await store.append("r", at(1, b"x" * 200))
            assert store.outgrown("r")


async def test_a_compaction_that_failed_may_be_tried_again(directory: Path, disk: Disk) -> None:
    """When, is for the driver to say, which knows that of every store."""
    async with FileStore(directory, compact_from=1000) as store:
        await store.append("r", at(1, b"x" * 1000))
        disk.room_for = 100
        with pytest.raises(StoreUnavailable, match="No space left"):
            await compact(store, "r", b"y" * 500)
        disk.room_for = None
        assert store.outgrown("r")
        await compact(store, "r", b"y" * 500)
        assert not store.outgrown("r")
        assert await load(store, "r") == [b"y" * 500]


async def test_what_a_crash_left_of_a_compaction_is_removed(directory: Path) -> None:
    """And nothing else that somebody keeps there."""
    await make_log(directory, [b"1"])
    (directory / "r.0123abcd.new").write_bytes(b"half a snapshot")
    (directory / "notes.new").write_bytes(b"precious")
    (directory / "folder.0123abcd.new").mkdir()
    async with FileStore(directory) as store:
        assert sorted(path.name for path in directory.glob("*.new")) == [
            "folder.0123abcd.new",
            "notes.new",
        ]
        assert await load(store, "r") == [b"1"]


async def test_what_is_read_back_of_a_snapshot_has_to_be_it(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FileStore(directory) as store:
        await store.append("r", at(1, b"1"))
        pwrite = os.pwrite

        def lying(fd: int, data: memoryview, offset: int) -> int:
            return pwrite(fd, bytes(data).replace(b"snap", b"lies"), offset)

        monkeypatch.setattr(os, "pwrite", lying)
        with pytest.raises(StoreUnavailable, match="does not hold"):
            await compact(store, "r", b"snapshot")
        assert await load(store, "r") == [b"1"]
        assert not (directory / "r.new").exists()


async def test_a_room_that_is_released_meanwhile_is_not_compacted(directory: Path) -> None:
    async with FileStore(directory) as store:
        await store.append("r", at(1, b"1"))

        async def snapshot() -> StoredUpdate:
            await store.release("r")
            await store.append("r", at(1, b"2"))
            return StoredUpdate(b"1", 1)

        with pytest.raises(StoreUnavailable, match="closed while"):
            await store.compact("r", snapshot)
        assert await load(store, "r") == [b"1", b"2"]


async def test_a_log_is_compacted_by_one_at_a_time(directory: Path) -> None:
    """The other's offsets would be those of a file that is no more."""
    async with FileStore(directory) as store:
        await store.append("r", at(1, b"1", b"2"))

        async def snapshot() -> StoredUpdate:
            with pytest.raises(StoreUnavailable, match="already"):
                await compact(store, "r", b"12")
            await store.append("r", at(1, b"3"))
            return StoredUpdate(b"12", 1)

        await store.compact("r", snapshot)
        assert await load(store, "r") == [b"12", b"3"]
        await compact(store, "r", b"123")
        assert await load(store, "r") == [b"123"]


async def test_a_compaction_that_is_cancelled_leaves_nothing_behind(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def descriptors() -> int:
        return len(os.listdir("/dev/fd"))

    async with FileStore(directory, fsync="never") as store:
        await store.append("r", at(1, b"1", b"2"))
        write_snapshot = LogFile.write_snapshot

        def and_cancel(*args: Any) -> None:
            write_snapshot(*args)
            anyio.from_thread.run_sync(scope.cancel)

        monkeypatch.setattr(LogFile, "write_snapshot", and_cancel)
        before = descriptors()
        with anyio.CancelScope() as scope:
            await compact(store, "r", b"12")
        assert scope.cancelled_caught
        assert descriptors() == before
        assert not (directory / "r.new").exists()
        monkeypatch.undo()
        await compact(store, "r", b"12")
        assert await load(store, "r") == [b"12"]


@pytest.mark.parametrize("size", [10, 5_000_000])
async def test_a_load_reads_one_file_though_it_is_replaced(directory: Path, size: int) -> None:
    updates = [bytes([i]) * 700_000 for i in range(4)]
    async with FileStore(directory, fsync="never") as store:
        await store.append("r", at(1, *updates))
        async with aclosing(store.load("r")) as loading:
            assert (await anext(loading)).update == updates[0]
            await compact(store, "r", b"s" * size)
            assert [stored.update async for stored in loading] == updates[1:]
        assert await load(store, "r") == [b"s" * size]


async def test_healing_and_compacting_at_once_lose_nothing(directory: Path) -> None:
    """Each writes a file of its own beside the log."""
    async with FileStore(directory) as store:
        begun = anyio.Event()
        await store.append("r", at(1, b"1"))

        async def snapshot() -> StoredUpdate:
            store._log("r").failure = "a sync failed"
            await store.append("r", at(1, b"2"))
            store._log("r").failure = "another failed"
            begun.set()
            return StoredUpdate(b"1", 1)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.compact, "r", snapshot)
            await begun.wait()
            for i in range(50):
                tasks.start_soon(store.append, "r", at(1, b"x%d" % i))
        await store.append("r", at(1, b"last"))
        loaded = await load(store, "r")
        assert {b"1", b"2", b"last", *(b"x%d" % i for i in range(50))} <= set(loaded)
        await store.release("r")
        assert await load(store, "r") == loaded
        assert list(directory.glob("*.new")) == []


async def test_what_the_system_lost_of_an_open_log_is_no_secret(directory: Path) -> None:
    async with FileStore(directory) as store:
        await store.append("r", at(1, b"1"))
        await store.append("r", at(1, b"2"))
        path = directory / "r.ylog"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(RoomCorrupt, match="lost"):
            await load(store, "r")


async def test_a_sync_that_fails_while_loading_is_made_good_for(
    directory: Path, disk: Disk
) -> None:
    path, _ = await make_log(directory, [b"1"])
    first = path.stat().st_ino
    async with FileStore(directory, fsync="always") as store:
        disk.broken = {"fsync"}
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="Input/output error"):
                await load(store, "r")
            with pytest.raises(StoreUnavailable):
                await store.release("r")
        assert list(store.problems()) == ["r"]
        disk.broken = set()
        assert await load(store, "r") == [b"1"]
        assert path.stat().st_ino != first


async def test_history_has_no_gap(directory: Path) -> None:
    """Who stops keeping it for a while would be told wrong things about that while."""
    async with FileStore(directory, keep_history=True) as store:
        await store.append("r", at(10, b"1"))
        await compact(store, "r", b"1", time=15)
    async with FileStore(directory) as store:
        await store.append("r", at(20, b"2"))
        await compact(store, "r", b"12", time=25)
        assert await load(store, "r") == [b"12"]
        assert [stored.update async for stored in store.load("r", at=22)] == [b"1", b"1", b"2"]


async def test_what_is_kept_twice_after_a_crash_is_kept_once_more(directory: Path) -> None:
    """It came after the log got its other name, and before the new one got the old name."""
    async with FileStore(directory, keep_history=True) as store:
        await store.append("r", at(10, b"1"))
        await store.release("r")
        (directory / "r.past").mkdir()
        os.link(directory / "r.ylog", directory / "r.past" / "00000001")
        await compact(store, "r", b"1", time=15)
        assert os.listdir(directory / "r.past") == ["00000001"]
        assert await load(store, "r") == [b"1"]


@pytest.mark.parametrize("keep_history", [False, True])
async def test_a_stray_file_in_the_past_stops_nothing(directory: Path, keep_history: bool) -> None:
    """Of a file manager, an editor or a backup program. What is a number is taken for a log."""
    async with FileStore(directory, keep_history=keep_history) as store:
        past = directory / "r.past"
        past.mkdir(parents=True)
        strays = {".DS_Store", "00000001.bak", "\u00b2", "x"}
        for name in strays:
            (past / name).write_bytes(b"stray")
        for time in (10, 20):
            await store.append("r", at(time, NOTHING))
            await compact(store, "r", NOTHING, time=time + 5)
        logs = {"00000001", "00000002"} if keep_history else set()
        assert set(os.listdir(past)) == strays | logs
        assert await store.check_history("r") == []
        if keep_history:
            assert [u async for u, _, _ in store.load("r", at=10)] == [NOTHING]
            os.remove(past / "00000002")
            (past / "00000002").mkdir()
            await store.append("r", at(30, NOTHING))
            await compact(store, "r", NOTHING, time=35)
            assert sorted(set(os.listdir(past)) - strays)[-1] == "00000003"
            (problem,) = [p for p in await store.check_history("r") if "00000002" in p]
            assert "it is no regular file" in problem


async def test_a_past_that_is_no_directory_is_told(directory: Path) -> None:
    async with FileStore(directory) as store:
        await store.append("r", at(10, b"1"))
        (directory / "r.past").write_bytes(b"stray")
        with pytest.raises(StoreUnavailable, match=r"can't list .*r\.past: Not a directory"):
            await compact(store, "r", b"1")
        assert "can't list" in (await store.check_history("r"))[0]
        assert await load(store, "r") == [b"1"]


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)  # no name is too long for that


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [_pipe, _socket, _device, Path.mkdir])
async def test_what_is_no_file_is_not_waited_for(
    directory: Path, make: Callable[[Path], None]
) -> None:
    """Where its name does not tell the room, it is looked into."""
    why = "No such device" if make is _socket else "it is no regular file"
    hashed = Path(file_name("x" * 300) + ".ylog")
    async with FileStore(directory) as store:
        await store.append("a", at(1, b"1"))
        make(directory / hashed)
        make(directory / "r.ylog")
        make(directory / "a.torn")
        with anyio.fail_after(60):
            assert await rooms(store) == ["a", "r"]
            (told,) = await store.nameless()
            assert str(directory / hashed) in told
            assert why in told
            for room in ("r", "x" * 300):
                with pytest.raises(StoreUnavailable, match=why):
                    await load(store, room)
                with pytest.raises(StoreUnavailable, match=why):
                    await store.append(room, at(1, b"1"))
                with pytest.raises(StoreUnavailable, match=why):
                    await store.repair(room, lambda update: True)
            await store.release("a")
            with (directory / "a.ylog").open("ab") as file:
                file.write(b"\0" * 30)
            with pytest.raises(StoreUnavailable, match="can't cut the torn tail"):
                await load(store, "a")


# ---- repairing


@pytest.fixture(params=["files", "sqlite"])
def kind(request: pytest.FixtureRequest, directory: Path) -> Callable[..., Store]:
    """Makes a store of a kind."""
    if request.param == "files":
        return lambda **options: FileStore(directory, **options)
    return lambda **options: SQLiteStore(directory / "rooms.db", **options)


def break_updates(directory: Path, *updates: bytes) -> None:
    """Flip a bit of each, wherever it is stored."""
    database = directory / "rooms.db"
    if database.exists():
        with closing(sqlite3.connect(database)) as db, db:
            for update in updates:
                db.execute("UPDATE updates SET crc = crc + 1 WHERE data = ?", (update,))
        return
    for path in directory.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for update in updates:
                content = content.replace(update, bytes([update[0] ^ 1]) + update[1:])
            path.write_bytes(content)


async def load_damaged(store: Store) -> tuple[list[bytes], int]:
    """What is given of the room "r", and how many bytes are said to be lost."""
    read: list[bytes] = []
    with pytest.raises(RoomCorrupt, match="`ycore repair`") as damage:
        async for stored in store.load("r"):
            read.append(stored.update)
    return read, damage.value.lost


@pytest.mark.parametrize(
    ("broken", "left", "lost"),
    [
        ([b"snapshot 2"], [b"snapshot 1", b"edit 2", b"edit 3", b"edit 4"], 0),
        ([b"snapshot 2", b"snapshot 1"], [b"edit 1", b"edit 2", b"edit 3", b"edit 4"], 0),
        ([b"snapshot 2", b"edit 2"], [b"snapshot 1", b"edit 3", b"edit 4"], 6),
        ([b"snapshot 2", b"snapshot 1", b"edit 1"], [b"edit 2", b"edit 3", b"edit 4"], 6),
        ([b"snapshot 2", b"edit 4"], [b"snapshot 1", b"edit 2", b"edit 3"], 6),
    ],
)
async def test_the_history_makes_good_for_a_snapshot_that_is_damaged(
    kind: Callable[..., Store],
    directory: Path,
    broken: list[bytes],
    left: list[bytes],
    lost: int,
) -> None:
    async with kind(keep_history=True) as store:
        for number in (1, 2):
            await store.append("r", at(10 * number, b"edit %d" % number))
            await compact(store, "r", b"snapshot %d" % number, time=10 * number + 5)
        await store.append("r", at(30, b"edit 3", b"edit 4"))
    break_updates(directory, *broken)
    async with kind() as store:
        assert await load_damaged(store) == (left, lost)
        await store.repair("r", lambda update: True)
    async with kind() as store:  # which goes on keeping the history
        assert await load(store, "r") == left
        await store.append("r", at(40, b"edit 5"))
        assert await load(store, "r") == [*left, b"edit 5"]
        await compact(store, "r", b"snapshot 4", time=45)
        assert await load(store, "r") == [b"snapshot 4"]
        with suppress(RoomCorrupt):
            loading = store.load("r", at=40)
            assert b"edit 5" in [stored.update async for stored in loading]
        with pytest.raises((RoomNotFound, RoomCorrupt)):  # and not HistoryNotKept
            _ = [stored async for stored in store.load("r", at=9)]


async def test_nor_is_a_snapshot_taken_that_is_not_to_be_kept(kind: Callable[..., Store]) -> None:
    async with kind(keep_history=True) as store:
        await store.append("r", at(10, b"1"))
        await compact(store, "r", b"malformed")
        await store.append("r", at(20, b"2"))
        await store.release("r")
        await store.repair("r", lambda update: update != b"malformed")
        assert await load(store, "r") == [b"1", b"2"]


async def test_a_snapshot_without_a_history_is_lost(
    kind: Callable[..., Store], directory: Path
) -> None:
    async with kind() as store:
        await store.append("r", at(10, b"edit 1"))
        await compact(store, "r", b"snapshot")
        await store.append("r", at(20, b"edit 2"))
    break_updates(directory, b"snapshot")
    async with kind() as store:
        assert await load_damaged(store) == ([b"edit 2"], 8)
        await store.repair("r", lambda update: True)
        assert await load(store, "r") == [b"edit 2"]
        await compact(store, "r", b"snapshot 2")  # nor does it begin one
        with pytest.raises(HistoryNotKept):
            _ = [stored async for stored in store.load("r", at=20)]


@pytest.mark.parametrize("content", [b"", bytes(5000)])
async def test_the_history_makes_good_for_a_log_that_was_emptied(
    directory: Path, content: bytes
) -> None:
    async with FileStore(directory, keep_history=True) as store:
        await store.append("r", at(10, b"1"))
        await compact(store, "r", b"snapshot 1")
        await store.append("r", at(20, b"2"))
        await compact(store, "r", b"snapshot 2")
    (directory / "r.ylog").write_bytes(content)
    async with FileStore(directory) as store:
        assert await load_damaged(store) == ([b"snapshot 1", b"2"], 0)
        with pytest.raises(RoomCorrupt):
            await store.append("r", at(30, b"3"))
        await store.repair("r", lambda update: True)
        await store.append("r", at(30, b"3"))
        assert await load(store, "r") == [b"snapshot 1", b"2", b"3"]


async def test_damage_in_the_past_hides_nothing_after_it(directory: Path) -> None:
    async with FileStore(directory, keep_history=True) as store:
        await store.append("r", at(10, b"one", b"two"))
        await compact(store, "r", b"12", time=15)
        await store.append("r", at(20, b"three"))
    break_updates(directory, b"one")
    async with FileStore(directory) as store:
        read: list[bytes] = []
        with pytest.raises(RoomCorrupt, match="00000001"):
            async for stored in store.load("r", at=20):
                read.append(stored.update)
        assert read == [b"two", b"12", b"three"]


@pytest.mark.parametrize("harm", [_flip_in_the_middle, _of_a_longer_name, _of_another_room])
async def test_a_damaged_log_is_repaired_with_what_can_be_read(directory: Path, harm: Harm) -> None:
    path, ends = await make_log(directory, [b"one", b"two", b"bad", b"four"])
    harm(path, ends)
    damaged = path.read_bytes()
    async with FileStore(directory) as store:
        where = await store.repair("r", lambda update: update != b"bad")
        assert Path(where).read_bytes() == damaged
        assert Path(where).parent == directory / "r.damaged"
        expected = {
            _flip_in_the_middle: [b"one", b"four"],
            _of_a_longer_name: [b"one", b"two", b"four"],
            _of_another_room: [],
        }
        assert await load(store, "r") == expected[harm]
        await store.append("r", at(1, b"five"))
        assert await load(store, "r") == [*expected[harm], b"five"]
        assert await store.repair("r", lambda _: True) != where
        assert await rooms(store) == ["r"]
        with pytest.raises(RoomNotFound):
            await store.repair("other", lambda _: True)
        await store.delete("r")
    assert [file.name for file in directory.iterdir()] == [".lock"]


async def test_a_damaged_log_gives_all_that_can_be_read_first(directory: Path) -> None:
    path, ends = await make_log(directory, [b"one", b"two", b"three", b"four", b"five"])
    data = bytearray(path.read_bytes())
    data[ends[1] - 1] ^= 1
    data[ends[3] - 1] ^= 1
    path.write_bytes(data)
    async with FileStore(directory) as store:
        read: list[bytes] = []

        async def read_all() -> None:
            async for stored in store.load("r"):
                read.append(stored.update)

        with pytest.raises(RoomCorrupt, match=f"at byte {ends[0]} to {ends[1]}; .*`ycore repair`"):
            await read_all()
        assert read == [b"one", b"three", b"five"]
        assert not (directory / "r.torn").exists()


async def test_a_damaged_room_is_not_compacted(directory: Path) -> None:
    path, ends = await make_log(directory, [b"one", b"two", b"three"])
    _flip_in_the_middle(path, ends)
    before = path.read_bytes()
    async with FileStore(directory) as store:
        with pytest.raises(RoomCorrupt):
            await compact(store, "r", b"one")
    assert path.read_bytes() == before


async def test_damage_in_the_past_is_no_secret(directory: Path) -> None:
    async with FileStore(directory, keep_history=True) as store:
        await store.append("r", at(10, b"1", b"2", b"3"))
        await compact(store, "r", b"123", time=15)
        past = directory / "r.past" / "00000001"
        data = bytearray(past.read_bytes())
        data[-30] ^= 1
        past.write_bytes(data)
        assert await load(store, "r") == [b"123"]
        with pytest.raises(RoomCorrupt, match=r"r\.past"):
            _ = [stored async for stored in store.load("r", at=12)]


async def test_loading_takes_little_memory(directory: Path) -> None:
    """A log of 30 MB is read in a few; what the reader does with the updates is its own affair."""
    async with FileStore(directory, fsync="never") as store:
        update = os.urandom(1000)
        for _ in range(30):
            await store.append("r", at(1, *[update] * 1000))
        await store.release("r")
        tracemalloc.start()
        try:
            count = 0
            async with aclosing(store.load("r")) as loading:  # type: ignore[type-var]
                async for loaded in loading:
                    count += loaded.update == update
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert count == 30_000
    assert peak < 6 * 2**20
