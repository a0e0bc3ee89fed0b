"""The format of a room's log file: pure encoding and decoding, no I/O.

    file   := header record*
    header := "ycorelog"  version u16  salt u32  nameLength u32  name (UTF-8)  crc u32
    record := length u32  kind u8  time u64  payloadCrc u32  headCrc u32  payload (length bytes)

    kind   := 1 update, the payload: one edit
            | 2 snapshot, the payload: an update with all there was
            | 3 update with metadata, the payload: metadataLength u32  metadata  update

Integers are little-endian. `time` is milliseconds since 1970. `crc` covers the header before it;
`headCrc` the record's fields before it, `payloadCrc` the payload, both starting from the file's
random salt, so that no payload can hold bytes that pass for a record.

A writer that died, or a power cut, leaves a torn tail: its last record ends with the file before it
is complete, or all of it from some block on is zeros; and no whole record is behind it.
Whatever else is broken is damage, and never skipped unsaid: a sound head whose payload is complete
and does not match its checksum, a head that is neither cut off nor zeros, bad bytes with a whole
record after them. A snapshot is never torn, for it was synced before its file took the log's name.

A header that is damaged takes no record with it: the salt is also in its checksum, and in those of
the records, whose starting value can be computed (`recover`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Final, Protocol
from zlib import crc32


class Buffer(Protocol):
    """The bytes of a log: `bytes` itself, or something that reads a file."""

    def __len__(self) -> int: ...
    def __getitem__(self, key: slice, /) -> bytes: ...


MAGIC: Final = b"ycorelog"
VERSION: Final = 1
UPDATE: Final = 1
SNAPSHOT: Final = 2
WITH_METADATA: Final = 3
_KINDS: Final = (UPDATE, SNAPSHOT, WITH_METADATA)
_ANY_KIND: Final = re.compile(b"[%b]" % bytes(_KINDS))

_HEADER: Final = Struct("<8sHII")
_HEAD: Final = Struct("<IBQI")
_INT: Final = Struct("<I")
HEAD_SIZE: Final = _HEAD.size + _INT.size
"""What a record has beside its payload, in bytes."""
_KIND_AT: Final = 4
"""Where in a record its kind is."""
_SCAN_BYTES: Final = 64 * 1024
_BLOCK: Final = 4096
"""What file systems write, or have not written, as a whole."""
_FEW_ZEROS: Final = 16
"""So many at the end of a file may well be the end of an update."""
_POLYNOMIAL: Final = 0xEDB88320
"""Of CRC-32, as zlib has it."""
MAX_NAME: Final = 2**14
"""How many characters a room's name may have. An HTTP request could hardly carry more."""

_MAX_NAME_BYTES: Final = 4 * MAX_NAME
HEADER_SIZE: Final = _HEADER.size + _MAX_NAME_BYTES + _INT.size
"""The largest a header can be, in bytes."""


@dataclass(frozen=True, slots=True)
class Record:
    is_snapshot: bool
    time: int
    update: bytes
    metadata: bytes
    end: int
    """Where in the file the next record begins."""


class LogError(Exception):
    """The file can't be read from `offset` on."""

    def __init__(self, offset: int, why: str) -> None:
        super().__init__(f"{why} at byte {offset}")
        self.offset = offset


class TornTail(LogError):
    """What is behind `offset` was never completely written, and nothing follows it."""


class Damaged(LogError):
    """It is no log of this version, or something is broken that was whole once."""


class Later(Damaged):
    """It is of a version that this one can't read."""


def encode_header(name: str, salt: int) -> bytes:
    raw = name.encode("utf-8", "surrogatepass")
    head = _HEADER.pack(MAGIC, VERSION, salt, len(raw)) + raw
    return head + _INT.pack(crc32(head))


def encode_record(
    update: bytes, *, time: int, salt: int, metadata: bytes = b"", snapshot: bool = False
) -> bytes:
    kind, payload = SNAPSHOT if snapshot else UPDATE, update
    if metadata:
        kind, payload = WITH_METADATA, _INT.pack(len(metadata)) + metadata + update
    head = _HEAD.pack(len(payload), kind, time, crc32(payload, salt))
    return b"".join((head, _INT.pack(crc32(head, salt)), payload))


def decode_header(data: Buffer, name: str | None = None) -> tuple[str, int, int]:
    """Return the room's name, the salt, and where the records begin.

    Args:
        name: what it should be, if that is known: then what is cut off can be told from what is
            damaged.

    Raises:
        TornTail: the file ends before its header does.
        Damaged: it is something else, or of another version.
    """
    size = len(data)
    if _is_blank(data):
        raise TornTail(0, "blank header")
    magic, version, salt, length = _HEADER.unpack(data[: _HEADER.size].ljust(_HEADER.size, b"\0"))
    if magic != MAGIC and not MAGIC.startswith(data[: len(MAGIC)]):
        raise Damaged(0, "no ycore log")
    end = _HEADER.size + length
    if size < _HEADER.size or size < end + _INT.size:
        if name is not None:
            expected = encode_header(name, salt)
            is_whole_so_far = size < len(expected) and data[:size] == expected[:size]
        else:
            is_whole_so_far = (
                length <= _MAX_NAME_BYTES and next_record(data, _HEADER.size, salt) is None
            )
        if is_whole_so_far:
            raise TornTail(0, "incomplete header")
        raise Damaged(0, "broken header")
    if length > _MAX_NAME_BYTES:
        raise Damaged(0, "broken header")
    if crc32(data[:end]) != _INT.unpack(data[end : end + _INT.size])[0]:
        raise Damaged(0, "broken header")
    if version != VERSION:
        raise Later(8, f"log version {version}, this ycore reads version {VERSION},")
    return data[_HEADER.size : end].decode("utf-8", "surrogatepass"), salt, end + _INT.size


def recover(data: Buffer, name: str) -> tuple[int, int]:
    """What can be told of a log of that name whose header is damaged: the salt, and where the
    records begin.

    Three places tell the salt, and each may be damaged: the salt's own, the header's checksum and
    the first record's head. They are tried in turn, until a whole record is found with one.
    """
    raw = name.encode("utf-8", "surrogatepass")
    before, after = _HEADER.pack(MAGIC, VERSION, 0, len(raw))[:10], _INT.pack(len(raw)) + raw
    end = _HEADER.size + len(raw)
    start = end + _INT.size
    found = data[: start + HEAD_SIZE].ljust(start + HEAD_SIZE, b"\0")
    (stored,) = _INT.unpack_from(found, len(before))
    (checksum,) = _INT.unpack_from(found, end)
    (first,) = _INT.unpack_from(found, start + _HEAD.size)
    for salt in (
        stored,
        crc32(before) ^ _crc_started_from(bytes(_INT.size) + after, checksum),
        _crc_started_from(found[start : start + _HEAD.size], first),
    ):
        if next_record(data, 0, salt) is not None:
            return salt, start
    return stored, start


def _crc_started_from(data: bytes, crc: int) -> int:
    """The x of crc32(data, x) == crc."""
    register = ~crc & 0xFFFFFFFF
    for byte in reversed(data):
        for _ in range(8):
            carried = register >> 31
            register = ((register ^ _POLYNOMIAL * carried) << 1 | carried) & 0xFFFFFFFF
        register ^= byte
    return ~register & 0xFFFFFFFF


def _is_blank(data: Buffer) -> bool:
    """Whether it is all zeros: a file system may have made the file longer, and then lost power
    before it wrote what belongs there."""
    step = _SCAN_BYTES
    return not any(data[at : at + step].strip(b"\0") for at in range(0, len(data), step))


def decode_records(data: Buffer, start: int, salt: int) -> Iterator[Record]:
    """The records from `start` on.

    Raises:
        TornTail, Damaged: after the last record that could be read; see the top of this module.
    """
    pos = start
    size = len(data)
    while pos < size:
        record = _decode_record(data, pos, salt)
        if record is None:
            if not _may_be_torn(data, pos, salt) or next_record(data, pos, salt) is not None:
                raise Damaged(pos, "broken record")
            raise TornTail(pos, "incomplete record")
        yield record
        pos = record.end


def next_record(data: Buffer, pos: int, salt: int) -> int | None:
    """Where behind `pos` the first whole record begins, if there is one.

    Looks for the kind alone first: tails are long, and often mostly zeros.
    """
    for start in range(pos + 1, len(data), _SCAN_BYTES):
        chunk = data[start : start + _SCAN_BYTES + _KIND_AT + 1]
        for found in _ANY_KIND.finditer(chunk, _KIND_AT):
            at = start + found.start() - _KIND_AT
            if _decode_record(data, at, salt) is not None:
                return at
    return None


def snapshot_length(data: Buffer, pos: int, salt: int) -> int | None:
    """How many bytes the snapshot has whose broken record is there; 0 if it is an update's, None if
    that can't be told."""
    head = _decode_head(data, pos, salt)
    if head is None:
        return None
    length, kind, _, _ = head
    return length if kind == SNAPSHOT else 0


def _may_be_torn(data: Buffer, pos: int, salt: int) -> bool:
    """Whether the broken record there can be what a kill or a power cut left of a write."""
    head = _decode_head(data, pos, salt)
    if head is None:
        end = pos + HEAD_SIZE
        if end > len(data):
            return data[pos:][_KIND_AT : _KIND_AT + 1] != bytes([SNAPSHOT])
        return _was_not_written(data, pos, end)
    length, kind, _, _ = head
    end = pos + HEAD_SIZE + length
    if kind == SNAPSHOT:
        return False
    return end > len(data) or _was_not_written(data, pos, end)


def _was_not_written(data: Buffer, start: int, stop: int) -> bool:
    """Whether of what begins at `start` a block, or the part of it that is behind `start`, is all
    zeros, and so is everything behind that: as a file system leaves it that made the file longer
    and has not written it yet. It may have written a later block first; but so may look an edit
    with zeros in it, one bit of which is wrong, so somebody has to look at that."""
    size = len(data)
    for block in range(start - start % _BLOCK, stop, _BLOCK):
        begin, end = max(block, start), min(block + _BLOCK, size)
        if begin > start and end == size < begin + _FEW_ZEROS:
            return False
        if not data[begin:end].strip(b"\0"):
            return _is_blank(data[begin:])
    return False


def _decode_head(data: Buffer, pos: int, salt: int) -> tuple[int, int, int, int] | None:
    """The length, kind, time and payload's checksum of a record; None if its head is broken."""
    head = data[pos : pos + HEAD_SIZE]
    if (
        len(head) < HEAD_SIZE
        or crc32(head[: _HEAD.size], salt) != _INT.unpack_from(head, _HEAD.size)[0]
    ):
        return None
    return _HEAD.unpack_from(head)


def _decode_record(data: Buffer, pos: int, salt: int) -> Record | None:
    head = _decode_head(data, pos, salt)
    if head is None:
        return None
    length, kind, time, payload_crc = head
    begin = pos + HEAD_SIZE
    payload = data[begin : begin + length] if begin + length <= len(data) else None
    if payload is None or crc32(payload, salt) != payload_crc:
        return None
    metadata = b""
    if kind == WITH_METADATA and length >= _INT.size:
        cut = _INT.size + _INT.unpack_from(payload)[0]
        metadata, payload = payload[_INT.size : cut], payload[cut:]
    elif kind not in _KINDS:
        raise Later(pos, f"record of kind {kind}, which only a later ycore knows,")
    return Record(kind == SNAPSHOT, time, payload, metadata, begin + length)
