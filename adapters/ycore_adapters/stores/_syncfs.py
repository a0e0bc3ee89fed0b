"""syncfs(2): makes durable what was written to all files of a file system, in one call.

A sync of each of thousands of files costs a commit of the file system's journal each, or a wait for
another's, and a turn of the interpreter's lock. This costs one. It can be relied upon where a write
that failed is told (Linux 5.8 and later), and the file system is known to be made so that syncing
all of it syncs each file.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from typing import Final

_KNOWN: Final = frozenset({0xEF53, 0x58465342, 0x9123683E})
"""Of ext2 to ext4, XFS and Btrfs, what `statfs` calls them."""
_STATFS_BYTES: Final = 512
"""More than a `struct statfs` has on any machine; it begins with the kind, a long."""


def can_syncfs(fd: int) -> bool:
    """Whether the file system that an open file is on may be synced by `syncfs`."""
    if not sys.platform.startswith("linux") or _linux_version() < (5, 8):
        return False
    libc = ctypes.CDLL(None)
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if not hasattr(libc, "syncfs") or libc.fstatfs(fd, buffer):
        return False
    return ctypes.c_long.from_buffer(buffer).value in _KNOWN


def _linux_version() -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))


def syncfs(fd: int) -> None:
    """Sync the file system that an open file is on.

    Raises:
        OSError: something of what was written to it since `fd` was opened is not on the disk.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(fd):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
