"""lib0's binary encoding, the alphabet of everything Yjs puts on the wire.

Readers take `(data, position)` and return `(value, next position)`; writers append to a
`bytearray`. The names are those of lib0 `encoding.js` and `decoding.js`. Unlike those, the readers
are strict: every declared length is compared with the bytes left before anything is allocated, a
varUint has at most 8 bytes and at most 53 bits, strings are valid UTF-8, and nothing recurses.
What they refuse raises `RemoteProtocolError`.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import copysign
from struct import Struct, error
from typing import Final, TypeAlias

from .anyvalues import UNDEFINED, AnyValue, BigInt, Undefined
from .errors import LocalProtocolError, RemoteProtocolError
from .steps import STEP, Steps, finish

__all__ = [
    "MAX_NESTING",
    "MAX_SAFE_INTEGER",
    "UNDEFINED",
    "AnyValue",
    "BigInt",
    "Undefined",
    "read_any",
    "read_var_int",
    "read_var_string",
    "read_var_uint",
    "read_var_uint8_array",
    "skip_any",
    "skip_any_steps",
    "skip_some_any",
    "skip_var_string",
    "write_any",
    "write_var_int",
    "write_var_string",
    "write_var_uint",
    "write_var_uint8_array",
]

MAX_SAFE_INTEGER: Final = 2**53 - 1
"""The largest integer a JavaScript number holds exactly: no honest clock, id or length is above."""

MAX_NESTING: Final = 256
"""How deep Any and JSON values may nest. No editor comes near it; recursive decoders further down
the line (y-py's, JSON's) overflow their stack somewhere above it."""


Data: TypeAlias = bytes | bytearray

# Tags of `Any`, counted down from 127 (lib0 `encoding.js`, `writeAny`).
_UNDEFINED, _NULL, _INTEGER, _FLOAT32, _FLOAT64, _BIGINT = 127, 126, 125, 124, 123, 122
_FALSE, _TRUE, _STRING, _OBJECT, _ARRAY, _BINARY = 121, 120, 119, 118, 117, 116
_FLOAT32_FORMAT, _FLOAT64_FORMAT, _BIGINT_FORMAT = Struct(">f"), Struct(">d"), Struct(">q")
_FIXED_SIZE = {
    _UNDEFINED: 0,
    _NULL: 0,
    _FALSE: 0,
    _TRUE: 0,
    _FLOAT32: 4,
    _FLOAT64: 8,
    _BIGINT: 8,
}
_MAX_ANY_INTEGER = 2**31 - 1
"""lib0 writes larger integers as floats."""

_SHIFTS: Final = (7, 14, 21, 28, 35, 42, 49)
"""Where the bits of a varUint's further bytes belong."""


def _past_end(what: str, pos: int) -> RemoteProtocolError:
    return RemoteProtocolError(f"{what} at byte {pos} runs past the end")


def _not_utf8(pos: int) -> RemoteProtocolError:
    return RemoteProtocolError(f"string at byte {pos} is not UTF-8")


# ---- varUint, varInt


def read_var_uint(data: Data, pos: int) -> tuple[int, int]:
    """Read an unsigned LEB128 integer of at most 8 bytes and 53 bits (`decoding.readVarUint`)."""
    try:
        value = data[pos]
        if value < 0x80:
            return value, pos + 1
        at = pos + 1
        for shift in _SHIFTS:
            byte = data[at]
            at += 1
            value += (byte - 1) << shift  # less the bit that said that there is more
            if byte < 0x80:
                if value > MAX_SAFE_INTEGER:
                    break
                return value, at
    except IndexError:
        raise _past_end("varUint", pos) from None
    raise RemoteProtocolError(f"varUint at byte {pos} is above 2^53-1 or has more than 8 bytes")


def write_var_uint(out: bytearray, value: int) -> None:
    """Append `value`, 0 to 2^53-1 (`encoding.writeVarUint`)."""
    if value < 0x80:
        if value < 0:
            raise LocalProtocolError(f"a varUint can't be negative: {value}")
        out.append(value)
        return
    if value > MAX_SAFE_INTEGER:
        raise LocalProtocolError(f"a varUint is at most 2^53-1: {value}")
    while value > 0x7F:
        out.append(0x80 | (value & 0x7F))
        value >>= 7
    out.append(value)


def read_var_int(data: Data, pos: int) -> tuple[int | float, int]:
    """Read a signed integer (`decoding.readVarInt`): an int, or -0.0 for JavaScript's -0."""
    try:
        byte = data[pos]
        negative = byte & 0x40
        value = byte & 0x3F
        shift = 6
        at = pos
        while byte >= 0x80:
            at += 1
            if at == pos + 8:
                raise RemoteProtocolError(f"varInt at byte {pos} has more than 8 bytes")
            byte = data[at]
            value |= (byte & 0x7F) << shift
            shift += 7
    except IndexError:
        raise _past_end("varInt", pos) from None
    if value > MAX_SAFE_INTEGER:
        raise RemoteProtocolError(f"varInt at byte {pos} is above 2^53-1")
    if not negative:
        return value, at + 1
    return (-value if value else -0.0), at + 1


def write_var_int(out: bytearray, value: int | float) -> None:
    """Append an integer, or -0.0, of magnitude 0 to 2^53-1 (`encoding.writeVarInt`)."""
    sign = 0x40 if copysign(1, value) < 0 else 0
    value = abs(int(value))
    if value > MAX_SAFE_INTEGER:
        raise LocalProtocolError(f"a varInt is at most 2^53-1: {value}")
    out.append((0x80 if value > 0x3F else 0) | sign | (value & 0x3F))
    value >>= 6
    while value > 0:
        out.append((0x80 if value > 0x7F else 0) | (value & 0x7F))
        value >>= 7


# ---- byte and character strings


def read_var_uint8_array(data: Data, pos: int) -> tuple[bytes, int]:
    """Read a length and as many bytes (`decoding.readVarUint8Array`)."""
    length, start = read_var_uint(data, pos)
    end = start + length
    if end > len(data):
        raise _past_end(f"byte string of {length} bytes", pos)
    return bytes(data[start:end]), end


def write_var_uint8_array(out: bytearray, value: bytes) -> None:
    """Append the length of `value` and its bytes (`encoding.writeVarUint8Array`)."""
    write_var_uint(out, len(value))
    out += value


def read_var_string(data: Data, pos: int) -> tuple[str, int]:
    """Read a length in bytes and as much UTF-8, which must be valid (`decoding.readVarString`)."""
    raw, end = read_var_uint8_array(data, pos)
    try:
        return raw.decode(), end
    except UnicodeDecodeError:
        raise _not_utf8(pos) from None


def skip_var_string(data: Data, pos: int) -> int:
    """Check what `read_var_string` reads, and return where it ends."""
    length, start = read_var_uint(data, pos)
    end = start + length
    raw = data[start:end]
    if len(raw) != length:
        raise _past_end(f"byte string of {length} bytes", pos)
    if not raw.isascii():
        try:
            raw.decode()
        except UnicodeDecodeError:
            raise _not_utf8(pos) from None
    return end


def write_var_string(out: bytearray, value: str) -> None:
    """Append `value` as UTF-8 with its length in bytes (`encoding.writeVarString`).

    Surrogates are treated as JavaScript's TextEncoder does: pairs are joined, lone ones become
    U+FFFD.
    """
    try:
        raw = value.encode()
    except UnicodeEncodeError:
        raw = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()
    write_var_uint8_array(out, raw)


# ---- Any


def skip_any(data: Data, pos: int, count: int = 1) -> int:
    """Check `count` values of type Any and return where they end."""
    return finish(skip_any_steps(data, pos, count))


def skip_any_steps(data: Data, pos: int, count: int = 1) -> Steps[int]:
    """`skip_any` in steps."""
    open_ = [(False, count)]
    while open_:
        pos = skip_some_any(data, pos, open_)
        if open_:
            yield
    return pos


def skip_some_any(data: Data, pos: int, open_: list[tuple[bool, int]]) -> int:
    """One step of `skip_any_steps`: check some values of type Any and return where they end.

    Args:
        open_: the containers that these are in: whether it is an object, and how many of its
            entries are still to come. Afterwards what there is to go on with; nothing at the end.
    """
    size = len(data)
    is_object, count = open_.pop()
    for _ in range(STEP):
        while count == 0:
            if not open_:
                return pos
            is_object, count = open_.pop()
        count -= 1
        if is_object:
            pos = skip_var_string(data, pos)
        if pos >= size:
            raise _past_end("Any", pos)
        tag = data[pos]
        pos += 1
        fixed = _FIXED_SIZE.get(tag)
        if fixed is not None:
            pos += fixed
            if pos > size:
                raise _past_end("Any", pos - fixed - 1)
        elif tag == _STRING:
            pos = skip_var_string(data, pos)
        elif tag == _INTEGER:
            _, pos = read_var_int(data, pos)
        elif tag in (_OBJECT, _ARRAY):
            length, pos = _read_any_length(data, pos, len(open_))
            open_.append((is_object, count))
            is_object, count = tag == _OBJECT, length
        elif tag == _BINARY:
            _, pos = read_var_uint8_array(data, pos)
        else:
            raise RemoteProtocolError(f"Any at byte {pos - 1} has the unknown tag {tag}")
    open_.append((is_object, count))
    return pos


def _read_any_length(data: Data, pos: int, depth: int) -> tuple[int, int]:
    """Read how many entries an array or object has, `depth` containers deep."""
    if depth >= MAX_NESTING:
        raise RemoteProtocolError(f"Any at byte {pos - 1} nests deeper than {MAX_NESTING}")
    length, after = read_var_uint(data, pos)
    if length > len(data) - after:
        raise _past_end(f"Any with {length} entries", pos - 1)
    return length, after


def read_any(data: Data, pos: int) -> tuple[AnyValue, int]:
    """Read a value of type Any (`decoding.readAny`)."""
    end = skip_any(data, pos)  # all checks are there; what follows only builds
    root: list[AnyValue] = []
    inner: list[AnyValue] | dict[str, AnyValue] = root
    count = 1
    outer: list[tuple[list[AnyValue] | dict[str, AnyValue], int]] = []
    while pos < end:
        while count == 0:
            inner, count = outer.pop()
        count -= 1
        key = ""
        if isinstance(inner, dict):
            key, pos = read_var_string(data, pos)
        tag = data[pos]
        pos += 1
        value: AnyValue
        if tag in (_OBJECT, _ARRAY):
            length, pos = read_var_uint(data, pos)
            value = {} if tag == _OBJECT else []
        else:
            value, pos = _read_scalar(data, pos, tag)
        if isinstance(inner, dict):
            inner[key] = value
        else:
            inner.append(value)
        if isinstance(value, (dict, list)):
            outer.append((inner, count))
            inner, count = value, length
    return root[0], pos


def _read_scalar(data: Data, pos: int, tag: int) -> tuple[AnyValue, int]:
    if tag == _STRING:
        return read_var_string(data, pos)
    if tag == _INTEGER:
        return read_var_int(data, pos)
    if tag == _BINARY:
        return read_var_uint8_array(data, pos)
    if tag == _FLOAT32:
        return _FLOAT32_FORMAT.unpack_from(data, pos)[0], pos + 4
    if tag == _FLOAT64:
        return _FLOAT64_FORMAT.unpack_from(data, pos)[0], pos + 8
    if tag == _BIGINT:
        return BigInt(_BIGINT_FORMAT.unpack_from(data, pos)[0]), pos + 8
    return {_UNDEFINED: UNDEFINED, _NULL: None, _FALSE: False, _TRUE: True}[tag], pos


_KEY: Final = -1
"""Stands for the depth of what is not a value but an object's key."""


def write_any(out: bytearray, value: AnyValue) -> None:
    """Append a value as type Any (`encoding.writeAny`), in the form JavaScript would give it.

    Raises:
        LocalProtocolError: a value of another type, a dict key that is no string, an int of more
            than 53 bits that is no `BigInt`, a `BigInt` of more than 64 bits, or nesting deeper
            than `MAX_NESTING` (which also catches a container that holds itself).
    """
    todo: list[tuple[AnyValue, int]] = [(value, 0)]
    start = len(out)
    try:
        while todo:
            value, depth = todo.pop()
            if depth > MAX_NESTING:
                raise LocalProtocolError(f"the value nests deeper than {MAX_NESTING}")
            if depth == _KEY and isinstance(value, str):
                write_var_string(out, value)
            elif isinstance(value, list):
                out.append(_ARRAY)
                write_var_uint(out, len(value))
                todo.extend((entry, depth + 1) for entry in reversed(value))
            elif isinstance(value, dict):
                out.append(_OBJECT)
                write_var_uint(out, len(value))
                entries: Iterable[tuple[object, AnyValue]] = reversed(value.items())
                for key, entry in entries:
                    if not isinstance(key, str):
                        raise LocalProtocolError(f"a key must be a string: {key!r}")
                    todo.append((entry, depth + 1))
                    todo.append((key, _KEY))
            else:
                _write_scalar(out, value)
    except BaseException:
        del out[start:]
        raise


def _write_scalar(out: bytearray, value: AnyValue) -> None:
    if value is None:
        out.append(_NULL)
    elif value is UNDEFINED:
        out.append(_UNDEFINED)
    elif isinstance(value, bool):
        out.append(_TRUE if value else _FALSE)
    elif isinstance(value, str):
        out.append(_STRING)
        write_var_string(out, value)
    elif isinstance(value, bytes):
        out.append(_BINARY)
        write_var_uint8_array(out, value)
    elif isinstance(value, BigInt):
        try:
            raw = _BIGINT_FORMAT.pack(value)
        except error:
            raise LocalProtocolError(f"a BigInt has at most 64 bits: {value}") from None
        out.append(_BIGINT)
        out += raw
    elif isinstance(value, (int, float)):
        _write_number(out, value)
    else:
        raise LocalProtocolError(f"Any can't hold a {type(value).__name__}")


def _write_number(out: bytearray, value: int | float) -> None:
    if isinstance(value, int) and abs(value) > MAX_SAFE_INTEGER:
        raise LocalProtocolError(f"a number of more than 53 bits needs a BigInt: {value}")
    if abs(value) <= _MAX_ANY_INTEGER and value == int(value):
        out.append(_INTEGER)
        write_var_int(out, value)
        return
    try:
        raw = _FLOAT32_FORMAT.pack(value)
        exact = _FLOAT32_FORMAT.unpack(raw)[0] == value
    except OverflowError:  # too large for 32 bits
        exact = False
    if exact:
        out.append(_FLOAT32)
        out += raw
    else:
        out.append(_FLOAT64)
        out += _FLOAT64_FORMAT.pack(value)
