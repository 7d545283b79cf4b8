"""Replies of the Centrifuge protocol, from the responses and notifications of Snorky's services. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from snorky.gateway.http.protocols.centrifuge.rendering import client_info, pub
from snorky.gateway.protocol.attributes import ATTRIBUTES

__all__ = ["history", "place", "position", "presence", "publications", "stats", "subscribed", "tokens_end"]


def subscribed(data: Any, since: int | None) -> dict[str, Any]:
    """Build the result of `subscribe`. data: of the response. since: the client's offset, if it recovers."""
    found = data if isinstance(data, dict) else {}
    fields = place(found)
    if since is not None:
        fields |= {"was_recovering": True, "recovered": bool(found.get("recovered"))}
        if found.get("recovered"):
            fields |= {"offset": since, "publications": publications(found.get("messages", ()))}
    return fields | tokens_end(found)


def place(data: Mapping[str, Any]) -> dict[str, Any]:
    """Build the fields that say where a subscription begins; none if the channel has no history."""
    if data.get("position") is None:
        return {}
    return {"recoverable": True, "positioned": True, **position(data["position"])}


def position(text: str) -> dict[str, Any]:
    """Build the fields of a position. text: EPOCH:OFFSET:TAG."""
    epoch, offset, _ = text.split(":")
    return {"epoch": epoch, "offset": int(offset)}


def history(data: Mapping[str, Any]) -> dict[str, Any]:
    """Build the result of `history`."""
    return {"publications": publications(data["messages"]), **position(data["position"])}


def presence(data: Mapping[str, Any]) -> dict[str, Any]:
    """Build the result of `presence`."""
    found = data["connections"]
    return {
        "presence": {
            each["connection"]: client_info(each["identity"], each["connection"], each.get("data")) for each in found
        }
    }


def stats(data: Mapping[str, Any]) -> dict[str, Any]:
    """Build the result of `presence_stats`."""
    return {"num_clients": data["connections"], "num_users": data["members"]}


def tokens_end(data: Mapping[str, Any]) -> dict[str, Any]:
    """Build the fields that say when a token expires; none if there is no token, or it does not expire."""
    seconds = data.get("expiresInS")
    return {} if seconds is None else {"expires": True, "ttl": max(1, seconds)}


def publications(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Build publications. Tombstones are left out: the clients bear offsets that jump."""
    known = [each for each in messages if not each.get("tombstone")]
    return [pub(each["message"], each.get("offset"), _attributes(each)) for each in known]


def _attributes(message: Mapping[str, Any]) -> dict[str, Any]:
    return {name: msgspec.json.decode(message[name]) for name in ATTRIBUTES if name in message}
