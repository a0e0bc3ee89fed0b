# ycore's core under a WebSocket library of your choice: here `websockets`, in memory.
import asyncio
from contextlib import suppress
from time import monotonic

from websockets import ConnectionClosed, ServerConnection, broadcast, serve

from ycore import Close, Effect, Room, Send

rooms: dict[str, Room] = {}
tasks = asyncio.TaskGroup()


def carry_out(effects: list[Effect]) -> None:
    for effect in effects:  # in order; a Persist would be stored before going on
        if isinstance(effect, Send):
            broadcast([m.link for m in effect.to if m is not effect.skip], effect.frame)
        elif isinstance(effect, Close):
            tasks.create_task(effect.member.link.close(effect.code, effect.reason))


async def connected(websocket: ServerConnection) -> None:
    room = rooms.setdefault(websocket.request.path, Room(websocket.request.path))
    member, effects = room.join(now=monotonic())
    member.link = websocket
    carry_out(effects)
    with suppress(ConnectionClosed):
        while frame := await websocket.recv(decode=False):
            carry_out(room.receive(member, frame, now=monotonic()))
    carry_out(room.leave(member, now=monotonic()))


async def main() -> None:
    async with tasks, serve(connected, "127.0.0.1", 1234):
        while await asyncio.sleep(1, True):
            carry_out([e for r in rooms.values() for e in r.handle_timeout(now=monotonic())])


asyncio.run(main())
