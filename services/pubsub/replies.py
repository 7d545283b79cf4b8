"""What pub/sub replies to clients that recover, read history, or ask who is there."""

from collections.abc import Sequence
from typing import Any, Final

from gateway import Compound, InvalidMessage, Member, Position, Publication, Recovery
from services.rpc import RPCError

__all__ = ["NOTHING_TO_RECOVER", "kept", "members", "recovered", "stats"]

MEMBERS_MAX: Final = 5_000  # of one reply: with what is around them they stay within the bounds of a message

NOTHING_TO_RECOVER: Final[dict[str, Any]] = {
    "position": None,
    "recovered": False,
    "messages": [],
}  # of a channel that keeps nothing


def recovered(recovery: Recovery) -> Compound:
    """Reply to who recovers; that it has not recovered, if it cannot take so much now."""
    reply = _compound(recovery.publications, recovery.position, is_recovered=recovery.is_recovered, is_checked=True)
    reply.instead = {"position": str(recovery.position), "recovered": False, "messages": []}
    return reply


def kept(publications: Sequence[Publication], top: Position, *, since: Position | None) -> Compound:
    """Reply to who reads history; recovered = what it is told follows its position with no hole."""
    return _compound(publications, top, is_recovered=since is None or _follows(publications, top, since))


def members(found: Sequence[Member]) -> dict[str, Any]:
    """Reply who is there: each identity once, sorted; who has none by the connection's id. Raises RPCError."""
    identities = sorted({member.identity for member in found})
    if len(identities) > MEMBERS_MAX:
        raise RPCError("Too many members", "limit_exceeded")
    return {"members": identities}


def stats(found: Sequence[Member]) -> dict[str, Any]:
    """Reply how many are there."""
    return {"members": len({member.identity for member in found}), "connections": len(found)}


def _follows(publications: Sequence[Publication], top: Position, since: Position) -> bool:
    if not publications:
        return top == since
    first, position = publications[0], publications[0].position
    if position is None or first.previous_tag != since.tag:
        return False
    return (position.epoch, position.offset) == (since.epoch, since.offset + 1)


def _compound(
    publications: Sequence[Publication], position: Position, *, is_recovered: bool, is_checked: bool = False
) -> Compound:
    compound = Compound()
    messages = [_message(compound, each, is_checked) for each in publications]
    compound.value = {"position": str(position), "recovered": is_recovered, "messages": messages}
    return compound


def _message(compound: Compound, publication: Publication, is_checked: bool) -> dict[str, Any]:
    position = publication.position
    place = {} if position is None else {"offset": position.offset, "position": str(position)}
    try:
        if publication.is_tombstone:
            raise InvalidMessage("Tombstone")
        return {"message": compound.enclose(publication.payload, is_checked=is_checked), **place}
    except InvalidMessage:  # what is not fit for anybody keeps its place, as in live notifications
        return {"message": None, "tombstone": True, **place}
