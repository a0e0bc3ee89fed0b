"""Stores that other servers' packages really wrote (`migrate/make_fixtures.py`), brought over."""

from __future__ import annotations

import importlib.util
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from click.testing import CliRunner, Result
from ycore_adapters.cli import main
from ycore_adapters.migrate import MigrationError, Source, open_source
from ycore_adapters.stores import FileStore, StoredUpdate
from ycore_adapters.stores.tools import read

from ycore import merge_updates

STORES = Path(__file__).with_name("migrate")
A, B, C = map(
    bytes.fromhex,
    ("0101010004010474657874016100", "01010101840100016200", "01010102840101016300"),
)
ROOMS = {"one": [A, B, C], "folder/räume": [A, B]}

needs_plyvel = pytest.mark.skipif(
    importlib.util.find_spec("plyvel") is None, reason="plyvel, which reads LevelDB, is missing"
)


def store(kind: str) -> list[object]:
    return [pytest.param(path, id=path.parent.name) for path in sorted(STORES.glob(f"*/{kind}"))]


def contents(source: Source) -> dict[str, list[StoredUpdate]]:
    return {room: list(updates()) for room, updates in source.rooms.items()}


def documents(source: Source) -> dict[str, bytes]:
    return {
        room: merge_updates([stored.update for stored in updates])
        for room, updates in contents(source).items()
    }


@pytest.mark.parametrize("path", [*store("files"), *store("rooms.db")])
def test_updates_with_metadata_and_times_are_read(path: Path) -> None:
    found = contents(open_source(path))
    assert {room: [stored.update for stored in found[room]] for room in found} == ROOMS
    for updates in found.values():
        assert {stored.metadata for stored in updates} == {b"who"}
        times = [stored.time for stored in updates]
        assert times == sorted(times)
        assert 1_790_000_000 < times[0] < 2_000_000_000


def test_all_formats_are_among_the_fixtures() -> None:
    versions = {path.parent.name for path in STORES.glob("*/rooms.db")}
    assert versions == {
        *("ypy-websocket-0.3.2", "ypy-websocket-0.6.0", "ypy-websocket-0.7.2"),
        *("ypy-websocket-0.12.4", "pycrdt-websocket-0.15.5"),
        *("pycrdt-store-0.1.2", "pycrdt-store-0.1.5"),
    }
    assert store("compressed.db")
    assert store("squashed.db")
    assert store("checkpoints.db")


@pytest.mark.parametrize(
    "path", [*store("compressed.db"), *store("squashed.db"), *store("checkpoints.db")]
)
def test_compressed_and_squashed_updates_are_the_document(path: Path) -> None:
    assert documents(open_source(path)) == {"one": merge_updates([A, B, C])}


def test_a_file_is_a_room(tmp_path: Path) -> None:
    file = STORES / "ypy-websocket-0.12.4" / "files" / "one"
    assert documents(open_source(file)) == {"one": merge_updates([A, B, C])}


@needs_plyvel
def test_a_leveldb_is_read(tmp_path: Path) -> None:
    shutil.copytree(STORES / "y-leveldb-0.2.0", tmp_path / "db")
    expected = {room: merge_updates(updates) for room, updates in ROOMS.items()}
    assert documents(open_source(tmp_path / "db")) == expected
    import plyvel  # noqa: PLC0415

    plyvel.DB(str(tmp_path / "other"), create_if_missing=True).close()
    with pytest.raises(MigrationError, match="not of a y-leveldb"):
        open_source(tmp_path / "other")


def test_without_plyvel_one_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "plyvel", None)
    with pytest.raises(MigrationError, match=r"pip install 'ycore\[leveldb\]'"):
        open_source(STORES / "y-leveldb-0.2.0")


def other_things(directory: Path) -> dict[str, Path]:
    text, empty, folder = directory / "text", directory / "empty", directory / "folder"
    text.write_bytes(b"once upon a time")
    empty.write_bytes(b"")
    folder.mkdir()
    database = directory / "other.db"
    with closing(sqlite3.connect(database)) as db:
        db.execute("CREATE TABLE recipes (name)")
    later = directory / "later"
    later.write_bytes(b"SQLite format 3\x00 and nonsense")
    missing = directory / "missing"
    return {path.name: path for path in (text, empty, folder, database, later, missing)}


@pytest.mark.parametrize("what", ["text", "empty", "folder", "other.db", "later", "missing"])
def test_what_is_no_store_is_told(tmp_path: Path, what: str) -> None:
    with pytest.raises(MigrationError):
        open_source(other_things(tmp_path)[what])


# ---- the command


def ycore(*args: str | Path) -> Result:
    result = CliRunner().invoke(main, ["migrate", *map(str, args)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def stored(data: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}

    async def load() -> None:
        async with FileStore(data) as store:
            async for room in store.rooms():
                found[room] = (await read(store, room)).document.encode()

    anyio.run(load)
    return found


EXPECTED = {room: merge_updates(updates) for room, updates in ROOMS.items()}


@pytest.mark.parametrize("path", [*store("files"), *store("rooms.db")])
def test_a_store_is_brought_over(path: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    result = ycore(path, "--data", data)
    assert result.exit_code == 0, result.output
    assert "2 rooms, 5 updates" in result.output
    assert stored(data) == EXPECTED

    again = ycore(path, "--data", data)
    assert again.exit_code == 1
    assert again.output.count("it is there already") == 2
    merged = ycore(path, "--data", data, "--merge")
    assert merged.exit_code == 0
    assert stored(data) == EXPECTED


def test_of_a_torn_file_all_that_is_whole_is_brought_over_and_the_rest_told(tmp_path: Path) -> None:
    whole = (STORES / "ypy-websocket-0.12.4" / "files" / "one").read_bytes()
    files = tmp_path / "files"
    files.mkdir()
    for size in range(11, len(whole)):
        (files / "one").write_bytes(whole[:size])
        data = tmp_path / f"data {size}"
        result = ycore(files, "--data", data)
        count = sum(size >= 10 + 1 + len(A) + 4 + 9 + i * (1 + len(B) + 4 + 9) for i in range(3))
        on_a_boundary = size == 10 + count * (1 + len(B) + 13) + (len(A) - len(B)) * bool(count)
        assert result.exit_code == (0 if on_a_boundary else 1), size
        expected = merge_updates([A, B, C][:count])
        assert stored(data).get("one", merge_updates([])) == expected, (size, result.output)


def test_what_is_compressed_somehow_is_told(tmp_path: Path) -> None:
    database = tmp_path / "rooms.db"
    shutil.copy(STORES / "pycrdt-store-0.1.5" / "rooms.db", database)
    with closing(sqlite3.connect(database)) as db, db:
        db.execute("UPDATE yupdates SET yupdate = ? WHERE yupdate = ?", (b"?" * 20, C))
    result = ycore(database, "--data", tmp_path / "data")
    assert result.exit_code == 1
    assert "one: update 3 is none, or compressed somehow" in result.output
    assert stored(tmp_path / "data")["one"] == merge_updates([A, B])


def test_other_files_in_the_directory_are_named(tmp_path: Path) -> None:
    files = tmp_path / "files"
    shutil.copytree(STORES / "ypy-websocket-0.12.4" / "files", files)
    (files / "notes.txt").write_text("buy milk")
    result = ycore(files, "--data", tmp_path / "data")
    assert result.exit_code == 0
    assert "notes.txt: no store, left out" in result.output


def test_nothing_to_migrate_is_no_traceback(tmp_path: Path) -> None:
    for path in other_things(tmp_path).values():
        result = ycore(path, "--data", tmp_path / "data")
        assert result.exit_code == 1
        assert result.output.startswith("Error: ")
    assert not (tmp_path / "data").exists()
