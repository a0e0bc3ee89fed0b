# ycore's core alone, with threads and blocking sockets: a lock around the rooms, and a thread that
# writes for each client, so that who reads slowly holds up nobody. In memory. Run it:
#     pip install . websockets && python examples/threads.py
# A client: new WebsocketProvider('ws://127.0.0.1:1234', 'my-room', doc)
from contextlib import suppress
from queue import SimpleQueue
from threading import Lock, Thread
from time import monotonic, sleep

from websockets import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from ycore import Close, Effect, Member, Room, Send

MOST = 4 * 2**20  # bytes that may wait for one client
lock = Lock()  # held while a room is spoken to, never while a socket is
rooms: dict[str, Room] = {}


class Outbox(SimpleQueue[bytes | Close | None]):  # None: the connection is gone
    size = 0


def carry_out(effects: list[Effect]) -> None:
    for effect in effects:  # in order
        if isinstance(effect, Close):
            effect.member.link.put(effect)
        elif isinstance(effect, Send):
            for member in effect.to:
                if member is not effect.skip:
                    member.link.put(effect.frame)
                    member.link.size += len(effect.frame)
                    if member.link.size > MOST:  # is sent nothing more until it has taken that
                        member.room.stall(member, now=monotonic())


def write(websocket: ServerConnection, member: Member) -> None:
    with suppress(ConnectionClosed):
        while isinstance(item := member.link.get(), bytes):
            websocket.send(item)
            with lock:
                member.link.size -= len(item)
                if not member.link.size:
                    carry_out(member.room.resume(member))
        if item is not None:
            websocket.close(item.code, item.reason)


def connected(websocket: ServerConnection) -> None:
    name = websocket.request.path.partition("?")[0]
    with lock:
        room = rooms.setdefault(name, Room(name))
        member, effects = room.join(now=monotonic())
        member.link = Outbox()
        carry_out(effects)
    Thread(target=write, args=(websocket, member)).start()
    with suppress(ConnectionClosed):
        while frame := websocket.recv(decode=False):
            with lock:
                carry_out(room.receive(member, frame, now=monotonic()))
    with lock:
        carry_out(room.leave(member, now=monotonic()))
    member.link.put(None)


if __name__ == "__main__":
    with serve(connected, "127.0.0.1", 1234, max_size=64 * 2**20) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        while not sleep(1):
            with lock:
                for room in rooms.values():
                    carry_out(room.handle_timeout(now=monotonic()))
