"""Says what bytes are that are no update of version 1."""

from __future__ import annotations

from typing import Final

from ycore import RemoteProtocolError
from ycore.lib0 import read_var_uint

_COLUMNS: Final = 9
"""Of version 2: keyClock, client, leftClock, rightClock, info, string, parentInfo, typeRef, len.
Each begins with its length; what does not fit into them follows."""


def explained(update: bytes, error: RemoteProtocolError) -> str:
    """Why these bytes are no update."""
    if not _is_version_2(update):
        return str(error)
    return (
        "it is in version 2 of the update format, and ycore reads version 1: write it with "
        "Y.encodeStateAsUpdate, or convert it with Y.convertUpdateFormatV2ToV1"
    )


def _is_version_2(update: bytes) -> bool:
    """Whether they have the columns of `UpdateEncoderV2`. A V1 update that begins like that has no
    structs, and is over after its deletes."""
    at = 1
    try:
        for _ in range(_COLUMNS):
            length, at = read_var_uint(update, at)
            at += length
    except RemoteProtocolError:
        return False
    return update[0] == 0 and at < len(update)
