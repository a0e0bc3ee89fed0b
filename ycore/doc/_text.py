"""Editing formatted text: yjs `types/YText.js` (ItemTextListPosition, insertText, formatText,
deleteText, cleanupFormattingGap).

Formats are items of their own between the strings: one says that a format begins to have a value,
None that it ends. Editing keeps them few, as Yjs does, and so that they say the same everywhere.
"""

from __future__ import annotations

from typing import Any, Self

from ..updates._grammar import FORMAT
from ._events import same
from ._items import COUNTED, Item, Node, update_attributes


class Position:
    """A place in a text: between two items, and the formats that hold there."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.left: Item | None = None
        self.right: Item | None = node.start
        self.index = 0
        """How many places there are before it."""
        self.formats: dict[str, Any] = {}

    @classmethod
    def find(cls, node: Node, index: int) -> Self:
        """The place before the character at `index`, which is not beyond the end."""
        position = cls(node)
        marker = node.marker
        if marker is not None and marker[1] <= index and not marker[0].deleted:
            item, position.index, formats = marker
            position.left, position.right = item.left, item
            position.formats = dict(formats)
        while position.right is not None and position.index < index:
            item = position.right
            if not item.deleted and item.kind in COUNTED:
                end = position.index + item.count
                if end >= index:  # the last one
                    node.marker = (item, position.index, dict(position.formats))
                if end > index:
                    position._cut(index - position.index)
            position.forward()
        return position

    def forward(self) -> None:
        """Behind the next item."""
        item = self.right
        assert item is not None
        if not item.deleted:
            if item.kind == FORMAT:
                update_attributes(self.formats, item)
            else:
                self.index += item.count
        self.left, self.right = item, item.right

    def _cut(self, places: int) -> None:
        """Have an item end so many places on."""
        item = self.right
        assert item is not None
        marker = self.node.marker  # stays right: it is this item, or one before it
        self.node.doc._cut(item, item.clocks_before(places))
        self.node.marker = marker

    def _put(self, kind: int, length: int, content: Any) -> Item:
        """Insert an item here, and go behind it."""
        item: Item = self.node.doc._make(self.node, self.left, self.right, kind, length, content)
        self.right = item
        self.forward()
        return item

    def _drop(self, item: Item) -> None:
        doc = self.node.doc
        doc._delete(item, doc._current)

    # -- edits

    def insert(self, kind: int, length: int, content: Any, formats: dict[str, Any] | None) -> None:
        """Insert something with these formats; None: with those that hold here."""
        formats = dict(self.formats) if formats is None else dict(formats)
        for key in self.formats:
            formats.setdefault(key, None)
        self._skip_what_says(formats)
        ended = self._put_formats(formats)
        index, now = self.index, dict(self.formats)
        item = self._put(kind, length, content)
        self._put_back(ended)
        self.node.marker = (item, index, now)

    def format(self, length: int, formats: dict[str, Any]) -> None:
        """Give so many places these formats."""
        self._skip_what_says(formats)
        ended = self._put_formats(formats)
        while (item := self.right) is not None and (
            length > 0 or (ended and (item.deleted or item.kind == FORMAT))
        ):
            if item.deleted:
                pass
            elif item.kind == FORMAT:
                key, value = item.content
                if key in formats:
                    if same(formats[key], value):
                        ended.pop(key, None)
                    elif length == 0:
                        break
                    else:
                        ended[key] = value
                    self._drop(item)
                else:
                    update_attributes(self.formats, item)
            else:
                if item.count > length:
                    self._cut(length)
                length -= item.count
            self.left, self.right = item, item.right
        self._put_back(ended)
        self.node.marker = None

    def delete(self, length: int) -> None:
        """Delete so many places."""
        start, before = self.right, dict(self.formats)
        while length > 0 and (item := self.right) is not None:
            if not item.deleted and item.kind in COUNTED:
                if item.count > length:
                    self._cut(length)
                length -= item.count
                self._drop(item)
            self.forward()
        if start is not None:
            self._clean_up(start, before)
        self.node.marker = None

    # -- formats

    def _skip_what_says(self, formats: dict[str, Any]) -> None:
        """Go on behind formats that say what shall be said (minimizeAttributeChanges)."""
        while (item := self.right) is not None and (
            item.deleted
            or (item.kind == FORMAT and same(formats.get(item.content[0]), item.content[1]))
        ):
            self.forward()

    def _put_formats(self, formats: dict[str, Any]) -> dict[str, Any]:
        """Have these hold from here on; returns what to put back behind (insertAttributes)."""
        ended = {}
        for key, value in formats.items():
            now = self.formats.get(key)
            if not same(now, value):
                ended[key] = now
                self._put(FORMAT, 1, (key, value))
        return ended

    def _put_back(self, ended: dict[str, Any]) -> None:
        """End formats, or have the former ones hold again (insertNegatedAttributes)."""
        while (item := self.right) is not None and (
            item.deleted
            or (
                item.kind == FORMAT
                and item.content[0] in ended
                and same(ended[item.content[0]], item.content[1])
            )
        ):
            if not item.deleted:
                del ended[item.content[0]]
            self.forward()
        for key, value in ended.items():
            self._put(FORMAT, 1, (key, value))

    def _clean_up(self, start: Item, before: dict[str, Any]) -> None:
        """Delete the formats that say nothing any more where something was deleted
        (cleanupFormattingGap)."""
        end: Item | None = start
        last: dict[str, Item] = {}
        while end is not None and (end.deleted or end.kind not in COUNTED):
            if not end.deleted and end.kind == FORMAT:
                last[end.content[0]] = end
            end = end.right
        item: Item | None = start
        while item is not None and item is not end:
            if not item.deleted and item.kind == FORMAT:
                key, value = item.content
                if last.get(key) is not item or same(before.get(key), value):
                    self._drop(item)
            item = item.right
