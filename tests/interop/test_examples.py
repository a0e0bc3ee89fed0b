"""The examples, each as a process, with real clients."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.cookies import SimpleCookie
from pathlib import Path
from typing import TypeAlias

import pytest
from clients import DEADLINE, Clients, Process, Server

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"


class Example:
    """A running example, on a port of its own."""

    def __init__(self, name: str, cwd: Path, *arguments: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        source = (EXAMPLES / name).read_text().replace("1234", str(port))
        self.url = f"ws://127.0.0.1:{port}"
        self.process = Process(sys.executable, "-c", source, *arguments, cwd=cwd)
        self.output: list[str] = []

    def get(self, path: str, **headers: str) -> tuple[str, SimpleCookie]:
        """What it answers to GET, and the cookies it sets. Tries again until it listens."""
        request = urllib.request.Request(self.url.replace("ws:", "http:") + path, headers=headers)
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
                    cookies = SimpleCookie(answer.headers.get("Set-Cookie", ""))
                    return answer.read().decode(), cookies
            except urllib.error.HTTPError:
                raise
            except urllib.error.URLError:
                assert time.monotonic() < deadline, "it does not listen"
                time.sleep(0.02)

    def line(self, pattern: str) -> re.Match[str]:
        """Wait until it prints this."""
        deadline = time.monotonic() + DEADLINE
        while line := self.process.readline(deadline - time.monotonic()):
            self.output.append(line)
            if found := re.search(pattern, line):
                return found
        raise AssertionError("".join(self.output))

    def end(self, how: signal.Signals) -> None:
        _, output = self.process.end(how)
        text = "".join(self.output + output)
        assert not re.search("Traceback|Exception|Error|Warning", text), text


Run: TypeAlias = Callable[..., Example]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Run an example. What it keeps in its folder stays there for the next."""
    running: list[Example] = []

    def run(name: str, *arguments: str) -> Example:
        running.append(Example(name, tmp_path, *arguments))
        return running[-1]

    yield run
    for example in running:
        if example.process.popen.poll() is None:
            example.end(signal.SIGKILL)


@pytest.mark.parametrize(
    ("name", "path"),
    [("own_framework.py", ""), ("aiohttp_core.py", "/ws"), ("threads.py", "")],
)
def test_two_converge_on_the_core_alone(clients: Clients, run: Run, name: str, path: str) -> None:
    url = run(name).url + path
    a, b = (clients.client(url, "room", awareness={"user": user}) for user in "ab")
    for client in (a, b):
        client.wait(synced=True)  # they try again until it listens
    a.insert(0, "hello")
    b.wait(text="hello", present=[a])
    b.insert(5, " world")
    a.wait(text="hello world", present=[b])
    a.drop()
    b.wait(absent=[a], within=1)
    assert clients.raw(f"{url}/room", binary="ff")["code"] == 4400
    if name != "own_framework.py":
        b.fill(10_000_000)  # more than may wait for one client
    late = clients.client(url, "room")
    late.wait(present=[b])
    clients.wait_equal(b, late)
    elsewhere = clients.client(url, "another room")
    elsewhere.wait(synced=True, text="", absent=[b])


def test_starlette_with_tokens(clients: Clients, run: Run) -> None:
    example = run("starlette_tokens.py")
    assert example.get("/who/room")[0] == "[]"
    url = f"{example.url}/ws"
    writer = clients.client(url, "room", params={"token": "pen"}, awareness={"user": "Ada"})
    reader = clients.client(url, "room", params={"token": "glasses"})
    for client in (writer, reader):
        client.wait(synced=True)
    writer.insert(0, "hello")
    reader.wait(text="hello", present=[writer])
    assert json.loads(example.get("/who/room")[0]) == ["Ada", "Bob"]
    reader.insert(0, "no")
    reader.wait(denied=1)
    for params, code, reason in [
        ({}, 4401, "a token is needed"),
        ({"token": "brush"}, 4403, "this token opens nothing here"),
    ]:
        refused = clients.client(url, "room", params=params)
        refused.wait(denied=1, closes=1)
        assert refused.report()["closes"] == [{"code": code, "reason": reason}]
    example.end(signal.SIGTERM)

    again = run("starlette_tokens.py")
    late = clients.client(f"{again.url}/ws", "room", params={"token": "glasses"})
    late.wait(text="hello")
    again.end(signal.SIGTERM)


def test_django(clients: Clients, run: Run) -> None:
    example = run("django_project.py")
    _, cookies = example.get("/login?name=ada")
    session = "sessionid=" + cookies["sessionid"].value
    token = json.loads(example.get("/open/my-room", Cookie=session)[0])["token"]
    url = f"{example.url}/ws"
    a, b = (clients.client(url, "my-room", params={"token": token}) for _ in "ab")
    for client in (a, b):
        client.wait(synced=True)
    a.insert(0, "hello")
    b.wait(text="hello")
    for room, given in [("my-room", ""), ("my-room", token + "x"), ("other-room", token)]:
        refused = clients.client(url, room, params={"token": given})
        refused.wait(denied=1, closes=1)
        assert refused.report()["closes"][0]["code"] == 4403
    with pytest.raises(urllib.error.HTTPError, match="403"):
        example.get("/open/my-room")
    example.end(signal.SIGTERM)


def test_trio(clients: Clients, run: Run) -> None:
    example = run("trio_server.py")
    ada = {"user": "ada", "key": example.line("the key of ada: ([0-9a-f]+)")[1]}
    owner = clients.client(example.url, "ada/room", params=ada)
    owner.wait(synced=True)
    owner.insert(0, "hello")
    refused = clients.client(example.url, "ada/room", params={**ada, "user": "bob"})
    refused.wait(denied=1, closes=1)
    assert refused.report()["closes"][0]["code"] == 4403
    guest = clients.client(example.url, "bob/room", params=ada)
    guest.wait(synced=True)
    guest.insert(0, "not hers")
    guest.wait(denied=1)
    example.end(signal.SIGTERM)

    again = run("trio_server.py")
    late = clients.client(again.url, "ada/room", params=ada)
    late.wait(text="hello")


def test_a_notebook_whose_cells_run_on_the_server(clients: Clients, run: Run) -> None:
    example = run("notebook.py")
    a, b = (clients.client(example.url, "notebook") for _ in "ab")
    cell = "doc.getArray('cells').get(0)"
    for client in (a, b):
        client.wait(synced=True, holds=f"{cell}?.get('state') === 'idle'")
    a.evaluate(f"{cell}.get('source').insert(0, 'Please! ')")
    a.evaluate(f"{cell}.set('state', 'run')")
    b.wait(holds=f"{cell}.get('outputs').toJSON()[0]?.words === 4")
    a.evaluate("doc.getArray('cells').insert(0, ['no cell', new Y.Map([['state', 'run']])])")
    b.wait(holds=f"{cell.replace('0', '1')}?.get('outputs')?.toJSON()[0]?.words === 1")
    example.end(signal.SIGTERM)

    again = run("notebook.py")
    late = clients.client(again.url, "notebook")
    late.wait(holds="doc.getArray('cells').length === 3")


def test_a_bot_edits_along(clients: Clients, run: Run, server: Server, room: str) -> None:
    a = clients.client(server.url, room)
    a.insert(0, "so :smile: 😀 :tada:")
    bot = run("bot.py", f"{server.url}/{room}")
    a.wait(text="so 😄 😀 🎉")
    bot.line("editing along")
    a.insert(2, " :heart::he")
    a.wait(text="so 💜:he 😄 😀 🎉")
    a.insert(8, "art:")
    a.wait(text="so 💜💜 😄 😀 🎉")
    [state] = [state for client, state in a.states().items() if client != a.id]
    assert state["user"]["name"] == "Emoji bot"
    bot.end(signal.SIGINT)
    while a.states():  # until its goodbye is here
        pass


def test_a_document_is_followed(clients: Clients, run: Run, server: Server, room: str) -> None:
    a = clients.client(server.url, room, awareness={"user": "Ada"})
    a.insert(0, "hello")
    a.wait(synced=True)
    follower = run("follow.py", f"{server.url}/{room}")
    follower.line("here: {'user': 'Ada'}")
    follower.line("^hello$")
    a.insert(5, " world")
    follower.line("^hello world$")
    a.disconnect()
    follower.line("^here:$")
    follower.end(signal.SIGINT)
    refused = run("follow.py", f"{server.url}")
    refused.line("the server refuses: 404")


def test_the_readme_shows_the_core_in_a_framework_of_your_own() -> None:
    source = (EXAMPLES / "own_framework.py").read_text()
    assert f"```python\n{source}```" in (ROOT / "README.md").read_text()
    assert len(source.splitlines()) < 40


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_to_run_it(example: Path) -> None:
    lines = [line for line in example.read_text().splitlines() if line]
    assert len(lines) < 70
    if example.name != "own_framework.py":
        assert f"&& python examples/{example.name}" in "\n".join(lines[:5])
