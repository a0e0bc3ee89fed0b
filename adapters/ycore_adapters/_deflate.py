"""permessage-deflate (RFC 7692), such that nobody pays for what another does.

Neither side keeps a context from one message to the next. So a message is compressed once for all
who negotiated this with the same window, and nothing is kept for a connection between messages.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from typing import Final, TypeAlias

from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits

_NAME: Final = "permessage-deflate"
_PARAMETER: Final = re.compile(r"([a-z_]+)(?:[ \t]*=[ \t]*(?:([0-9]+)|\"([0-9]+)\"))?")
_WINDOW_BITS: Final = frozenset(map(str, range(8, 16)))
_LEVEL: Final = 1
"""zlib's fastest. Of a document of 100 KB it saves 50 % in 1.2 ms, the default level 55 % in 4."""
_TAIL: Final = b"\x00\x00\xff\xff"
"""What a sender leaves out at the end of each message, RFC 7692 section 7.2.1."""

_NO_BIT: Final = RsvBits(False, False, False)
_RSV1: Final = RsvBits(True, False, False)

_FREE: Final = 4 * 2**20
"""Up to how many bytes a message may inflate to however few it is sent in. Some honest documents
hold the same line again and again."""
_RATIO: Final = 64
"""How many times its length a longer one may inflate to, at any point of it. What people and
programs write is 2 to 20 times as long, rarely 50; a bomb 1,000 times."""

Window: TypeAlias = int
"""The logarithm of how far back a compressed message may refer, 9 to 15."""


def negotiate(header: Iterable[str]) -> tuple[Window, str] | None:
    """The first of the offers that can be taken: our window, and the answer to it.

    An offer with anything odd in it is declined, as RFC 7692 section 7.1 wants; another may follow.
    """
    for offer in ",".join(header).split(","):
        name, *parameters = (part.strip(" \t") for part in offer.split(";"))
        if name.lower() == _NAME:
            window = _read_offer(parameters)
            if window is not None:
                # The client may always be told to begin anew, section 7.1.1.2.
                answer = f"{_NAME}; server_no_context_takeover; client_no_context_takeover"
                return window, answer + (f"; server_max_window_bits={window}" * (window < 15))
    return None


def _read_offer(parameters: Iterable[str]) -> Window | None:
    found: dict[str, str | None] = {}
    for parameter in parameters:
        match = _PARAMETER.fullmatch(parameter.lower())
        if match is None or match[1] in found:
            return None
        found[match[1]] = match[2] or match[3]
    window = found.pop("server_max_window_bits", "15")
    # The client's own window may be of any size: we can always read the largest.
    client = found.pop("client_max_window_bits", None)
    if window not in _WINDOW_BITS or not (client is None or client in _WINDOW_BITS):
        return None
    if found.keys() - {"server_no_context_takeover", "client_no_context_takeover"}:
        return None
    if any(value is not None for value in found.values()):
        return None
    return int(window) if window != "8" else None  # zlib has no raw window of 8 bits


def deflate(message: bytes, window: Window) -> bytes:
    """A whole message compressed by itself, as the payload of a frame with RSV1."""
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -window)
    deflated = compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return deflated.removesuffix(_TAIL)


class Inbound(Extension):
    """What wsproto asks about each frame that comes in: is it too long, what was compressed in it?

    Args:
        max_message_bytes: more than this ends the connection: a frame that says in its header that
            it will be longer at once, and one that inflates to more when it does.
        inflates: whether permessage-deflate was negotiated.
    """

    def __init__(self, max_message_bytes: int, *, inflates: bool) -> None:
        self.too_big = f"a message is at most {max_message_bytes} bytes"
        """Why a message was refused, if it was for its length."""
        self.inflated = 0
        """How many bytes have come of inflating. To be set to 0 by whoever gives others a turn."""
        self._limit = max_message_bytes
        self._inflates = inflates
        self._came = 0
        """Of the message so far, compressed."""
        self._size = 0
        """Of the message so far, inflated."""
        self._is_data = False
        """Whether the present frame is part of a message, and none between its fragments."""
        self._inflater: zlib._Decompress | None = None
        """While a compressed message is under way."""

    def enabled(self) -> bool:
        return True

    def offer(self) -> bool:
        return False  # `negotiate` does what there is to do

    def frame_inbound_header(
        self,
        proto: FrameDecoder | FrameProtocol,
        opcode: Opcode,
        rsv: RsvBits,
        payload_length: int,
    ) -> CloseReason | RsvBits:
        # May be called again for the same frame, while the header is incomplete.
        self._is_data = not opcode.iscontrol()
        if not self._is_data:
            return _NO_BIT
        if self._size + payload_length > self._limit:
            return CloseReason.MESSAGE_TOO_BIG
        if not self._inflates or opcode is Opcode.CONTINUATION:
            return _NO_BIT  # only the first fragment tells, RFC 7692 section 6.1
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS) if rsv.rsv1 else None
        return _RSV1

    def frame_inbound_payload_data(
        self, proto: FrameDecoder | FrameProtocol, data: bytes
    ) -> bytes | CloseReason:
        if not self._is_data:
            return data
        if self._inflater is not None:
            self._came += len(data)
            return self._inflate(data)
        self._size += len(data)
        return data

    def frame_inbound_complete(
        self, proto: FrameDecoder | FrameProtocol, fin: bool
    ) -> bytes | CloseReason | None:
        if not self._is_data or not fin:
            return None
        rest = self._inflate(_TAIL) if self._inflater is not None else None
        self._came = self._size = 0
        self._inflater = None
        return rest

    def _inflate(self, data: bytes) -> bytes | CloseReason:
        assert self._inflater is not None
        pieces = []
        while data:
            most = max(_FREE, _RATIO * self._came)
            room = min(self._limit, most) - self._size
            try:
                piece = self._inflater.decompress(data, room + 1)
            except zlib.error:
                return CloseReason.INVALID_FRAME_PAYLOAD_DATA
            if len(piece) > room:
                if most < self._limit:
                    self.too_big = f"a message is at most {_RATIO} times as long as compressed"
                return CloseReason.MESSAGE_TOO_BIG
            self._size += len(piece)
            self.inflated += len(piece)
            pieces.append(piece)
            # A block may be marked as the last one, and be followed by more (section 7.2.3.4). The
            # old inflater must not see that: it would gather it up.
            data = self._inflater.unused_data
            if self._inflater.eof:
                self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        return b"".join(pieces)
