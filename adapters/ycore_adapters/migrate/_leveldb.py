"""Reads y-leveldb, the persistence of y-websocket 1.x: a LevelDB database, with the package plyvel.

    ["v1", room, "update", clock]   an update, under a key of strings and a number
    ["v1", room, "meta", name]      the application's own, which is left out
    ["v1_sv", room]                 a state vector

In a key, a string is 0 and a varString, a number 1 and a big-endian uint32 (`src/y-leveldb.js`,
keyEncoding). There are no times. LevelDB tidies its files up whenever it is opened.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from ycore import RemoteProtocolError
from ycore.lib0 import read_var_uint, write_var_string

from ..stores import StoredUpdate
from ._source import MigrationError, Source, Updates, raise_told, tell

_STRING: Final = 0


def leveldb_source(path: Path) -> Source:
    """A LevelDB database of y-leveldb; a room's name is that of the document."""
    source = Source("y-leveldb", {})
    names: set[str] = set()
    try:
        for key, _ in _entries(path, _string("v1")):
            if len(key) == 4 and key[2] == "update":
                names.add(str(key[1]))
    except MigrationError as exc:
        if not names:
            raise
        source.problems.append(str(exc))
    if not names:
        raise MigrationError(f"{path} is a LevelDB database, but not of a y-leveldb with documents")
    for name in sorted(names):
        source.rooms[name] = lambda name=name: _updates(path, name)  # type: ignore[misc]
    return source


def _plyvel(path: Path) -> Any:
    try:
        import plyvel  # noqa: PLC0415 - an extra
    except ImportError:
        raise MigrationError(
            f"{path} is a LevelDB database: to read it, `pip install 'ycore[leveldb]'`"
        ) from None
    return plyvel


def _entries(path: Path, prefix: bytes) -> Generator[tuple[list[str | int], bytes], None, None]:
    """What is under keys that begin so.

    Raises:
        MigrationError: at the end, if that is not all.
    """
    plyvel = _plyvel(path)
    try:
        # Without the checks, opening it throws away what is behind damage, and says nothing.
        db = plyvel.DB(str(path), create_if_missing=False, paranoid_checks=True)
    except plyvel.CorruptionError as exc:
        raise MigrationError(
            f"{path} is damaged: {exc}. On a copy of it, plyvel.repair_db may help"
        ) from exc
    except plyvel.Error as exc:
        raise MigrationError(f"can't read {path}: {exc}. Is a server using it?") from exc
    problems: list[str] = []

    def move(step: Callable[[], None]) -> None:
        """Damaged blocks are left out. From then on each step raises, though it was made."""
        try:
            step()
        except plyvel.Error as exc:
            if not problems:
                problems.append(f"of {path}, not everything can be read: {exc}")

    try:
        entries = db.raw_iterator(verify_checksums=True)  # the other one ends at damage, silently
        move(lambda: entries.seek(prefix))
        while entries.valid() and entries.key().startswith(prefix):
            try:
                key = _key(entries.key())
            except (RemoteProtocolError, IndexError, UnicodeDecodeError, struct.error):
                tell(problems, f"{path}: a key that is none of y-leveldb's: {entries.key()!r:.100}")
            else:
                yield key, entries.value()
            move(entries.next)
    finally:
        db.close()
    raise_told(problems)


def _string(text: str) -> bytes:
    """A string in a key."""
    out = bytearray([_STRING])
    write_var_string(out, text)
    return bytes(out)


def _key(raw: bytes) -> list[str | int]:
    """A key: strings and numbers, each behind its type."""
    key: list[str | int] = []
    pos = 0
    while pos < len(raw):
        kind = raw[pos]
        pos += 1
        if kind == _STRING:
            length, pos = read_var_uint(raw, pos)
            key.append(raw[pos : pos + length].decode())
            pos += length
        else:
            key.append(struct.unpack_from(">I", raw, pos)[0])
            pos += 4
    return key


def _updates(path: Path, room: str) -> Updates:
    modified = (path / "CURRENT").stat().st_mtime
    with closing(_entries(path, _string("v1") + _string(room) + _string("update"))) as entries:
        for _, update in entries:
            yield StoredUpdate(update, modified)
