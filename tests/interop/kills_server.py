"""The server that `test_kills` kills, in a process of its own.

kills_server.py DATA PORT KIND FSYNC BACKEND SECONDS_PER_WRITE
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import anyio
from ycore_adapters.driver import Driver
from ycore_adapters.server import Server, listen_tcp
from ycore_adapters.stores import FileStore, Fsync, SQLiteStore, Store

WRITE_BYTES: Final = 64 * 1024
COMPACT_FROM: Final = 64 * 1024
"""Low, so that the logs of young rooms are compacted often."""


Kind: TypeAlias = Literal["files", "files with history", "database"]


def open_store(directory: Path, kind: Kind, fsync: Fsync) -> Store:
    """The store, as both the server and the judge open it."""
    if kind == "database":
        return SQLiteStore(directory / "rooms.db", fsync=fsync, compact_from=COMPACT_FROM)
    history = kind == "files with history"
    return FileStore(directory, fsync=fsync, keep_history=history, compact_from=COMPACT_FROM)


def slow_writes(seconds: float) -> None:
    """Have each write take its time, and take little, as it may on any system. A kill would hardly
    ever fall into one otherwise."""
    pwrite = os.pwrite

    def slow_pwrite(fd: int, data: bytes | memoryview, at: int) -> int:
        time.sleep(seconds)
        return pwrite(fd, memoryview(data)[:WRITE_BYTES], at)

    os.pwrite = slow_pwrite


async def serve(data: Path, port: int, kind: Kind, fsync: Fsync) -> None:
    print("starting", flush=True)  # all is imported: what follows is the start proper
    listeners = await listen_tcp("127.0.0.1", port)
    async with open_store(data, kind, fsync) as store, Driver(store) as driver:
        print("serving", flush=True)
        await Server(driver, listeners).serve()


def main(data: str, port: str, kind: Kind, fsync: Fsync, backend: str, per_write: str) -> None:
    slow_writes(float(per_write))
    logging.basicConfig(level="WARNING", format="%(levelname)s %(message)s")
    options: dict[str, Any] = {}
    if backend == "asyncio":
        options["use_uvloop"] = importlib.util.find_spec("uvloop") is not None
    anyio.run(serve, Path(data), int(port), kind, fsync, backend=backend, backend_options=options)


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
