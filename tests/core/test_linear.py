"""No input costs more than in proportion to its length: counted in lines of Python, not in time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest
from worst import ORDERS, WORST

from ycore import Room
from ycore.doc import Doc

SHORT, LONG = 6_000, 24_000
FEW, MANY = 2_100, 3_300
"""Authors: so many that an update of theirs is taken in part by part."""


def lines_of(call: Callable[[], object]) -> int:
    """How many lines a call runs."""
    lines = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines


def lines_run(frame: bytes, *, times: int = 1) -> int:
    """How many lines it takes a room to take a frame in, the last of several times."""
    lines = 0
    room = Room("doc")
    for time in range(times):
        member, _ = room.join(now=time)
        lines = lines_of(partial(room.receive, member, frame, now=time))
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


@pytest.mark.source
@pytest.mark.parametrize("name", ORDERS)
def test_in_whatever_order_items_come_a_document_takes_them_in_at_once(name: str) -> None:
    """Where Yjs needs no longer either: see `ORDERS`."""
    cost, more = (lines_of(partial(Doc(1).apply, ORDERS[name](size))) for size in (FEW, MANY))
    assert more < 1.3 * MANY / FEW * cost
