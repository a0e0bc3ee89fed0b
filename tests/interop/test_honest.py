"""Nothing that an honest client sends is refused.

Random sessions of clients of many engines go through a room: of Yjs 13 from the oldest version to
the newest, of Yjs 14, pycrdt and y-py. They send all that such clients send (`oracle_honest.mjs`,
`honest_authors.py`): edits, batches, states with structs that wait, restored snapshots; late, twice
or never. No frame may cost its sender the connection, and none may be counted as refused.

The campaign: YCORE_HONEST_SESSIONS=100000 .venv/bin/pytest -s tests/interop/test_honest.py
One session again: YCORE_SEED=1234 YCORE_HONEST_SESSIONS=1 ...
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from random import Random
from typing import Any, NamedTuple

import honest_authors
import pytest
from engines import BINDABLE, require
from nodejs import require_node
from oracle import Disagreement, Frame, Oracle, View
from test_agreement import contested

from ycore import Close, Member, Persist, Room, Send
from ycore.messages import AwarenessUpdate, SyncStep1, SyncStep2, Update, decode
from ycore.updates import merge_updates

SESSIONS = int(os.environ.get("YCORE_HONEST_SESSIONS", "200"))
FIRST_SEED = int(os.environ.get("YCORE_SEED", "1"))
PROCESSES = int(os.environ.get("YCORE_PROCESSES", os.cpu_count() or 1))
AT_ONCE = 50
"""How many sessions are asked for at once, and made by one process."""
MAX_FAILURES = 5

MESSAGES: dict[str, Callable[[bytes], Any]] = {
    "u": Update,
    "v": SyncStep1,
    "s": SyncStep2,
    "a": AwarenessUpdate,
}


class Refusal(NamedTuple):
    frame: Frame
    how: str


class Outcome(NamedTuple):
    """What became of frames in a room."""

    refused: Refusal | None
    newcomer: list[bytes]
    """What somebody is sent who joins afterwards."""
    stored: list[bytes]
    left_out: int


def outcome(frames: Iterable[Frame]) -> Outcome:
    room = Room("doc")
    members: dict[int, Member] = {}
    stored: list[bytes] = []

    def refused() -> Refusal | None:
        for at, frame in enumerate(frames):
            if frame.client not in members:
                members[frame.client] = member = room.join(now=at)[0]
                room.receive(member, SyncStep1(b"\0").encode(), now=at)
            message = MESSAGES[frame.kind](frame.payload).encode()
            for effect in room.receive(members[frame.client], message, now=at):
                if isinstance(effect, Close):
                    return Refusal(frame, f"{effect.code}: {effect.reason}")
                if isinstance(effect, Persist):
                    stored.append(effect.update)
            counted = {
                name: count
                for name in room.counters.__slots__
                # An awareness state of somebody else's, or from before, is ignored. And Yjs itself
                # has written wrong clocks: what it sent so, it is asked for again.
                if name not in ("refused_awareness", "left_out")
                and (count := getattr(room.counters, name))
            }
            if counted:
                return Refusal(frame, f"counted: {counted}")
        return None

    why = refused()
    member, _ = room.join(now=0)
    newcomer = [
        message.update
        for effect in room.receive(member, SyncStep1(b"\0").encode(), now=0)
        if isinstance(effect, Send)
        for message in decode(effect.frame)
        if isinstance(message, Update | SyncStep2)
    ]
    return Outcome(why, newcomer, stored, room.counters.left_out)


def refusal(frames: Iterable[Frame]) -> str | None:
    refused = outcome(frames).refused
    return None if refused is None else refused.how


def fewest(frames: list[Frame], fails: Callable[[list[Frame]], bool]) -> list[Frame]:
    """Leave out what is not needed to fail."""
    size = len(frames) // 2
    while size > 0:
        at = 0
        while at < len(frames):
            fewer = frames[:at] + frames[at + size :]
            if fails(fewer):
                frames = fewer
            else:
                at += size
        size //= 2
    return frames


def in_hex(frames: Iterable[Frame]) -> str:
    return "\n".join(f"{frame.client} {frame.kind} {frame.payload.hex()}" for frame in frames)


@dataclass
class Report:
    """What came of some sessions."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def show(self) -> None:
        """Print what was counted, and fail where something was refused."""
        print(f"\n{dict(sorted(self.counts.items()))}, {len(self.failures)} refused or different")
        assert not self.failures, "\n\n".join(self.failures)

    def __add__(self, other: Report) -> Report:
        return Report(self.counts + other.counts, self.failures + other.failures)


def try_yjs(seeds: Sequence[int]) -> Report:
    report = Report()
    with Oracle(require_node()) as oracle:
        for session in oracle.honest(seeds):
            report.counts["sessions"] += 1
            report.counts["frames"] += len(session.frames)
            report.counts.update(f"clients of {name}" for name in session.versions)
            came = outcome(session.frames)
            report.counts["structs left out"] += came.left_out
            if came.refused:
                frames = fewest(session.frames, lambda some: bool(refusal(some)))
                report.failures.append(
                    f"YCORE_SEED={session.seed}, {session.versions}, {session.classes}: "
                    f"{refusal(frames)}\n{in_hex(frames)}"
                )
    return report


def try_engine(name: str, seeds: Sequence[int]) -> Report:
    report = Report()
    kind = getattr(honest_authors, name)
    with Oracle(require_node()) as oracle:
        for seed in seeds:
            report.counts["sessions"] += 1
            random = Random(seed)
            heard = []
            if name == "Pycrdt" and random.random() < 0.4:
                heard = oracle.session(seed, steps=15).updates
            frames = honest_authors.honest_frames(kind, seed, heard)
            frames += passed_on(oracle, frames, random)
            report.counts["frames"] += len(frames)
            verdict = judged(oracle, frames)
            report.counts[verdict if verdict in VERDICTS else "wrong"] += 1
            if verdict not in VERDICTS:
                frames = fewest(frames, lambda some: judged(oracle, some) not in VERDICTS)
                report.failures.append(
                    f"YCORE_SEED={seed}: {judged(oracle, frames)}\n{in_hex(frames)}"
                )
    return report


def passed_on(oracle: Oracle, frames: list[Frame], random: Random) -> list[Frame]:
    """What browsers and providers send that heard of these: their states, and merged updates."""
    heard = [[f.payload for f in random.sample(frames, random.randint(0, len(frames)))]]
    try:
        updates = oracle.states(heard) if random.random() < 0.5 else oracle.merge(heard)
    except RuntimeError:  # Yjs can't read it either
        return []
    return [Frame(99, "s", update) for update in updates]


VERDICTS = ("agrees", "Yjs throws on it", "copies differ")


def whole_characters(seen: dict[str, str]) -> dict[str, str]:
    """What Yjs shows of text under a key is its last code unit: perhaps half a character, which is
    U+FFFD once it was on its own. y-py writes attributes so."""
    return {what: re.sub(r"\\ud[89a-f]..", "\ufffd", text) for what, text in seen.items()}


def judged(oracle: Oracle, frames: list[Frame]) -> str:
    """Whether a newcomer sees, and the store has, what Yjs shows of the frames."""
    updates = [frame.payload for frame in frames]
    refused, newcomer, stored, _ = outcome(frames)
    alone = [] if refused is None else [refused.frame.payload]
    seen = oracle.seen([updates, alone, newcomer, [merge_updates(stored)]])
    direct, *others = map(whole_characters, seen)
    if "threw" in direct or "threw" in seen[1]:
        return "Yjs throws on it"
    if refused is not None:
        return refused.how
    if all(other == direct for other in others[1:]):
        return "agrees"
    if contested(updates):
        return "copies differ"
    try:
        # What Yjs makes of it may depend on what came in which transaction.
        oracle.check(updates, [View("what a newcomer is sent", newcomer)])
    except Disagreement as error:
        return str(error)
    return "agrees"


def in_parts(try_some: Callable[[Sequence[int]], Report], sessions: int) -> Report:
    """Try all seeds, in a few processes. Engines have been known to take theirs down with them."""
    seeds = range(FIRST_SEED, FIRST_SEED + sessions)
    parts = [seeds[at : at + AT_ONCE] for at in range(0, sessions, AT_ONCE)]
    report = Report()
    context = get_context("spawn")
    while parts and len(report.failures) < MAX_FAILURES:
        # New processes every now and then, since engines leak. (What the pool itself offers for
        # that, max_tasks_per_child, hangs on CPython 3.11.)
        some, parts = parts[: PROCESSES * 20], parts[PROCESSES * 20 :]
        with ProcessPoolExecutor(min(PROCESSES, len(some)), context) as pool:
            for part in pool.map(try_some, some):
                report += part
                if len(report.failures) >= MAX_FAILURES:
                    pool.shutdown(cancel_futures=True)
                    break
    return report


def test_nothing_of_yjs_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    require_node()
    report = in_parts(try_yjs, SESSIONS)
    with capsys.disabled():
        report.show()
    assert report.counts["sessions"] == SESSIONS


@pytest.mark.parametrize("name", BINDABLE)
def test_nothing_of_an_engine_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What Yjs can read of it is taken, and everybody sees of it what Yjs shows of it."""
    require_node()
    require(name)
    report = in_parts(partial(try_engine, name), SESSIONS // 10 if SESSIONS > 1000 else SESSIONS)
    with capsys.disabled():
        report.show()
    assert report.counts["agrees"] > 0.8 * report.counts["sessions"]


def test_attributes_of_ypy_stay_whole() -> None:
    """It writes them as text under a key. Yjs shows the last letter, y-py and pycrdt the whole."""
    require("YPy")
    import y_py  # noqa: PLC0415

    author = y_py.YDoc(1)
    with author.begin_transaction() as transaction:
        element = author.get_xml_element("x").insert_xml_element(transaction, 0, "p")
        element.set_attribute(transaction, "k", "text")
    update = bytes(y_py.encode_state_as_update(author))
    refused, newcomer, *_ = outcome([Frame(1, "u", update)])
    assert refused is None
    reader = y_py.YDoc(2)
    for news in newcomer:
        y_py.apply_update(reader, news)
    assert reader.get_xml_element("x").first_child.get_attribute("k") == "text"
