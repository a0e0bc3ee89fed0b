# ycore's core alone, under aiohttp: a hub of rooms, and a dict in the place of a database. Run it:
#     pip install . aiohttp && python examples/aiohttp_core.py
# A client: new WebsocketProvider('ws://127.0.0.1:1234/ws', 'my-room', doc)
import asyncio
from contextlib import suppress
from time import monotonic

from aiohttp import web

from ycore import Close, Effect, Hub, Load, Member, Persist, Send, Unload

MOST = 4 * 2**20  # bytes that may wait for one client
hub = Hub()
stored: dict[str, list[bytes]] = {}


class Outbox(asyncio.Queue[bytes | Close]):
    size = 0


def carry_out(effects: list[Effect]) -> None:
    for effect in effects:  # in order
        if isinstance(effect, Load):
            for update in stored.get(effect.room.name, ()):
                effect.room.load(update)
            carry_out(effect.room.opened(now=monotonic()))
        elif isinstance(effect, Persist):
            stored.setdefault(effect.author.room.name, []).append(effect.update)
        elif isinstance(effect, Unload):
            hub.unloaded(effect.room, effect.generation, now=monotonic())
        elif isinstance(effect, Close):
            effect.member.link.put_nowait(effect)
        elif isinstance(effect, Send):
            for member in effect.to:
                if member is not effect.skip:
                    member.link.put_nowait(effect.frame)
                    member.link.size += len(effect.frame)
                    if member.link.size > MOST:  # is sent nothing more until it has taken that
                        member.room.stall(member, now=monotonic())


async def write(socket: web.WebSocketResponse, member: Member) -> None:
    with suppress(ConnectionError):
        while not isinstance(item := await member.link.get(), Close):
            await socket.send_bytes(item)
            member.link.size -= len(item)
            if not member.link.size:
                carry_out(member.room.resume(member))
        await socket.close(code=item.code, message=item.reason.encode())


async def websocket(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(max_msg_size=64 * 2**20)
    await socket.prepare(request)
    member, effects = hub.join(request.match_info["room"], now=monotonic())
    member.link = Outbox()
    carry_out(effects)
    writer = asyncio.create_task(write(socket, member))
    try:
        async for message in socket:
            frame = message.data if isinstance(message.data, bytes) else b""  # text is refused
            carry_out(member.room.receive(member, frame, now=monotonic()))
    finally:
        carry_out(member.room.leave(member, now=monotonic()))
        writer.cancel()
    return socket


async def tick() -> None:
    while await asyncio.sleep(1, True):
        for _, effects in hub.handle_timeout(now=monotonic()):
            carry_out(effects)


async def main() -> None:
    app = web.Application()
    app.add_routes([web.get("/ws/{room:.+}", websocket)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 1234).start()
    await tick()


if __name__ == "__main__":
    asyncio.run(main())
