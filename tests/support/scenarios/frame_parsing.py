"""Frames that are parsed, and the faults that they have."""

import pytest

from snorky.gateway.errors import CloseCode, ProtocolFault
from snorky.gateway.protocol.ws_frames import (
    FrameParser,
)

MAX_BYTES = 65_536


def parse(*reads: bytes, max_bytes: int = MAX_BYTES, deflate: bool = False) -> list[tuple[int, bytes]]:
    """Feed reads to a new parser; returns all events."""
    parser = FrameParser(max_bytes, deflate=deflate)
    return [event for read in reads for event in parser.feed(read)]


def fault_of(
    *reads: bytes, max_bytes: int = MAX_BYTES, deflate: bool = False
) -> tuple[CloseCode, list[tuple[int, bytes]]]:
    """Feed reads that must end in a fault; returns its close code, and the events before it."""
    parser = FrameParser(max_bytes, deflate=deflate)
    events = []
    with pytest.raises(ProtocolFault) as caught:
        for read in reads:
            for event in parser.feed(read):
                events.append(event)
    return caught.value.close_code, events
