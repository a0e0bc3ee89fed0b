"""ycore: the server's and the client's side of Yjs collaboration, without any I/O.

Start with `Hub` (rooms that come from a store) or `Room` (one document, in memory). Both take
inputs and return effects to carry out in order; see `ycore.room`. `ycore.updates` works on updates
without a room.
"""

from .awareness import Awareness, AwarenessEntry
from .errors import CloseCode, LocalProtocolError, ProtocolError, RemoteProtocolError
from .hub import Hub
from .room import (
    Close,
    CustomMessage,
    Effect,
    Load,
    Member,
    Persist,
    Probe,
    Room,
    Send,
    Settings,
    State,
    Unload,
)
from .updates import (
    StructStore,
    check_update,
    diff_update,
    encode_state_vector_from_update,
    merge_updates,
)

__all__ = [
    "Awareness",
    "AwarenessEntry",
    "Close",
    "CloseCode",
    "CustomMessage",
    "Effect",
    "Hub",
    "Load",
    "LocalProtocolError",
    "Member",
    "Persist",
    "Probe",
    "ProtocolError",
    "RemoteProtocolError",
    "Room",
    "Send",
    "Settings",
    "State",
    "StructStore",
    "Unload",
    "check_update",
    "diff_update",
    "encode_state_vector_from_update",
    "merge_updates",
]
