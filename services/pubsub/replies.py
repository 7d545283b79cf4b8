"""Pub/sub's replies to `subscribe` with `recover`, and to `history`."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from snorky.gateway import (
    Compound,
    InvalidMessage,
    Member,
    Position,
    Publication,
    Recovery,
    read_attributes,
)
from snorky.services.pubsub.clients import MEMBERS_MAX
from snorky.services.rpc import RPCError

__all__ = [
    "NOTHING_TO_RECOVER",
    "kept",
    "page",
    "recovered",
    "replayed",
    "with_expiry",
    "with_members",
]

# Payloads in one reply. A client waits some seconds for a reply, but at 20 KB/s one of 1 MiB takes a minute: the
# request would time out and the client would reconnect, each time at the same position.
REPLY_MAX_BYTES: Final = 32_768

NOTHING_TO_RECOVER: Final[dict[str, Any]] = {
    "position": None,
    "recovered": False,
    "messages": [],
}  # for a channel without history


def recovered(recovery: Recovery, channel: Any, notification: Any, *, has_attributes: bool) -> Compound:
    """Build the reply to a client that recovers.

    Publications beyond REPLY_MAX_BYTES follow the reply as notifications. If the client's outbox has no room for all
    of it, the reply says `recovered: false` instead. notification: the shape of these notifications. has_attributes:
    messages with their attributes, for clients of other protocols.
    """
    first, rest = _portion(recovery.publications, REPLY_MAX_BYTES)
    position = recovery.position
    if rest:
        position = _before(rest[0])
    reply = _compound(
        first, position, is_recovered=recovery.is_recovered, is_checked=True, has_attributes=has_attributes
    )
    reply.follow(channel, notification, rest)
    reply.instead = {"position": str(recovery.position), "recovered": False, "messages": []}
    return reply


def replayed(last: Sequence[Publication], top: Position) -> Compound:
    """Build the reply to `subscribe` with the last message. top: what follows it is delivered later, so it is left out.

    `isEmpty`: the channel keeps no message.
    """
    earlier = [each for each in last if each.position is not None and each.position.offset <= top.offset]
    compound = _compound(earlier, top)
    if isinstance(compound.value, dict):
        compound.value["isEmpty"] = not last
    return compound


def with_members(
    reply: Compound | dict[str, Any] | None, found: Sequence[Member], *, max_bytes: int
) -> Compound | dict[str, Any]:
    """Add to a reply to `subscribe` the data of the members by their names. max_bytes: of the data, as JSON.

    Raises RPCError: more than MEMBERS_MAX, or than max_bytes.
    """
    data: dict[str, Any] = {}
    for member in found:
        data.setdefault(member.identity, member.data)
    if len(data) > MEMBERS_MAX or len(msgspec.json.encode(data)) > max_bytes:
        raise RPCError("Too many members", "limit_exceeded")
    return _with(reply, {"members": data})


def with_expiry(reply: Compound | dict[str, Any] | None, expires_in_s: int | None) -> Compound | dict[str, Any]:
    """Add to a reply to `subscribe` when the token of the subscription expires; null = never."""
    return _with(reply, {"expiresInS": expires_in_s})


def _with(reply: Compound | dict[str, Any] | None, fields: dict[str, Any]) -> Compound | dict[str, Any]:
    if not isinstance(reply, Compound):
        return {**(reply or {}), **fields}
    for each in (reply.value, reply.instead):
        if isinstance(each, dict):
            each.update(fields)
    return reply


def kept(
    publications: Sequence[Publication], top: Position, *, since: Position | None, has_attributes: bool
) -> Compound:
    """Build the reply to `history`. Its `recovered`: the messages follow `since` without a gap."""
    is_recovered = since is None or _follows(publications, top, since)
    return _compound(publications, top, is_recovered=is_recovered, has_attributes=has_attributes)


def page(publications: Sequence[Publication], top: Position, *, has_attributes: bool) -> Compound:
    """Build the reply to `history` with an order."""
    return _compound(publications, top, has_attributes=has_attributes)


def _follows(publications: Sequence[Publication], top: Position, since: Position) -> bool:
    if not publications:
        return top == since
    first, position = publications[0], publications[0].position
    if position is None or first.previous_tag != since.tag:
        return False
    return (position.epoch, position.offset) == (since.epoch, since.offset + 1)


def _portion(
    publications: Sequence[Publication], max_bytes: int
) -> tuple[Sequence[Publication], Sequence[Publication]]:
    """Split publications into the first ones that fit into max_bytes, and the rest."""
    size = 0
    for at, publication in enumerate(publications):
        size += publication.size
        if size > max_bytes:
            return publications[:at], publications[at:]
    return publications, ()


def _before(publication: Publication) -> Position:
    """Return the position of the publication before this one."""
    position, previous_tag = publication.position, publication.previous_tag
    assert position is not None and previous_tag is not None  # noqa: S101 - history's publications have both
    return Position(position.epoch, position.offset - 1, previous_tag)


def _compound(
    publications: Sequence[Publication],
    position: Position,
    *,
    is_recovered: bool | None = None,
    is_checked: bool = False,
    has_attributes: bool = False,
) -> Compound:
    compound = Compound()
    messages = [_message(compound, each, is_checked) for each in publications]
    if has_attributes:
        for message, publication in zip(messages, publications, strict=True):
            for name, value in read_attributes(publication.attributes).items():
                message[name] = compound.enclose(msgspec.json.encode(value), is_checked=True)
    recovery = {} if is_recovered is None else {"recovered": is_recovered}
    compound.value = {"position": str(position), **recovery, "messages": messages}
    return compound


def _message(compound: Compound, publication: Publication, is_checked: bool) -> dict[str, Any]:
    position = publication.position
    place = {} if position is None else {"offset": position.offset, "position": str(position)}
    try:
        if publication.is_tombstone:
            raise InvalidMessage("Tombstone")
        return {"message": compound.enclose(publication.payload, is_checked=is_checked), **place}
    except InvalidMessage:  # an invalid message keeps its offset, as in live notifications
        return {"message": None, "tombstone": True, **place}
