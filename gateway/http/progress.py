"""Whether a client that sends nothing still receives our data, according to the kernel.

A ping waits behind everything that was written before it. A client on a slow line therefore answers late although it is
alive, and one that recovers much would be cut before it has read the ping.

Rules:
- Bytes that the peer acknowledges count as a sign of life, at SLOWEST_BYTES_PER_S: so long its application may need to
  read them before it comes to our ping.
- A whole interval in which nothing of the outstanding data is acknowledged is the sign of a dead line, whatever was
  acknowledged before. A ping goes out in every interval, so that something is outstanding.
- Data that waits for room at the other end is not outstanding while the other end answers that it has none: one with
  a deep buffer, a proxy for example, makes room in steps of 100 KB or more, and a slow line takes longer for a step.
- The client is dead after PATIENCE_MAX_S in which the node read from it and got no frame.
"""

import asyncio
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Final

__all__ = ["PATIENCE_MAX_S", "SLOWEST_BYTES_PER_S", "Sent", "SilentPeer", "read_sent"]

SLOWEST_BYTES_PER_S: Final = 8_192.0  # a bad mobile line; 1 MiB, the default of outbox_max_bytes, takes 128 s
PATIENCE_MAX_S: Final = 150.0

_TCP_INFO_BYTES: Final = 160
_FIELDS: Final = struct.Struct("@3xB20xI92xQ")  # struct tcp_info of linux/tcp.h: probes, unacked, bytes_acked
_PROBES_MAX: Final = 2  # unanswered: how often the kernel has asked for room; one may be on its way


@dataclass(frozen=True, slots=True)
class Sent:
    """What the kernel knows of the bytes written to one socket. acked_bytes: since it was opened.

    has_unacked: something was sent that is not answered, data or the question for room.
    """

    acked_bytes: int
    has_unacked: bool


def read_sent(transport: asyncio.Transport) -> Sent | None:
    """Ask the kernel; None = unknown: no TCP, an older Linux than 4.6, or a system with another structure."""
    found: socket.socket | None = transport.get_extra_info("socket")
    if found is None or sys.platform != "linux":
        return None
    try:
        info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return None
    if len(info) < _FIELDS.size:
        return None
    probes, unacked, acked_bytes = _FIELDS.unpack_from(info)
    return Sent(acked_bytes, bool(unacked) or probes > _PROBES_MAX)


class SilentPeer:
    """A client from which nothing came for one interval or more. last: what was sent when that interval began."""

    __slots__ = ("_acked_bytes", "_credit_s", "_silent_s")

    def __init__(self, last_acked_bytes: int) -> None:
        self._acked_bytes = last_acked_bytes
        self._credit_s = 0.0
        self._silent_s = 0.0

    def is_alive(self, sent: Sent | None, interval_s: float, *, is_read: bool = True) -> bool:
        """Judge one more silent interval. is_read: the node reads from it."""
        if sent is None:
            return False
        acked_bytes, self._acked_bytes = sent.acked_bytes - self._acked_bytes, sent.acked_bytes
        self._silent_s += interval_s * is_read
        if (sent.has_unacked and not acked_bytes) or self._silent_s > PATIENCE_MAX_S:
            return False
        self._credit_s += acked_bytes / SLOWEST_BYTES_PER_S - interval_s
        return self._credit_s > 0
