"""A server that is killed again and again, under load, and loses nothing that anybody has seen.

Real clients write into some rooms, and note what the server sends them. At a random moment, or at
one that is chosen to hurt, the server gets SIGKILL. While all clients are away, the data directory
is judged: every update that a client was sent, before this kill or any earlier one, must be stored,
and Yjs must make of it what the clients have. Then the next server goes on with the same directory.
What is judged is a copy, for reading mends: torn tails are left for the server to cut.

A longer run: YCORE_KILLS=300 .venv/bin/pytest -s tests/interop/test_kills.py
YCORE_SEED=1234 chooses other moments; what just happens at a moment, no seed can choose.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sys
import time
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from random import Random
from typing import Any, Final, get_args

import anyio
import pytest
from clients import DEADLINE, Clients, Process
from kills_server import Kind, open_store
from ycore_adapters.stores import Fsync, RoomNotFound, Store

from ycore import StructStore
from ycore.updates import ParsedUpdate, parse_update

KILLS = int(os.environ.get("YCORE_KILLS", "12"))
SEED = int(os.environ.get("YCORE_SEED", "1"))
MAX_COMPLAINTS: Final = 10

FSYNC: Final[tuple[Fsync, ...]] = get_args(Fsync)
BACKENDS: Final = ("asyncio", "trio")
PER_WRITE: Final = (0.0, 0.001)
"""How many seconds a write takes (see `kills_server.slow_writes`)."""

MOMENTS: Final = {
    "editing": 0.003,
    "seeing": 0.3,
    "writing": 0.0,
    "connecting": 0.8,
    "pasting": 0.15,
    "opening": 0.1,
    "compacting": 0.01,
    "starting": 0.02,
}
"""When to kill, and how many seconds later at most. `kills.mjs` tells what they mean, but for those
of `LOOKED_FOR`, and for "starting": when all is imported, and nothing done."""

LOOKED_FOR: Final = {"writing", "compacting"}
"""Moments that files tell of (see `watch`), during and after a large paste."""

ROOMS: Final = 3
ROOM_BYTES: Final = 4 * 2**20
"""How large a room gets before another takes its place."""
ANEW: Final = 1 / 3
"""How often all clients are new ones, who can't bring back what a server did not load."""
PASTE_BYTES: Final = (300_000, 3_000_000)
WRITE_BYTES: Final = 16 * 1024
"""By how much files grow between two looks only if something large is being written."""
PATIENCE: Final = 1.0
"""How many seconds to look for a moment. If it does not come, any other will do."""
PROGRESS: Final = 20.0
"""Seconds between two lines about a long run."""

LASTING: Final = (".ylog", ".torn", ".past", ".lock", ".db", ".db-wal", ".db-shm")
"""How the names of files end that a store has; all others are there while a log is compacted."""
TORN: Final = "torn tail cut"
"""What the store logs when a kill fell into a write."""
ORDINARY: Final = re.compile(rf"starting$|serving$|WARNING {TORN} ")
"""What a server may print."""


async def updates_of(store: Store, room: str) -> list[bytes]:
    """All that is stored of a room."""
    try:
        async with aclosing(store.load(room)) as updates:
            return [update.update async for update in updates]
    except RoomNotFound:
        return []


def quiet_port() -> int:
    """A free one that the system gives to nobody else while the server is dead: below those from
    which connections are made."""
    for port in range(20_000 + os.getpid() % 10_000, 32_768):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


class Victim:
    """The server: each time another process, with the same directory and port."""

    def __init__(self, data: Path, kind: Kind) -> None:
        self.data = data
        self._kind = kind
        self._port = quiet_port()
        self._process: Process | None = None
        self.output: list[str] = []
        """What the latest one printed. Complete once it is dead."""

    def start(self, fsync: Fsync, backend: str, per_write: float) -> int:
        """Returns its process id, when all is imported and nothing done."""
        program = Path(__file__).with_name("kills_server.py")
        options = (str(self.data), str(self._port), self._kind, fsync, backend, str(per_write))
        self._process = Process(sys.executable, program, *options)
        self.output = []
        self._expect("starting")
        return self._process.popen.pid

    def started(self) -> str:
        """Returns its URL, once it serves."""
        self._expect("serving")
        return f"ws://127.0.0.1:{self._port}"

    def _expect(self, what: str) -> None:
        assert self._process is not None
        deadline = time.monotonic() + DEADLINE
        while line := self._process.readline(deadline - time.monotonic()):
            self.output.append(line)
            if line.startswith(what):
                return
        self.kill()
        raise AssertionError("the server did not start:\n" + "".join(self.output))

    def kill(self) -> None:
        """Kill it if nobody has yet, and wait until it is gone."""
        if self._process is not None:
            process, self._process = self._process, None
            code, output = process.end(signal.SIGKILL)
            self.output += output
            if code != -signal.SIGKILL:
                self.output.append(f"exit code {code}")


def watch(moment: str, data: Path) -> None:
    """Wait until files tell that the moment is here. Looks without a pause, for it is short."""
    deadline = time.monotonic() + PATIENCE
    before = None
    while time.monotonic() < deadline:
        size = 0
        others = set()
        with os.scandir(data) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # gone again
                    stat = entry.stat()
                    size += stat.st_size
                    if not entry.name.endswith(LASTING):
                        others.add((entry.name, stat.st_mtime_ns))
        if before is not None:
            if moment == "writing" and size > before[0] + WRITE_BYTES:
                return
            if moment == "compacting" and others - before[1]:
                return
        before = size, others


class Crowd(Clients):
    """The clients of all rooms."""

    PROGRAM = "kills.mjs"

    def load(self, **options: Any) -> int:
        """Have them write till the server is dead. Returns at once."""
        return self._ask("load", options)

    def sent(self, load: int) -> dict[str, Any]:
        """What they were sent by then, for each room."""
        sent: dict[str, Any] = self._answer(load, 3 * DEADLINE)
        return sent


async def stored(data: Path, kind: Kind, rooms: Iterable[str]) -> dict[str, StructStore]:
    """What is in the store, by room."""
    states = {room: StructStore() for room in rooms}
    async with open_store(data, kind, "never") as store:
        for room, state in states.items():
            for update in await updates_of(store, room):
                state.add(update)
    return states


async def forget(data: Path, kind: Kind, room: str) -> None:
    async with open_store(data, kind, "never") as store:
        with suppress(RoomNotFound):
            await store.delete(room)


def excerpt(update: ParsedUpdate) -> str:
    structs = [(section.client, section.start, section.ends[-1]) for section in update.sections]
    return f"structs (client, start, end) {structs}, deletes {update.deletes}"[:300]


class Judge:
    """Knows what must be stored, and looks whether it is."""

    def __init__(self, crowd: Crowd, data: Path, kind: Kind) -> None:
        self._crowd = crowd
        self._data = data
        self._kind = kind
        self._made = 0
        self._inodes: dict[str, int] = {}
        """The log files of the last time: a compacted log is another file."""
        self.seen: dict[str, StructStore] = {}
        """By room, all that any client was sent and was not already found to be lost."""
        self._make_rooms()

    def _make_rooms(self) -> None:
        while len(self.seen) < ROOMS:
            self._made += 1
            self.seen[f"room{self._made}"] = StructStore()

    def judge(self, sent: Mapping[str, Any]) -> tuple[Counter[str], list[str]]:
        """Returns counts of what there was, and complaints."""
        names = os.listdir(self._data)
        counts = Counter(kills=1, compacted=self._compactions())
        counts["cut short"] = sum(not name.endswith(LASTING) for name in names)
        complaints = []
        copy = self._data.with_name("copy")
        shutil.copytree(self._data, copy)
        states = anyio.run(stored, copy, self._kind, list(self.seen))
        shutil.rmtree(copy)
        for room, state in states.items():
            if not state.knows(parse_update(self.seen[room].encode())):
                complaints.append(f"{room} has lost what it had at an earlier kill")
                self.seen[room] = StructStore()  # to be told of it once
            if room not in sent:
                continue
            counts["received"] += sent[room]["received"]
            for update in map(parse_update, map(b64decode, sent[room]["updates"])):
                counts["checked"] += 1
                if state.knows(update):
                    self.seen[room].add(update)
                else:
                    complaints.append(f"{room} has lost {excerpt(update)}")
        counts["losses"] = len(complaints)
        encoded = {room: b64encode(state.encode()).decode() for room, state in states.items()}
        complaints += self._crowd.do("judge", states=encoded)
        for room, state in states.items():
            if state.size > ROOM_BYTES:
                self._retire(room)
        self._make_rooms()
        return counts, complaints

    def _compactions(self) -> int:
        before = self._inodes
        self._inodes = {path.name: path.stat().st_ino for path in self._data.glob("*.ylog")}
        return sum(before.get(name, inode) != inode for name, inode in self._inodes.items())

    def _retire(self, room: str) -> None:
        del self.seen[room]
        anyio.run(forget, self._data, self._kind, room)


class Tally:
    """What happened, by fsync mode and by moment.

    Updates are counted once for each client they were sent to, and as they were checked: each once.
    Compactions that a kill cut short are not among those that were seen (one a life, at most).
    """

    COLUMNS = ("kills", "received", "checked", "torn", "compacted", "cut short", "losses")

    def __init__(self) -> None:
        self._rows: dict[str, Counter[str]] = {}
        self._begun = self._told = time.monotonic()

    def add(self, fsync: Fsync, moment: str, counts: Counter[str]) -> None:
        for row in (f"fsync {fsync}", moment, "in all"):
            self._rows.setdefault(row, Counter()).update(counts)
        now = time.monotonic()
        if now > self._told + PROGRESS:
            self._told = now
            print(f"after {now - self._begun:.0f} s: {dict(self._rows['in all'])}", flush=True)

    @property
    def checked(self) -> int:
        return self._rows["in all"]["checked"]

    def __str__(self) -> str:
        table = [("", *self.COLUMNS)]
        for name in sorted(self._rows, key=lambda name: (name == "in all", name in MOMENTS)):
            table.append((name, *(str(self._rows[name][column]) for column in self.COLUMNS)))
        return "\n".join("".join(f"{cell:>15}" for cell in row) for row in table)


def one_life(
    victim: Victim, crowd: Crowd, rooms: Iterable[str], moment: str, pid: int, random: Random
) -> dict[str, Any]:
    """Let the server, just begun, live up to a moment; returns what its clients were sent."""
    wait = random.uniform(0, MOMENTS[moment])
    if moment == "starting":
        time.sleep(wait)
        victim.kill()
        return {}
    looked_for = moment in LOOKED_FOR
    load = crowd.load(
        url=victim.started(),
        names=list(rooms),
        anew=random.random() < ANEW,
        seed=random.getrandbits(32),
        moment="pasting" if looked_for else moment,
        wait=wait * 1000,
        size=random.randint(*PASTE_BYTES),
        pid=None if looked_for else pid,
    )
    if looked_for:
        watch(moment, victim.data)
        time.sleep(wait)
        victim.kill()
    return crowd.sent(load)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_no_kill_loses_what_anybody_has_seen(
    kind: Kind, node: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    random = Random(SEED)
    data = tmp_path / "data"
    victim = Victim(data, kind)
    tally = Tally()
    complaints: list[str] = []
    with Crowd(node) as crowd:
        judge = Judge(crowd, data, kind)
        try:
            for number in range(KILLS + 1):
                fsync = FSYNC[number % len(FSYNC)]
                pid = victim.start(fsync, random.choice(BACKENDS), random.choice(PER_WRITE))
                if number < KILLS:
                    moment = list(MOMENTS)[number % len(MOMENTS)]
                    sent = one_life(victim, crowd, judge.seen, moment, pid, random)
                else:
                    moment = "the end"
                    sent = crowd.do("settle", url=victim.started(), names=list(judge.seen), pid=pid)
                victim.kill()
                counts, wrong = judge.judge(sent)
                wrong += [line for line in victim.output if not ORDINARY.match(line)]
                counts["torn"] = sum(TORN in message for message in caplog.messages)
                caplog.clear()
                tally.add(fsync, moment, counts)
                complaints += [f"kill {number}, {moment}, fsync {fsync}: {what}" for what in wrong]
                if len(complaints) > MAX_COMPLAINTS:
                    break
        finally:
            victim.kill()
            print(f"\n{tally}")
    assert not complaints, "\n".join(complaints)
    assert tally.checked > KILLS, "there was nothing to lose"
