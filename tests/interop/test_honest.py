"""Nothing that an honest client sends is refused.

Random sessions of clients of many engines go through a room: of Yjs 13 from the oldest to the newest,
of Yjs 14, pycrdt and y-py. They send what clients send (see `oracle_honest.mjs`): edits, batches,
states with structs that wait, restored snapshots; late, twice, or never. No frame may cost its
sender the connection, and none may be counted as refused.

The campaign: YCORE_HONEST_SESSIONS=100000 .venv/bin/pytest -s tests/interop/test_honest.py
One session again: YCORE_SEED=1234 YCORE_HONEST_SESSIONS=1 ...
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import pytest
from nodejs import require_node
from oracle import Frame, Oracle

from ycore import Close, Member, Room
from ycore.messages import AwarenessUpdate, SyncStep1, SyncStep2, Update

SESSIONS = int(os.environ.get("YCORE_HONEST_SESSIONS", "200"))
FIRST_SEED = int(os.environ.get("YCORE_SEED", "1"))
PROCESSES = int(os.environ.get("YCORE_PROCESSES", os.cpu_count() or 1))
AT_ONCE = 50
"""How many sessions are asked for at once, and made by one process."""
MAX_FAILURES = 5

MESSAGES: dict[str, Callable[[bytes], Any]] = {
    "u": Update,
    "s": SyncStep2,
    "a": AwarenessUpdate,
}


def refusal(frames: Iterable[Frame]) -> str | None:
    """Pass frames through a room; returns which was refused, and how, if any was."""
    room = Room("doc")
    members: dict[int, Member] = {}
    for at, frame in enumerate(frames):
        if frame.client not in members:
            members[frame.client] = member = room.join(now=at)[0]
            room.receive(member, SyncStep1(b"\0").encode(), now=at)
        message = MESSAGES[frame.kind](frame.payload).encode()
        for effect in room.receive(members[frame.client], message, now=at):
            if isinstance(effect, Close):
                return f"frame {at} was refused with {effect.code}: {effect.reason}"
        counters = room.counters
        refused = {
            name: count
            for name in counters.__slots__
            if name != "refused_awareness" and (count := getattr(counters, name))
        }
        if refused:
            return f"frame {at} was counted: {refused}"
    return None


def fewest(frames: list[Frame]) -> list[Frame]:
    """Leave out what is not needed for a refusal."""
    size = len(frames) // 2
    while size > 0:
        at = 0
        while at < len(frames):
            fewer = frames[:at] + frames[at + size :]
            if refusal(fewer):
                frames = fewer
            else:
                at += size
        size //= 2
    return frames


@dataclass
class Report:
    """What came of some sessions."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __add__(self, other: Report) -> Report:
        return Report(self.counts + other.counts, self.failures + other.failures)


def try_yjs(seeds: Sequence[int]) -> Report:
    report = Report()
    with Oracle(require_node()) as oracle:
        for session in oracle.honest(seeds):
            report.counts["sessions"] += 1
            report.counts["frames"] += len(session.frames)
            report.counts.update(f"clients of {name}" for name in session.versions)
            if refusal(session.frames):
                frames = fewest(session.frames)
                report.failures.append(
                    f"YCORE_SEED={session.seed}, {session.versions}, {session.classes}: "
                    f"{refusal(frames)}\n"
                    + "\n".join(f"{f.client} {f.kind} {f.payload.hex()}" for f in frames)
                )
    return report


def in_parts(try_some: Callable[[Sequence[int]], Report], sessions: int) -> Report:
    """Try all seeds, in a few processes if they are many."""
    seeds = range(FIRST_SEED, FIRST_SEED + sessions)
    parts = [seeds[at : at + AT_ONCE] for at in range(0, sessions, AT_ONCE)]
    report = Report()
    with get_context("spawn").Pool(min(PROCESSES, len(parts)), maxtasksperchild=20) as pool:
        for part in pool.imap_unordered(try_some, parts):
            report += part
            if len(report.failures) >= MAX_FAILURES:
                break
    return report


def test_nothing_of_yjs_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    require_node()
    report = in_parts(try_yjs, SESSIONS)
    with capsys.disabled():
        print(f"\n{dict(sorted(report.counts.items()))}, {len(report.failures)} refused")
    assert not report.failures, "\n\n".join(report.failures)
    assert report.counts["sessions"] == SESSIONS
