"""Pushes of the Centrifuge protocol: what many clients of a channel receive. Pure."""

from collections.abc import Mapping
from typing import Any, Final

from snorky.gateway.errors import InvalidMessage
from snorky.gateway.http.protocols.centrifuge.forms import FORMS, Form, Publishing, payload_of
from snorky.gateway.protocol.attributes import infos_in
from snorky.gateway.protocol.codec import Encoding, Json, json_size
from snorky.gateway.protocol.publication import Change
from snorky.gateway.protocol.ws_frames import BINARY, TEXT, Dialect, binary_frame, text_frame

__all__ = ["DIALECTS", "INFO_MAX_BYTES", "PUBSUB", "STREAM_DIALECTS", "checked_info", "client_info", "pub", "push"]

PUBSUB: Final = "pubsub"  # the only service that these clients have channels of
# of the claim `info` of each token: each join, each leave, each list of a channel's clients and each publication has it
INFO_MAX_BYTES: Final = 4_096


def push(channel: Json, kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Build a push. kind: e.g. "pub"."""
    return {"push": {"channel": channel, kind: content}}


def pub(payload: bytes, offset: int | None, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Build a publication. payload: JSON. offset: None = it has none. attributes: as `read_attributes` returns them."""
    place = {} if offset is None else {"offset": offset}
    return {"data": payload_of(payload), **place, **attributes}


def checked_info(info: Json) -> Json:
    """Return what a token says about its client to other clients; None = nothing.

    Raises InvalidMessage: it is not strict JSON, or more than INFO_MAX_BYTES.
    """
    if info is not None and json_size(info) > INFO_MAX_BYTES:
        raise InvalidMessage("Too large")
    return info


def client_info(identity: str | None, connection_id: str, data: Json) -> dict[str, Json]:
    """Build the description of a client. identity: None or the connection's id = none. data: see `entry_data`."""
    user = "" if identity is None or identity == connection_id else identity
    found = zip(("conn_info", "chan_info"), infos_in(data), strict=True)
    return {"user": user, "client": connection_id, **{name: info for name, info in found if info is not None}}


class _PushRendering:
    """Encodes pushes."""

    service = PUBSUB
    follows_connections = True
    bears_gaps = False

    def __init__(self, form: Form) -> None:
        self._form = form

    def encoder(self, channel: Json) -> Publishing:
        """See `Rendering`."""
        return self._form.encoder(_name(channel))

    def change(self, channel: Json, change: Change) -> bytes | None:
        """See `Rendering`."""
        if change.kind == "=":
            return None
        kind = "join" if change.kind == "+" else "leave"
        info = client_info(change.identity, change.connection_id, change.data)
        return self._form.encode(push(_name(channel), kind, {"info": info}))

    def notice(self, envelope: Mapping[str, Any]) -> None:
        """Send nothing: this protocol has no other messages to many."""


def _name(channel: Json) -> str:
    """Return the name of a channel. Clients of this protocol subscribe only to names that are texts."""
    return channel if isinstance(channel, str) else ""


def _event(messages: bytes) -> bytes:
    """Encode messages, one a line, as an event."""
    return b"data: %b\n\n" % messages.replace(b"\n", b"\ndata: ")


DIALECTS: Final[Mapping[str, Dialect]] = {
    "json": Dialect("json", Encoding.JSON, TEXT, text_frame, rendering=_PushRendering(FORMS["json"])),
    "protobuf": Dialect("protobuf", Encoding.JSON, BINARY, binary_frame, rendering=_PushRendering(FORMS["protobuf"])),
}

# of responses, by the kind of stream
STREAM_DIALECTS: Final[Mapping[str, Dialect]] = {
    "json": Dialect("json", Encoding.JSON, TEXT, lambda data: data + b"\n", rendering=DIALECTS["json"].rendering),
    "protobuf": Dialect("protobuf", Encoding.JSON, TEXT, lambda data: data, rendering=DIALECTS["protobuf"].rendering),
    "sse": Dialect("json", Encoding.JSON, TEXT, _event, rendering=DIALECTS["json"].rendering),
}
