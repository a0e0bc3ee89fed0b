"""The ASGI application, told step by step what a server would tell it, and under real ones."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from asgi_client import Conversation, calling, connected, connecting, websocket_scope
from scripted import ScriptedStore
from ycore_adapters.asgi import ASGIApp, ASGISettings
from ycore_adapters.driver import DriverSettings
from ycore_adapters.hooks import Access, Hooks, Refused, Request
from ycore_adapters.stores import FileStore, MemoryStore, StoreUnavailable
from yupdates import ASK_ALL, EMPTY_ROOM, NOTHING, edit, here, insert

from ycore import LocalProtocolError, StructStore
from ycore.messages import PermissionDenied, SyncStep2, Update, decode

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def started(*args: Any, **options: Any) -> AsyncIterator[ASGIApp]:
    with anyio.fail_after(20):
        async with ASGIApp(*(args or (MemoryStore(),)), **options) as app:
            yield app


def answered(conversation: Conversation) -> bool:
    return any(frame[:2] == b"\x00\x01" for frame in conversation.frames())


async def level(conversation: Conversation) -> None:
    """Sync a client that has nothing."""
    conversation.send(ASK_ALL, NOTHING)
    await conversation.until(lambda: answered(conversation))


def document(conversation: Conversation) -> StructStore:
    store = StructStore()
    for frame in conversation.frames():
        for message in decode(frame):
            if isinstance(message, SyncStep2 | Update):
                store.add(message.update)
    return store


async def nobody_left(app: ASGIApp) -> None:
    with anyio.fail_after(10):
        while any(room.members for room in app.driver.hub.rooms.values()):
            await anyio.lowlevel.checkpoint()


def only_if(request: Request) -> Access:
    """The room, if the token says so."""
    token = request.params.get("token")
    if token is None:
        raise Refused("who are you?")
    return Access(read_only=token == "reader", subprotocol=request.params.get("protocol"))


# ---- editing together


async def test_two_clients_exchange_an_update_and_see_each_other() -> None:
    async with started() as app, connected(app) as a, connected(app) as b:
        await a.hears(EMPTY_ROOM)
        await level(b)
        a.send(edit(1, 0), here(7))
        await b.hears(edit(1, 0))
        await b.until(lambda: any(b'{"name":"x"}' in frame for frame in b.frames()))
        a.tell("websocket.disconnect", code=1001)
        await a.ended()
        await b.until(lambda: any(b"null" in frame for frame in b.frames()))
        async with connected(app, "/other") as c:
            await c.hears(EMPTY_ROOM)


async def test_each_frame_is_one_message_in_order() -> None:
    async with started() as app, connected(app) as a, connected(app) as b:
        await level(b)
        edits = [edit(1, clock) for clock in range(200)]
        a.send(*edits)
        await b.hears(edits[-1])
        assert [frame for frame in b.frames() if frame in edits] == edits


async def test_a_room_is_its_path_without_what_it_is_mounted_under() -> None:
    ways = [
        {"path": "/a/b", "raw_path": b"/a%2Fb"},
        {"path": "/a/b", "raw_path": b"/a/b", "query_string": b"x=1"},
        {"path": "/a/b"},
        {"path": "/mount/a/b", "root_path": "/mount", "raw_path": b"/mount/a/b"},  # Starlette
        {"path": "/mount/a/b", "root_path": "/mount/"},
        {"path": "/a/b", "root_path": "/mount"},  # a proxy or framework that cuts it off
        {"path": "/a/b", "root_path": "/a/b"},
    ]
    async with started() as app, connected(app, "/a/b") as b:
        await level(b)
        for client, way in enumerate(ways, 1):
            async with connected(app, **way) as a:
                a.send(edit(client, 0))
                await b.hears(edit(client, 0))
        assert list(app.driver.hub.rooms) == ["a/b"]


async def test_a_path_is_decoded_once_only() -> None:
    async with started() as app, connected(app, "/a%2Fb", raw_path=b"/a%252Fb") as a:
        await a.hears(EMPTY_ROOM)
        assert list(app.driver.hub.rooms) == ["a%2Fb"]


@pytest.mark.parametrize(
    ("prefix", "scope"),
    [
        ("/", {"path": "/"}),
        ("/ws/", {"path": "/ws/"}),
        ("/ws/", {"path": "/ws"}),
        ("/ws/", {"path": "/other"}),
        ("/", {"path": "/\ufffd", "raw_path": b"/%ff"}),
        ("/", {"path": "/\ufffd"}),
    ],
)
@pytest.mark.parametrize("extensions", [{}, {"websocket.http.response": {}}])
async def test_what_is_no_room_is_not_accepted(
    prefix: str,
    scope: dict[str, Any],
    extensions: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="ycore_adapters")
    async with started(prefix=prefix) as app:
        async with connecting(app, extensions=extensions, **scope) as a:
            await a.ended()
        if extensions:
            status = 400 if "\ufffd" in scope["path"] else 404
            assert a.said[0]["status"] == status
            assert a.said[1]["body"]
        else:
            assert [event["type"] for event in a.said] == ["websocket.close"]
        assert not app.driver.hub.rooms
    [refused] = caplog.messages
    assert refused.startswith("refused address=192.0.2.1 status=40")


async def test_a_replacement_character_is_a_character() -> None:
    async with started() as app, connected(app, "/\ufffd", raw_path=b"/%EF%BF%BD") as a:
        await a.hears(EMPTY_ROOM)


def test_a_prefix_begins_and_ends_with_a_slash() -> None:
    with pytest.raises(ValueError, match="slash"):
        ASGIApp(MemoryStore(), prefix="/ws")


# ---- who may come in


async def test_the_hook_is_told_what_was_asked_for() -> None:
    requests: list[Request] = []

    def authorize(request: Request) -> Access:
        requests.append(request)
        return Access(room="tenant/" + request.room, data="ada")

    scope: dict[str, Any] = {
        "path": "/ws/żółw",
        "root_path": "/ws",
        "raw_path": b"/ws/%C5%BC%C3%B3%C5%82w",
        "query_string": b"token=a%20b",
        "headers": [(b"Cookie", b"session=s1")],
        "client": ["::ffff:192.0.2.1", 9],
        "user": "ada",
    }
    async with started(hooks=Hooks(authorize=authorize)) as app, connected(app, **scope) as a:
        await a.hears(EMPTY_ROOM)
        [request] = requests
        assert request.room == "żółw"
        assert request.path == "/ws/%C5%BC%C3%B3%C5%82w"
        assert request.params == {"token": "a b"}
        assert request.cookies == {"session": "s1"}
        assert request.address == "192.0.2.1"
        assert request.scope is not None
        assert request.scope["user"] == "ada"
        room = app.driver.hub.rooms["tenant/żółw"]
        [member] = room.members
        assert member.link.access.data == "ada"
        assert member.link.request is request


@pytest.mark.parametrize("client", [None, ("", 0), [None, None]])
async def test_a_unix_socket_has_no_address(client: Any) -> None:
    addresses = []

    def authorize(request: Request) -> Access:
        addresses.append(request.address)
        return Access()

    async with (
        started(hooks=Hooks(authorize=authorize)) as app,
        connected(app, client=client) as a,
    ):
        await a.hears(EMPTY_ROOM)
        assert addresses == [None]


async def test_who_may_not_come_in_is_told_so_and_closed_for_good() -> None:
    async with started(hooks=Hooks(authorize=only_if)) as app:
        async with connected(app) as a:
            a.send(ASK_ALL, edit(1, 0))  # as clients do at once
            assert await a.closed() == (4403, "who are you?")
            assert a.frames() == [PermissionDenied("who are you?").encode()]
        assert not app.driver.hub.rooms


async def test_readers_read() -> None:
    async with (
        started(hooks=Hooks(authorize=only_if)) as app,
        connected(app, query_string=b"token=writer") as a,
        connected(app, query_string=b"token=reader") as b,
    ):
        await level(b)
        b.send(edit(2, 0))
        a.send(edit(1, 0))
        await b.hears(edit(1, 0))
        assert document(b).encode() == insert(1, 0)
        assert edit(2, 0) not in a.frames()


@pytest.mark.parametrize(
    ("offered", "wanted", "selected"),
    [(None, None, None), (b"x, y", None, "x"), (b"x, y", "y", "y"), (b"x, y", "z", None)],
)
async def test_a_subprotocol_that_was_offered_is_selected(
    offered: bytes | None, wanted: str | None, selected: str | None
) -> None:
    headers = [] if offered is None else [(b"sec-websocket-protocol", offered)]
    query = b"token=1" + (f"&protocol={wanted}".encode() if wanted else b"")
    async with (
        started(hooks=Hooks(authorize=only_if)) as app,
        connected(app, headers=headers, query_string=query) as a,
    ):
        assert a.said[0]["subprotocol"] == selected
    offers = [] if offered is None else offered.decode().split(", ")
    async with (
        started(hooks=Hooks(authorize=only_if)) as app,
        connected(app, subprotocols=offers, query_string=query) as a,
    ):
        assert a.said[0]["subprotocol"] == selected


async def test_who_goes_while_it_is_asked_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    asked, answer = anyio.Event(), anyio.Event()

    async def authorize(request: Request) -> Access:
        asked.set()
        await answer.wait()
        return Access()

    async with started(hooks=Hooks(authorize=authorize)) as app:
        for raises in (OSError("gone"), None):
            async with connecting(app) as a:
                await asked.wait()
                a.tell("websocket.disconnect", code=1006)
                a.send_raises = raises
                answer.set()
                await a.ended()
        await nobody_left(app)
        assert not app._sockets
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_who_is_cancelled_while_it_is_asked_leaves_nothing() -> None:
    asked = anyio.Event()

    async def authorize(request: Request) -> Access:
        asked.set()
        await anyio.sleep_forever()
        raise AssertionError

    async with started(hooks=Hooks(authorize=authorize)) as app:
        async with calling(app, websocket_scope("/r")) as a:
            a.tell("websocket.connect")
            await asked.wait()
        assert not app.driver.hub.rooms


# ---- what one of them can do to the others


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"bytes": b"\xff"}, 4400),
        ({"bytes": b""}, 4400),
        ({"text": "x"}, 1003),
        ({"text": "x", "bytes": None}, 1003),
        ({"bytes": bytes(2000)}, 4413),
    ],
    ids=["garbage", "empty", "text", "text too", "too long"],
)
async def test_a_bad_message_costs_its_sender_the_connection_and_nobody_else(
    message: dict[str, Any], code: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        started(asgi=ASGISettings(max_message_bytes=1000)) as app,
        connected(app) as a,
        connected(app) as b,
    ):
        await level(a)
        b.send(here(7))
        await a.until(lambda: any(b'{"name":"x"}' in frame for frame in a.frames()))
        b.tell("websocket.receive", **message)
        b.send(edit(2, 0))
        assert (await b.closed())[0] == code
        await a.until(lambda: any(b"null" in frame for frame in a.frames()))
        async with connected(app) as c:
            c.send(edit(1, 0))
            await a.hears(edit(1, 0))
        assert edit(2, 0) not in a.frames()
    assert not caplog.messages


async def test_who_reads_nothing_is_stalled_and_later_brought_level() -> None:
    limits = DriverSettings(max_outbox_bytes=10_000)
    async with started(limits=limits) as app, connected(app) as a, connected(app) as slow:
        await level(slow)
        slow.reads = False
        taken = len(slow.frames())
        [room] = app.driver.hub.rooms.values()
        async with connected(app) as quick:
            await level(quick)
            for clock in range(100):
                a.send(edit(1, clock, bytes(1000)))
                await quick.hears(edit(1, clock, bytes(1000)))  # nobody waits for the slow one
        assert len(slow.frames()) == taken
        waiting = [member.link.waiting for member in room.members]
        assert max(waiting) < 12_000
        slow.read_on()
        await slow.until(lambda: document(slow).state_vector() == {1: 100})
        a.send(edit(1, 100))
        await slow.hears(edit(1, 100))


async def test_who_never_reads_does_not_hold_up_its_own_end() -> None:
    asgi = ASGISettings(close_timeout=0.05)
    async with started(asgi=asgi) as app, connected(app) as a:
        await a.hears(EMPTY_ROOM)
        a.reads = False
        a.tell("websocket.receive", text="x")
        await a.ended()
        await nobody_left(app)


async def test_who_does_not_answer_a_close_is_given_up() -> None:
    async with started(asgi=ASGISettings(close_timeout=0.05)) as app, connected(app) as a:
        a.tell("websocket.receive", text="x")
        await a.ended()
        assert a.said[-1]["type"] == "websocket.close"


@pytest.mark.parametrize("error", [OSError("gone"), RuntimeError("after sending a close")])
async def test_a_send_that_raises_costs_this_connection_only(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with started() as app, connected(app) as a:
        await level(a)
        async with connected(app) as b:
            await level(b)
            b.send_raises = error
            a.send(edit(1, 0))
            await b.ended()
        async with connected(app) as c:
            c.send(edit(2, 0))
            await a.hears(edit(2, 0))
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.source
async def test_a_bug_costs_the_connection_that_met_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with started() as app, connected(app) as a:
        await level(a)

        async def receive(*args: Any) -> None:
            raise RuntimeError("a bug")

        with monkeypatch.context() as patch:
            patch.setattr(app.driver, "receive", receive)
            async with connected(app) as b:
                b.send(ASK_ALL)
                await b.ended()
        async with connected(app) as c:
            c.send(edit(2, 0))
            await a.hears(edit(2, 0))
    assert caplog.messages == ["connection failed"]


async def test_thousands_of_messages_at_once_let_others_have_their_turns() -> None:
    """Though what hands them over never waits in between."""
    async with started() as app, connected(app) as a, connected(app, "/other") as b:
        await level(a)
        await level(b)
        count = 5_000
        a.send(*(edit(1, clock) for clock in range(count)))
        b.send(edit(2, 0), ASK_ALL)
        [room] = [room for room in app.driver.hub.rooms.values() if room.name == "r"]
        await b.until(lambda: sum(frame[:2] == b"\x00\x01" for frame in b.frames()) > 1)
        assert room.store.state_vector().get(1, 0) < count


# ---- starting and stopping


async def test_a_websocket_before_the_start_is_told_to_come_back_and_the_log_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = ASGIApp(MemoryStore())
    async with connected(app) as a:
        a.send(ASK_ALL)
        assert await a.closed() == (1013, "the server is not ready")
    [message] = caplog.messages
    assert "async with app" in message
    assert "lifespan" in message
    with pytest.raises(LocalProtocolError, match="was not started"):
        app.driver  # noqa: B018


async def test_stopping_stores_what_was_accepted_and_sends_everyone_away() -> None:
    store = ScriptedStore()
    app = ASGIApp(store)
    async with anyio.create_task_group() as tasks, app:
        a = Conversation(app, websocket_scope("/r"))
        tasks.start_soon(a.run)
        a.tell("websocket.connect")
        await level(a)
        store.hold("append")
        a.send(edit(1, 0))
        await store.called("append")

        async def let_go() -> None:
            await anyio.lowlevel.checkpoint()
            store.let_go("append")
            assert await a.closed() == (1001, "the server is shutting down")

        tasks.start_soon(let_go)
    assert store.rooms_kept == {"r": [insert(1, 0)]}


async def test_stopping_waits_for_a_store_and_for_members_only_so_long(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = ScriptedStore()
    async with anyio.create_task_group() as tasks:
        async with ASGIApp(store, asgi=ASGISettings(shutdown_timeout=0.05)) as app:
            a = Conversation(app, websocket_scope("/r"))
            mute = Conversation(app, websocket_scope("/other"))
            for client in (a, mute):
                tasks.start_soon(client.run)
                client.tell("websocket.connect")
                await level(client)
            store.hold("append")
            a.send(edit(1, 0))
            await store.called("append")
        await a.ended()
        await mute.ended()
    assert caplog.messages == ["shutdown: the store did not finish in time"]


async def test_who_comes_while_it_stops_is_sent_away() -> None:
    asked, answer = anyio.Event(), anyio.Event()

    async def authorize(request: Request) -> Access:
        asked.set()
        await answer.wait()
        return Access()

    app = ASGIApp(MemoryStore(), hooks=Hooks(authorize=authorize))
    async with anyio.create_task_group() as tasks:
        async with app:
            a = Conversation(app, websocket_scope("/r"))
            tasks.start_soon(a.run)
            a.tell("websocket.connect")
            await asked.wait()
        answer.set()
        assert await a.closed() == (1001, "the server is shutting down")


async def test_it_can_be_started_again_but_not_twice() -> None:
    app = ASGIApp(MemoryStore())
    for _ in range(2):
        async with app:
            with pytest.raises(LocalProtocolError, match="twice"):
                await app.__aenter__()
            async with connected(app) as a:
                await level(a)


# ---- lifespans


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[Conversation]:
    async with calling(app, {"type": "lifespan", "state": {}}) as conversation:
        conversation.tell("lifespan.startup")
        yield conversation


def kinds(conversation: Conversation) -> list[str]:
    return [event["type"] for event in conversation.said]


async def stop(conversation: Conversation) -> None:
    conversation.tell("lifespan.shutdown")
    await conversation.ended()


BOTH = ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_an_asgi_server_starts_and_stops_it() -> None:
    store = ScriptedStore()
    app = ASGIApp(store)
    async with lifespan(app) as outer:
        await outer.until(lambda: bool(outer.said))
        async with connected(app) as a:
            await level(a)
            a.send(edit(1, 0))
            await store.called("append")
        await stop(outer)
    assert kinds(outer) == BOTH
    assert store.rooms_kept == {"r": [insert(1, 0)]}


async def test_a_store_that_cant_be_opened_is_a_failed_startup(tmp_path: Any) -> None:
    async with FileStore(tmp_path), lifespan(ASGIApp(FileStore(tmp_path))) as outer:
        await outer.ended()
        [failed] = outer.said
        assert failed["type"] == "lifespan.startup.failed"
        assert "in use by another process" in failed["message"]


async def test_a_failed_start_may_be_tried_again() -> None:
    class Failing(MemoryStore):
        fails = True

        async def __aenter__(self) -> Any:
            if self.fails:
                raise StoreUnavailable("no disk")
            return self

    store = Failing()
    app = ASGIApp(store)
    with pytest.raises(StoreUnavailable):
        await app.__aenter__()
    store.fails = False
    async with app:
        pass


def inside(*script: Any, log: list[str]) -> Any:
    """An application with a lifespan: sends what the script says at startup and at shutdown."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for wanted, answer in script:
            event = await receive()
            assert event["type"] == f"lifespan.{wanted}"
            log.append(wanted)
            if isinstance(answer, Exception):
                raise answer
            if answer is not None:
                await send({"type": f"lifespan.{wanted}.{answer}", "message": "m"})

    return app


async def test_the_application_inside_starts_after_ours_and_stops_before() -> None:
    log: list[str] = []

    class Logged(MemoryStore):
        async def __aenter__(self) -> Any:
            log.append("open")
            return self

        async def __aexit__(self, *exc_info: object) -> None:
            log.append("close")

    inner = inside(("startup", "complete"), ("shutdown", "complete"), log=log)
    async with lifespan(ASGIApp(Logged(), http=inner)) as outer:
        await outer.until(lambda: bool(outer.said))
        assert log == ["open", "startup"]
        await stop(outer)
    assert log == ["open", "startup", "shutdown", "close"]
    assert kinds(outer) == BOTH


@pytest.mark.parametrize(
    "script",
    [
        [("startup", ValueError("it knows no lifespans"))],  # Django
        [],  # returns at once
        [("startup", "complete")],  # and does not wait for the end
        [("startup", None)],
    ],
)
async def test_the_application_inside_need_not_know_lifespans(script: list[Any]) -> None:
    app = ASGIApp(MemoryStore(), http=inside(*script, log=[]))
    async with lifespan(app) as outer:
        await outer.until(lambda: bool(outer.said))
        async with connected(app) as a:
            await level(a)
        await stop(outer)
    assert kinds(outer) == BOTH


async def test_a_failure_inside_is_passed_on() -> None:
    for script, answers in [
        ([("startup", "failed")], ["lifespan.startup.failed"]),
        (
            [("startup", "complete"), ("shutdown", "failed")],
            ["lifespan.startup.complete", "lifespan.shutdown.failed"],
        ),
    ]:
        app = ASGIApp(MemoryStore(), http=inside(*script, log=[]))
        async with lifespan(app) as outer:
            await outer.until(lambda: bool(outer.said))
            outer.tell("lifespan.shutdown")
            await outer.ended()
        assert kinds(outer) == answers
        with pytest.raises(LocalProtocolError):
            app.driver  # noqa: B018


# ---- HTTP, and what is not ours


async def http(app: Any, path: str, method: str = "GET", **more: Any) -> tuple[int, bytes]:
    async with calling(app, {"type": "http", "path": path, "method": method, **more}) as a:
        await a.ended()
    start, body = a.said
    assert (b"content-length", str(len(body["body"])).encode()) in start["headers"] or not body[
        "body"
    ]
    return start["status"], body["body"]


async def test_plain_requests_are_answered() -> None:
    async with started(prefix="/ws/") as app:
        assert await http(app, "/health") == (200, b"ok\n")
        assert await http(app, "/mount/health", root_path="/mount") == (200, b"ok\n")
        assert await http(app, "/health", "HEAD") == (200, b"")
        assert (await http(app, "/health", "POST"))[0] == 405
        assert (await http(app, "/ws/room"))[0] == 426
        assert (await http(app, "/ws/"))[0] == 404
        assert (await http(app, "/"))[0] == 404


async def test_health_says_what_is_wrong() -> None:
    store = ScriptedStore()
    app = ASGIApp(store)
    status, text = await http(app, "/health")
    assert status == 503
    assert b"was not started" in text
    async with started(store) as app, connected(app) as a:
        await level(a)
        store.fails["append"] = StoreUnavailable("no disk")
        a.send(edit(1, 0))
        with anyio.fail_after(10):
            while not app.driver.problems():
                await anyio.lowlevel.checkpoint()
        assert await http(app, "/health") == (503, b"rooms that can't be stored at the moment: 1\n")
        del store.fails["append"]
        a.send(ASK_ALL)


async def test_what_is_not_ours_is_the_other_applications() -> None:
    scopes: list[Any] = []

    async def other(scope: Any, receive: Any, send: Any) -> None:
        scopes.append((scope["type"], scope["path"], (await receive())["type"]))

    async with started(prefix="/ws/", http=other) as app:
        for path in ("/health", "/ws/r"):
            async with calling(app, {"type": "http", "path": path}) as a:
                a.tell("http.request")
                await a.ended()
        async with connecting(app, "/elsewhere") as a:
            await a.ended()
        async with connected(app, "/ws/r") as a:
            await level(a)
    assert scopes == [
        ("http", "/health", "http.request"),
        ("http", "/ws/r", "http.request"),
        ("websocket", "/elsewhere", "websocket.connect"),
    ]


async def test_an_unknown_scope_is_refused_as_asgi_says() -> None:
    with pytest.raises(NotImplementedError, match="webtransport"):
        await ASGIApp(MemoryStore())({"type": "webtransport"}, None, None)  # type: ignore[arg-type]


def test_it_needs_anyio_and_nothing_else() -> None:
    program = (
        "import sys\n"
        "for name in ('h11', 'wsproto', 'click', 'filelock', 'trio', 'uvloop'):\n"
        "    sys.modules[name] = None\n"
        "import anyio\n"
        "from ycore_adapters.asgi import ASGIApp\n"
        "from ycore_adapters.stores import FileStore, MemoryStore\n"
        "async def main():\n"
        "    async with ASGIApp(MemoryStore()): print('started')\n"
        "anyio.run(main)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.stdout, done.stderr) == (b"started\n", b"")
