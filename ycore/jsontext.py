"""JSON text, which older content types and awareness states carry: would JavaScript read it?

It is only checked. What it says is for clients to know.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Final

from .errors import RemoteProtocolError
from .lib0 import MAX_NESTING
from .steps import STEP, Steps, finish

__all__ = ["SHORT_JSON", "check_json", "check_json_steps"]

# Possessive: it never goes back, so it takes neither time nor memory for having come far.
_JSON_NESTING = re.compile(r'"(?:[^"\\]++|\\.)*+"|[\[{]|[\]}]', re.DOTALL)
_CACHED_JSON = 64
"""Up to how many characters a JSON text is worth remembering: formats are short and recur."""
SHORT_JSON: Final = 4096
"""Up to how many characters a JSON text is checked in one go, by Python's own reader."""

# What a long JSON text is made of (RFC 8259). The number of the group tells what was found.
_JSON_TOKEN = re.compile(
    r"""[ \t\n\r]*+(?:
        ([\[{])
        | ([\]}])
        | (,)
        | (:)
        | (")
        | (true|false|null|-?+(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?+[0-9]++)?+)
        | (\Z)
    )""",
    re.VERBOSE,
)
_OPEN, _CLOSE, _COMMA, _COLON, _QUOTE, _SCALAR, _END = range(1, 8)
# Part of what a string contains: long ones are taken in many such bites.
_JSON_STRING_PART = re.compile(
    r"""(?:[^"\\\x00-\x1f]{1,65536}+|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})){0,64}+"""
)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# Made once: `json.loads` would make one for each text. float for integers: int refuses more than
# 4,300 digits, which JavaScript reads.
_decode_json = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=float).decode


def check_json(text: str) -> None:
    """Check that JavaScript's `JSON.parse` would take `text` (Python's takes NaN and Infinity)."""
    if len(text) <= _CACHED_JSON:
        _check_short_json(text)
    elif len(text) <= SHORT_JSON:
        _check_json(text)
    else:
        finish(check_json_steps(text))


def _check_json(text: str) -> None:
    try:
        _decode_json(text)
    except ValueError as exc:
        raise RemoteProtocolError(f"malformed JSON: {exc}") from None
    except RecursionError:
        raise RemoteProtocolError(f"JSON nests deeper than {MAX_NESTING}") from None
    if text.count("[") + text.count("{") > MAX_NESTING:
        depth = 0
        for token in _JSON_NESTING.finditer(text):
            char = text[token.start()]
            depth += 1 if char in "[{" else -1 if char in "]}" else 0
            if depth > MAX_NESTING:
                raise RemoteProtocolError(f"JSON nests deeper than {MAX_NESTING}")


_check_short_json = lru_cache(maxsize=1024)(_check_json)


def check_json_steps(text: str) -> Steps[None]:
    """`check_json` in steps, for texts that Python's own reader would hold everyone up with."""
    pos = 0
    outer = bytearray()
    """Which containers we are in: "[" or "{" each."""
    value = True
    """Whether a value, or in an object a key, has to come now; otherwise what follows one."""
    may_close = False
    """Whether the container may end here: not behind a comma."""
    turn = 0
    while True:
        turn += 1
        if not turn % STEP:
            yield
        token = _JSON_TOKEN.match(text, pos)
        kind = token.lastindex if token else None
        if token is None or kind is None:
            break
        pos = token.end()
        if value and kind in (_QUOTE, _SCALAR, _OPEN):
            in_object = outer.endswith(b"{")
            if in_object:  # a key first
                if kind != _QUOTE:
                    break
                pos = yield from _skip_json_string(text, pos)
                token = _JSON_TOKEN.match(text, pos)
                if token is None or token.lastindex != _COLON:
                    break
                token = _JSON_TOKEN.match(text, token.end())
                if token is None or token.lastindex not in (_QUOTE, _SCALAR, _OPEN):
                    break
                kind, pos = token.lastindex, token.end()
            if kind == _OPEN:
                if len(outer) == MAX_NESTING:
                    raise RemoteProtocolError(f"JSON nests deeper than {MAX_NESTING}")
                outer.append(ord(text[pos - 1]))
                may_close = True
                continue
            if kind == _QUOTE:
                pos = yield from _skip_json_string(text, pos)
            value = False
        elif kind == _CLOSE and outer and (may_close or not value):
            if outer.pop() + 2 != ord(text[pos - 1]):  # "[" and "]", "{" and "}" are two apart
                break
            value = False
        elif kind == _COMMA and outer and not value:
            value, may_close = True, False
        elif kind == _END and not outer and not value:
            return
        else:
            break
    raise RemoteProtocolError(f"malformed JSON: near character {pos}")


def _skip_json_string(text: str, pos: int) -> Steps[int]:
    """Where a string ends that began before `pos`."""
    while True:
        token = _JSON_STRING_PART.match(text, pos)
        assert token is not None  # it matches nothing, too
        if token.end() == pos:
            break
        pos = token.end()
        if len(token[0]) > SHORT_JSON:
            yield
    if text[pos : pos + 1] != '"':
        raise RemoteProtocolError(f"malformed JSON: near character {pos}")
    return pos + 1
