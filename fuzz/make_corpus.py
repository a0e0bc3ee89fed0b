"""Make the seeds anew: `python fuzz/make_corpus.py`, with Node and `make test`'s packages there.

What it writes is committed, so that nobody needs it but to change the seeds. Files it did not make
(kept findings) stay.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests" / "interop")]

from nodejs import require_node  # noqa: E402
from oracle import Oracle  # noqa: E402
from targets import HANDSHAKE, pack  # noqa: E402

from ycore import Awareness, merge_updates  # noqa: E402
from ycore.awareness import encode_awareness  # noqa: E402
from ycore.lib0 import write_any  # noqa: E402
from ycore.messages import AwarenessUpdate, QueryAwareness, SyncStep1, SyncStep2, Update  # noqa: E402
from ycore.updates import encode_state_vector  # noqa: E402

CORPUS: Final = HERE / "corpus"

REPROS: Final = {
    # What aborts, overflows, hangs or corrupts CRDT engines; the names say which they hurt.
    "many-sections": "ffffffff0f00",
    "many-structs": "01ffffffff0f0100",
    "many-clients-with-deletes": "000101ffffffff0f",
    "many-any": "0101010008010161ffffffff0f",
    "long-any-array": "01010100080101610175808080808020",
    "many-json": "0101010002010161ffffffff07",
    "bad-utf8-type-name": "01010100040101740568656cfd6f00",
    "empty-any": "0101010008010161010000",
    "json-of-nothing": "0101010004000105016100",
    "type-beyond-the-last": "0101010004070174016100",
    "two-sections": "010201000a0504010174016100",
    "subdocument": "010101002901016d01730167760000",
    "bad-utf8": "01010100040102c328016100",
    "origin-in-the-future": "01010100840105016100",
    "empty-string": "01010100040101740000",
    "odd-info-bit": "0101010014010174016100",
    "clock-that-wraps": "0102010000ffffffff0f00ffffffff0f00",
    "pending-second": "01010101840100016200",
    "pending-first": "0101010004010174016100",
    "deletes-first": "000101010101",
    "deletes-then-text": "01010100040101740361626300",
    "behind-a-skip": "010301000401017401610a01840101016300",
    "into-the-skip": "01010101840100016200",
    "surrogate-pair": "010101000401017404f09f988000",
    "half-of-it-deleted": "000101010001",
    "type-in-a-map": "010101002701016d016e0100",
    "child-of-a-deleted-type": "0101020028000100016b017d0100",
    "empty-delete-range": "000105010300",
    "empty-sections": "0100a90b1d00",
    "empty": "0000",
}

HONEST: Final = {
    # What honest clients write, and was refused or turned to garbage once.
    "values-merged-by-yjs": (
        "010407002801016d016b017d01880700017d022801016d01780177016188" + "0701017d030107010002"
    ),
    "waiting-in-its-client": "0101ac0200a86401017d030164010101",
    "waiting-elsewhere": "0101ac0200886401017d030164010101",
    "two-values": "0102640028" + "01016d016b017d01a86400017d020164010001",
    "empty-structs": (
        "0105ed92df9a9ee5d7040004010174016184ed92df9a9ee5d7040005f09f98806284ed92df9a9ee5d7040300"
        "c4ed92df9a9ee5d70400ed92df9a9ee5d704010178c4ed92df9a9ee5d70403ed92df9a9ee5d70404017900"
    ),
    "between-one-struct": (
        "010bb8e1da070648b9e1da07040177010ac7b9e1da0704b9e1da0705000800b8e1da07070177017888b8e1da07"
        "0801770161c7b8e1da0708b8e1da0709000800b8e1da070a037d017701787706e6bca2e5ad97c8b8e1da0708b8"
        "e1da070a017948b8e1da0708027603016b7d0301737706e6bca2e5ad97016e75037d017d027601017a7e7d01c7"
        "b8e1da0710b8e1da071001c8b8e1da0711b8e1da0710017b404f76d5c9a20000c8bae1da0701bae1da07020177"
        "026e6200"
    ),
    "one-client-twice": (
        "04028bb3cb9e070041800100048480010003efbfbd01a8cdd9d40514c4a8cdd9d40504a8cdd9d4050501780180"
        "01000401017403efbfbd028bb3cb9e070041800100048480010003efbfbd018bb3cb9e07010004"
    ),
    "string-as-a-value": "0101010024010178016b0474657874" + "00",
}


def write(target: str, name: str, data: bytes) -> None:
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def deep(count: int) -> bytes:
    out = bytearray()
    for _ in range(count):
        out += b"\x75\x01"
    return bytes(out + b"\x7e")


def main() -> None:
    repros = {name: bytes.fromhex(data) for name, data in REPROS.items()}
    repros["any-nested-deep"] = b"\x01\x01\x01\x00\x08\x01\x01t\x01" + deep(300) + b"\x00"
    for name, data in repros.items():
        write("update", name, data)
        write("updates", f"{name}-first", pack([data, *list(repros.values())[-12:-2]]))
    write("updates", "all-of-them", pack(list(repros.values())))
    honest = {name: bytes.fromhex(data) for name, data in HONEST.items()}
    for name, data in honest.items():
        write("update", name, data)
        write("updates", name, pack([data]))
    waits = [honest[name] for name in ("two-values", "waiting-elsewhere", "waiting-in-its-client")]
    for at in range(3):
        write("updates", f"waiting-{at}", pack(waits[at:] + waits[:at]))

    singles: list[bytes] = []
    with Oracle(require_node()) as oracle:
        for seed in range(60):
            session = oracle.session(seed)
            short = [update for update in session.updates if len(update) < 400]
            singles += short[:3] + short[-3:]
            write("updates", f"session-{seed}", pack(short[:10]))
            merged = merge_updates(session.updates)
            if len(merged) < 6000:
                write("updates", f"session-{seed}-merged", pack([*short[-3:], merged]))
                if len(merged) < 1200:
                    singles.append(merged)
    for at, single in enumerate(dict.fromkeys(singles)):
        write("update", f"{at:03}", single)

    clocks = {1: 3, 2**32 - 1: 2**53 - 1, 300: 0}
    write("state_vector", "some", encode_state_vector(clocks))
    write("state_vector", "none", b"\x00")
    write("state_vector", "twice", bytes.fromhex("0201010100"))
    write("state_vector", "many", bytes.fromhex("ffffffff0f"))

    shown = Awareness(7).set_local_state('{"user":{"name":"Ada 😀"},"cursor":null}', now=0)
    gone = [entry._replace(clock=5, state=None) for entry in shown]
    here = [entry._replace(clock=4) for entry in shown]
    write("awareness", "here", encode_awareness(here))
    write("awareness", "here-and-gone", pack([encode_awareness(here), encode_awareness(gone)]))
    write("awareness", "nobody", b"\x00")
    write("awareness", "no-json", bytes.fromhex("0101010161"))

    update = singles[0]
    frames = [
        SyncStep1(b"\x00").encode(),
        SyncStep2(update).encode(),
        Update(update).encode(),
        AwarenessUpdate(encode_awareness(here)).encode(),
        QueryAwareness().encode(),
        b"\x02\x00\x06denied",
        b"\x64custom",
        Update(update).encode() + SyncStep1(b"\x00").encode(),
        b"\xff" * 100,
    ]
    for at, frame in enumerate(frames):
        write("messages", f"{at}", frame)

    for at, value in enumerate(
        [None, True, 1, -5, 2**40, 1.5, 0.1, "ü😀", b"\x00", [1, [2, {}]], {"a": {"b": []}}]
    ):
        out = bytearray()
        write_any(out, value)  # type: ignore[arg-type]
        write("lib0", f"any-{at}", bytes(out))
    for at, text in enumerate(['{"a":[1,2.5e3,"\\u00fc"]}', "[[[]]]", "-0", '"x', "NaN", "[1,]"]):
        write("lib0", f"json-{at}", text.encode())

    join, later = b"\x00\x00\x01", b"\x01\x04"
    opened = b"\x02\x00"
    for at, single in enumerate(singles[:24]):
        if len(single) < 0xF0:
            edit = bytes((10, at % 2, len(single))) + single
            ask = bytes((8, at % 3, 0))
            write("rooms", f"edit-{at}", join + opened + join + ask + ask + edit + later + edit)
    for name, data in honest.items():
        write("rooms", f"honest-{name}", join + opened + bytes((10, 0, len(data))) + data)
    stall = bytes((6, 1))
    resume = bytes((7, 1))
    entry = encode_awareness(here)
    show = bytes((9, 0, len(entry))) + entry
    leave = bytes((5, 0))
    write("rooms", "awareness", join + opened + join + show + later + leave + later * 10)
    write("rooms", "stall", join + opened + join + ask + stall + edit + show + resume)
    write("rooms", "loading", join + edit + ask + join + show + opened + edit + leave)
    write("rooms", "unload", join + opened + leave + later * 40 + b"\x03" + join + opened)

    write("log", "some", pack([b"one", b"two", update]))
    write("log", "none", b"")

    def frame(first: int, payload: bytes) -> bytes:
        length = (
            bytes((0x80 | len(payload),))
            if len(payload) < 126
            else b"\xfe" + len(payload).to_bytes(2, "big")
        )
        return bytes((first,)) + length + bytes(4) + payload

    cuts = b"\x00" + bytes((30, 60, 90, 120, 150, 180, 210, 240))
    write("peer", "message", cuts + frame(0x82, frames[2]))
    write("peer", "fragments", cuts + frame(0x02, b"ab") + frame(0x89, b"p") + frame(0x80, b"c"))
    write("peer", "close", cuts + frame(0x88, b"\x03\xe8bye"))
    write("peer", "text", cuts + frame(0x81, b"text"))
    write("peer", "too-long", cuts + frame(0x82, bytes(6000)))
    write("peer", "http", b"\xff" + cuts[1:] + HANDSHAKE)
    write("peer", "plain-http", b"\xff" + cuts[1:] + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    smuggled = b"POST / HTTP/1.1\r\nHost: x\r\n" + both
    write("peer", "smuggling", b"\xff" + cuts[1:] + smuggled)


if __name__ == "__main__":
    main()
