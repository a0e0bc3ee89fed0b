"""The ASGI application for `test_flaky`, under uvicorn.

flaky_server.py --data PATH --port PORT

Slow members are stalled early, and logs are compacted often, which takes more edits otherwise.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Final

from asgi_apps import on_uvicorn
from ycore_adapters.asgi import ASGIApp
from ycore_adapters.driver import DriverSettings
from ycore_adapters.stores import FileStore, SQLiteStore, Store

OUTBOX_BYTES: Final = 4 * 1024
COMPACT_FROM: Final = 16 * 1024


def store_at(data: Path) -> Store:
    kind = SQLiteStore if data.suffix == ".db" else FileStore
    return kind(data, compact_from=COMPACT_FROM)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    logging.basicConfig(level="WARNING", format="%(levelname)s %(message)s")
    limits = DriverSettings(max_outbox_bytes=OUTBOX_BYTES)
    on_uvicorn(ASGIApp(store_at(args.data), limits=limits), args.port, "websockets-sansio")


if __name__ == "__main__":
    main()
