"""What the readers of stores have in common: what they give, and how they say what they can't."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from ycore import RemoteProtocolError, check_update

from ..stores import StoredUpdate

_MAX_PROBLEMS: Final = 20
"""Of more in one room, these are told."""

Updates: TypeAlias = Generator[StoredUpdate, None, None]


class MigrationError(Exception):
    """A store can't be read, or not all of it: the message says what was found, and what to do."""


@dataclass(slots=True)
class Source:
    """A store of another server."""

    kind: str
    """In words."""
    rooms: dict[str, Callable[[], Updates]]
    """By name, what gives the updates, oldest first. It raises MigrationError after all that can
    be read, if that is not all. It has a file or a database open: close it if you stop early."""
    unknown: list[Path] = field(default_factory=list)
    """Files below a directory that are no stores."""
    problems: list[str] = field(default_factory=list)
    """What is wrong with the whole of it, though rooms can be read."""


def tell(problems: list[str], what: str) -> None:
    """Note a problem; of very many, the first ones."""
    if len(problems) < _MAX_PROBLEMS:
        problems.append(what)
    elif len(problems) == _MAX_PROBLEMS:
        problems.append("and there is more like that")


def raise_told(problems: list[str]) -> None:
    if problems:
        raise MigrationError("; ".join(problems))


def is_update(content: bytes) -> bool:
    try:
        check_update(content)
    except RemoteProtocolError:
        return False
    return True


def in_turn(found: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Updates, with the metadata behind each if there is some. (ypy-websocket 0.1 wrote none, and
    0.2 went on in the same files, without a sign.)"""
    update = None
    for content in found:
        if update is None:
            update = content
        elif is_update(content):
            yield update, b""
            update = content
        else:
            yield update, content
            update = None
    if update is not None:
        yield update, b""
