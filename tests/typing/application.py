"""An application that uses the public API as documented: type checkers are run on it."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import assert_type

import anyio
from ycore_adapters.asgi import ASGIApp, ASGISettings
from ycore_adapters.client import Client, DeniedError, GaveUpError, connect
from ycore_adapters.driver import Connection, DocumentClosed, Driver, DriverSettings
from ycore_adapters.hooks import Access, Hooks, Refused, Request
from ycore_adapters.server import Server, ServerSettings, listen_tcp, listen_unix
from ycore_adapters.stores import (
    FileStore,
    MemoryStore,
    RoomNotFound,
    SQLiteStore,
    Store,
    StoredUpdate,
    StoreError,
    open_store,
)

from ycore import (
    AwarenessEntry,
    Close,
    CloseCode,
    CustomMessage,
    Effect,
    Frame,
    Hub,
    Load,
    LocalProtocolError,
    Member,
    Persist,
    Provider,
    RemoteProtocolError,
    Room,
    Send,
    Settings,
    StructStore,
    Unload,
    UpdateLimits,
    check_update,
    diff_update,
    encode_state_vector_from_update,
    merge_updates,
)
from ycore.doc import Array, Change, Doc, Event, Map, Text, XmlElement, XmlFragment, XmlText
from ycore.provider import Event as ProviderEvent
from ycore.provider import Lost, PresenceChanged, SendFrame, Status

# ---- the core


def carry_out(effects: list[Effect], outboxes: dict[Member, list[bytes]]) -> None:
    for effect in effects:
        match effect:
            case Persist(update=update, author=author):
                assert_type(update, bytes)
                assert_type(author, Member)
            case Send(frame=frame, to=to, skip=skip):
                for member in to:
                    if member is not skip:
                        outboxes[member].append(frame)
            case Close(member=member, code=code, reason=reason):
                print(member, code, reason)
            case Load(room=room):
                room.load(b"\0\0")
                carry_out(room.opened(now=1.0), outboxes)
            case Unload(room=room, generation=generation):
                print(room.name, generation)
            case CustomMessage(type=type_, payload=payload):
                print(type_, payload)
            case _:
                pass


def talk() -> None:
    room = Room("notes", settings=Settings(keepalive=10, update_limits=UpdateLimits()))
    member, effects = room.join(now=0.0, read_only=True)
    frame = Frame(b"\0\0\1\0")
    while not frame.done:
        effects += room.receive(member, frame, now=0.5)
    effects += room.receive(member, b"\0\0\1\0", now=0.5)
    effects += room.handle_timeout(now=room.next_timeout() or 1.0)
    effects += room.leave(member, now=2.0)
    carry_out(effects, {})
    hub = Hub()
    member, effects = hub.join("notes", now=0.0)
    for room_, effects in hub.handle_timeout(now=3.0):
        assert_type(room_, Room)
        carry_out(effects, {})
    try:
        check_update(b"")
    except RemoteProtocolError as exc:
        print(exc.close_code is CloseCode.INVALID_PAYLOAD)


def updates(one: bytes, two: bytes) -> bytes:
    store = StructStore()
    assert_type(store.add(one), bytes | None)
    assert_type(store.state_vector(), dict[int, int])
    return merge_updates([diff_update(two, encode_state_vector_from_update(one)), store.encode()])


# ---- documents


def edit(doc: Doc) -> None:
    text = doc.get_text("text")
    with doc.transaction(origin="import"):
        text.insert(0, "Hello", {"bold": True})
        text += "!"
        text.insert_embed(0, {"image": "x.png"})
        del text[0]
        text.format(0, 2, {"bold": None})
    for op in text.to_delta():
        print(op.get("attributes"))
    todo = doc.get_array("todo")
    todo.extend([1, "two", None, {"k": [b"bytes"]}, Map({"done": False, "what": Text("this")})])
    todo[0] = Array([1])
    assert_type(len(todo), int)
    for item in todo[1:]:
        if isinstance(item, Map):
            item["done"] = True
            item.update(more=1)
            assert_type(list(item), list[str])
    fragment: XmlFragment = doc.get_xml_fragment("prosemirror")
    fragment.append(XmlElement("p", {"class": "c"}, [XmlText("hi")]))
    fragment[0].attributes["n"] = "1"

    def changed(event: Event) -> None:
        for key, change in event.keys.items():
            assert_type(key, str)
            assert_type(change, Change)
        print(event.path, event.delta, event.origin)

    def changed_below(events: list[Event]) -> None:
        print(len(events))

    stops = [text.observe(changed), todo.observe_deep(changed_below)]
    stops.append(doc.observe_updates(lambda update, origin: print(len(update), origin)))
    for stop in stops:
        stop()
    other = Doc(client_id=7)
    other.apply(doc.encode(other.encode_state_vector()), origin="elsewhere")
    print(other.to_json(), Doc.view(StructStore()).roots)


# ---- the client


async def edit_along(url: str, doc: Doc) -> None:
    def on_event(event: ProviderEvent) -> None:
        match event:
            case PresenceChanged(added=added):
                assert_type(added, tuple[int, ...])
            case Lost(reason=reason, retry_in=retry_in):
                print(reason, retry_in + 1)
            case _:
                pass

    try:
        async with connect(url, doc, params={"token": "t"}, headers={"Origin": "x"}) as client:
            assert_type(client, Client)
            stop = client.observe(on_event)
            client.state = {"user": {"name": "Ada"}}
            await client.synced()
            assert_type(client.status, Status)
            edit(doc)
            await client.flush()
            for who in client.peers:
                assert_type(who, int)
            stop()
    except (GaveUpError, DeniedError) as exc:
        print(exc)


def speak(provider: Provider, frame: bytes) -> list[bytes]:
    effects = provider.connect(now=0.0)
    effects += provider.connected(now=1.0)
    effects += provider.receive(frame, now=1.0)
    return [effect.frame for effect in effects if isinstance(effect, SendFrame)]


# ---- the server


def authorize(request: Request) -> Access:
    match request.params.get("token"), request.header("authorization"):
        case "secret", _:
            return Access(room=f"tenant/{request.room}", data={"name": "Ada"})
        case _, str():
            return Access(read_only=True)
        case _:
            raise Refused("a token is needed", CloseCode.UNAUTHORIZED)


async def authorize_later(request: Request) -> Access:
    return authorize(request)


async def on_update(room: Room, update: bytes, member: Member) -> None:
    print(room.name, len(update), member.link)


def on_awareness(room: Room, entries: Sequence[AwarenessEntry]) -> None:
    print([entry.state for entry in entries])


def seed(name: str, doc: Doc) -> None:
    doc.get_text("text").insert(0, name)


HOOKS = Hooks(
    authorize=authorize_later,
    seed=seed,
    on_update=on_update,
    on_awareness=on_awareness,
    on_custom=lambda message: print(message.payload),
    before_unload=lambda room: print(room.name),
    metadata=lambda member: b"who",
)


async def serve(store: Store) -> None:
    limits = DriverSettings(allowed_origins=frozenset({"https://example.org"}))
    async with store, Driver(store, settings=Settings(), limits=limits, hooks=HOOKS) as driver:
        listeners = [*await listen_tcp("127.0.0.1", 0), await listen_unix("/tmp/ycore")]
        server = Server(driver, listeners, settings=ServerSettings(prefix="/ws/"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve)
            try:
                async with driver.document("notes") as doc:
                    assert_type(doc, Doc)
                    edit(doc)
            except DocumentClosed as closed:
                print(closed.code, closed.reason)
            await driver.stored("notes")
            driver.send_custom("notes", 100, b"hi")
            for room in driver.hub.rooms.values():
                for member in room.members:
                    driver.dismiss(member, CloseCode.FORBIDDEN, "no longer")
            server.stop()


async def read(store: Store) -> list[bytes]:
    try:
        return [stored.update async for stored in store.load("notes")]
    except RoomNotFound:
        await store.append("notes", [StoredUpdate(b"\0\0", 0.0, b"")])
        return []
    except StoreError as exc:
        raise LocalProtocolError(str(exc)) from None


class Wire(Connection):
    """A transport of one's own."""

    def send(self, frames: tuple[bytes, ...], own: Sequence[int] = ()) -> None: ...

    def close(self, code: int, reason: str) -> None: ...

    def probe(self) -> None: ...

    def flush(self) -> None: ...


async def connected(driver: Driver, request: Request) -> None:
    wire = Wire()
    member = driver.admit(request, await driver.authorize(request), wire)
    if member is not None:
        await driver.receive(member, b"\0\0\1\0")
        driver.drained(member)
        driver.leave(member)


APP = ASGIApp(FileStore("data"), prefix="/ws/", hooks=HOOKS, asgi=ASGISettings())
STORES: list[Store] = [MemoryStore(), FileStore(Path("d"), fsync="always"), SQLiteStore("d.db")]
BY_URL: list[Store] = [open_store("file:d", fsync="always"), open_store(Path("d"))]
TLS = ssl.create_default_context()
