"""y-protocols messages: one table drives encoder and decoder."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ycore import RemoteProtocolError
from ycore.messages import (
    AwarenessUpdate,
    Custom,
    Message,
    PermissionDenied,
    QueryAwareness,
    SyncStep1,
    SyncStep2,
    Update,
    decode,
)

MESSAGES: list[tuple[Message, str]] = [
    (SyncStep1(b"\x00"), "00000100"),
    (SyncStep2(b"\x00\x00"), "0001020000"),
    (Update(b"\x01" * 200), "0002c801" + "01" * 200),
    (AwarenessUpdate(b"\x00"), "010100"),
    (PermissionDenied("nö"), "0200036ec3b6"),
    (QueryAwareness(), "03"),
    (Custom(102, b"\x01\x05"), "660105"),
    (Custom(300, b""), "ac02"),
    (Custom(2, b"\x01"), "0201"),  # yrs: permission granted
]


@pytest.mark.parametrize(("message", "encoded"), MESSAGES)
def test_both_ways(message: Message, encoded: str) -> None:
    assert message.encode().hex() == encoded
    assert decode(bytes.fromhex(encoded)) == [message]


def test_several_messages_in_one_frame_are_read_in_order() -> None:
    messages = [Update(b"a"), SyncStep1(b"\x00"), PermissionDenied(""), AwarenessUpdate(b"\x00")]
    messages.append(Custom(99, b"the rest"))
    assert decode(b"".join(message.encode() for message in messages)) == messages


def test_a_query_may_carry_a_payload_that_means_nothing() -> None:
    assert decode(bytes.fromhex("0301ff")) == [QueryAwareness()]


@pytest.mark.parametrize(
    ("encoded", "why"),
    [
        ("", "runs past the end"),
        ("00", "runs past the end"),
        ("0000", "runs past the end"),
        ("000005aa", "runs past the end"),
        ("000300", "unknown sync message 3"),
        ("0002ffffffff0f", "4294967295 bytes"),
        ("01", "runs past the end"),
        ("0105", "runs past the end"),
        ("0200", "runs past the end"),
        ("020001ff", "not UTF-8"),
        ("ffffffffffffffffff", "more than 8 bytes"),
        ("0000010000", "runs past the end"),  # a second message, cut short
    ],
)
def test_malformed(encoded: str, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why) as caught:
        decode(bytes.fromhex(encoded))
    assert caught.value.close_code == 1007


@given(st.binary(max_size=30))
def test_random_bytes_are_read_or_refused(data: bytes) -> None:
    """What is read can be written again and reads the same."""
    try:
        messages = decode(data)
    except RemoteProtocolError:
        return
    assert decode(b"".join(message.encode() for message in messages)) == messages
