"""What one node contributes to an answer about clients: one page of its connections, or of its channels. No I/O.

A page has at most `limit` entries, in the order of their names, beginning after a name. The page of the cluster is the
first part of the nodes' pages merged, so no entry is left out.
"""

import asyncio
import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from snorky.gateway.config.rules.patterns import Pattern
from snorky.gateway.connection.connection import Connection

__all__ = ["channel_counts", "channels_page", "connections_page", "merged", "place_of"]

CHUNK: Final = 5_000  # names per loop iteration: 5 ms


def place_of(connection_id: str) -> tuple[str, int]:
    """Return what connections are ordered by: node and serial. Raises ValueError: not a connection's id."""
    node, dot, serial = connection_id.rpartition(".")
    if not dot or not serial.isdecimal() or not serial.isascii():
        raise ValueError("not the id of a connection")
    return node, int(serial)


def connections_page(connections: Iterable[Connection], after: str, limit: int) -> list[dict[str, Any]]:
    """Describe the first connections after an id; "" = from the beginning."""
    place = place_of(after) if after else ("", 0)
    later = [each for each in connections if not each.is_closed and place_of(each.id) > place]
    return [_described(each) for each in heapq.nsmallest(limit, later, key=lambda each: each.serial)]


async def channels_page(
    keys: Sequence[str], service: str, pattern: str, after: str, limit: int, count_of: Callable[[str], int]
) -> list[dict[str, Any]]:
    """Count the subscribers of the first channels of a service after a name that match a pattern. keys: of the node."""
    prefix, wanted = f"{service}:", Pattern(pattern)
    start = prefix + wanted.first
    names: list[str] = []
    for at in range(0, len(keys), CHUNK):
        found = [key.removeprefix(prefix) for key in keys[at : at + CHUNK] if key.startswith(start)]
        names = heapq.nsmallest(limit, names + [name for name in found if name > after and wanted.matches(name)])
        await asyncio.sleep(0)
    return channel_counts(service, names, count_of)


def channel_counts(service: str, names: Sequence[str], count_of: Callable[[str], int]) -> list[dict[str, Any]]:
    """Count the subscribers of those of these channels of a service that have some."""
    counts = [(name, count_of(f"{service}:{name}")) for name in names]
    return [{"name": name, "subscribers": count} for name, count in counts if count]


def merged(
    pages: Iterable[Sequence[dict[str, Any]]], key: Callable[[dict[str, Any]], Any], limit: int
) -> tuple[list[dict[str, Any]], bool]:
    """Merge the nodes' pages, of at most limit + 1 entries each; returns the first entries, and True if there are more.

    Entries with the same key are one, with the sum of their subscribers.
    """
    entries: dict[Any, dict[str, Any]] = {}
    for page in pages:
        for entry in page:
            known = entries.setdefault(key(entry), entry)
            if known is not entry:
                known["subscribers"] += entry["subscribers"]
    return [entries[each] for each in sorted(entries)[:limit]], len(entries) > limit


def _described(connection: Connection) -> dict[str, Any]:
    return {
        "connection": connection.id,
        "address": connection.remote_ip,
        "transport": connection.transport_name,
        "encoding": connection.dialect.name,
        "channels": len(connection.channels),
    }
