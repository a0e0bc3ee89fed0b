"""Has other servers' packages write the stores that test_migrate reads. Run once, by hand:

    python make_fixtures.py DIRECTORY

makes a virtual environment for each of them in DIRECTORY, and the stores beside this file.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
PACKAGES = (
    "ypy-websocket==0.3.2",
    "ypy-websocket==0.6.0",
    "ypy-websocket==0.7.2",
    "ypy-websocket==0.12.4",
    "pycrdt-websocket==0.15.5",
    "pycrdt-store==0.1.2",
    "pycrdt-store==0.1.5",
)

WRITE = r"""
import asyncio, inspect, os, sys, zlib
from pathlib import Path

out = Path(sys.argv[1])
try:
    from ypy_websocket.ystore import FileYStore, SQLiteYStore
except ImportError:
    try:
        from pycrdt_websocket.ystore import FileYStore, SQLiteYStore
    except ImportError:
        from pycrdt.store import FileYStore, SQLiteYStore

# "a", "b" and "c" at the end of a text, typed by client 1; clocks and origins as Yjs has them.
A = bytes.fromhex("01010100040104746578740161" "00")
B = bytes.fromhex("01010101840100016200")
C = bytes.fromhex("01010102840101016300")

async def metadata():
    return b"who"

async def write(store, updates):
    if isinstance(store, SQLiteYStore):
        if hasattr(store, "start"):
            task = asyncio.create_task(store.start())
        await asyncio.sleep(0.3)  # the first ones start by themselves
    for update in updates:
        await store.write(update)
    if isinstance(store, SQLiteYStore) and hasattr(store, "stop"):
        stopped = store.stop()
        if inspect.isawaitable(stopped):
            await stopped

def database(name, **attributes):
    return type("Store", (SQLiteYStore,), {"db_path": str(out / name), **attributes})

async def main():
    (out / "files").mkdir()
    os.chdir(out / "files")
    for room, updates in (("one", [A, B, C]), ("folder/r\u00e4ume", [A, B])):
        await write(FileYStore(room, metadata_callback=metadata), updates)
        await write(database("rooms.db")(room, metadata_callback=metadata), updates)
    ways = ("squash_after_inactivity_of", "document_ttl")
    squashing = [way for way in ways if hasattr(SQLiteYStore, way)]
    if squashing:
        Squashed = database("squashed.db", **{squashing[0]: 0})
        store = Squashed("one")
        if "self._decompress(update)" in inspect.getsource(SQLiteYStore.write):
            # Without compression, squashing loses everything (pycrdt-store 0.1.5).
            store.register_compression_callbacks(zlib.compress, zlib.decompress)
        await write(store, [A, B, C])
    if hasattr(SQLiteYStore, "register_compression_callbacks"):
        store = database("compressed.db")("one")
        store.register_compression_callbacks(zlib.compress, zlib.decompress)
        await write(store, [A, B, C])
    if hasattr(SQLiteYStore, "checkpoint_interval"):
        await write(database("checkpoints.db", checkpoint_interval=2)("one"), [A, B, C])

asyncio.run(main())
"""


def main(directory: Path) -> None:
    for package in PACKAGES:
        name = package.replace("==", "-")
        python = directory / name / "bin" / "python"
        if not python.exists():
            venv.create(directory / name, with_pip=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", package], check=True)
        out = HERE / name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        subprocess.run([python, "-W", "ignore", "-c", WRITE, out], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
