"""The `ycore` command."""

from __future__ import annotations

import os
from typing import Final

import click

from . import tools
from .backup import backup_store
from .migrate import migrate_store
from .serve import serve

__all__ = ["main"]

_STDERR: Final = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ycore")
def main() -> None:
    """A collaboration backend for Yjs documents: a server, and tools for what it stores."""
    _open_standard_files()


def _open_standard_files() -> None:
    """Where a shell has closed one of them (`>&-`), a socket or a database would be opened under
    its number, and take what is meant for it; libuv, which uvloop uses, aborts the process."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(fd)


main.add_command(serve)
for tool in (*tools.COMMANDS, backup_store, migrate_store):
    main.add_command(tool)
