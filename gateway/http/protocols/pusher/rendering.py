"""What many clients of Pusher's protocol receive. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, Final

from snorky.gateway.http.protocols.pusher.events import encode_event, publication_encoder
from snorky.gateway.http.protocols.pusher.names import kind_of
from snorky.gateway.http.sockjs.frames import SESSION_DIALECT
from snorky.gateway.protocol.attributes import infos_in
from snorky.gateway.protocol.codec import Encoding, Json
from snorky.gateway.protocol.publication import Change, Position
from snorky.gateway.protocol.ws_frames import TEXT, Dialect, text_frame

__all__ = ["EventRendering", "dialect_of", "session_dialect_of"]

_CHANGES: Final = {"+": "pusher_internal:member_added", "-": "pusher_internal:member_removed"}


class EventRendering:
    """Encodes events of the channels of one service."""

    follows_connections = True  # for the data of members
    bears_gaps = True  # this protocol cannot say that events are missing

    def __init__(self, service: str) -> None:
        self.service = service

    def encoder(self, channel: Json) -> Callable[[bytes, Position | None, bytes], bytes]:
        """See `Rendering`."""
        return publication_encoder(_name(channel))

    def change(self, channel: Json, change: Change) -> bytes | None:
        """See `Rendering`. Further connections of a member make no event."""
        name, kind = _name(channel), _CHANGES.get(change.kind)
        if kind is None or not change.is_identity or not kind_of(name).is_presence:
            return None
        info = {} if change.kind == "-" else {"user_info": infos_in(change.data)[0]}
        return encode_event(kind, {"user_id": change.identity, **info}, name)

    def notice(self, envelope: Mapping[str, Any]) -> None:
        """Send nothing: this protocol has no other messages to many."""


@cache
def dialect_of(service: str) -> Dialect:
    """Return the dialect of WebSockets whose channels are those of a service. There are as many as in the settings."""
    return Dialect("json", Encoding.JSON, TEXT, text_frame, rendering=EventRendering(service))


@cache
def session_dialect_of(service: str) -> Dialect:
    """As `dialect_of`, of clients without a WebSocket."""
    return replace(SESSION_DIALECT, rendering=EventRendering(service))


def _name(channel: Json) -> str:
    """Return the name of a channel. Clients of this protocol subscribe only to names that are texts."""
    return channel if isinstance(channel, str) else ""
