"""What the commands have in common: where the documents are, and how to say how far one is."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import click

from ..stores import FileStore, Fsync, SQLiteStore, Store, StoreError

CONTEXT: Final = {"show_default": True, "auto_envvar_prefix": "YCORE"}

HOLES: Final = 3
"""The exit code if nothing is damaged, but something is held back since what it builds on is
missing."""
HOW_TO_FILL: Final = "`ycore repair --fill-holes` gives up on what is missing, and shows the rest"
_DATABASES: Final = (".db", ".sqlite", ".sqlite3")
_REFRESH: Final = 0.1
"""Seconds between two changes of what a progress bar shows."""

data_option = click.option(
    "--data",
    default=Path("data"),
    type=click.Path(path_type=Path),
    help="Where the documents are: a directory, made if it is not there; or, if it ends in "
    f"{', '.join(_DATABASES[:-1])} or {_DATABASES[-1]}, an SQLite database.",
)
keep_history_option = click.option(
    "--keep-history",
    is_flag=True,
    help="When a room's updates are merged, keep them all the same, so that one can see what it "
    "was at any time. They take space for ever.",
)


def store_at(
    path: Path,
    *,
    fsync: Fsync = "always",
    keep_history: bool = False,
    must_exist: bool = False,
    read_only: bool = False,
) -> Store:
    """The store at that path.

    Raises:
        click.ClickException: as `check_data`.
    """
    check_data(path, must_exist=must_exist)
    if is_database(path):
        return SQLiteStore(path, fsync=fsync, keep_history=keep_history)
    return FileStore(path, fsync=fsync, keep_history=keep_history, read_only=read_only)


def is_database(path: Path) -> bool:
    return path.suffix in _DATABASES


def check_data(path: Path, *, must_exist: bool) -> None:
    """
    Raises:
        click.ClickException: there is nothing at that path, though there must be, or something else
            than its name says.
    """
    kind, is_other_kind = (
        ("directory", Path.is_dir) if is_database(path) else ("file", Path.is_file)
    )
    try:
        if must_exist and not path.exists():
            raise click.ClickException(f"there are no documents at {path}: say where with --data")
        is_other = is_other_kind(path)
    except OSError as exc:
        raise click.ClickException(f"can't look at {path}: {exc.strerror}") from None
    if is_other:
        raise click.ClickException(
            f"{path} is a {kind}: --data takes a directory, or a database whose name ends in "
            f"{', '.join(_DATABASES)}"
        )


def run(command: Callable[..., Awaitable[None]], *args: Any) -> None:
    """Run the async part of a command. A StoreError ends it with the error's message.

    Ctrl-C ends it at once, not when it next waits for something: that does a store no more harm
    than a kill, which it is made to survive.
    """

    async def main() -> None:
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            await command(*args)
        except StoreError as exc:
            raise click.ClickException(str(exc)) from None

    anyio.run(main)


@asynccontextmanager
async def opened(
    data: Path, *, keep_history: bool = False, must_exist: bool = True, read_only: bool = False
) -> AsyncGenerator[Store, None]:
    """The store, while no server has it. With `read_only`, no file is changed."""
    store = store_at(data, keep_history=keep_history, must_exist=must_exist, read_only=read_only)
    try:
        await store.__aenter__()
    except StoreError as exc:
        why = str(exc)
        if "in use" in why:
            why += ": stop the server first"
        raise click.ClickException(why) from None
    try:
        yield store
    finally:
        await store.__aexit__(None, None, None)


def counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def quoted(room: str) -> str:
    """A name as it is, if it can be told apart in a line."""
    plain = room.isprintable() and room and room.strip() == room and not room.startswith('"')
    return room if plain else json.dumps(room)


class Progress:
    """A bar on a terminal, of so many things to do."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._shown_at = 0.0

    def done(self) -> None:
        if self._bar is not None:
            self._bar.update(1)

    def show(self, what: Callable[[], str]) -> None:
        """Say what is being done; often called, seldom shown."""
        now = time.monotonic()
        if self._bar is not None and now >= self._shown_at + _REFRESH:
            self._shown_at = now
            self._bar.update(0, what())


@contextmanager
def progress(doing: str, length: int) -> Generator[Progress, None, None]:
    if not sys.stderr.isatty():
        yield Progress(None)
        return
    with click.progressbar(
        length=length,
        label=doing,
        file=sys.stderr,
        show_pos=True,
        update_min_steps=0,
        item_show_func=lambda item: item,
    ) as bar:
        yield Progress(bar)
