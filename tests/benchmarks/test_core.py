"""What the core's steps cost: `make bench`. Nothing here is asserted about time."""

from __future__ import annotations

import pytest
from build import anys, item, text, type_, update
from made import ASK_ALL, AUTHOR, keystrokes, room_of
from pytest_benchmark.fixture import BenchmarkFixture

from ycore import Awareness, AwarenessEntry, Room, StructStore, check_update
from ycore.awareness import decode_awareness, encode_awareness
from ycore.messages import (
    AwarenessUpdate,
    Message,
    PermissionDenied,
    QueryAwareness,
    SyncStep1,
    SyncStep2,
    Update,
    decode,
)
from ycore.updates import encode_state_vector


def prose(size: int) -> bytes:
    """An XML document of short paragraphs, as ProseMirror's binding writes it."""
    structs: list[bytes] = []
    clock = 0
    written = 0
    while written < size:
        paragraph = clock
        structs += [
            item(
                type_(3, "paragraph"),
                parent="prosemirror",
                origin=(AUTHOR, clock - 4) if clock else None,
            ),
            item(anys("left"), parent=(AUTHOR, paragraph), key="textAlign"),
            item(type_(6), parent=(AUTHOR, paragraph)),
            item(text("some words in a paragraph"), parent=(AUTHOR, paragraph + 2)),
        ]
        clock += 3 + len("some words in a paragraph")
        written += sum(map(len, structs[-4:]))
    return update({(AUTHOR, 0): structs})


UPDATES = {
    "keystroke": keystrokes(2)[1],
    "text 1 KB": update({(AUTHOR, 0): [item(text("x" * 1000))]}),
    "text 100 KB": update({(AUTHOR, 0): [item(text("x" * 100_000))]}),
    "text 2 MB": update({(AUTHOR, 0): [item(text("x" * 2_000_000))]}),
    "prose 1 KB": prose(1000),
    "prose 100 KB": prose(100_000),
    "prose 2 MB": prose(2_000_000),
}
STATE = '{"user":{"name":"Ada","color":"#30bced"},"cursor":{"anchor":123,"head":130}}'


def states(count: int, clock: int = 1) -> bytes:
    """The payload of an awareness message: so many people with a cursor."""
    return encode_awareness([AwarenessEntry(AUTHOR + i, clock, STATE) for i in range(count)])


MESSAGES: dict[str, Message] = {
    "SyncStep1 of 20 clients": SyncStep1(encode_state_vector({AUTHOR + i: 1 for i in range(20)})),
    "SyncStep2 of 100 KB": SyncStep2(UPDATES["prose 100 KB"]),
    "Update, a keystroke": Update(UPDATES["keystroke"]),
    "AwarenessUpdate": AwarenessUpdate(states(1)),
    "PermissionDenied": PermissionDenied("this connection is read-only"),
    "QueryAwareness": QueryAwareness(),
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_decode_message(benchmark: BenchmarkFixture, kind: str) -> None:
    benchmark(decode, MESSAGES[kind].encode())


@pytest.mark.parametrize("kind", MESSAGES)
def test_encode_message(benchmark: BenchmarkFixture, kind: str) -> None:
    benchmark(MESSAGES[kind].encode)


@pytest.mark.parametrize("kind", UPDATES)
def test_check(benchmark: BenchmarkFixture, kind: str) -> None:
    benchmark(check_update, UPDATES[kind])


@pytest.mark.parametrize("kind", UPDATES)
def test_add_to_an_empty_store(benchmark: BenchmarkFixture, kind: str) -> None:
    benchmark(lambda: StructStore().add(UPDATES[kind]))


def test_add_a_thousand_keystrokes(benchmark: BenchmarkFixture) -> None:
    updates = keystrokes(1000)

    def add() -> None:
        store = StructStore()
        for data in updates:
            store.add(data)

    benchmark(add)


def test_encode_prose_100_kb(benchmark: BenchmarkFixture) -> None:
    store = StructStore()
    store.add(UPDATES["prose 100 KB"])
    benchmark(store.encode)


@pytest.mark.parametrize("kind", ["all", "the last keystroke", "nothing"])
def test_join(benchmark: BenchmarkFixture, kind: str) -> None:
    """What a joiner lacks of a document of 20 authors, 200 KB."""
    store = StructStore()
    for author in range(20):
        for data in keystrokes(500, AUTHOR + author):
            store.add(data)
        store.add(update({(author, 0): [item(text("x" * 10_000))]}))
    known = store.state_vector()
    if kind == "all":
        known = {}
    elif kind == "the last keystroke":
        known[AUTHOR] -= 1
    state_vector = encode_state_vector(known)
    benchmark(store.diff, state_vector)


@pytest.mark.parametrize("typing", [False, True])
def test_a_thousand_join(benchmark: BenchmarkFixture, typing: bool) -> None:
    """A herd asks for a document of 2 MB, all of it; somebody may be typing between any two."""
    frames = [Update(data).encode() for data in keystrokes(1000)]

    def join(room: Room) -> None:
        for frame in frames:
            if typing:
                room.receive(room.members[0], frame, now=0)
            member, _ = room.join(now=0)
            room.receive(member, ASK_ALL, now=0)

    def room_of_prose() -> Room:
        room = room_of(1)
        text_ = [item(text("some words"), parent="prosemirror") for _ in range(80_000)]
        room.receive(room.members[0], Update(update({(1, 0): text_})).encode(), now=0)
        return room

    benchmark.pedantic(join, setup=lambda: ((room_of_prose(),), {}), rounds=5)


@pytest.mark.parametrize("members", [10, 100, 1000])
def test_broadcast_a_thousand_keystrokes(benchmark: BenchmarkFixture, members: int) -> None:
    """The cost in the core does not grow with the members."""
    frames = [Update(data).encode() for data in keystrokes(1000)]

    def broadcast(room: Room) -> None:
        author = room.members[0]
        for frame in frames:
            room.receive(author, frame, now=0)

    benchmark.pedantic(broadcast, setup=lambda: ((room_of(members),), {}), rounds=10)


def test_burst_in_one_frame(benchmark: BenchmarkFixture) -> None:
    """A thousand keystrokes in one frame, as y-websocket 4 may send what was typed offline."""
    frame = b"".join(Update(data).encode() for data in keystrokes(1000))

    def take_in(room: Room) -> None:
        room.receive(room.members[0], frame, now=0)

    benchmark.pedantic(take_in, setup=lambda: ((room_of(10),), {}), rounds=10)


def test_burst_of_fifty_authors(benchmark: BenchmarkFixture) -> None:
    """Fifty members type twenty keystrokes each, in turn."""
    typed = [keystrokes(20, AUTHOR + i) for i in range(50)]
    frames = [[Update(data).encode() for data in its] for its in typed]

    def take_in(room: Room) -> None:
        members = room.members
        for n in range(20):
            for member, its in zip(members, frames, strict=True):
                room.receive(member, its[n], now=0)

    benchmark.pedantic(take_in, setup=lambda: ((room_of(50),), {}), rounds=10)


def test_decode_awareness_of_100(benchmark: BenchmarkFixture) -> None:
    benchmark(decode_awareness, states(100))


def test_encode_awareness_of_100(benchmark: BenchmarkFixture) -> None:
    awareness = Awareness()
    awareness.apply(decode_awareness(states(100)), 0)
    benchmark(lambda: encode_awareness(awareness.entries()))


@pytest.mark.parametrize("members", [10, 100, 1000])
def test_a_thousand_cursor_moves(benchmark: BenchmarkFixture, members: int) -> None:
    """Awareness from one member to all."""
    frames = [AwarenessUpdate(states(1, clock)).encode() for clock in range(1, 1001)]

    def move(room: Room) -> None:
        for frame in frames:
            room.receive(room.members[0], frame, now=0)

    benchmark.pedantic(move, setup=lambda: ((room_of(members),), {}), rounds=10)
