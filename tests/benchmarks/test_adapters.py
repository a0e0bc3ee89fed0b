"""What the steps around the core cost: `make bench`. Nothing here is asserted about time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal
from made import keystrokes, masked, open_peer
from pytest_benchmark.fixture import BenchmarkFixture
from test_core import UPDATES
from ycore_adapters._peer import Peer, frame_message
from ycore_adapters.stores import FileStore, MemoryStore, SQLiteStore, Store, StoredUpdate

from ycore.messages import Update


def test_handshake(benchmark: BenchmarkFixture) -> None:
    benchmark(open_peer)


@pytest.mark.parametrize("together", [1, 50])
def test_read_a_thousand_frames(benchmark: BenchmarkFixture, together: int) -> None:
    """Keystrokes, so many in one read from the socket."""
    frames = masked([Update(data).encode() for data in keystrokes(1000)])
    reads = [b"".join(frames[i : i + together]) for i in range(0, 1000, together)]

    def read(peer: Peer) -> None:
        for data in reads:
            peer.receive(data)

    benchmark.pedantic(read, setup=lambda: ((open_peer(),), {}), rounds=10)


def test_frame_a_message(benchmark: BenchmarkFixture) -> None:
    benchmark(frame_message, Update(UPDATES["keystroke"]).encode())


@pytest.mark.parametrize("batch", [1, 50])
@pytest.mark.parametrize("kind", ["file", "sqlite", "memory"])
def test_append(benchmark: BenchmarkFixture, tmp_path: Path, kind: str, batch: int) -> None:
    """A thousand keystrokes to a store, so many in one call; fsync everysec."""
    updates = [StoredUpdate(data, time.time()) for data in keystrokes(1000)]

    def store_at(path: Path) -> Store:
        if kind == "file":
            return FileStore(path)
        return SQLiteStore(path) if kind == "sqlite" else MemoryStore()

    async def append(store: Store, room: str) -> None:
        for i in range(0, 1000, batch):
            await store.append(room, updates[i : i + batch])

    rooms = iter(range(1000))
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(store_at(tmp_path / "data")) as store,
    ):
        benchmark.pedantic(
            lambda room: portal.call(append, store, room),
            setup=lambda: ((f"room-{next(rooms)}",), {}),
            rounds=5,
        )
