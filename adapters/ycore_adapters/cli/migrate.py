"""`ycore migrate`: documents from other servers."""

from __future__ import annotations

import re
from contextlib import aclosing
from pathlib import Path

import click

from ..migrate import Migrated, MigrationError, migrate, open_source
from ..stores.tools import described
from ..stores.urls import StoreURL
from ._common import (
    CONTEXT,
    HOLES,
    HOW_TO_FILL,
    counted,
    data_option,
    opened,
    progress,
    quoted,
    run,
)


@click.command("migrate", context_settings=CONTEXT)
@click.argument("source", type=click.Path(path_type=Path))
@data_option
@click.option("--merge", is_flag=True, help="Add to rooms that are there already.")
@click.option(
    "--rename",
    nargs=2,
    metavar="PATTERN NEW",
    help="Put NEW in the place of what a regular expression finds in a room's name: --rename '^/' "
    "'' for servers whose rooms had the path's slash before their names.",
)
def migrate_store(
    source: Path, data: StoreURL, merge: bool, rename: tuple[str, str] | None
) -> None:
    """Bring the documents of another server over from SOURCE.

    Which is a file or a directory of FileYStores, the database of a SQLiteYStore (ypy-websocket,
    pycrdt-websocket, pycrdt-store), or the directory of a y-leveldb (y-websocket 1.x; needs
    `pip install 'ycore[leveldb]'`). Stop the server that writes to it first. It is left as it is.

    The exit code is 1 if something could not be read or was left alone; otherwise 3 if something
    that was brought over can't be shown, since what it builds on is missing: that server has lost
    it, though it may have shown the rest.
    """
    pattern, new = rename or ("", "")
    try:
        expression = re.compile(pattern)
        expression.sub(new, "")
    except (re.error, IndexError) as exc:
        raise click.BadParameter(str(exc), param_hint="--rename") from None
    try:
        found = open_source(source)
    except MigrationError as exc:
        raise click.ClickException(str(exc)) from None

    async def command() -> None:
        updates = holes = 0
        problems = len(found.problems)
        for problem in found.problems:
            click.echo(f"{source}: {problem}")
        async with opened(data, must_exist=False) as store:
            with progress("Migrating", len(found.rooms)) as bar:

                def show(migrated: Migrated) -> None:
                    bar.show(lambda: f"{quoted(migrated.room)}, {migrated.updates:,} updates")

                def named(room: str) -> str:
                    return expression.sub(new, room) if rename else room

                rooms = migrate(found, store, merge=merge, rename=named, progress=show)
                async with aclosing(rooms):
                    async for migrated in rooms:
                        bar.done()
                        updates += migrated.updates
                        problems += len(migrated.problems)
                        for problem in migrated.problems:
                            click.echo(f"{quoted(migrated.room)}: {problem}")
                        if migrated.waiting.held:
                            holes += 1
                            what = described(migrated.waiting)
                            click.echo(f"{quoted(migrated.room)}: {what}. {HOW_TO_FILL}")
        for path in found.unknown:
            click.echo(f"{path}: no store, left out")
        those = counted(len(found.rooms), "room", "rooms")
        brought = counted(updates, "update", "updates")
        with_holes = f", {counted(holes, 'room', 'rooms')} with holes" if holes else ""
        click.echo(f"{found.kind}: {those}, {brought} brought over{with_holes}")
        if problems or holes:
            raise click.exceptions.Exit(1 if problems else HOLES)

    run(command)
