"""Ask Yjs: the Python side of `oracle.mjs`."""

from __future__ import annotations

import json
import subprocess
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Session:
    """What a server could have received, in one natural order."""

    updates: list[bytes]
    classes: list[str]


@dataclass(frozen=True)
class Frame:
    """What one client of a session sends to a server."""

    client: int
    """Which of the clients."""
    kind: str
    """ "u" for an Update, "v" for a SyncStep1, "s" for a SyncStep2, "a" for awareness."""
    payload: bytes


@dataclass(frozen=True)
class HonestSession:
    """What a server gets from honest clients, in order."""

    seed: int
    frames: list[Frame]
    classes: list[str]
    versions: list[str]
    """The Yjs of each client."""


@dataclass(frozen=True)
class View:
    """A document to compare: it got the first `have` of the deliveries, then `updates`."""

    name: str
    updates: Sequence[bytes]
    have: int = 0
    contested: bool = False
    """Whether it may differ, and is only to be counted: see `test_agreement.contested`."""


class Disagreement(AssertionError):
    """Something is not as Yjs has it."""


class Oracle:
    """A Node process with Yjs that answers one request at a time.

    >>> with Oracle(require_node()) as oracle:
    ...     oracle.session(seed=1).updates
    """

    def __init__(self, node: str) -> None:
        self._node = node

    def __enter__(self) -> Self:
        self._stderr = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [self._node, str(HERE / "oracle.mjs")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            encoding="utf-8",
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its stdin, which ends it
        self._stderr.close()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request and return its answer."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._stderr.seek(0)
            raise RuntimeError(f"the oracle died:\n{self._stderr.read().decode()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"the oracle could not {request['op']}: {answer['error']}")
        return answer

    def session(self, seed: int, **options: Any) -> Session:
        """A random editing session; options are `clients`, `steps` and `classes`."""
        answer = self.ask({"op": "session", "seed": seed, **options})
        return Session(_decode(answer["updates"]), answer["classes"])

    def honest(self, seeds: Sequence[int], **options: Any) -> list[HonestSession]:
        """All that honest clients send in a session, for each seed: see `oracle_honest.mjs`.
        Options are `steps`, `classes` and `versions`."""
        sessions = self.ask({"op": "honest", "seeds": list(seeds), **options})["sessions"]
        return [
            HonestSession(
                seed,
                [Frame(client, kind, b64decode(data)) for client, kind, data in made["frames"]],
                made["classes"],
                made["versions"],
            )
            for seed, made in zip(seeds, sessions, strict=True)
        ]

    def merge(self, groups: Iterable[Iterable[bytes]]) -> list[bytes]:
        """Y.mergeUpdates of each group."""
        return self._put_together("merge", groups)

    def diffs(self, groups: Iterable[Iterable[bytes]]) -> list[bytes]:
        """Y.diffUpdate of each merged group, for one who has all groups before it."""
        return self._put_together("diffs", groups)

    def states(self, groups: Iterable[Iterable[bytes]]) -> list[bytes]:
        """The states of clients that got one group each, with what waits in them for others."""
        return self._put_together("states", groups)

    def _put_together(self, how: str, groups: Iterable[Iterable[bytes]]) -> list[bytes]:
        return _decode(self.ask({"op": how, "groups": list(map(_encode, groups))})["updates"])

    def state_vectors(self, deliveries: Iterable[bytes], at: Sequence[int]) -> list[bytes]:
        """The state vectors of a document that got the first so many deliveries."""
        answer = self.ask({"op": "state_vectors", "deliveries": _encode(deliveries), "at": at})
        return _decode(answer["stateVectors"])

    def seen(self, clients: Iterable[Iterable[bytes]]) -> list[dict[str, str]]:
        """What clients see that got these updates: content and state vector, or where Yjs threw."""
        seen: list[dict[str, str]] = self.ask(
            {"op": "seen", "clients": [_encode(updates) for updates in clients]}
        )["seen"]
        return seen

    def check(
        self,
        deliveries: Iterable[bytes],
        views: Iterable[View],
        state_vectors: Iterable[bytes] = (),
        *,
        gc: bool = True,
    ) -> list[str]:
        """Compare views, and state vectors of all deliveries, with what Yjs makes of these.

        Returns for each view what of Yjs's it equals: mostly "doc", the document that got the
        deliveries; rarely "merged", "diffed" or "retried" (see `oracle.mjs`).

        Raises:
            Disagreement: one of them equals none of these.
        """
        answer = self.ask(
            {
                "op": "check",
                "deliveries": _encode(deliveries),
                "views": [
                    {
                        "name": view.name,
                        "have": view.have,
                        "updates": _encode(view.updates),
                        "contested": view.contested,
                    }
                    for view in views
                ],
                "stateVectors": _encode(state_vectors),
                "gc": gc,
            }
        )
        if not answer["ok"]:
            detail = json.dumps(answer["detail"], indent=1, ensure_ascii=False)
            raise Disagreement(f"{answer['what']} differs from Yjs's: {detail}")
        verdicts: list[str] = answer["as"]
        return verdicts


def _encode(items: Iterable[bytes]) -> list[str]:
    return [b64encode(item).decode() for item in items]


def _decode(items: Iterable[str]) -> list[bytes]:
    return [b64decode(item) for item in items]
