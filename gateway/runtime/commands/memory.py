"""The memory that limits allow at worst, of a node and of Redis, for `snorky check`.

All clients of a node do what takes most memory at once: subscribe to all channels that they may, send messages as large
as they may, and read nothing. Objects of Python take more than their bytes: the figures are estimates.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from snorky.gateway.config.rules.channel_rules import ChannelRule, Rules
from snorky.gateway.config.settings import Limits
from snorky.gateway.connection.inbox import MAX_BYTES as INBOX_MAX_BYTES
from snorky.gateway.connection.storage_quotas import CHANNEL_BYTES, MESSAGE_BYTES

__all__ = ["Worst", "machine_bytes", "node_worst", "redis_worst", "written"]

PROCESS_BYTES: Final = 96 << 20  # of a node without clients
CONNECTION_BYTES: Final = 3 << 10  # of an idle one: `make bench --only connections`
SUBSCRIPTION_BYTES: Final = 2 << 10  # to a channel without another subscriber here, measured by tracemalloc
CGROUP: Final = Path("/sys/fs/cgroup")


@dataclass
class Worst:
    """parts: bytes by what takes them. unbounded: what no limit bounds, in words."""

    parts: dict[str, int] = field(default_factory=dict)
    unbounded: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """The sum of the parts."""
        return sum(self.parts.values())


def node_worst(limits: Limits) -> Worst:
    """Return the worst case of one node, with the kernel's send buffers."""
    worst = Worst({"the process": PROCESS_BYTES})
    count = limits.connections
    if not count:
        worst.unbounded.append("connections ([limits] connections = 0)")
        return worst
    worst.parts["idle connections"] = count * CONNECTION_BYTES
    worst.parts["subscriptions"] = count * limits.channels_per_connection * SUBSCRIPTION_BYTES
    # of each connection one message is being received, and others wait for the one before
    worst.parts["messages of clients"] = count * (limits.message_max_bytes + INBOX_MAX_BYTES)
    worst.parts["data that clients do not read"] = count * limits.outbox_max_bytes
    if limits.send_buffer_bytes:
        worst.parts["send buffers of the kernel"] = 2 * count * limits.send_buffer_bytes
    else:
        worst.unbounded.append("send buffers of the kernel ([limits] send_buffer_bytes = 0)")
    return worst


def redis_worst(limits: Limits, rules: Mapping[str, Rules[ChannelRule]]) -> Worst:
    """Return the worst case of what clients and backends store in Redis."""
    worst = Worst()
    for service, each in rules.items():
        for rule in each:
            if not rule.history:
                continue
            size = rule.history * (limits.payload_max_bytes + MESSAGE_BYTES) + CHANNEL_BYTES
            if "*" in rule.match or "{" in rule.match:
                worst.unbounded.append(f"channels of {service} like {rule.match}: up to {written(size)} each")
            else:
                worst.parts[f"history of {service}: {rule.match}"] = size
    worst.unbounded.append(f"rooms, documents and lists of subscribers: {written(limits.roster_max_bytes)} each")
    return worst


def machine_bytes() -> int:
    """Return the memory that this process may use: of its cgroup, or of the machine."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_cgroup_limits()]
    return min(found)


def _cgroup_limits() -> Iterable[int]:
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (CGROUP / name).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text.isdigit():  # else "max"
            yield int(text)


def written(size: int) -> str:
    """Write a number of bytes for people."""
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 10 << shift or unit == "KiB":
            return f"{size >> shift:,} {unit}"
    return f"{size} B"
