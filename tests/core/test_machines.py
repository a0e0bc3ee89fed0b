"""Any interleaving: a hub, a store that takes its time, and clients that come and go.

Clients are modelled by struct stores of their own. Effects wait in a queue for each room, as they
would behind a slow store, and are carried out one by one whenever the machine feels like it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from unittest.mock import patch

from build import item, text, update
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from script import receivers

from ycore import (
    Close,
    CloseCode,
    Effect,
    Hub,
    Load,
    Member,
    Persist,
    Room,
    Send,
    Settings,
    StructStore,
    Unload,
)
from ycore.awareness import OUTDATED_AFTER, Awareness, decode_awareness, encode_awareness
from ycore.messages import AwarenessUpdate, SyncStep1, SyncStep2, Update, decode
from ycore.updates import parse_update

NAMES = ("doc", "other")
CLIENTS = 4
which = st.integers(0, CLIENTS - 1)


@dataclass(eq=False)
class Client:
    id: int
    room: str = "doc"
    doc: StructStore = field(default_factory=StructStore)
    clock: int = 0
    awareness: Awareness = field(init=False)
    member: Member | None = None
    to_server: deque[bytes] = field(default_factory=deque)
    to_client: deque[bytes] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.awareness = Awareness(self.id)

    def write(self) -> None:
        origin = (self.id, self.clock - 1) if self.clock else None
        data = update({(self.id, self.clock): [item(text("x"), origin=origin)]})
        self.clock += 1
        self.doc.add(data)
        self.say(Update(data).encode())

    def say(self, frame: bytes) -> None:
        if self.member is not None:
            self.to_server.append(frame)

    def hear(self, frame: bytes, now: float) -> None:
        for message in decode(frame):
            if isinstance(message, SyncStep1):
                self.say(SyncStep2(self.doc.diff(message.state_vector)).encode())
            elif isinstance(message, SyncStep2 | Update):
                self.doc.add(message.update)
            elif isinstance(message, AwarenessUpdate):
                changed = self.awareness.apply(decode_awareness(message.payload), now)
                if changed:  # as y-websocket does
                    self.say(AwarenessUpdate(encode_awareness(changed)).encode())

    def disconnected(self, now: float) -> None:
        self.member = None
        self.awareness.remove(self.awareness.states.keys() - {self.id}, now)
        self.to_server.clear()
        self.to_client.clear()


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.hub = Hub(Settings(idle_timeout=20, stall_timeout=40))
        self.clients = [Client(id_ + 1, NAMES[id_ == CLIENTS - 1]) for id_ in range(CLIENTS)]
        self.stored: dict[str, list[bytes]] = {}
        self.persisted = {name: StructStore() for name in NAMES}
        self.queues: dict[Room, deque[Effect]] = {}

    # -- what a driver does

    def queue(self, room: Room, effects: list[Effect]) -> None:
        self.queues.setdefault(room, deque()).extend(effects)

    def carry_out(self, room: Room) -> None:
        effect = self.queues[room].popleft()
        if isinstance(effect, Persist):
            assert not isinstance(room, str)
            self.stored.setdefault(room.name, []).append(effect.update)
            self.persisted[room.name].add(effect.update)
        elif isinstance(effect, Load):
            for data in self.stored.get(room.name, ()):
                room.load(data)
            self.queue(room, room.opened(now=self.now))
        elif isinstance(effect, Unload):
            self.hub.unloaded(effect.room, effect.generation, now=self.now)
        elif isinstance(effect, Close):
            if effect.member.link is not None:
                effect.member.link.disconnected(self.now)
                effect.member.link = None
        elif isinstance(effect, Send):
            (message,) = decode(effect.frame)
            if isinstance(message, Update | SyncStep2):
                assert self.persisted[room.name].knows(parse_update(message.update)), (
                    "sent before it was stored"
                )
            for member in receivers(effect):
                if member.link is not None:
                    assert member.link.member is member, "a frame after leaving"
                    member.link.to_client.append(effect.frame)

    # -- what happens

    @rule(i=which, read_only=st.booleans())
    def connect(self, i: int, read_only: bool) -> None:
        client = self.clients[i]
        if client.member is None:
            member, effects = self.hub.join(client.room, now=self.now, read_only=read_only)
            client.member, member.link = member, client
            self.queue(member.room, effects)
            client.say(SyncStep1(client.doc.encode_state_vector()).encode())
            if client.id in client.awareness.states:
                own = encode_awareness(client.awareness.entries([client.id]))
                client.say(AwarenessUpdate(own).encode())

    @rule(i=which)
    def disconnect(self, i: int) -> None:
        client = self.clients[i]
        if client.member is not None:
            member = client.member
            member.link = None
            client.disconnected(self.now)
            self.queue(member.room, member.room.leave(member, now=self.now))

    @rule(i=which)
    def write(self, i: int) -> None:
        self.clients[i].write()

    @rule(i=which)
    def show(self, i: int) -> None:
        client = self.clients[i]
        entries = client.awareness.set_local_state('{"x":1}', self.now)
        client.say(AwarenessUpdate(encode_awareness(entries)).encode())

    @rule(i=which)
    def server_hears(self, i: int) -> None:
        client = self.clients[i]
        if client.member is not None and client.to_server:
            room = client.member.room
            frame = client.to_server.popleft()
            self.queue(room, room.receive(client.member, frame, now=self.now))

    @rule(i=which)
    def client_hears(self, i: int) -> None:
        client = self.clients[i]
        if client.to_client:
            client.hear(client.to_client.popleft(), self.now)

    @rule(i=which)
    def garbage(self, i: int) -> None:
        self.clients[i].say(b"\x00\x02\x03\x01\x00\x00")

    @rule(i=which)
    def stall(self, i: int) -> None:
        member = self.clients[i].member
        if member is not None:
            member.room.stall(member, now=self.now)

    @rule(i=which)
    def resume(self, i: int) -> None:
        member = self.clients[i].member
        if member is not None:
            self.queue(member.room, member.room.resume(member))

    @precondition(lambda self: any(self.queues.values()))
    @rule(data=st.data())
    def work(self, data: st.DataObject) -> None:
        room = data.draw(st.sampled_from([room for room, queue in self.queues.items() if queue]))
        self.carry_out(room)

    @rule(seconds=st.sampled_from([1, 5, 20, 60]))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        for client in self.clients:
            renewed = client.awareness.handle_timeout(self.now)
            if renewed:
                client.say(AwarenessUpdate(encode_awareness(renewed)).encode())
        due = self.hub.next_timeout()
        todo = self.hub.handle_timeout(now=self.now)
        assert not todo or (due is not None and due <= self.now)
        for room, effects in todo:
            self.queue(room, effects)

    @rule(name=st.sampled_from(NAMES))
    def store_fails(self, name: str) -> None:
        """What waits for the store is lost; nobody has seen it, and its authors still have it."""
        room = self.hub.rooms.get(name)
        if room is not None:
            queue = self.queues[room]
            self.queues[room] = deque(effect for effect in queue if isinstance(effect, Close))
            self.queue(room, self.hub.close(room, CloseCode.TRY_AGAIN_LATER, "", now=self.now))
            while self.queues[room]:
                self.carry_out(room)

    # -- what holds

    @invariant()
    def a_room_is_open_once(self) -> None:
        for client in self.clients:
            if client.member is not None and client.member in client.member.room.members:
                assert self.hub.rooms[client.room] is client.member.room

    def settle(self) -> None:
        busy = True
        while busy:
            busy = False
            for i, client in enumerate(self.clients):
                self.resume(i)
                while client.to_client or client.to_server:
                    busy = True
                    self.client_hears(i)
                    self.server_hears(i)
            for room, queue in self.queues.items():
                while queue:
                    busy = True
                    self.carry_out(room)

    def teardown(self) -> None:
        """Let everything come to rest: then those who are connected have converged."""
        self.settle()
        if self.now >= OUTDATED_AFTER:
            # A message that was so long on its way may show a ghost; it does not outlive this.
            for _ in range(4):
                self.wait(int(OUTDATED_AFTER / 3))
                self.settle()
        for client in self.clients:
            if client.member is None:
                continue
            room = client.member.room
            assert client.member.synced
            assert client.doc.knows(parse_update(room.store.encode()))
            if not client.member.read_only:
                assert room.store.knows(parse_update(client.doc.encode()))
            assert self.persisted[room.name].knows(parse_update(room.store.encode()))
            here = {c.id for c in self.clients if c.member and c.member.room is room}
            assert room.awareness.states.keys() <= here
            others = client.awareness.states.keys() - {client.id}
            assert room.awareness.states.keys() - {client.id} <= others


World.TestCase.settings = settings(
    max_examples=max(150, settings().max_examples), stateful_step_count=60, deadline=None
)
TestWorld = World.TestCase


class TestWorldOfSnapshots(World.TestCase):  # type: ignore[name-defined,misc]
    """Snapshots of short documents are made anew when anything came since: here they are not."""

    def setUp(self) -> None:
        super().setUp()
        self.enterContext(patch("ycore.room._SNAPSHOT_SHARE", 0))
