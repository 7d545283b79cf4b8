"""`python -m benchmarks.scenarios.frames`: cost of parsing a client's frame, here and with aiohttp's compiled reader.

Each variant gets the same reads in turn, for several rounds; prints the median in microseconds per message.
"""

import asyncio
import os
import statistics
import struct
from collections.abc import Callable
from time import process_time

from aiohttp._websocket.reader import WebSocketDataQueue, WebSocketReader
from aiohttp.base_protocol import BaseProtocol

from snorky.gateway.http.websocket.masking import unmask
from snorky.gateway.protocol.ws_frames import FrameParser, whole_message

__all__ = ["main"]

ROUNDS = 7
MAX_BYTES = 65_536


def masked(payload: bytes) -> bytes:
    """Frame a text message as a client does."""
    mask = os.urandom(4)
    size = len(payload)
    head = bytes((0x81, 0x80 | size)) if size < 126 else struct.pack("!BBH", 0x81, 0xFE, size)
    return head + mask + bytes(each ^ mask[at % 4] for at, each in enumerate(payload))


class _Queue(WebSocketDataQueue):  # type: ignore[misc, unused-ignore]  # compiled
    """Counts messages."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(BaseProtocol(loop), 2**16, loop=loop)
        self.count = 0

    def feed_data(self, data: object, size: int) -> None:
        self.count += 1


def variants(loop: asyncio.AbstractEventLoop) -> dict[str, Callable[[bytes], None]]:
    """Make the variants: each takes one read."""
    reader = WebSocketReader(_Queue(loop), MAX_BYTES, compress=False, decode_text=False)
    parser = FrameParser(MAX_BYTES, unmask=unmask)

    def ours(read: bytes) -> None:
        assert whole_message(read, MAX_BYTES, unmask) is not None

    def ours_in_pieces(read: bytes) -> None:
        assert len(list(parser.feed(read))) == 1

    def aiohttp_kept(read: bytes) -> None:
        reader.feed_data(read)

    def aiohttp_on_demand(read: bytes) -> None:
        WebSocketReader(_Queue(loop), MAX_BYTES, compress=False, decode_text=False).feed_data(read)

    return {
        "whole_message": ours,
        "FrameParser": ours_in_pieces,
        "aiohttp, a reader kept per connection (2 KiB)": aiohttp_kept,
        "aiohttp, a reader made per message": aiohttp_on_demand,
    }


def main() -> None:
    loop = asyncio.new_event_loop()
    print(f"{'':48}{'60 B':>9}{'100 B':>9}{'1 KiB':>9}{'32 KiB':>9}   us per message")
    rows: dict[str, list[float]] = {}
    for size, count in ((60, 20_000), (100, 20_000), (1024, 10_000), (32_768, 500)):
        read = masked(b"x" * size)
        figures: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for name, take in variants(loop).items():
                began_s = process_time()
                for _ in range(count):
                    take(read)
                figures.setdefault(name, []).append((process_time() - began_s) / count * 1e6)
        for name, samples in figures.items():
            rows.setdefault(name, []).append(statistics.median(samples))
    for name, medians in rows.items():
        print(f"{name:48}" + "".join(f"{median:9.2f}" for median in medians))
    loop.close()


if __name__ == "__main__":
    main()
