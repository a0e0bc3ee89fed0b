"""What the core's steps cost: `make bench`. Nothing here is asserted about time."""

from __future__ import annotations

import pytest
from build import anys, item, text, type_, update
from pytest_benchmark.fixture import BenchmarkFixture

from ycore import Room, StructStore, check_update
from ycore.lib0 import write_var_uint
from ycore.messages import SyncStep1, Update

AUTHOR = 3_000_000_000  # ids of real clients are random and 32 bits long


def keystrokes(count: int) -> list[bytes]:
    return [
        update({(AUTHOR, i): [item(text("x"), origin=(AUTHOR, i - 1) if i else None)]})
        for i in range(count)
    ]


def prose(size: int) -> bytes:
    """An XML document of short paragraphs, as ProseMirror's binding writes it."""
    structs: list[bytes] = []
    clock = 0
    while sum(map(len, structs)) < size:
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
    return update({(AUTHOR, 0): structs})


UPDATES = {
    "keystroke": keystrokes(2)[1],
    "text 1 KB": update({(AUTHOR, 0): [item(text("x" * 1000))]}),
    "text 100 KB": update({(AUTHOR, 0): [item(text("x" * 100_000))]}),
    "prose 1 KB": prose(1000),
    "prose 100 KB": prose(100_000),
}


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


@pytest.mark.parametrize("members", [10, 100, 1000])
def test_broadcast_a_thousand_keystrokes(benchmark: BenchmarkFixture, members: int) -> None:
    """The cost in the core does not grow with the members."""
    frames = [Update(data).encode() for data in keystrokes(1000)]
    step1 = bytearray()
    write_var_uint(step1, 0)

    def setup() -> tuple[tuple[Room], dict[str, object]]:
        room = Room("doc")
        for _ in range(members):
            member, _ = room.join(now=0)
            room.receive(member, SyncStep1(bytes(step1)).encode(), now=0)
        return (room,), {}

    def broadcast(room: Room) -> None:
        author = room.members[0]
        for frame in frames:
            room.receive(author, frame, now=0)

    benchmark.pedantic(broadcast, setup=setup, rounds=10)
