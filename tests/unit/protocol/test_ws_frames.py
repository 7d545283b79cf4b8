"""frames: RFC 6455 and RFC 7692 as bytes, branch by branch."""

import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snorky.gateway.errors import CloseCode, ProtocolFault
from snorky.gateway.protocol.ws_frames import (
    PING_FRAME,
    FrameParser,
    binary_frame,
    close_frame,
    close_reason,
    pong_frame,
    text_frame,
    whole_message,
)
from tests.support.clients.raw_ws import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_payload, deflated, frame
from tests.support.scenarios.frame_parsing import MAX_BYTES, fault_of, parse


def outcome(reads: Iterable[bytes], *, deflate: bool) -> tuple[list[tuple[int, bytes]], CloseCode | None]:
    """Feed reads; returns the events and the fault's code, if there is one."""
    parser = FrameParser(1000, deflate=deflate)
    events = []
    try:
        for read in reads:
            for event in parser.feed(read):
                events.append(event)
    except ProtocolFault as fault:
        return events, fault.close_code
    return events, None


# -- what a server sends (RFC 6455 5.1: never masked) ---------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "head"),
    [
        (0, b"\x81\x00"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65_535, b"\x81\x7e\xff\xff"),
        (65_536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_lengths_are_written_in_the_least_bytes(size: int, head: bytes) -> None:
    payload = b"x" * size
    assert text_frame(payload) == head + payload
    assert binary_frame(payload) == b"\x82" + head[1:] + payload


def test_examples_of_the_rfc_are_written_and_read() -> None:
    # RFC 6455 5.7
    assert text_frame(b"Hello") == b"\x81\x05Hello"
    assert pong_frame(b"Hello") == b"\x8a\x05Hello"
    assert PING_FRAME == b"\x89\x00"
    assert parse(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58") == [(TEXT, b"Hello")]
    # RFC 7692 7.2.3.1, .2 and .4: compressed, in two fragments, uncompressed block, two blocks
    for packed in (
        b"\xf2\x48\xcd\xc9\xc9\x07\x00",
        b"\x00\x05\x00\xfa\xffHello\x00",
        b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00",
        b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00",  # 7.2.3.5: the sender's own final block, then an empty one
    ):
        assert parse(frame(TEXT, packed, rsv=4), deflate=True) == [(TEXT, b"Hello")], packed


def test_close_reasons_are_truncated_to_the_size_of_a_control_frame() -> None:
    written = close_frame(1000, "é" * 100)
    assert written[:4] == b"\x88\x7c\x03\xe8"  # 124: half a character is left out
    assert written[4:].decode() == "é" * 61


# -- whole frames ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 1000, 65_535, 65_536])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_both_readers_take_messages_of_every_length_form(opcode: int, size: int) -> None:
    payload = bytes(each % 128 for each in range(size))
    data = frame(opcode, payload)
    assert parse(data) == [(opcode, payload)]
    assert whole_message(data, MAX_BYTES) == (None if size == 65_536 else (opcode, payload))  # rare: left to the parser


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x81",
        frame(TEXT, b"Hello")[:-1],
        frame(TEXT, b"Hello") + b"\x81",
        frame(TEXT, b"Hello") * 2,
        frame(TEXT, b"Hello", fin=False),
        frame(CONTINUATION, b"Hello"),
        frame(TEXT, b"Hello", masked=False) + b"1234",
        frame(TEXT, b"Hello", rsv=4),
        frame(TEXT, b"x" * 100, length_bytes=2),
        frame(TEXT, b"x" * 200, length_bytes=8),
        frame(TEXT, b"x" * 1001),
        frame(CLOSE, b""),
        frame(PING, b""),
        frame(PONG, b"x" * 126),
        frame(0x3, b""),
    ],
)
def test_the_fast_path_leaves_all_but_one_plain_frame_to_the_parser(data: bytes) -> None:
    assert whole_message(data, 1000) is None


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4), st.sampled_from([BINARY, PONG]))
def test_every_mask_is_undone(payload: bytes, mask: bytes, opcode: int) -> None:
    payload = payload[:125] if opcode == PONG else payload
    data = frame(opcode, payload, mask=mask)
    assert whole_message(data, 300) == (opcode, payload)
    assert parse(data) == [(opcode, payload)]


@given(st.binary(max_size=60))
def test_the_fast_path_agrees_with_the_parser(data: bytes) -> None:
    try:
        short = whole_message(data, 40)
    except ProtocolFault as fault:
        assert fault_of(data, max_bytes=40)[0] is fault.close_code
        return
    if short is not None:
        assert parse(data, max_bytes=40) == [short]


# -- in pieces ------------------------------------------------------------------------------------------------

_PAYLOADS = st.binary(max_size=20) | st.sampled_from(["é\U0001f600".encode(), b"x" * 126, b"\xff", b"x" * 1001])


_FRAMES = st.builds(
    frame,
    st.sampled_from([CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG, 0x3, 0xB]),
    _PAYLOADS | _PAYLOADS.map(deflated),
    fin=st.booleans(),
    rsv=st.sampled_from([0, 0, 0, 4, 2]),
    masked=st.sampled_from([True, True, True, False]),
    length_bytes=st.none() | st.just(8),
)


@st.composite
def split_streams(draw: st.DrawFn) -> list[bytes]:
    stream = b"".join(draw(st.lists(_FRAMES, max_size=6)))
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    return [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


@given(split_streams(), st.booleans())
def test_any_split_of_a_stream_gives_the_same_events_and_the_same_fault(reads: list[bytes], deflate: bool) -> None:
    whole = b"".join(reads)
    byte_by_byte = [whole[at : at + 1] for at in range(len(whole))]
    expected = outcome([whole], deflate=deflate)
    assert outcome(reads, deflate=deflate) == expected
    assert outcome(byte_by_byte, deflate=deflate) == expected


def test_reading_byte_by_byte_equals_one_read_and_keeps_nothing_afterwards() -> None:
    stream = (
        frame(TEXT, b"one")
        + frame(TEXT, b"tw", fin=False)
        + frame(PING, b"?")
        + frame(CONTINUATION, b"o")
        + frame(BINARY, b"x" * 300)
    )
    parser = FrameParser(1000)
    events = [event for at in range(len(stream)) for event in parser.feed(stream[at : at + 1])]
    assert events == parse(stream) == [(TEXT, b"one"), (PING, b"?"), (TEXT, b"two"), (BINARY, b"x" * 300)]
    assert parser.is_idle
    list(parser.feed(b"\x81"))
    assert not parser.is_idle


def test_control_frames_between_fragments_are_returned_at_once() -> None:
    parser = FrameParser(MAX_BYTES)
    assert list(parser.feed(frame(TEXT, "é".encode()[:1], fin=False))) == []
    assert list(parser.feed(frame(PING, b"a") + frame(PONG))) == [(PING, b"a"), (PONG, b"")]
    assert not parser.is_idle
    assert list(parser.feed(frame(CONTINUATION, b"", fin=False))) == []
    assert list(parser.feed(frame(CONTINUATION, "é".encode()[1:]))) == [(TEXT, "é".encode())]
    assert parser.is_idle


# -- faults ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reads"),
    [
        # 5.1: "The server MUST close the connection upon receiving a frame that is not masked"
        (1002, [frame(TEXT, b"Hello", masked=False)]),
        (1002, [frame(TEXT, b"", masked=False)]),
        (1002, [frame(PING, b"", masked=False)]),
        # 5.2: RSV1-3 "MUST be 0 unless an extension is negotiated"
        (1002, [frame(TEXT, b"Hello", rsv=4)]),
        (1002, [frame(TEXT, b"Hello", rsv=2)]),
        (1002, [frame(TEXT, b"Hello", rsv=1)]),
        (1002, [frame(PING, b"Hello", rsv=4)]),
        # 5.2: "If an unknown opcode is received, the receiving endpoint MUST fail"
        *[(1002, [frame(opcode, b"Hello")]) for opcode in (0x3, 0x4, 0x5, 0x6, 0x7, 0xB, 0xC, 0xD, 0xE, 0xF)],
        # 5.2: "the minimal number of bytes MUST be used to encode the length"
        (1002, [frame(TEXT, b"x" * 125, length_bytes=2)]),
        (1002, [frame(TEXT, b"", length_bytes=8)]),
        (1002, [frame(TEXT, b"x" * 65_535, length_bytes=8)]),
        # 5.5: control frames "MUST have a payload length of 125 bytes or less and MUST NOT be fragmented"
        (1002, [frame(PING, b"x" * 126)]),
        (1002, [frame(CLOSE, close_payload(1000, b"x" * 124))]),
        (1002, [frame(PONG, b"", length=2**63, length_bytes=8)]),
        (1002, [frame(PING, b"", fin=False)]),
        (1002, [frame(CLOSE, b"", fin=False)]),
        # 5.4: fragments
        (1002, [frame(CONTINUATION, b"Hello")]),
        (1002, [frame(CONTINUATION, b"Hello", fin=False)]),
        (1002, [frame(TEXT, b"a"), frame(CONTINUATION, b"b")]),
        (1002, [frame(TEXT, b"a", fin=False), frame(TEXT, b"b")]),
        (1002, [frame(TEXT, b"a", fin=False), frame(BINARY, b"b", fin=False)]),
        # 8.1: "MUST be UTF-8"
        (1007, [frame(TEXT, b"\xff")]),
        (1007, [frame(TEXT, b"\xed\xa0\x80")]),
        (1007, [frame(TEXT, b"\xc0\xaf")]),
        (1007, [frame(TEXT, b"\xf4\x90\x80\x80")]),
        (1007, [frame(TEXT, "é".encode()[:1])]),
        (1007, [frame(TEXT, b"\xce\xba\xe1", fin=False), frame(CONTINUATION, b"\xff")]),
        # size: known from the header, no byte of the payload needed
        (1009, [frame(TEXT, b"", length=MAX_BYTES + 1)]),
        (1009, [frame(BINARY, b"", length=2**63)]),
        (1009, [frame(BINARY, b"", length=2**64 - 1)]),
        (1009, [frame(TEXT, b"x" * MAX_BYTES, fin=False), frame(CONTINUATION, b"", length=1)]),
    ],
)
def test_violations_of_the_rfc_are_faults_with_their_codes(code: int, reads: list[bytes]) -> None:
    assert fault_of(*reads)[0] == code
    assert fault_of(b"".join(reads))[0] == code


def test_a_fault_is_detected_in_the_first_two_bytes() -> None:
    assert fault_of(b"\xc1\x80")[0] == fault_of(b"\x81\x05")[0] == fault_of(b"\x83\x80")[0] == 1002


def test_messages_before_a_fault_are_delivered() -> None:
    assert fault_of(frame(TEXT, b"a") + frame(PING, b"b") + b"\xff\xff") == (1002, [(TEXT, b"a"), (PING, b"b")])


def test_a_control_frame_may_be_as_long_as_125_bytes() -> None:
    assert parse(frame(PING, b"x" * 125)) == [(PING, b"x" * 125)]


def test_empty_fragments_are_a_message_and_the_largest_one_fits() -> None:
    empty = frame(TEXT, b"", fin=False) + frame(CONTINUATION, b"", fin=False) * 3 + frame(CONTINUATION, b"")
    assert parse(empty) == [(TEXT, b"")]
    halves = [frame(BINARY, b"x" * (MAX_BYTES // 2), fin=False), frame(CONTINUATION, b"x" * (MAX_BYTES // 2))]
    assert parse(*halves) == [(BINARY, b"x" * MAX_BYTES)]


def test_a_message_of_one_byte_fragments_is_buffered_once() -> None:
    parser = FrameParser(MAX_BYTES)
    list(parser.feed(frame(BINARY, b"", fin=False)))
    tracemalloc.start()
    try:
        for _ in range(20_000):
            list(parser.feed(b"\x00\x81\x00\x00\x00\x00x"))
        held_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held_bytes < 2 * 20_000
    assert list(parser.feed(frame(CONTINUATION, b""))) == [(BINARY, b"x" * 20_000)]


# -- close codes (RFC 6455 7.4) --------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999])
def test_close_codes_that_may_be_sent_are_read(code: int) -> None:
    assert close_reason(close_payload(code)) == code
    assert close_reason(close_payload(code, "é".encode() * 61)) == code


# 7.4.1: 1004 is reserved; 1005, 1006 and 1015 "MUST NOT be set in a Close frame by an endpoint"
@pytest.mark.parametrize("code", [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535])
def test_close_codes_that_may_not_be_sent_are_a_fault(code: int) -> None:
    with pytest.raises(ProtocolFault) as caught:
        close_reason(close_payload(code))
    assert caught.value.close_code == 1002


def test_a_close_frame_without_a_code_or_with_half_a_code_or_a_broken_reason() -> None:
    assert close_reason(b"") == CloseCode.NO_STATUS
    for payload, code in ((b"\x03", 1002), (close_payload(1000, b"\xff"), 1007)):
        with pytest.raises(ProtocolFault) as caught:
            close_reason(payload)
        assert caught.value.close_code == code
