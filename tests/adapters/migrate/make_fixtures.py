"""Has other servers' packages write the stores that test_migrate reads. Run once, by hand:

    python make_fixtures.py DIRECTORY

makes a virtual environment for each of them in DIRECTORY, and the stores beside this file; and
`loaded.json`, with what each package itself loads from what it wrote, as updates. Of notebooks in
`.jupyter_ystore.db`, from which rows were lost as from many real ones, `shown.json` has what pycrdt
shows.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
PACKAGES = (
    "ypy-websocket==0.1.13",
    "ypy-websocket==0.3.2",
    "ypy-websocket==0.5.0",
    "ypy-websocket==0.6.0",
    "ypy-websocket==0.7.2",
    "ypy-websocket==0.12.4",
    "pycrdt-websocket==0.15.5",
    "pycrdt-store==0.1.2",
    "pycrdt-store==0.1.5",
)

WRITE = r"""
import asyncio, inspect, json, os, sys, zlib
from pathlib import Path

out = Path(sys.argv[1])
try:
    from ypy_websocket.ystore import FileYStore, SQLiteYStore
except ImportError:
    try:
        from pycrdt_websocket.ystore import FileYStore, SQLiteYStore
    except ImportError:
        from pycrdt.store import FileYStore, SQLiteYStore
try:
    import y_py as Y
except ImportError:
    Y = None
    import pycrdt

# "a", "b" and "c" at the end of a text, typed by client 1; clocks and origins as Yjs has them.
A = bytes.fromhex("01010100040104746578740161" "00")
B = bytes.fromhex("01010101840100016200")
C = bytes.fromhex("01010102840101016300")

def edits():
    "A document as the package's own engine edits it."
    if Y is None:
        doc = pycrdt.Doc()
        text = doc.get("text", type=pycrdt.Text)
        things = doc.get("things", type=pycrdt.Map)
        def snip():
            del text[0:3]
        steps = [
            lambda: text.insert(0, "ab\u00fc\U0001f30d"), lambda: text.insert(2, "XYZ"), snip,
            lambda: things.update({"n": 1.5}), lambda: things.update({"n": "two", "b": True}),
        ]
        for step in steps:
            state = doc.get_state()
            step()
            yield doc.get_update(state)
        return
    doc = Y.YDoc()
    text, things = doc.get_text("text"), doc.get_map("things")
    steps = [
        lambda t: text.insert(t, 0, "ab\u00fc"), lambda t: text.insert(t, 2, "XYZ"),
        lambda t: text.delete_range(t, 0, 3),
        lambda t: things.set(t, "n", 1.5), lambda t: things.set(t, "n", "two"),
    ]
    for step in steps:
        state = Y.encode_state_vector(doc)
        with doc.begin_transaction() as t:
            step(t)
        yield bytes(Y.encode_state_as_update(doc, state))

def metadata():
    return {"metadata_callback": who} if hasattr(FileYStore, "get_metadata") else {}

async def who():
    return b"who"

async def start(store):
    if isinstance(store, SQLiteYStore):
        if hasattr(store, "start"):
            task = asyncio.create_task(store.start())
        await asyncio.sleep(0.3)  # the first ones start by themselves

async def stop(store):
    if isinstance(store, SQLiteYStore) and hasattr(store, "stop"):
        stopped = store.stop()
        if inspect.isawaitable(stopped):
            await stopped

loaded = {}

async def write(store, updates):
    await start(store)
    for update in updates:
        await store.write(update)
    await stop(store)

async def load(file, room, store, one_by_one=False):
    "Into loaded, what the package finds in it."
    await start(store)
    doc = pycrdt.Doc() if Y is None else Y.YDoc()
    if one_by_one:
        async for update, *rest in store.read():
            doc.apply_update(update)
    else:
        await store.apply_updates(doc)
    update = doc.get_update() if Y is None else bytes(Y.encode_state_as_update(doc))
    loaded.setdefault(file, {})[room] = update.hex()
    await stop(store)

def database(name, **attributes):
    return type("Store", (SQLiteYStore,), {"db_path": str(out / name), **attributes})

def notebook():
    "A notebook as JupyterLab and its server edit it, with 13 cells."
    server, lab = pycrdt.Doc(client_id=1111), pycrdt.Doc(client_id=2222)
    for doc in (server, lab):
        state = doc.get("state", type=pycrdt.Map)
        meta = doc.get("meta", type=pycrdt.Map)
        cells = doc.get("cells", type=pycrdt.Array)

        def cell(source, number):
            return pycrdt.Map({
                "id": f"cell-{number}", "cell_type": "code", "metadata": pycrdt.Map({}),
                "source": pycrdt.Text(source), "outputs": pycrdt.Array(), "execution_count": None,
            })

        if doc is server:
            steps = [lambda: state.update({"path": "nötes.ipynb"}),
                     lambda: meta.update({"nbformat": 4, "nbformat_minor": 5})]
            steps += [
                lambda n=n: cells.append(cell(f"print('héllo 🌍', {n})", n))
                for n in range(12)
            ]
        else:
            steps = [lambda: cells.append(cell("", 12)), lambda: state.update({"dirty": True})]
            for character in "x = 1":
                def typed(character=character):
                    text = cells[12]["source"]
                    text.insert(len(text), character)
                steps.append(typed)
            steps += [
                lambda: cells[3].update({"execution_count": 1}),
                lambda: cells[3]["outputs"].append(pycrdt.Map({"output_type": "stream"})),
                lambda: cells[3]["source"].clear(),
                lambda: cells[3]["source"].insert(0, "# nothing"),
            ]
        for step in steps:
            before = doc.get_state()
            step()
            yield doc.get_update(before)
        lab.apply_update(server.get_update())

async def notebooks():
    updates = list(notebook())
    lost = {"whole": None, "path": 0, "cell": 4, "flag": 15, "typed": 18}
    Store = database(".jupyter_ystore.db")
    for room, row in lost.items():
        await write(Store(room), updates)
    import sqlite3
    with sqlite3.connect(out / ".jupyter_ystore.db") as db:
        for room, row in lost.items():
            if row is not None:
                [(rowid,)] = db.execute(
                    "SELECT rowid FROM yupdates WHERE path = ? LIMIT 1 OFFSET ?", (room, row)
                )
                db.execute("DELETE FROM yupdates WHERE rowid = ?", (rowid,))
    db.close()
    shown = {}
    for room in lost:
        store, doc = Store(room), pycrdt.Doc()
        await start(store)
        await store.apply_updates(doc)
        await stop(store)
        shown[room] = {
            name: doc.get(name, type=kind).to_py()
            for name, kind in (
                ("state", pycrdt.Map), ("meta", pycrdt.Map), ("cells", pycrdt.Array)
            )
        }
    text = json.dumps(shown, indent=1, ensure_ascii=False)
    (out / "shown.json").write_text(text + "\n")

async def main():
    (out / "files").mkdir()
    os.chdir(out / "files")
    for room, updates in (("one", [A, B, C]), ("folder/r\u00e4ume", [A, B])):
        for file, Store in (("files", FileYStore), ("rooms.db", database("rooms.db"))):
            await write(Store(room, **metadata()), updates)
            await load(file, room, Store(room, **metadata()))
    (out / "edited").mkdir()
    os.chdir(out / "edited")
    for file, Store in (("edited", FileYStore), ("edited.db", database("edited.db"))):
        await write(Store("room", **metadata()), edits())
        await load(file, "room", Store("room", **metadata()))

    async def special(file, compressing=False, **attributes):
        Store = database(file, **attributes)

        def one():
            store = Store("one")
            if compressing:
                store.register_compression_callbacks(zlib.compress, zlib.decompress)
            return store

        await write(one(), [A, B, C])
        # pycrdt-store 0.1.5 can't load at once what is compressed.
        await load(file, "one", one(), one_by_one=compressing)

    ways = ("squash_after_inactivity_of", "document_ttl")
    squashing = [way for way in ways if hasattr(SQLiteYStore, way)]
    if squashing:
        # Without compression, squashing loses what it should squash (pycrdt-store 0.1.3 to 0.1.5).
        loses = "self._decompress(update)" in inspect.getsource(SQLiteYStore.write)
        await special("squashed.db", compressing=loses, **{squashing[0]: 0})
        if loses:
            await special("lost.db", checkpoint_interval=1)
            Lossy = database("lost.db", **{squashing[0]: 0}, checkpoint_interval=None)
            await write(Lossy("one"), [C])
            await load("lost.db", "one", Lossy("one"))
    if hasattr(SQLiteYStore, "register_compression_callbacks"):
        await special("compressed.db", compressing=True)
    if hasattr(SQLiteYStore, "checkpoint_interval"):
        await special("checkpoints.db", checkpoint_interval=2)
    if "checkpoint_interval" in vars(SQLiteYStore):
        await notebooks()
    (out / "loaded.json").write_text(json.dumps(loaded, indent=1, ensure_ascii=False) + "\n")

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
