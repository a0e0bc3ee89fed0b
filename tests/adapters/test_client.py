"""The client over real sockets: with our server, and with ones that misbehave."""

from __future__ import annotations

import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.streams.tls
import pytest
import trustme
from anyio.abc import SocketAttribute, SocketStream
from proxy import proxied, pump
from scripted import ScriptedStore
from ycore_adapters import client as client_module
from ycore_adapters.client import (
    Client,
    DeniedError,
    DisconnectedError,
    GaveUpError,
    connect,
)
from ycore_adapters.driver import Driver
from ycore_adapters.hooks import Access, Hooks, Refused, Request
from ycore_adapters.server import Server, ServerSettings, listen_tcp, listen_unix
from ycore_adapters.stores import MemoryStore, Store

from ycore import LocalProtocolError, ProviderSettings
from ycore.doc import Doc
from ycore.provider import Event, Lost, Status

pytestmark = pytest.mark.anyio

QUICK = ProviderSettings(backoff_first=0.001, backoff_most=0.01)
"""Comes back at once."""


class Typist(Doc):
    def type(self, letters: str = "x") -> None:
        self.get_text("text").append(letters)


@asynccontextmanager
async def serving(
    store: Store | None = None, *, hooks: Hooks | None = None, unix: Path | None = None
) -> AsyncIterator[tuple[str, Server]]:
    """A server for the length of a test, which must not take too long."""
    with anyio.fail_after(20):
        async with Driver(store or MemoryStore(), hooks=hooks) as driver:
            listeners = [await listen_unix(unix)] if unix else await listen_tcp("127.0.0.1", 0)
            server = Server(driver, listeners, settings=ServerSettings())
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(server.serve)
                port = 0 if unix else listeners[0].getsockname()[1]
                yield f"ws://127.0.0.1:{port}", server
                server.stop()


@asynccontextmanager
async def answering(
    handle: Callable[[SocketStream], Awaitable[None]],
) -> AsyncIterator[str]:
    """A server that does this with each connection, once the request was read."""
    with anyio.fail_after(20):
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")

        async def serve(stream: SocketStream) -> None:
            async with stream:
                data = b""
                while b"\r\n\r\n" not in data:
                    data += await stream.receive()
                await handle(stream)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, serve)
            yield f"ws://127.0.0.1:{listener.extra(SocketAttribute.local_port)}/r"
            tasks.cancel_scope.cancel()
        await listener.aclose()


async def until(client: Client, holds: Callable[[], bool]) -> None:
    """Wait for something that comes with an event or an update."""
    while not holds():
        await client._changed.wait()


async def level(docs: Sequence[Typist]) -> None:
    """Wait until all have the same."""
    changed = anyio.Event()

    def on_update(update: bytes, origin: object) -> None:
        changed.set()

    ends = [doc.observe_updates(on_update) for doc in docs]
    while any(doc.encode() != docs[0].encode() for doc in docs):
        await changed.wait()
        changed = anyio.Event()
    for end in ends:
        end()


# ---- together


async def test_two_edit_together() -> None:
    async with serving() as (url, server):
        a, b = Typist(1), Typist(2)
        a.type("before")
        async with (
            connect(url, a, room="a b/ü?") as one,
            connect(f"{url}/a%20b/%C3%BC%3F", b) as two,
        ):
            await one.synced()
            await two.synced()
            await level([a, b])
            a.type("a")
            b.type("b")
            await level([a, b])
            assert list(server.driver.hub.rooms) == ["a b/ü?"]
            assert one.status is two.status is Status.SYNCED


async def test_who_is_here() -> None:
    async with serving() as (url, _), connect(url, Typist(1), room="r") as one:
        one.state = {"user": {"name": "Ada"}}
        events: list[Event] = []
        async with connect(url, Typist(2), room="r") as two:
            end = two.observe(events.append)
            await until(two, lambda: bool(two.peers))
            assert two.peers == {1: {"user": {"name": "Ada"}}}
            two.state = "two"
            await until(one, lambda: bool(one.peers))
            assert one.states == {1: {"user": {"name": "Ada"}}, 2: "two"}
            with pytest.raises(LocalProtocolError):
                two.state = object()
            two.disconnect()
            await until(one, lambda: not one.peers)
            await two.disconnected()
            end()
            heard = len(events)
            two.connect()
            await two.synced()
            await until(one, lambda: one.peers == {2: "two"})
            assert len(events) == heard > 0
        await until(one, lambda: not one.peers)


async def test_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with serving(unix=path), connect("ws://localhost/r", Typist(1), unix_socket=path) as c:
        await c.synced()


async def test_the_last_edits_are_stored_when_the_client_is_left() -> None:
    store = MemoryStore()
    doc = Typist(1)
    async with serving(store) as (url, server):
        async with connect(url, doc, room="r") as client:
            await client.synced()
            doc.type("last words")
        assert server.driver.hub.rooms["r"].store.encode() == doc.encode()
        with pytest.raises(KeyError, match="mine"):
            async with connect(url, doc, room="r") as client:
                await client.synced()
                doc.type("and more")
                raise KeyError("mine")
        assert server.driver.hub.rooms["r"].store.encode() == doc.encode()
        with anyio.CancelScope() as scope:
            async with connect(url, doc, room="r") as client:
                await client.synced()
                doc.type("still more")
                scope.cancel()
                await anyio.sleep_forever()
        assert server.driver.hub.rooms["r"].store.encode() == doc.encode()
        doc.type("after")
        assert server.driver.hub.rooms["r"].store.encode() != doc.encode()


# ---- what is asked for


async def test_headers_params_and_subprotocols_reach_the_server() -> None:
    asked: list[Request] = []

    def authorize(request: Request) -> Access:
        asked.append(request)
        return Access(subprotocol="two")

    async with (
        serving(hooks=Hooks(authorize=authorize)) as (url, _),
        connect(
            f"{url}/?a=b",
            Typist(1),
            room="r",
            headers={"Authorization": "Bearer x"},
            params={"tok": "ü &"},
            subprotocols=["one", "two"],
        ) as client,
    ):
        await client.synced()
        assert client.subprotocol == "two"
        (request,) = asked
        assert request.query == "a=b&tok=%C3%BC+%26"
        assert (b"authorization", b"Bearer x") in tuple(request.headers)


@pytest.mark.parametrize(
    "url", ["http://x/r", "ws:///r", "x", "ws://user@x/r", "ws://x/r#part", "ws://x:port/r"]
)
async def test_what_is_no_url_of_a_websocket(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|[Pp]ort"):
        async with connect(url, Typist(1)):
            pass


# ---- refusals


async def test_a_server_that_refuses() -> None:
    def authorize(request: Request) -> Access:
        if request.params.get("tok") == "read":
            return Access(read_only=True)
        raise Refused("not you")

    async with serving(hooks=Hooks(authorize=authorize)) as (url, _):
        async with connect(url, Typist(1), room="r") as client:
            with pytest.raises(GaveUpError, match="not you") as error:
                await client.synced()
            assert error.value.code == 4403
            for wait in (client.flush, client.synced, client.disconnected):
                with pytest.raises(GaveUpError, match="not you"):
                    await wait()
            assert client.status is Status.GAVE_UP
        doc = Typist(1)
        async with connect(url, doc, room="r", params={"tok": "read"}) as client:
            await client.synced()
            await client.flush()
            doc.type()
            with pytest.raises(DeniedError, match="read-only"):
                await client.flush()


@pytest.mark.parametrize("status", [200, 302, 401, 403, 404])
async def test_an_answer_of_http_that_is_final(status: int) -> None:
    async def refuse(stream: SocketStream) -> None:
        head = f"HTTP/1.1 {status} Whatever\r\nContent-Length: 0\r\n"
        await stream.send(f"{head}Location: /login\r\n\r\n".encode())

    async with answering(refuse) as url, connect(url, Typist(1)) as client:
        with pytest.raises(GaveUpError, match=f"answered {status} .* to /login") as error:
            await client.synced()
        assert error.value.code == status


@pytest.mark.parametrize(
    ("status", "retry_after", "least"),
    [(503, None, 0), (429, "100", 100), (503, timedelta(seconds=120), 20), (500, "soon", 0)],
)
async def test_an_answer_of_http_that_is_not(
    status: int, retry_after: str | timedelta | None, least: int
) -> None:
    async def refuse(stream: SocketStream) -> None:
        when = retry_after
        if isinstance(when, timedelta):
            when = format_datetime(datetime.now(UTC) + when, usegmt=True)
        header = "" if when is None else f"Retry-After: {when}\r\n"
        await stream.send(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n{header}\r\n".encode())

    events: list[Event] = []
    async with answering(refuse) as url, connect(url, Typist(1), settings=QUICK) as client:
        client.observe(events.append)
        await until(client, lambda: any(isinstance(event, Lost) for event in events))
        lost = next(event for event in events if isinstance(event, Lost))
        assert lost.code == status
        assert least <= lost.retry_in <= least + 101


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", 1006),
        (b"SSH-2.0-OpenSSH_9.7\r\n\r\n", 1002),
        (b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 1002),
    ],
)
async def test_an_answer_that_is_none(answer: bytes, code: int) -> None:
    async def reply(stream: SocketStream) -> None:
        await stream.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" * (code == 1002) + answer)

    events: list[Event] = []
    async with answering(reply) as url, connect(url, Typist(1), settings=QUICK) as client:
        client.observe(events.append)
        await until(client, lambda: sum(isinstance(event, Lost) for event in events) > 2)
        assert {event.code for event in events if isinstance(event, Lost)} == {code}


async def test_nobody_listens_and_then_somebody_does() -> None:
    listeners = await listen_tcp("127.0.0.1", 0)
    port = listeners[0].getsockname()[1]
    listeners[0].close()
    events: list[Event] = []
    with anyio.fail_after(20):
        doc = Typist(1)
        async with connect(f"ws://127.0.0.1:{port}/r", doc, settings=QUICK) as client:
            client.observe(events.append)
            await until(client, lambda: any(isinstance(event, Lost) for event in events))
            doc.type()
            async with Driver(MemoryStore()) as driver, anyio.create_task_group() as tasks:
                server = Server(driver, await listen_tcp("127.0.0.1", port))
                tasks.start_soon(server.serve)
                await client.flush()
                assert driver.hub.rooms["r"].store.encode() == doc.encode()
                client.disconnect()
                with pytest.raises(DisconnectedError):
                    await client.flush()
                with pytest.raises(DisconnectedError):
                    await client.synced()
                server.stop()


async def test_a_message_that_is_too_long_is_final() -> None:
    async with serving() as (url, _):
        doc = Typist(1)
        doc.type("x" * 10_000)
        async with connect(url, doc, room="r") as one:
            await one.flush()
            async with connect(url, Typist(2), room="r", max_message_bytes=5000) as two:
                with pytest.raises(GaveUpError, match="more than 5000 bytes") as error:
                    await two.synced()
                assert error.value.code == 1009


# ---- storing


async def test_flush_waits_for_the_store() -> None:
    store = ScriptedStore()
    async with serving(store) as (url, _):
        doc = Typist(1)
        async with connect(url, doc, room="r") as client:
            await client.synced()
            store.hold("append")
            doc.type()
            done = False

            async def flush() -> None:
                nonlocal done
                await client.flush()
                done = True

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(flush)
                await store.called("append")
                assert not done
                store.let_go("append")
            assert done


# ---- TLS


class QuietListener(anyio.streams.tls.TLSListener):
    @staticmethod
    async def handle_handshake_error(exc: BaseException, stream: anyio.abc.AnyByteStream) -> None:
        await anyio.aclose_forcefully(stream)


@asynccontextmanager
async def tls_before(url: str, context: ssl.SSLContext) -> AsyncIterator[int]:
    """TLS in front of a server: gives its port."""
    port = int(url.rpartition(":")[2])
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    wrapped = QuietListener(listener, context, standard_compatible=False)

    async def serve(stream: Any) -> None:
        async with stream, await anyio.connect_tcp("127.0.0.1", port) as upstream:
            await pump(stream, upstream)

    async with wrapped, anyio.create_task_group() as tasks:
        tasks.start_soon(wrapped.serve, serve)
        yield listener.extra(SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


async def test_tls() -> None:
    authority = trustme.CA()
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(theirs)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    async with serving() as (url, _), tls_before(url, theirs) as port:
        doc = Typist(1)
        async with connect(f"wss://localhost:{port}/r", doc, ssl_context=ours) as client:
            doc.type("x" * 300_000)
            await client.flush()
        async with connect(f"wss://localhost:{port}/r", doc) as client:
            with pytest.raises(GaveUpError, match="certificate") as error:
                await client.synced()
            assert error.value.code == 1015


# ---- slow and broken connections


async def test_a_slow_socket_gets_what_edits_come_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_OUTBOX_BYTES", 1000)
    a, b = Typist(1), Typist(2)
    async with (
        serving() as (url, _),
        connect(url, a, room="r") as one,
        connect(url, b, room="r") as two,
    ):
        await one.synced()
        await two.synced()
        for _ in range(5000):
            a.type()
        assert one._connection is not None
        assert one._connection._waiting < 3000
        await one.flush()
        await level([a, b])


async def test_a_hundred_cuts() -> None:
    """Edits go on all the time; connections break anywhere, also while they are being made."""
    chance = random.Random(1)
    docs = [Typist(1), Typist(2)]
    async with (
        serving() as (direct, server),
        proxied(direct) as (url, proxy),
        connect(url, docs[0], room="r", settings=QUICK) as one,
        connect(url, docs[1], room="r", settings=QUICK) as two,
    ):
        two.state = "here"
        for cut in range(100):
            while len(proxy.scopes) < 2:
                await until_next(one, two)
            for _ in range(chance.randrange(20)):
                chance.choice(docs).type()
                await anyio.lowlevel.checkpoint()
            if not cut % 3:
                await chance.choice([one, two]).synced()
            proxy.cut()
        docs[0].type("the end")
        await one.flush()
        await two.flush()
        await level(docs)
        assert server.driver.hub.rooms["r"].store.encode() == docs[0].encode()
        await until(one, lambda: one.peers == {2: "here"})


async def until_next(*clients: Client) -> None:
    """Wait until something happens to one of them."""
    async with anyio.create_task_group() as tasks:

        async def wait(client: Client) -> None:
            await client._changed.wait()
            tasks.cancel_scope.cancel()

        for client in clients:
            tasks.start_soon(wait, client)


async def test_a_server_that_is_not_there_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    lost: list[Event] = []
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    await listener.aclose()
    url = f"ws://127.0.0.1:{port}"
    with anyio.fail_after(20):
        async with connect(
            url, Doc(), room="a room", params={"token": "secret"}, settings=QUICK
        ) as client:
            client.observe(lost.append)
            await until(client, lambda: len(lost) > 2)
    [told] = caplog.messages
    assert told.startswith(f"can't connect url={url}/a%20room code=1006 reason='")


async def test_a_dead_server_is_found_out_by_pings() -> None:
    async def say_nothing(stream: SocketStream) -> None:
        await anyio.sleep_forever()

    settings = ProviderSettings(
        connect_timeout=0.05, backoff_first=0.001, ping_interval=0.02, silence_timeout=0.05
    )
    events: list[Event] = []
    async with answering(say_nothing) as url, connect(url, Typist(1), settings=settings) as c:
        c.observe(events.append)
        await until(c, lambda: sum(isinstance(event, Lost) for event in events) > 1)
    async with serving() as (url, _), connect(url, Typist(1), room="r", settings=settings) as c:
        await c.synced()
        lost = []
        c.observe(lambda event: lost.append(event) if isinstance(event, Lost) else None)
        with anyio.move_on_after(0.3):  # its pongs are signs of life
            await c.disconnected()
        assert lost == []


async def test_an_observer_that_raises_ends_the_client() -> None:
    def fail(event: Event) -> None:
        raise KeyError("a bug")

    async with serving() as (url, _):
        with pytest.raises(ExceptionGroup) as error:
            async with connect(url, Typist(1), room="r") as client:
                client.observe(fail)
                await anyio.sleep_forever()
        assert error.group_contains(KeyError)
