"""The request for a stream: its channels, and the positions from which they recover. Pure.

    GET /sse?channel=C[&channel=D...][&service=pubsub][&ticket=T][&lastEventID=ID]
    Last-Event-ID: ID

An ID has the position of each channel, in the order of the URL, separated by commas; "-" = none.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from snorky.gateway.http.websocket.handshake import HandshakeRefused

__all__ = ["CHANNELS_MAX", "StreamRequest", "read_request"]

CHANNELS_MAX: Final = 10  # their positions together are the `id` of each event: about 45 bytes each
ID_MAX_BYTES: Final = 4_096
_ID: Final = re.compile("[!-~]+")  # it comes back in events: without blanks and line breaks
_KEYS: Final = frozenset(("channel", "lastEventID", "service", "ticket"))


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """A request for a stream. since: the last position that the client knows, by channel."""

    channels: Sequence[str]
    service: str = "pubsub"
    since: Mapping[str, str] = field(default_factory=dict)
    ticket: str | None = None


def read_request(request: web.Request) -> StreamRequest:
    """Read the URL's parameters, and the header Last-Event-ID. Raises HandshakeRefused."""
    query = request.query
    if unknown := query.keys() - _KEYS:
        raise HandshakeRefused(400, "request", f"Unknown parameter: {min(unknown)[:50]!a}")
    if any(len(query.getall(name)) > 1 for name in query if name != "channel"):
        raise HandshakeRefused(400, "request", "Only the parameter channel may occur several times")
    channels = query.getall("channel", [])
    if not channels or "" in channels:
        raise HandshakeRefused(400, "request", "Name a channel: /sse?channel=CHANNEL")
    if len(channels) > CHANNELS_MAX or len(set(channels)) < len(channels):
        raise HandshakeRefused(400, "request", f"A stream has at most {CHANNELS_MAX} channels, each once")
    if any(not _is_text(each) for each in channels):
        raise HandshakeRefused(400, "request", "A channel's name must be UTF-8")
    last_id = request.headers.get("Last-Event-ID") or query.get("lastEventID", "")
    return StreamRequest(channels, query.get("service", "pubsub"), _positions(last_id, channels), query.get("ticket"))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _positions(last_id: str, channels: Sequence[str]) -> Mapping[str, str]:
    """Split an ID. The service checks the positions. Raises HandshakeRefused."""
    if not last_id:
        return {}
    positions = last_id.split(",")
    if len(last_id) > ID_MAX_BYTES or len(positions) != len(channels) or not _ID.fullmatch(last_id):
        raise HandshakeRefused(400, "request", "Last-Event-ID is not of a stream of these channels")
    return {channel: each for channel, each in zip(channels, positions, strict=True) if each not in ("", "-")}
