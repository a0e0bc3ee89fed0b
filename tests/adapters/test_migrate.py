"""Stores that other servers' packages really wrote (`migrate/make_fixtures.py`), brought over."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sqlite3
import struct
import time
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import anyio
import pytest
from click.testing import CliRunner, Result
from scripted import ScriptedStore
from ycore_adapters.cli import main
from ycore_adapters.migrate import MigrationError, Source, migrate, open_source
from ycore_adapters.stores import FileStore, StoredUpdate, StoreUnavailable
from ycore_adapters.stores.tools import read

from ycore import encode_state_vector_from_update, merge_updates
from ycore.doc import Doc
from ycore.updates import StructStore

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
    bare = path.parent.name == "ypy-websocket-0.1.13"  # which knew no metadata
    for updates in found.values():
        assert {stored.metadata for stored in updates} == {b"" if bare else b"who"}
        times = [stored.time for stored in updates]
        assert times == sorted(times)
        assert 1_790_000_000 < times[0] < 2_000_000_000


def test_all_formats_are_among_the_fixtures() -> None:
    versions = {path.parent.name for path in STORES.glob("*/rooms.db")}
    assert versions == {
        *("ypy-websocket-0.1.13", "ypy-websocket-0.3.2", "ypy-websocket-0.5.0"),
        *("ypy-websocket-0.6.0", "ypy-websocket-0.7.2", "ypy-websocket-0.12.4"),
        *("pycrdt-websocket-0.15.5", "pycrdt-store-0.1.2", "pycrdt-store-0.1.5"),
    }
    assert store("compressed.db")
    assert store("squashed.db")
    assert store("checkpoints.db")
    assert store("lost.db")


def shown(updates: Iterable[bytes]) -> tuple[object, bytes]:
    """What is in the document they make, and which edits are."""
    document = StructStore()
    for update in updates:
        document.add(update)
    return Doc.view(document).to_json(), encode_state_vector_from_update(document.encode())


@pytest.mark.parametrize("path", store("loaded.json"))
def test_documents_are_what_the_packages_themselves_load(path: Path) -> None:
    for name, rooms in json.loads(path.read_text()).items():
        found = contents(open_source(path.with_name(name)))
        assert {room: shown(s.update for s in found[room]) for room in found} == {
            room: shown([bytes.fromhex(update)]) for room, update in rooms.items()
        }, name


def test_what_squashing_has_lost_is_in_the_checkpoint() -> None:
    path = STORES / "pycrdt-store-0.1.5" / "lost.db"
    with closing(sqlite3.connect(path)) as db:
        assert (A,) not in db.execute("SELECT yupdate FROM yupdates").fetchall()
    assert shown(s.update for s in contents(open_source(path))["one"]) == shown([A, B, C])


@pytest.mark.parametrize("name", ["data", "rooms.db"])
def test_what_a_notebook_lacks_is_told_and_can_be_given_up(name: str, tmp_path: Path) -> None:
    """Of many real `.jupyter_ystore.db` rows are lost; then pycrdt shows what is left."""
    source, data = STORES / "pycrdt-store-0.1.5" / ".jupyter_ystore.db", tmp_path / name

    def run(command: str, *args: str | Path) -> Result:
        return CliRunner().invoke(main, [command, "--data", str(data), *map(str, args)])

    def told(result: Result) -> set[str]:
        """Of which rooms something is told."""
        assert result.exit_code == 3
        lines = [line for line in result.output.splitlines() if "held back" in line]
        return {line.split(":")[0].split()[-1] for line in lines if "HOLES" not in line} | {
            line.split("  HOLES")[0].split()[-1] for line in lines if "HOLES" in line
        }

    lacking = {"path", "cell", "flag", "typed"}
    migrated = run("migrate", source)
    assert told(migrated) == told(run("verify")) == told(run("rooms", "-l")) == lacking
    assert migrated.output.endswith("5 rooms, 121 updates brought over, 4 rooms with holes\n")
    assert (
        "path: 353 clocks of edits are held back (328 of client 1111, 25 of client 2222), since "
        "what they build on is missing: clock 0 of client 1111"
    ) in migrated.output
    assert json.loads(run("show", "path").stdout) == {}  # no cell of 13
    assert run("repair", "--fill-holes", *lacking).exit_code == 0
    assert run("verify").exit_code == 0
    for room, shown in json.loads(source.with_name("shown.json").read_text()).items():
        ours = json.loads(run("show", room).stdout)
        assert ours == {kind: value for kind, value in shown.items() if value}
        assert len(ours["cells"]) == (2 if room == "cell" else 13)


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


@needs_plyvel
def test_damage_in_a_leveldb_is_told_and_nothing_thrown_away(tmp_path: Path) -> None:
    log = STORES / "y-leveldb-0.2.0" / "000003.log"
    for at in (30, 300, 600):
        directory = tmp_path / str(at)
        shutil.copytree(log.parent, directory)
        raw = bytearray(log.read_bytes())
        raw[at] ^= 0xFF
        (directory / log.name).write_bytes(raw)
        with pytest.raises(MigrationError, match="is damaged"):
            open_source(directory)
        assert (directory / log.name).read_bytes() == raw


@needs_plyvel
def test_damage_in_a_table_of_a_leveldb_is_told_after_what_can_be_read(tmp_path: Path) -> None:
    import plyvel  # noqa: PLC0415

    with closing(plyvel.DB(str(tmp_path / "db"), create_if_missing=True, compression=None)) as db:
        for room in range(100):  # many blocks of 4 kB
            key = f"\0\x02v1\0\x03{room:03}\0\x06update\1".encode() + bytes(4)
            db.put(key, A + bytes(1000))
    with closing(plyvel.DB(str(tmp_path / "db"))):
        pass  # which makes a table of the log
    (table,) = (tmp_path / "db").glob("*.ldb")
    raw = bytearray(table.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    table.write_bytes(raw)
    source = open_source(tmp_path / "db")
    assert 90 < len(source.rooms) < 100
    assert {"000", "099"} < source.rooms.keys()
    assert "not everything can be read: b'Corruption" in source.problems[0]
    result = ycore(tmp_path / "db", "--data", tmp_path / "data")
    assert result.exit_code == 1
    assert "not everything can be read" in result.output


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


def field(content: bytes) -> bytes:
    assert len(content) < 128
    return bytes([len(content)]) + content


def record(update: bytes, when: float) -> bytes:
    return field(update) + field(b"who") + field(struct.pack("<d", when))


def torn(directory: Path, content: bytes) -> tuple[list[StoredUpdate], str]:
    """What is read of such a file, and what is told of the rest."""
    path = directory / "file"
    path.write_bytes(content)
    found: list[StoredUpdate] = []
    try:
        for stored in open_source(path).rooms["file"]():
            found.append(stored)
    except MigrationError as exc:
        return found, str(exc).removeprefix(f"{path}: ")
    return found, ""


VERSIONS = {
    b"": (b"", field(b"who")),
    b"VERSION:1\n": (b"VERSION:1\n", field(b"who")),
    b"VERSION:2\n": (b"VERSION:2\n", field(b"who") + field(struct.pack("<d", 1.8e9))),
}


@pytest.mark.parametrize("head", VERSIONS)
def test_of_a_torn_file_every_whole_update_is_read_and_the_rest_told(
    head: bytes, tmp_path: Path
) -> None:
    head, rest = VERSIONS[head]
    whole = head + b"".join(field(update) + rest for update in (A, B, C))
    starts = [len(head), len(head + field(A) + rest), len(head + field(A + B) + rest + rest) + 1]
    for size in range(max(len(head), len(field(A))), len(whole) + 1):
        count = sum(
            size >= start + len(field(update))
            for start, update in zip(starts, (A, B, C), strict=True)
        )
        found, told = torn(tmp_path, whole[:size])
        assert [stored.update for stored in found] == [A, B, C][:count], size
        end = starts[count - 1] + len(field((A, B, C)[count - 1])) if count else len(head)
        if size in (*starts, len(whole)) or (size == end and not head):
            assert told == ""
        elif size == end:
            assert told == f"update {count} has lost its metadata or its time"
        elif size < end + len(rest) or not count:
            at = end if head else min(end, size)
            assert told == f"{size - at} bytes behind update {count}, at byte {at}, can't be read"
        else:
            assert told.startswith(f"{size - (end + len(rest))} bytes behind update {count}, ")


def test_behind_a_torn_write_what_was_written_later_is_read(tmp_path: Path) -> None:
    head = b"VERSION:2\n"
    first, second, third = (record(update, 1.8e9 + i) for i, update in enumerate((A, B, C)))
    for size in range(1, len(second)):
        found, told = torn(tmp_path, head + first + second[:size] + third + third)
        updates = [A, B, C, C] if size >= len(field(B)) else [A, C, C]
        assert [stored.update for stored in found] == updates, size
        assert [stored.time for stored in found[-2:]] == [1.8e9 + 2] * 2
        assert told.startswith(
            "update 2 has lost" if size == len(field(B)) else f"{size} bytes"
        ) or (
            size > len(field(B))
            and told.startswith(f"{size - len(field(B))} bytes behind update 2")
        )


def test_times_of_a_clock_that_was_wrong_are_told(tmp_path: Path) -> None:
    wrong = b"".join(record(A, when) for when in (12.5, float("nan"), -1.0))
    found, told = torn(tmp_path, b"VERSION:2\n" + wrong + record(B, 1.8e9))
    assert [stored.update for stored in found] == [A, A, A, B]
    assert all(abs(stored.time - time.time()) < 60 for stored in found[:3])
    assert told.count("has no time that can be") == 3


def test_a_later_version_is_told(tmp_path: Path) -> None:
    assert torn(tmp_path, b"VERSION:3\n" + record(A, 1.8e9))[1].startswith("a FileYStore of unkno")


def test_a_file_that_0_2_went_on_with_after_0_1_is_read(tmp_path: Path) -> None:
    old = (STORES / "ypy-websocket-0.1.13" / "files" / "one").read_bytes()
    new = (STORES / "ypy-websocket-0.3.2" / "files" / "one").read_bytes()
    found, told = torn(tmp_path, old + new)
    assert [(stored.update, stored.metadata) for stored in found] == [
        *((update, b"") for update in (A, B, C)),
        *((update, b"who") for update in (A, B, C)),
    ]
    assert told == ""


def spoilt(directory: Path, *statements: str) -> Path:
    database = directory / "rooms.db"
    shutil.copy(STORES / "pycrdt-store-0.1.5" / "rooms.db", database)
    with closing(sqlite3.connect(database)) as db, db:
        for statement in statements:
            db.execute(statement)
    return database


def test_bad_rows_are_told_and_the_others_read(tmp_path: Path) -> None:
    database = spoilt(
        tmp_path,
        "UPDATE yupdates SET yupdate = NULL WHERE rowid = 2",
        "UPDATE yupdates SET timestamp = 'noon', metadata = '{}' WHERE rowid = 3",
        "INSERT INTO yupdates VALUES (x'00ff', x'00', x'', 1)",
    )
    result = ycore(database, "--data", tmp_path / "data")
    assert result.exit_code == 1
    assert "a path is no text, and left out: b'\\x00\\xff'" in result.output
    assert "one: update 2 is none" in result.output
    assert "one: update 3 (row 3) has no time: 'noon'" in result.output
    assert stored(tmp_path / "data")["one"] == merge_updates([A, C])
    with closing(open_source(database).rooms["one"]()) as updates:
        assert [next(updates).metadata for _ in range(3)] == [b"who", b"who", b"{}"]


async def _fill(source: Source) -> None:
    """Have a store refuse what comes from there."""
    store = ScriptedStore()
    store.fails["append"] = StoreUnavailable("no space left")
    async for _ in migrate(source, store):
        pass


def test_what_was_open_is_closed_when_the_store_fails(tmp_path: Path) -> None:
    """At once, and not when the collector comes upon it."""
    open_now = [True]

    def updates() -> Generator[StoredUpdate, None, None]:
        try:
            for _ in range(2000):
                yield StoredUpdate(A, 1.8e9)
        finally:
            open_now.clear()

    reading = updates()  # keeps it from being closed because nothing refers to it any more
    with pytest.raises(StoreUnavailable):
        anyio.run(_fill, Source("", {"room": lambda: reading}))
    assert not open_now


def test_the_collector_may_close_what_was_not_read_to_the_end_in_any_thread(
    tmp_path: Path,
) -> None:
    updates = open_source(spoilt(tmp_path)).rooms["one"]()
    next(updates)
    with ThreadPoolExecutor(1) as other:
        other.submit(updates.close).result()


def test_a_later_version_of_a_database_is_told(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match="unknown version 3"):
        open_source(spoilt(tmp_path, "PRAGMA user_version = 3"))


def test_a_damaged_database_is_told(tmp_path: Path) -> None:
    database = spoilt(tmp_path)
    raw = bytearray(database.read_bytes())
    at = raw.index(C)
    page = at // 4096 * 4096
    raw[page : page + 8] = bytes(8)
    database.write_bytes(raw)
    result = ycore(database, "--data", tmp_path / "data")
    assert result.exit_code == 1
    assert "damaged" in result.output or "malformed" in result.output


def test_a_database_in_use_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = spoilt(tmp_path)
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", partial(connect, timeout=0))
    with closing(connect(database, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        with pytest.raises(MigrationError, match="locked; stop the server"):
            open_source(database)
        db.execute("ROLLBACK")


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


def test_an_unfinished_transaction_is_told(tmp_path: Path) -> None:
    database = spoilt(tmp_path)
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute("PRAGMA cache_size = 1")
        db.execute("BEGIN")
        for _ in range(50):
            db.execute("INSERT INTO yupdates VALUES ('one', zeroblob(2000), '', 1)")
        killed = tmp_path / "killed"
        killed.mkdir()
        for file in tmp_path.glob("rooms.db*"):
            shutil.copy(file, killed)
        db.execute("ROLLBACK")
    assert (killed / "rooms.db-journal").exists()
    with pytest.raises(MigrationError, match="left a transaction unfinished"):
        open_source(killed / "rooms.db")
    with closing(sqlite3.connect(killed / "rooms.db")) as db:  # what one is told to do
        db.execute("SELECT count(*) FROM yupdates")
    assert documents(open_source(killed / "rooms.db")) == EXPECTED


def test_rooms_can_be_renamed(tmp_path: Path) -> None:
    database = spoilt(tmp_path, "UPDATE yupdates SET path = '/' || path")
    result = ycore(database, "--data", tmp_path / "data", "--rename", "^/", "")
    assert result.exit_code == 0, result.output
    assert stored(tmp_path / "data") == EXPECTED
    for pattern, new in (("(", ""), ("a", r"\1"), ("a", r"\g<b>")):
        result = ycore(database, "--data", tmp_path / "data", "--rename", pattern, new)
        assert result.exit_code == 2
        assert "--rename" in result.output


def test_a_damaged_room_at_the_destination_is_left_alone(tmp_path: Path) -> None:
    files, data = STORES / "ypy-websocket-0.12.4" / "files", tmp_path / "data"
    assert ycore(files, "--data", data).exit_code == 0
    log = data / "one.ylog"
    log.write_bytes(b"x" + log.read_bytes()[1:])
    for merge in ([], ["--merge"]):
        result = ycore(files, "--data", data, *merge)
        assert result.exit_code == 1
        assert "Error" not in result.output
        assert result.output.count("folder/räume: it is there already") == (not merge)
    assert log.read_bytes().startswith(b"x")


def test_nothing_to_migrate_is_no_traceback(tmp_path: Path) -> None:
    for path in other_things(tmp_path).values():
        result = ycore(path, "--data", tmp_path / "data")
        assert result.exit_code == 1
        assert result.output.startswith("Error: ")
    assert not (tmp_path / "data").exists()
