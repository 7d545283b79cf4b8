"""`python -m benchmarks.scenarios.rendering`: cost of encoding a publication for the clients of each protocol, once.

Each variant in turn, for several rounds; prints the minimum and the median in microseconds per publication. Framing is
not in it; a pass of several publications encodes each of them once for all clients of one form.
"""

import statistics
from collections.abc import Callable, Mapping
from time import process_time_ns
from typing import Any

from benchmarks.support.message import CHANNEL, compact, envelope, payload
from snorky.gateway.http.protocols.centrifuge.rendering import DIALECTS
from snorky.gateway.http.protocols.pusher.rendering import dialect_of
from snorky.gateway.protocol.codec import Encoding
from snorky.gateway.protocol.publication import Position
from snorky.gateway.protocol.splicing import PAYLOAD, Template
from snorky.gateway.protocol.ws_frames import Dialect

__all__ = ["main"]

ROUNDS = 15
COUNT = 10_000
POSITION = Position("6a1f", 12_345, "abcdefgh")
MESSAGE = compact(payload())
EVENT = compact({"event": "App\\Events\\Shipped", "data": MESSAGE.decode()})


def variants() -> Mapping[str, Callable[[], object]]:
    """Make the variants: each encodes one publication."""
    message: Any = envelope()["message"]
    template = Template("pubsub", {**message, "message": PAYLOAD})

    def rendered(dialect: Dialect, data: bytes, position: Position | None = None) -> Callable[[], object]:
        assert dialect.rendering is not None
        encode = dialect.rendering.encoder(CHANNEL)  # the fan-out keeps those of channels in use
        return lambda: encode(data, position, b"")

    return {
        "Snorky, JSON": lambda: template.render(MESSAGE, Encoding.JSON),
        "Snorky, JSON, with its position": lambda: template.render_at(
            MESSAGE, Encoding.JSON, offset=POSITION.offset, position=str(POSITION)
        ),
        "Centrifuge, JSON": rendered(DIALECTS["json"], MESSAGE),
        "Centrifuge, JSON, with its offset": rendered(DIALECTS["json"], MESSAGE, POSITION),
        "Centrifuge, Protobuf": rendered(DIALECTS["protobuf"], MESSAGE),
        "Centrifuge, Protobuf, with its offset": rendered(DIALECTS["protobuf"], MESSAGE, POSITION),
        "Pusher, an event of its own": rendered(dialect_of("pubsub"), EVENT),
        "Pusher, another message": rendered(dialect_of("pubsub"), MESSAGE),
    }


def main() -> None:
    """Print the table."""
    figures: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, encode in variants().items():
            encode()
            began_ns = process_time_ns()
            for _ in range(COUNT):
                encode()
            figures.setdefault(name, []).append((process_time_ns() - began_ns) / COUNT / 1000)
    print(f"{'us per publication':40}{'min':>8}{'median':>8}")
    for name, found in figures.items():
        print(f"{name:40}{min(found):8.2f}{statistics.median(found):8.2f}")


if __name__ == "__main__":
    main()
