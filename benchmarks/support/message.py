"""The message that every variant delivers: 100 bytes of payload, in the gateway's envelope."""

import json

__all__ = [
    "CHANNEL",
    "PATH",
    "PREFIX",
    "centrifuge",
    "centrifuge_protobuf",
    "channel_name",
    "compact",
    "envelope",
    "frame",
    "payload",
    "pusher",
    "redis_channel",
    "subscribe",
]

CHANNEL = "bench"
PATH = "/ws"
PREFIX = "snorky"
PAYLOAD_BYTES = 100


def compact(value: object) -> bytes:
    """JSON without spaces, as the gateway writes it."""
    return json.dumps(value, separators=(",", ":")).encode()


def payload(sent_ns: int = 0) -> dict[str, object]:
    """A typical chat message, 100 bytes in compact JSON. sent_ns: CLOCK_MONOTONIC when published, for latency."""
    value: dict[str, object] = {"t": sent_ns, "id": 4711, "from": "alice", "text": ""}
    value["text"] = "x" * (PAYLOAD_BYTES - len(compact(value)))
    return value


def envelope() -> dict[str, object]:
    """The message as a subscriber of the gateway gets it."""
    return {"service": "pubsub", "message": {"type": "message", "channel": CHANNEL, "message": payload()}}


def frame() -> bytes:
    """The envelope as one unmasked WebSocket text frame (RFC 6455 5.2), 126-65,535 bytes."""
    body = compact(envelope())
    return b"\x81\x7e" + len(body).to_bytes(2) + body


def channel_name(number: int) -> str:
    """Name a channel; 0 is CHANNEL."""
    return f"{CHANNEL}{number or ''}"


def subscribe(channel: str = CHANNEL) -> str:
    """A client's subscribe request; "%d" in the channel becomes the connection's number."""
    command = {"command": "subscribe", "params": {"channel": channel}, "callId": 1}
    return compact({"service": "pubsub", "message": command}).decode()


def centrifuge(channel: str) -> str:
    """A Centrifuge client's first frame in JSON; two replies."""
    commands = {"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": channel}}
    return b"\n".join(map(compact, commands)).decode()


def centrifuge_protobuf(channel: str) -> bytes:
    """The same in Protocol Buffers: each command with its length in front, fields as number << 3 | type."""
    request = bytes((1 << 3 | 2, len(channel))) + channel.encode()
    commands = bytes((1 << 3, 1, 4 << 3 | 2, 0)), bytes((1 << 3, 2, 5 << 3 | 2, len(request))) + request
    return b"".join(bytes((len(each),)) + each for each in commands)


def pusher(channel: str) -> str:
    """A Pusher client's subscribe event. The server sends a first event itself, and one in reply."""
    return compact({"event": "pusher:subscribe", "data": {"channel": channel}}).decode()


def redis_channel() -> str:
    """The Redis channel to which PROTOCOL tells backend jobs to publish for CHANNEL."""
    return f"{PREFIX}:{{pubsub:{CHANNEL}}}"
