"""The `ycore` command."""

from __future__ import annotations

import click

from . import tools
from .backup import backup_store
from .migrate import migrate_store
from .serve import serve

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ycore")
def main() -> None:
    """A collaboration backend for Yjs documents: a server, and tools for what it stores."""


main.add_command(serve)
for tool in (*tools.COMMANDS, backup_store, migrate_store):
    main.add_command(tool)
