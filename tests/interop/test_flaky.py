"""Clients on a network that fails all the time, whose server is killed now and then, end up equal.

Four real clients with the habits of people's providers (see `flaky.mjs`) edit one room through a
proxy that delays, stalls and cuts (see `flaky_proxy`). Then nobody edits any more and the network
is good: soon all clients must have the same, so must one who comes only then, and so must the store
when the server has stopped. Nothing may be held back.

What is needed to look into a run that ended unequal is kept in a directory that the failure names:
each client's state and all it got, wrote and sent, what the server said, and the store.

YCORE_FLAKY_SECONDS=60 YCORE_FLAKY_RUNS=60 YCORE_FLAKY_JOBS=4 is a longer campaign, with four runs
at a time: each takes a third of a core. YCORE_SEED=7 YCORE_FLAKY_RUNS=1 does one of them again: the
seed chooses server, store, edits and faults. When they meet, it can't choose.
"""

from __future__ import annotations

import itertools
import os
import socket
import sys
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from threading import Thread
from typing import Final, Literal, TypeAlias, get_args

import anyio
import flaky_proxy
import pytest
from clients import Clients, Server
from compiled import compiled, environment, missing
from flaky_proxy import Proxy
from flaky_server import store_at
from ycore_adapters.stores import Fsync

HERE: Final = Path(__file__).parent

SECONDS = float(os.environ.get("YCORE_FLAKY_SECONDS", "5"))
RUNS = int(os.environ.get("YCORE_FLAKY_RUNS", "2"))
JOBS = int(os.environ.get("YCORE_FLAKY_JOBS", "2"))
FIRST_SEED = int(os.environ.get("YCORE_SEED", "1"))

LIFE: Final = 8.0
"""How many seconds a server lives, on average, in a long run. In a short one it is killed once."""
DEAD: Final = 1.0
"""How many seconds at most there is no server."""
PATIENCE: Final = 30.0
"""How many seconds it may take at most, when all is well, until all have the same."""
ROOM: Final = "room"
CONNECTIONS: Final = 20
CHUNK: Final = 4096

Kind: TypeAlias = Literal["files", "SQLite"]
Build: TypeAlias = Literal["source", "compiled"]
Program: TypeAlias = Literal["ycore serve", "uvicorn"]


@dataclass(frozen=True)
class Run:
    seed: int
    build: Build
    program: Program
    kind: Kind

    def __str__(self) -> str:
        return f"seed {self.seed}, {self.kind}, {self.build}, {self.program}"


PAIRS: Final[tuple[tuple[Program, Kind], ...]] = (
    ("ycore serve", "files"),
    ("uvicorn", "SQLite"),
    ("uvicorn", "files"),
    ("ycore serve", "SQLite"),
)


def run_of(seed: int) -> Run:
    """The seed chooses the combination too, so that it names a run."""
    builds: tuple[Build, ...] = ("source",) if missing() else get_args(Build)
    combinations = [*itertools.product(builds, PAIRS)]
    build, pair = combinations[(seed - 1) % len(combinations)]
    return Run(seed, build, *pair)


class Crowd(Clients):
    """The clients of one run."""

    PROGRAM = "flaky.mjs"


def server_of(run: Run, data: Path) -> Server:
    python: list[str | Path] = [sys.executable]
    if run.build == "compiled":
        variables = environment(compiled())
        variables["PYTHONPATH"] += os.pathsep + str(HERE)
        python = ["env", *(f"{name}={value}" for name, value in variables.items()), *python]
    if run.program == "uvicorn":
        return Server(data, command=[*python, HERE / "flaky_server.py"])
    fsync = Random(run.seed).choice(get_args(Fsync))
    serve = [*python, "-m", "ycore_adapters.cli", "serve", "--host", "127.0.0.1"]
    return Server(data, "--fsync", fsync, command=serve)


async def stored(data: Path) -> list[bytes]:
    async with store_at(data) as store:
        return [update.update async for update in store.load(ROOM)]


def kills(random: Random) -> list[tuple[float, float]]:
    """How long each server lives, and then none."""
    lives: list[tuple[float, float]] = []
    left = SECONDS
    while left > 0:
        life = random.expovariate(1 / LIFE) if lives or SECONDS > LIFE else SECONDS / 2
        dead = random.uniform(0, DEAD)
        lives.append((min(life, left), dead))
        left -= life + dead
    return lives[:-1]


class Trial:
    """One run: a server, a network, four clients."""

    def __init__(self, run: Run, node: str, directory: Path, stack: ExitStack) -> None:
        random = Random(run.seed)
        self._run = run
        self._directory = directory
        self._data = directory / ("rooms.db" if run.kind == "SQLite" else "data")
        self._lives = kills(random)
        self._server = server_of(run, self._data)
        stack.callback(self._server.kill)
        self._proxy = stack.enter_context(Proxy(random.getrandbits(32)))
        self._crowd = stack.enter_context(Crowd(node))
        self._seed = random.getrandbits(31)
        self._edited = ""
        self._settled = 0.0
        self.complaints: list[str] = []

    def perform(self) -> None:
        """Let everything happen, and then see what has come of it."""
        try:
            self._edit()
            self._compare()
        except AssertionError as exc:  # somebody does not start, or does not answer
            self.complaints.append(f"{type(exc).__name__}: {exc}")
        if self.complaints:
            self._crowd.do("save", directory=str(self._directory))
            (self._directory / "server.log").write_text("".join(self._server.output))
            (self._directory / "complaints.txt").write_text("\n".join(self.complaints))

    def _edit(self) -> None:
        end = time.monotonic() + SECONDS
        self._proxy.target = self._server.port
        self._crowd.do("start", url=self._proxy.url, seed=self._seed)
        for life, dead in self._lives:
            time.sleep(life)
            self._proxy.target = None
            self._server.kill()
            time.sleep(dead)
            self._server.start()
            self._proxy.target = self._server.port
        time.sleep(max(end - time.monotonic(), 0))
        did = self._crowd.do("stop")
        self._edited = ", ".join(f"{count} {what}" for what, count in did.items())

    def _compare(self) -> None:
        self._proxy.calm()
        calm = time.monotonic()
        self._settle("the clients")
        self._crowd.do("join", url=self._proxy.url)
        self._settle("the clients and a newcomer")
        if self.complaints:
            self._crowd.do("reconnect")
            self._settle("all, each with a new connection,")
        self._settled = time.monotonic() - calm
        self._server.terminate()
        updates = [b64encode(update).decode() for update in anyio.run(stored, self._data)]
        self.complaints += self._crowd.do("judge", updates=updates)
        report = self._crowd.do("report")
        self.complaints += report["problems"]
        if report["retries"]:
            self._edited += f", {report['retries']} told to try again"
        self._server.check()

    def _settle(self, who: str) -> None:
        if found := self._crowd.do("settle", patience=PATIENCE, seconds=PATIENCE):
            self.complaints.append(f"{who} did not become equal:\n" + "\n".join(found))

    def __str__(self) -> str:
        return (
            f"{self._run}: {self._edited}, {self._proxy.cuts} cuts, {self._proxy.stalls} stalls, "
            f"{len(self._lives)} kills, {self._settled:.1f} s to settle: "
            + ("UNEQUAL" if self.complaints else "equal")
        )


def test_all_are_equal_in_the_end(
    node: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def one(run: Run) -> str:
        directory = tmp_path / str(run.seed)
        directory.mkdir()
        with ExitStack() as stack:
            trial = Trial(run, node, directory, stack)
            trial.perform()
        with capsys.disabled():
            print(f"\n{trial}", end="", flush=True)
        if not trial.complaints:
            return ""
        return "\n".join([f"{trial}; see {directory}", *trial.complaints])

    planned = [run_of(seed) for seed in range(FIRST_SEED, FIRST_SEED + RUNS)]
    if any(run.build == "compiled" for run in planned):
        compiled()  # once, before they all want it
    with ThreadPoolExecutor(JOBS) as pool:
        failures = [failure for failure in pool.map(one, planned) if failure]
    assert not failures, "\n\n".join(failures)


def test_what_is_not_stored_is_noticed(node: str, tmp_path: Path) -> None:
    """The comparison of all runs does compare: an update that is left out shows."""
    data = tmp_path / "data"
    with closing(Server(data)) as server, Crowd(node) as crowd:
        crowd.do("start", url=server.url, seed=FIRST_SEED)
        crowd.do("stop")
        crowd.do("edit", count=5)
        assert crowd.do("settle", patience=PATIENCE, seconds=PATIENCE) == []
        server.terminate()
        updates = [b64encode(update).decode() for update in anyio.run(stored, data)]
        assert crowd.do("judge", updates=updates) == []
        assert crowd.do("judge", updates=updates[1:])


def test_the_proxy_keeps_bytes_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """What arrives is what was sent, up to the cut; and all of it once the network is good."""
    for name, seconds in (("LIFETIME", 0.02), ("SPELL", 0.01), ("HALF_OPEN", 0.02)):
        monkeypatch.setattr(flaky_proxy, name, seconds)
    line = bytes(range(251)) * 40
    arrived: list[bytes] = []

    def receive(listener: socket.socket, count: int) -> None:
        for _ in range(count):
            connection, _ = listener.accept()
            with connection:
                data = bytearray()
                with suppress(ConnectionError):
                    while piece := connection.recv(CHUNK):
                        data += piece
                arrived.append(bytes(data))

    with socket.create_server(("127.0.0.1", 0)) as listener, Proxy(FIRST_SEED) as proxy:
        proxy.target = listener.getsockname()[1]
        host, port = proxy.url.removeprefix("ws://").split(":")
        receiver = Thread(target=receive, args=(listener, CONNECTIONS + 1))
        receiver.start()
        for _ in range(CONNECTIONS):
            with socket.create_connection((host, int(port))) as sock, suppress(ConnectionError):
                while True:
                    sock.sendall(line)
        assert proxy.cuts == CONNECTIONS
        proxy.calm()
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(line * 100)
        receiver.join()
    for data in arrived:
        assert data == (line * (len(data) // len(line) + 1))[: len(data)]
    assert sum(bool(data) for data in arrived) > CONNECTIONS / 2
    assert arrived[-1] == line * 100
