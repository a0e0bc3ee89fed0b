"""`ycore backup`: a copy of what is stored, made while a server goes on."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from ..stores import StoreError
from ..stores.backup import Backup, backup_database
from ..stores.urls import DATABASES, StoreURL
from ._common import CONTEXT, check_data, counted, data_option, progress


@click.command("backup", context_settings=CONTEXT)
@data_option
@click.argument("target", type=click.Path(path_type=Path))
def backup_store(data: StoreURL, target: Path) -> None:
    """Copy all rooms, with their history, to TARGET, where there must be nothing yet.

    A server may go on meanwhile. Each room is as it was at one moment, and is read again after it
    was written. To restore, stop the server and put the copy in the place of its data.

    The exit code is 1 if something is damaged; it is copied all the same.
    """
    check_data(data, must_exist=True)
    if data.path is None:
        raise click.ClickException(f"only directories and databases can be copied, not {data}")
    problems = 0
    try:
        if data.scheme == "sqlite":
            if target.suffix not in DATABASES:
                raise click.UsageError("TARGET will be a database: name it *.db")
            problem = backup_database(data.path, target)
            if problem is not None:
                problems += 1
                click.echo(problem)
            click.echo(f"{data} copied to {target}")
        else:
            backup = Backup(data.path, target)
            with progress("Copying", len(backup.logs)) as bar:
                for name, problem in backup.rooms():
                    bar.show(partial(str, name))
                    bar.done()
                    if problem is not None:
                        problems += 1
                        click.echo(problem)
            those = counted(len(backup.logs), "room", "rooms")
            click.echo(f"{those} copied to {target}, {problems:,} damaged")
    except StoreError as exc:
        raise click.ClickException(str(exc)) from None
    if problems:
        raise click.exceptions.Exit(1)
