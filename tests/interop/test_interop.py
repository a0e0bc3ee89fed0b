"""Real y-websocket clients, over TCP, with a ycore server."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Protocol, get_args

import pytest
from clients import Client, Clients, Server, Version
from nodejs import require_node

try:
    require_node()
except pytest.skip.Exception as exc:  # all of them at once: one line tells as much as a hundred
    pytest.skip(str(exc), allow_module_level=True)

VERSIONS: tuple[Version, ...] = get_args(Version)

versions = pytest.mark.parametrize("version", VERSIONS)
ways_to_go = pytest.mark.parametrize("way", ["disconnect", "destroy", "drop"])


class Join(Protocol):
    """Make a client of the test's own room, and wait until it is in sync."""

    def __call__(self, version: Version = "3", user: str | None = None) -> Client: ...


@pytest.fixture
def join(server: Server, clients: Clients, room: str) -> Join:
    def join(version: Version = "3", user: str | None = None) -> Client:
        awareness = None if user is None else {"user": user}
        client = clients.client(server.url, room, version=version, awareness=awareness)
        client.wait(synced=True)
        return client

    return join


def go(client: Client, way: str) -> None:
    {"disconnect": client.disconnect, "destroy": client.destroy, "drop": client.drop}[way]()


def come_back(clients: Clients, client: Client, way: str) -> Client:
    """Undo `go`: the same document and the same awareness, with id and clock."""
    if way == "destroy":
        return clients.successor(client)
    client.connect()
    return client


# ---- documents


@versions
def test_two_converge(clients: Clients, join: Join, version: Version) -> None:
    a, b = join(version), join(version)
    a.insert(0, "Hello 🙂 world", {"bold": True})
    b.wait(contains="world")
    b.insert(5, ", wide")
    b.delete(b.read()["text"].index("🙂"), 3)
    a.set("title", {"nested": [1, None, "żółw"]})
    b.push("last")
    clients.wait_equal(a, b)

    content = a.read()
    assert content["delta"] == [{"insert": "Hello, wide world", "attributes": {"bold": True}}]
    assert content["map"] == {"title": {"nested": [1, None, "żółw"]}}
    assert content["array"] == ["last"]


@versions
def test_two_converge_with_compression(
    node: str, backend: str, tmp_path: Path, clients: Clients, version: Version
) -> None:
    """Which these clients offer, and use for what is long."""
    options = ("--backend", backend, "--compression")
    with contextlib.closing(Server(tmp_path / "data", *options)) as server:
        a, b = (clients.client(server.url, "room", version=version) for _ in range(2))
        for client in (a, b):
            client.wait(synced=True)
        a.insert(0, "again and again, " * 2000 + "the end")
        b.wait(contains="the end")
        b.insert(0, "b")
        late = clients.client(server.url, "room", version=version)
        clients.wait_equal(a, b, late)
        server.check()


@versions
def test_two_converge_who_hear_their_own_edits(
    node: str, backend: str, tmp_path: Path, clients: Clients, version: Version
) -> None:
    """Which clients before version 4 do not ask for, and take no harm of."""
    options = ("--backend", backend, "--acknowledge")
    with contextlib.closing(Server(tmp_path / "data", *options)) as server:
        a, b = (clients.client(server.url, "room", version=version) for _ in range(2))
        for client in (a, b):
            client.wait(synced=True)
        clients.edit_at_random([a, b], count=100, seed=2)
        a.disconnect()
        a.insert(0, "offline, ")
        a.connect()
        b.wait(contains="offline, ")
        clients.wait_equal(a, b)
        server.check()


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_a_database_has_it_all_after_the_server_ended(
    node: str, backend: str, tmp_path: Path, clients: Clients, end: str
) -> None:
    with contextlib.closing(Server(tmp_path / "rooms.db", "--backend", backend)) as server:
        a, b = (clients.client(server.url, "room") for _ in range(2))
        for client in (a, b):
            client.wait(synced=True)
        clients.edit_at_random([a, b], count=100, seed=3)
        a.insert(0, "the end")
        b.wait(contains="the end")
        b.disconnect()
        a.destroy()
        getattr(server, end)()
        server.start()
        late = clients.client(server.url, "room")
        late.wait(contains="the end")
        server.check()


@versions
@pytest.mark.parametrize("author", ["stays", "left"])
def test_a_late_joiner_gets_everything(
    clients: Clients, join: Join, version: Version, author: str
) -> None:
    a = join(version)
    clients.edit_at_random([a], count=100, seed=1)
    a.insert(0, "the end")
    join(version).wait(contains="the end")
    if author == "left":
        a.destroy()

    clients.wait_equal(a, join(version))


@versions
def test_offline_edits_merge(clients: Clients, join: Join, version: Version) -> None:
    a, b = both = join(version), join(version)
    a.insert(0, "one two three")
    b.wait(text="one two three")
    for client in both:
        client.disconnect()
    a.delete(0, 4)
    a.insert(0, "1 ")
    b.insert(13, " four")
    b.push("b was here")
    for client in both:
        client.connect()
    clients.wait_equal(*both)

    assert a.read()["text"] == "1 two three four"
    assert a.read()["array"] == ["b was here"]


def test_twenty_clients_end_identical(clients: Clients, join: Join) -> None:
    everyone = [join(VERSIONS[i % 3], user=f"user {i}") for i in range(20)]
    clients.edit_at_random(everyone, count=50, seed=2)
    clients.wait_equal(*everyone)

    clients.wait_equal(everyone[0], join())
    assert len(everyone[0].read()["text"]) > 1000


@versions
def test_five_megabytes(clients: Clients, join: Join, version: Version) -> None:
    a, b = join(version), join(version)
    a.fill(5_000_000)
    clients.wait_equal(a, b)
    clients.wait_equal(a, join(version))
    for client in (a, b):
        assert client.report()["closes"] == []


# ---- presence


@versions
def test_a_joiner_sees_who_is_there(join: Join, version: Version) -> None:
    a, b = join(version, user="Ada"), join(version, user="Béla")
    c = join(version, user="Cão 🙂")
    c.wait(present=[a, b], within=1)
    for client in (a, b):
        client.wait(present=[a, b, c], within=1)

    names = {a.id: {"user": "Ada"}, b.id: {"user": "Béla"}, c.id: {"user": "Cão 🙂"}}
    assert c.states() == names
    c.present({"user": "Cão", "cursor": 3})
    a.wait(states={c.id: {"user": "Cão", "cursor": 3}})


@versions
@ways_to_go
def test_who_goes_disappears_at_once(join: Join, version: Version, way: str) -> None:
    a, b, c = (join(version, user=name) for name in "abc")
    b.wait(present=[a, c])
    go(a, way)
    b.wait(absent=[a], within=1)
    c.wait(absent=[a], within=1)
    b.wait(present=[c])


@versions
@ways_to_go
def test_who_comes_back_is_visible_at_once(
    clients: Clients, join: Join, version: Version, way: str
) -> None:
    """With its old id and its old clock, which the others would ignore for 15 s."""
    a, b = join(version, user="a"), join(version, user="b")
    b.wait(present=[a])
    go(a, way)
    b.wait(absent=[a])
    a = come_back(clients, a, way)
    b.wait(present=[a], within=1)
    assert b.states()[a.id] == {"user": "a"}


@versions
@ways_to_go
def test_who_comes_back_sees_the_others_at_once(
    clients: Clients, join: Join, version: Version, way: str
) -> None:
    """They have not changed meanwhile, but on its way out it marked them all as gone."""
    a, b = join(version, user="a"), join(version, user="b")
    a.wait(present=[b])
    go(a, way)
    b.wait(absent=[a])
    a = come_back(clients, a, way)
    a.wait(present=[b], within=1)
    assert a.states()[b.id] == {"user": "b"}


# ---- rooms

LONG = "ż" * 80
# What stands in the URL, of two rooms: after the percent-decoding of the path, are they one?
SAME = [
    ("a/b", "a%2Fb"),
    ("a/b", "a%2fb"),
    ("a b", "a%20b"),
    ("żółw/文書/🙂", "%C5%BC%C3%B3%C5%82w/%E6%96%87%E6%9B%B8%2F%F0%9F%99%82"),
    ("a/b c?x=1", "a%2Fb%20c"),
    ("a", "a?room=b"),
    (LONG, LONG),
]
DIFFERENT = [
    ("a/b", "a"),
    ("a/b", "b"),
    ("a/b", "a_b"),
    ("a b", "a+b"),
    ("a/b", "a%252Fb"),
    ("a?b", "a%3Fb"),
    ("A", "a"),
    ("żółw", "zolw"),
    (LONG + "1", LONG + "2"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_one_room(clients: Clients, server: Server, room: str, one: str, other: str) -> None:
    a = clients.client(server.url, f"{room}{one}", params={"token": "é&= ?/"})
    b = clients.client(server.url, f"{room}{other}")
    a.insert(0, one)
    b.wait(synced=True, text=one)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_two_rooms(clients: Clients, server: Server, room: str, one: str, other: str) -> None:
    names = f"{room}{one}", f"{room}{other}"
    for name in names:
        writer, witness = (clients.client(server.url, name) for _ in range(2))
        writer.wait(synced=True)
        writer.insert(0, name)
        witness.wait(contains=name)
    for name in names:
        clients.client(server.url, name).wait(synced=True, text=name)


# ---- the connection


def test_forty_seconds_of_idleness(node: str, clients: Clients, tmp_path: Path) -> None:
    """Every version drops a connection that brings nothing for 30 s; pings don't count.

    They have no awareness state: they would hear the echo of its renewals. One that asks ten times
    a second for what it lacks, by an option of its own, is left alone as well.
    """
    with contextlib.ExitStack() as stack:
        everyone = []
        for backend in ("asyncio", "trio"):
            server = Server(tmp_path / backend, "--backend", backend)
            stack.enter_context(contextlib.closing(server))
            everyone += [clients.client(server.url, "room", version=v) for v in VERSIONS]
            everyone.append(clients.client(server.url, "other", resync_interval=100))
        for client in everyone:
            client.wait(synced=True)
        clients.idle(*everyone, seconds=40)
        reports = [client.report() for client in everyone]
        assert [report["opens"] for report in reports] == [1] * 8
        assert all(report["messages"] > 300 for report in reports[3::4])


def awareness_of_1(state: str) -> str:
    """An awareness message in hexadecimal: id 1, clock 1 and this state, also hexadecimal."""
    size = len(state) // 2
    return f"01{size + 4:02x}010101{size:02x}{state}"


GARBAGE = {
    "text": {"text": "hello"},
    "half a message": {"binary": "0002"},
    "an update longer than the frame": {"binary": "0002ff0100"},
    "a number without end": {"binary": "ff" * 1000},
    "an unknown sync message": {"binary": "000900"},
    "a malformed update": {"binary": "000203010101"},
    "a malformed state vector": {"binary": "0000020501"},
    "awareness that is not JSON": {"binary": awareness_of_1("78")},
    "awareness that is not UTF-8": {"binary": awareness_of_1("22ff22")},
    "a frame of a reserved kind": {"bytes": "ff" * 20},
    "a frame without a mask": {"bytes": "820100"},
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_costs_only_its_sender_the_connection(
    clients: Clients, server: Server, room: str, join: Join, garbage: dict[str, str]
) -> None:
    a, b = join(user="a"), join(user="b")
    a.wait(present=[b])
    closed = clients.raw(f"{server.url}/{room}", **garbage)
    assert closed["code"] in {1002, 1003, 4400}, closed
    assert closed["reason"]

    a.insert(0, "unimpressed")
    b.wait(text="unimpressed", present=[a])
    for client in (a, b):
        assert client.report()["closes"] == []
        assert client.states().keys() == {a.id, b.id}


# ---- restarts


@versions
def test_what_another_has_seen_survives_sigkill(
    clients: Clients, own_server: Server, version: Version
) -> None:
    a, b = (clients.client(own_server.url, "room", version=version) for _ in range(2))
    b.wait(synced=True)
    a.insert(0, "seen")
    b.wait(text="seen")
    own_server.kill()
    for client in (a, b):
        client.destroy()  # or they would bring the edit back
    own_server.start()
    clients.client(own_server.url, "room", version=version).wait(synced=True, text="seen")


@versions
def test_sigterm_is_orderly(clients: Clients, own_server: Server, version: Version) -> None:
    def client(room: str) -> Client:
        client = clients.client(own_server.url, room, version=version)
        client.wait(synced=True)
        return client

    gone, witness, a, b = client("left"), client("left"), client("busy"), client("busy")
    for writer, reader in ((gone, witness), (a, b)):
        writer.insert(0, "kept")
        reader.wait(text="kept")
    gone.destroy()
    witness.destroy()

    assert own_server.terminate() == 0
    for stayed in (a, b):
        stayed.wait(closes=1)
        assert stayed.report()["closes"][0]["code"] == 1001
    own_server.start()

    client("left").wait(text="kept")
    for stayed in (a, b):
        stayed.wait(synced=True)
    a.insert(4, ", and they are back")
    b.wait(text="kept, and they are back")


def test_a_restart_hides_nobody(clients: Clients, own_server: Server) -> None:
    """The clients remember the clocks that the old server announced; the new one does not."""
    a, b = (clients.client(own_server.url, "room", awareness={"user": user}) for user in "ab")
    a.wait(present=[b])
    a.disconnect()
    b.wait(absent=[a])
    a.connect()
    b.wait(present=[a])
    own_server.kill()
    a.wait(closes=2)
    b.wait(closes=1, absent=[a])
    own_server.start()
    for client in (a, b):
        client.wait(synced=True)
    a.wait(present=[b], within=1)
    b.wait(present=[a], within=1)


def test_who_is_refused_for_its_document_does_not_come_back_with_it(
    clients: Clients, backend: str, tmp_path: Path
) -> None:
    """Newer clients stop. An older one shows that there was time to come back several times."""
    limits = ("--max-message-mb", "1", "--backend", backend)
    with contextlib.closing(Server(tmp_path / "data", *limits)) as server:
        ours, older = (
            clients.client(server.url, "room", version=version, connect=False) for version in "31"
        )
        for client in (ours, older):
            client.fill(2**20 + 1)
            client.connect()
        ours.wait(closes=1)
        older.wait(closes=5)
        refusal = {"code": 4413, "reason": "a message is at most 1048576 bytes"}
        assert ours.report()["closes"] == [refusal]
        assert ours.report()["opens"] == 1
        assert older.report()["closes"][:5] == [refusal] * 5
