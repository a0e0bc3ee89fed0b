"""Stores: where rooms are kept. The interface, its errors, and those that come with ycore.

`open_store(url)` makes one that a URL names; see `urls`.
"""

from ._owned import Fsync
from .file import FileStore
from .interface import (
    HistoryNotKept,
    RoomCorrupt,
    RoomInUse,
    RoomNotFound,
    Store,
    StoredUpdate,
    StoreError,
    StoreUnavailable,
)
from .memory import MemoryStore
from .sqlite import SQLiteStore
from .urls import StoreURLError, UnknownScheme, open_store

__all__ = [
    "FileStore",
    "Fsync",
    "HistoryNotKept",
    "MemoryStore",
    "RoomCorrupt",
    "RoomInUse",
    "RoomNotFound",
    "SQLiteStore",
    "Store",
    "StoreError",
    "StoreURLError",
    "StoreUnavailable",
    "StoredUpdate",
    "UnknownScheme",
    "open_store",
]
