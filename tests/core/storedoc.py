"""The least that a provider can work on: a struct store, and somebody who types into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from build import item, text, update

from ycore import StructStore


class StoreDoc:
    """A document that nobody reads. Two with the same structs are equal."""

    def __init__(self, client_id: int) -> None:
        self.client_id = client_id
        self.store = StructStore()
        self.origins: list[object] = []
        """Of the updates that changed something."""
        self._clock = 0
        self._observers: list[Callable[[bytes, object], None]] = []

    def type(self, letters: str = "x") -> bytes:
        """Edit it: append this to what was typed here before."""
        origin = (self.client_id, self._clock - 1) if self._clock else None
        data = update({(self.client_id, self._clock): [item(text(letters), origin=origin)]})
        self._clock += len(letters)
        self.apply(data)
        return data

    def delete(self, client: int, clock: int) -> None:
        self.apply(update({}, {client: [(clock, 1)]}))

    def encode_state_vector(self) -> bytes:
        return self.store.encode_state_vector()

    def encode(self, state_vector: bytes | None = None) -> bytes:
        return self.store.encode() if state_vector is None else self.store.diff(state_vector)

    def apply(self, update: bytes, origin: object = None) -> None:
        new = self.store.add(update)
        if new is not None:
            self.origins.append(origin)
            for callback in tuple(self._observers):
                callback(new, origin)

    def observe_updates(self, callback: Callable[[bytes, object], None]) -> Callable[[], None]:
        self._observers.append(callback)

        def end() -> None:
            self._observers.remove(callback)

        return end

    def __eq__(self, other: Any) -> bool:
        return bool(self.encode() == other.encode())

    __hash__ = None  # type: ignore[assignment]
