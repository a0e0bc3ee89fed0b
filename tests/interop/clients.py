"""The two sides of an interop test: real y-websocket clients, and a ycore server, as processes."""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias

from children import interruptible

DEADLINE: Final = 10.0
"""How many seconds to wait for what should happen at once: long, so that no busy machine fails."""

Version: TypeAlias = Literal["1", "2", "3"]
"""Of y-websocket: 1.5.4, 2.1.0 or 3.1.0."""


class ClientError(AssertionError):
    """A client could not do what it was asked, or what it waited for did not happen."""


class Process:
    """A child process with its output in lines.

    A thread reads them, so that the child never blocks on a full pipe and no test waits for ever.

    Args:
        command: the program and its arguments.
        cwd: where it runs; None: where the tests do.
    """

    def __init__(self, *command: str | Path, cwd: Path | None = None) -> None:
        with interruptible():
            self.popen = subprocess.Popen(
                command,
                cwd=cwd,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
            )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def readline(self, seconds: float) -> str | None:
        """The next line; None at the end of the output or after so many seconds."""
        try:
            return self._lines.get(timeout=max(seconds, 0))
        except queue.Empty:
            return None

    def writeline(self, line: str) -> None:
        """Write a line to it. If it has died, its output, not this, tells why."""
        assert self.popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.popen.stdin.write(line + "\n")
            self.popen.stdin.flush()

    def end(self, how: signal.Signals) -> tuple[int, list[str]]:
        """Send a signal; return the exit code (minus the signal if it died of it) and what was
        not yet read of the output."""
        self.popen.send_signal(how)
        try:
            code = self.popen.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise
        finally:
            self._reader.join()
            for pipe in (self.popen.stdin, self.popen.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._lines.put(None)  # the reader's own may have been taken already
        return code, list(iter(self._lines.get, None))


class Server:
    """`ycore serve`, on a port of its own choice that it keeps over restarts.

    Args:
        data: where it keeps its documents.
        options: of the command.
        command: instead of `ycore serve`; takes `--data` and `--port`, and prints where it listens.
    """

    def __init__(self, data: Path, *options: str, command: Sequence[str | Path] = ()) -> None:
        serve = [sys.executable, "-m", "ycore_adapters.cli", "serve", "--host", "127.0.0.1"]
        self._command = [*(command or serve), "--data", str(data), *options]
        self._process: Process | None = None
        self.output: list[str] = []
        """What it printed since it first started. Complete while it is stopped."""
        self.url = "ws://127.0.0.1:0"
        self.start()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def start(self) -> None:
        self._process = Process(*self._command, "--port", str(self.port))
        deadline = time.monotonic() + DEADLINE
        while line := self._process.readline(deadline - time.monotonic()):
            self.output.append(line)
            if found := re.search(r"(?:ws|http)(://[\w.]+:\d+)", line):
                self.url = f"ws{found[1]}"
                return
        self.kill()
        raise AssertionError("the server did not start:\n" + "".join(self.output))

    def check(self) -> None:
        """See that it has not complained up to now."""
        while self._process is not None and (line := self._process.readline(0)):
            self.output.append(line)
        output = "".join(self.output)
        assert not re.search("Traceback|Exception|Warning", output), output

    def _end(self, how: signal.Signals) -> int:
        assert self._process is not None
        process, self._process = self._process, None
        code, output = process.end(how)
        self.output += output
        return code

    def kill(self) -> None:
        """No chance to flush anything, if it runs: SIGKILL."""
        if self._process is not None:
            self._end(signal.SIGKILL)

    def terminate(self) -> int:
        """The orderly end, SIGTERM; returns the exit code."""
        return self._end(signal.SIGTERM)

    def close(self) -> None:
        """Stop it if it runs, and see that it never complained."""
        code = 0 if self._process is None else self.terminate()
        self.check()
        assert code == 0, f"exit code {code}, output:\n{''.join(self.output)}"


class Client:
    """One y-websocket provider with its document and awareness; see `Clients.client`."""

    def __init__(self, clients: Clients, name: str, **options: Any) -> None:
        self._clients = clients
        self.name = name
        self.options = options
        self.id: int = self._do("create", **options)
        """The awareness id, which is also the client id of its edits."""

    def __repr__(self) -> str:
        return f"<{self.name}, id {self.id}>"

    def _do(self, op: str, **arguments: Any) -> Any:
        return self._clients.do(op, name=self.name, **arguments)

    # ---- edit

    def insert(self, index: int, text: str, attributes: dict[str, Any] | None = None) -> None:
        """Without attributes the text takes on those of what it follows."""
        self._do("insert", index=index, text=text, attributes=attributes)

    def delete(self, index: int, length: int) -> None:
        self._do("delete", index=index, length=length)

    def set(self, key: str, value: object) -> None:
        self._do("set", key=key, value=value)

    def push(self, value: object) -> None:
        self._do("push", value=value)

    def evaluate(self, code: str) -> None:
        """Evaluate a JavaScript expression; `doc` in it is the document."""
        self._do("evaluate", code=code)

    def fill(self, size: int) -> None:
        """Insert that many bytes at once."""
        self._do("fill", size=size)

    # ---- read

    def read(self) -> dict[str, Any]:
        """text, delta, map, array; update and stateVector in base64."""
        content: dict[str, Any] = self._do("read")
        return content

    def report(self) -> dict[str, Any]:
        """What happened to its connections: opens, messages, closes, denied, and the latest log."""
        report: dict[str, Any] = self._do("report")
        return report

    # ---- presence

    def present(self, state: dict[str, Any] | None) -> None:
        """Set its own awareness state."""
        self._do("present", state=state)

    def states(self) -> dict[int, Any]:
        """The awareness states it sees, by id."""
        return {int(key): state for key, state in self._do("states").items()}

    # ---- the connection

    def connect(self) -> None:
        self._do("connect")

    def disconnect(self) -> None:
        """Say goodbye and close."""
        self._do("disconnect")

    def drop(self, *, reconnect: bool = False) -> None:
        """Lose the connection without a word."""
        self._do("drop", reconnect=reconnect)

    def destroy(self) -> None:
        """The provider's end. The document stays, for `Clients.successor` to come back with."""
        self._do("destroy")

    # ---- wait

    def wait(
        self,
        *,
        within: float = DEADLINE,
        present: Sequence[Client] = (),
        absent: Sequence[Client] = (),
        **conditions: object,
    ) -> float:
        """Wait until all conditions hold; returns how many seconds that took.

        Args:
            within: seconds after which it is a failure.
            present: clients whose awareness state it sees.
            absent: clients whose awareness state it does not see.
            conditions: synced, text (equals), contains (a part of the text), states (by awareness
                id), holds (a JavaScript expression that is true, in which `doc` is the document);
                or at least so many opens or closes of its connection, or permissions denied.
        """
        wanted: dict[str, object] = {**conditions}
        wanted["present"] = [client.name for client in present]
        wanted["absent"] = [client.name for client in absent]
        return float(self._do("wait", conditions=wanted, seconds=within))


class Clients:
    """A Node process with any number of clients."""

    PROGRAM = "clients.mjs"

    def __init__(self, node: str) -> None:
        self._process = Process(node, Path(__file__).with_name(self.PROGRAM))
        self._ids = itertools.count(1)
        self._answers: dict[int, dict[str, Any]] = {}
        self._noise: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        _, rest = self._process.end(signal.SIGTERM)
        noise = "".join(self._noise + rest)
        assert not noise, f"the clients complained:\n{noise}"

    # ---- requests

    def _ask(self, op: str, arguments: dict[str, Any]) -> int:
        number = next(self._ids)
        self._process.writeline(json.dumps({"id": number, "op": op, **arguments}))
        return number

    def _answer(self, number: int, patience: float) -> Any:
        __tracebackhide__ = True
        while number not in self._answers:
            line = self._process.readline(patience)
            if line is None:
                noise = "".join(self._noise)
                raise ClientError(f"no answer from the clients' process:\n{noise}")
            if line.startswith('{"id":'):
                answer = json.loads(line)
                self._answers[answer["id"]] = answer
            else:
                self._noise.append(line)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise ClientError(answer["error"])
        return answer["result"]

    def do(self, op: str, **arguments: Any) -> Any:
        """One request of `clients.mjs`; its deadline, if it has one, is kept over there."""
        __tracebackhide__ = True
        patience = arguments.get("seconds", 0) + DEADLINE
        return self._answer(self._ask(op, arguments), patience)

    # ---- clients

    def client(
        self,
        server: str,
        room: str,
        *,
        version: Version = "3",
        params: dict[str, str] | None = None,
        protocols: Sequence[str] = (),
        awareness: dict[str, Any] | None = None,
        connect: bool = True,
        resync_interval: int = -1,
    ) -> Client:
        """A new client of a server's room.

        Args:
            server: its URL, to which the provider appends the room as it is.
            room: the room's name.
            version: of y-websocket.
            params: for the query string.
            protocols: WebSocket subprotocols to offer (not in version 1).
            awareness: its own state, None for none.
            connect: at once, or when told to.
            resync_interval: how often to ask for what it lacks, in milliseconds; -1 is never.
        """
        return Client(
            self,
            f"client{next(self._ids)}",
            url=server,
            room=room,
            version=version,
            params=params or {},
            protocols=protocols,
            awareness=awareness,
            connect=connect,
            resyncInterval=resync_interval,
        )

    def successor(self, client: Client) -> Client:
        """A new provider for the document and the awareness of a client that was destroyed."""
        options = {**client.options, "docFrom": client.name}
        del options["awareness"]
        return Client(self, f"client{next(self._ids)}", **options)

    def edit_at_random(self, clients: Sequence[Client], count: int, seed: int) -> None:
        """So many random edits by each of them, all at the same time."""
        asked = [
            self._ask("random", {"name": client.name, "count": count, "seed": seed + i})
            for i, client in enumerate(clients)
        ]
        for number in asked:
            self._answer(number, DEADLINE)

    def wait_equal(self, *clients: Client, within: float = DEADLINE) -> float:
        """Wait until they have the same structs and deletes, nothing pending, the same content."""
        names = [client.name for client in clients]
        return float(self.do("equal", names=names, seconds=within))

    def idle(self, *clients: Client, seconds: float) -> None:
        """Let time pass; fail if one of them loses its connection."""
        self.do("idle", names=[client.name for client in clients], seconds=seconds)

    def raw(self, url: str, **frame: str) -> dict[str, Any]:
        """Open a plain WebSocket and send one thing; returns code and reason of the server's close.

        Args:
            frame: text, or binary in hexadecimal, or bytes in hexadecimal that are not even a
                WebSocket frame.
        """
        closed: dict[str, Any] = self.do("raw", url=url, **frame, seconds=DEADLINE)
        return closed
