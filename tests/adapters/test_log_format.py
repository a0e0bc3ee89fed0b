"""The log format: what was written is read, what was not never is, and bad bytes are told apart."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ycore_adapters.stores._log import (
    HEADER_SIZE,
    MAGIC,
    MAX_NAME,
    Damaged,
    Later,
    LogError,
    Record,
    TornTail,
    decode_header,
    decode_records,
    encode_header,
    encode_record,
    recover,
)

SALT = 0xC0FFEE42
OTHER_SALT = 0x0DDBA115
NAME = "räume/1"
PAYLOADS = (b"first", b"", b"third, a longer one", b"last")
HEADER = encode_header(NAME, SALT)
RECORDS = [encode_record(payload, time=1_000, salt=SALT) for payload in PAYLOADS]
LOG = HEADER + b"".join(RECORDS)
BOUNDS = [len(HEADER)]
for _record in RECORDS:
    BOUNDS.append(BOUNDS[-1] + len(_record))
"""Where the records begin; the last one is the end of the log."""


def read(data: bytes) -> tuple[list[bytes], LogError | None]:
    """The payloads of a log, and what was wrong behind them."""
    payloads: list[bytes] = []
    try:
        _, salt, start = decode_header(data)
        for record in decode_records(data, start, salt):
            payloads.append(record.update)
    except LogError as exc:
        return payloads, exc
    return payloads, None


def told(error: LogError | None) -> tuple[type[LogError], int] | None:
    return None if error is None else (type(error), error.offset)


@given(
    name=st.text(st.characters(), max_size=40),
    salt=st.integers(0, 2**32 - 1),
    written=st.lists(
        st.tuples(
            st.binary(max_size=40),
            st.integers(0, 2**64 - 1),
            st.one_of(st.booleans(), st.binary(min_size=1, max_size=20)),
        ),
        max_size=5,
    ),
)
def test_a_log_is_read_as_it_was_written(
    name: str, salt: int, written: list[tuple[bytes, int, bool | bytes]]
) -> None:
    """Of updates, snapshots, and updates with metadata."""
    log = encode_header(name, salt)
    begin = len(log)
    records = []
    for update, time, extra in written:
        snapshot = extra is True
        metadata = extra if isinstance(extra, bytes) else b""
        log += encode_record(update, time=time, salt=salt, metadata=metadata, snapshot=snapshot)
        records.append(Record(snapshot, time, update, metadata, len(log)))
    assert decode_header(log) == (name, salt, begin)
    assert list(decode_records(log, begin, salt)) == records


@pytest.mark.parametrize("char", ["a", "é", "€", "😀", "\ud800", "\x00"])
def test_the_longest_name_fits(char: str) -> None:
    name = char * MAX_NAME
    header = encode_header(name, SALT)
    assert len(header) <= HEADER_SIZE
    assert decode_header(header) == (name, SALT, len(header))


def test_every_prefix_gives_its_whole_records_and_is_torn_unless_it_ends_with_one() -> None:
    for size in range(len(LOG) + 1):
        payloads, error = read(LOG[:size])
        whole = sum(size >= end for end in BOUNDS[1:])
        assert payloads == list(PAYLOADS[:whole]), size
        if size in BOUNDS:
            assert error is None, size
        else:
            last = max((bound for bound in BOUNDS if bound <= size), default=0)
            assert told(error) == (TornTail, last), size


# Where something is in the log, and what must be said if a bit of it flips.
FLIPS: dict[str, tuple[int, int, type[LogError], int | None]] = {
    # The offset None: some byte of the header.
    "magic": (0, 8, Damaged, None),
    "version": (8, 10, Damaged, None),
    "salt": (10, 14, Damaged, None),
    "name length": (14, 18, Damaged, None),
    "name": (18, len(HEADER) - 4, Damaged, None),
    "header crc": (len(HEADER) - 4, len(HEADER), Damaged, None),
    "first record": (BOUNDS[0], BOUNDS[1], Damaged, BOUNDS[0]),
    "empty record": (BOUNDS[1], BOUNDS[2], Damaged, BOUNDS[1]),
    "third record": (BOUNDS[2], BOUNDS[3], Damaged, BOUNDS[2]),
    "last record": (BOUNDS[3], BOUNDS[4], Damaged, BOUNDS[3]),
}


@pytest.mark.parametrize(("begin", "end", "error", "offset"), FLIPS.values(), ids=FLIPS)
def test_a_flipped_bit_never_gives_a_wrong_record(
    begin: int, end: int, error: type[LogError], offset: int | None
) -> None:
    """The records before it are given, and it is damage, in the last record too: no write that was
    cut off leaves a record that is all there."""
    before = [
        payload for payload, bound in zip(PAYLOADS, BOUNDS[1:], strict=True) if bound <= begin
    ]
    for at in range(begin, end):
        for bit in range(8):
            broken = bytearray(LOG)
            broken[at] ^= 1 << bit
            payloads, found = read(bytes(broken))
            assert payloads == before, (at, bit)
            assert type(found) is error, (at, bit, found)
            assert found.offset == offset or (offset is None and found.offset < len(HEADER))


@pytest.mark.parametrize("zeros", [1, 4, 20, 21, 22, 4096])
def test_a_tail_of_zeros_is_torn(zeros: int) -> None:
    """As file systems leave it that had made a file longer, but not written it yet."""
    assert read(LOG + bytes(zeros))[0] == list(PAYLOADS)
    assert told(read(LOG + bytes(zeros))[1]) == (TornTail, len(LOG))


BLOCK = 4096
BATCH = [bytes([65 + i]) * 3000 for i in range(5)]
"""Updates that one append wrote; not a zero in them."""


@pytest.mark.parametrize("fill", [0, 1, BLOCK - len(LOG) - 10, BLOCK - len(LOG)])
@pytest.mark.parametrize("lost", [[0], [1], [3], [0, 1, 2, 3, 4], [1, 2], [2, 3, 4]])
def test_a_batch_of_which_blocks_were_never_written_is_torn(fill: int, lost: list[int]) -> None:
    """The file got longer, and the power went before all blocks were on the disk: what they had
    before is there, which is nothing of the batch. Only if a whole record comes behind it can't be
    told from damage, and must not be cut."""
    before = LOG
    if fill > 0:
        before += encode_record(b"f" * max(fill - 21, 0), time=1_000, salt=SALT)
    records = [encode_record(update, time=1_000, salt=SALT) for update in BATCH]
    bounds = [len(before)]
    for record in records:
        bounds.append(bounds[-1] + len(record))
    whole = before + b"".join(records)
    left = bytearray(whole)
    for block in lost:
        begin, end = max(block * BLOCK, len(before)), (block + 1) * BLOCK
        left[begin:end] = bytes(len(left[begin:end]))
    data = bytes(left)
    intact = [data[a:b] == record for (a, b), record in zip(pairwise(bounds), records, strict=True)]
    first = intact.index(False) if False in intact else None
    payloads, error = read(data)
    if first is None:
        assert error is None
        return
    assert payloads[-first:] == BATCH[:first] or not first
    zeros = next(
        begin
        for block in range(len(data) // BLOCK + 1)
        if (begin := max(block * BLOCK, bounds[first])) < (block + 1) * BLOCK
        and not data[begin : (block + 1) * BLOCK].strip(b"\0")
    )
    is_tear = not any(intact[first:]) and not data[zeros:].strip(b"\0")
    expected = TornTail if is_tear else Damaged
    assert told(error) == (expected, bounds[first])


@pytest.mark.parametrize("zeros", [1, 2, 15])
def test_zeros_that_an_update_ends_with_do_not_excuse_a_flipped_bit(zeros: int) -> None:
    """Most updates end with one. Here the last of them are the first of a block."""
    size = BLOCK - len(LOG) - 21
    record = bytearray(encode_record(b"u" * size + bytes(zeros), time=1_000, salt=SALT))
    record[100] ^= 1
    assert told(read(LOG + bytes(record))[1]) == (Damaged, len(LOG))


def test_a_snapshot_is_never_torn() -> None:
    """Its file was synced before it got its name: who cut it off, or zeroed it, was no writer."""
    snapshot = encode_record(b"all there was" * 1000, time=1_000, salt=SALT, snapshot=True)
    start = len(HEADER)
    for log in (HEADER + snapshot, HEADER + snapshot + RECORDS[0]):
        for size in range(start + 5, start + len(snapshot), 7):
            assert told(read(log[:size])[1]) == (Damaged, start)
    zeroed = HEADER + snapshot[:BLOCK] + bytes(len(snapshot) - BLOCK)
    assert told(read(zeroed)[1]) == (Damaged, start)


@pytest.mark.parametrize("name", ["", "r", NAME, "x" * 3000])
@pytest.mark.parametrize("snapshot", [False, True])
def test_of_a_header_every_byte_can_be_spared(name: str, snapshot: bool) -> None:
    """Whichever is broken, the checksums tell the salt, so that no record is lost with it."""
    header = encode_header(name, SALT)
    log = header + encode_record(b"first", time=1, salt=SALT, snapshot=snapshot) + RECORDS[0]
    places = range(len(header)) if len(header) < 100 else (0, 10, 13, 14, 1000, len(header) - 1)
    for at in places:
        for broken in (log[at] ^ 1, log[at] ^ 0xFF, log[at] ^ 0x10):
            data = log[:at] + bytes([broken]) + log[at + 1 :]
            with pytest.raises(Damaged):
                decode_header(data)
            assert recover(data, name) == (SALT, len(header)), at


@pytest.mark.parametrize("name", ["r", NAME, "x" * 3000])
def test_a_header_that_is_cut_off_is_torn_and_one_that_is_damaged_is_not(name: str) -> None:
    """Even if nothing can be found behind it: if one knows the name, one knows what a beginning of
    the header looks like."""
    header = encode_header(name, SALT)
    for size in (*range(19), len(header) - 5, len(header) - 1):
        with pytest.raises(TornTail):
            decode_header(header[:size], name)
    log = bytearray(header + encode_record(b"first", time=1, salt=SALT))
    log[10] ^= 1  # the salt, so that no record is found
    for at in range(14, 18):
        broken = bytes(log[:at]) + b"\xff" + bytes(log[at + 1 :])
        with pytest.raises(Damaged):
            decode_header(broken, name)


@pytest.mark.parametrize("spared", ["salt", "header's checksum", "first record"])
def test_of_the_places_that_tell_the_salt_one_is_enough(spared: str) -> None:
    data = bytearray(LOG)
    if spared != "salt":
        data[10:14] = b"\xde\xad\xbe\xef"
    if spared != "header's checksum":
        data[len(HEADER) - 1] ^= 1
    if spared != "first record":
        data[len(HEADER)] ^= 1
    assert recover(bytes(data), NAME)[0] == SALT


@pytest.mark.parametrize(
    ("salt", "error"), [(OTHER_SALT, TornTail), (SALT, Damaged)], ids=["other file", "this file"]
)
def test_a_payload_does_not_pass_for_a_record(salt: int, error: type[LogError]) -> None:
    """A payload with a record of another file in it is no whole record behind a broken one."""
    payload = b"..." + encode_record(b"evil", time=1, salt=salt) + b"..."
    log = LOG + encode_record(payload, time=1_000, salt=SALT)
    assert told(read(log[:-1])[1]) == (error, len(LOG))


def _reseal(header: bytes) -> bytes:
    return header[:-4] + crc32(header[:-4]).to_bytes(4, "little")


NO_LOGS: dict[str, tuple[bytes, type[LogError]]] = {
    "empty": (b"", TornTail),
    "other file": (b"SQLite format 3\x00" + bytes(100), Damaged),
    "short other file": (b"yc!", Damaged),
    "zeros": (bytes(100), TornTail),
    "zeros, a large block of them": (bytes(4096), TornTail),
    "zeros but for the end": (bytes(100) + b"x", Damaged),
    "later version": (_reseal(MAGIC + b"\x02\x00" + HEADER[10:]) + RECORDS[0], Later),
    "huge name": (_reseal(HEADER[:14] + b"\xff\xff\xff\xff" + HEADER[18:]), Damaged),
}


@pytest.mark.parametrize(("data", "error"), NO_LOGS.values(), ids=NO_LOGS)
def test_what_is_no_log_of_this_version_is_damaged(data: bytes, error: type[LogError]) -> None:
    payloads, found = read(data)
    assert payloads == []
    assert type(found) is error


def test_a_record_of_a_later_kind_is_not_skipped() -> None:
    """Nor taken for an update: what is behind it can't be the whole document."""
    record = bytearray(encode_record(b"?", time=1, salt=SALT))
    record[4] = 4
    record[17:21] = crc32(record[:17], SALT).to_bytes(4, "little")
    payloads, error = read(LOG + bytes(record) + RECORDS[0])
    assert payloads == list(PAYLOADS)
    assert told(error) == (Later, len(LOG))
    assert "later ycore" in str(error)


@given(st.binary(max_size=80), st.sampled_from([bytes, lambda data: HEADER + data]))
def test_any_bytes_are_a_log_or_a_log_error(data: bytes, wrap: Callable[[bytes], bytes]) -> None:
    payloads, _ = read(wrap(data))
    assert payloads == []
