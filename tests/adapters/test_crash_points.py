"""The file store on a disk that fails, at each system call in turn, in each way it can.

A simulated disk stands in for the system calls of the store's files. It knows what a power cut
would leave: of names and of content, what was synced for certain, and of the rest anything. A
scenario is run once to count its calls, and then once for each call and way to fail. Afterwards,
for each state the disk may be in, the store is opened anew: what was promised is there, nothing is
made up, and it can be written to.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Literal, TypeAlias, get_args

import pytest
from ycore_adapters.stores import (
    FileStore,
    Fsync,
    RoomCorrupt,
    RoomNotFound,
    Store,
    StoredUpdate,
    StoreError,
)
from ycore_adapters.stores import _logfile as logfile

pytestmark = pytest.mark.anyio

Way: TypeAlias = Literal["fails", "fails for good", "tears", "crash before", "crash after", "lies"]
"""What happens at a call: it fails once; it and all later ones that write fail; it is done in part
and the process is killed; the process is killed before it or right after; from it on, syncing does
nothing and says it did (of power cuts nothing can be promised then)."""


class Crash(BaseException):
    """The process is no more."""


@dataclass
class File:
    """An inode."""

    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    """What of it is on the disk for certain."""


class Disk:
    """System calls on files of one directory tree that exists in memory only."""

    O_RDONLY, O_RDWR, O_WRONLY = os.O_RDONLY, os.O_RDWR, os.O_WRONLY
    O_CREAT, O_EXCL, SEEK_END = os.O_CREAT, os.O_EXCL, os.SEEK_END
    O_NONBLOCK = os.O_NONBLOCK
    _MAY_FAIL: Final = ("open", "pwrite", "fsync", "ftruncate", "replace", "link", "unlink")

    def __init__(self, names: dict[str, File] | None = None) -> None:
        self.names = names or {}
        self.synced_names = dict(self.names)
        """What a power cut leaves of the names, for certain."""
        self.calls = 0
        self.fail_at: int | None = None
        self.way: Way = "fails"
        self.broken = self.lies = self.dead = False
        self._fds: dict[int, tuple[str, File | None]] = {}
        self._next_fd = 1000

    def _may_fail(self, do: Callable[[], Any], part: Callable[[], Any] | None = None) -> Any:
        if self.dead:
            raise Crash
        self.calls += 1
        if self.broken:
            raise OSError(errno.EIO, "Input/output error")
        if self.calls == self.fail_at:
            if self.way == "crash after":
                do()
            elif self.way == "tears" and part is not None:
                part()
            if self.way in ("crash before", "crash after", "tears"):
                self.dead = True
                raise Crash
            if self.way == "lies":
                self.lies = True
                return do()
            self.broken = self.way == "fails for good"
            raise OSError(errno.ENOSPC, "No space left on device")
        return do()

    # -- the calls

    def open(self, path: Path | str, flags: int, mode: int = 0) -> int:
        path = str(path)

        def do() -> int:
            file: File | None = None
            if not path.endswith("data") and not path.endswith(".past"):
                assert not (flags & os.O_EXCL and path in self.names)
                if path not in self.names:
                    if not flags & os.O_CREAT:
                        raise FileNotFoundError(errno.ENOENT, "No such file", path)
                    self.names[path] = File()
                file = self.names[path]
            self._next_fd += 1
            self._fds[self._next_fd] = (path, file)
            return self._next_fd

        return int(self._may_fail(do) if flags & os.O_CREAT else do())

    def _file(self, fd: int) -> File:
        file = self._fds[fd][1]
        assert file is not None
        return file

    def close(self, fd: int) -> None:
        del self._fds[fd]

    def fstat(self, fd: int) -> SimpleNamespace:
        file = self._file(fd)
        return SimpleNamespace(
            st_mode=stat.S_IFREG, st_dev=1, st_ino=id(file), st_size=len(file.data)
        )

    def stat(self, path: Path) -> SimpleNamespace:
        file = self.names.get(str(path))
        if file is None:
            raise FileNotFoundError(errno.ENOENT, "No such file", path)
        return SimpleNamespace(st_dev=1, st_ino=id(file), st_size=len(file.data))

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        assert (offset, whence) == (0, os.SEEK_END)
        return len(self._file(fd).data)

    def dup(self, fd: int) -> int:
        self._next_fd += 1
        self._fds[self._next_fd] = self._fds[fd]
        return self._next_fd

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return bytes(self._file(fd).data[offset : offset + size])

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        def do(size: int = len(data)) -> int:
            content = self._file(fd).data
            if len(content) < offset:
                content.extend(bytes(offset - len(content)))
            content[offset : offset + size] = data[:size]
            return size

        return int(self._may_fail(do, partial(do, len(data) // 2)))

    def ftruncate(self, fd: int, size: int) -> None:
        def do() -> None:
            del self._file(fd).data[size:]

        self._may_fail(do)

    def fsync(self, fd: int) -> None:
        path, file = self._fds[fd]

        def do() -> None:
            if self.lies:
                return
            if file is not None:
                file.synced = bytes(file.data)
                return
            inside = {n: f for n, f in self.names.items() if os.path.dirname(n) == path}
            for name in [n for n in self.synced_names if os.path.dirname(n) == path]:
                del self.synced_names[name]
            self.synced_names.update(inside)

        self._may_fail(do)

    def replace(self, source: Path, target: Path) -> None:
        def do() -> None:
            self.names[str(target)] = self.names.pop(str(source))

        self._may_fail(do)

    def link(self, source: Path, target: Path) -> None:
        def do() -> None:
            assert str(target) not in self.names
            self.names[str(target)] = self.names[str(source)]

        self._may_fail(do)

    def unlink(self, path: Path | str) -> None:
        def do() -> None:
            if str(path) not in self.names:
                raise FileNotFoundError(errno.ENOENT, "No such file", path)
            del self.names[str(path)]

        self._may_fail(do)

    def mkdir(self, path: Path, mode: int = 0) -> None:
        pass

    def makedirs(self, path: Path, mode: int = 0, *, exist_ok: bool) -> None:
        pass

    def listdir(self, path: Path) -> list[str]:
        return [Path(n).name for n in self.names if os.path.dirname(n) == str(path)]

    # -- what is left

    def after_a_kill(self) -> Disk:
        """The system goes on: all that was written is there, though it may not be on the disk."""
        files = {id(file): File(bytearray(file.data), file.synced) for file in self._files()}
        left = Disk({name: files[id(file)] for name, file in self.names.items()})
        left.synced_names = {name: files[id(file)] for name, file in self.synced_names.items()}
        return left

    def _files(self) -> list[File]:
        return [*self.names.values(), *self.synced_names.values()]

    def after_a_power_cut(self) -> Iterator[Disk]:
        """What the disk may hold: the names as they were or as last synced; of each file what was
        synced, or more of it, or zeros where more was to be."""

        def in_past(names: dict[str, File]) -> dict[str, File]:
            return {name: file for name, file in names.items() if ".past/" in name}

        def others(names: dict[str, File]) -> dict[str, File]:
            return {name: file for name, file in names.items() if ".past/" not in name}

        old, new = self.synced_names, self.names
        for names in (old, new, others(old) | in_past(new), others(new) | in_past(old)):
            yield self._left(names, lambda file: file.synced)
            yield self._left(names, lambda file: file.data)
            yield self._left(names, _half)
            yield self._left(names, lambda file: file.synced.ljust(len(file.data), b"\0"))

    def content(self) -> frozenset[tuple[str, bytes]]:
        return frozenset((name, bytes(file.data)) for name, file in self.names.items())

    @staticmethod
    def _left(names: dict[str, File], content: Callable[[File], bytes | bytearray]) -> Disk:
        files = {id(file): File(bytearray(content(file))) for file in names.values()}
        for file in files.values():
            file.synced = bytes(file.data)
        return Disk({name: files[id(file)] for name, file in names.items()})


def _half(file: File) -> bytes:
    """Of what was not synced, the first half."""
    if file.data[: len(file.synced)] != file.synced:
        return file.synced  # it was rewritten, and that is not on the disk
    return bytes(file.data[: (len(file.synced) + len(file.data)) // 2])


# ---- the scenarios


class Session:
    """What was done with a store, and what it promised."""

    def __init__(self, store: FileStore, disk: Disk) -> None:
        self.store = store
        self.disk = disk
        self.stored: list[bytes] = []
        """What `append` took."""
        self.durable = 0
        """How much of that a power cut must not take."""
        self.tried: set[bytes] = set()

    async def append(self, *updates: bytes) -> None:
        self.tried.update(updates)
        try:
            await self.store.append("r", [StoredUpdate(update, 1) for update in updates])
        except StoreError:
            return
        self.stored.extend(updates)
        if self.store.fsync == "always":
            self.durable = len(self.stored)

    async def release(self) -> None:
        try:
            await self.store.release("r")
        except StoreError:
            return
        if self.store.fsync != "never":
            self.durable = len(self.stored)

    async def second(self) -> None:
        """A second passes."""
        await self.store._sync_all()
        if not self.store.problems() and self.store.fsync == "everysec":
            self.durable = len(self.stored)

    async def compact(self, *meanwhile: bytes) -> None:
        async def snapshot() -> StoredUpdate:
            update = b"+" + b",".join(self.stored)
            for new in meanwhile:
                await self.append(new)
            return StoredUpdate(update, 100)

        try:
            await self.store.compact("r", snapshot)
        except StoreError:
            return

    async def load(self) -> None:
        with suppress(StoreError):
            await load(self.store)


async def load(store: Store, at: float | None = None) -> list[bytes]:
    """All updates, those in a snapshot as well."""
    found: list[bytes] = []
    try:
        async with aclosing(store.load("r", at=at)) as updates:
            async for stored in updates:
                if stored.update.startswith(b"+"):
                    found.extend(stored.update[1:].split(b","))
                else:
                    found.append(stored.update)
    except RoomNotFound:
        pass
    return found


async def appending(session: Session) -> None:
    await session.append(b"one", b"two")
    await session.append(b"three" * 10)
    await session.second()
    await session.append(b"four")
    await session.release()
    await session.append(b"five")
    await session.load()
    await session.append(b"six", b"seven")


async def compacting(session: Session) -> None:
    await session.append(b"one", b"two")
    await session.compact(b"three", b"four")
    await session.append(b"five")
    await session.second()
    await session.compact()
    await session.append(b"six")
    await session.release()
    await session.compact(b"seven")
    await session.append(b"eight")


async def healing(session: Session) -> None:
    """Syncs that fail, whatever else happens."""
    await session.append(b"one", b"two")
    for update in (b"three", b"four"):
        session.store._log("r").failure = "a sync failed"
        await session.append(update)
    session.store._log("r").failure = "a sync failed"
    await session.second()
    await session.append(b"five")
    session.store._log("r").failure = "a sync failed"
    await session.release()
    await session.append(b"six")


Scenario: TypeAlias = Callable[[Session], Awaitable[None]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def put_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[Disk], None]:
    return lambda disk: monkeypatch.setattr(logfile, "os", disk)


async def run(scenario: Scenario, store: FileStore, disk: Disk) -> Session:
    """Do it, up to the crash if there is one. The store is not closed in order then."""
    session = Session(store, disk)
    store.directory.mkdir(exist_ok=True)
    store._is_open = True
    try:
        await scenario(session)
    except* Crash:
        pass
    return session


async def check(
    disk: Disk, make: Callable[[], FileStore], must: list[bytes], may: set[bytes]
) -> list[bytes]:
    """Open what is left: everything promised is there, in order, and nothing unheard of.

    Returns what was found first, which somebody may have seen since.
    """
    for again in range(2):
        store = make()
        store._is_open = True
        found = await load(store)
        assert [update for update in dict.fromkeys(found) if update in must] == must
        assert set(found) <= may | {b"", b"new"}
        if store.keep_history and must:
            assert set(must) <= set(await load(store, at=99))  # before anything was compacted
        if not again:
            seen = found
            await store.append("r", [StoredUpdate(b"new", 1)])
            assert (await load(store))[-1] == b"new"
        await store.release("r")
    assert not [name for name in disk.names if name.endswith(".damaged")]
    return seen


@pytest.mark.parametrize("fsync", get_args(Fsync))
@pytest.mark.parametrize(
    ("scenario", "keep_history"),
    [(appending, False), (compacting, False), (compacting, True), (healing, False)],
    ids=["appending", "compacting", "compacting with history", "healing"],
)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # what matters here is below the event loop
async def test_whatever_fails_at_whatever_call_loses_nothing(
    scenario: Scenario,
    fsync: Fsync,
    keep_history: bool,
    data: Path,
    put_in: Callable[[Disk], None],
) -> None:
    def make() -> FileStore:
        return FileStore(data, fsync=fsync, keep_history=keep_history)

    disk = Disk()
    put_in(disk)
    session = await run(scenario, make(), disk)
    assert len(session.stored) == len(session.tried)
    calls = disk.calls
    assert calls > 5
    states = 0
    for fail_at in range(1, calls + 1):
        for way in get_args(Way):
            disk = Disk()
            disk.fail_at, disk.way = fail_at, way
            put_in(disk)
            session = await run(scenario, make(), disk)
            durable = [] if disk.lies else session.stored[: session.durable]
            checked = set()
            after_a_kill = disk.after_a_kill()
            put_in(after_a_kill)
            seen = await check(after_a_kill, make, session.stored, session.tried)
            left_by_power_cuts = [(left, durable) for left in disk.after_a_power_cut()]
            if fsync != "never" and not disk.lies:
                # A power cut after the kill: what was loaded meanwhile, others have seen.
                left_by_power_cuts += [(left, seen) for left in after_a_kill.after_a_power_cut()]
            for left, must in left_by_power_cuts:
                same = (left.content(), tuple(must))
                if same not in checked:
                    checked.add(same)
                    put_in(left)
                    try:
                        await check(left, make, must, session.tried)
                    except RoomCorrupt:  # a snapshot that is half there, though it was "synced"
                        assert disk.lies
            states += 1 + len(checked)
    print(f"{scenario.__name__} {fsync}: {calls} calls, {states} states")
