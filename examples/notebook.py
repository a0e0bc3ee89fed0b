# A notebook whose cells are run on the server, as Jupyter does, by a "kernel" that counts words.
# Run it: pip install '.[server]' && python examples/notebook.py
# A client: new WebsocketProvider('ws://127.0.0.1:1234', 'notebook', doc), and to run a cell
#           doc.getArray('cells').get(0).set('state', 'run')
import signal

import anyio
from ycore_adapters.driver import Driver
from ycore_adapters.hooks import Hooks
from ycore_adapters.server import Server, listen_tcp
from ycore_adapters.stores import FileStore

from ycore.doc import Array, Doc, Map, Text


def seed(name: str, doc: Doc) -> None:  # of a document that is new
    cell = Map({"source": Text("Count these words"), "state": "idle", "outputs": Array()})
    doc.get_array("cells").append(cell)


def run(doc: Doc, cell: Map) -> None:
    with doc.transaction():  # the others see all of it at once
        cell["state"] = "idle"
        cell["outputs"] = Array([{"words": len(str(cell.get("source")).split())}])


async def kernel(driver: Driver) -> None:
    async with driver.document("notebook") as doc:
        cells = doc.get_array("cells")
        changed = anyio.Event()
        cells.observe_deep(lambda events: changed.set())
        while True:
            for cell in cells:  # anyone may have put anything there
                if isinstance(cell, Map) and cell.get("state") == "run":
                    run(doc, cell)
            await changed.wait()
            changed = anyio.Event()


async def main() -> None:
    async with FileStore("data") as store, Driver(store, hooks=Hooks(seed=seed)) as driver:
        server = Server(driver, await listen_tcp("127.0.0.1", 1234))
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(server.serve)
                tasks.start_soon(kernel, driver)
                async for _ in signals:
                    break
                tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main)
