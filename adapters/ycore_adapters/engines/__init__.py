"""A bridge to CRDT engines: keeps a `pycrdt.Doc` or a `y_py.YDoc` equal to a document.

    doc = Doc()                      # of ycore.doc: what a server or a provider works with
    ydoc = pycrdt.Doc(skip_gc=True)  # what your code works with
    binding = bind(doc, ydoc)

From then on news of the document are in the engine, and edits in the engine in the document, whose
observers are told that they come from the binding (`origin`). The document stays the truth: take
what you store or send from it, never from the engine.

No bytes of anybody reach an engine as they came: it gets what the document has put in its place
(`ycore.doc.Feed`). What an engine can't show right ends the binding with an `EngineError` that says
what it is, and so does an engine that fails; the document goes on.

What the engines can't show (pycrdt 0.14.13, y-py 0.6.2):

- XML hooks.
- Pairs of surrogates that were cut in two after the engine got them, as by an editor that deletes
  half of an emoji. A new engine document, bound to the same `Doc`, shows it.
- What no honest client makes: text beyond ASCII in an array (reading it, pycrdt never comes back),
  items whose neighbours are elsewhere. So that a root is known to be an array, ask the `Doc` for it
  (`doc.get_array(name)`) before you bind.
- y-py: client ids above 32 bits, which pycrdt has. Subdocuments are `{}`.

Make a `pycrdt.Doc` with `skip_gc=True`: without it, it once crashed the process (a segmentation
fault) in 600 random sessions of edits on both sides, and not in 2,600 with it. From here nothing
can be done about that, nor be seen how a document was made.

pycrdt counts places in a text in bytes of UTF-8: what comes behind "é" is at 2, so count with
`len("é".encode())`, not `len("é")`. Given a place in the midst of a character, pycrdt panics, or it
makes an item whose neighbour is that item itself, on which Yjs throws, or some unrelated one: then
the binding ends. Between characters any place will do. A `YDoc` counts characters.

Reading is between you and the engine: y-py panics on XML fragments that are not roots, for one.

Like the document and y-py, a binding is used in one thread.
"""

from __future__ import annotations

import logging
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, Final

from ycore import LocalProtocolError, RemoteProtocolError
from ycore.doc import Doc, Feed
from ycore.updates import decode_state_vector

__all__ = ["Binding", "Engine", "EngineError", "bind"]

logger = logging.getLogger(__name__)

NOTHING: Final = b"\0\0"
"""An update that says nothing."""


class EngineError(Exception):
    """The engine can't show the document, or failed. Discard it: bind a new one."""


class EngineBusy(EngineError):
    """It can't be called just now, in the midst of something of its own. Nothing has changed."""


class Engine(ABC):
    """What a binding asks of an engine: there is one for pycrdt and one for y-py."""

    max_client_id: ClassVar[int] = 2**53 - 1
    """The highest client id that it knows."""
    subdocuments: ClassVar[bool] = True
    """Whether it knows subdocuments."""
    hint: ClassVar[str] = ""
    """What its user should look at when it makes an update that is wrong."""

    @abstractmethod
    def encode_state_vector(self) -> bytes: ...

    @abstractmethod
    def encode(self, state_vector: bytes) -> bytes:
        """The update that someone with this state vector lacks."""

    @abstractmethod
    def apply(self, update: bytes) -> None:
        """Take in an update. May raise `EngineBusy`; after anything else the engine is not used
        any more."""

    @abstractmethod
    def observe(self, callback: Callable[[bytes], None]) -> Callable[[], None]:
        """Have each change handed on as an update, also those by `apply`. `callback` does not
        raise. Returns what ends that, which may raise."""


def bind(doc: Doc, ydoc: Any, on_end: Callable[[EngineError], None] | None = None) -> Binding:
    """Make a document and an engine's the same, and keep them so.

    Each gets what it lacks of the other, at once: that takes as long as the engine and Python take
    to apply it.

    Args:
        ydoc: a `pycrdt.Doc(skip_gc=True)`, a `ycore_adapters.engines.ypy.YDoc`, or an `Engine` of
            your own.
        on_end: told if the binding ends by itself; by default that is logged. It may bind a new
            engine.

    Raises:
        EngineError: the engine can't show the document, or failed.
        LocalProtocolError: the document is a view; or `ydoc` is no document of an engine, or one
            of y-py that was made otherwise.
    """
    return Binding(doc, _engine_of(ydoc), on_end)


def _engine_of(ydoc: Any) -> Engine:
    if isinstance(ydoc, Engine):
        return ydoc
    if "pycrdt" in sys.modules:
        from ._pycrdt import PycrdtEngine  # noqa: PLC0415 - it is an extra

        if PycrdtEngine.fits(ydoc):
            return PycrdtEngine(ydoc)
    if "y_py" in sys.modules:
        from .ypy import YPyEngine  # noqa: PLC0415 - it is an extra

        if YPyEngine.fits(ydoc):
            return YPyEngine(ydoc)
    raise LocalProtocolError(
        f"can't bind a {type(ydoc).__module__}.{type(ydoc).__qualname__}: make a pycrdt.Doc, or a "
        "ycore_adapters.engines.ypy.YDoc, which is a y_py.YDoc with the right settings"
    )


class Binding:
    """A document and an engine that are kept equal. `bind` makes it.

    It lives as long as the document, or until it is closed.
    """

    def __init__(
        self, doc: Doc, engine: Engine, on_end: Callable[[EngineError], None] | None
    ) -> None:
        self.error: EngineError | None = None
        """Why it ended by itself, if it did."""
        self.is_closed = False
        self._engine = engine
        self._on_end = on_end
        self._busy = True
        """Whether the engine is at work: it must not be called then."""
        self._unsubscribe: Callable[[], None] = lambda: None
        with _as_engine_errors():
            known = decode_state_vector(engine.encode_state_vector())
            edits = engine.encode(doc.encode_state_vector())
        self._feed = Feed(
            doc,
            known,
            self.sync,
            origin=self,
            max_client_id=engine.max_client_id,
            subdocuments=engine.subdocuments,
        )
        try:
            self._give(edits)
            self._level()
            with _as_engine_errors():
                self._unsubscribe = engine.observe(_Observer(self))
        except BaseException:
            self.close()
            raise
        self._busy = False

    def close(self) -> None:
        """End it: both go on, each by itself."""
        self.is_closed = True
        self._feed.close()
        if not self._busy:  # else it stays, and is not listened to
            with suppress(EngineError), _as_engine_errors():
                self._unsubscribe()

    def sync(self) -> None:
        """Bring the engine level with the document. That happens by itself, but for what could
        not be done when it came up: an observer of the engine, or one of the document that is told
        of an edit in the engine, has edited the document. Then the next change does it, or this."""
        if self.is_closed or self._busy:
            return
        self._busy = True
        try:
            self._level()
        except EngineError as exc:
            self._end(exc)
        finally:
            self._busy = False

    def _level(self) -> None:
        while (update := self._feed.take()) is not None:
            try:
                with _as_engine_errors():
                    self._engine.apply(update)
            except EngineBusy:
                return  # it is told later
            self._feed.taken()
        if self._feed.problem is not None:
            raise EngineError(self._feed.problem)

    def _give(self, update: bytes) -> None:
        try:
            self._feed.give(update)
        except RemoteProtocolError as exc:
            raise EngineError(
                f"the engine made a malformed update: {exc}{self._engine.hint}"
            ) from exc

    def _edited(self, update: bytes) -> None:
        """The engine was changed."""
        if self.is_closed or self._busy or update == NOTHING:
            return  # by us, mostly
        self._busy = True
        try:
            self._give(update)
            if self._feed.problem is not None:
                raise EngineError(
                    f"since an edit in the engine: {self._feed.problem}{self._engine.hint}"
                )
        except EngineError as exc:
            self._end(exc)
        except Exception:  # engines don't know what to do with it
            logger.exception("an observer of the document failed")
        finally:
            self._busy = False

    def _end(self, error: EngineError) -> None:
        self.error = error
        self.close()
        if self._on_end is None:
            logger.error("a document is no longer bound to its engine: %s", error)
            return
        try:
            self._on_end(error)
        except Exception:
            logger.exception("on_end failed")


class _Observer:
    """What an engine holds of a binding: engines are no part of Python's garbage collection."""

    def __init__(self, binding: Binding) -> None:
        self._binding = weakref.ref(binding)

    def __call__(self, update: bytes) -> None:
        if (binding := self._binding()) is not None:
            binding._edited(update)


@contextmanager
def _as_engine_errors() -> Iterator[None]:
    """Whatever an engine raises, PanicException and all, as an EngineError."""
    try:
        yield
    except (EngineError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as exc:
        raise EngineError(f"the engine failed: {type(exc).__name__}: {exc}") from exc
