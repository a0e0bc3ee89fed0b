"""What a byte costs at worst: the table of `SECURITY.md`. `make bench ARGS='-k worst'`."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from worst import WORST

from ycore import Room

SIZE = 400_000


@pytest.mark.parametrize("name", WORST)
def test_worst(benchmark: BenchmarkFixture, name: str) -> None:
    frame = WORST[name](SIZE)

    def take_in() -> None:
        room = Room("doc")
        member, _ = room.join(now=0)
        room.receive(member, frame, now=0)

    benchmark.pedantic(take_in, rounds=3)
    benchmark.extra_info["ns per byte"] = round(benchmark.stats.stats.min * 1e9 / len(frame), 1)
