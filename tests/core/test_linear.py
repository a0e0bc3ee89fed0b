"""No input costs more than in proportion to its length: counted in lines of Python, not in time."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
from worst import WORST

from ycore import Room

SHORT, LONG = 6_000, 24_000


def lines_run(frame: bytes, *, times: int = 1) -> int:
    """How many lines it takes a room to take a frame in, the last of several times."""
    lines = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    room = Room("doc")
    before = sys.gettrace()
    for time in range(times):
        member, _ = room.join(now=time)
        lines = 0
        sys.settrace(trace)
        try:
            room.receive(member, frame, now=time)
        finally:
            sys.settrace(before)
    return lines


@pytest.mark.source
@pytest.mark.parametrize("name", WORST)
@pytest.mark.parametrize("times", [1, 2], ids=["new", "known"])
def test_cost_grows_with_length_only(name: str, times: int) -> None:
    short, long = WORST[name](SHORT), WORST[name](LONG)
    growth = len(long) / len(short)
    cost, more = lines_run(short, times=times), lines_run(long, times=times)
    assert more < 1.6 * growth * cost + 200
    assert more < 45 * len(long) + 200
