"""Hooks, and documents on the server: the application's side of the driver."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketAttribute
from scripted import ScriptedStore
from test_driver import Client, settle
from wsclient import Closed, connect
from ycore_adapters.driver import DocumentClosed, Driver, DriverSettings
from ycore_adapters.hooks import Access, Hooks, Refused, Request
from ycore_adapters.server import Server, listen_tcp
from ycore_adapters.stores import FileStore, MemoryStore, RoomCorrupt, StoreUnavailable
from yupdates import edit, here, insert

from ycore import AwarenessEntry, CloseCode, CustomMessage, Member, Room, Settings, StructStore
from ycore.doc import Doc
from ycore.messages import PermissionDenied, SyncStep2, Update, decode

pytestmark = pytest.mark.anyio

ASKS = Request(
    room="r",
    path="/r",
    query="token=a%20b&token=c&empty=",
    headers=(
        (b"cookie", b"session=s; theme=dark"),
        (b"sec-websocket-protocol", b"yjs, token"),
        (b"x-forwarded-for", b"1.2.3.4"),
        (b"x-forwarded-for", b"5.6.7.8"),
        (b"origin", b"https://example.org"),
    ),
)


def test_what_a_request_says() -> None:
    assert ASKS.params == {"token": "c", "empty": ""}
    assert ASKS.cookies == {"session": "s", "theme": "dark"}
    assert ASKS.subprotocols == ("yjs", "token")
    assert ASKS.header("X-Forwarded-For") == "1.2.3.4, 5.6.7.8"
    assert ASKS.header("authorization") is None
    empty = Request("r", "/r", headers=((b"cookie", b"\xff=]]; ="),))
    assert (empty.params, empty.cookies, empty.subprotocols) == ({}, {}, ())


# ---- authorize


async def outcome(
    hook: Callable[[Request], Access | Awaitable[Access]] | None = None,
    limits: DriverSettings | None = None,
    request: Request = ASKS,
) -> tuple[Access | Refused, dict[str, int]]:
    async with Driver(MemoryStore(), hooks=Hooks(authorize=hook), limits=limits) as driver:
        return await driver.authorize(request), dict(driver.hook_errors)


async def test_without_a_hook_everyone_may_do_everything() -> None:
    assert await outcome() == (Access(), {})


@pytest.mark.parametrize("is_async", [False, True])
async def test_who_may_come_in_and_who_may_not(is_async: bool) -> None:
    def decide(request: Request) -> Access:
        assert request is ASKS
        return Access(read_only=True, room="tenant/r", data="ada")

    def refuse(request: Request) -> Access:
        raise Refused("who are you?", CloseCode.UNAUTHORIZED)

    def fail(request: Request) -> Access:
        raise RuntimeError("the database is gone")

    def hook(
        decision: Callable[[Request], Access],
    ) -> Callable[[Request], Access | Awaitable[Access]]:
        async def waits(request: Request) -> Access:
            await anyio.lowlevel.checkpoint()
            return decision(request)

        return waits if is_async else decision

    assert await outcome(hook(decide)) == (
        Access(read_only=True, room="tenant/r", data="ada"),
        {},
    )
    refused, errors = await outcome(hook(refuse))
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.code, refused.is_final) == ("who are you?", 4401, True)
    assert errors == {}
    failed, errors = await outcome(hook(fail))
    assert isinstance(failed, Refused)
    assert (failed.code, failed.is_final) == (CloseCode.INTERNAL_ERROR, False)
    assert errors == {"authorize": 1}


async def test_who_thinks_too_long_lets_nobody_in() -> None:
    async def think(request: Request) -> Access:
        await anyio.sleep_forever()
        raise AssertionError

    refused, errors = await outcome(think, DriverSettings(authorize_timeout=0.01))
    assert isinstance(refused, Refused)
    assert (refused.code, errors) == (CloseCode.TRY_AGAIN_LATER, {"authorize": 1})


async def test_pages_from_elsewhere_may_not_connect() -> None:
    elsewhere = DriverSettings(allowed_origins=frozenset({"https://example.com"}))
    refused, _ = await outcome(limits=elsewhere)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.is_final) == (CloseCode.FORBIDDEN, True)
    here_ = DriverSettings(allowed_origins=frozenset({"https://example.org"}))
    assert await outcome(limits=here_) == (Access(), {})


@pytest.mark.parametrize(
    ("origin", "write"),
    [
        ("https://example.org/", "https://example.org"),
        ("example.org", "https://example.org"),
        ("example.org:8080/editor", "https://example.org:8080"),
        ("https://Example.ORG", "https://example.org"),
        ("https://example.org:443", "https://example.org"),
        ("http://example.org:80", "http://example.org"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("wss://example.org", "https://example.org"),
        ("https://ada@example.org", "https://example.org"),
        ("https://example.org?a", "https://example.org"),
        ("https://*.example.org", "https://example.org"),
        ("https://example.org:http", "https://example.org"),
        ("https://[::1", "https://example.org"),
        ("https:///editor", "https://example.org"),
        ("*", "https://example.org"),
        ("", "https://example.org"),
    ],
)
async def test_an_origin_that_no_browser_names_is_refused(origin: str, write: str) -> None:
    """It would lock out the very site that is meant, and say nothing."""
    with pytest.raises(ValueError, match=f"write {re.escape(write)}$"):
        DriverSettings(allowed_origins=frozenset({"https://example.com", origin}))


@pytest.mark.parametrize(
    "origin",
    [
        *("https://example.org", "http://localhost:8080", "https://[::1]:3000", "null"),
        *("https://xn--bcher-kva.example", "moz-extension://0b4a-c", "capacitor://localhost"),
    ],
)
async def test_an_origin_as_browsers_name_it_is_let_in(origin: str) -> None:
    limits = DriverSettings(allowed_origins=frozenset({origin}))
    asks = replace(ASKS, headers=((b"origin", origin.encode()),))
    assert await outcome(limits=limits, request=asks) == (Access(), {})


async def test_what_was_decided_holds_over_sockets(tmp_path: Path) -> None:
    asked: list[Request] = []

    async def authorize(request: Request) -> Access:
        asked.append(request)
        match request.params.get("token"):
            case "write":
                return Access(room=f"tenant/{request.room}", subprotocol="yjs", data="ada")
            case "read":
                return Access(room=f"tenant/{request.room}", read_only=True)
            case "later":
                raise Refused("not now", CloseCode.TRY_AGAIN_LATER)
        raise Refused("a token is needed")

    updates: list[tuple[str, object]] = []

    def on_update(room: Room, update: bytes, member: Member) -> None:
        updates.append((room.name, member.link.access.data))

    hooks = Hooks(authorize=authorize, on_update=on_update)
    listeners = await listen_tcp("127.0.0.1", 0)
    address = listeners[0].getsockname()[:2]
    async with FileStore(tmp_path) as store, Driver(store, hooks=hooks) as driver:
        server = Server(driver, listeners)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve)
            async with connect(address, "/r?token=write", subprotocols=["t", "yjs"]) as writer:
                await writer.receive()
                await writer.send(edit(1, 0))
                async with connect(address, "/r?token=read") as reader:
                    await reader.receive()
                    await reader.send(b"\0\0\1\0", edit(2, 0))
                    answer = await reader.until(lambda frame: frame[:2] == b"\0\1")
                    assert answer == SyncStep2(insert(1, 0)).encode()
                    [denied] = decode(await reader.receive())
                    assert isinstance(denied, PermissionDenied)
                    assert "read-only" in denied.reason
            async with connect(address, "/r") as nobody:
                assert await nobody.receive() == PermissionDenied("a token is needed").encode()
                with pytest.raises(Closed) as closed:
                    await nobody.receive()
                assert str(closed.value) == "4403 a token is needed"
            async with connect(address, "/r?token=later") as nobody:
                assert await nobody.closed() == 1013
            server.stop()
        assert updates == [("tenant/r", "ada")]
        tokens = [request.params.get("token") for request in asked]
        assert tokens == ["write", "read", None, "later"]
        assert asked[0].address == "127.0.0.1"
        assert [name async for name in store.rooms()] == ["tenant/r"]


async def test_who_leaves_while_it_is_decided_never_was_there() -> None:
    decided = anyio.Event()

    async def authorize(request: Request) -> Access:
        await decided.wait()
        return Access()

    listeners = await listen_tcp("127.0.0.1", 0)
    async with Driver(MemoryStore(), hooks=Hooks(authorize=authorize)) as driver:
        server = Server(driver, listeners)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve)
            async with await anyio.connect_tcp(*listeners[0].getsockname()[:2]) as stream:
                stream.extra(SocketAttribute.raw_socket)
                await stream.send(
                    b"GET /r HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\n"
                    b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
                )
                await settle()
            decided.set()
            await settle()
            server.stop()
        assert all(not room.members for room in driver.hub.rooms.values())


# ---- being told


async def test_hooks_are_told_in_order_after_it_was_stored_and_hold_nobody_up() -> None:
    store = ScriptedStore()
    told: list[object] = []
    go_on = anyio.Event()

    async def on_update(room: Room, update: bytes, member: Member) -> None:
        assert store.calls[-1] == ("append", "r")
        await go_on.wait()
        told.append(update)

    def on_custom(message: CustomMessage) -> None:
        told.append(message.payload)

    def on_awareness(room: Room, entries: Sequence[AwarenessEntry]) -> None:
        told.append([(entry.client, entry.state) for entry in entries])

    hooks = Hooks(on_update=on_update, on_awareness=on_awareness, on_custom=on_custom)
    settings = Settings(custom_types=frozenset({100}))
    async with Driver(store, hooks=hooks, settings=settings) as driver:
        a, b = Client(driver), Client(driver)
        await a.sync()
        await b.sync()
        await a.say(edit(1, 0), b"\x64one", here(7, "1"), edit(1, 1))
        await settle()
        assert told == []
        assert [frame[0] for frame in b.sent] == [0, 1, 0]
        go_on.set()
        await settle()
        driver.leave(a.member)
        await settle()
        assert told == [insert(1, 0), b"one", [(7, "1")], insert(1, 1), [(7, None)]]
        driver.send_custom("r", 100, b"hi")
        driver.send_custom("elsewhere", 100, b"hi")
        assert b.sent[-1] == b"\x64hi"
        driver.dismiss(b.member, CloseCode.FORBIDDEN, "no longer")
        assert b.closed == (4403, "no longer")


async def test_a_room_whose_hooks_fall_behind_is_read_no_further() -> None:
    go_on = anyio.Event()

    async def on_update(room: Room, update: bytes, member: Member) -> None:
        await go_on.wait()

    limits = DriverSettings(max_backlog_bytes=500)
    async with Driver(MemoryStore(), hooks=Hooks(on_update=on_update), limits=limits) as driver:
        a = Client(driver)
        await a.sync()
        said = 0

        async def talk() -> None:
            nonlocal said
            for clock in range(20):
                await a.say(edit(1, clock, b"x" * 100))
                said += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(talk)
            await settle()
            assert 3 < said < 8
            go_on.set()
        assert said == 20


async def test_a_hook_that_raises_is_counted_and_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(*args: object) -> None:
        raise RuntimeError("the application's bug")

    hooks = Hooks(on_update=fail, before_unload=fail)
    settings = Settings(idle_timeout=0)
    async with Driver(MemoryStore(), hooks=hooks, settings=settings) as driver:
        a, b = Client(driver), Client(driver)
        await a.sync()
        await b.sync()
        await a.say(edit(1, 0), edit(1, 1))
        await settle()
        assert b.sent == [edit(1, 0), edit(1, 1)]
        await driver.drain()
        assert driver.hook_errors == {"on_update": 2, "before_unload": 1}
    assert caplog.text.count("hook failed") == 3


async def test_before_a_room_is_let_go_its_hooks_have_caught_up() -> None:
    store = ScriptedStore()
    told: list[str] = []

    async def on_update(room: Room, update: bytes, member: Member) -> None:
        await anyio.lowlevel.checkpoint()
        told.append("update")

    async def before_unload(room: Room) -> None:
        assert ("release", "r") not in store.calls
        told.append(f"unload {len(room.store.encode())}")

    hooks = Hooks(on_update=on_update, before_unload=before_unload)
    now = 0.0
    async with Driver(store, hooks=hooks, clock=lambda: now) as driver:
        a = Client(driver)
        await a.sync()
        await a.say(edit(1, 0))
        driver.leave(a.member)
        now = 1000.0
        driver._do_what_is_due()
        await settle()
        assert told == ["update", f"unload {len(insert(1, 0))}"]
        assert store.calls[-1] == ("release", "r")
        assert not driver.hub.rooms


# ---- seeding


async def test_a_new_document_is_filled_in_once_and_stored_before_anyone_sees_it() -> None:
    seeded: list[str] = []

    async def seed(name: str, doc: Doc) -> None:
        seeded.append(name)
        await anyio.lowlevel.checkpoint()
        doc.get_text("t").insert(0, f"# {name}")

    store = ScriptedStore()
    store.hold("append")
    async with Driver(store, hooks=Hooks(seed=seed)) as driver:
        a, b = Client(driver), Client(driver)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(a.sync)
            tasks.start_soon(b.sync)
            await store.called("append")
            assert (a.sent, b.sent) == ([], [])
            store.let_go("append")
        assert Doc.view(a.member.room.store).to_json() == {"t": "# r"}
        assert seeded == ["r"]
    async with Driver(store, hooks=Hooks(seed=seed)) as driver:
        await Client(driver).sync()
    assert seeded == ["r"]
    async with Driver(ScriptedStore(), hooks=Hooks(seed=seed)) as elsewhere:
        c = Client(elsewhere)
        await c.sync()
        assert [c.member.room.store.encode()] == store.rooms_kept["r"]


async def test_an_empty_seed_stores_nothing() -> None:
    store = ScriptedStore()
    async with Driver(store, hooks=Hooks(seed=lambda name, doc: None)) as driver:
        await Client(driver).sync()
        assert store.batches == []


@pytest.mark.parametrize("what", ["hook", "append"])
async def test_a_document_that_could_not_be_filled_in_is_not_opened(what: str) -> None:
    def seed(name: str, doc: Doc) -> None:
        doc.get_text("t").insert(0, "half")
        if what == "hook":
            raise RuntimeError("the database is gone")

    store = ScriptedStore()
    if what == "append":
        store.fails["append"] = StoreUnavailable("the disk is full")
    limits = DriverSettings(store_patience=0)
    async with Driver(store, hooks=Hooks(seed=seed), limits=limits) as driver:
        a = Client(driver)
        await settle()
        assert a.closed is not None
        assert a.closed[0] == CloseCode.TRY_AGAIN_LATER
        assert store.stored == []
        assert driver.hook_errors == ({"seed": 1} if what == "hook" else {})
        assert not driver.hub.rooms


async def test_what_is_stored_is_never_seeded_over() -> None:
    def seed(name: str, doc: Doc) -> None:
        raise AssertionError

    store = ScriptedStore(r=[insert(1, 0)])
    store.damaged.add("r")
    limits = DriverSettings(open_damaged=True)
    async with Driver(store, hooks=Hooks(seed=seed), limits=limits) as driver:
        a = Client(driver)
        await a.sync()
        assert a.closed is None
        store.fails["load"] = StoreUnavailable("gone")
        b = Client(driver, "other")
        await settle()
        assert b.closed is not None


# ---- documents


async def test_a_document_on_the_server_is_edited_like_anyones() -> None:
    store = ScriptedStore(r=[insert(1, 0)])
    told: list[bytes] = []
    hooks = Hooks(on_update=lambda room, update, member: told.append(update))
    async with Driver(store, hooks=hooks) as driver:
        a = Client(driver)
        await a.sync()
        async with driver.document("r") as doc:
            assert list(doc.get_array("t")) == [b"x"]
            with doc.transaction():
                doc.get_array("t").append(1)
                doc.get_map("m")["k"] = "v"
            await driver.stored("r")
            await settle()
            assert told == store.rooms_kept["r"][1:]
            [frame] = a.sent
            seen: list[object] = []
            doc.get_array("t").observe(lambda event: seen.append(event.delta))
            await a.say(edit(1, 1, b"y"))
            await settle()
            assert seen == [[{"retain": 1}, {"insert": [b"y"]}]]
            store.hold("append")
            doc.get_map("m")["k"] = "w"
            left = anyio.Event()

            async def let_go() -> None:
                await store.called("append")
                assert not left.is_set()
                store.let_go("append")

            driver._tasks.start_soon(let_go)
        left.set()
        assert len(a.sent) == 2
        assert a.member.room.members == (a.member,)
        document = StructStore()
        for update in store.rooms_kept["r"]:
            document.add(update)
        shown = Doc.view(document).to_json()
        assert shown == {"m": {"k": "w"}, "t": [{"$bytes": "78"}, {"$bytes": "79"}, 1]}
        assert frame == Update(told[0]).encode()
        await driver.stored("nowhere")


async def test_two_documents_on_the_server_follow_each_other() -> None:
    async with (
        Driver(MemoryStore()) as driver,
        driver.document("r") as one,
        driver.document("r") as two,
    ):
        with one.transaction():
            for i in range(5000):
                one.get_array("a").append([i] * 10)
        one.get_text("t").insert(0, "one")
        await settle()
        assert two.to_json() == one.to_json()
        two.get_text("t").append(" two")
        await settle()
        assert one.get_text("t").to_json() == "one two"


async def test_an_observer_that_raises_is_logged_and_the_document_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Driver(MemoryStore()) as driver:
        a = Client(driver)
        await a.sync()
        async with driver.document("r") as doc:
            stop = doc.get_array("t").observe(lambda event: 1 / 0)
            await a.say(edit(1, 0))
            await settle()
            stop()
            assert driver.hook_errors == {"observer": 1}
            doc.get_array("t").append(1)
        await a.say(edit(1, 1))
        assert Doc.view(a.member.room.store).get_array("t")[0] == b"x"
    assert "ZeroDivisionError" in caplog.text


async def test_a_document_whose_room_is_given_up_ends_what_uses_it() -> None:
    store = ScriptedStore()
    limits = DriverSettings(store_patience=0)
    async with Driver(store, limits=limits) as driver:
        store.fails["append"] = StoreUnavailable("the disk is full")
        with pytest.raises(DocumentClosed, match="store failed") as closed:
            async with driver.document("r") as doc:
                doc.get_text("t").insert(0, "lost")
                await anyio.sleep_forever()
        assert closed.value.code == CloseCode.TRY_AGAIN_LATER
        with pytest.raises(DocumentClosed):
            async with driver.document("r") as doc:
                doc.get_text("t").insert(0, "lost as well")
        del store.fails["append"]
        store.fails["load"] = RoomCorrupt("r")
        with pytest.raises(DocumentClosed):
            async with driver.document("other"):
                raise AssertionError
        del store.fails["load"]
        async with driver.document("r") as doc:
            assert doc.to_json() == {}


async def test_edits_that_are_refused_say_so() -> None:
    store = ScriptedStore(damaged=[insert(1, 0)])
    store.damaged.add("damaged")
    limits = DriverSettings(open_damaged=True)
    settings = Settings(max_document_bytes=1000)
    async with Driver(store, limits=limits, settings=settings) as driver:
        with pytest.raises(DocumentClosed, match="damaged"):
            async with driver.document("damaged") as doc:
                assert list(doc.get_array("t")) == [b"x"]
                with pytest.raises(DocumentClosed):
                    doc.get_text("t").insert(0, "no")
                with pytest.raises(DocumentClosed):
                    doc.get_text("t").insert(0, "still no")
        with pytest.raises(DocumentClosed, match="full") as closed:
            async with driver.document("full") as doc:
                doc.get_text("t").insert(0, "x" * 2000)
                doc.get_text("t").insert(0, "x")
        assert closed.value.code == CloseCode.TOO_LARGE


async def test_what_goes_wrong_in_the_body_comes_out_as_it_is() -> None:
    store = ScriptedStore()
    async with Driver(store) as driver:
        with pytest.raises(ZeroDivisionError):
            async with driver.document("r") as doc:
                doc.get_text("t").insert(0, "stays")
                raise ZeroDivisionError
        await driver.stored("r")
        assert len(store.rooms_kept["r"]) == 1
        assert not driver.hub.rooms["r"].members
