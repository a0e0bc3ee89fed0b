"""Stores by URL: `open_store("file:data?fsync=always")`.

    url := path                                   a directory; or, by its ending, a database
         | ("file" | "sqlite") ":" path options?  percent-encoded; "/" begins an absolute one
         | "memory:"
         | scheme ":" whatever options?           of another package
    options := "?" name "=" value ("&" name "=" value)*

A path without a scheme is taken as it is: nothing in it is decoded, and it has no options. A scheme
has two letters at least, so `C:\\data` is a path. The options of a store are its keyword-only
arguments, read as their annotations say.

Another package brings a store by an entry point of the group `ycore.stores`. Its name is the
scheme, and it leads to something that is called with the URL as it was written, but for the
options, and with these as keyword arguments; it returns a `Store`, or raises `StoreURLError`:

    [project.entry-points."ycore.stores"]
    redis = "my_package:RedisStore"
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias, get_args, get_origin
from urllib.parse import parse_qsl, unquote_to_bytes

from .file import FileStore
from .interface import Store, StoreError
from .memory import MemoryStore
from .sqlite import SQLiteStore

__all__ = ["DATABASES", "StoreURL", "StoreURLError", "UnknownScheme", "open_store"]

DATABASES: Final = (".db", ".sqlite", ".sqlite3")
"""How a path ends that is a database and not a directory, if no scheme says which."""
_GROUP: Final = "ycore.stores"
_WITH_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]+):([^?]*)(?:\?(.*))?", re.I | re.DOTALL)
_BAD_PERCENT: Final = re.compile(r"%(?![0-9a-f]{2})", re.I)
_BOOLEANS: Final = {"true": True, "false": False}

_Factory: TypeAlias = Callable[..., Store]


class StoreURLError(StoreError, ValueError):
    """A URL that no store can be made of. The message says why, and what to write or install."""


class UnknownScheme(StoreURLError):
    """No store is known for the URL's scheme. The `known` ones are those of ycore and of all
    packages that are installed."""

    def __init__(self, scheme: str, known: tuple[str, ...]) -> None:
        super().__init__(
            f"there is no store for {scheme}: known are {', '.join(f'{name}:' for name in known)}. "
            "If it is a path, begin it with ./"
        )
        self.scheme = scheme
        self.known = known


def open_store(url: str | os.PathLike[str], **options: object) -> Store:
    """The store that a URL or a path names: use it in an `async with`.

    Args:
        options: of the store, for what the URL says nothing about.

    Raises:
        UnknownScheme, StoreURLError
    """
    return StoreURL.of(url).open(**options)


@dataclass(frozen=True, slots=True)
class StoreURL:
    """Where rooms are kept, read but not looked at."""

    scheme: str
    url: str
    """As it was written, without the options."""
    path: Path | None
    """Of a store of ours that has files."""
    given: Mapping[str, str]
    """The options that it has."""

    @classmethod
    def of(cls, url: str | os.PathLike[str]) -> Self:
        """
        Raises:
            StoreURLError: it is malformed.
        """
        found = _WITH_SCHEME.fullmatch(url) if isinstance(url, str) else None
        if found is None:
            path = Path(url)
            scheme = "sqlite" if path.suffix in DATABASES else "file"
            return cls(scheme, os.fspath(url), path, {})
        scheme, rest, query = found[1].lower(), found[2], found[3]
        bare = f"{found[1]}:{rest}"
        local = _local_path(scheme, rest) if scheme in ("file", "sqlite") else None
        if scheme == "memory" and rest:
            raise StoreURLError(f"{bare} names a place, and memory: has none")
        return cls(scheme, bare, local, _options(bare, query))

    def __str__(self) -> str:
        """In words for an operator, without a password that may be in it."""
        return re.sub(r"//[^/]*@", "//...@", self.url) if self.path is None else str(self.path)

    def known_options(self) -> tuple[str, ...]:
        """The names of the options that the store has.

        Raises:
            UnknownScheme, StoreURLError
        """
        return tuple(sorted(_options_of(self._factory())))

    def open(self, **options: object) -> Store:
        """See `open_store`."""
        factory = self._factory()
        known = _options_of(factory)
        if unknown := sorted({*options, *self.given} - set(known)):
            has = f"its options are {', '.join(sorted(known))}" if known else "it has no options"
            raise StoreURLError(f"{self.scheme}: does not know {', '.join(unknown)}; {has}")
        for name, value in self.given.items():
            options[name] = _read(name, value, known[name])
        if self.scheme == "memory":
            return factory(**options)
        store = factory(self.url if self.path is None else self.path, **options)
        if not isinstance(store, Store):
            raise StoreURLError(f"what is installed for {self.scheme}: makes no store: {store!r}")
        return store

    def _factory(self) -> _Factory:
        if (ours := _OURS.get(self.scheme)) is not None:
            factory, needs = ours
            if missing := [name for name in needs if find_spec(name) is None]:
                what = ", ".join(missing)
                raise StoreURLError(f"{self.scheme}: needs {what}: pip install 'ycore[server]'")
            return factory
        found = entry_points(group=_GROUP, name=self.scheme)
        if not found:
            names = {*_OURS, *(entry.name for entry in entry_points(group=_GROUP))}
            raise UnknownScheme(self.scheme, tuple(sorted(names)))
        if len({entry.value for entry in found}) > 1:
            places = ", ".join(sorted({entry.value for entry in found}))
            raise StoreURLError(f"more than one package brings {self.scheme}: {places}")
        (entry, *_) = found
        try:
            loaded: _Factory = entry.load()
        except Exception as exc:  # whatever its import may raise
            raise StoreURLError(f"{self.scheme}: can't load {entry.value}: {exc}") from exc
        return loaded


_OURS: Final[Mapping[str, tuple[_Factory, tuple[str, ...]]]] = {
    "file": (FileStore, ("filelock",)),
    "memory": (MemoryStore, ()),
    "sqlite": (SQLiteStore, ("filelock",)),
}
"""And what each needs that may not be installed."""


def _local_path(scheme: str, rest: str) -> Path:
    if rest.startswith("//"):
        host, slash, below = rest[2:].partition("/")
        if host not in ("", "localhost"):
            raise StoreURLError(
                f"{scheme}:{rest} names the host {host}: write {scheme}:{rest[2:]} for a path from "
                f"here, or {scheme}:///{rest[2:]} for one from the root"
            )
        rest = slash + below
    if "#" in rest or _BAD_PERCENT.search(rest):
        raise StoreURLError(
            f"{scheme}:{rest} is malformed: in a URL write %23 for #, and %25 for %"
        )
    path = os.fsdecode(unquote_to_bytes(os.fsencode(rest)))
    if os.name == "nt" and re.match(r"/[A-Za-z]:", path):
        path = path[1:]
    if not path or "\0" in path:
        raise StoreURLError(f"{scheme}:{rest} names no path")
    return Path(path)


def _options(url: str, query: str | None) -> dict[str, str]:
    if not query:
        return {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    except ValueError:
        raise StoreURLError(f"{url}?{query}: options are written name=value&name=value") from None
    options = dict(pairs)
    if len(options) < len(pairs):
        raise StoreURLError(f"{url}?{query}: an option is given twice")
    return options


def _options_of(factory: _Factory) -> dict[str, Any]:
    """The options of a store, and what they are annotated with."""
    parameters = inspect.signature(factory, eval_str=True).parameters.values()
    return {each.name: each.annotation for each in parameters if each.kind is each.KEYWORD_ONLY}


def _read(name: str, value: str, kind: Any) -> object:
    """The value of an option as its annotation wants it; as it is if that is another."""
    if get_origin(kind) is Literal:
        choices = {str(choice): choice for choice in get_args(kind)}
    elif kind is bool:
        choices = _BOOLEANS
    elif kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            raise StoreURLError(f"{name}={value}: that is no number") from None
    else:
        return value
    if value not in choices:
        raise StoreURLError(f"{name}={value}: it can be {', '.join(choices)}")
    return choices[value]
