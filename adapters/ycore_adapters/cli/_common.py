"""What the commands have in common: where the documents are, and how to say how far one is."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import anyio
import click
from click.core import ParameterSource

from ..stores import Store, StoreError, StoreURLError
from ..stores.urls import DATABASES, StoreURL

CONTEXT: Final = {"show_default": True, "auto_envvar_prefix": "YCORE"}

HOLES: Final = 3
"""The exit code if nothing is damaged, but something is held back since what it builds on is
missing."""
HOW_TO_FILL: Final = "`ycore repair --fill-holes` gives up on what is missing, and shows the rest"
_REFRESH: Final = 0.1
"""Seconds between two changes of what a progress bar shows."""


def _store(value: str) -> StoreURL:
    try:
        return StoreURL.of(value)
    except StoreURLError as exc:
        raise click.BadParameter(str(exc)) from None


data_option = click.option(
    "--data",
    default="data",
    type=_store,
    metavar="PATH|URL",
    help="Where the documents are: a directory, made if it is not there; or, if it ends in "
    f"{', '.join(DATABASES[:-1])} or {DATABASES[-1]}, an SQLite database. Or the URL of a store, "
    "such as sqlite:rooms?fsync=always.",
)
keep_history_option = click.option(
    "--keep-history",
    is_flag=True,
    help="When a room's updates are merged, keep them all the same, so that one can see what it "
    "was at any time. They take space for ever.",
)


def store_at(data: StoreURL, *, must_exist: bool = False, **defaults: object) -> Store:
    """The store at that place. What the URL says nothing about, and the store knows, is as in the
    defaults.

    Raises:
        click.ClickException: as `check_data`; or there is no such store.
        click.UsageError: an option has no effect.
    """
    check_data(data, must_exist=must_exist)
    try:
        known = data.known_options()
        _check_effect(data, known, defaults)
        for name in set(defaults) - set(known) | set(data.given):
            defaults.pop(name, None)
        return data.open(**defaults)
    except StoreURLError as exc:
        raise click.ClickException(str(exc)) from None


def _check_effect(data: StoreURL, known: Collection[str], options: Collection[str]) -> None:
    """Refuse an option on the command line that the store does not know, or the URL has too."""
    context = click.get_current_context(silent=True)
    for name in options:
        if context and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            if name in data.given:
                raise click.UsageError(f"{flag(name)} is in --data as well: leave one out")
            if name not in known:
                raise click.UsageError(f"{flag(name)} has no effect with {data}: leave it out")


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def check_data(data: StoreURL, *, must_exist: bool) -> None:
    """
    Raises:
        click.ClickException: there is nothing at that place, though there must be, or something
            else than is to be there.
    """
    if data.scheme == "memory" and must_exist:
        raise click.ClickException("there are no documents in memory: say where with --data")
    path = data.path
    if path is None:
        return
    try:
        is_there = path.exists()
        is_directory = path.is_dir()
    except OSError as exc:
        raise click.ClickException(f"can't look at {path}: {exc.strerror}") from None
    if must_exist and not is_there:
        raise click.ClickException(f"there are no documents at {path}: say where with --data")
    if is_there and (is_directory if data.scheme == "sqlite" else not is_directory):
        raise click.ClickException(
            f"{path} is a {'directory' if is_directory else 'file'}: --data takes a directory, or "
            f"a database whose name ends in {', '.join(DATABASES)}; file:PATH and sqlite:PATH say "
            "which it is"
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
    data: StoreURL, *, keep_history: bool = False, must_exist: bool = True, read_only: bool = False
) -> AsyncGenerator[Store, None]:
    """The store, while no server has it. With `read_only`, no file is changed."""
    store = store_at(
        data,
        must_exist=must_exist,
        fsync="always",
        keep_history=keep_history,
        read_only=read_only,
    )
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
