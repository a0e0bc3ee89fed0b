# ycore's own server in a Trio program, beside its other tasks, with a hook that lets people in.
# Run it: pip install '.[server]' trio && python examples/trio_server.py
# A client: new WebsocketProvider('ws://127.0.0.1:1234', 'ada/my-room', doc,
#                                 { params: { user: 'ada', key: '…as it is printed' } })
import hmac
import signal

import trio
from ycore_adapters.driver import Driver
from ycore_adapters.hooks import Access, Hooks, Refused, Request
from ycore_adapters.server import Server, listen_tcp
from ycore_adapters.stores import FileStore

SECRET = b"for development only"


def key_of(user: str) -> str:
    return hmac.digest(SECRET, user.encode(), "sha256").hex()


def authorize(request: Request) -> Access:  # may be async, to ask a database
    user, key = (request.params.get(name, "") for name in ("user", "key"))
    if not hmac.compare_digest(key.encode(), key_of(user).encode()):
        raise Refused("this is not the key of that user")
    return Access(read_only=not request.room.startswith(f"{user}/"), data=user)


async def report(driver: Driver) -> None:
    while True:
        for room in driver.hub.rooms.values():
            print(f"{room.name}: {len(room.members)} members", flush=True)
        await trio.sleep(60)


async def stop_on_signal(server: Server) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            server.stop()


async def main() -> None:
    async with (
        FileStore("data") as store,
        Driver(store, hooks=Hooks(authorize=authorize)) as driver,
    ):
        server = Server(driver, await listen_tcp("127.0.0.1", 1234))
        print(f"the key of ada: {key_of('ada')}", flush=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(report, driver)
            nursery.start_soon(stop_on_signal, server)
            await server.serve()  # until it is told to stop
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
