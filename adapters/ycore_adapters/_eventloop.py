"""What the server and the driver need of the event loop, at the least it costs.

Waking a task takes some 15 microseconds, and waiting for a socket in one as much again: more than
all else that a keystroke costs. So what happens for each, reading a socket and ending a turn of the
loop, is done in callbacks. On asyncio the loop itself calls them; elsewhere a task does.
"""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from importlib.util import find_spec
from typing import TypeAlias

import anyio
import anyio.abc

Rest: TypeAlias = Callable[[], Awaitable[None]]
"""What has to be waited for."""
Readable: TypeAlias = Callable[[], "Rest | Turn | None"]
"""Called when a socket can be read. The socket is watched again when the rest is done. It must not
raise, nor may the rest."""


class Turn:
    """What is done when a socket that can be read has its turn: until then it is not watched, and
    no task waits, as all may be readable at once.

    Args:
        queue: given a call, has it done in that turn.
        take: as `Readable`, in that turn.
    """

    __slots__ = ("queue", "take")

    def __init__(self, queue: Callable[[Callable[[], None]], None], take: Readable) -> None:
        self.queue = queue
        self.take = take


def _nothing() -> None:
    """In the place of what a stopped watch called: the two would keep each other in memory."""


class Watch:
    """A socket that is watched, until `stop`, which comes before it is closed."""

    def __init__(self, sock: socket.socket, readable: Readable) -> None:
        self.sock = sock
        self.readable = readable
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True
        self.readable = _nothing
        anyio.notify_closing(self.sock)

    # libuv watches no socket any further that it has seen an error of, also if there was still
    # something to read, and it does not say so. To ask after each read would cost a system call.

    def look(self) -> None:
        """See whether an error has ended the watch: to be called every so often."""

    def renew(self) -> None:
        """Somebody else has come upon an error: have `readable` called, if it was not yet."""


class EventLoop(ABC):
    """The event loop of the task that asks for it."""

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self._tasks = tasks

    @abstractmethod
    def soon(self, call: Callable[[], None]) -> None:
        """Have this called once all that is ready now was seen to. It must not raise."""

    def watch(self, sock: socket.socket, readable: Readable) -> Watch:
        watch = Watch(sock, readable)
        self._tasks.start_soon(_watch, watch)
        return watch


async def _watch(watch: Watch) -> None:
    while not watch.stopped:
        try:
            await anyio.wait_readable(watch.sock)
        except anyio.ClosedResourceError:
            return
        rest = watch.readable()
        while isinstance(rest, Turn):
            rest = await _had(rest, watch)
        if rest is not None:
            await rest()
            rest = None  # or it would keep what came until more comes


async def _had(turn: Turn, watch: Watch) -> Rest | Turn | None:
    """Wait for a turn, and what is left to be done after it."""
    is_over = anyio.Event()
    rest: Rest | Turn | None = None

    def take() -> None:
        nonlocal rest
        if not watch.stopped:
            rest = turn.take()
        is_over.set()

    turn.queue(take)
    await is_over.wait()
    return rest


class _Trio(EventLoop):
    """Any event loop that only has tasks."""

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        super().__init__(tasks)
        self._calls: list[Callable[[], None]] = []
        self._something = anyio.Event()
        tasks.start_soon(self._run)

    def soon(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        self._something.set()

    async def _run(self) -> None:
        while True:
            await self._something.wait()
            self._something = anyio.Event()
            calls, self._calls = self._calls, []
            for call in calls:
                call()


class _Asyncio(EventLoop):
    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        super().__init__(tasks)
        self._loop = asyncio.get_running_loop()
        # Outside of tasks anyio can't tell which library runs, unless anyio.run has noted it; under
        # asyncio.run, or in an ASGI server, nobody has.
        self._context = copy_context()
        if find_spec("sniffio") is not None:  # otherwise anyio takes it for asyncio
            from sniffio import current_async_library_cvar  # noqa: PLC0415

            self._context.run(current_async_library_cvar.set, "asyncio")

    def soon(self, call: Callable[[], None]) -> None:
        self._loop.call_soon(call, context=self._context)

    def watch(self, sock: socket.socket, readable: Readable) -> Watch:
        make = partial(_AsyncioWatch, self._loop, self._tasks, sock, readable)
        try:
            return self._context.copy().run(make)
        except NotImplementedError:  # Windows' default loop: anyio has a way around
            return super().watch(sock, readable)


class _AsyncioWatch(Watch):
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        tasks: anyio.abc.TaskGroup,
        sock: socket.socket,
        readable: Readable,
    ) -> None:
        super().__init__(sock, readable)
        self._loop = loop
        self._tasks = tasks
        self._was_ready = False
        """Whether it was since the last look."""
        self._rests = False
        """Whether the rest is being done."""
        loop.add_reader(sock.fileno(), self._ready)

    def _ready(self) -> None:
        self._was_ready = True
        rest = self.readable()
        if rest is not None and not self.stopped:
            self._rests = True
            self._loop.remove_reader(self.sock.fileno())
            self._do(rest)

    def _do(self, rest: Rest | Turn) -> None:
        if isinstance(rest, Turn):
            rest.queue(partial(self._have_turn, rest.take))
        else:
            self._tasks.start_soon(self._wait, rest)

    def _have_turn(self, take: Readable) -> None:
        rest = None if self.stopped else take()
        if rest is not None and not self.stopped:
            self._do(rest)
        else:
            self._rested()

    async def _wait(self, rest: Rest) -> None:
        await rest()
        self._rested()

    def _rested(self) -> None:
        self._rests = False
        if not self.stopped:
            self._loop.add_reader(self.sock.fileno(), self._ready)

    def look(self) -> None:
        if self._was_ready and not self._rests and not self.stopped:
            self._was_ready = False
            if self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.renew()

    def renew(self) -> None:
        if not self._rests and not self.stopped:
            self._loop.remove_reader(self.sock.fileno())
            self._loop.add_reader(self.sock.fileno(), self._ready)

    def stop(self) -> None:
        if not self.stopped:
            self._loop.remove_reader(self.sock.fileno())
        self.stopped = True
        self.readable = _nothing


def event_loop(tasks: anyio.abc.TaskGroup) -> EventLoop:
    """The one that this task runs in, for calls as long as these tasks may run."""
    try:
        is_asyncio = asyncio.current_task() is not None
    except RuntimeError:
        is_asyncio = False
    return _Asyncio(tasks) if is_asyncio else _Trio(tasks)
