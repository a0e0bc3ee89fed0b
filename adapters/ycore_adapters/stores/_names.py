"""Room names as file names: readable, safe on every file system, and never two rooms in one file.

ASCII letters in lower case, digits, "-" and "_" stay; every other byte of the name's UTF-8 becomes
%xx. So names that differ only in case stay apart where the file system ignores case, and no name
can be "..", hidden, or one of Windows's devices' (those have their first letter escaped). A name
that gets too long is cut and ends in a hash, which no escaped name does.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Final
from urllib.parse import unquote_to_bytes

_MAX_LENGTH: Final = 200
"""File systems allow 255 bytes; the store's endings want a few."""
_KEPT: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")
_DEVICE: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)$")


def file_name(room: str) -> str:
    raw = room.encode("utf-8", "surrogatepass")
    name = "".join(chr(byte) if byte in _KEPT else f"%{byte:02x}" for byte in raw)
    if _DEVICE.match(name):
        name = f"%{raw[0]:02x}{name[1:]}"
    if len(name) > _MAX_LENGTH:
        return f"{name[:100]}~{sha256(raw).hexdigest()}"
    return name or "~"


def room_name(file: str) -> str | None:
    """The room of such a file name; None if only the file itself can tell."""
    if file == "~":
        return ""
    if "~" in file:
        return None
    try:
        return unquote_to_bytes(file).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None  # no name of ours
