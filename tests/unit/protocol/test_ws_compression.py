"""Compressed frames (RFC 7692), and the memory that frames take."""

import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snorky.gateway.errors import ProtocolFault
from snorky.gateway.protocol.codec import Encoding
from snorky.gateway.protocol.ws_frames import (
    FrameParser,
    dialect_for,
)
from tests.support.clients.raw_ws import BINARY, CONTINUATION, PING, TEXT, deflated, frame
from tests.support.scenarios.frame_parsing import MAX_BYTES, fault_of, parse

# -- compression (RFC 7692) ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("encoding", "opcode"), [(Encoding.JSON, TEXT), (Encoding.MSGPACK, BINARY)])
@given(message=st.binary(max_size=500).map(bytes.hex).map(str.encode))
def test_compressed_messages_round_trip(encoding: Encoding, opcode: int, message: bytes) -> None:
    dialect = dialect_for(encoding, deflate=True)
    written = dialect.frame(message)
    first, second = written[0], written[1]
    start = 2 if second < 126 else 4
    assert len(written) == start + (second if second < 126 else struct.unpack("!H", written[2:4])[0])
    if len(message) < 64:
        assert first == 0x80 | opcode, "6: not worth compressing is sent as it is, with RSV1 = 0"
        assert written[start:] == message
    else:
        assert first == 0xC0 | opcode
        assert parse(frame(opcode, written[start:], rsv=4), deflate=True) == [(opcode, message)]


def test_each_message_is_compressed_on_its_own() -> None:
    framed = dialect_for(Encoding.JSON, deflate=True).frame
    assert framed(b"a" * 1000) == framed(b"a" * 1000)
    assert len(framed(b"a" * 1000)) < 40


def test_compressed_fragments_carry_the_bit_once() -> None:
    packed = deflated(b"Hello" * 50)
    start, rest = packed[:4], packed[4:]
    first = frame(TEXT, start, fin=False, rsv=4)
    assert parse(first, frame(CONTINUATION, rest), deflate=True) == [(TEXT, b"Hello" * 50)]
    assert parse(first, frame(PING), frame(CONTINUATION, rest), deflate=True) == [(PING, b""), (TEXT, b"Hello" * 50)]
    # 6.1: "MUST set RSV1 of the first frame ... The other fragments' RSV1 must be 0"
    assert fault_of(first, frame(CONTINUATION, rest, rsv=4), deflate=True)[0] == 1002
    assert fault_of(frame(PING, b"", rsv=4), deflate=True)[0] == 1002


def test_plain_messages_are_accepted_between_compressed_ones() -> None:
    reads = [frame(TEXT, deflated(b"one"), rsv=4), frame(TEXT, b"two"), frame(TEXT, deflated(b""), rsv=4)]
    assert parse(*reads, deflate=True) == [(TEXT, b"one"), (TEXT, b"two"), (TEXT, b"")]


@pytest.mark.parametrize(
    "packed",
    [
        b"\xff\xff\xff",
        b"\x07",
        deflated(b"Hello" * 100)[:-3],  # cut in a block: the message would be silently truncated
        b"\xf3\x48\xcd\xc9\xc9\x07\x00" + b"something behind the final block",
        b"",  # 7.2.3.6: even an empty message is one byte
    ],
)
def test_compressed_data_that_is_not_whole_is_a_fault(packed: bytes) -> None:
    assert fault_of(frame(TEXT, packed, rsv=4), deflate=True)[0] == 1002


def test_invalid_utf8_is_found_in_compressed_text() -> None:
    assert fault_of(frame(TEXT, deflated(b"\xff"), rsv=4), deflate=True)[0] == 1007


def test_a_message_of_the_largest_size_is_accepted_and_one_byte_more_is_not() -> None:
    assert parse(frame(TEXT, deflated(b"x" * 1000), rsv=4), max_bytes=1000, deflate=True) == [(TEXT, b"x" * 1000)]
    assert fault_of(frame(TEXT, deflated(b"x" * 1001), rsv=4), max_bytes=1000, deflate=True)[0] == 1009


def test_a_deflate_bomb_costs_at_most_the_size_limit_of_a_message() -> None:
    bomb = frame(BINARY, deflated(bytes(60_000_000))[: MAX_BYTES - 1], rsv=4)
    assert len(bomb) > 50_000
    parser = FrameParser(MAX_BYTES, deflate=True)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolFault) as caught:
            list(parser.feed(bomb))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.close_code == 1009
    assert peak_bytes < 2**20


def test_a_parser_buffers_received_bytes_and_not_the_declared_size() -> None:
    tracemalloc.start()
    try:
        parsers = [FrameParser(2**24) for _ in range(100)]
        for parser in parsers:
            list(parser.feed(frame(BINARY, b"", length=2**24)))
        held_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held_bytes < 100 * 1024
