"""Updates, version 1: check, merge and compare them, and hold a document's (`StructStore`).

The functions bear the names they have in Yjs and mean the same. All of them refuse a malformed
update or state vector with `RemoteProtocolError`.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import RemoteProtocolError
from ._grammar import (
    NO_LIMITS,
    ParsedUpdate,
    UpdateLimits,
    decode_state_vector,
    decode_state_vector_steps,
    encode_state_vector,
    parse_update,
    parse_update_steps,
    parts_of,
)
from ._store import Place, Since, StructStore

__all__ = [
    "NO_LIMITS",
    "ParsedUpdate",
    "Place",
    "Since",
    "StructStore",
    "UpdateLimits",
    "check_update",
    "decode_state_vector",
    "decode_state_vector_steps",
    "diff_update",
    "encode_state_vector",
    "encode_state_vector_from_update",
    "merge_updates",
    "parse_update",
    "parse_update_steps",
    "parts_of",
]


def check_update(update: bytes) -> None:
    """Raise RemoteProtocolError unless `update` is well-formed and every struct in it can be.

    To `StructStore.add`, a room or a document it may be given even if its clocks are wrong: they
    leave such structs out.
    """
    if parse_update(update).left_out:
        raise RemoteProtocolError("a struct refers to one that is not before its own")


def _store(updates: Iterable[bytes]) -> StructStore:
    store = StructStore()
    for update in updates:
        store.add(update)
    return store


def merge_updates(updates: Iterable[bytes]) -> bytes:
    """One update that says what all of these say (yjs `utils/updates.js`, mergeUpdates)."""
    return _store(updates).encode()


def diff_update(update: bytes, state_vector: bytes) -> bytes:
    """What of an update someone with this state vector lacks (`utils/updates.js`, diffUpdate)."""
    return _store([update]).diff(state_vector)


def encode_state_vector_from_update(update: bytes) -> bytes:
    """What someone who has just this update has (`encodeStateVectorFromUpdate`)."""
    return _store([update]).encode_state_vector()
