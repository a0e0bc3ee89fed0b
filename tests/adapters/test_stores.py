"""The stores: what was appended is loaded, whatever happens to the disk or to the process."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeAlias, get_args

import anyio
import pytest
from ycore_adapters.stores import (
    FileStore,
    MemoryStore,
    RoomCorrupt,
    RoomNotFound,
    Store,
    StoreUnavailable,
)
from ycore_adapters.stores._log import MAX_NAME, encode_header, encode_record
from ycore_adapters.stores.file import Fsync

pytestmark = pytest.mark.anyio

POLICIES: tuple[Fsync, ...] = get_args(Fsync)


async def load(store: Store, room: str) -> list[bytes]:
    return [update async for update in store.load(room)]


async def rooms(store: Store) -> list[str]:
    return sorted([room async for room in store.rooms()])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture(params=["memory", *POLICIES])
async def store(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[Store]:
    kind = request.param
    async with MemoryStore() if kind == "memory" else FileStore(directory, fsync=kind) as store:
        yield store


@pytest.fixture(params=POLICIES)
def fsync(request: pytest.FixtureRequest) -> Fsync:
    policy: Fsync = request.param
    return policy


# ---- every store


async def test_updates_are_loaded_in_the_order_they_were_appended(store: Store) -> None:
    await store.append("r", [b"1", b"2"])
    await store.append("other", [b"0"])
    await store.append("r", [b"3"])
    assert await load(store, "r") == [b"1", b"2", b"3"]
    await store.append("r", [b"", b"4"])
    assert await load(store, "r") == [b"1", b"2", b"3", b"", b"4"]


async def test_an_unknown_room_is_not_found(store: Store) -> None:
    with pytest.raises(RoomNotFound):
        await load(store, "r")
    with pytest.raises(RoomNotFound):
        await store.delete("r")
    await store.release("r")
    assert await rooms(store) == []


async def test_replace_puts_one_update_in_the_place_of_all(store: Store) -> None:
    await store.replace("new", b"only")
    assert await load(store, "new") == [b"only"]
    await store.append("r", [b"1", b"2"])
    await store.replace("r", b"both")
    await store.append("r", [b"3"])
    assert await load(store, "r") == [b"both", b"3"]
    assert await rooms(store) == ["new", "r"]


async def test_a_deleted_room_is_forgotten(store: Store) -> None:
    await store.append("r", [b"1"])
    await store.append("stays", [b"2"])
    await store.delete("r")
    with pytest.raises(RoomNotFound):
        await load(store, "r")
    assert await rooms(store) == ["stays"]
    await store.append("r", [b"again"])
    assert await load(store, "r") == [b"again"]


NAMES = [
    *("", ".", "..", "/", "a/b", "a%2Fb", "a/b c?x=1", "ROOM", "room", "CON", ".lock", "~"),
    *("räume", "ra\u0308ume", "😀", "\ud800", "nul\x00l", "x" * 300, "x" * 301, "é" * 2000),
]


async def test_every_name_is_a_room_of_its_own(store: Store) -> None:
    for name in NAMES:
        await store.append(name, [name.encode("utf-8", "surrogatepass")])
        await store.release(name)
    for name in NAMES:
        assert await load(store, name) == [name.encode("utf-8", "surrogatepass")]
    assert await rooms(store) == sorted(NAMES)


async def test_a_released_room_goes_on_where_it_was(store: Store) -> None:
    for update in (b"1", b"2", b"3"):
        await store.append("r", [update])
        await store.release("r")
        await store.release("r")
    assert await load(store, "r") == [b"1", b"2", b"3"]


async def test_large_and_small_updates_keep_their_order(store: Store) -> None:
    """A large batch is written in a thread."""
    large = os.urandom(700_000)
    for update in (b"1", large, b"2"):
        await store.append("r", [update])
    assert await load(store, "r") == [b"1", large, b"2"]


async def test_a_load_abandoned_halfway_loses_nothing(store: Store) -> None:
    updates = [bytes([i]) * 700_000 for i in range(4)]  # more than is read in one go
    await store.append("r", updates)
    async with aclosing(store.load("r")) as loading:  # type: ignore[type-var]
        async for update in loading:
            assert update == updates[0]
            break
    await store.append("r", [b"more"])
    assert await load(store, "r") == [*updates, b"more"]


# ---- files


async def test_a_new_opening_finds_everything(directory: Path, fsync: Fsync) -> None:
    for i in range(3):
        async with FileStore(directory, fsync=fsync) as store:
            if i:
                assert await load(store, "r") == [b"update"] * i
            await store.append("r", [b"update"])


async def test_rooms_with_overlong_names_are_refused(directory: Path) -> None:
    """Their headers could not be read again."""
    name = "😀" * (MAX_NAME + 1)
    async with FileStore(directory) as store:
        with pytest.raises(StoreUnavailable, match="too long"):
            await store.append(name, [b"1"])
        with pytest.raises(StoreUnavailable, match="too long"):
            await load(store, name)
        with pytest.raises(StoreUnavailable, match="too long"):
            await store.replace(name, b"1")
        assert await rooms(store) == []


async def test_what_is_no_room_in_the_directory_is_not_listed(directory: Path) -> None:
    async with FileStore(directory) as store:
        await store.append("r", [b"1"])
        await store.append("x" * 300, [b"1"])
        for name in ("x~1.ylog", "notes.txt", "r.torn", "r.new", "%ff.ylog", "Copy of r.ylog"):
            (directory / name).write_bytes(b"ycorelog")
        assert await rooms(store) == ["r", "x" * 300]


async def test_a_store_that_was_closed_is_unavailable(directory: Path) -> None:
    """The directory may be another process's by now."""
    async with FileStore(directory) as store:
        await store.append("r", [b"1"])
    with pytest.raises(StoreUnavailable):
        await store.append("r", [b"2"])


async def test_a_directory_has_one_owner(directory: Path, fsync: Fsync) -> None:
    async with FileStore(directory, fsync=fsync) as store:
        with pytest.raises(StoreUnavailable, match="in use by another process"):
            await FileStore(directory, fsync=fsync).__aenter__()
        await store.append("r", [b"1"])  # which the attempt has not disturbed
    async with FileStore(directory, fsync=fsync) as store:
        assert await load(store, "r") == [b"1"]


_OWNER = """
import anyio, sys
from ycore_adapters.stores import FileStore

async def main():
    async with FileStore(sys.argv[1], fsync="never") as store:
        await store.append("r", [b"1"])
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
            await store.append("r", [update])
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
            await store.append("r", [b"four"])
        assert await load(store, "r") == [b"one", b"two"] + [b"four"] * (first == "append")
        await store.append("r", [b"five"])
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
            await store.append("r", [b"two"])
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
                await store.append("r", [b"four"])
        await store.append("fine", [b"1"])
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
        await store.append("r", [b"one" * 50, b"two"])
        assert await load(store, "r") == [b"one" * 50, b"two"]


@pytest.mark.parametrize("room_for", [0, 1, 30, 60])
async def test_of_a_batch_the_disk_had_no_room_for_nothing_is_stored(
    directory: Path, fsync: Fsync, disk: Disk, room_for: int
) -> None:
    """And once there is room, appending goes on; a new opening sees the same."""
    async with FileStore(directory, fsync=fsync) as store:
        await store.append("r", [b"one"])
        disk.room_for = room_for
        with pytest.raises(StoreUnavailable, match="No space left"):
            await store.append("r", [b"lost" * 5, b"lost" * 10])
        disk.room_for = None
        await store.append("r", [b"two"])
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
            await store.append("r", [b"lost"])
        disk.room_for = None
        await store.release("r")
        assert await rooms(store) == []
        with pytest.raises(RoomNotFound):
            await load(store, "r")
    assert caplog.messages == []  # nor was anything torn


async def test_always_what_could_not_be_synced_is_not_stored(directory: Path, disk: Disk) -> None:
    async with FileStore(directory, fsync="always") as store:
        await store.append("r", [b"one"])
        disk.broken = {"fsync"}
        with pytest.raises(StoreUnavailable, match="Input/output error"):
            await store.append("r", [b"lost"])
        disk.broken = set()
        assert await load(store, "r") == [b"one"]
        await store.append("r", [b"two"])
        assert await load(store, "r") == [b"one", b"two"]


async def test_a_failed_batch_that_could_not_be_taken_back_breaks_no_later_one(
    directory: Path, disk: Disk
) -> None:
    """Its records lie behind the end of the log; a shorter batch does not cover them all."""
    async with FileStore(directory, fsync="always") as store:
        await store.append("r", [b"one"])
        disk.broken = {"fsync", "ftruncate"}
        with pytest.raises(StoreUnavailable):
            await store.append("r", [b"lost", b"lost too"])
        disk.broken = set()
        await store.append("r", [b"2"])
        await store.release("r")
        loaded = await load(store, "r")
        assert [update for update in loaded if not update.startswith(b"lost")] == [b"one", b"2"]


async def test_replacing_is_done_whole_or_not_at_all(
    directory: Path, fsync: Fsync, disk: Disk
) -> None:
    async with FileStore(directory, fsync=fsync) as store:
        await store.append("r", [b"one", b"two"])
        disk.room_for = 40
        with pytest.raises(StoreUnavailable):
            await store.replace("r", b"both" * 10)
        disk.room_for = None
        assert await load(store, "r") == [b"one", b"two"]
        assert await rooms(store) == ["r"]
        await store.replace("r", b"both")
        assert await load(store, "r") == [b"both"]


async def test_always_syncs_before_it_returns_and_never_never(directory: Path, disk: Disk) -> None:
    async with FileStore(directory / "always", fsync="always") as store:
        await store.append("r", [b"1"])
        assert disk.syncs == 2  # the file, and the directory with its name
        await store.append("r", [b"2", b"3"])
        assert disk.syncs == 3
    disk.syncs = 0
    async with FileStore(directory / "never", fsync="never") as store:
        await store.append("r", [b"1"])
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
        await store.append("r", [b"1"])
        await store.append("r", [b"2"])
        assert disk.syncs == 0
        await seconds.tick()
        assert disk.syncs == 2  # the file, and the directory with its name
        await seconds.tick()
        assert disk.syncs == 2
        await store.append("r", [b"3"])
        await store.release("r")
        assert disk.syncs == 3  # on release at the latest; its name is durable already


async def test_a_sync_that_failed_in_the_background_is_told_to_the_next_writer(
    directory: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seconds = Seconds(monkeypatch)
    async with FileStore(directory, fsync="everysec") as store:
        await store.append("r", [b"1"])
        disk.broken = {"fsync"}
        await seconds.tick()
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        disk.broken = set()
        with pytest.raises(StoreUnavailable, match="failed before"):
            await store.append("r", [b"2"])
        with pytest.raises(StoreUnavailable, match="failed before"):
            await store.release("r")
        # Those who wrote it come back with it; the room is then read anew.
        assert await load(store, "r") == [b"1"]
        await store.append("r", [b"2"])
        assert await load(store, "r") == [b"1", b"2"]


async def test_loading_takes_little_memory(directory: Path) -> None:
    """A log of 30 MB is read in a few; what the reader does with the updates is its own affair."""
    async with FileStore(directory, fsync="never") as store:
        update = os.urandom(1000)
        for _ in range(30):
            await store.append("r", [update] * 1000)
        await store.release("r")
        tracemalloc.start()
        try:
            count = 0
            async with aclosing(store.load("r")) as loading:  # type: ignore[type-var]
                async for loaded in loading:
                    count += loaded == update
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert count == 30_000
    assert peak < 6 * 2**20
