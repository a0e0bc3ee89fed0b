"""The Autobahn test suite against our server, which echoes for it: no case may fail.

Left out are cases that mostly measure: 9.*, and most of the compressed ones, 12.* and 13.*. `make
autobahn` runs all, prints how they ended, and leaves a page about each in `.autobahn/reports`.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest
from install import INSTALLED, Unavailable, install
from wsproto.events import TextMessage
from ycore_adapters._peer import Peer, frame_message
from ycore_adapters.driver import Driver
from ycore_adapters.server import Server, ServerSettings, listen_tcp
from ycore_adapters.stores import MemoryStore

from ycore import Effect, Frame, Member, Room

ALL = os.environ.get("YCORE_AUTOBAHN") == "all"

# Which cases are run, and which of them are not: without compression, and with it.
PLAIN = (["*"], ["12.*", "13.*"]) if ALL else (["*"], ["9.*", "12.*", "13.*"])
COMPRESSED = (["12.*", "13.*"], []) if ALL else (["12.*.3", "12.*.11", "13.*.2", "13.*.12"], [])

GOOD = {"OK", "NON-STRICT", "INFORMATIONAL"}

_RUN = """
import site, sys
site.addsitedir(sys.argv.pop(1))  # reads .pth files, which PYTHONPATH does not
from autobahntestsuite.wstest import run
run()
"""


# ---- an echo server of our own parts


class EchoPeer(Peer):
    """Echoes text. In earnest text ends the connection, so there is no way for it further in."""

    _text: list[str] | None = None

    def _take_text(self, event: TextMessage) -> None:
        self._text = self._text or []
        self._text.append(event.data)
        if event.message_finished:
            frame = b"".join(frame_message("".join(self._text).encode(), self.window))
            self._output.append(bytes([frame[0] - 1]) + frame[1:])  # opcode 1 for 2
            self._text = None


class EchoServer(Server):
    def make_peer(self) -> Peer:
        settings = self.settings
        return EchoPeer(
            max_message_bytes=settings.max_message_bytes, compression=settings.compression
        )


class EchoDriver(Driver):
    """Sends back what comes. Rooms have nothing to say."""

    def _carry_out(self, room: Room, effects: list[Effect]) -> None:
        pass

    def receive_now(self, member: Member, data: bytes) -> None:
        member.link.send((data,))

    async def receive(self, member: Member, message: bytes | Frame, **_: bool) -> None:
        assert isinstance(message, bytes)
        self.receive_now(member, message)


# ---- the suite


@pytest.fixture(scope="session")
def python2() -> str:
    """Where the suite can't be had its tests are skipped, saying what is missing.

    With YCORE_REQUIRE_AUTOBAHN=1 that is a failure, so that a skip can't hide.
    """
    try:
        return install()
    except Unavailable as exc:
        if os.environ.get("YCORE_REQUIRE_AUTOBAHN") == "1":
            pytest.fail(f"{exc} (and YCORE_REQUIRE_AUTOBAHN=1)", pytrace=False)
        pytest.skip(str(exc))


async def run_suite(
    python: str, url: str, directory: Path, cases: list[str], but: list[str]
) -> dict[str, dict[str, Any]]:
    """What became of each case, by its number."""
    reports = INSTALLED / "reports" / directory.name if ALL else directory / "reports"
    spec = {
        "outdir": str(reports),
        "servers": [{"agent": "ycore", "url": url}],
        "cases": cases,
        "exclude-cases": but,
        "exclude-agent-cases": {},
    }
    path = directory / "spec.json"
    path.write_text(json.dumps(spec))
    await anyio.run_process(
        [python, "-c", _RUN, str(INSTALLED), "-m", "fuzzingclient", "-s", str(path)],
        cwd=directory,
        stderr=subprocess.STDOUT,
    )
    results: dict[str, dict[str, Any]] = json.loads((reports / "index.json").read_text())["ycore"]
    return results


def summary(results: dict[str, dict[str, Any]]) -> str:
    def count(what: str) -> str:
        verdicts = Counter(result[what] for result in results.values())
        return ", ".join(f"{number} {verdict}" for verdict, number in sorted(verdicts.items()))

    return f"{len(results)} cases: {count('behavior')}; closing: {count('behaviorClose')}"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("anyio_backend", "compression"),
    [("asyncio", False), ("trio", False), ("asyncio", True)],
    ids=["asyncio", "trio", "asyncio-compressed"],
)
async def test_no_case_of_the_autobahn_suite_fails(
    python2: str,
    compression: bool,
    tmp_path_factory: pytest.TempPathFactory,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    cases, but = COMPRESSED if compression else PLAIN
    directory = tmp_path_factory.mktemp(request.node.callspec.id, numbered=False)
    listeners = await listen_tcp("127.0.0.1", 0)
    url = f"ws://127.0.0.1:{listeners[0].getsockname()[1]}/echo"
    settings = ServerSettings(compression=compression)
    async with EchoDriver(MemoryStore()) as driver, anyio.create_task_group() as tasks:
        server = EchoServer(driver, listeners, settings=settings)
        tasks.start_soon(server.serve)
        results = await run_suite(python2, url, directory, cases, but)
        server.stop()
    print(f"\nAutobahn, {request.node.callspec.id}: {summary(results)}")
    assert len(results) > (10 if compression else 200)
    bad = {
        number: (result["behavior"], result["behaviorClose"])
        for number, result in results.items()
        if not {result["behavior"], result["behaviorClose"]} <= GOOD
    }
    assert bad == {}
    assert caplog.messages == []
