"""A server, on either event loop, and real clients."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients import Clients, Server
from nodejs import require_node

BACKENDS = ["asyncio", "trio"]

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def node() -> str:
    return require_node()


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


@pytest.fixture(scope="module")
def shared_server(
    node: str, backend: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    data = tmp_path_factory.mktemp(backend)
    with contextlib.closing(Server(data, "--backend", backend)) as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Iterator[Server]:
    """A server that other tests use too: take a room of your own, and leave it running."""
    yield shared_server
    shared_server.check()


@pytest.fixture
def own_server(node: str, backend: str, tmp_path: Path) -> Iterator[Server]:
    """A server to kill."""
    with contextlib.closing(Server(tmp_path / "data", "--backend", backend)) as server:
        yield server


@pytest.fixture
def room() -> str:
    """The name of a room that no other test uses."""
    return f"room{next(_numbers)}"


@pytest.fixture
def clients(node: str) -> Iterator[Clients]:
    with Clients(node) as clients:
        yield clients
