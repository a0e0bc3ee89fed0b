"""Documents of ours that are edited together with Yjs's: all come to the same.

A longer run: YCORE_EDIT_SESSIONS=2000 .venv/bin/pytest -s tests/interop/test_editing.py
"""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from random import Random

from edits import Editor
from nodejs import require_node
from oracle import Oracle
from test_shown import content

from ycore import merge_updates
from ycore.doc import Doc, XmlElement

SESSIONS = int(os.environ.get("YCORE_EDIT_SESSIONS", "40"))
SEED = int(os.environ.get("YCORE_SEED", "9000"))


class Peer:
    """Somebody who edits: knows some of the updates, in an order of their own."""

    def __init__(self, client: int) -> None:
        self.client = client
        self.known: list[bytes] = []

    def take(self, update: bytes) -> None:
        self.known.append(update)


class Ours(Peer):
    def __init__(self, client: int, random: Random) -> None:
        super().__init__(client)
        self.doc = Doc(client)
        self.made: list[bytes] = []
        self.doc.observe_updates(
            lambda update, origin: self.made.append(update) if not origin else None
        )
        self.editor = Editor(self.doc, random)

    def take(self, update: bytes) -> None:
        super().take(update)
        self.doc.apply(update, origin="remote")

    def edit(self) -> list[bytes]:
        self.editor.edit()
        made, self.made[:] = self.made[:], []
        self.known += made
        return made


class Theirs(Peer):
    """A document of Yjs, made anew for each edit."""

    def __init__(self, client: int, random: Random, oracle: Oracle) -> None:
        super().__init__(client)
        self.random = random
        self.oracle = oracle

    def edit(self) -> list[bytes]:
        known = [b64encode(update).decode() for update in self.known]
        seed = self.random.randrange(2**31)
        answer = self.oracle.ask(
            {"op": "edit", "updates": known, "client": self.client, "seed": seed, "edits": 3}
        )
        made = [b64decode(update) for update in answer["updates"]]
        self.known += made
        return made


def session(oracle: Oracle, seed: int) -> None:
    random = Random(seed)
    ids = random.sample([1, 2, 300, 2**31, 2**32 - 1, 77_777], 4)
    peers: list[Ours | Theirs] = [
        Ours(ids[0], random),
        Ours(ids[1], random),
        Theirs(ids[2], random, oracle),
        Theirs(ids[3], random, oracle),
    ]
    links: dict[tuple[int, int], list[bytes]] = {
        (i, j): [] for i in range(4) for j in range(4) if i != j
    }
    for _ in range(30):
        who = random.randrange(4)
        made = peers[who].edit()
        for (i, _), queue in links.items():
            if i == who:
                queue.extend(made)
        for _ in range(random.randrange(5)):  # mostly in order, but some links are slow
            i, j = random.choice(list(links))
            link = links[i, j]
            for _ in range(min(len(link), random.randrange(5))):
                peers[j].take(link.pop(0 if random.random() < 0.9 else -1))
    for (_, j), queue in links.items():
        for update in queue:
            peers[j].take(update)
    # What Yjs shows of all of it. Its own peers may differ until they have told each other how they
    # tidied up formats (`types/YText.js`, cleanupYTextAfterTransaction), which ours don't.
    [seen] = oracle.seen([[merge_updates(update for peer in peers for update in peer.known)]])
    assert "threw" not in seen
    for peer in peers:
        if isinstance(peer, Ours):
            assert content(peer.doc) == json.loads(seen["content"]), (seed, peer.client)
            assert peer.doc.held_back == 0


def test_what_is_edited_together_is_the_same_for_all() -> None:
    with Oracle(require_node()) as oracle:
        for seed in range(SEED, SEED + SESSIONS):
            session(oracle, seed)


def test_strings_in_xml_are_texts_that_yjs_reads() -> None:
    """y-prosemirror throws on whatever is neither an element nor a text."""
    doc = Doc(1)
    fragment = doc.get_xml_fragment("x")
    fragment.append(XmlElement("paragraph", {"level": 1}, ["hello ", XmlElement("br"), "<b>"]))
    fragment[0].append(" more")
    fragment.insert(0, ["Note: "])
    with Oracle(require_node()) as oracle:
        [seen] = oracle.seen([[doc.encode()]])
    text = "XmlText"
    assert json.loads(seen["content"])[3] == [
        "XmlFragment",
        [
            [text, [], delta("Note: ")],
            [
                "XmlElement",
                "paragraph",
                [["level", ["number", "1"]]],
                [
                    [text, [], delta("hello ")],
                    ["XmlElement", "br", [], []],
                    [text, [], delta("<b>")],
                    [text, [], delta(" more")],
                ],
            ],
        ],
    ]


def delta(insert: str) -> list[object]:
    return ["list", [["object", [["insert", insert]]]]]
