"""The tools around stored documents, as commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from build import anys, item, typed, update
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
        import sqlite3  # noqa: PLC0415

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
    assert ycore(data, "export", "r", file).exit_code == 0
    assert file.read_bytes() == merge_updates(ABC[:2])
    again = ycore(data, "export", "r", file)
    assert again.exit_code == 1
    assert "can't write" in again.output
    assert "File exists" in again.output
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
    assert held_back.stdout == "a\n"
    assert "1 edits wait for others" in held_back.stderr
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
    assert result.output.startswith("1 rooms: ")
    assert exported(data, "r") == merge_updates(ABC)
    lines = ycore(data, "rooms", "--json").output.splitlines()
    assert [json.loads(line)["updates"] for line in lines] == [3, 1]
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
    assert result.output.count("repaired; as it was, it is in") == 2
    assert "nothing is damaged" in ycore(data, "repair", "r").output
    assert ycore(data, "verify").output == "2 rooms are well, 0 damaged\n"
    assert ycore(data, "verify", "s").output == "1 rooms are well, 0 damaged\n"
    assert exported(data, "r") == merge_updates(ABC[1:])
    assert exported(data, "s") == merge_updates(ABC[:2])


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
from ycore_adapters.cli._common import store_at

async def main():
    async with store_at(Path(sys.argv[1])):
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
    (tmp_path / "data").write_bytes(b"")
    for name in ("data", "data.db"):
        result = ycore(tmp_path / name, "rooms")
        assert result.exit_code == 1
        assert "can't use" in result.output
