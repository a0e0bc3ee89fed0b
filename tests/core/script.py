"""What the room's tests speak in: frames a client sends, and effects put plainly."""

from __future__ import annotations

from typing import Any

from ycore import AwarenessEntry, Close, Effect, Member, Persist, Send
from ycore.awareness import decode_awareness, encode_awareness
from ycore.messages import (
    AwarenessUpdate,
    PermissionDenied,
    SyncStep1,
    SyncStep2,
    Update,
    decode,
)
from ycore.updates import decode_state_vector, encode_state_vector


def step1(clocks: dict[int, int] | None = None) -> bytes:
    return SyncStep1(encode_state_vector(clocks or {})).encode()


def edit(update: bytes) -> bytes:
    return Update(update).encode()


def show(*entries: tuple[int, int, str | None]) -> bytes:
    return AwarenessUpdate(encode_awareness([AwarenessEntry(*e) for e in entries])).encode()


def plain(effects: list[Effect]) -> list[Any]:
    """Effects as tuples to compare with, frames decoded."""
    return [_plain(effect) for effect in effects]


def _plain(effect: Effect) -> Any:
    if isinstance(effect, Persist):
        return ("persist", effect.update)
    if isinstance(effect, Close):
        return ("close", effect.member, int(effect.code))
    if isinstance(effect, Send):
        (message,) = decode(effect.frame)
        said: Any = message
        if isinstance(message, SyncStep1):
            said = ("step1", decode_state_vector(message.state_vector))
        elif isinstance(message, SyncStep2):
            said = ("step2", message.update)
        elif isinstance(message, Update):
            said = ("update", message.update)
        elif isinstance(message, AwarenessUpdate):
            said = ("awareness", *map(tuple, decode_awareness(message.payload)))
        elif isinstance(message, PermissionDenied):
            said = ("denied",)
        return ("send", said, receivers(effect))
    return effect


def receivers(send: Send) -> list[Member]:
    return [member for member in send.to if member is not send.skip]
