"""The fuzz targets. Each takes any bytes, and states in one sentence what must hold for them.

What a target lets pass without a word is what is documented: `RemoteProtocolError`, and the errors
of the log's decoder. Anything else that comes out of it is a finding.
"""

from __future__ import annotations

import json
import random
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Final

from mutator import with_empties, with_one_neighbour, without_keys
from ycore_adapters._peer import Peer, PeerState
from ycore_adapters.hooks import Request
from ycore_adapters.stores._log import (
    SNAPSHOT,
    Damaged,
    TornTail,
    decode_header,
    decode_records,
    encode_header,
    encode_record,
    next_record,
    recover,
)

from ycore import (
    Awareness,
    Close,
    CloseCode,
    Effect,
    Frame,
    Hub,
    Load,
    Member,
    Persist,
    RemoteProtocolError,
    Room,
    Send,
    Settings,
    State,
    StructStore,
    Unload,
    UpdateLimits,
    check_update,
    diff_update,
    encode_state_vector_from_update,
    lib0,
    merge_updates,
)
from ycore.awareness import AwarenessEntry, decode_awareness, encode_awareness
from ycore.doc import Doc
from ycore.jsontext import check_json, check_json_steps
from ycore.messages import AwarenessUpdate, SyncStep1, SyncStep2, Update, decode
from ycore.steps import finish
from ycore.updates import decode_state_vector, encode_state_vector, parse_update

Target = Callable[[bytes], None]

_FEW_ZEROS: Final = 16
"""Fewer at the end of a log may be the end of an update, and excuse nothing."""


def unpack(data: bytes) -> list[bytes]:
    """Several byte strings out of one: each behind its length in two bytes; the last may be cut."""
    parts = []
    pos = 0
    while pos + 2 <= len(data):
        (length,) = struct.unpack_from(">H", data, pos)
        parts.append(data[pos + 2 : pos + 2 + length])
        pos += 2 + length
    return parts


def pack(parts: list[bytes]) -> bytes:
    """The other way round."""
    return b"".join(struct.pack(">H", len(part)) + part for part in parts if len(part) < 2**16)


# ---- the core's decoders


def fuzz_lib0(data: bytes) -> None:
    """What a reader accepts, its writer writes, and that reads as the same again."""
    pairs: list[tuple[Callable[..., object], Callable[..., None]]] = [
        (lib0.read_var_uint, lib0.write_var_uint),
        (lib0.read_var_int, lib0.write_var_int),
        (lib0.read_var_string, lib0.write_var_string),
        (lib0.read_var_uint8_array, lib0.write_var_uint8_array),
        (lib0.read_any, lib0.write_any),
    ]
    for read, write in pairs:
        with suppress(RemoteProtocolError):
            value, end = read(data, 0)  # type: ignore[misc]
            assert 0 < end <= len(data)
            out = bytearray()
            write(out, value)
            again, end = read(out, 0)  # type: ignore[misc]
            assert end == len(out)
            repeated = bytearray()
            write(repeated, again)  # 1.0 and 1 are one number to JavaScript
            assert repeated == out
    with suppress(RemoteProtocolError):
        assert lib0.skip_any(data, 0) == lib0.read_any(data, 0)[1]
    with suppress(UnicodeDecodeError):
        _both_readers_agree(data.decode())


def _both_readers_agree(text: str) -> None:
    verdicts = []
    for check in (check_json, lambda text: finish(check_json_steps(text))):
        try:
            check(text)
            verdicts.append(True)
        except RemoteProtocolError:
            verdicts.append(False)
    assert verdicts[0] == verdicts[1], text
    if verdicts[0]:
        json.loads(text, parse_int=float)


def fuzz_messages(data: bytes) -> None:
    """What is decoded is encoded so that it decodes as the same again."""
    with suppress(RemoteProtocolError):
        for message in decode(data):
            assert decode(message.encode()) == [message]


def fuzz_update(data: bytes) -> None:
    """An update that is accepted is kept whole, and what is kept of it is well-formed; and so is
    what else an honest client may make of it: structs of no length, which make no difference, and
    items between one struct."""
    try:
        parsed = parse_update(data)
    except RemoteProtocolError:
        return
    store = StructStore()
    added = store.add(parsed)
    whole = store.encode()
    again = StructStore()
    assert again.add(whole) == (whole if added is not None else None)
    assert again.encode() == whole
    assert store.add(whole) is None
    assert store.knows(parsed)
    assert again.state_vector() == store.state_vector()
    rng = random.Random(data)
    assert merge_updates([with_empties(data, rng)]) == whole
    check_update(with_one_neighbour(data, rng))


def fuzz_updates(data: bytes) -> None:
    """Whatever updates a store accepts, it stays the one document that all who follow it have, and
    that can be shown, whichever items with a neighbour say that they have a key."""
    store, relayed, half, keyless = StructStore(), StructStore(), StructStore(), StructStore()
    accepted: list[bytes] = []
    parts = unpack(data)[:8] or [data]
    for part in parts:
        before = store.encode()
        try:
            known = store.knows(parse_update(part))
            new = store.add(part)
        except RemoteProtocolError:
            assert store.encode() == before
            continue
        assert known == (new is None)
        accepted.append(part)
        assert store.add(part) is None
        keyless.add(without_keys(part))
        if new is not None:
            check_update(new)
            assert relayed.add(new) is not None
    whole = store.encode()
    check_update(whole)
    again = StructStore()
    again.add(whole)
    assert again.encode() == whole
    assert merge_updates([whole, whole]) == whole
    assert again.state_vector() == store.state_vector() == relayed.state_vector()
    assert relayed.encode() == whole, "what is relayed is what was kept"
    assert encode_state_vector_from_update(whole) == store.encode_state_vector()
    assert store.size == sum(run.size for runs in store._clients.values() for run in runs) + sum(
        deletes.size for deletes in store._deletes.values()
    )
    # Who has half of it and asks for the rest has all of it.
    for part in accepted[: len(accepted) // 2]:
        half.add(part)
    state_vector = half.encode_state_vector()
    rest = store.diff(state_vector)
    check_update(rest)
    half.add(rest)
    assert half.knows(parse_update(whole))
    assert store.knows(parse_update(half.encode()))
    assert half.state_vector() == store.state_vector()
    with suppress(RemoteProtocolError):
        check_update(diff_update(whole, parts[0]))
    shown = Doc.view(store).to_json()
    text = json.dumps(shown, allow_nan=False)
    assert text == json.dumps(Doc.view(again).to_json())
    assert text == json.dumps(Doc.view(keyless).to_json())
    merged = Doc()
    merged.apply(without_keys(whole))
    assert text == json.dumps(merged.to_json())


def fuzz_state_vector(data: bytes) -> None:
    """A state vector that is accepted reads as the same when it is written again."""
    with suppress(RemoteProtocolError):
        clocks = decode_state_vector(data)
        assert decode_state_vector(encode_state_vector(clocks)) == clocks
        check_update(StructStore().diff(clocks))


def fuzz_awareness(data: bytes) -> None:
    """States that are accepted are kept, told and expired without anybody else's changing."""
    awareness = Awareness()
    awareness.apply([AwarenessEntry(2**40, 7, '"bystander"')], now=0)
    now = 0.0
    for part in unpack(data) or [data]:
        now += 1
        with suppress(RemoteProtocolError):
            entries = decode_awareness(part)
            payload = encode_awareness(entries)
            assert decode_awareness(payload) == entries
            changed = awareness.apply([e for e in entries if e.client != 2**40], now)
            assert {entry.client for entry in changed} <= {entry.client for entry in entries}
            assert awareness.apply(changed, now) == []
    assert awareness.states[2**40] == '"bystander"'
    due = awareness.next_timeout()
    while due is not None:
        awareness.handle_timeout(due)
        later = awareness.next_timeout()
        assert later is None or later > due
        due = later
    assert awareness.states == {}


# ---- rooms


class _Script:
    """Bytes as the source of decisions."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._pos = 0

    def __bool__(self) -> bool:
        return self._pos < len(self._data)

    def byte(self) -> int:
        byte = self._data[self._pos] if self else 0
        self._pos += 1
        return byte

    def take(self) -> bytes:
        length = self.byte()
        if length >= 0xF0:
            length = length % 16 * 256 + self.byte()
        taken = self._data[self._pos : self._pos + length]
        self._pos += length
        return taken


class _Rooms:
    """A hub and what its caller does; checks each effect as it comes."""

    settings: Final = Settings(
        max_rooms=3,
        max_members=4,
        max_document_bytes=40_000,
        max_awareness_clients=3,
        max_awareness_entries=20,
        max_awareness_bytes=200,
        max_waiting_bytes=2000,
        custom_types=frozenset({100}),
        update_limits=UpdateLimits(structs=2000, sections=50, delete_ranges=200),
    )

    def __init__(self) -> None:
        self.hub = Hub(self.settings)
        self.now = 0.0
        self.stored: defaultdict[str, list[bytes]] = defaultdict(list)
        self.kept: defaultdict[Room, StructStore] = defaultdict(StructStore)
        self.members: list[Member] = []
        self.seen: dict[Member, StructStore] = {}
        self.stalled: set[Member] = set()
        self.unclear: set[Member] = set()
        """Who may know less than the room thinks: it told it so, or sent something while the room
        was loading, so that we don't see what of it came from whom."""
        self.frames: dict[Member, Frame] = {}
        self.mirrors: dict[Room, StructStore] = {}
        """What a bare store makes of all that the room has taken."""
        self.loading: list[Room] = []
        self.unloading: list[Unload] = []

    def carry_out(self, effects: list[Effect], *, culprit: Member | None = None) -> None:
        for effect in effects:
            if isinstance(effect, Persist):
                assert culprit is not None, "only what a member sends is new"
                self.stored[culprit.room.name].append(effect.update)
                self.kept[culprit.room].add(effect.update)
                self.seen[culprit].add(effect.update)
            elif isinstance(effect, Send):
                for member in effect.to:
                    if member is not effect.skip:
                        self._deliver(member, effect.frame)
            elif isinstance(effect, Close):
                assert culprit in (None, effect.member), "somebody else's connection"
                assert effect.member not in effect.member.room.members
                self._gone(effect.member)
            elif isinstance(effect, Load):
                self.loading.append(effect.room)
            elif isinstance(effect, Unload):
                self.unloading.append(effect)

    def _deliver(self, member: Member, frame: bytes) -> None:
        assert member not in self.stalled, "a stalled member is sent nothing"
        (message,) = decode(frame)
        if isinstance(message, Update | SyncStep2):
            update = parse_update(message.update)
            assert self.kept[member.room].knows(update), "shown before it was stored"
            self.seen[member].add(update)
        elif isinstance(message, AwarenessUpdate):
            decode_awareness(message.payload)

    def _gone(self, member: Member) -> None:
        self.members.remove(member)
        self.stalled.discard(member)
        self.frames.pop(member, None)

    def step(self, script: _Script) -> None:
        what = script.byte() % 16
        if what == 0:
            name = "abcd"[script.byte() % 4]
            member, effects = self.hub.join(name, now=self.now, read_only=script.byte() % 8 == 0)
            self.seen[member] = StructStore()
            self.members.append(member)
            self.carry_out(effects, culprit=member)
        elif what == 1:
            self.now += script.byte() / 4
            for room, effects in self.hub.handle_timeout(now=self.now):
                self._timeout(room, effects)
        elif what == 2 and self.loading:
            room = self.loading.pop(script.byte() % len(self.loading))
            if room.state is State.LOADING:
                self._open(room)
        elif what == 3 and self.unloading:
            effect = self.unloading.pop(0)
            if self.hub.unloaded(effect.room, effect.generation, now=self.now):
                assert effect.room.members == ()
        elif what == 4 and script.byte() % 16 == 0 and self.hub.rooms:
            room = list(self.hub.rooms.values())[script.byte() % len(self.hub.rooms)]
            code = CloseCode.TRY_AGAIN_LATER
            self.carry_out(self.hub.close(room, code, "the store failed", now=self.now))
        elif self.members:
            member = self.members[script.byte() % len(self.members)]
            self._of_a_member(what, member, script)

    def _timeout(self, room: Room, effects: list[Effect]) -> None:
        for effect in effects:
            assert not isinstance(effect, Persist | Load)
        self.carry_out(effects)

    def _open(self, room: Room) -> None:
        for update in self.stored[room.name]:
            room.load(update)
            self.kept[room].add(update)
        author = next((member for member in room.members if member._waiting), None)
        self.unclear |= {member for member in room.members if member._waiting}
        effects = room.opened(now=self.now)
        for effect in effects:
            # Of several that sent something, each may be closed.
            self.carry_out([effect], culprit=None if isinstance(effect, Close) else author)

    def _of_a_member(self, what: int, member: Member, script: _Script) -> None:
        room = member.room
        if what == 5:
            effects = room.leave(member, now=self.now)
            self._gone(member)
            self.carry_out(effects)
        elif what == 6 and member in room.members:
            room.stall(member, now=self.now)
            self.stalled |= {member} if member in room._stalled else set()
        elif what == 7:
            self.stalled.discard(member)
            self.carry_out(room.resume(member), culprit=member)
        elif what == 8:
            clocks = script.take() or b"\x00"
            if clocks != b"\x00":
                self.unclear.add(member)
            self._receive(member, SyncStep1(clocks).encode())
        elif what == 9:
            self._receive(member, AwarenessUpdate(script.take()).encode())
        elif what in (10, 11, 12):
            update = script.take()
            self._edit(member, Update(update))
        elif what == 13:
            self._edit(member, SyncStep2(script.take()))
        else:
            self._receive(member, script.take())

    def _receive(self, member: Member, data: bytes) -> None:
        """Step by step, perhaps to be continued later."""
        others = set(member.room.members) - {member}
        frame = self.frames.pop(member, None) or Frame(data)
        for _ in range(3):
            self.carry_out(member.room.receive(member, frame, now=self.now), culprit=member)
            if frame.done:
                break
        else:
            self.mirrors.pop(member.room, None)
            if member in self.members:
                self.frames[member] = frame
        assert others <= set(member.room.members), "somebody else was thrown out"

    def _edit(self, member: Member, message: Update | SyncStep2) -> None:
        """What a room takes is what a store takes, whole."""
        room = member.room
        mirror = self.mirrors.get(room)
        if mirror is None:
            mirror = self.mirrors[room] = StructStore()
            mirror.add(room.store.encode())
        refused = room.counters.refused_updates
        self._receive(member, message.encode())
        if room.state is not State.OPEN or room not in self.mirrors:
            self.mirrors.pop(room, None)
        elif member in self.members and room.counters.refused_updates == refused:
            mirror.add(message.update)
            assert mirror.encode() == room.store.encode(), "not all of it was taken"

    def finish(self) -> None:
        """Whoever is in step and synced has all there is."""
        for member in tuple(self.members):
            if member in self.members and (frame := self.frames.pop(member, None)) is not None:
                while not frame.done:
                    self.now += 1
                    self.carry_out(member.room.receive(member, frame, now=self.now), culprit=member)
        for room in {member.room for member in self.members}:
            if room.state is State.LOADING:
                continue
            whole = parse_update(room.store.encode())
            assert self.kept[room].knows(whole), "what is not stored is not there"
            for member in room.members:
                if member.synced and member not in self.stalled | self.unclear:
                    assert self.seen[member].knows(whole)
        for _ in range(20):
            due = self.hub.next_timeout()
            if due is None:
                break
            self.now = max(self.now, due)
            for room, effects in self.hub.handle_timeout(now=self.now):
                self._timeout(room, effects)
            later = self.hub.next_timeout()
            assert later is None or later > self.now


def fuzz_rooms(data: bytes) -> None:
    """Whatever members send, in whatever order, it costs nobody else anything: all of what is taken
    is stored, nothing is shown before it is, and no one is closed for another."""
    script = _Script(data)
    rooms = _Rooms()
    steps = 0
    while script and steps < 200:
        rooms.step(script)
        steps += 1
    rooms.finish()


# ---- the adapters' decoders


def fuzz_log(data: bytes) -> None:
    """Any bytes are records or a documented error; of a damaged log no record is made up, none is
    missed but those that were hit, and only what a kill or a power cut may have left passes for a
    torn tail. Whatever bit of a header flips, no record is missed."""
    with suppress(Damaged, TornTail):
        _, salt, pos = decode_header(data)
        for record in decode_records(data, pos, salt):
            assert pos < record.end <= len(data)
            pos = record.end
    rng = random.Random(data)
    updates = unpack(data)
    log = bytearray(encode_header("room", 7))
    header = len(log)
    ends = []
    is_compacted = len(data) % 2 == 1
    for i, update in enumerate(updates):
        metadata = update[:3] if i % 3 == 1 else b""
        snapshot = is_compacted and i == 0
        log += encode_record(update, time=i, salt=7, metadata=metadata, snapshot=snapshot)
        ends.append(len(log))
    hits = [rng.randrange(len(log)) for _ in range(rng.choice((0, 1, 1, 3))) if updates]
    damaged = bytearray(log)
    for at in hits:
        damaged[at] ^= 1 << rng.randrange(8)
    size = rng.randrange(header, len(log) + 1) if rng.random() < 0.5 else len(log)
    whole = bytes(damaged[:size])
    begins = [header, *ends]
    left = [
        update
        for update, begin, end in zip(updates, begins, ends, strict=False)
        if end <= size and whole[begin:end] == log[begin:end]
    ]
    salt, start = 7, header
    resume: int | None = start
    is_damaged = whole[:header] != log[:header]
    try:
        name, salt, start = decode_header(whole, "room")
        assert (name, start, is_damaged) == ("room", header, False)
    except Damaged:
        assert is_damaged
        salt, start = recover(whole, "room")
        assert start == header
        assert salt == 7 or not left or len(hits) > 1
        resume = next_record(whole, 0, salt)
    except TornTail:
        assert is_damaged
        assert not left
        return
    read: list[bytes] = []
    torn_at: int | None = None
    while resume is not None:
        try:
            read.extend(record.update for record in decode_records(whole, resume, salt))
            break
        except TornTail as exc:
            torn_at = exc.offset
            break
        except Damaged as exc:
            is_damaged = True
            resume = next_record(whole, exc.offset, salt)
    if salt == 7:
        assert read == left
    _check_torn(whole, bytes(log), begins, torn_at, is_damaged)


def _check_torn(
    whole: bytes, log: bytes, begins: list[int], torn_at: int | None, is_damaged: bool
) -> None:
    """That something is missing is told; and as a torn tail only where a record is cut off that
    is no snapshot, or has a block of zeros."""
    hit = next((a for a, b in pairwise(begins) if whole[a:b] != log[a:b] and whole[a:b]), None)
    assert is_damaged or torn_at == hit, "something is missing unsaid"
    if torn_at is not None:
        end = next(end for begin, end in pairwise(begins) if begin == torn_at)
        cut_off = end > len(whole)
        assert cut_off or bytes(_FEW_ZEROS) in whole[torn_at:], "damage passes for a torn tail"
        if log[torn_at + 4] == SNAPSHOT and len(whole) > torn_at + 4:
            assert whole[torn_at + 4] != SNAPSHOT or bytes(_FEW_ZEROS) in whole[torn_at:]


HANDSHAKE: Final = (
    b"GET /room HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def _talk(pieces: Iterator[bytes]) -> tuple[list[object], bool, int]:
    """What a connection makes of these bytes: the events, whether it goes on, and how much it
    answers."""
    peer = Peer(max_message_bytes=5000)
    events: list[object] = []
    sent = 0
    for piece in pieces:
        todo = list(peer.receive(piece))
        while todo:
            event = todo.pop(0)
            if isinstance(event, Request):
                events.append(event.room)
                todo = [*peer.accept(), *todo]
            else:
                assert type(event) is bytes
                assert len(event) <= 5000
                events.append(event)
        sent += len(peer.take_output())
    goes_on = peer.state not in (PeerState.CLOSING, PeerState.DONE)
    return events, goes_on, sent


def fuzz_peer(data: bytes) -> None:
    """A connection makes the same of its bytes however they are split, and answers less than it
    got."""
    head, cuts = data[:1], data[1:9]
    data = (HANDSHAKE if head < b"\xc0" else b"") + data[9:]
    if not data:
        return
    places = sorted({cut * len(data) // 256 for cut in cuts} | {0, len(data)})
    whole = _talk(iter([data]))
    split = _talk(data[a:b] for a, b in pairwise(places))
    assert whole[:2] == split[:2], (whole, split)
    assert whole[2] <= 2 * len(data) + 400


TARGETS: Final[dict[str, Target]] = {
    "lib0": fuzz_lib0,
    "messages": fuzz_messages,
    "update": fuzz_update,
    "updates": fuzz_updates,
    "state_vector": fuzz_state_vector,
    "awareness": fuzz_awareness,
    "rooms": fuzz_rooms,
    "log": fuzz_log,
    "peer": fuzz_peer,
}
