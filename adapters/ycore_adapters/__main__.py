"""The `ycore` command where it begins: what it needs may not be installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Final

_NEEDS: Final = ("anyio", "click", "filelock", "h11", "wsproto")
"""What the extra `server` brings."""


def main() -> None:
    """Run the command, or say in a line what it lacks."""
    if missing := [name for name in _NEEDS if find_spec(name) is None]:
        what = ", ".join(missing)
        sys.exit(f"Error: the ycore command needs {what}: pip install 'ycore[server]'")
    from .cli import main as command  # noqa: PLC0415 - it imports them

    command(prog_name="ycore")


if __name__ == "__main__":
    main()
