"""Descriptions of the connections in a roster, for replies; and pages of them, for backends."""

from collections.abc import Sequence
from typing import Any, Final

from snorky.gateway import InvalidMessage, Member, json_size

__all__ = ["client", "clients_page"]

# Data of one page. The reply to a backend has at most 16 MiB, with 5,000 ids and identities of up to 255 bytes.
PAGE_DATA_MAX_BYTES: Final = 8 << 20


def client(member: Member, *, has_data: bool) -> dict[str, Any]:
    """Describe a connection; null = it has no identity. has_data: with the data of its entry, if it has any."""
    connection = member.owner.connection_id
    identity = None if member.identity == connection else member.identity
    data = {"data": member.data} if has_data and member.data is not None else {}
    return {"connection": connection, "identity": identity, **data}


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
