"""ycore: the server's and the client's side of Yjs collaboration, without any I/O.

Start with `Hub` (rooms that come from a store) or `Room` (one document, in memory). Both take
inputs and return effects to carry out in order; see `ycore.room`. `ycore.updates` works on updates
without a room.
"""

from .awareness import Awareness, AwarenessEntry
from .effects import (
    AwarenessChanged,
    Close,
    CustomMessage,
    Effect,
    Load,
    Persist,
    Probe,
    Send,
    Unload,
)
from .errors import CloseCode, LocalProtocolError, ProtocolError, RemoteProtocolError
from .frame import Frame
from .hub import Hub
from .provider import Document, Provider
from .room import Member, Room, State
from .settings import ProviderSettings, Settings
from .updates import (
    StructStore,
    UpdateLimits,
    check_update,
    diff_update,
    encode_state_vector_from_update,
    merge_updates,
)

__all__ = [
    "Awareness",
    "AwarenessChanged",
    "AwarenessEntry",
    "Close",
    "CloseCode",
    "CustomMessage",
    "Document",
    "Effect",
    "Frame",
    "Hub",
    "Load",
    "LocalProtocolError",
    "Member",
    "Persist",
    "Probe",
    "ProtocolError",
    "Provider",
    "ProviderSettings",
    "RemoteProtocolError",
    "Room",
    "Send",
    "Settings",
    "State",
    "StructStore",
    "Unload",
    "UpdateLimits",
    "check_update",
    "diff_update",
    "encode_state_vector_from_update",
    "merge_updates",
]
