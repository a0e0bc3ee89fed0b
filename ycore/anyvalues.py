"""The values that lib0's `Any` holds, as Python has them, where Python has none of its own.

Apart from `ycore.lib0`, which can be compiled (see `pyproject.toml`): classes on a builtin type, or
with a `__new__`, can't.
"""

from __future__ import annotations

from typing import Final, TypeAlias

__all__ = ["UNDEFINED", "AnyValue", "BigInt", "Undefined"]


class Undefined:
    """The type of `UNDEFINED`, JavaScript's `undefined`, which is not its `null` (None here)."""

    _only: Undefined | None = None

    def __new__(cls) -> Undefined:
        if cls._only is None:
            cls._only = super().__new__(cls)
        return cls._only

    def __repr__(self) -> str:
        return "UNDEFINED"

    def __bool__(self) -> bool:
        return False


UNDEFINED: Final = Undefined()


class BigInt(int):
    """A JavaScript `bigint` (64 bits, signed): a number type of its own on the wire."""


AnyValue: TypeAlias = (
    "None | Undefined | bool | int | float | BigInt | str | bytes"
    " | list[AnyValue] | dict[str, AnyValue]"
)
"""What lib0's `Any` can hold, as Python has it. A JavaScript number is an int or a float here."""
