"""y-py's documents, with the settings under which they show what they should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import y_py

from . import Engine, EngineBusy


class YDoc(y_py.YDoc):
    """A `y_py.YDoc` to bind. To be used like any other.

    It keeps what was deleted in nested types (skip_gc), or y-py corrupts documents; and places in
    texts are counted as Python counts them: by default y-py counts bytes, and drops what is
    inserted in the midst of a character.
    """

    def __new__(cls, client_id: int | None = None) -> Self:
        new: Any = super().__new__
        made: Self = new(cls, client_id, "utf32", True)
        return made

    def __init__(self, client_id: int | None = None) -> None:
        pass


class YPyEngine(Engine):
    """A `YDoc`."""

    max_client_id = 2**32 - 1  # it takes others by their last 32 bits
    subdocuments = False  # it panics on them

    def __init__(self, ydoc: YDoc) -> None:
        self._ydoc = ydoc

    @staticmethod
    def fits(ydoc: object) -> bool:
        return isinstance(ydoc, YDoc)

    def encode_state_vector(self) -> bytes:
        return bytes(y_py.encode_state_vector(self._ydoc))

    def encode(self, state_vector: bytes) -> bytes:
        return bytes(y_py.encode_state_as_update(self._ydoc, state_vector))

    def apply(self, update: bytes) -> None:
        try:
            y_py.apply_update(self._ydoc, update)
        except RuntimeError as exc:
            if "borrowed" in str(exc):  # in one of its observers
                raise EngineBusy("the engine is at work") from exc
            raise

    def observe(self, callback: Callable[[bytes], None]) -> Callable[[], None]:
        def told(event: Any) -> None:
            callback(bytes(event.get_update()))

        self._ydoc.observe_after_transaction(told)  # for ever: y-py knows no way back
        return lambda: None
