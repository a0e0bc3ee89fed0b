"""`ycore backup`: a copy that is whole, whatever a server does while it is made."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import from_thread, to_thread
from build import typed
from click.testing import CliRunner, Result
from ycore_adapters.cli import main
from ycore_adapters.stores import FileStore, SQLiteStore, Store, StoredUpdate, StoreUnavailable
from ycore_adapters.stores import backup as backup_module
from ycore_adapters.stores.backup import Backup

from ycore import merge_updates

pytestmark = pytest.mark.anyio

UPDATES = typed(1, "abcdefgh")
LONG = "a name that is too long for a file " * 10


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


async def append(store: Store, room: str, *numbers: int) -> None:
    await store.append(room, [StoredUpdate(UPDATES[i], 1000 + i) for i in numbers])


async def compact(store: Store, room: str) -> None:
    """At the time of what came last."""

    async def snapshot() -> StoredUpdate:
        async with aclosing(store.load(room)) as updates:
            stored = [update async for update in updates]
        return StoredUpdate(merge_updates([update for update, _, _ in stored]), stored[-1].time)

    await store.compact(room, snapshot)


async def load(store: Store, room: str, at: float | None = None) -> list[bytes]:
    async with aclosing(store.load(room, at=at)) as updates:
        return [stored.update async for stored in updates]


def back_up(source: Path, target: Path) -> list[tuple[str, str | None]]:
    return list(Backup(source, target).rooms())


def ycore(*args: str | Path) -> Result:
    result = CliRunner().invoke(main, [*map(str, args)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.parametrize("name", ["data", "data.db"])
async def test_a_store_in_use_is_copied_with_its_history(tmp_path: Path, name: str) -> None:
    source, target = tmp_path / name, tmp_path / f"copy-{name}"
    kind: Callable[..., Any] = SQLiteStore if source.suffix else FileStore
    async with kind(source, keep_history=True) as store:
        for room in ("r", LONG):
            await append(store, room, 0, 1)
            await compact(store, room)
            await append(store, room, 2)
        done = await to_thread.run_sync(ycore, "backup", "--data", source, target)
        assert done.exit_code == 0, done.output
        await append(store, "r", 3)
        assert await load(store, "r") != []
    async with kind(target) as copy:
        assert sorted([room async for room in copy.rooms()]) == sorted(["r", LONG])
        for room in ("r", LONG):
            assert len(await load(copy, room)) == 2
            assert (await load(copy, room, at=1001))[:2] == UPDATES[:2]
    assert (await to_thread.run_sync(ycore, "verify", "--data", target)).exit_code == 0
    leftovers = [path.name for path in tmp_path.iterdir() if path.name.endswith(".unfinished")]
    assert leftovers == []


@pytest.mark.parametrize("compactions", [1, 2])
@pytest.mark.parametrize("keep_history", [False, True])
async def test_a_compaction_that_comes_between_takes_nothing_from_the_copy(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compactions: int,
    keep_history: bool,
) -> None:
    """Between the opening of the log and the listing of the past: all of the history is there, and
    nothing twice."""
    target = tmp_path / "copy"
    async with FileStore(data, keep_history=keep_history) as store:
        await append(store, "r", 0, 1)
        await compact(store, "r")
        await append(store, "r", 2)
        compacted = []
        past = Backup._past

        async def go_on() -> None:
            for number in range(compactions):
                await append(store, "r", 3 + number)
                await compact(store, "r")

        def late(*args: Any) -> Any:
            if not compacted:
                compacted.append(from_thread.run(go_on))
            return past(*args)

        monkeypatch.setattr(Backup, "_past", late)
        assert await to_thread.run_sync(back_up, data, target) == [("r.ylog", None)]
    async with FileStore(target) as copy:
        loaded = await load(copy, "r")
        if keep_history:  # the log that was opened first, as it was then
            assert loaded[1:] == [UPDATES[2]]
            assert UPDATES[2] not in await load(copy, "r", at=1001)
            assert (await load(copy, "r", at=1002))[-1] == UPDATES[2]
        else:  # the log that is there now
            assert len(loaded) == 1
        assert await copy.check_history("r") == []


async def test_of_a_write_under_way_nothing_is_copied(data: Path, tmp_path: Path) -> None:
    async with FileStore(data) as store:
        await append(store, "r", 0, 1)
        path = data / "r.ylog"
        whole = path.read_bytes()
        with path.open("ab") as file:
            file.write(whole[-20:-5])
        assert await to_thread.run_sync(back_up, data, tmp_path / "copy") == [("r.ylog", None)]
        with path.open("r+b") as file:
            file.truncate(len(whole))
    assert (tmp_path / "copy" / "r.ylog").read_bytes() == whole


async def test_a_room_that_is_deleted_meanwhile_is_left_out(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FileStore(data, keep_history=True) as store:
        await append(store, "r", 0)
        await compact(store, "r")
        await append(store, "s", 0)
        await store.release("r")
        past = Backup._past

        def late(backup: Backup, path: Path, *args: Any) -> Any:
            if path.name == "r.ylog" and path.exists():
                from_thread.run(store.delete, "r")
            return past(backup, path, *args)

        monkeypatch.setattr(Backup, "_past", late)
        await to_thread.run_sync(back_up, data, tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["s.ylog"]


def fill(data: Path) -> None:
    async def fill() -> None:
        kind: Callable[..., Any] = SQLiteStore if data.suffix else FileStore
        async with kind(data) as store:
            await append(store, "r", 0, 1, 2)
            await append(store, "s", 0)

    anyio.run(fill)


def test_what_is_damaged_is_copied_and_told(data: Path, tmp_path: Path) -> None:
    fill(data)
    path = data / "r.ylog"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    result = ycore("backup", "--data", data, tmp_path / "copy")
    assert result.exit_code == 1
    assert f"{path}: broken record at byte" in result.output
    assert result.output.endswith("2 rooms copied to " + f"{tmp_path / 'copy'}, 1 damaged\n")
    assert (tmp_path / "copy" / "r.ylog").read_bytes() == content


def test_a_copy_that_is_not_what_was_written_is_told(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read again."""
    fill(data)
    copy = backup_module._copy

    def lying(fd: int, size: int, to: Path) -> None:
        copy(fd, size, to)
        content = to.read_bytes()
        to.write_bytes(content[:-1] + b"?")

    monkeypatch.setattr(backup_module, "_copy", lying)
    assert all(problem for _, problem in back_up(data, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["data", "data.db"])
def test_what_can_not_be_done_is_told(tmp_path: Path, name: str) -> None:
    data = tmp_path / name
    target = tmp_path / f"copy-{name}"
    assert "there are no documents at" in ycore("backup", "--data", data, target).output
    fill(data)
    target.write_bytes(b"precious")
    result = ycore("backup", "--data", data, target)
    assert result.exit_code == 1
    assert "there is something at" in result.output
    assert target.read_bytes() == b"precious"
    blocked = target / "below-a-file"
    result = ycore("backup", "--data", data, blocked.with_suffix(data.suffix))
    assert result.exit_code == 1
    assert "can't" in result.output
    if data.suffix:
        result = ycore("backup", "--data", data, tmp_path / "copy")
        assert result.exit_code == 2
        assert "name it *.db" in result.output


def test_where_one_is_there_is_no_place_for_a_copy(data: Path) -> None:
    fill(data)
    result = ycore("backup", "--data", data, ".")
    assert result.exit_code == 1
    assert "there is something at ." in result.output


def test_what_is_no_log_is_not_waited_for_and_stops_no_copy(data: Path, tmp_path: Path) -> None:
    fill(data)
    rooms = sorted(path.name for path in data.glob("*.ylog"))
    os.mkfifo(data / "pipe.ylog")
    (data / "folder.ylog").mkdir()
    one, other = data / rooms[0], data / rooms[1]
    one.with_suffix(".past").mkdir()
    (one.with_suffix(".past") / "notes").write_bytes(b"stray")
    os.mkfifo(one.with_suffix(".past") / "pipe")
    shutil.rmtree(other.with_suffix(".past"), ignore_errors=True)
    other.with_suffix(".past").write_bytes(b"stray")
    result = ycore("backup", "--data", data, tmp_path / "copy")
    assert result.exit_code == 1
    for name in ("pipe.ylog", "folder.ylog"):
        assert f"can't copy {data / name}: it is no regular file" in result.output
    assert f"can't list {other.with_suffix('.past')}: Not a directory" in result.output
    assert f"{len(rooms) + 2} rooms copied to {tmp_path / 'copy'}, 3 damaged" in result.output
    copied = sorted(path.name for path in (tmp_path / "copy").iterdir())
    assert copied == [name for name in rooms if name != other.name]


def test_a_damaged_database_is_copied_and_told(tmp_path: Path) -> None:
    import sqlite3  # noqa: PLC0415

    data = tmp_path / "data.db"
    fill(data)
    with sqlite3.connect(data) as db:
        db.execute("UPDATE updates SET crc = 0 WHERE id = 2 AND room = 1")
    db.close()
    result = ycore("backup", "--data", data, tmp_path / "copy.db")
    assert result.exit_code == 1
    assert "1 updates are damaged" in result.output


def test_a_directory_with_nothing_in_it_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="can't read"):
        Backup(tmp_path / "missing", tmp_path / "copy")
