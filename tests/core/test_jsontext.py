"""Which JSON text JavaScript would read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ycore import RemoteProtocolError
from ycore.jsontext import check_json, check_json_steps
from ycore.steps import Steps, finish


@pytest.mark.parametrize(
    "text",
    [
        "null",
        '{"a":[1,2.5e3]}',
        '"\\ud83d"',
        "-0",
        "9" * 5000,
        "[" * 256 + "]" * 256,
        " [ ] ",
        '"' + "[" * 300 + '\\"[["',
        '[[[[],{}],"]"]]' + " " * 80,
    ],
)
def test_json_that_javascript_takes(text: str) -> None:
    check_json(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "nul", "NaN", "Infinity", "-Infinity", "undefined"),
        *("[1,]", "{'a':1}", '"\n"', "\ufeff1", "01", "1 2"),
        *("[" * 100, "[" * 4000, "[" * 257 + "]" * 257, '{"a":' * 300 + "1" + "}" * 300),
    ],
)
def test_json_that_javascript_refuses(text: str) -> None:
    with pytest.raises(RemoteProtocolError, match="JSON"):
        check_json(text)


def checks(text: str, *, in_steps: bool) -> bool:
    try:
        if in_steps:
            finish(check_json_steps(text))
        else:
            check_json(text)
    except RemoteProtocolError:
        return False
    return True


JSON_BITS = [
    *("[", "]", "{", "}", ",", ":", " ", "\t\n\r", "null", "true", "false", "nul", "NaN"),
    *("0", "-1", "1.5", "01", "2.", "1e5", "-", "1E+07", "+1", '""', '"a"', '"\\u12aF"', '"\\x"'),
    *('"\x01"', '"\\"', '"', "\\", "\ufeff", "\x0b", "[]", "{}", '{"a":', '"b":[', "[1,2]", "٣"),
]


@given(st.lists(st.sampled_from(JSON_BITS), max_size=9).map("".join))
def test_both_readers_of_json_agree(text: str) -> None:
    assert checks(text, in_steps=False) == checks(text, in_steps=True)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.data(),
)
def test_both_readers_of_json_agree_on_what_is_nearly_right(
    value: object, data: st.DataObject
) -> None:
    text = json.dumps(value, ensure_ascii=data.draw(st.booleans()))
    assert checks(text, in_steps=True)
    at = data.draw(st.integers(0, len(text) - 1))
    broken = text[:at] + data.draw(st.sampled_from(["", *'[]{},:"1\\'])) + text[at + 1 :]
    assert checks(broken, in_steps=False) == checks(broken, in_steps=True)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("[" + "1," * 5000 + "1]", True),
        ("[" + "1," * 5000 + "]", False),
        ('"' + "é" * 200_000 + '"', True),
        ('"' + "é" * 200_000, False),
        ('{"a":[],"b":{},"c":' + " " * 5000 + "null}", True),
        ('{"a":1 "b":2' + " " * 5000 + "}", False),
        ('{"a" 1' + " " * 5000 + "}", False),
        ('{"a":]' + " " * 5000 + "}", False),
        ("{1:2" + " " * 5000 + "}", False),
        ("[}" + " " * 5000, False),
        ("[" * 256 + "]" * 256 + " " * 5000, True),
        ("[" * 257 + "]" * 257 + " " * 5000, False),
    ],
)
def test_long_json(text: str, good: bool) -> None:
    assert checks(text, in_steps=False) == good
    if good:
        json.loads(text)


def pauses(steps: Steps[object]) -> int:
    return sum(1 for _ in steps)


def test_long_texts_are_read_step_by_step() -> None:
    assert pauses(check_json_steps("[" + "1," * 5000 + "1]")) > 5
    assert pauses(check_json_steps('"' + "x" * 20_000_000 + '"')) > 3


def test_json_costs_no_more_than_its_length() -> None:
    """Looking for the end of a string again and again took minutes for this, and gigabytes."""
    with pytest.raises(RemoteProtocolError, match="JSON"):
        check_json("[]" * 257 + '"' + '\\"' * 500_000)
    check_json('["' + "\\n" * 1_000_000 + '"' + ",[]" * 300 + "]")
    with pytest.raises(RemoteProtocolError, match="deeper than 256"):
        check_json("[" * 1_000_000)
