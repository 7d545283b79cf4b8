"""The one message that every variant delivers: 100 bytes of payload, in the envelope that the gateway puts around."""

import json

__all__ = ["CHANNEL", "PATH", "PREFIX", "compact", "envelope", "frame", "payload", "redis_channel", "subscribe"]

CHANNEL = "bench"
PATH = "/ws"
PREFIX = "snorky"
PAYLOAD_BYTES = 100


def compact(value: object) -> bytes:
    """JSON without spaces, as the gateway writes it."""
    return json.dumps(value, separators=(",", ":")).encode()


def payload(sent_ns: int = 0) -> dict[str, object]:
    """What a chat would send, 100 bytes in compact JSON. sent_ns: CLOCK_MONOTONIC when published, for latency."""
    value: dict[str, object] = {"t": sent_ns, "id": 4711, "from": "alice", "text": ""}
    value["text"] = "x" * (PAYLOAD_BYTES - len(compact(value)))
    return value


def envelope() -> dict[str, object]:
    """What a subscriber of the gateway gets to see."""
    return {"service": "pubsub", "message": {"type": "message", "channel": CHANNEL, "message": payload()}}


def frame() -> bytes:
    """The envelope as one unmasked WebSocket text frame (RFC 6455 5.2), 126-65,535 bytes."""
    body = compact(envelope())
    return b"\x81\x7e" + len(body).to_bytes(2) + body


def subscribe(channel: str = CHANNEL) -> str:
    """What a client sends to subscribe; "%d" in the channel becomes the connection's number."""
    command = {"command": "subscribe", "params": {"channel": channel}, "callId": 1}
    return compact({"service": "pubsub", "message": command}).decode()


def redis_channel() -> str:
    """Where PROTOCOL has a backend job publish for CHANNEL."""
    return f"{PREFIX}:{{pubsub:{CHANNEL}}}"
