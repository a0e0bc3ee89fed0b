"""Every byte of small rooms on a disk is broken, one at a time: never is anything missing unsaid.

Rooms of the file store: with and without a compaction and a history, in the last record as in the
first. Each is looked at by all that only looks, which must not change a file; opened by a server,
which refuses it or has all of it; and repaired, which keeps all that was not hit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Final

import anyio
import pytest
from build import typed
from click.testing import CliRunner
from ycore_adapters.cli import main
from ycore_adapters.stores import FileStore, RoomCorrupt, Store, StoredUpdate
from ycore_adapters.stores.tools import compact

from ycore import StructStore, merge_updates

pytestmark = pytest.mark.anyio

UPDATES: Final = typed(1, "abcde")
WHOLE: Final = merge_updates(UPDATES)
ROOM: Final = "r"
LONG: Final = "a name that is too long for a file " * 10

KINDS: Final = ("plain", "compacted", "with history", "only a snapshot", "long name")


async def make(directory: Path, kind: str) -> str:
    """A room of that kind; returns its name."""
    room = LONG if kind == "long name" else ROOM
    async with FileStore(directory, fsync="never", keep_history=kind == "with history") as store:
        for number, update in enumerate(UPDATES):
            if number in (2, 4) and kind in ("compacted", "with history"):
                await compact(store, room)
            await store.append(room, [StoredUpdate(update, 1000 + number)])
        if kind == "only a snapshot":
            await compact(store, room)
    return room


def content(directory: Path) -> dict[str, tuple[bytes, int]]:
    """All files, and when they were changed."""
    return {
        str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def broken(path: Path) -> Iterator[int]:
    """Have each byte broken in turn, each in another way."""
    whole = path.read_bytes()
    ways = (0x01, 0x80, 0xFF, 0x10)
    try:
        for at, byte in enumerate(whole):
            path.write_bytes(whole[:at] + bytes([byte ^ ways[at % len(ways)]]) + whole[at + 1 :])
            yield at
    finally:
        path.write_bytes(whole)


async def document(store: Store, room: str) -> bytes:
    document = StructStore()
    async with aclosing(store.load(room)) as updates:
        async for stored in updates:
            document.add(stored.update)
    return document.encode()


def looked_at(directory: Path, *command: str) -> tuple[int, str]:
    before = content(directory)
    result = CliRunner().invoke(main, [command[0], "--data", str(directory), *command[1:]])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert content(directory) == before, f"{command[0]} has changed a file"
    return result.exit_code, result.output


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_well_with_a_broken_byte(kind: str, tmp_path: Path) -> None:
    """In whichever file of the room."""
    directory = tmp_path / "data"
    room = anyio.run(make, directory, kind)
    assert looked_at(directory, "verify") == (0, "1 room is well, 0 damaged\n")
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != ".lock"]
    assert len(files) == (3 if kind == "with history" else 1)
    for path in files:
        for at in broken(path):
            code, told = looked_at(directory, "verify")
            assert (code, "0 rooms are well, 1 damaged" in told) == (1, True), (path, at, told)
            if path.suffix == ".ylog" and at % 7 == 0:
                for command in ("show", "export"):
                    assert looked_at(directory, command, room)[0] == 1, at
                looked_at(directory, "rooms", "--long")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # what matters here is below the event loop
async def test_a_server_refuses_what_has_a_broken_byte_and_leaves_it(
    kind: str, tmp_path: Path
) -> None:
    directory = tmp_path / "data"
    room = await make(directory, kind)
    (path,) = directory.glob("*.ylog")
    for at in broken(path):
        before = content(directory)
        async with FileStore(directory) as store:
            with pytest.raises(RoomCorrupt):
                await document(store, room)
            with pytest.raises(RoomCorrupt):
                await store.append(room, [StoredUpdate(UPDATES[0], 1)])
        assert content(directory) == before, at


@pytest.mark.parametrize("kind", ["plain", "compacted", "long name"])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_repair_keeps_all_that_was_not_hit(kind: str, tmp_path: Path) -> None:
    """One record at most; and none if it was the header."""
    directory = tmp_path / "data"
    room = await make(directory, kind)
    async with FileStore(directory, fsync="never") as store:
        count = len([stored async for stored in store.load(room)])
    (path,) = directory.glob("*.ylog")
    header = 22 + len(room)
    for at in broken(path):
        async with FileStore(directory, fsync="never") as store:
            await store.repair(room, lambda _: True)
            kept = len([stored async for stored in store.load(room)])
        assert kept == (count if at < header else count - 1), at


@pytest.mark.parametrize("half", [False, True])
def test_a_snapshot_of_which_the_end_is_gone_is_not_cut_away(half: bool, tmp_path: Path) -> None:
    directory = tmp_path / "data"
    anyio.run(make, directory, "only a snapshot")
    path = directory / "r.ylog"
    whole = path.read_bytes()
    left = whole[: len(whole) // 2] if half else whole[:-1]
    path.write_bytes(left)
    assert looked_at(directory, "verify")[0] == 1
    repaired = CliRunner().invoke(main, ["repair", "--data", str(directory), ROOM])
    assert repaired.exit_code == 1
    assert "0 bytes can be read" in repaired.output
    assert "--keep-little" in repaired.output
    assert path.read_bytes() == left


def test_a_torn_tail_is_told_and_not_cut_by_what_only_looks(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    anyio.run(make, directory, "plain")
    path = directory / "r.ylog"
    path.write_bytes(path.read_bytes()[:-1])
    code, told = looked_at(directory, "verify")
    assert code == 0
    assert "of a write cut short" in told
    assert told.endswith("0 rooms are well, 0 damaged, 1 end in a write cut short\n")
    assert looked_at(directory, "show", ROOM)[0] == 0


def test_a_past_that_lost_a_file_is_not_well(tmp_path: Path) -> None:
    """As copies have it that were made in the wrong moment; whichever file it is."""
    directory = tmp_path / "data"
    anyio.run(make, directory, "with history")
    past = sorted((directory / "r.past").iterdir())
    for path in past:
        kept = path.read_bytes()
        path.unlink()
        code, told = looked_at(directory, "verify")
        assert code == 1
        assert "files are missing" in told or "nowhere in the history" in told
        path.write_bytes(kept)
    log = directory / "r.ylog"
    log.write_bytes(b"")
    code, told = looked_at(directory, "verify")
    assert (code, "it has a past" in told) == (1, True)


def test_where_nothing_may_be_written_one_can_look(tmp_path: Path) -> None:
    """A copy on a medium that is read only: there is no lock to be made."""
    directory = tmp_path / "data"
    anyio.run(make, directory, "compacted")
    os.unlink(directory / ".lock")
    assert looked_at(directory, "verify")[0] == 0
    assert not (directory / ".lock").exists()
