"""What storing costs, in figures: `make bench-stores`. Beside it, in the same run, pycrdt-store.

Rounds take turns, so that a noisy machine is noisy for all; medians are shown. With --trace, the
trace of a person's editing as well: the path of a file of github.com/josephg/editing-traces
(`sequential_traces/automerge-paper.json.gz`), which Yjs in Node makes updates of. With --rooms,
nothing but so many rooms with an edit a second each: how old edits get before they are synced, and
how long the event loop stands still; --sync-ms has each sync of the disk take longer.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import TypeAlias

import anyio
from anyio import lowlevel
from made import keystroke
from ycore_adapters.stores import (
    FileStore,
    Fsync,
    MemoryStore,
    RoomNotFound,
    SQLiteStore,
    Store,
    StoredUpdate,
    file,
)
from ycore_adapters.stores.tools import compact, read

from ycore import StructStore
from ycore.steps import finish

try:
    from pycrdt.store import FileYStore, SQLiteYStore
except ImportError:
    SQLiteYStore = None  # type: ignore[assignment,misc]

Append: TypeAlias = Callable[[Sequence[bytes]], Awaitable[None]]
Opened: TypeAlias = Callable[[Path], AbstractAsyncContextManager[Append]]

ROUNDS = 5
LOOK_EVERY = 0.005
"""Seconds between two looks at whether the event loop stands still."""
PEER_UPDATES = 10_000
"""How much of a trace pycrdt-store is given: it takes milliseconds for each update."""


def keystrokes(count: int) -> list[bytes]:
    """Mostly behind the last one, every twentieth somewhere else."""
    rng = Random(1)
    updates = []
    for clock in range(count):
        elsewhere = clock and rng.random() < 0.05
        origin = rng.randrange(clock) if elsewhere else clock - 1
        updates.append(keystroke(clock, origin if clock else None))
    return updates


# ---- who is measured


def ours(make: Callable[[Path], Store]) -> Opened:
    @asynccontextmanager
    async def opened(directory: Path) -> AsyncIterator[Append]:
        async with make(directory) as store:

            async def append(updates: Sequence[bytes]) -> None:
                await store.append("room", [StoredUpdate(u, time.time()) for u in updates])

            yield append

    return opened


def theirs(make: Callable[[Path], object]) -> Opened:
    @asynccontextmanager
    async def opened(directory: Path) -> AsyncIterator[Append]:
        async with make(directory) as store:  # type: ignore[attr-defined]

            async def append(updates: Sequence[bytes]) -> None:
                for update in updates:
                    await store.write(update)

            yield append

    return opened


def sqlite_ystore(directory: Path) -> object:
    class Store(SQLiteYStore):
        db_path = str(directory / "ystore.db")

    return Store("room")


STORES: dict[str, Opened] = {
    "FileStore always": ours(lambda d: FileStore(d, fsync="always")),
    "FileStore everysec": ours(FileStore),
    "FileStore never": ours(lambda d: FileStore(d, fsync="never")),
    "SQLiteStore always": ours(lambda d: SQLiteStore(d / "x.db", fsync="always")),
    "SQLiteStore everysec": ours(lambda d: SQLiteStore(d / "x.db")),
    "MemoryStore": ours(lambda _: MemoryStore()),
}
if SQLiteYStore is not None:
    STORES["SQLiteYStore (pycrdt-store)"] = theirs(sqlite_ystore)
    STORES["FileYStore (pycrdt-store)"] = theirs(lambda d: FileYStore(str(d / "room")))


# ---- appending


async def append_times(opened: Opened, updates: list[bytes], batch: int) -> list[float]:
    """Seconds for each append, of so many updates."""
    times = []
    with tempfile.TemporaryDirectory(dir=".") as directory:
        async with opened(Path(directory)) as append:
            await append(updates[:1])
            for start in range(1, len(updates), batch):
                begin = time.perf_counter()
                await append(updates[start : start + batch])
                times.append(time.perf_counter() - begin)
    return times


async def appending() -> None:
    print("append, 24-byte updates, one room: microseconds an append (median, 99th percentile)")
    for batch, count in ((1, 2000), (50, 5000)):
        updates = keystrokes(count)
        rounds: dict[str, list[list[float]]] = {name: [] for name in STORES}
        for _ in range(ROUNDS):
            for name, opened in STORES.items():
                few = updates[: count // 10] if "always" in name or "pycrdt" in name else updates
                rounds[name].append(sorted(await append_times(opened, few, batch)))
        print(f"  {batch} at a time")
        for name, times in rounds.items():
            median = statistics.median(t[len(t) // 2] for t in times)
            late = statistics.median(t[len(t) * 99 // 100] for t in times)
            rate = statistics.median(batch * len(t) / sum(t) for t in times)
            print(
                f"    {name:28} {median * 1e6:10,.1f} {late * 1e6:10,.1f}   {rate:12,.0f} updates/s"
            )


# ---- opening and compacting


def in_process(step: str, directory: Path) -> dict[str, float]:
    """Do a step in a process of its own, whose memory can be told."""
    command = [sys.executable, __file__, "--step", step, str(directory)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, float] = json.loads(out)
    return result


async def step(name: str, directory: Path) -> None:
    def memory() -> float:
        """The most it ever had, in MB. (getrusage counts in what the parent had.)"""
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    before = memory()
    begin = time.perf_counter()
    result: dict[str, float] = {}
    async with FileStore(directory) as store:
        if name == "read":
            async for _ in store.load("room"):
                pass
        elif name == "open":
            contents = await read(store, "room")
            result["document_mb"] = len(contents.document.encode()) / 2**20
        elif name == "compact":
            await compact(store, "room")
        elif name == "snapshot":  # what a server does, that has the document already
            document = (await read(store, "room")).document
            before, begin = memory(), time.perf_counter()

            async def snapshot() -> StoredUpdate:
                return StoredUpdate(finish(document.snapshot_steps()), 1)

            await store.compact("room", snapshot)
        result["seconds"] = time.perf_counter() - begin
    result["mb"] = memory() - before
    print(json.dumps(result))


async def large_log(megabytes: int) -> None:
    with tempfile.TemporaryDirectory(dir=".") as temporary:
        directory = Path(temporary)
        path = directory / "room.ylog"
        async with FileStore(directory, fsync="never") as store:
            updates = keystrokes(megabytes * 2**20 // 45)
            for start in range(0, len(updates), 1000):
                await store.append(
                    "room", [StoredUpdate(u, 1) for u in updates[start : start + 1000]]
                )
        size = path.stat().st_size
        raw = sum(map(len, updates))
        print(f"a log of {size / 2**20:.0f} MB: {len(updates):,} keystrokes, {raw / 2**20:.0f} MB")
        for name, what in (("read", "read"), ("open", "read into a document")):
            told = in_process(name, directory)
            print(f"  {what:36} {told['seconds']:7.2f} s, peak +{told['mb']:.0f} MB")
        copy = shutil.copytree(directory, directory.with_name(directory.name + "-copy"))
        told = in_process("snapshot", copy)
        print(
            f"  {'compacted by a server that has it':36} {told['seconds']:7.2f} s, "
            f"peak +{told['mb']:.0f} MB"
        )
        shutil.rmtree(copy)
        told = in_process("compact", directory)
        print(f"  {'`ycore compact`':36} {told['seconds']:7.2f} s, peak +{told['mb']:.0f} MB")
        size = path.stat().st_size
        told = in_process("open", directory)
        print(
            f"  {'opened after that, ' + format(size / 2**20, '.1f') + ' MB':36} "
            f"{told['seconds']:7.2f} s, peak +{told['mb']:.0f} MB"
        )


# ---- a trace


def trace_updates(trace: Path) -> list[bytes]:
    script = Path(__file__).with_name("trace.mjs")
    raw = trace.read_bytes()
    content = gzip.decompress(raw) if trace.suffix == ".gz" else raw
    node_path = Path(__file__).parents[1] / "interop" / "node_modules"
    out = subprocess.run(
        ["node", script],
        input=content,
        check=True,
        capture_output=True,
        env={**os.environ, "YJS": str(node_path / "yjs" / "dist" / "yjs.mjs")},
    ).stdout
    updates = []
    pos = 0
    while pos < len(out):
        size = int.from_bytes(out[pos : pos + 4], "little")
        updates.append(out[pos + 4 : pos + 4 + size])
        pos += 4 + size
    return updates


def on_disk(directory: Path) -> int:
    return sum(f.stat().st_size for f in directory.rglob("*") if f.is_file())


async def tracing(trace: Path) -> None:
    updates = trace_updates(trace)
    raw = sum(map(len, updates))
    document = StructStore()
    for update in updates:
        document.add(update)
    print(
        f"{trace.name}: {len(updates):,} updates, {raw:,} bytes; "
        f"the document is {len(document.encode()):,} bytes"
    )

    async def store_with(name: str, make: Callable[[Path], Store], compacts: bool) -> None:
        with tempfile.TemporaryDirectory(dir=".") as temporary:
            directory = Path(temporary)
            begin = time.perf_counter()
            most = 0
            async with make(directory) as store:
                live = StructStore()
                for start in range(0, len(updates), 10):
                    some = updates[start : start + 10]
                    for update in some:
                        live.add(update)
                    await store.append("room", [StoredUpdate(u, 1) for u in some])
                    if compacts and store.outgrown("room"):
                        most = max(most, on_disk(directory))

                        async def snapshot(live: StructStore = live) -> StoredUpdate:
                            return StoredUpdate(finish(live.snapshot_steps()), 1)

                        await store.compact("room", snapshot)
                seconds = time.perf_counter() - begin
            size = on_disk(directory)
            print(
                f"  {name:28} {size:>12,} bytes ({size / raw:5.2f} x the updates), "
                f"at most {max(most, size):,}; {seconds:.1f} s"
            )

    await store_with("FileStore, not compacted", FileStore, False)
    await store_with("FileStore", FileStore, True)
    await store_with("FileStore, with history", lambda d: FileStore(d, keep_history=True), True)
    await store_with("SQLiteStore", lambda d: SQLiteStore(d / "x.db"), True)
    if SQLiteYStore is not None:
        for name, make in (
            ("SQLiteYStore", sqlite_ystore),
            ("FileYStore", lambda d: FileYStore(str(d / "room"))),
        ):
            with tempfile.TemporaryDirectory(dir=".") as temporary:
                begin = time.perf_counter()
                some = updates[:PEER_UPDATES]
                async with theirs(make)(Path(temporary)) as append:
                    for update in some:
                        await append([update])
                size = on_disk(Path(temporary))
                raw = sum(map(len, some))
                print(
                    f"  {name:28} {size:>12,} bytes ({size / raw:5.2f} x the updates); "
                    f"{time.perf_counter() - begin:.1f} s"
                )


# ---- many rooms


async def many_rooms(count: int, seconds: float, sync_ms: float, work_us: float) -> None:
    """As a server does: `append_now`, and if it can't be done now, `append` in a task."""

    def slower(sync: Callable[[int], None]) -> Callable[[int], None]:
        def sync_slowly(fd: int) -> None:
            sync(fd)
            time.sleep(sync_ms / 1000)

        return sync_slowly

    if sync_ms:
        os.fsync = slower(os.fsync)  # type: ignore[assignment]
        file.syncfs = slower(file.syncfs)
    print(f"{count:,} rooms, an edit a second each, {work_us:.0f} us of work an edit")
    policies: tuple[Fsync, ...] = ("everysec", "never")
    for policy in policies:
        with tempfile.TemporaryDirectory(dir=".") as directory:
            async with FileStore(directory, fsync=policy) as store:
                done, ages, pauses = await edit_everywhere(store, count, seconds, work_us / 1e6)
        print(
            f"  {policy:10} {done / seconds:8,.0f} edits/s; oldest unsynced edit: median "
            f"{ages[len(ages) // 2]:.2f} s, worst {ages[-1]:.2f} s; loop stands still: 99th "
            f"percentile {pauses[len(pauses) * 99 // 100] * 1e3:.0f} ms, worst "
            f"{pauses[-1] * 1e3:.0f} ms"
        )


async def edit_everywhere(
    store: FileStore, count: int, seconds: float, work: float
) -> tuple[int, list[float], list[float]]:
    """Returns how many edits it were, how old the oldest unsynced one was from time to time, and
    how long the event loop stood still."""
    ages: list[float] = []
    pauses: list[float] = []

    async def look() -> None:
        while True:
            before = time.perf_counter()
            await anyio.sleep(LOOK_EVERY)
            pauses.append(time.perf_counter() - before - LOOK_EVERY)
            if len(pauses) % 10 == 0:
                ages.append(store.unsynced())

    for number in range(count):
        with suppress(RoomNotFound):
            async for _ in store.load(f"room{number}"):
                pass
    done = 0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        begun = time.perf_counter()
        while (passed := time.perf_counter() - begun) < seconds:
            for number in range(done, int(passed * count)):
                room = f"room{number % count}"
                updates = [StoredUpdate(b"x" * 24, time.time())]
                if not store.append_now(room, updates):
                    tasks.start_soon(store.append, room, updates)
                until = time.perf_counter() + work
                while time.perf_counter() < until:
                    pass
                done += 1
                if done % 20 == 0:
                    await lowlevel.checkpoint()
            await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()
    return done, sorted(ages), sorted(pauses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--log-mb", type=int, default=100)
    parser.add_argument("--rooms", type=int)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--sync-ms", type=float, default=0)
    parser.add_argument("--work-us", type=float, default=50)
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        anyio.run(step, arguments.step[0], Path(arguments.step[1]))
        return
    if arguments.rooms:
        anyio.run(
            many_rooms,
            arguments.rooms,
            arguments.seconds,
            arguments.sync_ms,
            arguments.work_us,
        )
        return
    if SQLiteYStore is None:
        print("pycrdt-store is not installed: ours alone")
    anyio.run(appending)
    if arguments.log_mb:
        anyio.run(large_log, arguments.log_mb)
    if arguments.trace:
        anyio.run(tracing, arguments.trace)


if __name__ == "__main__":
    main()
