"""The tools around stored documents, as commands."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from build import anys, item, text, typed, update
from build import json as json_content
from click.testing import CliRunner, Result
from ycore_adapters.cli import main
from ycore_adapters.stores import FileStore, SQLiteStore, StoredUpdate

from ycore import merge_updates

ABC = typed(1, "abc")


@pytest.fixture(params=["data", "data.db"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path: Path = tmp_path / request.param
    return path


def ycore(data: Path, command: str, *args: str | Path, stdin: bytes | None = None) -> Result:
    """Run a command; one that ends in a traceback is never right."""
    arguments = [command, "--data", str(data), *map(str, args)]
    result = CliRunner().invoke(main, arguments, input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def fill(data: Path, keep_history: bool = False, **rooms: list[bytes]) -> None:
    """Store updates, the first at second 1000, each a second after the last."""

    async def fill() -> None:
        kind = SQLiteStore if data.suffix else FileStore
        async with kind(data, keep_history=keep_history) as store:
            for room, updates in rooms.items():
                stored = [StoredUpdate(u, 1000 + i) for i, u in enumerate(updates)]
                await store.append(room.replace("_", " "), stored)

    anyio.run(fill)


def damage(data: Path, room: str) -> None:
    """Break the first update of a room."""
    if data.suffix:
        with sqlite3.connect(data) as db:
            db.execute("UPDATE updates SET crc = 0 WHERE id = 2 AND room = 1")
        db.close()
    else:
        path = data / f"{room}.ylog"
        content = bytearray(path.read_bytes())
        content[content.index(ABC[0]) + 3] ^= 1
        path.write_bytes(content)


def exported(data: Path, room: str, *args: str) -> bytes:
    result = ycore(data, "export", *args, room)
    assert result.exit_code == 0, result.output
    return result.stdout_bytes


def test_rooms_are_listed(data: Path) -> None:
    fill(data, b=ABC, a_room=[ABC[0]])
    assert ycore(data, "rooms").output.splitlines() == ["a room", "b"]
    short, long = ycore(data, "rooms", "--long").output.splitlines()
    assert "1 updates" in short
    assert "3 updates" in long
    assert "1970-01-01" in long
    lines = [json.loads(line) for line in ycore(data, "rooms", "--json").output.splitlines()]
    assert lines[1] == {
        "room": "b",
        "updates": 3,
        "stored_bytes": sum(map(len, ABC)),
        "document_bytes": len(merge_updates(ABC)),
        "authors": 1,
        "last_update": 1002.0,
        "damage": [],
        "held_back": {},
        "missing": {},
    }


def test_odd_names_are_quoted(data: Path) -> None:
    async def fill() -> None:
        async with SQLiteStore(data) if data.suffix else FileStore(data) as store:
            for name in ("", " ", "a\nb", '"', "é"):
                await store.append(name, [StoredUpdate(ABC[0], 1)])

    anyio.run(fill)
    lines = ycore(data, "rooms").output.splitlines()
    assert sorted(lines) == sorted(['""', '" "', '"a\\nb"', '"\\""', "é"])


def test_an_export_is_the_document_and_an_import_adds_to_it(data: Path, tmp_path: Path) -> None:
    fill(data, r=ABC[:2])
    assert exported(data, "r") == merge_updates(ABC[:2])
    file = tmp_path / "r.yjs"
    told = f"r: {len(merge_updates(ABC[:2]))} bytes written to {file}\n"
    assert ycore(data, "export", "r", file).output == told
    assert file.read_bytes() == merge_updates(ABC[:2])
    again = ycore(data, "export", "r", file)
    assert again.exit_code == 1
    assert again.output == f"Error: {file} is there already, and was left as it is\n"
    nowhere = ycore(data, "export", "r", tmp_path / "missing" / "r.yjs")
    assert nowhere.exit_code == 1
    assert "can't write" in nowhere.output
    assert ycore(data, "import", "r", "-", stdin=ABC[2]).exit_code == 0
    assert ycore(data, "import", "copy", file).exit_code == 0
    assert exported(data, "r") == merge_updates(ABC)
    assert exported(data, "copy") == merge_updates(ABC[:2])


def test_an_import_may_begin_a_store(data: Path) -> None:
    assert ycore(data, "import", "new", "-", stdin=ABC[0]).exit_code == 0
    assert ycore(data, "rooms").output == "new\n"


def test_what_is_no_update_is_not_imported(data: Path, tmp_path: Path) -> None:
    for bad in (b"", b"once upon a time", ABC[0] + b"x"):
        result = ycore(data, "import", "r", "-", stdin=bad)
        assert result.exit_code == 1
        assert "holds no Yjs update" in result.output
    assert "can't read" in ycore(data, "import", "r", tmp_path / "missing").output
    assert ycore(data, "rooms").output == ""


@pytest.mark.parametrize(
    "written",
    [  # by Y.encodeStateAsUpdateV2 of Yjs 13.6
        "00000000000001000000000000",
        "000001010000010409067468656c6c6f01050101000001010000",
        "00000241010200040007040081008400280c0674686c6f6d6b410002410001010002020101040075027d0176"
        "0101617e0101010101",
        "0000044200410103010004000b07002800040081008400280e08617874686c6f6d6b41020241000501000000"
        "010101030102010202007d01040075027d01760101617e0101010101",
    ],
)
def test_of_an_update_in_version_2_it_is_told_what_to_do(data: Path, written: str) -> None:
    result = ycore(data, "import", "r", "-", stdin=bytes.fromhex(written))
    assert result.exit_code == 1
    assert "version 2" in result.output
    assert "Y.convertUpdateFormatV2ToV1" in result.output
    assert "version 2" not in ycore(data, "import", "r", "-", stdin=b"\0\0\0").output


@pytest.mark.parametrize("command", ["show", "export", "verify", "repair", "compact", "delete"])
def test_a_room_that_is_not_there_is_named_before_anything_is_done(
    data: Path, command: str
) -> None:
    fill(data, r=ABC)
    rooms = (
        ["r", "no such"] if command in ("verify", "repair", "compact", "delete") else ["no such"]
    )
    result = ycore(data, command, *rooms)
    assert result.exit_code == 1
    assert result.output == (
        f"Error: there is no room no such in {data}: `ycore rooms` lists those there are\n"
    )
    assert ycore(data, "verify").output == "1 room is well, 0 damaged\n"


def test_when_something_was_is_told_as_a_date(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    fill(data, r=ABC)
    assert (
        "nothing yet at 1970-01-01 00:15:00+00:00" in ycore(data, "show", "--at", "900", "r").output
    )
    ycore(data, "compact")
    told = ycore(data, "show", "--at", "900", "r").output
    assert "nothing is kept from before 1970-01-01 00:16:42+00:00" in told
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("when", ["nan", "inf", "1e30", "-1e30"])
def test_a_time_that_cant_be_is_none(data: Path, when: str) -> None:
    fill(data, r=ABC)
    result = ycore(data, "show", f"--at={when}", "r")
    assert result.exit_code == 2
    assert "is no time: write" in result.output


def test_data_that_is_of_the_other_kind_is_told(data: Path) -> None:
    if data.suffix:
        data.mkdir()
    else:
        data.write_bytes(b"")
    for command in (["rooms"], ["import", "r", "-"]):
        result = ycore(data, *command, stdin=ABC[0])
        assert result.exit_code == 1
        what = "directory" if data.suffix else "file"
        assert result.output.startswith(f"Error: {data} is a {what}: --data takes a directory, or")
        assert result.output.count("\n") == 1


def test_a_room_is_exported_as_it_was(data: Path) -> None:
    fill(data, r=ABC)
    for i, when in enumerate(("1000", "1970-01-01T00:16:41Z", "1970-01-01T01:16:42+01:00")):
        assert exported(data, "r", "--at", when) == merge_updates(ABC[: i + 1])
    early = ycore(data, "export", "--at", "999.9", "r")
    assert early.exit_code == 1
    assert "nothing yet" in early.output
    nonsense = ycore(data, "export", "--at", "yesterday", "r")
    assert nonsense.exit_code == 2
    assert "is no time: write" in nonsense.output


def test_a_room_is_shown(data: Path) -> None:
    more = update(
        {(7, 0): [item(anys(1, None), parent="list"), item(anys("x"), parent="m", key="k")]}
    )
    fill(data, r=[*ABC, more])
    shown = json.loads(ycore(data, "show", "r").stdout)
    assert shown == {"t": "abc", "list": [1, None], "m": {"k": "x"}}
    assert json.loads(ycore(data, "show", "r", "m").stdout) == {"m": {"k": "x"}}
    assert ycore(data, "show", "--text", "r", "t").stdout == "abc\n"
    assert ycore(data, "show", "--text", "--at", "1001", "r").stdout == "ab\n"
    missing = ycore(data, "show", "r", "title")
    assert missing.exit_code == 1
    assert "there is no title in it, but: list, m, t" in missing.output
    assert "nothing yet" in ycore(data, "show", "--at", "1", "r").output


def test_what_of_a_room_is_not_shown_is_told(data: Path) -> None:
    fill(data, r=[ABC[0], ABC[2]], damaged=ABC)
    held_back = ycore(data, "show", "--text", "r")
    assert held_back.exit_code == 3
    assert held_back.stdout == "a\n"
    assert "1 clocks of edits are held back" in held_back.stderr
    if not data.suffix:
        damage(data, "damaged")
        result = ycore(data, "show", "damaged")
        assert result.exit_code == 1
        assert json.loads(result.stdout) == {}
        assert "ycore repair" in result.stderr


def test_half_a_pair_of_surrogates_is_shown_somehow(data: Path) -> None:
    fill(data, r=[update({(1, 0): [item(json_content('"\\ud83d"'))]})])
    assert "?" in ycore(data, "show", "r").stdout


@pytest.mark.parametrize("keep_history", [False, True])
def test_rooms_are_compacted(data: Path, keep_history: bool) -> None:
    fill(data, r=ABC, other=ABC)
    option = ["--keep-history"] if keep_history else []
    result = ycore(data, "compact", *option, "r")
    assert result.exit_code == 0
    assert result.output.startswith("1 room: ")
    assert exported(data, "r") == merge_updates(ABC)
    lines = ycore(data, "rooms", "--json").output.splitlines()
    assert [json.loads(line)["updates"] for line in lines] == [3, 1]
    assert [json.loads(line)["last_update"] for line in lines] == [1002.0, 1002.0]
    assert exported(data, "r", "--at", "1002") == merge_updates(ABC)
    if keep_history:
        assert exported(data, "r", "--at", "1001") == merge_updates(ABC[:2])
    else:
        assert "nothing is kept" in ycore(data, "export", "--at", "1001", "r").output
    assert ycore(data, "compact").output.startswith("2 rooms: ")


def test_damage_is_found_and_repaired(data: Path) -> None:
    fill(data, r=ABC, s=[ABC[0], b"nonsense", ABC[1]])
    damage(data, "r")
    result = ycore(data, "verify")
    assert result.exit_code == 1
    assert result.output.endswith("0 rooms are well, 2 damaged\n")
    assert "s: update 2 is malformed" in result.output
    assert "ycore repair" in result.output
    assert "DAMAGED" in ycore(data, "rooms", "-l").output
    for command in ("compact", "export"):
        refused = ycore(data, command, "r")
        assert refused.exit_code == 1
        assert "ycore repair" in refused.output
    result = ycore(data, "repair", "r", "s")
    assert result.exit_code == 0
    one, two, three = map(len, ABC)
    lost = one
    told = f"{lost} bytes could not be read; as it was, it is in"
    assert f"r: repaired: 2 updates of {two + three} bytes are kept, {told}" in result.output
    told = "8 bytes could not be read; as it was, it is in"
    assert f"s: repaired: 2 updates of {one + two} bytes are kept, {told}" in result.output
    assert "nothing is damaged" in ycore(data, "repair", "r").output
    result = ycore(data, "verify")  # what was typed behind the damage waits for it
    assert result.exit_code == 3
    assert result.output.startswith("r: 2 clocks of edits are held back (2 of client 1), since ")
    assert result.output.endswith("1 room is well, 0 damaged, 1 with holes\n")
    assert ycore(data, "verify", "s").output == "1 room is well, 0 damaged\n"
    assert exported(data, "r") == merge_updates(ABC[1:])
    assert exported(data, "s") == merge_updates(ABC[:2])


WITH_HOLE = (
    "2 clocks of edits are held back (1 of client 1, 1 of client 2), since what they build on is "
    "missing: clock 1 of client 1, clocks 0 to 5 of client 3"
)


def test_holes_are_told_and_filled(data: Path) -> None:
    other = update({(2, 0): [item(text("!"), origin=(3, 5))]})
    broken = [ABC[0], ABC[2], other]
    fill(data, keep_history=True, holes=broken, both=[*broken, b"nonsense"], well=ABC)

    result = ycore(data, "verify", "well", "holes")
    assert result.exit_code == 3
    assert f"holes: {WITH_HOLE}. `ycore repair --fill-holes`" in result.output
    assert result.output.endswith("1 room is well, 0 damaged, 1 with holes\n")
    result = ycore(data, "verify")
    assert result.exit_code == 1
    assert f"both: {WITH_HOLE}" in result.output
    assert result.output.endswith("1 room is well, 1 damaged, 1 with holes\n")
    result = ycore(data, "rooms", "--long")
    assert result.exit_code == 3
    assert result.output.count(f"HOLES: {WITH_HOLE}") == 2
    result = ycore(data, "rooms", "--json")
    assert result.exit_code == 3
    told = {line["room"]: line for line in map(json.loads, result.output.splitlines())}
    assert told["holes"]["held_back"] == {"1": 1, "2": 1}
    assert told["holes"]["missing"] == {"1": [[1, 2]], "3": [[0, 6]]}
    assert told["well"]["held_back"] == told["well"]["missing"] == {}

    result = ycore(data, "repair", "holes", "both", "well")
    assert result.exit_code == 0
    assert "holes: nothing is damaged, left as it is" in result.output
    assert result.output.count(WITH_HOLE) == 2
    before = exported(data, "holes")
    assert before == exported(data, "both") == merge_updates(broken)

    result = ycore(data, "repair", "--fill-holes", "holes", "both", "well")
    assert result.exit_code == 0
    assert result.output.count(f"{WITH_HOLE}. Filled; as it was, it is in ") == 2
    assert "well: nothing is damaged" in result.output
    assert ycore(data, "verify").exit_code == 0
    assert ycore(data, "rooms", "--long").exit_code == 0
    assert json.loads(ycore(data, "show", "both").stdout) == {"t": "a"}
    again = ycore(data, "repair", "--fill-holes", "holes")
    assert again.output == "holes: nothing is damaged, left as it is\n"
    # What was missing can't come any more; but as it was, it is still there.
    assert ycore(data, "import", "holes", "-", stdin=ABC[1]).exit_code == 0
    assert ycore(data, "show", "--text", "holes").stdout == "a\n"
    assert aside(data, "holes") == broken


def aside(data: Path, room: str) -> list[bytes]:
    """What a repair has put aside of a room, last."""
    if not data.suffix:
        logs = sorted((data / f"{room}.damaged").iterdir())
        copy = data / f"{room}.ylog"
        copy.write_bytes(logs[-1].read_bytes())

        async def load() -> list[bytes]:
            async with FileStore(data) as store:
                return [stored.update async for stored in store.load(room)]

        return anyio.run(load)
    with closing(sqlite3.connect(data)) as db:
        rows = db.execute(
            "SELECT data FROM damaged JOIN rooms ON rooms.id = room WHERE name = ? ORDER BY "
            "put_aside, damaged.id",
            (room.encode(),),
        )
        return [row[0] for row in rows]


def test_what_nothing_can_fill_is_left_alone(data: Path) -> None:
    """No honest client waits for the last clock that there can be, or for itself."""
    far = update({(6, 0): [item(text("x"), origin=(7, 2**53 - 1))]})
    circle = [
        update({(1, 0): [item(text("x"), origin=(2, 0))]}),
        update({(2, 0): [item(text("y"), origin=(1, 0))]}),
    ]
    fill(data, far=[far], circle=circle)
    for _ in range(2):
        result = ycore(data, "repair", "--fill-holes", "far", "circle")
        assert result.exit_code == 3
        assert "circle: 2 clocks of edits are held back" in result.output
        assert result.output.count("Nothing can bring it") == 2
    assert ycore(data, "verify").exit_code == 3


def test_a_room_as_it_was_is_told_from_edits_that_bear_a_time(data: Path) -> None:
    """The clock was set an hour ahead for a while, and back."""

    async def fill() -> None:
        async with SQLiteStore(data) if data.suffix else FileStore(data) as store:
            times = [1000, 1001, 4600, 4601, 1002, 1003.5]
            for stored in map(StoredUpdate, typed(1, "abcdef"), times):
                await store.append("r", [stored])

    anyio.run(fill)
    for at in ("1001", "1003.5", "2000"):
        result = ycore(data, "show", "--text", "--at", at, "r")
        assert result.stdout == "ab\n"
        assert result.exit_code == (0 if at == "1001" else 3)
        if at != "1001":
            assert "the clock was set back" in result.stderr
            assert "--at 4601 shows it" in result.stderr
    assert ycore(data, "show", "--text", "--at", "4600", "r").stdout == "abc\n"
    result = ycore(data, "show", "--text", "--at", "4601", "r")
    assert (result.stdout, result.exit_code) == ("abcdef\n", 0)


def test_deleting_asks_first(data: Path) -> None:
    fill(data, r=ABC, s=ABC, t=ABC)
    assert ycore(data, "delete", "r", stdin=b"n\n").exit_code == 1
    assert ycore(data, "delete", "r", stdin=b"y\n").exit_code == 0
    assert ycore(data, "delete", "--yes", "s").exit_code == 0
    assert ycore(data, "rooms").output == "t\n"
    missing = ycore(data, "delete", "--yes", "r")
    assert missing.exit_code == 1
    assert missing.output.startswith("Error: ")


@pytest.mark.parametrize(
    "command",
    [["rooms"], ["verify"], ["compact"], ["export", "r"], ["repair", "r"], ["delete", "r"]],
    ids=lambda command: command[0],
)
def test_where_nothing_is_nothing_is_made(data: Path, command: list[str]) -> None:
    result = ycore(data, *command)
    assert result.exit_code == 1
    assert "there are no documents at" in result.output
    assert not data.exists()


_OWNER = """
import anyio, sys
from pathlib import Path
from ycore_adapters.stores import open_store

async def main():
    async with open_store(sys.argv[1]):
        print("open", flush=True)
        sys.stdin.read()

anyio.run(main)
"""


@pytest.fixture
def owned(data: Path) -> Iterator[None]:
    """A server has the store."""
    fill(data, r=ABC)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(data)], stdin=pipe, stdout=pipe
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        yield
        process.kill()


@pytest.mark.usefixtures("owned")
@pytest.mark.parametrize(
    "command",
    [["rooms"], ["verify"], ["compact"], ["export", "r"], ["import", "r", "-"], ["delete", "r"]],
    ids=lambda command: command[0],
)
def test_while_a_server_has_the_store_the_tools_keep_out(data: Path, command: list[str]) -> None:
    result = ycore(data, *command, stdin=ABC[0])
    assert result.exit_code == 1
    assert "in use by another process: stop the server first" in result.output


def test_on_a_terminal_one_sees_how_far_it_is(data: Path) -> None:
    fill(data, r=ABC, s=ABC)
    primary, secondary = os.openpty()
    command = [sys.executable, "-m", "ycore_adapters.cli", "verify", "--data", str(data)]
    done = subprocess.run(command, stderr=secondary, stdout=subprocess.PIPE, check=True, timeout=20)
    os.close(secondary)
    shown = os.read(primary, 10_000).decode()
    os.close(primary)
    assert done.stdout == b"2 rooms are well, 0 damaged\n"
    assert "Verifying" in shown
    assert "2/2" in shown


def test_a_store_that_does_not_open_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "data.db").write_bytes(b"once upon a time" * 100)
    result = ycore(tmp_path / "data.db", "rooms")
    assert result.exit_code == 1
    assert "can't use" in result.output
