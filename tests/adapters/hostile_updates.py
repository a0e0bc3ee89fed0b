"""Updates that no honest client makes, and honest ones that others choke on.

Each table says what should come of it. They are bytes, but where it takes long to make them.
"""

from __future__ import annotations

from build import (
    anys,
    binary,
    deleted,
    doc,
    embed,
    format_,
    gc,
    item,
    json,
    skip,
    text,
    uint,
    update,
)
from hostile import PAIR, prefixes

from ycore import UpdateLimits

UNKNOWN_ID = (9, 5)


def one(struct: bytes, clock: int = 0) -> bytes:
    """An update with this struct of client 7, well-formed or not."""
    return update({(7, clock): [struct]})


def item_of(content: str) -> bytes:
    """An update with an item of these bytes in the root type "t"."""
    raw = bytes.fromhex(content)
    return one(raw[:1] + b"\x01\x01t" + raw[1:])


def deletes(tail: str) -> bytes:
    """An update with no structs and this delete set."""
    return b"\x00" + bytes.fromhex(tail)


DEEP = 100_000
RICH = update(
    {
        (9, 0): [
            item(text("aß😀")),
            item(format_("bold", "true"), origin=(9, 0)),
            item(anys({"a": [1, 2.5, None]}), parent="m", key="k"),
            item(anys(b"x"), parent="a"),
            item(doc("guid", {"autoLoad": True}), parent=(9, 1)),
        ],
        (8, 3): [gc(2), skip(4), item(binary(b"xyz"), right=(9, 6))],
    },
    {9: [(0, 1), (3, 2)]},
)
"""Something of everything."""

GOOD = one(gc(1))

MALFORMED: dict[str, tuple[bytes, str]] = {
    # counts that lie
    "no bytes": (b"", "past the end"),
    "no delete set": (b"\x00", "past the end"),
    "2^32-1 sections": (bytes.fromhex("ffffffff0f00"), ""),
    "2^32-1 clients with deletes, in a document": (
        bytes.fromhex("0101010008010161ffffffff0f"),
        "",
    ),
    "2^40 values": (bytes.fromhex("01010100080101610175808080808020"), "2\\^53-1|entries"),
    "2^31-1 JSON values": (bytes.fromhex("0101010002010161ffffffff07"), "values declared"),
    "a section too many": (b"\x02" + one(gc(1))[1:], ""),
    "a struct too many": (bytes.fromhex("0102070000010000"), ""),
    "no section, but one declared": (bytes.fromhex("0100"), ""),
    "string longer than the update": (item_of("047f61"), "past the end"),
    "binary longer than the update": (item_of("037f61"), "past the end"),
    "2^53-1 values": (item_of("08" + uint(2**53 - 1).hex()), "values declared"),
    "array of 2^53-1 values": (item_of("080175" + uint(2**53 - 1).hex()), "entries"),
    "object of 2^53-1 values": (item_of("080176" + uint(2**53 - 1).hex()), "entries"),
    "a range too many": (deletes("0107020001"), "declares 2 delete ranges"),
    "a client with deletes too many": (deletes("0207010001"), "past the end"),
    # zero lengths, but for those of structs: these may be honest
    "empty delete range": (bytes.fromhex("000105010300"), "empty"),
    # info bits, kinds
    "info bit 0x10": (bytes.fromhex("0101010014010174016100"), "info byte 0x14"),
    **{
        f"info {info:#04x}": (one(bytes([info]) + b"\x01\x01t\x01a"), f"info byte {info:#04x}")
        for info in (0x0B, 0x0F, 0x10, 0x1F, 0x20, 0x2A, 0x80, 0x8A, 0xC0, 0xFF)
    },
    "parent info 7": (bytes.fromhex("0101010004070174016100"), "parent info"),
    "parent info 2": (one(b"\x04\x02\x01t\x01a"), "parent info"),
    "shared type 7": (item_of("0707"), "shared type 7"),
    "shared type 127": (item_of("077f"), "shared type 127"),
    "element without a name": (one(item(b"\x07\x03"))[:-1], ""),
    # numbers
    "client 2^53": (bytes.fromhex("0101808080808080801000000100"), "2\\^53-1"),
    "client in 9 bytes": (b"\x01\x01" + b"\x80" * 8 + b"\x00\x00\x00\x01\x00", "8 bytes"),
    "clock 2^53": (bytes.fromhex("0101078080808080808010000100"), "2\\^53-1"),
    "clock that passes 2^53-1": (one(gc(1), 2**53 - 1), "above 2\\^53-1"),
    "length that passes 2^53-1": (one(gc(2**53 - 1), 1), "above 2\\^53-1"),
    "Skip that passes 2^53-1": (one(skip(2**53 - 1), 1), "above 2\\^53-1"),
    "text that passes 2^53-1": (one(item(text("ab")), 2**53 - 2), "above 2\\^53-1"),
    "delete range that passes 2^53-1": (update({}, {7: [(1, 2**53 - 1)]}), "too far"),
    "number of 2^53": (item_of("08017d8080808080808020"), "2\\^53-1"),
    # the same client twice
    "client twice in the delete set": (deletes("0207010001070102 01"), "twice"),
    # text
    "bad UTF-8": (one(item(b"\x04\x02\xc3\x28")), "UTF-8"),
    "bad UTF-8 that claims a length": (
        bytes.fromhex("01010100040101740568656cfd6f00"),
        "UTF-8",
    ),
    "root name in bad UTF-8": (bytes.fromhex("01010100040102c328016100"), "UTF-8"),
    "key in bad UTF-8": (one(b"\x24\x01\x01t\x01\xff\x01a"), "UTF-8"),
    "element name in bad UTF-8": (item_of("070301ff"), "UTF-8"),
    "format key in bad UTF-8": (item_of("0601ff0131"), "UTF-8"),
    "embed in bad UTF-8": (item_of("050322ff22"), "UTF-8"),
    "guid in bad UTF-8": (item_of("0901ff7600"), "UTF-8"),
    "value in bad UTF-8": (item_of("08017701ff"), "UTF-8"),
    "key of an object in bad UTF-8": (item_of("080176 01 01ff 7e"), "UTF-8"),
    "surrogate": (one(item(b"\x04\x03\xed\xa0\x80")), "UTF-8"),
    "overlong NUL": (one(item(b"\x04\x02\xc0\x80")), "UTF-8"),
    "character above U+10FFFF": (one(item(b"\x04\x04\xf4\x90\x80\x80")), "UTF-8"),
    # values
    "tag 0": (bytes.fromhex("0101010008010161010000"), "unknown tag 0"),
    "tag 115": (item_of("080173"), "unknown tag 115"),
    "tag 128": (item_of("080180"), "unknown tag 128"),
    "half a float": (one(b"\x08\x01\x01t\x01\x7b\x00"), "past the end"),
    "257 arrays": (item_of("0801" + "7501" * 257 + "7e"), "nests deeper"),
    "30,000 arrays": (item_of("0801" + "7501" * 30_000 + "7e"), "nests deeper"),
    "100,000 objects": (item_of("0801" + "76010161" * DEEP + "7e"), "nests deeper"),
    "subdocument with an array": (item_of("0901677500"), "no object"),
    "subdocument with a number": (item_of("0901677d01"), "no object"),
    "subdocument without options": (item_of("090167"), ""),
    "subdocument, deep": (item_of("090167" + "76010161" * DEEP + "7e"), "nests deeper"),
    # JSON
    **{
        f"embed {bad!r}": (one(item(embed(bad))), "JSON")
        for bad in (
            *("", "NaN", "Infinity", "-Infinity", "undefined", "nul", "'a'", "[1,]", '{"a":1,}'),
            *(
                "{a:1}",
                "1 2",
                "01",
                "+1",
                ".5",
                "1.",
                "0x1",
                '"\n"',
                '"a',
                '"\\x"',
                "\ufeff1",
                "\x0b1",
            ),
        )
    },
    "format NaN": (one(item(format_("a", "NaN"))), "JSON"),
    "format undefined": (one(item(format_("a", "undefined"))), "JSON"),
    "second JSON value bad": (one(item(json("1", "NaN"))), "JSON"),
    "100,000 brackets": (one(item(embed("[" * DEEP))), "nests deeper"),
    "100,000 brackets and back": (one(item(embed("[" * DEEP + "]" * DEEP))), "nests deeper"),
    "100,000 braces": (one(item(embed('{"a":' * DEEP + "1" + "}" * DEEP))), "nests deeper"),
    "257 brackets": (one(item(embed("[" * 257 + "]" * 257))), "nests deeper"),
    "5 KB of JSON, bad in the end": (one(item(embed("[" + "1," * 2500 + "]"))), "JSON"),
    # bytes left over
    "trailing byte": (GOOD + b"\x00", "left over"),
    "two updates": (GOOD + GOOD, "left over"),
    "trailing kilobytes": (GOOD + bytes(100_000), "left over"),
    "version 2": (bytes.fromhex("000002a50100000104060374657374020101000101000000"), ""),
    **{f"{size} bytes of it": (cut, "") for size, cut in enumerate(prefixes(RICH), 1)},
}

LIMITS = UpdateLimits()


def authors(number: int, *, first: int = 0) -> bytes:
    """An update with one struct of each of many clients."""
    sections = (b"\x01" + uint(first + i) + b"\x00\x00\x01" for i in range(number))
    return uint(number) + b"".join(sections) + b"\x00"


TOO_MUCH: dict[str, tuple[bytes, str]] = {
    "2^32-1 structs declared": (bytes.fromhex("01ffffffff0f0100"), "structs"),
    "2^32-1 clients with deletes": (bytes.fromhex("000101ffffffff0f"), "delete ranges"),
    "2^53-1 clients with deletes": (b"\x00" + uint(2**53 - 1), "clients with deletes"),
    "too many structs": (b"\x01" + uint(LIMITS.structs + 1) + b"\x07\x00\x00\x01", "structs"),
    "too many clients": (authors(LIMITS.sections + 1), "clients and holes"),
    "too many holes": (
        update({(7, 0): [gc(1), skip(1)] * (LIMITS.sections + 1)}),
        "clients and holes",
    ),
    "too many clients with deletes": (b"\x00" + uint(LIMITS.sections + 1), "clients with deletes"),
    "too many delete ranges": (
        b"\x00\x01\x07" + uint(LIMITS.delete_ranges + 1),
        "delete ranges",
    ),
}

ACCEPTED: dict[str, list[bytes]] = {
    # what other engines lose, or die of, though it is honest
    "b before a": [
        *map(bytes.fromhex, ("01010101840100016200", "0101010004010174016100")),
    ],
    "delete before what it deletes": [
        *map(bytes.fromhex, ("000101010101", "01010100040101740361626300")),
    ],
    "hole, and what fills it": [
        *map(bytes.fromhex, ("010301000401017401610a01840101016300", "01010101840100016200")),
    ],
    "half a surrogate pair deleted": [
        *map(bytes.fromhex, ("010101000401017404f09f988000", "000101010001")),
    ],
    "child of what is deleted": [
        bytes.fromhex("010101002701016d016e0100"),
        bytes.fromhex("000101010001"),
        bytes.fromhex("0101020028000100016b017d0100"),
    ],
    "hole first": [bytes.fromhex("010201000a0504010174016100")],
    "subdocument": [bytes.fromhex("010101002901016d01730167760000")],
    "clock that passes 2^32": [bytes.fromhex("0102010000ffffffff0f00ffffffff0f00")],
    "clock up to 2^53-1": [one(gc(2**53 - 2), 1)],
    "deletes up to 2^53-1": [update({}, {7: [(0, 2**53 - 1)]})],
    "client 2^53-1": [update({(2**53 - 1, 0): [gc(1)]})],
    "client 0": [update({(0, 0): [gc(1)]})],
    "far from all that is known": [update({(7, 2**40): [item(text("a"), origin=UNKNOWN_ID)]})],
    "ahead of where a member is": [update({(PAIR, 1000): [gc(1)]})],
    "deletes of what a member has yet to write": [update({}, {PAIR: [(0, 2**40)]})],
    "everything": [RICH],
    "256 arrays": [item_of("0801" + "7501" * 256 + "7e")],
    "256 brackets": [one(item(embed("[" * 256 + "]" * 256)))],
    "undefined among JSON": [one(item(json("undefined", "1")))],
    "number of 5,000 digits": [one(item(embed("9" * 5000)))],
    "escaped surrogate": [one(item(embed('"\\ud800"')))],
    "NUL in a name": [one(item(text("a"), parent="\x00", key="\x00"))],
    "names that JavaScript has": [one(item(text("a"), parent="__proto__", key="constructor"))],
    "empty names": [one(item(text("a"), parent="", key=""))],
    "an item between one and the same": [
        one(item(text("a"), origin=UNKNOWN_ID, right=UNKNOWN_ID)),
    ],
    "a value that does not say that it is one": [
        update({(7, 0): [item(anys(1), key="k"), item(anys(2), origin=(7, 0))]}),
    ],
    "1 MB of text": [one(item(text("x" * 2**20)))],
    "1,000 holes": [update({(7, 0): [gc(1), skip(1)] * 1000})],
    "1,000 clients": [authors(1000)],
}

IGNORED: dict[str, bytes] = {
    "nothing": b"\x00\x00",
    "nothing, in overlong numbers": b"\x80\x00\x80\x80\x00",
    "only a Skip": one(skip(5)),
    "a section without structs": bytes.fromhex("0100070000"),
    "a client without ranges": deletes("010700"),
    "empty GC": one(gc(0)),
    "empty Skip": one(skip(0)),
    "empty Deleted": one(item(deleted(0))),
    "empty text": bytes.fromhex("01010100040101740000"),
    "no values": one(item(anys())),
    "no JSON values": one(item(json())),
    # ids that a struct could not have known: all of that client is left out
    "future parent": bytes.fromhex("0101010004000105016100"),
    "future origin": bytes.fromhex("01010100840105016100"),
    "itself as origin": one(item(text("a"), origin=(7, 3)), 3),
    "itself as right origin": one(item(text("a"), right=(7, 3)), 3),
    "itself as parent": one(item(text("a"), parent=(7, 3)), 3),
    "future right origin": one(item(text("a"), origin=(7, 2), right=(7, 4)), 3),
    "future origin in an overlong form": one(b"\x84\x87\x00\x05\x01a", 3),
}

BIG: dict[str, bytes] = {
    "80,000 delete ranges": update({}, {7: [(3 * i, 1) for i in range(80_000)]}),
    "80,000 delete ranges, backwards": update({}, {7: [(3 * i, 1) for i in range(80_000, 0, -1)]}),
    "16,000 items at one place": update({(7, 0): [item(text("x"))] * 16_000}),
    "10,000 clients": authors(10_000),
    "10,000 holes": update({(7, 0): [gc(1), skip(1)] * 10_000}),
    "2 MB of tiny structs": b"\x01" + uint(2**20) + b"\x07\x00" + b"\x00\x01" * 2**20 + b"\x00",
    "2 MB of letters": b"".join(
        [
            *(b"\x01", uint(2**18), b"\x07\x00", item(text("x"))),
            *(b"\x84\x07" + uint(clock) + b"\x01x" for clock in range(2**18 - 1)),
            b"\x00",
        ]
    ),
}
