"""Callbacks in the place of tasks, whatever the event loop has for them."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import pytest
from ycore_adapters._eventloop import EventLoop, Rest, event_loop

pytestmark = pytest.mark.anyio

BACKENDS: list[tuple[str, dict[str, Any]]] = [("asyncio", {"use_uvloop": False}), ("trio", {})]
if importlib.util.find_spec("uvloop") is not None:
    BACKENDS.append(("asyncio", {"use_uvloop": True}))


@pytest.fixture(params=BACKENDS, ids=["asyncio", "trio", "uvloop"][: len(BACKENDS)])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    backend: tuple[str, dict[str, Any]] = request.param
    return backend


@asynccontextmanager
async def running() -> AsyncIterator[EventLoop]:
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            yield event_loop(tasks)
            tasks.cancel_scope.cancel()


@pytest.fixture(params=["own", "none"])
def loop_has_readers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as it is, and once as Windows' loop is, which has no readers."""
    if request.param == "none":

        def add_reader(*_: object) -> None:
            raise NotImplementedError

        monkeypatch.setattr(asyncio.SelectorEventLoop, "add_reader", add_reader)


async def test_what_is_to_be_called_soon_is_called_in_order_and_not_at_once() -> None:
    called: list[int] = []
    async with running() as loop:
        done = anyio.Event()
        loop.soon(lambda: called.append(1))
        loop.soon(lambda: called.append(2))
        loop.soon(lambda: loop.soon(done.set))
        assert called == []
        await done.wait()
        assert called == [1, 2]


@pytest.mark.usefixtures("loop_has_readers")
async def test_a_socket_is_not_watched_while_the_rest_is_done_nor_once_stopped() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    got: list[bytes] = []
    goes_on, rested = anyio.Event(), anyio.Event()

    async def rest() -> None:
        await goes_on.wait()
        got.append(b"rest")
        rested.set()

    def readable() -> Rest | None:
        data = ours.recv(100)
        got.append(data)
        heard.set()
        return rest if data == b"wait" else None

    async with running() as loop:
        heard = anyio.Event()
        watch = loop.watch(ours, readable)
        theirs.send(b"one")
        await heard.wait()
        heard = anyio.Event()
        theirs.send(b"wait")
        await heard.wait()
        heard = anyio.Event()
        theirs.send(b"two")
        watch.look()
        watch.renew()  # does nothing yet, as does a look
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        assert got == [b"one", b"wait"]
        goes_on.set()
        await heard.wait()
        assert got == [b"one", b"wait", b"rest", b"two"]
        watch.stop()
        theirs.send(b"three")
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        watch.stop()  # does nothing
    ours.close()
    theirs.close()
    assert got[-1] == b"two"


@pytest.mark.parametrize("found_by", ["a look", "a write"])
async def test_the_end_of_a_connection_is_told_though_it_came_together_with_data(
    found_by: str,
) -> None:
    """A reset: libuv watches no socket any further that it has seen an error of."""
    got: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    ours.setblocking(False)
    async with running() as loop:
        heard, over = anyio.Event(), anyio.Event()

        def readable() -> Rest | None:
            try:
                got.append(ours.recv(100))
            except ConnectionResetError:
                got.append(b"")
            heard.set()
            if got[-1] == b"":
                watch.stop()
                over.set()
            return None

        watch = loop.watch(ours, readable)
        await anyio.lowlevel.checkpoint()
        theirs.send(b"half a message")
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        await heard.wait()
        if found_by == "a look":
            watch.look()
        else:
            with pytest.raises(OSError):  # noqa: PT011 - reset, or a broken pipe if that was read
                ours.send(b"x")
            watch.renew()
        await over.wait()
        watch.look()  # does nothing, as does:
        watch.renew()
    ours.close()
    assert got in ([b"half a message", b""], [b""])


def test_calls_may_start_tasks_though_nobody_noted_which_library_runs() -> None:
    """As under asyncio.run, and in an ASGI server."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                loop = event_loop(tasks)
                soon, read = anyio.Event(), anyio.Event()

                async def sets(event: anyio.Event) -> None:
                    event.set()

                def readable() -> None:
                    ours.recv(1)
                    tasks.start_soon(sets, read)

                loop.soon(lambda: tasks.start_soon(sets, soon))
                watch = loop.watch(ours, readable)
                theirs.send(b"x")
                await soon.wait()
                await read.wait()
                watch.stop()
        ours.close()
        theirs.close()

    asyncio.run(main())
