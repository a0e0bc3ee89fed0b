"""Documents: what a Yjs document shows, and edits to it, in pure Python.

`Doc` puts the structs of a struct store together as Yjs does, so it shows what Yjs shows; its
shared types are read, edited and observed. It can't crash, and needs no engine.
"""

from ._doc import Doc
from ._events import Change, Event
from ._feed import Feed
from ._items import Kind, Subdocument
from ._types import (
    Array,
    Map,
    SharedType,
    Text,
    XmlElement,
    XmlFragment,
    XmlHook,
    XmlText,
)
from ._waiting import Waiting

__all__ = [
    "Array",
    "Change",
    "Doc",
    "Event",
    "Feed",
    "Kind",
    "Map",
    "SharedType",
    "Subdocument",
    "Text",
    "Waiting",
    "XmlElement",
    "XmlFragment",
    "XmlHook",
    "XmlText",
]
