"""The files of an SQLite database in use: are they still under their names, and whole?

SQLite goes on with what it holds open whatever becomes of the names, and all that it is given is
gone when it closes that. Nor does it notice that its log is cut short, and copies zeros into the
database then. How long the log must be is in its index, the file that ends in `-shm`:
https://www.sqlite.org/walformat.html
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from struct import Struct
from typing import Final

from ._logfile import DAMAGED, sync_path
from ._owned import failed, identity, translated
from .interface import StoreUnavailable

_ENDINGS: Final = ("", "-wal", "-shm")
"""Of the database, its log, and the index of that."""
_INDEX: Final = Struct("=14xHI")
"""Of the index: the size of a page (1 is 65,536), and how many frames the log has."""
_LOG_HEADER: Final = 32
_FRAME_HEADER: Final = 24
_TRIES: Final = 2


class DatabaseFiles:
    """The database and the two files beside it, which SQLite has open.

    Close it after SQLite has closed them, for that gives up SQLite's locks on the index.
    (On Windows nobody can take away what is open, so nothing is looked at.)

    Raises:
        StoreUnavailable: the database is not there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ours: dict[str, tuple[int, int]] = {}
        self._log, self._index = (Path(f"{path}{ending}") for ending in _ENDINGS[1:])
        self._index_fd: int | None = None
        if sys.platform == "win32":
            return
        with translated(f"can't use the database {path}"):
            self.has_taken_place(path)
            if self._index.exists():  # as long as the file system can do with such a log
                self.has_taken_place(self._log)
                self.has_taken_place(self._index)
                self._index_fd = os.open(self._index, os.O_RDONLY)

    def has_taken_place(self, path: Path) -> None:
        """The file that is there now is ours."""
        self._ours[str(path)] = identity(os.stat(path))

    def check(self) -> None:
        """
        Raises:
            StoreUnavailable: what is written to them won't stay.
        """
        path = ""
        try:
            for path, known in self._ours.items():
                if identity(os.stat(path)) != known:
                    raise StoreUnavailable(f"{path} was replaced by somebody else")
            # Another program may empty the log between the two looks of one try.
            if self._index_fd is not None and not any(self._is_log_whole() for _ in range(_TRIES)):
                raise StoreUnavailable(f"{self._log} was cut short by somebody else")
        except (FileNotFoundError, NotADirectoryError):
            raise StoreUnavailable(f"{path} was removed by somebody else") from None
        except OSError as exc:
            raise failed(f"can't look at {path}", exc) from exc

    def _is_log_whole(self) -> bool:
        assert self._index_fd is not None
        page, frames = _INDEX.unpack(os.pread(self._index_fd, _INDEX.size, 0))
        frame = _FRAME_HEADER + (2**16 if page == 1 else page)
        least: int = _LOG_HEADER + frames * frame if frames else 0
        return os.stat(self._log).st_size >= least

    def replace_by(self, new: Path) -> None:
        """Put another database in the place of this one, without a log. What somebody else has put
        there is kept beside, and opens as a database from there.

        Raises:
            OSError
        """
        theirs = list(self._theirs())
        if theirs:
            directory = Path(f"{self._path}{DAMAGED}")
            directory.mkdir(0o750, exist_ok=True)
            number = next(
                n
                for n in count(1)
                if not any(os.path.lexists(directory / f"{n}{ending}") for ending in _ENDINGS)
            )
            for path, ending, is_file in theirs:
                aside = directory / f"{number}{ending}"
                if is_file:
                    os.link(path, aside)
                else:
                    path.rename(aside)
            sync_path(directory)
            for path in (self._log, self._index):  # it would be taken for the new one's
                if any(path == their for their, _, _ in theirs):
                    path.unlink(missing_ok=True)
        os.replace(new, self._path)
        self.has_taken_place(self._path)
        for path in (self._log, self._index):  # all that is in them is in the new one as well
            path.unlink(missing_ok=True)
        sync_path(self._path.parent)

    def _theirs(self) -> Iterator[tuple[Path, str, bool]]:
        """What is in a place and is not ours; how its name ends, and whether it is a file."""
        for ending in _ENDINGS:
            path = Path(f"{self._path}{ending}")
            try:
                found = os.lstat(path)
            except FileNotFoundError:
                continue
            if identity(found) != self._ours.get(str(path)):
                yield path, ending, stat.S_ISREG(found.st_mode)

    def close(self) -> None:
        if self._index_fd is not None:
            os.close(self._index_fd)
