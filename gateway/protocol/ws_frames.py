"""Encoding and parsing of WebSocket frames (RFC 6455), from bytes to bytes, without I/O.

Rules:
- A frame for clients is built once per message and dialect and shared by all receivers: a server
  does not mask (RFC 6455 5.1), so the bytes are the same for all.
- A *dialect* is the encoding and framing of messages on one kind of connection. A process has only a few;
  connections of one dialect share every frame.
- A `FrameParser` exists only while a peer is in the middle of a frame or message. `whole_message` handles a read that
  is exactly one whole message, the usual case, without keeping state.

Why not aiohttp's reader: it accepts unmasked frames (5.1 requires closing the connection), RSV1 on control
frames and lengths that are not minimal, and keeps 2 KiB for each connection.
`python -m benchmarks.scenarios.frames` compares their speed.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from snorky.gateway.errors import CloseCode, ProtocolFault
from snorky.gateway.protocol.codec import Encoding, encode
from snorky.gateway.protocol.foreign import Rendering

__all__ = [
    "BINARY",
    "CLOSE",
    "PING",
    "PING_FRAME",
    "PONG",
    "TEXT",
    "Dialect",
    "FrameParser",
    "binary_frame",
    "close_frame",
    "close_reason",
    "dialect_for",
    "pong_frame",
    "text_frame",
    "unmask",
    "whole_message",
]

CONTINUATION: Final = 0x0  # RFC 6455 5.2: opcodes
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

_FIN: Final = 0x80
_RSV1: Final = 0x40  # RFC 7692 6: "Per-Message Compressed" bit
_MASKED: Final = 0x80
_CONTROL_MAX_BYTES: Final = 125  # RFC 6455 5.5
_DEFLATE_MIN_BYTES: Final = 64  # shorter messages become longer
_DEFLATE_TAIL: Final = b"\x00\x00\xff\xff"  # RFC 7692 7.2.1: removed by the sender
_DEFLATE_END: Final = b"\x01\x00\x00\xff\xff"  # an empty final block: reached only if the data before it is complete


def _framer(first_byte: int) -> Callable[[bytes], bytes]:
    """Make the function that puts the header of a final, unmasked frame in front of a payload."""
    short = tuple(bytes((first_byte, size)) for size in range(126))
    medium = bytes((first_byte, 126))  # then the size in two bytes

    def frame(payload: bytes) -> bytes:
        size = len(payload)
        if size < 126:
            return short[size] + payload
        if size < 65536:
            return medium + size.to_bytes(2) + payload
        return struct.pack("!BBQ", first_byte, 127, size) + payload

    return frame


text_frame: Final = _framer(_FIN | TEXT)  # of a text message: UTF-8
binary_frame: Final = _framer(_FIN | BINARY)
_frame_pong: Final = _framer(_FIN | PONG)
_frame_close: Final = _framer(_FIN | CLOSE)


def pong_frame(payload: bytes) -> bytes:
    """Build a pong with the ping's payload, <= 125 bytes (RFC 6455 5.5.3)."""
    return _frame_pong(payload)


PING_FRAME: Final = _framer(_FIN | PING)(b"")


def close_frame(code: int, reason: str = "") -> bytes:
    """Build a close frame with code and reason; the reason is cut to fit in 125 bytes (RFC 6455 5.5.1)."""
    text = reason.encode()[: _CONTROL_MAX_BYTES - 2].decode(errors="ignore").encode()
    return _frame_close(struct.pack("!H", code) + text)


def _deflated(opcode: int, plain: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Make a framer that compresses each message on its own (RFC 7692, no context takeover)."""

    packed_frame = _framer(_FIN | _RSV1 | opcode)

    def frame(message: bytes) -> bytes:
        if len(message) < _DEFLATE_MIN_BYTES:
            return plain(message)  # RFC 7692 6: RSV1 = 0 marks a message that is not compressed
        deflater = zlib.compressobj(level=1, wbits=-15)
        packed = deflater.compress(message) + deflater.flush(zlib.Z_SYNC_FLUSH)
        return packed_frame(packed[: -len(_DEFLATE_TAIL)])

    return frame


@dataclass(frozen=True, slots=True, eq=False)
class Dialect:
    """Encoding and framing of messages on one kind of connection. Compared by identity: a process has one of each.

    name: the encoding's, for metrics. opcode: of data frames that the peer may send; the other opcode is refused
    with 1003. frame: turns an encoded message into bytes to write. has_deflate: permessage-deflate was negotiated.
    rendering: of a foreign protocol; None = Snorky's own.
    """

    name: str
    encoding: Encoding
    opcode: int
    frame: Callable[[bytes], bytes]
    has_deflate: bool = False
    rendering: Rendering | None = None

    @property
    def follows_connections(self) -> bool:
        """See `Rendering.follows_connections`."""
        return self.rendering is not None and self.rendering.follows_connections

    def serves(self, service: str) -> bool:
        """True if clients have channels of this service. See `Rendering.service`."""
        return self.rendering is None or self.rendering.service in (None, service)

    def encode_notice(self, envelope: dict[str, Any]) -> bytes | None:
        """Encode a message to many clients, without framing; None: this protocol sends nothing. Raises InvalidMessage.

        envelope: {"service", "message"}.
        """
        return encode(envelope, self.encoding) if self.rendering is None else self.rendering.notice(envelope)


_DIALECTS: Final = {
    (Encoding.JSON, False): Dialect("json", Encoding.JSON, TEXT, text_frame),
    (Encoding.JSON, True): Dialect("json", Encoding.JSON, TEXT, _deflated(TEXT, text_frame), True),
    (Encoding.MSGPACK, False): Dialect("msgpack", Encoding.MSGPACK, BINARY, binary_frame),
    (Encoding.MSGPACK, True): Dialect("msgpack", Encoding.MSGPACK, BINARY, _deflated(BINARY, binary_frame), True),
}


def dialect_for(encoding: Encoding, *, deflate: bool = False) -> Dialect:
    """Return the dialect of WebSocket connections with this encoding, with or without permessage-deflate."""
    return _DIALECTS[encoding, deflate]


Unmask = Callable[[bytes, bytes], bytes]  # masked payload, mask of 4 bytes -> payload


def unmask(data: bytes, mask: bytes) -> bytes:
    """Remove the client's masking (RFC 6455 5.3) by one XOR of two long integers: 3 us per KiB."""
    size = len(data)
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "little")
    return (int.from_bytes(data, "little") ^ key).to_bytes(size, "little")


def _checked_text(message: bytes) -> bytes:
    if not message.isascii():
        try:
            message.decode()
        except UnicodeDecodeError:
            # RFC 6455 8.1: data that is not UTF-8 fails the connection
            raise ProtocolFault(CloseCode.INVALID_TEXT, "Text is not UTF-8") from None
    return message


def whole_message(data: bytes, max_bytes: int, unmask: Unmask = unmask) -> tuple[int, bytes] | None:
    """Parse a read that is exactly one final, masked, uncompressed data frame or pong; else return None.

    unmask: a faster implementation, if available. Returns (opcode, payload). Raises ProtocolFault: not UTF-8 text.
    """
    size = len(data)
    if size < 6:
        return None
    first, length = data[0], data[1] - _MASKED
    if 0 <= length < 126:
        start = 2
    elif length == 126 and size >= 8 + 126:
        length = data[2] << 8 | data[3]
        start = 4
    else:
        return None
    if size != start + 4 + length or length > max_bytes:
        return None
    if first == _FIN | TEXT:
        return TEXT, _checked_text(unmask(data[start + 4 :], data[start : start + 4]))
    if first == _FIN | BINARY or (first == _FIN | PONG and start == 2):
        return first & 0x0F, unmask(data[start + 4 :], data[start : start + 4])
    return None


class FrameParser:
    """Parses one peer's frames, received in arbitrary pieces, into whole messages and control frames.

    max_bytes: of one message, after decompression. deflate: permessage-deflate was negotiated, with
    client_no_context_takeover. unmask: a faster implementation, if available. Buffers at most max_bytes + one read.
    on_fragment: called for each frame of a fragmented message; `feed` lets its exceptions through.
    """

    __slots__ = ("_buffer", "_deflate", "_is_packed", "_max_bytes", "_message", "_on_fragment", "_opcode", "_unmask")

    def __init__(
        self,
        max_bytes: int,
        *,
        deflate: bool = False,
        unmask: Unmask = unmask,
        on_fragment: Callable[[], None] = lambda: None,
    ) -> None:
        self._max_bytes = max_bytes
        self._unmask = unmask
        self._deflate = deflate
        self._on_fragment = on_fragment
        self._buffer = bytearray()  # bytes of incomplete frames
        self._message: bytearray | None = None  # fragments so far, unmasked
        self._opcode = CONTINUATION
        self._is_packed = False

    @property
    def is_idle(self) -> bool:
        """True between messages: nothing is buffered, so the parser may be discarded."""
        return not self._buffer and self._message is None

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield (opcode, payload) of each message and control frame that `data` completes, in order.

        Raises ProtocolFault if RFC 6455 requires failing the connection; earlier messages have been yielded.
        """
        self._buffer += data
        return self._messages()  # a separate generator, which keeps no reference to `data`

    def _messages(self) -> Iterator[tuple[int, bytes]]:
        while (frame := self._next_frame()) is not None:
            first, payload = frame
            opcode = first & 0x0F
            if opcode >= CLOSE:
                yield opcode, payload
            elif (message := self._join(first, opcode, payload)) is not None:
                yield message

    def _next_frame(self) -> tuple[int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, second = buffer[0], buffer[1]
        self._check_head(first, second)
        length, start = second & 0x7F, 2
        if length == 126:
            if len(buffer) < 4:
                return None
            (length,), start = struct.unpack_from("!H", buffer, 2), 4
            is_minimal = length >= 126
        elif length == 127:
            if len(buffer) < 10:
                return None
            (length,), start = struct.unpack_from("!Q", buffer, 2), 10
            is_minimal = length >= 65536
        else:
            is_minimal = True
        if not is_minimal:
            # RFC 6455 5.2: "the minimal number of bytes MUST be used to encode the length"
            raise ProtocolFault(CloseCode.PROTOCOL_ERROR, "Length is not minimal")
        if length + (len(self._message) if self._message is not None else 0) > self._max_bytes:
            # the header alone shows it, before any byte of the payload is buffered
            raise ProtocolFault(CloseCode.TOO_LARGE, f"Message larger than {self._max_bytes} bytes")
        end = start + 4 + length
        if len(buffer) < end:
            return None
        payload = self._unmask(bytes(buffer[start + 4 : end]), bytes(buffer[start : start + 4]))
        del buffer[:end]
        return first, payload

    def _check_head(self, first: int, second: int) -> None:
        opcode, is_final = first & 0x0F, first & _FIN
        # RFC 6455 5.2: reserved bits MUST be 0 unless an extension is negotiated; RFC 7692 6: RSV1 only on
        # the first fragment of a data message
        if first & 0x30 or (first & _RSV1 and not (self._deflate and opcode in (TEXT, BINARY))):
            raise ProtocolFault(CloseCode.PROTOCOL_ERROR, "Reserved bits are set")
        if not second & _MASKED:
            # RFC 6455 5.1: "The server MUST close the connection upon receiving a frame that is not masked"
            raise ProtocolFault(CloseCode.PROTOCOL_ERROR, "Frame is not masked")
        if opcode in (CLOSE, PING, PONG):
            if not is_final or second & 0x7F > _CONTROL_MAX_BYTES:  # RFC 6455 5.5
                raise ProtocolFault(CloseCode.PROTOCOL_ERROR, "Control frame is fragmented or too long")
        elif opcode == CONTINUATION:
            if self._message is None:
                raise ProtocolFault(CloseCode.PROTOCOL_ERROR, "Nothing to continue")
        elif opcode not in (TEXT, BINARY):
            raise ProtocolFault(CloseCode.PROTOCOL_ERROR, "Unknown opcode")
        elif self._message is not None:  # RFC 6455 5.4: fragments of messages do not interleave
            raise ProtocolFault(CloseCode.PROTOCOL_ERROR, "Message within a message")

    def _join(self, first: int, opcode: int, payload: bytes) -> tuple[int, bytes] | None:
        """Add one data frame; returns the message if this was its last."""
        if opcode != CONTINUATION:
            self._opcode, self._is_packed = opcode, bool(first & _RSV1)
        if not first & _FIN:
            if self._message is None:
                self._message = bytearray()
            self._on_fragment()
            self._message += payload
            return None
        if self._message is not None:
            self._on_fragment()
            payload, self._message = bytes(self._message + payload), None
        if self._is_packed:
            payload = self._inflate(payload)
        return self._opcode, _checked_text(payload) if self._opcode == TEXT else payload

    def _inflate(self, payload: bytes) -> bytes:
        inflater = zlib.decompressobj(wbits=-15)
        try:
            message = inflater.decompress(payload + _DEFLATE_TAIL + _DEFLATE_END, self._max_bytes + 1)
        except zlib.error:
            raise ProtocolFault(CloseCode.PROTOCOL_ERROR, "Compressed data is broken") from None
        if len(message) > self._max_bytes:  # a decompression bomb costs max_bytes + 1, not its full size
            raise ProtocolFault(CloseCode.TOO_LARGE, f"Message larger than {self._max_bytes} bytes")
        # RFC 7692 7.2.3.5: the sender may end with its own final block, followed by an empty one
        if not inflater.eof or inflater.unused_data not in (b"", b"\x00" + _DEFLATE_TAIL + _DEFLATE_END):
            raise ProtocolFault(CloseCode.PROTOCOL_ERROR, "Compressed data is broken")
        return message


def close_reason(payload: bytes) -> CloseCode | int:
    """Read the code of a peer's close frame; NO_STATUS if the frame was empty.

    Raises ProtocolFault: one byte, a code that may not be sent (RFC 6455 7.4), a reason that is not UTF-8.
    """
    if not payload:
        return CloseCode.NO_STATUS
    if len(payload) == 1:
        raise ProtocolFault(CloseCode.PROTOCOL_ERROR, "Close frame of one byte")
    (code,) = struct.unpack_from("!H", payload)
    if not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        raise ProtocolFault(CloseCode.PROTOCOL_ERROR, "Close code may not be sent")
    _checked_text(payload[2:])
    return int(code)
