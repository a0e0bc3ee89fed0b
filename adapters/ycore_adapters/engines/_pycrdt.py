"""pycrdt's documents."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pycrdt

from . import Engine, EngineBusy

logger = logging.getLogger(__name__)


class PycrdtEngine(Engine):
    """A `pycrdt.Doc`."""

    hint = (
        ". pycrdt counts places in a text in bytes of UTF-8: was one in the midst of a character?"
    )

    def __init__(self, ydoc: pycrdt.Doc) -> None:
        self._ydoc = ydoc

    @staticmethod
    def fits(ydoc: object) -> bool:
        return isinstance(ydoc, pycrdt.Doc)

    def encode_state_vector(self) -> bytes:
        return bytes(self._ydoc.get_state())

    def encode(self, state_vector: bytes) -> bytes:
        return bytes(self._ydoc.get_update(state_vector))

    def apply(self, update: bytes) -> None:
        try:
            self._ydoc.apply_update(update)
        except ExceptionGroup:  # of its observers; the update was applied
            logger.exception("an observer of the engine failed")
        except RuntimeError as exc:
            if "borrowed" in str(exc):  # in one of its observers
                raise EngineBusy("the engine is at work") from exc
            raise

    def observe(self, callback: Callable[[bytes], None]) -> Callable[[], None]:
        subscription = self._ydoc.observe(lambda event: callback(bytes(event.update)))
        return lambda: self._ydoc.unobserve(subscription)
