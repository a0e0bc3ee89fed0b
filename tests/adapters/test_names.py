"""Room names as file names: safe anywhere, never two rooms in one file."""

from __future__ import annotations

import re
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ycore_adapters.stores._names import file_name, room_name

_ANY = st.one_of(
    st.text(st.characters(), max_size=30),
    st.text(st.sampled_from("aA%~.41-_/\\ü"), max_size=8),  # what an escaping might trip over
    st.text(st.characters(), min_size=60, max_size=300),
)


def _variants(name: str) -> st.SearchStrategy[str]:
    """Names that some file system or careless escaping would take for the same."""
    return st.sampled_from(
        [
            name.upper(),
            name.lower(),
            name.casefold(),
            name + " ",
            name + ".",
            name + "~",
            file_name(name),
            normalize("NFC", name),
            normalize("NFD", name),
            name[:-1],
        ]
    )


@given(_ANY)
def test_file_names_are_safe_and_reversible(name: str) -> None:
    file = file_name(name)
    assert re.fullmatch(r"[a-z0-9_%~-][a-z0-9_%~-]{0,199}", file)
    assert room_name(file) == name or (
        room_name(file) is None and len(name.encode(errors="surrogatepass")) > 66
    )


@given(st.data())
def test_two_rooms_never_share_a_file(data: st.DataObject) -> None:
    """Nor where the file system ignores case or normalises Unicode (the names are ASCII)."""
    name = data.draw(_ANY)
    other = data.draw(st.one_of(_ANY, _variants(name)))
    assert (file_name(name).casefold() == file_name(other).casefold()) == (name == other)


def test_long_names_that_differ_late_stay_apart() -> None:
    names = ["x" * size for size in range(190, 215)] + ["x" * 300 + end for end in "abc"]
    assert len(set(map(file_name, names))) == len(names)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("my-room_1", "my-room_1"),
        ("My Room", "%4dy%20%52oom"),
        ("a/b", "a%2fb"),
        ("", "~"),
        ("~", "%7e"),
        (".", "%2e"),
        ("..", "%2e%2e"),
        ("../../etc/passwd", "%2e%2e%2f%2e%2e%2fetc%2fpasswd"),
        (".lock", "%2elock"),
        ("a%2fb", "a%252fb"),
        ("nul\x00l", "nul%00l"),
        ("ä", "%c3%a4"),
    ],
)
def test_names_stay_readable(name: str, file: str) -> None:
    assert file_name(name) == file


_DEVICES = [
    *("con", "prn", "aux", "nul"),
    *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(10)),
]


@pytest.mark.parametrize("device", _DEVICES)
def test_no_room_is_a_device_on_windows(device: str) -> None:
    for name in (device, device.upper(), device.title()):
        assert file_name(name).casefold() not in _DEVICES
        assert room_name(file_name(name)) == name
    assert file_name(device + "x") == device + "x"
