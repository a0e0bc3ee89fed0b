"""The ground is pulled away from under a file store in use: it notices, says so, and makes good for
it where it can; where it can't, nothing more is stored, so that nobody is shown what won't stay."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import pytest
from ycore_adapters.stores import (
    FileStore,
    Fsync,
    RoomCorrupt,
    RoomInUse,
    RoomNotFound,
    Store,
    StoredUpdate,
    StoreUnavailable,
)
from ycore_adapters.stores import _owned as owned

pytestmark = pytest.mark.anyio

Harm: TypeAlias = Callable[[Path], None]


@pytest.fixture(autouse=True)
def no_second_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless a test says so."""
    monkeypatch.setattr(owned, "_SYNC_EVERY", 1e6)


async def append(store: Store, *updates: bytes) -> None:
    await store.append("r", [StoredUpdate(update, 1) for update in updates])


async def load(store: Store) -> list[bytes]:
    async with aclosing(store.load("r")) as updates:
        return [stored.update async for stored in updates]


async def second(store: FileStore) -> None:
    """What is done every second."""
    if not store._holds_lock():
        await store._take_lock_again()
    await store._sync_all()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def _delete(data: Path) -> None:
    (data / "r.ylog").unlink()


def _replace(data: Path) -> None:
    """As editors save."""
    new = data / "saved"
    new.write_bytes((data / "r.ylog").read_bytes()[:-3] + b"abc")
    new.rename(data / "r.ylog")


def _move(data: Path) -> None:
    (data / "r.ylog").rename(data / "elsewhere")


def _add_to(data: Path) -> None:
    with (data / "r.ylog").open("ab") as file:
        file.write(b"a line\n")


def _delete_all(data: Path) -> None:
    shutil.rmtree(data)


def _restore(data: Path) -> None:
    """Another directory is put in its place."""
    data.rename(data.with_name("old"))
    data.mkdir()
    (data / "r.ylog").write_bytes(b"of a backup")


@pytest.mark.parametrize("fsync", ["always", "everysec", "never"])
@pytest.mark.parametrize("harm", [_delete, _replace, _move, _add_to, _delete_all, _restore])
async def test_a_log_that_was_taken_away_is_written_anew(
    data: Path, harm: Harm, fsync: Fsync, caplog: pytest.LogCaptureFixture
) -> None:
    """All of it is still behind the descriptor. What somebody has put in its place is kept."""
    async with FileStore(data, fsync=fsync) as store:
        await append(store, b"1", b"2")
        harm(data)
        theirs = (data / "r.ylog").read_bytes() if (data / "r.ylog").exists() else None
        for _ in range(3):  # as the driver tries again
            with suppress(StoreUnavailable):
                await append(store, b"3")
                break
            assert list(store.problems()) == ["r"]
        for _ in range(2):
            await second(store)
        assert store.problems() == {}
        assert "healed" in caplog.text
        assert await load(store) == [b"1", b"2", b"3"]
        kept = [path.read_bytes() for path in data.glob("r.damaged/*")]
        assert kept == ([] if theirs is None else [theirs]) or harm is _add_to
        if harm is _add_to:
            assert [left.endswith(b"a line\n") for left in kept] == [True]
    async with FileStore(data) as store:
        assert await load(store) == [b"1", b"2", b"3"]


@pytest.mark.parametrize("harm", [_delete, _replace, _delete_all])
async def test_it_is_noticed_without_another_edit(
    data: Path, harm: Harm, caplog: pytest.LogCaptureFixture
) -> None:
    """By the sync of the last one, or if the whole directory goes, within a second in any case."""
    async with FileStore(data) as store:
        await append(store, b"1", b"2")
        if harm is _delete_all:
            await second(store)
        harm(data)
        await second(store)
        await second(store)
        assert any(record.levelno == logging.ERROR for record in caplog.records)
        assert "healed" in caplog.text
    async with FileStore(data) as store:
        assert await load(store) == [b"1", b"2"]


async def test_who_lets_go_of_a_room_notices_it(data: Path) -> None:
    async with FileStore(data) as store:
        await append(store, b"1")
        await second(store)
        _delete(data)
        with pytest.raises(StoreUnavailable, match="was removed"):
            await store.release("r")
        await store.release("r")
        assert await load(store) == [b"1"]


@pytest.mark.parametrize("size", [0, 30])
@pytest.mark.parametrize("fsync", ["always", "everysec", "never"])
async def test_of_a_log_that_was_cut_short_nothing_more_is_made(
    data: Path, size: int, fsync: Fsync
) -> None:
    """What was in it is nowhere: no edit is put behind a gap, and the file is left as it is."""
    path = data / "r.ylog"
    async with FileStore(data, fsync=fsync) as store:
        await append(store, b"1", b"2")
        os.truncate(path, size)
        left = path.read_bytes()
        with pytest.raises(StoreUnavailable, match="changed by somebody else"):
            await append(store, b"3")
        for _ in range(2):
            with pytest.raises(RoomCorrupt):
                await append(store, b"3")
            assert list(store.problems()) == ["r"]
        assert path.read_bytes() == left


@pytest.mark.parametrize("harm", [_delete, _replace, _delete_all])
async def test_a_log_that_was_read_and_is_another_now_is_not_added_to(
    data: Path, harm: Harm
) -> None:
    """Nothing of it is held open yet: there would be a gap before the edit."""
    async with FileStore(data, fsync="never") as store:
        await append(store, b"1", b"2")
    async with FileStore(data, fsync="never") as store:
        await load(store)
        harm(data)
        with pytest.raises(RoomCorrupt, match="removed or replaced"):
            await append(store, b"3")
        await store.release("r")  # as the driver does then, to begin anew with what there is
        with suppress(RoomNotFound, RoomCorrupt):
            await load(store)


async def test_a_room_is_in_use_while_its_first_edit_is_stored(data: Path) -> None:
    """A thread makes its file, and somebody is told that the edit is stored."""
    async with FileStore(data) as store:
        with pytest.raises(RoomNotFound):
            await load(store)
        async with store._log("r").writing:
            with pytest.raises(RoomInUse):
                await store.delete("r")


async def test_a_compaction_puts_nothing_in_the_place_of_another_file(data: Path) -> None:
    async with FileStore(data, keep_history=True) as store:
        await append(store, b"1", b"2")
        _replace(data)
        theirs = (data / "r.ylog").read_bytes()

        async def snapshot() -> StoredUpdate:
            return StoredUpdate(b"12", 1)

        with pytest.raises(StoreUnavailable, match="replaced"):
            await store.compact("r", snapshot)
        assert (data / "r.ylog").read_bytes() == theirs
        assert not (data / "r.past").exists()
        await append(store, b"3")
        await store.compact("r", snapshot)
        assert await load(store) == [b"12"]


_OWNER = """
import anyio, sys
from ycore_adapters.stores import FileStore

async def main():
    async with FileStore(sys.argv[1]) as store:
        print("open", flush=True)
        sys.stdin.read()

anyio.run(main)
"""


@contextmanager
def another_server(data: Path) -> Iterator[None]:
    """In another process, killed at the end."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", _OWNER, str(data)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        yield
        process.kill()


async def test_a_lock_that_was_removed_is_taken_again(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with FileStore(data) as store:
        await append(store, b"1")
        (data / ".lock").unlink()
        await second(store)
        assert "the lock was removed, and taken anew" in caplog.text
        with pytest.raises(StoreUnavailable, match="in use by another process"):
            await FileStore(data).__aenter__()
        await append(store, b"2")
        assert store.problems() == {}
        assert await load(store) == [b"1", b"2"]


async def test_who_lost_the_lock_to_another_process_stores_nothing_more(data: Path) -> None:
    """Not even after that process has ended: what it did there is not known here."""
    async with FileStore(data) as store:
        await append(store, b"1")
        (data / ".lock").unlink()
        in_use = pytest.raises(StoreUnavailable, match="in use by another process")
        with another_server(data), in_use:
            await second(store)
        before = (data / "r.ylog").read_bytes()
        assert "another process owns it now" in store.problems()["r"]
        with pytest.raises(StoreUnavailable, match="another process owns it now"):
            store.append_now("r", [StoredUpdate(b"2", 1)])
        for doing in (append(store, b"2"), load(store), store.release("r"), store.delete("r")):
            with pytest.raises(StoreUnavailable, match="another process owns it now"):
                await doing
        assert (data / "r.ylog").read_bytes() == before
    assert (data / "r.ylog").read_bytes() == before


async def test_where_the_directory_can_not_be_made_again_nothing_is_stored_until_it_can(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with FileStore(data) as store:
        await append(store, b"1")
        shutil.rmtree(data)
        data.write_bytes(b"in the way")
        for _ in range(2):
            await second(store)
        assert sum("store lost" in message for message in caplog.messages) == 1
        assert "can't be made again" in store.problems()["r"]
        with pytest.raises(StoreUnavailable, match="can't be made again"):
            await append(store, b"2")
        data.unlink()
        await second(store)
        assert store.problems() == {}
        await append(store, b"2")
    async with FileStore(data) as store:
        assert await load(store) == [b"1", b"2"]
