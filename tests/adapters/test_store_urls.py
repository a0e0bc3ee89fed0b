"""Stores by URL: what a URL means, the stores that other packages bring, and `--data`."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from ycore_adapters.cli import main
from ycore_adapters.stores import (
    FileStore,
    MemoryStore,
    SQLiteStore,
    StoredUpdate,
    StoreError,
    StoreURLError,
    UnknownScheme,
    open_store,
)
from ycore_adapters.stores import urls as urls_module

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("url", "kind", "path"),
    [
        # a path as it is
        ("data", FileStore, "data"),
        ("/abs/data", FileStore, "/abs/data"),
        ("./x:data", FileStore, "x:data"),
        ("a b%20?#", FileStore, "a b%20?#"),
        ("rooms.db", SQLiteStore, "rooms.db"),
        ("a/rooms.sqlite3", SQLiteStore, "a/rooms.sqlite3"),
        ("rooms.db/below", FileStore, "rooms.db/below"),
        (Path("file:x"), FileStore, "file:x"),
        ("C:\\data", FileStore, "C:\\data"),
        ("C:/data/rooms.db", SQLiteStore, "C:/data/rooms.db"),
        ("1file:data", FileStore, "1file:data"),
        # a URL
        ("file:data", FileStore, "data"),
        ("file:rooms.db", FileStore, "rooms.db"),
        ("file:/abs/data", FileStore, "/abs/data"),
        ("file:///abs/data", FileStore, "/abs/data"),
        ("file://localhost/abs/data", FileStore, "/abs/data"),
        ("FILE:data", FileStore, "data"),
        ("file:C:\\data", FileStore, "C:\\data"),
        ("file:a%20b%3fc%23d%25", FileStore, "a b?c#d%"),
        ("file:a+b", FileStore, "a+b"),
        ("file:%c3%a9", FileStore, "é"),
        ("file:%ff", FileStore, "\udcff"),
        ("file:\udcff", FileStore, "\udcff"),
        ("file:sqlite:x", FileStore, "sqlite:x"),
        ("sqlite:rooms.db", SQLiteStore, "rooms.db"),
        ("sqlite:rooms", SQLiteStore, "rooms"),
        ("sqlite:///abs/rooms.db", SQLiteStore, "/abs/rooms.db"),
        ("sqlite:rooms?", SQLiteStore, "rooms"),
    ],
)
def test_what_a_url_means(url: str | Path, kind: type, path: str) -> None:
    store = open_store(url)
    assert type(store) is kind
    if isinstance(store, SQLiteStore):
        assert store.path == Path(os.path.realpath(path))
    else:
        assert isinstance(store, FileStore)
        assert store.directory == Path(path)
    assert store.fsync == "everysec"


async def test_a_store_in_memory_has_no_place() -> None:
    async with open_store("memory:") as store:
        assert isinstance(store, MemoryStore)


def test_options_are_those_of_the_store() -> None:
    store = open_store("file:data?fsync=always&keep_history=true&compact_from=1000")
    assert isinstance(store, FileStore)
    assert (store.fsync, store.keep_history, store.compact_from) == ("always", True, 1000)
    database = open_store("sqlite:x?fsync=never&keep_history=false", compact_from=5)
    assert isinstance(database, SQLiteStore)
    assert (database.fsync, database.keep_history, database.compact_from) == ("never", False, 5)


def test_options_given_here_are_for_what_the_url_does_not_say() -> None:
    store = open_store("file:data?fsync=never", fsync="always", keep_history=True)
    assert isinstance(store, FileStore)
    assert (store.fsync, store.keep_history) == ("never", True)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("file:", "file: names no path"),
        ("sqlite:?fsync=always", "sqlite: names no path"),
        ("file:a%00b", "names no path"),
        ("file://data", "names the host data: write file:data for a path from here, or"),
        ("file://server/share", "names the host server"),
        ("file:a#b", "write %23 for #"),
        ("file:100%", "%25 for %"),
        ("memory:rooms", "memory:rooms names a place, and memory: has none"),
        ("memory:?fsync=always", "memory: does not know fsync; it has no options"),
        ("file:x?fsync=sometimes", "fsync=sometimes: it can be always, everysec, never"),
        ("file:x?keep_history=1", "keep_history=1: it can be true, false"),
        ("file:x?compact_from=much", "compact_from=much: that is no number"),
        ("file:x?fsync", "options are written name=value"),
        ("file:x?fsync=always&fsync=never", "an option is given twice"),
        (
            "file:x?history=true",
            "file: does not know history; its options are compact_from, fsync, keep_history,",
        ),
    ],
)
def test_what_is_wrong_with_a_url_is_told(url: str, why: str) -> None:
    with pytest.raises(StoreURLError) as error:
        open_store(url)
    assert why in str(error.value)
    assert isinstance(error.value, StoreError)


def test_a_scheme_that_nobody_brings_is_told_with_those_there_are() -> None:
    with pytest.raises(UnknownScheme) as error:
        open_store("redis://localhost")
    assert error.value.scheme == "redis"
    assert error.value.known == ("file", "memory", "sqlite")
    assert str(error.value) == (
        "there is no store for redis: known are file:, memory:, sqlite:. If it is a path, begin it "
        "with ./"
    )


@pytest.mark.parametrize("url", ["file:data", "rooms.db"])
def test_what_is_not_installed_for_one_of_ours_is_told(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        urls_module, "find_spec", lambda name: None if name == "filelock" else find(name)
    )
    with pytest.raises(StoreURLError, match=r"needs filelock: pip install 'ycore\[server\]'"):
        open_store(url)
    open_store("memory:")


# ---- of another package

_PACKAGE = '''
from __future__ import annotations

from ycore_adapters.stores import MemoryStore

class Shelf(MemoryStore):
    """Keeps rooms for as long as the process lives, by URL."""

    shelves = {}

    def __init__(self, url: str, *, height: float = 1.5, colour: str = "red") -> None:
        super().__init__()
        self._rooms = self.shelves.setdefault(url, {})
        self.height, self.colour = height, colour

def nothing(url):
    return None
'''


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install a package with these entry points, as pip would."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(str(site))

    def install(package: str, **entries: str) -> None:
        info = site / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{package}.py").write_text(_PACKAGE)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in entries.items()]
        (info / "entry_points.txt").write_text("\n".join(["[ycore.stores]", *lines, ""]))
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, package, raising=False)

    return install


def ycore(*args: str | Path, **options: Any) -> Result:
    """Run a command; one that ends in a traceback is never right."""
    result = CliRunner().invoke(main, [*map(str, args)], **options)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


async def test_another_package_brings_a_store(install: Callable[..., None]) -> None:
    install("shelves", shelf="shelves:Shelf")
    url = "shelf://ada:secret@host/a%20b"
    async with open_store(f"{url}?height=2&colour=light+blue") as store:
        await store.append("r", [StoredUpdate(bytes(2), 1)])
    assert type(store).__name__ == "Shelf"
    assert (store.height, store.colour) == (2.0, "light blue")  # type: ignore[attr-defined]
    async with open_store(url) as store, aclosing(store.load("r")) as updates:
        assert [stored.update async for stored in updates] == [bytes(2)]
    with pytest.raises(StoreURLError, match="shelf: does not know fsync; its options are colour, "):
        open_store(url, fsync="always")
    with pytest.raises(UnknownScheme, match="known are file:, memory:, shelf:, sqlite:"):
        open_store("shelves:x")


def test_the_tools_take_it(install: Callable[..., None]) -> None:
    install("shelves", shelf="shelves:Shelf")
    url = "shelf://ada:secret@host/b"
    assert ycore("import", "--data", url, "r", "-", input=bytes(2)).exit_code == 0
    assert ycore("rooms", "--data", url).output == "r\n"
    assert ycore("verify", "--data", url).output == "1 room is well, 0 damaged\n"
    missing = ycore("show", "--data", url, "other")
    assert "there is no room other in shelf://...@host/b" in missing.output
    void = ycore("compact", "--data", url, "--keep-history")
    assert void.exit_code == 2
    assert "--keep-history has no effect with shelf://...@host/b: leave it out" in void.output
    backup = ycore("backup", "--data", url, "copy")
    assert backup.exit_code == 1
    assert "only directories and databases can be copied" in backup.output


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({"x1": "broken:Missing"}, "x1: can't load broken:Missing: "),
        ({"x1": "no_such_package:X"}, "x1: can't load no_such_package:X: No module named"),
        ({"x1": "broken:nothing"}, "what is installed for x1: makes no store: None"),
    ],
)
def test_a_broken_package_is_told(
    install: Callable[..., None], entries: dict[str, str], why: str
) -> None:
    install("broken", **entries)
    with pytest.raises(StoreURLError) as error:
        open_store("x1:y")
    assert why in str(error.value)
    result = ycore("import", "--data", "x1:y", "r", "-", input=bytes(2))
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1


def test_ours_are_nobody_elses_and_a_scheme_is_one_package(install: Callable[..., None]) -> None:
    install("one", file="one:Shelf", shelf="one:Shelf")
    install("two", shelf="two:Shelf")
    assert isinstance(open_store("file:data"), FileStore)
    with pytest.raises(StoreURLError, match="more than one package brings shelf: one:Shelf, two"):
        open_store("shelf:x")


# ---- the commands


@pytest.mark.parametrize("url", ["file:rooms.db", "sqlite:rooms", "sqlite:a%20b.db?fsync=never"])
def test_commands_take_urls(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "there are no documents at" in ycore("rooms", "--data", url).output
    assert ycore("import", "--data", url, "r", "-", input=bytes(2)).exit_code == 0
    assert ycore("rooms", "--data", url).output == "r\n"
    assert ycore("rooms", env={"YCORE_DATA": url}).output == "r\n"
    assert ycore("compact", "--data", url, "--keep-history").exit_code == 0
    place = Path(url.partition(":")[2].partition("?")[0].replace("%20", " "))
    assert place.is_dir() == url.startswith("file")
    copy = Path("copy.db")
    assert ycore("backup", "--data", url, copy).exit_code == 0
    again = f"{'file' if copy.is_dir() else 'sqlite'}:copy.db"
    assert ycore("rooms", "--data", again).output == "r\n"
    quoted = str(place).replace(" ", "%20")
    other, what = (
        (f"sqlite:{quoted}", "directory") if place.is_dir() else (f"file:{quoted}", "file")
    )
    result = ycore("rooms", "--data", other)
    assert result.exit_code == 1
    assert f"{place} is a {what}: --data takes" in result.output


@pytest.mark.parametrize(
    ("args", "code", "why"),
    [
        (["--data", "memory:", "--fsync", "always"], 2, "--fsync has no effect with memory:"),
        (["--data", "memory:", "--keep-history"], 2, "--keep-history has no effect with memory:"),
        (["--data", "file:x?fsync=never", "--fsync", "always"], 2, "--fsync is in --data as well"),
        (["--data", "redis:x"], 1, "there is no store for redis: known are"),
        (["--data", "file:"], 2, "file: names no path"),
        (["--data", "file:x?fsync=2"], 1, "it can be always, everysec, never"),
    ],
)
def test_serve_tells_what_is_wrong(args: list[str], code: int, why: str) -> None:
    result = ycore("serve", "--port", "0", *args)
    assert result.exit_code == code
    assert why in result.output


@pytest.mark.parametrize("command", ["rooms", "verify", "show"])
def test_there_is_nothing_to_look_at_in_memory(command: str) -> None:
    result = ycore(command, "--data", "memory:", *(["r"] if command == "show" else []))
    assert result.exit_code == 1
    assert result.output == "Error: there are no documents in memory: say where with --data\n"
