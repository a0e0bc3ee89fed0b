"""The hub: rooms by name, loading and unloading, with a virtual clock."""

from __future__ import annotations

import pytest
from build import typed
from script import edit, plain, step1

from ycore import CloseCode, Effect, Hub, Load, Member, Room, Settings, State, Unload

A, B = typed(1, "ab")


def opened(hub: Hub, name: str, now: float = 0) -> Member:
    member, effects = hub.join(name, now=now)
    if any(isinstance(effect, Load) for effect in effects):
        member.room.opened(now=now)
    return member


def test_a_room_is_loaded_once_for_all_who_join_meanwhile() -> None:
    hub = Hub()
    one, effects = hub.join("doc", now=0)
    assert effects == [Load(one.room)]
    two, effects = hub.join("doc", now=0, read_only=True)
    assert effects == []
    assert two.room is one.room is hub.rooms["doc"]
    assert two.read_only
    other, effects = hub.join("other", now=0)
    assert effects == [Load(other.room)]
    assert [e[2] for e in plain(one.room.opened(now=0))] == [[one], [two]]
    three, effects = hub.join("doc", now=0)
    assert plain(effects) == [("send", ("step1", {}), [three])]


def test_a_hub_has_only_so_many_rooms() -> None:
    hub = Hub(Settings(max_rooms=1))
    opened(hub, "doc")
    late, effects = hub.join("other", now=0)
    assert plain(effects) == [("close", late, 1013)]
    assert list(hub.rooms) == ["doc"]
    assert late.room.leave(late, now=0) == []
    assert opened(hub, "doc") in hub.rooms["doc"].members


def test_the_room_that_was_empty_for_longest_gives_way_to_one_too_many() -> None:
    hub = Hub(Settings(max_rooms=5))
    rooms = {}
    left_at = {"in use": None, "late": 3, "early": 1, "back": 0, "back later": 2}
    for name, left in left_at.items():
        member = opened(hub, name)
        rooms[name] = member.room
        if left is not None:
            member.room.leave(member, now=left)
    back = opened(hub, "back", now=4)
    one, effects = hub.join("one", now=5)
    assert effects == [Unload(rooms["early"], 1), Load(one.room)]
    opened(hub, "back later", now=5)
    two, effects = hub.join("two", now=5)
    assert effects == [Unload(rooms["late"], 1), Load(two.room)]
    back.room.leave(back, now=6)
    three, effects = hub.join("three", now=7)
    assert effects == [Unload(rooms["back"], 2), Load(three.room)]
    late, effects = hub.join("four", now=7)
    assert plain(effects) == [("close", late, 1013)]
    assert hub.handle_timeout(now=14) == []  # none is told again
    for name, generation in (("early", 1), ("late", 1), ("back", 2)):
        assert hub.unloaded(rooms[name], generation, now=8)
    assert list(hub.rooms) == ["in use", "back later", "one", "two", "three"]


def test_who_comes_back_to_a_room_that_gives_way_keeps_it() -> None:
    hub = Hub(Settings(max_rooms=1))
    member = opened(hub, "doc")
    room = member.room
    room.leave(member, now=1)
    other, effects = hub.join("other", now=2)
    assert effects == [Unload(room, 1), Load(other.room)]
    back, effects = hub.join("doc", now=2)
    assert plain(effects) == [("send", ("step1", {}), [back])]
    assert back.room is room
    assert not hub.unloaded(room, 1, now=3)
    late, effects = hub.join("third", now=3)
    assert plain(effects) == [("close", late, 1013)]  # there are more than enough
    room.leave(back, now=4)
    third, effects = hub.join("third", now=5)
    assert effects[0] == Unload(room, 2)
    assert plain(effects[1:]) == [("close", third, 1013)]  # the other one is in use
    assert not hub.unloaded(room, 1, now=5)
    other.room.opened(now=5)
    other.room.leave(other, now=6)
    third, effects = hub.join("third", now=7)
    assert effects == [Unload(other.room, 1), Load(third.room)]


def test_a_room_gives_way_only_when_nothing_is_left_to_be_done_in_it() -> None:
    hub = Hub(Settings(max_rooms=1))
    member, _ = hub.join("doc", now=0)
    member.room.leave(member, now=0)
    late, effects = hub.join("other", now=1)  # it still loads
    assert plain(effects) == [("close", late, 1013)]
    member.room.opened(now=2)
    other, effects = hub.join("other", now=2)
    assert effects == [Unload(member.room, 1), Load(other.room)]


def test_only_so_many_rooms_wait_for_the_store_to_finish_with_them() -> None:
    hub = Hub(Settings(max_rooms=1))
    for i in range(65):
        member = opened(hub, str(i), now=i)
        member.room.leave(member, now=i)
    late, effects = hub.join("late", now=99)
    assert plain(effects) == [("close", late, 1013)]
    assert len(hub.rooms) == 65
    assert hub.unloaded(hub.rooms["0"], 1, now=99)
    opened(hub, "late", now=99)
    assert hub.rooms["late"].members


@pytest.mark.source
def test_not_all_rooms_are_looked_at_for_each_one_that_gives_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    number = 500
    hub = Hub(Settings(max_rooms=number))
    for i in range(number):
        member = opened(hub, f"before {i}")
        member.room.leave(member, now=i)
    looked = 0
    may_unload = Hub._may_unload

    def count(self: Hub, room: Room) -> bool:
        nonlocal looked
        looked += 1
        return may_unload(self, room)

    monkeypatch.setattr(Hub, "_may_unload", count)
    for i in range(number):
        member, effects = hub.join(f"after {i}", now=number)
        assert isinstance(effects[0], Unload)
        assert hub.unloaded(effects[0].room, effects[0].generation, now=number)
    assert looked <= 4 * number


def test_a_failed_load_refuses_those_who_wait_and_the_next_join_loads_afresh() -> None:
    hub = Hub()
    one, _ = hub.join("doc", now=0)
    one.room.receive(one, edit(A), now=0)
    effects = hub.close(one.room, CloseCode.TRY_AGAIN_LATER, "store failed", now=0)
    assert plain(effects) == [("close", one, 1013)]
    two, effects = hub.join("doc", now=0)
    assert effects == [Load(two.room)]
    assert two.room is not one.room
    assert hub.close(one.room, CloseCode.NORMAL, "", now=0) == []
    assert hub.rooms["doc"] is two.room


def test_an_idle_room_is_unloaded() -> None:
    hub = Hub(Settings(idle_timeout=30))
    member = opened(hub, "doc")
    room = member.room
    assert hub.next_timeout() == 15  # the keepalive
    room.leave(member, now=5)
    assert hub.handle_timeout(now=34.9) == []
    assert hub.next_timeout() == 35
    assert hub.handle_timeout(now=35) == [(room, [Unload(room, 1)])]
    assert hub.handle_timeout(now=99) == []  # once
    assert hub.unloaded(room, 1, now=36)
    assert hub.rooms == {}
    assert hub.next_timeout() is None
    assert room.state is State.CLOSED
    assert not hub.unloaded(room, 1, now=36)


def test_an_unload_that_meets_a_join_is_abandoned() -> None:
    hub = Hub(Settings(idle_timeout=30))
    member = opened(hub, "doc")
    room = member.room
    room.leave(member, now=0)
    assert hub.handle_timeout(now=30) == [(room, [Unload(room, 1)])]
    back = opened(hub, "doc", now=31)
    room.receive(back, edit(A), now=31)
    assert not hub.unloaded(room, 1, now=32)
    assert back.room is room
    # It leaves again, and the room is unloaded once more: the first store call comes too late
    # even then.
    room.leave(back, now=33)
    assert not hub.unloaded(room, 1, now=34)
    assert hub.handle_timeout(now=62) == []
    assert hub.handle_timeout(now=63) == [(room, [Unload(room, 2)])]
    assert not hub.unloaded(room, 1, now=64)
    assert hub.unloaded(room, 2, now=64)


def test_a_room_that_loads_is_not_unloaded_before() -> None:
    hub = Hub(Settings(idle_timeout=30))
    member, _ = hub.join("doc", now=0)
    room = member.room
    room.leave(member, now=1)
    assert hub.handle_timeout(now=100) == []
    room.opened(now=100)
    assert hub.handle_timeout(now=115) == [(room, [Unload(room, 1)])]


def test_timeouts_of_rooms_are_the_hubs() -> None:
    hub = Hub()
    one, two = opened(hub, "one", now=0), opened(hub, "two", now=5)
    assert hub.next_timeout() == 15
    ((room, effects),) = hub.handle_timeout(now=15)
    assert room is one.room
    assert plain(effects) == [("send", ("awareness",), [one])]
    ((room, effects),) = hub.handle_timeout(now=20)
    assert room is two.room


@pytest.mark.source
def test_only_rooms_that_are_due_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    for i in range(1000):
        opened(hub, str(i), now=i / 1000)
    looked = 0

    def count(room: Room, *, now: float) -> list[Effect]:
        nonlocal looked
        looked += 1
        return handle_timeout(room, now=now)

    handle_timeout = Room.handle_timeout
    monkeypatch.setattr(Room, "handle_timeout", count)
    due = 0.0
    for _ in range(50):
        due = hub.next_timeout() or 0
        assert len(hub.handle_timeout(now=due)) == 1
    assert looked == 50
    assert due == 15.049


def test_a_timeout_shorter_than_the_keepalive_is_noticed() -> None:
    hub = Hub(Settings(stall_timeout=0.01))
    slow, other = opened(hub, "doc"), opened(hub, "doc")
    slow.room.stall(slow, now=0.2)
    closed = []
    for _ in range(5):
        due = hub.next_timeout()
        assert due is not None
        for _, effects in hub.handle_timeout(now=due):
            closed += plain(effects)
    assert closed == [("close", slow, 1013)]
    assert other.room.members == (other,)


def test_rooms_cant_be_changed_from_outside() -> None:
    with pytest.raises(TypeError):
        Hub().rooms["doc"] = Room("doc")  # type: ignore[index]


def test_a_room_comes_back_with_what_was_persisted() -> None:
    hub = Hub()
    member = opened(hub, "doc")
    assert plain(member.room.receive(member, edit(A), now=0)) == [("persist", A)]
    hub.close(member.room, CloseCode.GOING_AWAY, "restart", now=0)
    again, _ = hub.join("doc", now=1)
    again.room.load(A)
    again.room.receive(again, step1(), now=1)
    assert plain(again.room.opened(now=1)) == [
        ("send", ("step1", {1: 1}), [again]),
        ("send", ("step2", A), [again]),
    ]
