"""The server over real sockets: what clients see, and what one of them can't do to the others."""

from __future__ import annotations

import errno
import importlib.util
import os
import socket
import struct
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import pytest
from scripted import ScriptedStore
from wsclient import Address, Refused, WsClient, ask, connect, connect_stream
from wsproto.extensions import PerMessageDeflate
from ycore_adapters import driver as driver_module
from ycore_adapters import server as server_module
from ycore_adapters._turns import SLICE
from ycore_adapters.driver import Driver, DriverSettings
from ycore_adapters.server import Server, ServerSettings, listen_tcp, listen_unix
from ycore_adapters.stores import FileStore, MemoryStore, Store
from yupdates import ASK_ALL, EMPTY_ROOM, NOTHING, edit, here, insert

from ycore import Settings, StructStore
from ycore.messages import AwarenessUpdate, SyncStep1, SyncStep2, Update, decode

pytestmark = pytest.mark.anyio

_BACKENDS: list[Any] = [
    pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
    pytest.param(("trio", {}), id="trio"),
]
if importlib.util.find_spec("uvloop") is not None:
    _BACKENDS.append(pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"))


@pytest.fixture(params=_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    backend: tuple[str, dict[str, Any]] = request.param
    return backend


@pytest.fixture(autouse=True)
def _quick_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_SWEEP", 0.01)


@pytest.fixture(params=["tcp", "unix"])
async def listener(request: pytest.FixtureRequest, tmp_path: Path) -> socket.socket:
    if request.param == "unix":
        return await listen_unix(tmp_path / "socket")
    return (await listen_tcp("127.0.0.1", 0))[0]


class Running:
    """A server, and where to reach it."""

    def __init__(self, server: Server, stopped: anyio.Event) -> None:
        self.server = server
        self.stopped = stopped
        """Set when `serve` has returned."""
        address = server.listeners[0].getsockname()
        self.address: Address = address if isinstance(address, str) else address[:2]

    def connect(self, path: str = "/r", **more: Any) -> Any:
        return connect(self.address, path, **more)


@asynccontextmanager
async def serving(
    store: Store | None = None,
    *,
    listener: socket.socket | None = None,
    settings: ServerSettings | None = None,
    limits: DriverSettings | None = None,
    rooms: Settings | None = None,
) -> AsyncIterator[Running]:
    """A server for the length of a test, which must not take too long."""
    with anyio.fail_after(15):
        async with AsyncExitStack() as stack:
            if store is None:
                store = MemoryStore()
            driver = await stack.enter_async_context(Driver(store, settings=rooms, limits=limits))
            listeners = [listener] if listener else await listen_tcp("127.0.0.1", 0)
            server = Server(driver, listeners, settings=settings)
            stopped = anyio.Event()

            async def serve() -> None:
                await server.serve()
                stopped.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(serve)
                yield Running(server, stopped)
                server.stop()


async def level(client: WsClient) -> StructStore:
    """Sync a client that has nothing, and return what it then has."""
    assert (await client.receive())[:2] == b"\x00\x00"
    await client.send(ASK_ALL, NOTHING)
    store = StructStore()
    [answer] = decode(await client.until(lambda message: message[:2] == b"\x00\x01"))
    assert isinstance(answer, SyncStep2)
    store.add(answer.update)
    return store


def is_update(message: bytes) -> bool:
    return message[:2] in (b"\x00\x01", b"\x00\x02")


async def hear(client: WsClient, store: StructStore, upto: dict[int, int]) -> None:
    """Read updates until this state vector is reached."""
    while store.state_vector() != upto:
        for message in decode(await client.until(is_update)):
            assert isinstance(message, Update | SyncStep2)
            store.add(message.update)


async def empty(running: Running) -> None:
    """Wait until the room has no members any more."""
    while running.server.driver.hub.rooms["r"].members:
        await anyio.lowlevel.checkpoint()


# ---- editing together


async def test_two_clients_exchange_an_update(listener: socket.socket) -> None:
    async with (
        serving(listener=listener) as running,
        running.connect() as a,
        running.connect() as b,
    ):
        assert await a.receive() == EMPTY_ROOM
        await level(b)
        await a.send(edit(1, 0))
        assert await b.receive() == edit(1, 0)
        async with running.connect() as c:
            assert (await level(c)).encode() == insert(1, 0)
        async with running.connect("/other") as d:
            assert await d.receive() == EMPTY_ROOM


async def test_a_room_is_its_path_however_it_is_written() -> None:
    async with (
        serving() as running,
        running.connect("/a%2Fb?tok=1") as a,
        running.connect("/a/b") as b,
    ):
        await level(b)
        await a.send(edit(1, 0))
        assert await b.receive() == edit(1, 0)


async def test_a_joiner_hears_who_is_here() -> None:
    async with serving() as running, running.connect() as a:
        await a.send(here(7))
        await a.send(ASK_ALL)
        await a.until(lambda message: message[:2] == b"\x00\x01")  # so it was read
        async with running.connect() as b:
            assert (await b.receive())[:2] == b"\x00\x00"
            [message] = decode(await b.receive())
            assert isinstance(message, AwarenessUpdate)
            assert b'{"name":"x"}' in message.payload


async def _drop(client: WsClient) -> None:
    await client.stream.aclose()


async def _close(client: WsClient) -> None:
    await client.close()


async def _kill_mid_frame(client: WsClient) -> None:
    await client.stream.send(b"\x82\xfe\x10\x00abcd half")
    client.kill()
    await client.stream.aclose()


@pytest.mark.parametrize("end", [_drop, _close, _kill_mid_frame])
async def test_who_vanishes_is_gone_for_the_others_at_once(
    end: Callable[[WsClient], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as running, running.connect() as a:
        await level(a)
        async with running.connect() as b:
            await b.send(here(7))
            assert b'{"name":"x"}' in await a.receive()
            await end(b)
            gone = await a.receive()
            assert gone[0] == 1
            assert b"null" in gone
        async with running.connect() as c:  # it serves on
            await level(c)
            await c.send(edit(1, 0))
            assert await a.receive() == edit(1, 0)
    assert caplog.messages == []


async def test_a_client_of_another_protocol_is_told_in_the_log_once_in_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What a HocuspocusProvider sends: to its URL without a room, or else the document's name and
    its token, and never a question."""
    told = "a client does not speak y-websocket (a HocuspocusProvider?) address=127.0.0.1 problem="

    async def ask_for_no_room(running: Running) -> None:
        with pytest.raises(Refused):
            await connect(running.address, "/").__aenter__()

    settings = ServerSettings(handshake_timeout=0.05)
    async with (
        serving(settings=settings) as running,
        running.connect() as a,
        running.connect() as other,
    ):
        await level(a)
        await other.send(b"\x04name\2\0\5token")
        while not caplog.messages:
            await anyio.lowlevel.checkpoint()
        await ask_for_no_room(running)
    assert caplog.messages == [f"{told}'it does not ask for the document'"]
    caplog.clear()
    async with serving() as running:
        await ask_for_no_room(running)
        await ask_for_no_room(running)
    assert caplog.messages == [f"{told}'it names no room'"]


async def test_who_comes_who_goes_and_who_is_refused_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="ycore_adapters")
    limits = DriverSettings(allowed_origins=frozenset({"https://example.org"}))
    settings = ServerSettings(prefix="/ws/")
    rooms = Settings(max_members=1)
    async with serving(settings=settings, limits=limits, rooms=rooms) as running:
        async with running.connect("/ws/r") as a:
            await level(a)
            async with running.connect("/ws/r") as second:
                assert await second.closed() == 1013
        await empty(running)
        origin = (b"Origin", b"https://example.com")
        async with running.connect("/ws/r", headers=[origin]) as from_elsewhere:
            assert await from_elsewhere.closed() == 4403
        with pytest.raises(Refused, match="404"):
            await connect(running.address, "/r").__aenter__()
        assert (await ask(running.address, b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n")).endswith(
            b"ok\n"
        )
        here_ = "room='r' address=127.0.0.1"
        assert caplog.messages == [
            f"joined {here_} read_only=False",
            f"sent away {here_} code=1013 reason='the room is full'",
            f"left {here_}",
            f"refused {here_} code=4403 reason='pages of https://example.com may not connect here'",
            "refused address=127.0.0.1 status=404 "
            "reason='no room here: connect to /ws/your-room-name'",
            "a client does not speak y-websocket (a HocuspocusProvider?) address=127.0.0.1 "
            "problem='it names no room'",
        ]


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x82\x81\x00\x00\x00\x00\xff", 4400),  # no y-protocols message
        (b"\x82\x80\x00\x00\x00\x00", 4400),  # nothing at all
        (b"\x81\x81\x00\x00\x00\x00x", 1003),
        (b"\x82\xff\x00\x00\x00\x00\x7f\x00\x00\x00" + bytes(4 + 2000), 4413),
        (b"\xf2\x81\x00\x00\x00\x00x", 1002),
        (b"\x88\x80\x00\x00\x00\x00", 1005),
    ],
    ids=["garbage", "empty", "text", "too big", "reserved bits", "close"],
)
async def test_a_bad_frame_costs_its_sender_the_connection_and_nobody_else(
    frame: bytes, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    """With one close frame, after which the server closes the socket."""
    settings = ServerSettings(max_message_bytes=1000, close_timeout=0.2)
    async with (
        serving(settings=settings) as running,
        running.connect() as good,
        running.connect() as bad,
    ):
        await level(good)
        await bad.stream.send(frame)
        assert await bad.closed() == code
        with pytest.raises(anyio.EndOfStream):
            await bad.stream.receive()
        async with running.connect() as c:
            await c.send(edit(1, 0))
            assert await good.receive() == edit(1, 0)
    assert caplog.messages == []


async def test_a_reader_that_stops_costs_bounded_memory_and_delays_nobody() -> None:
    """50 MB are written meanwhile; when it reads again it ends level."""
    limit = 64 * 1024
    size, count = 2**20, 50
    async with (
        serving(limits=DriverSettings(max_outbox_bytes=limit)) as running,
        running.connect() as writer,
        running.connect() as reader,
        running.connect() as slow,
    ):
        slow_store = await level(slow)
        reader_store = await level(reader)
        await level(writer)
        most = 0
        for clock in range(count):
            await writer.send(edit(1, clock, bytes(size)))
            await hear(reader, reader_store, {1: clock + 1})
            most = max(most, *(sock.waiting for sock in running.server._sockets))
        assert size <= most < limit + 2 * size  # what is not too much, and the one that was
        await hear(slow, slow_store, {1: count})
        assert slow_store.encode() == reader_store.encode()
        await writer.send(edit(1, count))
        await hear(slow, slow_store, {1: count + 1})


async def test_many_connections_at_once() -> None:
    number = 200
    async with serving() as running, anyio.create_task_group() as tasks:
        ready: set[int] = set()
        all_ready = anyio.Event()
        heard: list[bytes] = []

        async def take_part(me: int) -> None:
            async with running.connect() as client:
                await level(client)
                ready.add(me)
                if len(ready) == number:
                    all_ready.set()
                heard.append(await client.receive())

        for me in range(number):
            tasks.start_soon(take_part, me)
        await all_ready.wait()
        async with running.connect() as writer:
            await writer.send(edit(1, 0))
            await level(writer)
    assert heard == [edit(1, 0)] * number


# ---- HTTP


@pytest.mark.parametrize("half_close", [False, True], ids=["", "half-closed"])
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n", 200),
        (b"GET /health HTTP/1.0\r\n\r\n", 200),
        (b"GET /r HTTP/1.1\r\nHost: h\r\n\r\n", 426),
        (b"POST /r HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000), 405),
        (b"\x16\x03\x01 no TLS here\r\n\r\n", 400),
        (b"GET /r HTTP/1.0\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", 400),
    ],
    ids=["health", "HTTP/1.0", "no upgrade", "body", "TLS", "upgrade over HTTP/1.0"],
)
async def test_plain_requests_are_answered_and_the_connection_closed(
    listener: socket.socket,
    data: bytes,
    status: int,
    half_close: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(listener=listener) as running:
        answer = await ask(running.address, data, half_close=half_close)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert caplog.messages == []


async def test_health_says_when_rooms_cant_be_stored() -> None:
    class Failing(MemoryStore):
        def problems(self) -> dict[str, str]:
            return failing

    failing = {"r": "/secret/path: no space left"}
    async with serving(Failing()) as running:
        request = b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n"
        answer = await ask(running.address, request)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert answer.endswith(b"rooms that can't be stored at the moment: 1\n")
        failing.clear()
        assert (await ask(running.address, request)).endswith(b"\r\n\r\nok\n")


async def test_a_request_that_does_not_arrive_times_out() -> None:
    settings = ServerSettings(handshake_timeout=0.05)
    async with serving(settings=settings) as running:
        for data in (b"", b"GET /r HTTP/1.1\r\n"):
            answer = await (ask(running.address, data) if data else _silence(running.address))
            assert answer.startswith(b"HTTP/1.1 408 ")


async def _silence(address: Address) -> bytes:
    async with await connect_stream(address) as stream:
        return b"".join([piece async for piece in stream])


# ---- those who say nothing


async def test_a_silent_peer_is_pinged_and_stays_while_it_answers() -> None:
    settings = ServerSettings(ping_interval=0.02, ping_timeout=60)
    async with serving(settings=settings) as running, running.connect() as client:
        await level(client)
        for _ in range(5):
            await client.pinged()
        async with running.connect() as other:
            await other.send(edit(1, 0))
            assert await client.until(is_update) == edit(1, 0)


async def test_a_dead_peer_is_given_up() -> None:
    settings = ServerSettings(ping_interval=0.05, ping_timeout=0.05)
    async with serving(settings=settings) as running, running.connect() as client:
        client.answers_pings = False
        assert await client.closed() == 1006
        assert client.pings == 1
        await empty(running)


async def test_a_peer_whose_identity_another_claims_is_probed_at_once() -> None:
    """The other may be its client, back on a new connection: it must not wait for long."""
    settings = ServerSettings(ping_interval=60, ping_timeout=0.05)
    async with (
        serving(settings=settings) as running,
        running.connect() as dead,
        running.connect() as other,
    ):
        await level(other)
        dead.answers_pings = False
        await dead.send(here(7))
        await other.until(lambda message: b'{"name":"x"}' in message)
        async with running.connect() as back:
            await back.send(here(7))
            await dead.pinged()
            assert await dead.closed() == 1006
            gone = await other.until(lambda message: message[0] == 1)
            assert b"null" in gone


async def test_a_peer_is_not_dead_because_we_do_not_read_it() -> None:
    """While its room loads it is not read, so its pongs are not heard."""
    store = ScriptedStore()
    settings = ServerSettings(ping_interval=100, ping_timeout=100)
    async with serving(store, settings=settings) as running:
        store.hold("load")
        async with running.connect() as client:
            await client.send(ASK_ALL)
            await store.called("load")
            await anyio.wait_all_tasks_blocked()
            [sock] = running.server._sockets
            for seconds in (101, 201, 301):
                sock.sweep(time.monotonic() + seconds)
            store.let_go("load")
            assert await client.receive() == EMPTY_ROOM


async def test_a_peer_that_does_not_answer_our_close_is_given_up() -> None:
    settings = ServerSettings(close_timeout=0.05)
    async with serving(settings=settings) as running, running.connect() as client:
        await client.stream.send(b"\x82\x81\x00\x00\x00\x00\xff")
        received = b"".join([piece async for piece in client.stream])
        assert b"\x88" in received
        await empty(running)


# ---- what one connection may cost

REQUEST = (
    b"GET /r HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def nobody_but(running: Running, number: int) -> None:
    """Wait until there are but so many connections."""
    while len(running.server._sockets) > number:
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("limits", "status", "setting"),
    [
        ({"max_connections": 1}, 503, "max_connections=1"),
        ({"max_connections_per_address": 1}, 429, "max_connections_per_address=1"),
    ],
    ids=["in all", "per address"],
)
async def test_one_connection_too_many_is_refused_unread(
    limits: dict[str, int], status: int, setting: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told when to come back, and the log says once which setting it was."""
    async with serving(settings=ServerSettings(**limits)) as running:
        async with running.connect() as a:
            await level(a)
            for _ in range(3):
                head, _, body = (await _silence(running.address)).partition(b"\r\n\r\n")
                lines = head.split(b"\r\n")
                assert lines[0].startswith(b"HTTP/1.1 %d " % status)
                assert b"Retry-After: 10" in lines
                assert b"Connection: close" in lines
                assert b"Content-Length: %d" % len(body) in lines
            with pytest.raises(Refused) as refused:
                await running.connect().__aenter__()
            assert refused.value.status == status
            assert len(running.server._sockets) == 1
        await nobody_but(running, 0)
        assert not running.server._addresses
        async with running.connect() as b:  # there is room again
            await level(b)
    assert caplog.messages == [f"connections refused setting={setting} count=1"]


@pytest.mark.source
async def test_a_flood_of_connections_keeps_few_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those refused are kept for a moment, but never many."""
    monkeypatch.setattr(server_module, "_LINGERING", 5)
    monkeypatch.setattr(server_module, "_SWEEP", 60)
    async with serving(settings=ServerSettings(max_connections=0)) as running:
        for _ in range(20):
            assert (await _silence(running.address)).startswith(b"HTTP/1.1 503 ")
        assert len(running.server._refused._lingering) == 5


async def test_connections_by_a_unix_socket_have_no_address(tmp_path: Path) -> None:
    listener = await listen_unix(tmp_path / "socket")
    settings = ServerSettings(max_connections_per_address=1)
    async with (
        serving(listener=listener, settings=settings) as running,
        running.connect() as a,
        running.connect() as b,
    ):
        await level(a)
        await level(b)


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%lo", "fe80::/64"),
        ("::1", "::/64"),
    ],
)
async def test_an_address_of_ipv6_is_counted_with_its_network(address: str, counted: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    assert server_module._address(family, (address, 1)) == counted


async def test_a_peer_that_reads_no_answers_is_read_no_further(tmp_path: Path) -> None:
    """It costs bounded memory and nobody else's time, and is given up as if it were dead."""
    listener = await listen_unix(tmp_path / "socket")  # the system buffers less than over TCP
    limit = 2000
    settings = ServerSettings(max_answer_bytes=limit, ping_interval=100, ping_timeout=100)
    async with (
        serving(listener=listener, settings=settings) as running,
        running.connect() as flooder,
        anyio.create_task_group() as tasks,
    ):
        await level(flooder)
        [sock] = running.server._sockets
        gone = anyio.Event()

        async def flood() -> None:
            with suppress(anyio.BrokenResourceError):
                while True:
                    await flooder.stream.send((b"\x89\xfd" + bytes(4 + 125)) * 100)
            gone.set()

        tasks.start_soon(flood)
        while sock._taken is None:
            await anyio.lowlevel.checkpoint()
        assert limit < sock.waiting < limit + 2 * 16 * 1024
        async with running.connect() as a, running.connect() as b:
            await level(b)
            await a.send(edit(1, 0))
            assert await b.receive() == edit(1, 0)
        assert sock.waiting < limit + 2 * 16 * 1024
        seconds = 0
        while not gone.is_set():  # it is judged when it is not in our own queue
            seconds += 101
            sock.sweep(time.monotonic() + seconds)
            await anyio.lowlevel.checkpoint()
        await nobody_but(running, 0)


async def test_who_sends_pings_in_a_flood_is_answered_the_latest() -> None:
    number = 40_000
    async with (
        serving() as running,
        running.connect() as client,
        anyio.create_task_group() as tasks,
    ):
        await level(client)
        pings = (b"\x89\x84" + bytes(4) + i.to_bytes(4, "big") for i in range(number))
        tasks.start_soon(client.stream.send, b"".join(pings))
        last = b"\x8a\x04" + (number - 1).to_bytes(4, "big")
        received = bytearray()
        while not received.endswith(last):
            received += await client.stream.receive()
        answered = [bytes(received[at + 2 : at + 6]) for at in range(0, len(received), 6)]
        assert answered == sorted(set(answered))
        assert len(answered) < number / 10


@pytest.mark.source
@pytest.mark.parametrize("last", [0, 1000], ids=["in one go", "its end by itself"])
async def test_nothing_is_kept_of_a_message_that_was_worked_off(
    monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    size = 8 * 2**20
    async with serving() as running, running.connect() as client:
        await level(client)
        arrived = anyio.Event()

        async def ignore(member: object, frame: bytes) -> None:
            assert len(frame) == size
            arrived.set()

        monkeypatch.setattr(running.server.driver, "receive", ignore)
        message = b"\x82\xff" + size.to_bytes(8, "big") + bytes(4 + size)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            await client.stream.send(message[: len(message) - last])
            if last:
                while running.server._held < size - last:
                    await anyio.lowlevel.checkpoint()
                await client.stream.send(message[-last:])
            await arrived.wait()
            await anyio.wait_all_tasks_blocked()
            kept = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert kept < 2**20


async def test_many_long_messages_at_once_cost_the_longest_its_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = ServerSettings(max_unfinished_bytes=300_000)
    async with (
        serving(settings=settings) as running,
        running.connect() as a,
        running.connect() as b,
        running.connect() as long,
    ):
        for client in (a, b, long):
            await level(client)
        for client, size in ((a, 100_000), (long, 150_000)):
            await begin(running, client, size)
        await b.stream.send(BEGUN + bytes(60_000))
        assert await long.closed() == 1013
        assert running.server._held == 160_000
        await a.stream.send(bytes(100_000))
        while running.server._held < 260_000:
            await anyio.lowlevel.checkpoint()
    assert not running.server._held
    assert len(caplog.messages) == 1


BEGUN = b"\x82\xff" + (1_000_000).to_bytes(8, "big") + bytes(4)
"""Of a message of a million bytes."""


async def begin(running: Running, client: WsClient, size: int) -> None:
    """Have a client send so much of a message, and wait until it was read."""
    await go_on(running, client, size, BEGUN)


async def go_on(running: Running, client: WsClient, size: int, header: bytes = b"") -> None:
    held = running.server._held
    await client.stream.send(header + bytes(size))
    while running.server._held < held + size:
        await anyio.lowlevel.checkpoint()


async def test_who_keeps_most_for_an_address_pays_for_it() -> None:
    """Many of one address keep a little each, and never come to an end. Somebody else's message is
    longer than any of theirs, and arrives."""
    settings = ServerSettings(max_unfinished_bytes=300_000)
    async with (
        serving(settings=settings) as running,
        AsyncExitStack() as stack,
        running.connect() as reader,
    ):
        await level(reader)
        crowd = [await stack.enter_async_context(running.connect()) for _ in range(9)]
        for client in crowd:
            await begin(running, client, 30_000)
        stream = await anyio.connect_tcp(*running.address, local_host="127.0.0.2")
        honest = WsClient(await stack.enter_async_context(stream))
        await honest.open("/r")
        assert len(set(running.server._addresses)) == 2
        long = edit(1, 0, bytes(100_000))
        await honest.send(long)
        assert await reader.receive() == long
        await honest.send(edit(1, 1))
        assert await reader.receive() == edit(1, 1)
        assert await crowd[0].closed() == 1013


async def test_of_one_address_those_pay_that_have_kept_most_for_longest() -> None:
    """As it is behind a proxy."""
    settings = ServerSettings(max_unfinished_bytes=300_000)
    async with (
        serving(settings=settings) as running,
        AsyncExitStack() as stack,
        running.connect() as reader,
        running.connect() as honest,
    ):
        await level(reader)
        for _ in range(9):
            client = await stack.enter_async_context(running.connect())
            await begin(running, client, 30_000)
        for sock in running.server._sockets:
            sock.began -= 60
        long = edit(1, 0, bytes(100_000))
        await honest.send(long)
        assert await reader.receive() == long


@pytest.mark.source
async def test_a_message_of_which_nothing_comes_any_more_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That other things come meanwhile, a byte of it or a pong, changes nothing."""
    monkeypatch.setattr(server_module, "_SWEEP", 60)
    settings = ServerSettings(message_timeout=30, message_rate=1000, ping_interval=10**6)
    async with serving(settings=settings) as running, running.connect() as client:
        await level(client)
        [sock] = running.server._sockets
        now = time.monotonic()
        await begin(running, client, 20_000)
        sock.sweep(now)
        for size, seconds in ((1, 10), (1, 20), (5_000, 29), (1, 34)):
            await go_on(running, client, size)
            sock.sweep(now + seconds)
            assert sock.member is not None
        sock.sweep(now + 34.9)
        assert sock.member is not None
        sock.sweep(now + 35.1)  # 30 s, and 5 for the 5,000 bytes
        assert sock.member is None
        assert not running.server._held
        assert await client.closed() == 1013


@pytest.mark.source
async def test_a_message_may_take_its_time_if_it_keeps_coming(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "_SWEEP", 60)
    settings = ServerSettings(message_timeout=30, message_rate=1000, ping_interval=10**6)
    async with serving(settings=settings) as running, running.connect() as client:
        await level(client)
        [sock] = running.server._sockets
        now = time.monotonic()
        await begin(running, client, 1)
        for seconds in range(0, 2_500, 25):
            await go_on(running, client, 25_000 // 4)
            sock.busy = seconds % 100 != 0  # it is read one time in four
            sock.sweep(now + seconds)
        assert sock.member is not None


async def test_a_message_that_came_whole_is_let_go_of_before_it_is_taken_in() -> None:
    settings = ServerSettings(max_unfinished_bytes=100_000)
    async with serving(settings=settings) as running, running.connect() as client:
        await level(client)
        await client.send(edit(1, 0, bytes(100_100)))
        assert await client.closed() == 1013
        assert running.server.driver.hub.rooms["r"].store.size == 0


@pytest.mark.source
async def test_others_have_their_turn_within_one_read_and_order_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns = 0
    share = server_module._Socket._share

    async def count(sock: server_module._Socket, turn_ends: float) -> float:
        nonlocal turns
        turns += 1
        return await share(sock, turn_ends)

    monkeypatch.setattr(server_module, "_TURN", -1.0)
    monkeypatch.setattr(server_module._Socket, "_share", count)
    async with serving() as running, running.connect() as a, running.connect() as b:
        await level(a)
        await level(b)
        turns = 0
        pong = b"\x8a\x80" + bytes(4)
        await a.stream.send(pong * 3000)  # 18,000 bytes of nothing
        await a.send(*(edit(1, clock) for clock in range(100)))
        store = StructStore()
        await hear(b, store, {1: 100})
        assert turns >= 18_000 // 2048 + 100
        assert await received(b) == []


@pytest.mark.source
async def test_who_costs_more_than_a_turn_is_read_again_when_others_had_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving() as running, running.connect() as client:
        await level(client)
        turns = running.server.driver.turns
        queue, waited = turns.queue, anyio.Event()

        def waits(party: Any, call: Any) -> None:
            waited.set()
            queue(party, call)

        monkeypatch.setattr(turns, "queue", waits)
        monkeypatch.setattr(server_module, "_TURN", -1.0)
        await client.stream.send(b"\x8a\x80" + bytes(4))  # a pong: nothing is left to do of it
        await waited.wait()
        await client.send(edit(1, 0), ASK_ALL)
        answer = Update(insert(1, 0)).encode()
        assert (await client.until(is_update))[2:] == answer[2:]


async def received(client: WsClient) -> list[bytes]:
    """What else is there."""
    messages = []
    with anyio.move_on_after(0):
        while True:
            messages.append(await client.receive())
    return messages


async def test_a_reset_that_a_write_comes_upon_first_is_heard_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Together with data, on uvloop: that then watches the socket no further."""
    monkeypatch.setattr(server_module, "_SWEEP", 60.0)  # which would hear of it, too
    async with serving() as running, running.connect() as a:
        await level(a)
        room = running.server.driver.hub.rooms["r"]
        b = socket.create_connection(running.address)
        b.sendall(REQUEST)
        while len(room.members) < 2:
            await anyio.lowlevel.checkpoint()
        await a.send(ASK_ALL)
        await a.until(is_update)  # so that b is watched again
        b.sendall(b"\x82\x85abcdhel")  # half a frame
        b.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        b.close()
        await a.send(here(1))
        await nobody_but(running, 1)


@pytest.mark.parametrize("end", ["closed", "half-closed", "reset"])
@pytest.mark.parametrize(
    "said",
    [b"", REQUEST[:1], REQUEST[:-1], REQUEST, REQUEST + b"\x82", REQUEST + b"\x82\x85abcdhel"],
    ids=["nothing", "a byte", "nearly all", "request", "half a header", "half a frame"],
)
async def test_however_a_connection_ends_nothing_is_left_of_it(
    listener: socket.socket, said: bytes, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(listener=listener) as running:
        async with await connect_stream(running.address) as stream:
            if said:
                await stream.send(said)
            if end == "half-closed":
                await stream.send_eof()
                answer = b"".join([piece async for piece in stream])
                assert answer.startswith(b"HTTP/1.1 101 ") == (said[: len(REQUEST)] == REQUEST)
            elif end == "reset":
                WsClient(stream).kill()
        async with running.connect() as other:  # so the first one was accepted
            await level(other)
            await nobody_but(running, 1)
    assert caplog.messages == []


async def test_who_compresses_and_who_does_not_see_the_same() -> None:
    def squeezes() -> Any:
        return connect(running.address, extensions=[PerMessageDeflate()])

    settings = ServerSettings(compression=True)
    async with (
        serving(settings=settings) as running,
        squeezes() as a,
        running.connect() as b,
        squeezes() as c,
    ):
        clients = (a, b, c)
        for client in clients:
            await level(client)
        assert [sock.peer.window for sock in running.server._sockets].count(15) == 2
        for author, client in enumerate(clients, 1):
            for clock, long in enumerate(
                (b"again and again, " * 1000, bytes(2**20), bytes(3 * 2**20))
            ):
                await client.send(edit(author, clock, long))
                for other in clients:
                    if other is not client:
                        assert await other.receive() == edit(author, clock, long)


# ---- going down

_NOBODY = "refused|attempts failed"
"""What it says when nobody listens."""


async def test_stopping_stores_all_and_sends_everyone_away(
    tmp_path: Path, listener: socket.socket
) -> None:
    async with FileStore(tmp_path / "data", fsync="never") as store:
        async with (
            serving(store, listener=listener) as running,
            running.connect() as a,
            running.connect() as b,
            running.connect("/other") as c,
        ):
            await level(b)
            await a.send(edit(1, 0))
            assert await b.receive() == edit(1, 0)
            running.server.stop()
            for client in (a, b, c):
                assert await client.closed() == 1001
            await running.stopped.wait()
            with pytest.raises(OSError, match=_NOBODY):
                await connect_stream(running.address)
        assert [stored.update async for stored in store.load("r")] == [insert(1, 0)]


@pytest.mark.parametrize("recovers", [True, False], ids=["for a while", "for good"])
async def test_a_full_disk_is_waited_for_and_costs_other_rooms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recovers: bool
) -> None:
    health = b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n"
    pwrite = os.pwrite
    full: set[int] = set()

    def pwrite_unless_full(fd: int, data: bytes, offset: int) -> int:
        if os.fstat(fd).st_ino in full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite_unless_full)
    async with (
        FileStore(tmp_path) as store,
        serving(store, limits=DriverSettings(store_patience=1.5)) as running,
        running.connect() as a,
        running.connect() as b,
        running.connect("/other") as c,
        running.connect("/other") as d,
    ):
        for client in (a, b, c, d):
            await level(client)
        await a.send(edit(1, 0))
        assert await b.receive() == edit(1, 0)
        full.add((tmp_path / "r.ylog").stat().st_ino)
        await a.send(edit(1, 1))
        while not (await ask(running.address, health)).startswith(b"HTTP/1.1 503 "):
            await anyio.lowlevel.checkpoint()
        await c.send(edit(2, 0))
        assert await d.receive() == edit(2, 0)
        if recovers:
            full.clear()
            assert await b.receive() == edit(1, 1)
        else:
            assert await a.closed() == await b.closed() == 1013
            full.clear()
            async with running.connect() as again:  # with what could not be stored
                assert decode(await again.receive()) == [SyncStep1(b"\x01\x01\x01")]
                await again.send(edit(1, 1), ASK_ALL)
                await hear(again, StructStore(), {1: 2})
        assert (await ask(running.address, health)).startswith(b"HTTP/1.1 200 ")


async def test_who_comes_while_we_go_down_is_refused() -> None:
    """The store still has to finish: whoever had connected is told, others find nobody."""
    store = ScriptedStore()
    async with (
        serving(store) as running,
        running.connect() as a,
        await connect_stream(running.address) as early,
    ):
        await level(a)
        async with running.connect() as b:  # so `early`, which came before it, was accepted too
            await level(b)
        store.hold("append")
        await a.send(edit(1, 0))
        await store.called("append")
        running.server.stop()
        while running.server.listeners[0].fileno() != -1:
            await anyio.lowlevel.checkpoint()
        with pytest.raises(OSError, match=_NOBODY):
            await connect_stream(running.address)
        with pytest.raises(Refused) as refused:
            await WsClient(early).open("/r")
        assert refused.value.status == 503
        assert not running.stopped.is_set()
        store.let_go("append")
        assert await a.closed() == 1001
        await running.stopped.wait()
        assert store.rooms_kept == {"r": [insert(1, 0)]}


async def test_a_store_that_does_not_finish_does_not_hold_up_the_end_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = ScriptedStore()
    settings = ServerSettings(shutdown_timeout=0.05)
    async with serving(store, settings=settings) as running, running.connect() as a:
        await level(a)
        store.hold("append")
        await a.send(edit(1, 0))
        await store.called("append")
        running.server.stop()
        await running.stopped.wait()
        assert await a.closed() in (1001, 1006)
    assert caplog.messages == ["shutdown: the store did not finish in time"]


async def test_clients_that_do_not_close_do_not_hold_up_the_end_for_ever() -> None:
    settings = ServerSettings(handshake_timeout=60, shutdown_timeout=60, close_timeout=0.05)
    async with (
        serving(settings=settings) as running,
        await connect_stream(running.address) as _,  # accepted before the next, and silent
        running.connect() as _,
    ):
        running.server.stop()
        await running.stopped.wait()


# ---- listening


async def test_listening_where_somebody_listens_fails(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with await listen_unix(path):
        with pytest.raises(OSError, match="in use"):
            await listen_unix(path)
        assert path.is_socket()
    with await listen_unix(path):  # nobody does any more
        pass
    path.unlink()
    path.write_text("precious")
    with pytest.raises(OSError, match="something else"):
        await listen_unix(path)
    assert path.read_text() == "precious"
    [first] = await listen_tcp("127.0.0.1", 0)
    with first, pytest.raises(OSError, match="in use"):
        await listen_tcp("127.0.0.1", first.getsockname()[1])


@pytest.mark.parametrize("prefix", ["", "yjs/", "/yjs"])
def test_a_prefix_is_between_slashes(prefix: str) -> None:
    with pytest.raises(ValueError, match="slash"):
        ServerSettings(prefix=prefix)


# ---- turns


@pytest.mark.source
async def test_a_request_does_not_time_out_in_our_own_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving() as running:
        turns = running.server.driver.turns
        queue, waits = turns.queue, anyio.Event()
        held: list[Any] = []

        def hold(party: Any, call: Any) -> None:
            held.append((party, call))
            waits.set()

        monkeypatch.setattr(turns, "queue", hold)
        stream = await connect_stream(running.address)
        async with stream:
            await stream.send(REQUEST)
            await waits.wait()
            (sock,) = running.server._sockets
            sock.sweep(time.monotonic() + 100)
            monkeypatch.setattr(turns, "queue", queue)
            queue(*held.pop())
            assert (await stream.receive()).startswith(b"HTTP/1.1 101")
        late = await connect_stream(running.address)
        async with late:
            while len(running.server._sockets) < 1:
                await anyio.lowlevel.checkpoint()
            for sock in tuple(running.server._sockets):
                sock.sweep(time.monotonic() + 100)  # it has sent nothing
            assert (await late.receive()).startswith(b"HTTP/1.1 408")


@pytest.mark.source
async def test_when_all_leave_at_once_that_takes_several_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving() as running:
        clients = [socket.create_connection(running.address) for _ in range(20)]
        for client in clients:
            client.sendall(REQUEST)
        rooms = running.server.driver.hub.rooms
        while "r" not in rooms or len(rooms["r"].members) < len(clients):
            await anyio.lowlevel.checkpoint()
        # Each reading of the clock is two slices later, and so each call takes that long.
        turns, times = running.server.driver.turns, count()
        turn, left = turns._turn, []

        def one_turn() -> None:
            before = len(running.server._sockets)
            turn()
            left.append(before - len(running.server._sockets))

        monkeypatch.setattr(turns, "clock", lambda: 2 * SLICE * next(times))
        monkeypatch.setattr(turns, "_turn", one_turn)
        monkeypatch.setattr(driver_module, "_LATE", -1.0)
        for client in clients:
            client.close()
        await nobody_but(running, 0)
        # The first that a turn of the loop comes upon goes at once.
        assert set(left) <= {0, 1}
        assert sum(left) > 0


@pytest.mark.source
async def test_in_a_turn_that_is_late_what_is_short_waits_for_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving() as running, running.connect() as a, running.connect() as b:
        await level(a)
        await level(b)
        driver = running.server.driver
        queue, parties = driver.turns.queue, []

        def noted(party: Any, call: Any) -> None:
            parties.append(party)
            queue(party, call)

        monkeypatch.setattr(driver.turns, "queue", noted)
        await a.send(edit(1, 0))
        store = StructStore()
        await hear(b, store, {1: 1})
        assert not parties
        monkeypatch.setattr(driver, "is_late", lambda now: True)
        await a.send(edit(1, 1))
        await hear(b, store, {1: 2})
        assert [room for _, room in parties] == ["r"]


async def test_who_stops_it_in_a_hurry_waits_neither_for_clients_nor_for_a_store(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With patience it would take longer than `serving` lets a test take."""
    settings = ServerSettings(shutdown_timeout=60, close_timeout=60)
    async with serving(settings=settings) as running, running.connect() as a:
        await level(a)
        running.server.stop()
        while not running.server.is_stopping:
            await anyio.lowlevel.checkpoint()
        running.server.stop(hurry=True)
        await running.stopped.wait()
        assert await a.closed() in (1001, 1006)
    assert caplog.messages == []
    store = ScriptedStore()
    async with serving(store, settings=settings) as running, running.connect() as a:
        await level(a)
        store.hold("append")
        await a.send(edit(1, 0))
        await store.called("append")
        running.server.stop(hurry=True)
        await running.stopped.wait()
    assert caplog.messages == ["shutdown: the store did not finish in time"]
