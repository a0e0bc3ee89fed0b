"""The Python on the pages, each piece as it stands there and in a process of its own.

docs/migrating.md has its own test; what docs/frameworks.md shows is also served, to real clients.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from ycore.messages import PermissionDenied

ROOT = Path(__file__).parents[2]
DEADLINE = 30
SYNC_STEP_1 = b"\0\0\1\0"


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


README = blocks("README.md")


def block(part: str) -> str:
    [found] = [block for block in README if part in block]
    return found


def run(source: str, cwd: Path) -> str:
    """What it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


Serve: TypeAlias = Callable[[str], int]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Have a server run, on another port than 1234, which may be in use. Returns the port."""
    with ExitStack() as stack:

        def serve(source: str) -> int:
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port: int = probe.getsockname()[1]
            command = [sys.executable, "-W", "error", "-c", source.replace("1234", str(port))]
            process = stack.enter_context(subprocess.Popen(command, cwd=tmp_path))
            stack.callback(process.kill)
            deadline = time.monotonic() + DEADLINE
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                except ConnectionRefusedError:
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                else:
                    return port

        yield serve


def connected(port: int) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{port}/my-room", proxy=None)


def test_the_server_with_hooks_and_the_client(serve: Serve, tmp_path: Path) -> None:
    port = serve(block("Hooks("))
    client = block("await client.flush()").replace("1234", str(port))
    assert run(client, tmp_path) == "{'text': '# my-room!'} {}\n"
    assert run(client, tmp_path) == "{'text': '# my-room!!'} {}\n"
    with connected(port) as nobody:
        assert nobody.recv(DEADLINE) == PermissionDenied("a token is needed").encode()
        with pytest.raises(ConnectionClosed, match="4403"):
            nobody.recv(DEADLINE)


def test_documents(tmp_path: Path) -> None:
    source = block("another.encode()")
    *_, shown = run(f"{source}\nprint(doc.to_json())", tmp_path).splitlines()
    assert f"doc.to_json()  # {shown}" in source.replace('"', "'")


def test_a_document_on_the_server(tmp_path: Path) -> None:
    assert run(block("driver.document"), tmp_path) == ""


def test_the_core_in_a_framework_of_ones_own(serve: Serve) -> None:
    source = (ROOT / "examples" / "own_framework.py").read_text()
    assert block("broadcast") == source
    with connected(serve(source)) as client:
        assert client.recv(DEADLINE) == SYNC_STEP_1


def test_updates_without_rooms(tmp_path: Path) -> None:
    assert run(block("merge_updates("), tmp_path) == ""


def test_these_are_all_of_the_readme() -> None:
    assert len(README) == 6


TOKENS, *APPS = blocks("docs/frameworks.md")


@pytest.mark.parametrize("app", APPS, ids=range(len(APPS)))
def test_an_application_is_made_in_each_framework(app: str, tmp_path: Path) -> None:
    (tmp_path / "tokens.py").write_text(TOKENS)
    (tmp_path / "mysite").mkdir()
    (tmp_path / "mysite" / "settings.py").write_text("SECRET_KEY = 'test'")
    (tmp_path / "app.py").write_text(app)
    source = "import app; assert callable(getattr(app, 'application', None) or app.app)"
    assert run(source, tmp_path) == ""


def test_a_store_of_ones_own_is_tested(tmp_path: Path) -> None:
    by_url, source = blocks("docs/stores.md")
    assert run(f"{by_url}\nassert store.keep_history", tmp_path) == ""
    (tmp_path / "test_my_store.py").write_text(source)
    told = run("import pytest; raise SystemExit(pytest.main(['-q', 'test_my_store.py']))", tmp_path)
    assert re.search(r"^\d+ passed", told, re.MULTILINE), told
