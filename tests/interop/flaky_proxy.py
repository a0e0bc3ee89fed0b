"""A TCP proxy that behaves like a bad network, until it is told to be good.

Bytes of a connection stay in order, as TCP keeps them. Apart from that anything may happen: they
come late, or in crumbs; the connection stands still in one direction or in both; and it ends, at
once, in the middle of a frame, or half open, so that one side goes on talking to nobody, or hears
late what the other had said before it left and came back. What happens is drawn from a seed,
connection by connection; which bytes it hits depends on when they come.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager
from random import Random
from typing import Final, Literal, Self, TypeAlias

from anyio.from_thread import start_blocking_portal

Direction: TypeAlias = Literal["up", "down"]
"""Up is to the server."""

LIFETIME: Final = 1.5
"""How many seconds a connection lasts, on average."""
SPELL: Final = 0.4
"""How many seconds its weather stays the same, on average."""
HALF_OPEN: Final = 1.5
"""How many seconds at most one side does not notice that the other is gone."""
CRUMBS: Final = (1, 2, 7, 50, 1400)
"""How many bytes are passed on at once in slow weather."""
CHUNK: Final = 64 * 1024
RECEIVE_BUFFER: Final = 16 * 1024
"""What the system takes from the server while a client stands still: little, so that it is soon
the server that has to keep it."""

WEATHER: Final[dict[str, tuple[int, frozenset[Direction]]]] = {
    "fair": (6, frozenset()),
    "slow": (2, frozenset()),
    "stalled up": (1, frozenset({"up"})),
    "stalled down": (1, frozenset({"down"})),
    "stalled": (1, frozenset({"up", "down"})),
}
"""How often, and in which directions nothing is passed on."""


ENDS: Final = ("cut", "cut within up", "cut within down", "client gone", "server gone")
"""At once; as soon as something more comes from one side, of which a part arrives; or half open."""


class _Link:
    """One client's connection and ours to the server on its behalf."""

    def __init__(
        self, random: Random, client: asyncio.StreamWriter, server: asyncio.StreamWriter
    ) -> None:
        self.random = random
        self.client = client
        self.server = server
        self.slow = False
        self.cut_within: Direction | None = None
        """Where the next bytes are passed on in part, and nothing after them."""
        self._open: dict[Direction, asyncio.Event] = {
            "up": asyncio.Event(),
            "down": asyncio.Event(),
        }

    def enter(self, weather: str) -> None:
        self.slow = weather == "slow"
        for direction, gate in self._open.items():
            if direction in WEATHER[weather][1]:
                gate.clear()
            else:
                gate.set()

    async def carry(
        self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Pass on all that comes, and the end of it."""
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(CHUNK):
                while data:
                    size = self.random.choice(CRUMBS) if self.slow else CHUNK
                    piece, data = data[:size], data[size:]
                    if self.slow:
                        await asyncio.sleep(self.random.uniform(0, 0.02))
                    await self._open[direction].wait()
                    if self.cut_within == direction:
                        writer.write(piece[: self.random.randint(0, len(piece) - 1)])
                        self.cut()
                        return
                    writer.write(piece)
                    await writer.drain()
        writer.close()

    def cut(self) -> None:
        """End both sides: in order, or by a reset, which throws away what is on its way."""
        for writer in (self.client, self.server):
            if self.random.random() < 0.5:
                writer.close()
            else:
                reset(writer)

    async def end(self, how: str) -> None:
        """Come to an end in one of `ENDS`, short of what `cut` does then."""
        late = self.random.uniform(0, HALF_OPEN)
        if how in ("cut within up", "cut within down"):
            self.cut_within = "up" if how == "cut within up" else "down"
            await asyncio.sleep(late)  # if nothing comes, there is nothing to cut
        elif how == "client gone":
            self.enter("stalled")
            await asyncio.sleep(late / 4)  # it says something more
            reset(self.client)
            await asyncio.sleep(late)
            self.enter("fair")  # which the server hears now
            await asyncio.sleep(0.1)
        elif how == "server gone":
            reset(self.server)
            self.enter("stalled")
            await asyncio.sleep(late)


def reset(writer: asyncio.StreamWriter) -> None:
    """End one side at once, with a reset rather than in order."""
    sock = writer.get_extra_info("socket")
    if sock.fileno() != -1:  # it is not closed yet, which asyncio can't bear in every case
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


class Proxy:
    """Listens in a thread of its own while it is entered.

    >>> with Proxy(seed=1) as proxy:
    ...     proxy.target = 1234

    Args:
        seed: of all that happens.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._numbers = itertools.count(1)
        self._links: set[asyncio.Task[None]] = set()
        self._weathers: set[asyncio.Task[None]] = set()
        self._calm = False
        self._stack = ExitStack()
        self.url = ""
        self.target: int | None = None
        """The server's port; None while there is no server."""
        self.counts: Counter[str] = Counter()
        """What happened: connections, spells of weather, cuts of each kind."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal("asyncio"))
            stack.enter_context(self._portal.wrap_async_context_manager(self._listening()))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def calm(self) -> None:
        """Be a good network from now on. What was about to end ends at once."""
        self._portal.call(self._calm_down)

    @property
    def cuts(self) -> int:
        return sum(self.counts[end] for end in ENDS)

    @property
    def stalls(self) -> int:
        return sum(count for what, count in self.counts.items() if what.startswith("stalled"))

    @asynccontextmanager
    async def _listening(self) -> AsyncGenerator[None, None]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        self.url = f"ws://{host}:{port}"
        try:
            yield
        finally:
            server.close()
            for task in self._links:
                task.cancel()
            if self._links:
                await asyncio.wait(self._links)

    def _calm_down(self) -> None:
        self._calm = True
        for weather in self._weathers:
            weather.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._link(reader, writer))
        self._links.add(task)
        task.add_done_callback(self._links.discard)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with socket.socket() as sock:
                if self.target is None:
                    return
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
                sock.setblocking(False)
                try:
                    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.target))
                except ConnectionError:
                    return
                up_reader, up_writer = await asyncio.open_connection(sock=sock)
                try:
                    number = next(self._numbers)
                    self.counts["connections"] += 1
                    link = _Link(Random(f"{self._seed} {number}"), writer, up_writer)
                    await self._carry(link, reader, up_reader)
                finally:
                    reset(up_writer)
        finally:
            reset(writer)

    async def _carry(
        self, link: _Link, client: asyncio.StreamReader, server: asyncio.StreamReader
    ) -> None:
        weather = asyncio.create_task(self._weather(link))
        self._weathers.add(weather)
        pumps = [
            asyncio.create_task(link.carry("up", client, link.server)),
            asyncio.create_task(link.carry("down", server, link.client)),
        ]
        try:
            await asyncio.wait(pumps)
        finally:
            self._weathers.discard(weather)
            for task in (weather, *pumps):
                task.cancel()
            await asyncio.wait((weather, *pumps))

    async def _weather(self, link: _Link) -> None:
        """What happens to a connection, till its end, or till all is calm."""
        how = None
        try:
            if not self._calm:
                left = link.random.expovariate(1 / LIFETIME)
                while left > 0:
                    weather = link.random.choices(
                        list(WEATHER), [weight for weight, _ in WEATHER.values()]
                    )[0]
                    self.counts[weather] += 1
                    link.enter(weather)
                    spell = min(left, link.random.expovariate(1 / SPELL))
                    await asyncio.sleep(spell)
                    left -= spell
                link.enter("fair")
                how = link.random.choice(ENDS)
                self.counts[how] += 1
                await link.end(how)
        finally:
            link.enter("fair")
            if how is not None:
                link.cut()
