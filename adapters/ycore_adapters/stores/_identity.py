"""One owner of a file, by whatever name it is opened: hard links and bind mounts give it several.

A lock file beside it keeps out whoever comes by the same name, or by a symbolic link, which can be
resolved. Against the others the file itself has to be locked: one byte of it, far behind all that
it holds and all that SQLite locks. (`flock` would do on Linux, and get in SQLite's way elsewhere.)

Closing any descriptor of a file gives up the locks that its process has on it, SQLite's too: so it
is not even opened here by a process that owns it already.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from struct import Struct
from typing import Final

from ._owned import identity
from .interface import StoreUnavailable

if sys.platform != "win32":
    import fcntl

_AT: Final = 2**62
"""Which byte is locked. SQLite's are at 2**30."""
_FLOCK: Final = Struct("hhqqi4x")
"""`struct flock` of 64-bit Linux: type, whence, start, length, pid."""
_HAS_OWN_LOCKS: Final = sys.platform == "linux" and sys.maxsize > 2**32
"""Whether a descriptor can have locks of its own, which no other gives up when it is closed."""

_ours: set[tuple[int, int]] = set()
"""Device and inode of the files that this process owns."""


class Claim:
    """The ownership of a file, which is made if it is not there. It ends with the process.

    Raises:
        StoreUnavailable: somebody else has it.
        OSError: it can't be opened.
    """

    def __init__(self, path: Path) -> None:
        in_use = StoreUnavailable(f"the database {path} is in use by another process")
        try:
            found = os.stat(path)
        except FileNotFoundError:
            pass
        else:
            if identity(found) in _ours:
                raise in_use
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(self._fd)
        except (BlockingIOError, PermissionError):
            os.close(self._fd)
            raise in_use from None
        except BaseException:
            os.close(self._fd)
            raise
        found = os.fstat(self._fd)
        self.identity = identity(found)
        self.names = found.st_nlink
        """How many the file has, as far as its file system knows."""
        _ours.add(self.identity)

    def release(self) -> None:
        _ours.discard(self.identity)
        os.close(self._fd)


def _lock(fd: int) -> None:
    if sys.platform == "win32":
        return  # the lock file has to do
    if _HAS_OWN_LOCKS:
        lock = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _AT, 1, 0)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    else:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _AT)
