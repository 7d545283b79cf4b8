"""What one read from Redis contains, by channel: both names of a channel in one order, no header from publishers."""

from collections import defaultdict

import pytest

from snorky.gateway.redis.pubsub.heard import HeardChannel, by_channel

ROOM, HALL = HeardChannel("room"), HeardChannel("hall")
OPEN, NODES, HALL_NAME = b"open:room", b"nodes:room", b"hall"
CHANNELS = {OPEN: (ROOM, False), NODES: (ROOM, True), HALL_NAME: (HALL, True)}
POSITION, HINT = b"\xc11 e:1:t - j\n1", b"\xc1h e:1:t - j\n1"
NOTICE = b"\xc13 2 1 j []\n2"


def grouped(*heard: tuple[bytes, bytes]) -> tuple[dict[str, list[bytes]], list[str]]:
    """Return the contents of one read, by key, and the keys of refused messages."""
    payloads: defaultdict[bytes, list[bytes]] = defaultdict(list)
    refused: list[str] = []
    for name, payload in heard:
        payloads[name].append(payload)
    read = by_channel(payloads, [name for name, _ in heard], CHANNELS.get, lambda channel: refused.append(channel.key))
    return {channel.key: each for channel, each in read.items()}, refused


@pytest.mark.parametrize(
    ("heard", "expected", "refused"),
    [
        ([(OPEN, b"1"), (OPEN, b"2")], {"room": [b"1", b"2"]}, []),
        ([(NODES, NOTICE), (NODES, POSITION)], {"room": [NOTICE, POSITION]}, []),
        ([(OPEN, b"1"), (NODES, b"2"), (OPEN, b"3"), (NODES, b"4")], {"room": [b"1", b"2", b"3", b"4"]}, []),
        ([(NODES, NOTICE), (HALL_NAME, b"1"), (OPEN, b"2")], {"room": [NOTICE, b"2"], "hall": [b"1"]}, []),
        ([(OPEN, b"1"), (OPEN, POSITION), (OPEN, b"2")], {"room": [b"1", HINT, b"2"]}, []),
        ([(OPEN, b"1"), (OPEN, NOTICE), (OPEN, b"2")], {"room": [b"1", b"2"]}, ["room"]),
        ([(OPEN, NOTICE), (NODES, NOTICE), (OPEN, NOTICE)], {"room": [NOTICE]}, ["room", "room"]),
        ([(OPEN, b"\xff")], {"room": [b"\xff"]}, []),
        ([(b"gone", b"1"), (HALL_NAME, b"2")], {"hall": [b"2"]}, []),
        ([(b"gone", b"1"), (OPEN, POSITION)], {"room": [HINT]}, []),
        ([(HALL_NAME, b"1"), (HALL_NAME, NOTICE)], {"hall": [b"1", NOTICE]}, []),
    ],
    ids=[
        "open", "nodes", "both in turn", "both, others between", "a hint", "forged", "forged beside true ones",
        "a byte above the mark", "given up", "given up, with a hint", "one name alone",
    ],
)  # fmt: skip
def test_both_names_in_one_order_and_headers_only_from_nodes(
    heard: list[tuple[bytes, bytes]], expected: dict[str, list[bytes]], refused: list[str]
) -> None:
    assert grouped(*heard) == (expected, refused)
