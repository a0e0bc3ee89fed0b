"""Stores: where rooms are kept. The interface, its errors, and those that come with ycore."""

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
    "StoreUnavailable",
    "StoredUpdate",
]
