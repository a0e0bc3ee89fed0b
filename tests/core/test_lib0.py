"""lib0: one table drives writer and reader, whole and cut short at every byte."""

from __future__ import annotations

import math

import pytest
from build import string
from hypothesis import given
from hypothesis import strategies as st

from ycore import LocalProtocolError, RemoteProtocolError, lib0
from ycore.lib0 import MAX_NESTING, MAX_SAFE_INTEGER, UNDEFINED, AnyValue, BigInt, Undefined

# Each line was checked against lib0 0.2 in Node.
VAR_UINT = [
    (0, "00"),
    (1, "01"),
    (127, "7f"),
    (128, "8001"),
    (300, "ac02"),
    (2**32 - 1, "ffffffff0f"),
    (MAX_SAFE_INTEGER, "ffffffffffffff0f"),
]
VAR_INT = [
    (0, "00"),
    (-0.0, "40"),
    (1, "01"),
    (-1, "41"),
    (63, "3f"),
    (-63, "7f"),
    (64, "8001"),
    (-64, "c001"),
    (8191, "bf7f"),
    (8192, "808001"),
    (-(2**31), "c080808010"),
    (MAX_SAFE_INTEGER, "bfffffffffffff1f"),
]
ANY: list[tuple[AnyValue, str]] = [
    (UNDEFINED, "7f"),
    (None, "7e"),
    (True, "78"),
    (False, "79"),
    (7, "7d07"),
    (-7, "7d47"),
    (-0.0, "7d40"),
    (2**31 - 1, "7dbfffffff0f"),
    (2.0**31, "7c4f000000"),
    (0.5, "7c3f000000"),
    (0.1, "7b3fb999999999999a"),
    (1e300, "7b7e37e43c8800759c"),
    (math.inf, "7c7f800000"),
    (BigInt(-2), "7afffffffffffffffe"),
    ("hé😀", "77" + "07" + "68c3a9f09f9880"),
    (b"\x00\xff", "740200ff"),
    ([], "7500"),
    ([1, [2, []]], "75027d0175027d027500"),
    ({}, "7600"),
    ({"a": {"b": None}, "c": [True]}, "7602016176010162" + "7e" + "0163750178"),
]


def same(a: object, b: object) -> bool:
    """Equal, and of the same type all the way down (1 == 1.0 == True, and 0 == -0.0)."""
    return repr(a) == repr(b)


@pytest.mark.parametrize(("value", "encoded"), VAR_UINT)
def test_var_uint(value: int, encoded: str) -> None:
    out = bytearray()
    lib0.write_var_uint(out, value)
    assert out.hex() == encoded
    assert lib0.read_var_uint(b"\xff" + out, 1) == (value, 1 + len(out))


@pytest.mark.parametrize(("value", "encoded"), VAR_INT)
def test_var_int(value: int | float, encoded: str) -> None:
    out = bytearray()
    lib0.write_var_int(out, value)
    assert out.hex() == encoded
    read, end = lib0.read_var_int(bytes(out), 0)
    assert same(read, value)
    assert end == len(out)


@pytest.mark.parametrize(("value", "encoded"), ANY)
def test_any(value: AnyValue, encoded: str) -> None:
    out = bytearray()
    lib0.write_any(out, value)
    assert out.hex() == encoded
    data = b"\xff" + bytes(out) + b"\x00"
    read, end = lib0.read_any(data, 1)
    assert same(read, value)
    assert end == 1 + len(out)
    assert lib0.skip_any(data, 1) == end


def test_overlong_var_uint_is_read_as_javascript_does() -> None:
    assert lib0.read_var_uint(bytes.fromhex("808000"), 0) == (0, 3)


@pytest.mark.parametrize(
    ("encoded", "why"),
    [
        ("", "runs past the end"),
        ("80", "runs past the end"),
        ("ffffffffffffff10", "2\\^53-1"),  # 2^53
        ("808080808080808000", "more than 8 bytes"),
        ("ff" * 20, "more than 8 bytes"),
    ],
)
def test_bad_var_uint(encoded: str, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        lib0.read_var_uint(bytes.fromhex(encoded), 0)


@pytest.mark.parametrize(
    ("encoded", "why"),
    [
        ("", "runs past the end"),
        ("80", "runs past the end"),
        ("bfffffffffffff20", "2\\^53-1"),
        ("808080808080808000", "more than 8 bytes"),
    ],
)
def test_bad_var_int(encoded: str, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        lib0.read_var_int(bytes.fromhex(encoded), 0)


@pytest.mark.parametrize(
    ("encoded", "why"),
    [
        ("", "runs past the end"),
        ("7d", "runs past the end"),
        ("7c0000", "runs past the end"),
        ("7b00000000", "runs past the end"),
        ("7a00", "runs past the end"),
        ("770561", "runs past the end"),
        ("7701ff", "not UTF-8"),
        ("7703eda080", "not UTF-8"),  # a surrogate
        ("7405", "runs past the end"),
        ("73", "unknown tag 115"),
        ("80", "unknown tag 128"),
        ("75057e", "5 entries"),
        ("75ffffffff0f", "4294967295 entries"),
        ("7601016a6a", "unknown tag 106"),
        ("760161", "runs past the end"),
        ("75" + "0175" * MAX_NESTING + "00", "deeper than 256"),
        ("7601016176" * 5, "runs past the end"),
    ],
)
def test_bad_any(encoded: str, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        lib0.skip_any(bytes.fromhex(encoded), 0)
    with pytest.raises(RemoteProtocolError, match=why):
        lib0.read_any(bytes.fromhex(encoded), 0)


def test_any_may_nest_as_deep_as_the_limit() -> None:
    value: AnyValue = None
    for _ in range(MAX_NESTING):
        value = [value]
    out = bytearray()
    lib0.write_any(out, value)
    assert lib0.read_any(bytes(out), 0) == (value, len(out))
    with pytest.raises(LocalProtocolError, match="deeper than 256"):
        lib0.write_any(out, [value])


@pytest.mark.parametrize("value", [value for value, _ in ANY])
def test_any_cut_short_is_refused(value: AnyValue) -> None:
    out = bytearray()
    lib0.write_any(out, value)
    for end in range(len(out)):
        with pytest.raises(RemoteProtocolError):
            lib0.read_any(bytes(out[:end]), 0)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (object(), "can't hold a object"),
        ({1: 2}, "key must be a string"),
        (2**53, "needs a BigInt"),
        (BigInt(2**63), "at most 64 bits"),
    ],
)
def test_any_refuses_and_writes_nothing(value: AnyValue, why: str) -> None:
    out = bytearray(b"before")
    with pytest.raises(LocalProtocolError, match=why):
        lib0.write_any(out, [1, value])
    assert out == b"before"


def test_any_that_holds_itself_is_refused() -> None:
    value: list[AnyValue] = []
    value.append(value)
    with pytest.raises(LocalProtocolError, match="nests deeper"):
        lib0.write_any(bytearray(), value)


def test_numbers_take_the_form_javascript_gives_them() -> None:
    for value, tag in [
        (1.0, 0x7D),
        (2**31, 0x7C),
        (2**40 + 1, 0x7B),
        (1e39, 0x7B),
        (math.nan, 0x7B),
    ]:
        out = bytearray()
        lib0.write_any(out, value)
        assert out[0] == tag, value


scalars = st.one_of(
    st.none(),
    st.just(UNDEFINED),
    st.booleans(),
    st.integers(-(2**31) + 1, 2**31 - 1),
    st.floats(allow_nan=False).filter(lambda x: not (x.is_integer() and abs(x) < 2**31)),
    st.integers(-(2**63), 2**63 - 1).map(BigInt),
    st.text(),
    st.binary(),
)
values: st.SearchStrategy[AnyValue] = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(values)
def test_any_round_trip(value: AnyValue) -> None:
    out = bytearray()
    lib0.write_any(out, value)
    read, end = lib0.read_any(bytes(out), 0)
    assert same(read, value)
    assert end == lib0.skip_any(bytes(out), 0) == len(out)


@given(st.binary(max_size=40))
def test_any_of_random_bytes_is_read_or_refused(data: bytes) -> None:
    """Reader and checker agree on what is well-formed, and on where it ends."""
    try:
        end = lib0.skip_any(data, 0)
    except RemoteProtocolError:
        with pytest.raises(RemoteProtocolError):
            lib0.read_any(data, 0)
    else:
        assert lib0.read_any(data, 0)[1] == end


@given(st.integers(0, MAX_SAFE_INTEGER))
def test_var_uint_round_trip(value: int) -> None:
    out = bytearray()
    lib0.write_var_uint(out, value)
    assert lib0.read_var_uint(bytes(out), 0) == (value, len(out))


@pytest.mark.parametrize("value", [-1, MAX_SAFE_INTEGER + 1])
def test_var_uint_out_of_range(value: int) -> None:
    with pytest.raises(LocalProtocolError):
        lib0.write_var_uint(bytearray(), value)


def test_var_int_out_of_range() -> None:
    with pytest.raises(LocalProtocolError):
        lib0.write_var_int(bytearray(), -(2**53))


def test_strings_count_bytes_and_replace_lone_surrogates() -> None:
    for value, encoded in [("é", "02c3a9"), ("\ud83d\ude00", "04f09f9880"), ("\ud83d", "03efbfbd")]:
        out = bytearray()
        lib0.write_var_string(out, value)
        assert out.hex() == encoded


def test_byte_strings() -> None:
    out = bytearray()
    lib0.write_var_uint8_array(out, b"ab")
    assert lib0.read_var_uint8_array(bytes(out), 0) == (b"ab", 3)
    with pytest.raises(RemoteProtocolError, match="byte string of 9007199254740991 bytes"):
        lib0.read_var_uint8_array(bytes.fromhex("ffffffffffffff0f"), 0)


def test_undefined_is_one_and_false() -> None:
    assert Undefined() is UNDEFINED
    assert not UNDEFINED
    assert repr(UNDEFINED) == "UNDEFINED"


def test_long_values_are_read_step_by_step() -> None:
    many = bytearray()
    lib0.write_any(many, [None] * 5000)
    assert sum(1 for _ in lib0.skip_any_steps(many, 0)) > 3


@given(st.binary(max_size=20) | st.text(max_size=9).map(lambda text: string(text) + b"\xff"))
def test_a_string_is_skipped_just_as_it_is_read(data: bytes) -> None:
    outcomes: list[int | str] = []
    for skip in (lib0.skip_var_string, lambda data, pos: lib0.read_var_string(data, pos)[1]):
        try:
            outcomes.append(skip(data, 0))
        except RemoteProtocolError as exc:
            outcomes.append(str(exc))
    assert outcomes[0] == outcomes[1]
