"""`ycore serve` as a process: what it prints, how it ends, and how it says what is wrong."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import pytest
from children import interruptible
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.sync.client import connect

ROOT = Path(__file__).parents[2]
DEADLINE = 20
Start: TypeAlias = Callable[..., "subprocess.Popen[str]"]


def command(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "ycore_adapters.cli", *map(str, args)]


def run(*args: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*args), capture_output=True, text=True, timeout=DEADLINE, cwd=cwd, check=False
    )


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a server, which is killed at the end if it still runs."""
    with ExitStack() as stack:

        def start(*args: str | Path, program: Sequence[str] = ()) -> subprocess.Popen[str]:
            pipe = subprocess.PIPE
            with interruptible():
                process = subprocess.Popen(
                    program or command("serve", *args), stdout=pipe, stderr=pipe, text=True
                )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


# ---- serving


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_serves_and_stops_on_a_signal(
    start: Start, data: Path, backend: str, how: signal.Signals
) -> None:
    """One line, nothing else, and exit code 0."""
    process = start("--port", "0", "--data", data, "--backend", backend)
    line = first_line(process)
    found = re.fullmatch(
        r"ycore serving on ws://127\.0\.0\.1:(\d+), storing in (.*) \(fsync everysec\)\n", line
    )
    assert found, line
    assert found[2] == str(data)
    assert data.is_dir()
    with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/health", timeout=DEADLINE) as answer:
        assert answer.read() == b"ok\n"
    process.send_signal(how)
    assert process.communicate(timeout=DEADLINE) == ("", "")
    assert process.returncode == 0


_SIGNAL_AT_ONCE = """
import click, os, signal, sys
from ycore_adapters import cli

echo = click.echo

def echo_and_signal(message):
    echo(message)
    os.kill(os.getpid(), signal.SIGTERM)

click.echo = echo_and_signal
cli.main(["serve", "--memory", "--port", "0", "--backend", sys.argv[1]])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_signal_may_come_as_soon_as_it_says_that_it_serves(start: Start, backend: str) -> None:
    process = start(program=[sys.executable, "-c", _SIGNAL_AT_ONCE, backend])
    out, err = process.communicate(timeout=DEADLINE)
    assert out.startswith("ycore serving on ")
    assert (process.returncode, err) == (0, "")


_SIGNAL_AGAIN = """
import os, signal, sys
import anyio
from ycore_adapters import cli
from ycore_adapters.stores import MemoryStore

async def close(store, *error):
    print("closing", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(100):
        await anyio.lowlevel.checkpoint()
    print("closed", flush=True)

MemoryStore.__aexit__ = close
cli.main(["serve", "--memory", "--port", "0", "--backend", sys.argv[1]])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_second_signal_does_not_keep_the_store_from_being_closed(
    start: Start, backend: str
) -> None:
    process = start(program=[sys.executable, "-c", _SIGNAL_AGAIN, backend])
    assert first_line(process).startswith("ycore serving on ")
    process.terminate()
    assert process.communicate(timeout=DEADLINE) == ("closing\nclosed\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize("closed", [">&-", "<&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_files_may_be_closed(tmp_path: Path, closed: str) -> None:
    path = tmp_path / "socket"
    serve = " ".join(command("serve", "--memory", "--unix", path))
    with subprocess.Popen(
        ["sh", "-c", f"exec {serve} {closed}"], stdout=subprocess.DEVNULL
    ) as server:
        try:
            deadline = time.monotonic() + DEADLINE
            while not path.exists():
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            server.terminate()
            assert server.wait(DEADLINE) == 0
        finally:
            server.kill()


def test_memory_only(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    process = start("--port", "0", "--memory", "--prefix", "/yjs/")
    line = first_line(process)
    assert re.fullmatch(
        r"ycore serving on ws://127\.0\.0\.1:\d+/yjs, storing in memory only\n", line
    )
    assert list(tmp_path.iterdir()) == []


def test_connections_can_be_bounded_and_compressed(start: Start) -> None:
    process = start("--memory", "--port", "0", "--max-connections", "1", "--compression")
    port = int(first_line(process).split(":")[2].split(",")[0])
    extensions = ClientPerMessageDeflateFactory()
    with connect(
        f"ws://127.0.0.1:{port}/r", compression=None, extensions=[extensions], proxy=None
    ) as client:
        assert client.recv(timeout=DEADLINE) == b"\0\0\1\0"
        assert "permessage-deflate" in client.response.headers["Sec-WebSocket-Extensions"]
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as other:
            assert other.recv(1000).startswith(b"HTTP/1.1 503 ")
    process.terminate()
    _, err = process.communicate(timeout=DEADLINE)
    assert err.endswith("connections refused setting=max_connections=1 count=1\n")
    assert process.returncode == 0


def test_a_unix_socket(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    process = start("--unix", path, "--memory")
    assert first_line(process) == f"ycore serving on ws+unix:{path}, storing in memory only\n"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE)
        client.connect(str(path))
        client.sendall(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
    process.terminate()
    assert process.communicate(timeout=DEADLINE) == ("", "")
    assert process.returncode == 0
    assert not path.exists()


def test_options_may_come_from_the_environment(
    start: Start, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YCORE_PORT", "0")
    monkeypatch.setenv("YCORE_DATA", str(data))
    monkeypatch.setenv("YCORE_FSYNC", "never")
    line = first_line(start())
    assert line.endswith(f"storing in {data} (fsync never)\n")
    assert first_line(start("--memory")).endswith("storing in memory only\n")
    assert "YCORE_PORT=4321" in run("serve", "--help").stdout


# ---- what can be wrong


def check_one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """It failed, and said why in one line."""
    assert done.returncode == 1, done
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.endswith("\n")
    assert done.stderr.count("\n") == 1
    for part in parts:
        assert part in done.stderr


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_port_in_use(data: Path, backend: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = run("serve", "--port", port, "--data", data, "--backend", backend)
    check_one_line(done, f"can't listen on 127.0.0.1:{port}", "in use by another process")
    assert not data.exists()


def test_a_host_that_is_not_ours(data: Path) -> None:
    done = run("serve", "--host", "192.0.2.1", "--port", "0", "--data", data)
    check_one_line(done, "can't listen on 192.0.2.1:0")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_directory_of_another_process(start: Start, data: Path, backend: str) -> None:
    first_line(start("--port", "0", "--data", data))
    done = run("serve", "--port", "0", "--data", data, "--backend", backend)
    check_one_line(done, str(data), "in use by another process")


def test_a_directory_that_is_a_file(data: Path) -> None:
    data.write_text("precious")
    check_one_line(run("serve", "--port", "0", "--data", data), str(data))
    assert data.read_text() == "precious"


def test_a_directory_that_is_not_writable(data: Path) -> None:
    data.mkdir()
    done = run_unprivileged("serve", "--port", "0", "--backend", "asyncio", "--data", data)
    check_one_line(done, str(data), "Permission denied")
    assert list(data.iterdir()) == []


_WITHOUT_PRIVILEGES = """
import os, sys
import anyio, filelock
from ycore_adapters import cli

os.chmod(sys.argv[-1], 0o555)
if os.geteuid() == 0:  # whom no mode keeps from writing
    anyio.run(anyio.getaddrinfo, "127.0.0.1", 0)  # import what nobody may have no right to read
    os.setuid(65534)
cli.main(sys.argv[1:])
"""


def run_unprivileged(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run it, as nobody if we are root, with the last argument a directory without permission."""
    program = [sys.executable, "-c", _WITHOUT_PRIVILEGES, *map(str, args)]
    return subprocess.run(program, capture_output=True, text=True, timeout=DEADLINE, check=False)


def test_a_pipe_in_the_place_of_a_log_holds_nothing_up(start: Start, data: Path) -> None:
    data.mkdir()
    os.mkfifo(data / "r.ylog")
    check_one_line(run("show", "--data", data, "r"), "r.ylog", "it is no regular file")
    process = start("--port", "0", "--data", data)
    port = int(first_line(process).split(":")[2].split(",")[0])
    with (
        connect(f"ws://127.0.0.1:{port}/r", proxy=None) as client,
        pytest.raises(ConnectionClosed, match="1013"),
    ):
        client.recv(DEADLINE)
    process.terminate()
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0
    assert "it is no regular file" in err


_READ_ON_AND_ON = """
import sys
from ycore_adapters.cli import main, tools

async def compact(*args):
    print("compacting", flush=True)
    while True:  # and never wait for anything
        pass

tools.compact = compact
main()
"""


def test_a_tool_heeds_ctrl_c_whatever_it_does(start: Start, data: Path) -> None:
    (data.parent / "update").write_bytes(bytes(2))
    assert run("import", "--data", data, "r", data.parent / "update").returncode == 0
    compacting = ["compact", "--data", str(data)]
    process = start(program=[sys.executable, "-c", _READ_ON_AND_ON, *compacting])
    assert first_line(process) == "compacting\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=DEADLINE) == ("", "\nAborted!\n")
    assert process.returncode == 1


def test_a_socket_path_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    check_one_line(run("serve", "--unix", path, "--memory"), f"can't listen on {path}")
    assert path.read_text() == "precious"


_WITHOUT = """
import runpy, sys

for name in sys.argv.pop(1).split():
    sys.modules[name] = None  # as if it were not installed
runpy.run_module("ycore", run_name="__main__", alter_sys=True)
"""


def run_without(missing: str, *args: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", _WITHOUT, missing, *args]
    return subprocess.run(program, capture_output=True, text=True, timeout=DEADLINE, check=False)


@pytest.mark.parametrize(
    "missing",
    [
        pytest.param("anyio click filelock h11 wsproto", id="the core alone"),
        pytest.param("click h11 wsproto", id="asgi"),
        pytest.param("click filelock", id="client"),
        pytest.param("filelock", id="client, where something else brought click"),
    ],
)
def test_without_what_the_command_needs_it_says_what_to_install(missing: str) -> None:
    done = run_without(missing, "serve", "--port", "0", "--memory")
    check_one_line(done, missing.replace(" ", ", "), "pip install 'ycore[server]'")


def test_what_it_needs_is_what_the_extra_brings() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    names = sorted(re.split("[^a-z0-9]", needed)[0] for needed in extras["server"])
    check_one_line(run_without(" ".join(names)), f"needs {', '.join(names)}:")


def test_without_trio_its_backend_says_what_to_install() -> None:
    done = run_without("trio", "serve", "--port", "0", "--memory", "--backend", "trio")
    check_one_line(done, "--backend trio", "pip install trio")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--prefix", "yjs"), "--prefix"),
        (("--prefix", "/yjs"), "begin and end with a slash"),
        (("--origin", "https://example.org/"), "write https://example.org\n"),
        (("--origin", "example.org"), "write https://example.org\n"),
        (("--memory", "--data", "x"), "--data has no effect with --memory: leave one out"),
        (("--memory", "--fsync", "always"), "--fsync has no effect with --memory"),
        (("--memory", "--keep-history"), "--keep-history has no effect with --memory"),
        (("--memory", "--open-damaged"), "--open-damaged has no effect with --memory"),
        (("--unix", "s", "--port", "1"), "--port has no effect with --unix"),
        (("--unix", "s", "--host", "::1"), "--host has no effect with --unix"),
        (("--port", "70000"), "--port"),
        (("--fsync", "sometimes"), "--fsync"),
        (("--backend", "twisted"), "--backend"),
        (("--colour", "blue"), "--colour"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_options_that_make_no_sense(args: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = run("serve", *args, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_option() -> None:
    done = run("serve", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for option in (
        *("--host", "--port", "--unix", "--data", "--memory", "--fsync", "--prefix"),
        *("--backend", "--log-level"),
    ):
        assert option in done.stdout
    assert "127.0.0.1" in done.stdout
    assert "serve" in run("--help").stdout
    assert re.search(r"\d+\.\d+", run("--version").stdout)


def test_the_command_is_installed() -> None:
    path = Path(sys.executable).with_name("ycore")
    done = subprocess.run([path, "--help"], capture_output=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0
    assert os.access(path, os.X_OK)
