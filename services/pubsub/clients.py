"""Members of a roster in replies to `presence` and `presenceStats`; and pages of its connections, for backends."""

from collections.abc import Sequence
from typing import Any, Final

from snorky.gateway import InvalidMessage, Member, RosterSize, json_size
from snorky.services.rpc import RPCError

__all__ = ["MEMBERS_MAX", "client", "clients", "clients_page", "demand_few", "members", "stats"]

MEMBERS_MAX: Final = 5_000  # per reply, so that it stays below the maximum number of values in a message
# Data of one page. The reply to a backend has at most 16 MiB, with 5,000 ids and identities of up to 255 bytes.
PAGE_DATA_MAX_BYTES: Final = 8 << 20


def client(member: Member, *, has_data: bool) -> dict[str, Any]:
    """Describe a connection; null = it has no identity. has_data: with the data of its entry, if it has any."""
    connection = member.owner.connection_id
    identity = None if member.identity == connection else member.identity
    data = {"data": member.data} if has_data and member.data is not None else {}
    return {"connection": connection, "identity": identity, **data}


def demand_few(count: int) -> None:
    """Raise RPCError if a list of so many members is too long for a reply."""
    if count > MEMBERS_MAX:
        raise RPCError("Too many members", "limit_exceeded")


def members(found: Sequence[Member]) -> dict[str, Any]:
    """Build the reply to `presence`: each identity once, sorted; a client without one appears by its connection ID.

    Raises RPCError: more than MEMBERS_MAX.
    """
    identities = sorted({member.identity for member in found})
    demand_few(len(identities))
    return {"members": identities}


def clients(found: Sequence[Member], *, has_data: bool = False) -> dict[str, Any]:
    """Build the reply to `presence` with `connections`: each connection with its identity; null = it has none.

    has_data: and with the data of its entry. Raises RPCError: more than MEMBERS_MAX.
    """
    demand_few(len(found))
    return {"connections": [client(each, has_data=has_data) for each in found]}


def stats(size: RosterSize) -> dict[str, Any]:
    """Build the reply to `presenceStats`."""
    return {"members": size.identities, "connections": size.entries}


def clients_page(found: Sequence[Member], after: str, limit: int) -> dict[str, Any]:
    """Build a page of the connections in a roster, in the order of their ids, with the data of their entries.

    The page ends early if the data are more than PAGE_DATA_MAX_BYTES. Data that nest too deeply for a reply are left
    out.
    """
    later = sorted(
        (each for each in found if each.owner.connection_id > after), key=lambda each: each.owner.connection_id
    )
    page: list[dict[str, Any]] = []
    size = 0
    for member in later[:limit]:
        size_of_data = _size_in_reply(member.data)
        size += size_of_data or 0
        if page and size > PAGE_DATA_MAX_BYTES:
            break
        page.append(client(member, has_data=size_of_data is not None))
    return {"connections": page, "next": page[-1]["connection"] if len(page) < len(later) else None}


def _size_in_reply(data: Any) -> int | None:
    """Return the size of an entry's data as JSON; None: a reply, which puts it into six containers, cannot have it."""
    try:
        return 0 if data is None else json_size([[[[[[data]]]]]])
    except InvalidMessage:
        return None
