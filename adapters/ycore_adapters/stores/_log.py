"""The format of a room's log file: pure encoding and decoding, no I/O.

    file   := header record*
    header := "ycorelog"  version u16  salt u32  nameLength u32  name (UTF-8)  crc u32
    record := length u32  kind u8  time u64  payloadCrc u32  headCrc u32  payload (length bytes)

Integers are little-endian. `time` is milliseconds since 1970. `crc` covers the header before it;
`headCrc` the record's fields before it, `payloadCrc` the payload, both starting from the file's
random salt, so that no payload can hold bytes that pass for a record.

A writer that died leaves a torn tail: bytes behind the last whole record with no whole record after
them. Bad bytes with a whole record after them are damage of another kind, and never skipped.
"""

from __future__ import annotations

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
"""The kind of a record whose payload is an update: one edit, or all of a document."""

_HEADER: Final = Struct("<8sHII")
_HEAD: Final = Struct("<IBQI")
_CRC: Final = Struct("<I")
_HEAD_SIZE: Final = _HEAD.size + _CRC.size
_KIND_AT: Final = 4
"""Where in a record its kind is."""
_SCAN_BYTES: Final = 64 * 1024
MAX_NAME: Final = 2**14
"""How many characters a room's name may have. An HTTP request could hardly carry more."""

_MAX_NAME_BYTES: Final = 4 * MAX_NAME
HEADER_SIZE: Final = _HEADER.size + _MAX_NAME_BYTES + _CRC.size
"""The largest a header can be, in bytes."""


@dataclass(frozen=True, slots=True)
class Record:
    kind: int
    time: int
    payload: bytes
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
    """It is no log of this version, or something in the middle of it is broken."""


def encode_header(name: str, salt: int) -> bytes:
    raw = name.encode("utf-8", "surrogatepass")
    head = _HEADER.pack(MAGIC, VERSION, salt, len(raw)) + raw
    return head + _CRC.pack(crc32(head))


def encode_record(payload: bytes, *, time: int, salt: int, kind: int = UPDATE) -> bytes:
    head = _HEAD.pack(len(payload), kind, time, crc32(payload, salt))
    return b"".join((head, _CRC.pack(crc32(head, salt)), payload))


def decode_header(data: Buffer) -> tuple[str, int, int]:
    """Return the room's name, the salt, and where the records begin.

    Raises:
        TornTail: the file ends before its header does.
        Damaged: it is something else, or of another version.
    """
    size = len(data)
    if size < _HEADER.size:
        if not MAGIC.startswith(data[: len(MAGIC)]):
            raise Damaged(0, "no ycore log")
        raise TornTail(0, "incomplete header")
    magic, version, salt, length = _HEADER.unpack(data[: _HEADER.size])
    if magic != MAGIC:
        raise Damaged(0, "no ycore log")
    if version != VERSION:
        raise Damaged(8, f"log version {version}, this ycore reads version {VERSION},")
    end = _HEADER.size + length
    if length > _MAX_NAME_BYTES:
        raise Damaged(0, "broken header")
    if size < end + _CRC.size:
        if _whole_record_after(data, _HEADER.size, salt):  # then the length is what is broken
            raise Damaged(0, "broken header")
        raise TornTail(0, "incomplete header")
    if crc32(data[:end]) != _CRC.unpack(data[end : end + _CRC.size])[0]:
        raise Damaged(0, "broken header")
    return data[_HEADER.size : end].decode("utf-8", "surrogatepass"), salt, end + _CRC.size


def decode_records(data: Buffer, start: int, salt: int) -> Iterator[Record]:
    """The records from `start` on.

    Raises:
        TornTail, Damaged: after the last record that could be read; see the top of this module.
    """
    pos = start
    size = len(data)
    while pos < size:
        head = _decode_head(data, pos, salt)
        if head is None:
            if _whole_record_after(data, pos, salt):
                raise Damaged(pos, "broken record")
            raise TornTail(pos, "incomplete record")
        length, kind, time, payload_crc = head
        begin = pos + _HEAD_SIZE
        end = begin + length
        if end > size:
            raise TornTail(pos, "incomplete record")
        payload = data[begin:end]
        if crc32(payload, salt) != payload_crc:
            if _whole_record_after(data, pos, salt):
                raise Damaged(pos, "broken record")
            raise TornTail(pos, "incomplete record")
        if kind != UPDATE:
            raise Damaged(pos, f"record of unknown kind {kind}")
        yield Record(kind, time, payload, end)
        pos = end


def _decode_head(data: Buffer, pos: int, salt: int) -> tuple[int, int, int, int] | None:
    head = data[pos : pos + _HEAD_SIZE]
    if len(head) < _HEAD_SIZE:
        return None
    if crc32(head[: _HEAD.size], salt) != _CRC.unpack_from(head, _HEAD.size)[0]:
        return None
    length, kind, time, payload_crc = _HEAD.unpack_from(head)
    return length, kind, time, payload_crc


def _whole_record_after(data: Buffer, pos: int, salt: int) -> bool:
    """Whether a whole record begins anywhere behind `pos`.

    Looks for the kind alone first: tails are long, and often mostly zeros.
    """
    for start in range(pos + 1, len(data), _SCAN_BYTES):
        chunk = data[start : start + _SCAN_BYTES + _KIND_AT + 1]
        found = chunk.find(UPDATE, _KIND_AT)
        while found >= 0:
            at = start + found - _KIND_AT
            head = _decode_head(data, at, salt)
            if head is not None:
                payload = data[at + _HEAD_SIZE : at + _HEAD_SIZE + head[0]]
                if len(payload) == head[0] and crc32(payload, salt) == head[3]:
                    return True
            found = chunk.find(UPDATE, found + 1)
    return False
